/*
NAME
  gate_retry.h - qmail-send's half of the gate: mail that waits to be called

DESCRIPTION
  A report B<S> <Q> says that a delivery was not tried because its domain is at its limit. The whole job (one message on
  one channel) then waits in queue Q until the gate calls it, or for S seconds at the longest. A report R<Q> <N>, whose
  delivery number is one that no delivery has, calls N recipients of queue Q: of the jobs that were due first, first.

  Three things follow. The recipients of that job which their own server deferred must not be tried again that soon: they
  are remembered, and passed over until the retry time which qmail gave them. A pass over a job that was called begins
  where its busy recipients begin (gate_retry_from), and ends behind the last one that was called (gate_retry_stop): its
  work is that of the called ones, however many recipients the message has. Such a pass never sees whether the message is
  done: when nothing is left to be called the job comes back for a pass from the beginning. And a job that was called is
  due since it was first due: it goes before what has come later.

  j is an index into jo[], c a channel (0 and up, as many as the tree has), id a message, mpos the position of a recipient in its channel file. Times
  are in seconds since the epoch, as recent is. HOOKS.md shows the calls in qmail-send.c.

MEMORY
  Nothing for a busy recipient. Per job that waits 96 bytes, and 16 for each queue that has one. Per message with deferred
  recipients, or that is called, 64 bytes; per deferred recipient 32, at most GATE_RETRY_MAX of them. Per channel on which
  a job has waited 8 KiB, per job of jo[] 80 bytes. When memory is short or the table is full, the job is simply deferred: it
  comes back at its natural retry time.

RESTART
  At exit a job that waits is stored as due since it was due. What is remembered of its recipients is lost: after a
  restart they are tried once when their job comes back.

SIGALRM
  It means that what is deferred is to be tried now. So are the recipients that their own servers deferred. A busy one is
  not deferred: it waits for its turn, and goes on to do so.
*/
#ifndef GATE_RETRY_H
#define GATE_RETRY_H

#define GATE_RETRY_MAX 65536

/* a job begins, which was due at dt */
extern void gate_retry_open(int j, int c, unsigned long id, long dt);

/*
1: the pass that gate_retry_open has begun is over called recipients, and begins at *mpos. It must not take the message for
done at the end of its file: there may be recipients before. 0: a pass from the beginning.
*/
extern int gate_retry_from(int j, unsigned long *mpos);

/* 1: fd will be read from mpos on. 0: it cannot be. */
extern int gate_retry_seek(int fd, unsigned long mpos);

/* 1: the pass ends here, before the recipient at mpos, and not at the end of its file. 0: it goes on. */
extern int gate_retry_stop(int j, unsigned long mpos);

/* 1: do not try this recipient now, it has its own retry time ahead, or was not called. 0: try it. */
extern int gate_retry_skip(int j, int c, unsigned long id, unsigned long mpos, long now);

/*
A delivery of job j was reported. report: letter, text, zero byte. natural: jo[j].retry.
A B report becomes a Z report: the letter and the numbers are removed from the text. So this must be called after the
Z of a dying message has been made a D, and before the letter is looked at.
*/
extern void gate_retry_report(int j, int c, unsigned long id, unsigned long mpos, long natural, char *report);

/*
The last delivery of job j is done, and the job is not: *dt is when it would come back.
1: it waits here, gate_retry_due will give it back. 0: to be put into pqchan at *dt, which may have been made sooner.
*/
extern int gate_retry_close(int j, int c, unsigned long id, long *dt);

/* a report of a delivery that there is not. 1: it was a call, and done. 0: it was none. */
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
