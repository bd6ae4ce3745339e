/*
NAME
  gate_retry.h - qmail-send's half of the gate: mail that waits to be called

DESCRIPTION
  A report B<S> <Q> says that a delivery was not tried because its domain is at its limit. The recipient then waits in
  queue Q until the gate calls it, or for S seconds at most. A report R<Q> <N>, with a delivery number that no delivery
  has, calls N recipients of queue Q. The messages that were due first go first.

  A message may have any number of recipients, in any number of queues. A recipient that waits is known by its position
  in the channel file. A pass over called recipients goes to their positions and nowhere else (gate_retry_next), so its
  work depends on how many are called, and not on how many recipients the message has. Several such jobs of one message
  may run at once, because none of them looks at what another one tries.

  Such a pass does not see whether the message is done. When nothing of the message waits or runs any more, the message
  comes back for a pass from the beginning, as without the gate. Until then there is no pass from the beginning: an
  entry in pqchan that has nothing to do is a pass over no recipient. So no recipient is tried twice at once.

  Once one recipient of a domain was busy, the pass does not hand out the others of that domain one by one, to be
  refused as well. They wait together, and the gate is asked about all of them at once (gate_retry_ask), by a command
  with delivery number 65535 whose recipient is <N>@<domain>. The answer comes as a report of that number: B<S> <Q>, as
  for one of them. After any other answer they are tried.

  If the own servers of other recipients of such a message deferred them, these wait here too, until the retry time
  that qmail gave them, but for a day at most. From then on they are due: if they are busy then, newer mail that was due
  earlier goes first. A message without any busy recipient is treated as without the gate.

  Some recipients are not remembered: those behind a place where a pass had to end because its file could not be read;
  one that qmail-send had no memory to hand out; and those whose position is in another file, because a message was
  removed while qmail-send ran and a new one has its number. The message then comes back for a pass from the beginning,
  as when memory is short (see below).

  A pass that has handed out 256 recipients since one was busy lets other messages go first, and goes on behind them.

  j is an index into jo[], c a channel (from 0, as many as the tree has), id a message, mpos the position of a recipient
  in its channel file. Times are in seconds since the epoch, as recent is. HOOKS.md shows the calls in qmail-send.c.

MEMORY
  8 bytes for each recipient that waits, and at most GATE_RETRY_MAX of them. 64 for each message that waits, and 120 for
  each queue in which its recipients wait, each retry time of deferred ones, and each call that is not carried out yet.
  16 for each queue that has mail. While the gate is asked about several recipients, the name of their domain. 8 KiB for
  each channel on which mail has waited, 96 bytes for each job of jo[], 128 KiB for the queues of domains. When memory
  is short or GATE_RETRY_MAX is reached, a recipient cannot be remembered: its message comes back for a pass from the
  beginning when the others have been tried, at the time that the report of this recipient gave.

RESTART
  At exit a message with busy recipients is stored with the time when it was due, one with only deferred recipients with
  their retry time. What is remembered of recipients is lost: after a restart all of them are tried once when their
  message comes back.

SIGALRM
  SIGALRM means: try deferred mail now. So the recipients that their own servers deferred are tried. A busy recipient is
  not deferred: it keeps waiting for its turn.
*/
#ifndef GATE_RETRY_H
#define GATE_RETRY_H

#define GATE_RETRY_MAX 4194304

/*
A job begins that was due at dt. 1: its pass covers a part of the recipients. It must not take the message for done at
the end of its file: there may be others. 0: a pass from the beginning.
*/
extern int gate_retry_open(int j, int c, unsigned long id, long dt);

/*
Called before a recipient is read from fd, at *mpos. 0: read on. 1: fd and *mpos are now at another recipient, of which
nothing has been read. 2: the pass ends here, and not at the end of its file. The answer stays the same until the
recipient has been read.
*/
extern int gate_retry_next(int j, int fd, unsigned long *mpos);

/* 1: do not try this recipient now: it waits. 0: try it. */
extern int gate_retry_skip(int j, unsigned long mpos, char *recip);

/* 1: the last step of the pass handed out no recipient, so the next step can follow at once. 0: do other work first. */
extern int gate_retry_again(void);

/* 1: write a command: delivery number 65535, message *id, an empty sender, recipient *recip. 0: nothing to ask. */
extern int gate_retry_ask(int c, unsigned long *id, char **recip);

/*
A delivery of job j was reported. report: letter, text, zero byte. natural: jo[j].retry.
A B report becomes a Z report: the letter changes and the numbers are removed from the text. So this must be called
after the Z of a dying message has been made a D, and before the letter is looked at.
*/
extern void gate_retry_report(int j, int c, unsigned long id, unsigned long mpos, long natural, char *recip,
                              char *report);

/*
The last delivery of job j is done, and the message is not: *dt is when it would come back. flaghiteof:
jo[j].flaghiteof. 1: it waits here, and gate_retry_due gives it back. 0: put it into pqchan at *dt, which may have
become sooner.
*/
extern int gate_retry_close(int j, int flaghiteof, long *dt);

/* A report with a delivery number that no delivery has. 1: it was a call or an answer, and is done. 0: neither. */
extern int gate_retry_call(int c, unsigned long delnum, char *report);

/* 1: put message *id into pqchan of channel c at *dt, which is not later than now; call again. 0: no more. */
extern int gate_retry_due(int c, unsigned long *id, long *dt);

/* when gate_retry_due must be called, or wakeup if that is sooner; later than now, unless wakeup is not */
extern long gate_retry_wakeup(long wakeup);

/* SIGALRM. 1: message *id has a deferred recipient; put it into pqchan of channel c at *dt; call again. 0: no more. */
extern int gate_retry_alarm(int c, unsigned long *id, long *dt);

/* exit. 1: put message *id into pqchan of channel c at *dt; call again. 0: no more, all is forgotten. */
extern int gate_retry_flush(int c, unsigned long *id, long *dt);

#endif
