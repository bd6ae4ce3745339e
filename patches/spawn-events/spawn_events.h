/*
NAME
  spawn_events.h - which deliveries of a spawner have something to read, at a cost that does not grow with their number

DESCRIPTION
  spawn.c gives select() the descriptors of all deliveries, and goes through all delivery numbers three times: to fill
  the set, to find what can be read, and to find the delivery of a child that has ended. With these functions it goes
  only through the deliveries that have something to read.

  A spawner calls events_open() once, events_add() when a delivery has started and events_remove() when its report is
  written. In between, each loop over delivery numbers begins and goes on as these functions say.

  Linux only, by epoll. Elsewhere, and as soon as something fails (no memory, no descriptor, a limit of the system),
  the functions say "all deliveries", and spawn.c works as it always did.

  SIGCHLD must be blocked when any of these functions is called, but for events_child(), which is for its handler, and
  events_select(), during which the handler may run.
*/
#ifndef SPAWN_EVENTS_H
#define SPAWN_EVENTS_H

/* Delivery numbers are 0 to most - 1. */
extern void events_open(int most);

/* Delivery number i has started: its output comes from the descriptor fd, its process is pid. */
extern void events_add(int i, int fd, int pid);

/* Delivery number i is over. Its descriptor must still be open. */
extern void events_remove(int i, int fd);

/*
In place of select(). wfds and efds are null. rfds has descriptor 0, if it is wanted, and the deliveries of events_all().
Afterwards rfds has what can be read: descriptor 0, and deliveries of events_first(). Returns as select() does.
*/
extern int events_select(int nfds, fd_set *rfds, fd_set *wfds, fd_set *efds, struct timeval *timeout);

/*
For loops over delivery numbers; each ends when the number is no longer below most.
  for (i = events_all();i < most;++i)                    all, if events_select() wants them in its set, else none
  for (i = events_first();i < most;i = events_next(i))   what can be read
  for (i = events_child(pid);i < most;i = events_other(i))   the delivery of this child
*/
extern int events_all(void);
extern int events_first(void);
extern int events_next(int i);
extern int events_child(int pid);
extern int events_other(int i);

#endif
