/*
NAME
  spawn_events.h - which deliveries of a spawner have something to say, at a cost that does not grow with their number

DESCRIPTION
  spawn.c gives select() the descriptors of all deliveries, goes through all delivery numbers to fill the set and to
  find what can be read, and asks the kernel for any child that has ended, which looks through all children. It keeps
  the writing end of each delivery's pipe until the process has ended, so that the end of file comes after that.

  With these functions it goes only through the deliveries that have something to say, and waits for their processes by
  number: it closes its writing end at once, and at the end of file asks for just this process. A delivery is over when
  both have come, the end of file and the end of the process, in any order; as before.

  A spawner calls events_open() once and events_add() when a delivery has started. It reads with events_read(), and
  calls events_remove() when the report is written. In between, each loop over delivery numbers begins and goes on as
  these functions say.

  Linux only. Without epoll, and as soon as it fails (no descriptor, no memory, a limit of the system), the functions
  use select() and say "all deliveries". Elsewhere, and if there is no memory at the start, spawn.c works as it always
  did.

  SIGCHLD must be blocked when any of these functions is called, but for events_noted(), which is for its handler, and
  events_select(), during which the handler may run. No function waits for a process.
*/
#ifndef SPAWN_EVENTS_H
#define SPAWN_EVENTS_H

/* Delivery numbers are 0 to most - 1. Before SIGCHLD is caught. */
extern void events_open(int most);

/*
Delivery number i has started: its output comes from the descriptor fd, its process is pid. keep is the spawner's own
writing end. Returns what to keep of it: -1 if it is closed, since processes are waited for by number.
*/
extern int events_add(int i, int fd, int keep, int pid);

/*
In place of read() of delivery i. At the end of file, 0 means that its process has ended, and how is in *wstat (if
processes are not waited for by number, it is there already). If the process goes on, returns -1; the delivery is ready
again when it has ended.
*/
extern int events_read(int i, int fd, char *buf, unsigned int len, int *wstat);

/* Delivery number i is over. Its descriptor must still be open. */
extern void events_remove(int i, int fd);

/* For the handler of SIGCHLD. 1: that is all, since processes are waited for by number. 0: wait for any. */
extern int events_noted(void);

/*
In place of select(). wfds and efds are null. rfds has descriptor 0, if it is wanted, and the deliveries of events_all().
Afterwards rfds has what can be read: descriptor 0, and deliveries of events_first(). Returns as select() does.
*/
extern int events_select(int nfds, fd_set *rfds, fd_set *wfds, fd_set *efds, struct timeval *timeout);

/*
For loops over delivery numbers; each ends when the number is no longer below most.
  for (i = events_all();i < most;++i)                    all, if events_select() wants them in its set, else none
  for (i = events_first();i < most;i = events_next(i))   what can be read
*/
extern int events_all(void);
extern int events_first(void);
extern int events_next(int i);

#endif
