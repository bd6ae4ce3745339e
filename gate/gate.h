/*
NAME
  gate.h - the per-domain delivery gate of qmail-rspawn

DESCRIPTION
  The gate counts the deliveries that one qmail-rspawn has running, per destination domain, smtproutes relay or
  configured group (together: keys), and decides whether a new one may start. The limits are in
  control/concurrencydomains; without that file every answer is GATE_GO.

  If a queue has several qmail-rspawn (trees with supplemental channels), each has a gate, and a limit holds over all of
  them together: they share what they run in queue/lock/gateshared. Each learns for itself what a server takes (learn).

  A delivery has a slot: the delivery number that qmail-send gave it. To the gate a slot is free, running or held.

    gate_open      once, before the first delivery
    gate_ask       a command has been read: may it start?
                     GATE_GO    start it; it has a place of its key until gate_done
                     GATE_HOLD  do nothing: the gate keeps a copy and gives it back through gate_next
                     GATE_BUSY  do not start it: write text as the report of this slot
    gate_next      called until it returns GATE_NONE, whenever no command is half read
                     GATE_GO    start the held command in out; it has a place until gate_done
                     GATE_BUSY  the command in out was held too long: write out->text as the report of out->slot
                     GATE_CALL  write out->text as a report of GATE_CALL_SLOT, a number that no delivery has
    gate_done      the slot's delivery has ended, or never started: its place is free
                     GATE_GO    pass on its report, with text as its last line if there is one
                     GATE_BUSY  it was not really tried: write text as its report instead
    gate_timeout_ms  how long the caller may sleep
    gate_drop_held   the held commands are no longer wanted

  A busy text is a whole report without its delivery number and its zero byte: the letter B, the number of seconds
  (1..3600) after which the mail comes back at the latest, a space, the number (1..4294967295) of the queue in which it
  waits for a call, a space, a sentence for the log, a newline:

    B73 5 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)

  While no server at the destination answers, the text is an ordinary deferral, with the letter Z.

  A call is the letter R, the number of a queue, a space, for how much mail of that queue there is room now
  (1..4294967295; the highest number means all of it), a newline:

    R5 20

  If the contents of a control file do not count, at the start or later, the gate writes a line to qmail-send's log: the
  letter N, the line, a newline. It comes as a call does, once for each such file, and once a minute at most:

    Nwarning: control/concurrencydomains:3:7: the limit is not a number (empty means unlimited); the last one that had no errors counts

  When one recipient of a message got a busy report, qmail-send asks about the message's other recipients of the same
  domain together: gate_ask with slot GATE_CALL_SLOT, whose last part is a number, an @ and the domain:

    64580@gmail.com

  The answer is GATE_BUSY with the text of a busy report, as one of them would get it: then all of them are away.
  GATE_GO means: ask about each of them. spawn.c then reports that there is no such delivery number, and qmail-send understands
  that as the answer.

  qmail-send passes B, R and such answers to gate_retry.h. B means that the mail was not tried, so however old the mail
  is, it must not fail. A qmail-send that does not know B logs "report mangled, will defer", and for R "delivery report
  out of range".

  The report of a delivery that was held gets a line in the log, which "qpatch gate simulate" reads:

    Held 3.214 s, ran 2.001 s.

POINTERS
  What the caller passes stays the caller's: the gate reads it during the call and keeps copies. What the gate returns
  (text, and everything that struct gate_next points to) is the gate's: it is valid until the next call of any function
  here, and must not be written to or freed. A returned text ends with a zero byte; a returned part has exactly the
  bytes that were passed, with no zero byte added.

RANGES
  slots      1..65534; slot is below slots, or for gate_ask GATE_CALL_SLOT. With a slot out of range gate_ask returns
             GATE_GO, and gate_done does nothing.
  parts      1..GATE_PARTS; each part has up to GATE_PART_MAX bytes. Otherwise gate_ask returns GATE_GO. The last part
             is the recipient, which may end with zero bytes; its domain is what follows its last @. No @: GATE_GO.
  NULL       allowed where this header says so. Elsewhere gate_ask and gate_done return GATE_GO, gate_next GATE_NONE.

CALLS IN THE WRONG ORDER
  Before gate_open, or after it failed: always GATE_GO. A second gate_open: refused, the first gate stays. gate_ask for
  a slot that is running: GATE_GO, and no second place is taken (spawn.c then reports "delnum in use"). gate_ask for a
  slot that is held: GATE_BUSY with a text that starts with Z and says "delnum in use"; the held command stays.
  gate_done for a free slot: nothing. gate_done for a held slot: its command is dropped.

FAILURES
  Whatever fails in the gate, mail goes on: gate_ask returns GATE_GO. The gate prints nothing, starts no thread and
  touches no signal. It closes every descriptor before the call returns, except one if there is a queue/lock/gateshared;
  that one is close-on-exec and never 0, 1 or 2. It never waits for a delivery or a network. It waits for a lock only in
  gate_open, if there is that file, for 0.2 s at most. Without that file, or if it cannot be used, the gate counts for
  itself alone. After an internal error (a caught panic) every answer is GATE_GO, and every held command is given back
  to be started; the status file says so.

THREADS
  One thread. Not from a signal handler, and not between fork or vfork and exec.

FILES
  control/concurrencydomains, control/smtproutes, control/concurrencysites, control/concurrencyreplies, and
  control/authsenders if qmail-remote reads that: checked once a second at most, during the calls, and read again when
  they have changed. control/concurrencyremote: read by gate_open only, because qmail-send reads it at its start only.
  queue/lock/gatestatus: written once a second at most when something changed, and once a minute otherwise, so that its
  age shows whether the spawner runs. A gate without limits writes it, too: it counts what runs. The gate does not
  create it: without a writable file there is no status.
  gatesites, in the same directory: at which addresses the mail of each domain was taken. Read by gate_open, written
  once in ten seconds at most when something changed, and at the end. It must exist, too.
  gatekept.domains, gatekept.routes, gatekept.sites, gatekept.senders, gatekept.replies, in the same directory: the last
  contents of these control files that could be used; of smtproutes and authsenders only hosts, senders and the names of
  relays. gate_open reads them, and they count if a file has a mistake or cannot be read. Without the first of them, the
  good lines of concurrencydomains count, and a limit of 20 for all other domains. Each is written when its control file
  has changed, is good, and has not changed again for a fifth of a second (three seconds if it has become less than half
  as long, or is gone); and again when another program has changed the copy, which is checked once a minute. A write
  that fails or is cut leaves what was kept before. They must exist, too. A control file that does not exist means that
  there are no such settings; a control directory that does not exist does not mean that.
  gatekept.rates, in the same directory: what was started within the last day, for rates of an hour and a day. Read by
  gate_open. Written during gate_ask and gate_next, before a delivery starts that it must count, and once a second at
  most while something starts; not at all without such rates. It must exist, too.
  gatelease, in the same directory: the shares of this host, where several hosts share the limits. Read by gate_open,
  and then four times a second at most, in the same calls. If it is missing or empty, nothing is shared.
  gateshared, in the same directory: only for several qmail-rspawn. Each has a number, from 0 on: a column of that file.
  Number 1 writes gatestatus.1, gatesites.1 and gatekept.rates.1, and so on. They must exist, too: hier.c makes as many as the tree has
  channels. At its start a gate reads the gatesites of all.

SEE ALSO
  gate_glue.h for the calls from spawn.c, gate_retry.h for qmail-send's half
*/
#ifndef GATE_H
#define GATE_H

#ifdef __cplusplus
extern "C" {
#endif

#define GATE_NONE 0
#define GATE_GO 1
#define GATE_HOLD 2
#define GATE_BUSY 3
#define GATE_CALL 4

#define GATE_CALL_SLOT 65535
#define GATE_PARTS 8
#define GATE_PART_MAX 65536

/* len bytes at s, which may include zero bytes. s may be NULL if len is 0. */
struct gate_text {
  const char *s;
  unsigned int len;
};

/* a held command that gate_next gives back: part[0..parts), as passed to gate_ask; a call has no parts */
struct gate_next {
  unsigned int slot;
  unsigned int parts;
  struct gate_text part[GATE_PARTS];
  const char *text; /* the report if the answer was GATE_BUSY or GATE_CALL, else NULL */
};

/*
slots: conf-spawn. control: the directory of the control files, NULL for "../../control". status: the status file, NULL
for "../lock/gatestatus". Relative names are relative to the working directory at each call (a spawner's is queue/mess).
reads: where the tree's qmail-remote looks for a relay, besides smtproutes, as words separated by spaces: "authsenders"
is control/authsenders, "!@" the line of smtproutes for mail without a sender. Other words and NULL mean nothing.
Returns 1, or 0 if there will be no gate (out of memory, slots out of range, already open): every answer is GATE_GO.
*/
extern int gate_open(unsigned int slots, const char *control, const char *status, const char *reads);

/*
part[0..parts): the command as it was read, the recipient last.
Returns GATE_GO, GATE_HOLD or GATE_BUSY; *text is the report for GATE_BUSY, else NULL.
*/
extern int gate_ask(unsigned int slot, const struct gate_text *part, unsigned int parts, const char **text);

/* Returns GATE_NONE, GATE_GO, GATE_BUSY or GATE_CALL; out is written unless the answer is GATE_NONE. */
extern int gate_next(struct gate_next *out);

/*
report[0..len): what the delivery printed, before qmail-rspawn makes a report of it; NULL if it never ran. text: NULL if
report is.
Returns GATE_GO, or GATE_BUSY: then *text is the report. With GATE_GO *text is NULL, or a line to insert into what the
delivery printed, right before the zero byte at its end: how long the command was held, and how long the delivery ran.
There is such a line only if it becomes the end of a success or a deferral, which only qmail-send's log shows.
*/
extern int gate_done(unsigned int slot, const char *report, unsigned int len, const char **text);

/*
Milliseconds, 0..60000, after which gate_next must be called again: 0 if a held command can start; the time until one
has been held too long; 10 to 30 while mail waits for places that other qmail-rspawn have; the time until the next check
of the control files while something is held or away, until the next call, or until the next status. -1: no need. A gate
that has written a status wakes once a minute.
*/
extern long gate_timeout_ms(void);

/* How many commands are held: 0..slots. */
extern unsigned int gate_held(void);

/*
Forgets the held commands and what is away: qmail-send is gone, and the mail is in its queue. Running deliveries stay
counted. It may be called repeatedly; once nothing runs it writes the last status.
*/
extern void gate_drop_held(void);

#ifdef __cplusplus
}
#endif

#endif
