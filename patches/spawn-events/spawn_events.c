#include "select.h"
#include <unistd.h>
#include "spawn_events.h"

static int end; /* all delivery numbers are below */

#if !defined(__linux__) || defined(__dietlibc__)

void events_open(int most) { end = most; }
int events_add(int i, int fd, int keep, int pid) { (void) i; (void) fd; (void) pid; return keep; }
void events_remove(int i, int fd) { (void) i; (void) fd; }
int events_noted(void) { return 0; }
int events_all(void) { return 0; }
int events_first(void) { return 0; }
int events_next(int i) { return i + 1; }

int events_read(int i, int fd, char *buf, unsigned int len, int *wstat)
{
  (void) i;
  (void) wstat;
  return read(fd,buf,len);
}

int events_select(int nfds, fd_set *rfds, fd_set *wfds, fd_set *efds, struct timeval *timeout)
{
  return select(nfds,rfds,wfds,efds,timeout);
}

#else

#include <sys/types.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

/* what epoll keeps with a descriptor: its delivery's number, and the descriptor itself */
#define MARK(i,fd) (((unsigned long long) (unsigned int) (i) << 32) | (unsigned int) (fd))
#define NUMBER(mark) ((int) ((mark) >> 32))
#define FD(mark) ((int) ((mark) & 0xffffffffU))
#define COMMANDS 0 /* the descriptor */

#define READY_MAX 64   /* what one turn of the main loop takes up; the rest comes in the next */
#define CRASHED 9      /* the status of a process that another has waited for: the mail is tried again */
#define NONE (-1)
#ifndef LATE_MAX
#define LATE_MAX 64    /* that many processes are asked for by number at a SIGCHLD; with more, the kernel looks for any */
#endif
#ifndef EVENTS_SWEEP_MS
#define EVENTS_SWEEP_MS 1000
#endif

/* qpatch verify and qpatch doctor look for it in the programs */
#ifdef __GNUC__
__attribute__((used))
#endif
static const char mark[] = "qpatch: one descriptor a delivery";

static int queue = -1; /* epoll's descriptor; -1: select() has all deliveries */
static int reading;    /* descriptor 0 is in it */

/* What the last events_select() has found. It counts for this turn, even if epoll is given up in the middle of it: a
   second read of the same delivery would wait until that says more. */
static int listed; /* it is in this list; else it may be any delivery */
static int ready[READY_MAX], readies, at;

static struct child {
  int pid;   /* 0: it has ended, or the number is free */
  int wstat; /* how it has ended */
  int fd;
  int next;  /* in its list by pid */
  int late;  /* in the list of those whose output has ended, but not their process; nothing is to be read from them */
} *child;    /* by delivery number; null: spawn.c waits for any process and keeps its writing ends */

static int *head; /* a list for each value of pid & mask, of processes that have not ended */
static unsigned int mask;
static int lates = NONE, latecount;

/* A process that ends while another one has its output open would be a zombie until that closes it, because nobody asks
   for it by number before. So all are asked for, once in each second in which one has ended. */
static volatile sig_atomic_t noted; /* one has ended since the late ones were asked for */
static int unswept;                 /* one has ended since all were asked for */
static time_t swept;

/* From the next turn of the main loop on, select() has all deliveries. */
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
  if (!head) return;
  for (i = 0;i < (int) lists;++i) head[i] = NONE;
  child = calloc((size_t) most,sizeof(struct child));
  if (!child) return;
  queue = epoll_create1(EPOLL_CLOEXEC);
}

/* watches a descriptor, or no longer does */
static void control(int what, int i, int fd)
{
  struct epoll_event event;

  if (queue == -1) return;
  event.events = EPOLLIN;
  event.data.u64 = MARK(i,fd);
  if (epoll_ctl(queue,what,fd,&event) == -1) give_up();
}

/* ---------------------------------------------------------------- processes */

static void ended(int i, int wstat)
{
  int *link;

  for (link = head + ((unsigned int) child[i].pid & mask);*link != NONE;link = &child[*link].next)
    if (*link == i) { *link = child[i].next; break; }
  child[i].pid = 0;
  child[i].wstat = wstat;
}

/* 1: it has ended */
static int ask(int i)
{
  int wstat;
  pid_t r;

  if (!child[i].pid) return 1;
  r = waitpid((pid_t) child[i].pid,&wstat,WNOHANG);
  if (r == 0) return 0;
  ended(i,(r == -1) ? CRASHED : wstat);
  return 1;
}

/* Others than those of deliveries may be among them: fork servers. */
static void sweep(void)
{
  int wstat;
  pid_t pid;
  int i;

  while ((pid = waitpid((pid_t) -1,&wstat,WNOHANG)) > 0)
    for (i = head[(unsigned int) pid & mask];i != NONE;i = child[i].next)
      if (child[i].pid == (int) pid) { ended(i,wstat); break; }
  unswept = 0;
  swept = time((time_t *) 0);
}

/* late deliveries whose process has ended are ready */
static void look(void)
{
  int *link;
  int i;

  if (noted) {
    noted = 0;
    unswept = 1;
    if (latecount > LATE_MAX) sweep();
    else for (i = lates;i != NONE;i = child[i].late) ask(i);
  }
  else if (!unswept) return;
  if (unswept && (time((time_t *) 0) != swept)) sweep();
  for (link = &lates;(i = *link) != NONE;)
    if (child[i].pid) link = &child[i].late;
    else {
      *link = child[i].late;
      --latecount;
      control(EPOLL_CTL_ADD,i,child[i].fd);
    }
}

int events_noted(void)
{
  if (!child) return 0;
  noted = 1;
  return 1;
}

/* ---------------------------------------------------------------- deliveries */

int events_add(int i, int fd, int keep, int pid)
{
  int *list;

  if (!child) return keep;
  close(keep);
  list = head + ((unsigned int) pid & mask);
  child[i].pid = pid;
  child[i].fd = fd;
  child[i].next = *list;
  *list = i;
  control(EPOLL_CTL_ADD,i,fd);
  return -1;
}

int events_read(int i, int fd, char *buf, unsigned int len, int *wstat)
{
  int r;

  r = read(fd,buf,len);
  if (r || !child) return r;
  if (ask(i)) {
    *wstat = child[i].wstat;
    return 0;
  }
  child[i].late = lates;
  lates = i;
  ++latecount;
  control(EPOLL_CTL_DEL,i,fd);
  return -1;
}

void events_remove(int i, int fd)
{
  /* closing it is not enough: a child that has not come to its exec has it open, too */
  control(EPOLL_CTL_DEL,i,fd);
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

/* ---------------------------------------------------------------- waiting */

/* pselect(), but not longer than until all processes are to be asked for; that is as if a signal had come */
static int wait_set(int nfds, fd_set *rfds, const struct timeval *timeout, const sigset_t *signals)
{
  struct timespec most;
  struct timespec *rest = (struct timespec *) 0;
  int cut = 0;
  int r;

  if (timeout) {
    most.tv_sec = timeout->tv_sec;
    most.tv_nsec = timeout->tv_usec * 1000L;
    rest = &most;
  }
  if (unswept && (!timeout || (timeout->tv_sec >= (EVENTS_SWEEP_MS + 999) / 1000))) {
    most.tv_sec = EVENTS_SWEEP_MS / 1000;
    most.tv_nsec = EVENTS_SWEEP_MS % 1000 * 1000000L;
    rest = &most;
    cut = 1;
  }
  /* void: in a tree with select_set.h an fd_set is another type than pselect's */
  r = pselect(nfds,(void *) rfds,(void *) 0,(void *) 0,rest,signals);
  if ((r == 0) && cut) { errno = EINTR; return -1; }
  return r;
}

static int wait_queue(fd_set *rfds, const struct timeval *timeout, const sigset_t *signals)
{
  static fd_set one; /* epoll's descriptor; it has no timeouts below a millisecond */
  struct epoll_event events[READY_MAX];
  int i;
  int r;

  readies = 0;
  if (reading != !!FD_ISSET(COMMANDS,rfds)) {
    control(reading ? EPOLL_CTL_DEL : EPOLL_CTL_ADD,0,COMMANDS);
    if (queue == -1) return -1;
    reading = !reading;
  }
  FD_CLR(COMMANDS,rfds);
  if (timeout) {
    FD_SET(queue,&one);
    r = wait_set(queue + 1,&one,timeout,signals);
    if (r <= 0) return r;
  }
  r = epoll_pwait(queue,events,READY_MAX,timeout ? 0 : unswept ? EVENTS_SWEEP_MS : -1,signals);
  if ((r == 0) && !timeout) { errno = EINTR; return -1; }
  if ((r == -1) && (errno != EINTR)) give_up();
  for (i = 0;i < r;++i) {
    FD_SET(FD(events[i].data.u64),rfds);
    if (FD(events[i].data.u64) != COMMANDS) ready[readies++] = NUMBER(events[i].data.u64);
  }
  return r;
}

int events_select(int nfds, fd_set *rfds, fd_set *wfds, fd_set *efds, struct timeval *timeout)
{
  sigset_t was, signals;
  int i;
  int r;

  listed = (queue != -1);
  if (!child) return select(nfds,rfds,wfds,efds,timeout);
  /* a SIGCHLD that comes after look() must end the wait, and so may come only during it */
  sigemptyset(&signals);
  sigaddset(&signals,SIGCHLD);
  sigprocmask(SIG_BLOCK,&signals,&was);
  signals = was;
  sigdelset(&signals,SIGCHLD);
  look();
  if (listed)
    /* if epoll is given up by now, the set is not that of all: the next turn of the main loop makes one */
    r = (queue == -1) ? -1 : wait_queue(rfds,timeout,&signals);
  else {
    for (i = lates;i != NONE;i = child[i].late) FD_CLR(child[i].fd,rfds);
    r = wait_set(nfds,rfds,timeout,&signals);
  }
  sigprocmask(SIG_SETMASK,&was,(sigset_t *) 0);
  return r;
}

#endif
