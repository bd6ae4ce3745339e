#include "select.h"
#include "spawn_events.h"

static int end; /* all delivery numbers are below */

#if !defined(__linux__) || defined(__dietlibc__)

void events_open(int most) { end = most; }
void events_add(int i, int fd, int pid) { (void) i; (void) fd; (void) pid; }
void events_remove(int i, int fd) { (void) i; (void) fd; }
int events_all(void) { return 0; }
int events_first(void) { return 0; }
int events_next(int i) { return i + 1; }
int events_child(int pid) { (void) pid; return 0; }
int events_other(int i) { return i + 1; }

int events_select(int nfds, fd_set *rfds, fd_set *wfds, fd_set *efds, struct timeval *timeout)
{
  return select(nfds,rfds,wfds,efds,timeout);
}

#else

#include <sys/types.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* what epoll keeps with a descriptor: its delivery's number, and the descriptor itself */
#define MARK(i,fd) (((unsigned long long) (unsigned int) (i) << 32) | (unsigned int) (fd))
#define NUMBER(mark) ((int) ((mark) >> 32))
#define FD(mark) ((int) ((mark) & 0xffffffffU))
#define COMMANDS 0 /* the descriptor */

#define READY_MAX 64   /* what one turn of the main loop takes up; the rest comes in the next */
#define NONE (-1)

static int queue = -1; /* epoll's descriptor; -1: select() has all deliveries */
static int reading;    /* descriptor 0 is in it */

/* What the last events_select() has found. It counts for this turn, even if epoll is given up in the middle of it: a
   second read of the same delivery would wait until that says more. */
static int listed; /* it is in this list; else it may be any delivery */
static int ready[READY_MAX], readies, at;

/* The deliveries by process: a list for each value of pid & mask. The newest is first: the process of an older one
   with the same pid has ended. */
static int *head, *next;
static int *pids; /* 0: the number is free */
static unsigned int mask;

/* From the next turn of the main loop on, spawn.c works as it always did: it has all that it needs. */
static void give_up(void)
{
  close(queue);
  queue = -1;
}

void events_open(int most)
{
  unsigned int lists;
  int i;

  end = most;
  for (lists = 1;lists < (unsigned int) most;lists *= 2)
    ;
  mask = lists - 1;
  head = malloc(lists * sizeof(int));
  next = malloc((size_t) most * sizeof(int));
  pids = calloc((size_t) most,sizeof(int));
  if (!head || !next || !pids) return;
  for (i = 0;i < (int) lists;++i) head[i] = NONE;
  queue = epoll_create1(EPOLL_CLOEXEC);
}

static int control(int what, int i, int fd)
{
  struct epoll_event event;

  event.events = EPOLLIN;
  event.data.u64 = MARK(i,fd);
  return epoll_ctl(queue,what,fd,&event);
}

void events_add(int i, int fd, int pid)
{
  int *list;

  if (queue == -1) return;
  list = head + ((unsigned int) pid & mask);
  next[i] = *list;
  *list = i;
  pids[i] = pid;
  if (control(EPOLL_CTL_ADD,i,fd) == -1) give_up();
}

void events_remove(int i, int fd)
{
  int *link;

  if (queue == -1) return;
  for (link = head + ((unsigned int) pids[i] & mask);*link != NONE;link = next + *link)
    if (*link == i) { *link = next[i]; break; }
  pids[i] = 0;
  /* closing it is not enough: a child that has not come to its exec has it open, too */
  if (control(EPOLL_CTL_DEL,i,fd) == -1) give_up();
}

int events_all(void)
{
  return (queue == -1) ? 0 : end;
}

int events_first(void)
{
  at = 0;
  return events_next(-1);
}

int events_next(int i)
{
  if (!listed) return i + 1;
  return (at < readies) ? ready[at++] : end;
}

int events_child(int pid)
{
  int i;

  if (queue == -1) return 0;
  for (i = head[(unsigned int) pid & mask];i != NONE;i = next[i])
    if (pids[i] == pid) return i;
  return end;
}

int events_other(int i)
{
  return (queue == -1) ? i + 1 : end;
}

int events_select(int nfds, fd_set *rfds, fd_set *wfds, fd_set *efds, struct timeval *timeout)
{
  static fd_set one; /* epoll's descriptor; it has no timeouts below a millisecond */
  struct epoll_event events[READY_MAX];
  int i;
  int r;

  listed = (queue != -1);
  if (!listed) return select(nfds,rfds,wfds,efds,timeout);
  readies = 0;
  if (reading != !!FD_ISSET(COMMANDS,rfds)) {
    if (control(reading ? EPOLL_CTL_DEL : EPOLL_CTL_ADD,0,COMMANDS) == -1) {
      give_up(); /* and the set is not that of all: the next turn of the main loop makes one */
      return -1;
    }
    reading = !reading;
  }
  FD_CLR(COMMANDS,rfds);
  if (timeout) {
    FD_SET(queue,&one);
    r = select(queue + 1,&one,(fd_set *) 0,(fd_set *) 0,timeout);
    if (r <= 0) return r;
  }
  r = epoll_wait(queue,events,READY_MAX,timeout ? 0 : -1);
  if ((r == -1) && (errno != EINTR)) give_up();
  for (i = 0;i < r;++i) {
    FD_SET(FD(events[i].data.u64),rfds);
    if (FD(events[i].data.u64) != COMMANDS) ready[readies++] = NUMBER(events[i].data.u64);
  }
  return r;
}

#endif
