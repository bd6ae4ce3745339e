/*
NAME
  gate_retry.h - qmail-send's half of the gate: mail that waits to be called

DESCRIPTION
  A report B<S> <Q> says that a delivery was not tried because its domain is at its limit. The recipient then waits in queue
  Q until the gate calls it, or for S seconds at the longest. A report R<Q> <N>, whose delivery number is one that no
  delivery has, calls N recipients of queue Q: of the messages that were due first, first.

  A message may have any number of recipients, in any number of queues. Each recipient that waits is known by its position in
  the channel file. A pass over recipients that were called goes to their positions and nowhere else (gate_retry_next), so
  its work is that of the called ones, however many recipients the message has. And several such jobs of one message may run
  at once, because none of them looks at what another one tries.

  Such a pass never sees whether the message is done. When nothing of the message waits or runs any more it comes back for a
  pass from the beginning, as without the gate. While anything does, there is no pass from the beginning: an entry in
  pqchan that has no business any more is a pass over nobody. So no recipient is tried twice at once.

  Once one recipient of a domain was busy, the others of that domain in the same pass are not handed out one by one to be
  refused as well. They wait together, and the gate is asked for all of them at once: by a command with delivery number 65535,
  whose recipient is <N>@<domain> (gate_retry_tell). Its answer comes as a report of that number: B<S> <Q>, as for
  one of them. After any other answer they are tried.

  The recipients of such a message which their own server deferred wait here, too, until the retry time that qmail gave
  them, but for a day at the longest. From then on they are due: if they are busy then, newer mail that was due before goes first. A message of which nobody was ever busy is none of this: it is as without the gate.

  Some recipients are not remembered: those behind a place where a pass had to end because its file could not be read, one that
  qmail-send had no memory to hand out, and those whose place is in another file. This is so where a message was removed while
  qmail-send ran, and a new one has its number. The message comes back for a pass from the beginning, as when memory is short (below).

  A pass that has handed out 256 recipients since one was busy lets other messages go first, and goes on behind them.

  j is an index into jo[], c a channel (0 and up, as many as the tree has), id a message, mpos the position of a recipient in its channel file. Times
  are in seconds since the epoch, as recent is. HOOKS.md shows the calls in qmail-send.c.

MEMORY
  Per recipient that waits 8 bytes, at most GATE_RETRY_MAX of them. Per message that waits 64 bytes, and 120 for each queue in
  which its recipients wait, each retry time of deferred ones, and each call that is not carried out yet. 16 for each queue
  that has mail. While the gate is asked for several, the name of their domain. Per channel on which mail has
  waited 8 KiB, per job of jo[] 96 bytes; 256 KiB for the queues of domains. When memory is short or GATE_RETRY_MAX is
  reached, a recipient cannot be remembered: its message comes back for a pass from the beginning when the others have
  been tried, at the time that was asked for this recipient.

RESTART
  At exit a message with busy recipients is stored as due since it was due, one with only deferred ones at their time. What is
  remembered of recipients is lost: after a restart they are tried once when their message comes back.

SIGALRM
  It means that what is deferred is to be tried now. So are the recipients that their own servers deferred. A busy one is
  not deferred: it waits for its turn, and goes on to do so.
*/
#ifndef GATE_RETRY_H
#define GATE_RETRY_H

#define GATE_RETRY_MAX 4194304

/*
A job begins, which was due at dt. 1: its pass is over a part of the recipients. It must not take the message for done at the
end of its file: there may be others. 0: a pass from the beginning.
*/
extern int gate_retry_open(int j, int c, unsigned long id, long dt);

/*
Before a recipient is read from fd, at *mpos. 0: read on. 1: fd stands at another *mpos now, and nothing of it has been read.
2: the pass ends here, and not at the end of its file. The same again until it has been read.
*/
extern int gate_retry_next(int j, int fd, unsigned long *mpos);

/* 1: do not try this recipient now: it waits. 0: try it. */
extern int gate_retry_skip(int j, unsigned long mpos, char *recip);

/* 1: nobody was handed out by the last step of the pass, so the next step can be made at once. 0: look at everything else. */
extern int gate_retry_again(void);

/* 1: write a command with delivery number 65535 for message *id and recipient *recip, and an empty sender. 0: there is none. */
extern int gate_retry_tell(int c, unsigned long *id, char **recip);

/*
A delivery of job j was reported. report: letter, text, zero byte. natural: jo[j].retry.
A B report becomes a Z report: the letter and the numbers are removed from the text. So this must be called after the
Z of a dying message has been made a D, and before the letter is looked at.
*/
extern void gate_retry_report(int j, int c, unsigned long id, unsigned long mpos, long natural, char *recip, char *report);

/*
The last delivery of job j is done, and the message is not: *dt is when it would come back. flaghiteof: jo[j].flaghiteof.
1: it waits here, gate_retry_due will give it back. 0: to be put into pqchan at *dt, which may have been made sooner.
*/
extern int gate_retry_close(int j, int flaghiteof, long *dt);

/* a report of a delivery that there is not. 1: it was a call or an answer, and done. 0: it was none. */
extern int gate_retry_call(int c, unsigned long delnum, char *report);

/* 1: message *id of channel c is to go to pqchan now, at *dt, which is not later; call again. 0: no more. */
extern int gate_retry_due(int c, unsigned long *id, long *dt);

/* when gate_retry_due should be called, or wakeup if that is sooner; later than now unless wakeup is not */
extern long gate_retry_wakeup(long wakeup);

/*
SIGALRM. 1: message *id of channel c has a deferred recipient, it is to go to pqchan at *dt; call again. 0: no more.
*/
extern int gate_retry_alarm(int c, unsigned long *id, long *dt);

/* 1: message *id of channel c waits no more, it is to go to pqchan at *dt; call again. 0: no more, all forgotten. */
extern int gate_retry_flush(int c, unsigned long *id, long *dt);

#endif
