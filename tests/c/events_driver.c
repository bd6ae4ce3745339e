/*
Plays spawn.c to spawn_events.c, with pipes and without processes: starts deliveries, lets them speak and end in random
order, and compares what is reported with what is there.

events_driver SEED STEPS FAILS: the FAILSth call of epoll's functions fails, counted from 0; -1: none does.
*/
#include "select.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/epoll.h>

static int calls, fails;

static int failed(void)
{
  if (calls++ != fails) return 0;
  errno = ENOMEM;
  return 1;
}

static int test_create(int flags) { return failed() ? -1 : epoll_create1(flags); }
static int test_ctl(int to, int what, int fd, struct epoll_event *event)
{
  return failed() ? -1 : epoll_ctl(to,what,fd,event);
}
static int test_wait(int from, struct epoll_event *events, int most, int ms)
{
  return failed() ? -1 : epoll_wait(from,events,most,ms);
}

#define epoll_create1 test_create
#define epoll_ctl test_ctl
#define epoll_wait test_wait
#include "../../patches/spawn-events/spawn_events.c"

#define MOST 300 /* two descriptors each: within the system's fd_set */
#define PIDS 2000

static struct {
  int used, fdin, fdout, pid;
  int pending; /* bytes in the pipe */
} d[MOST];

static int commands[2]; /* descriptor 0 and its writer */
static int flagreading = 1;
static int asked, answered; /* bytes for descriptor 0 */
static unsigned long turns;

static void must(int true, const char *what)
{
  if (true) return;
  fprintf(stderr,"turn %lu: %s\n",turns,what);
  exit(1);
}

static unsigned int below(unsigned int n)
{
  static unsigned long long state;

  if (!state) state = (unsigned long long) n; /* the first call sets the seed */
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return (unsigned int) (state >> 33) % n;
}

static int lives(int pid)
{
  int i;

  for (i = 0;i < MOST;++i) if (d[i].used && (d[i].pid == pid)) return 1;
  return 0;
}

static void start(int i)
{
  int pi[2];

  must(pipe(pi) == 0,"pipe");
  fcntl(pi[0],F_SETFL,O_NONBLOCK);
  d[i].fdin = pi[0];
  d[i].fdout = pi[1];
  d[i].pending = 0;
  /* that of a delivery whose process has ended may be another's by now */
  do d[i].pid = 1 + (int) below(PIDS); while (lives(d[i].pid));
  d[i].used = 1;
  events_add(i,d[i].fdin,d[i].pid);
}

static void speak(int i)
{
  must(write(d[i].fdout,"words",5) == 5,"write");
  d[i].pending += 5;
}

static void child(int i)
{
  int pid = d[i].pid;
  int found = 0;
  int j;

  for (j = events_child(pid);j < MOST;j = events_other(j))
    if (d[j].used && (d[j].pid == pid)) { must(j == i,"another delivery's process"); ++found; }
  must(found == 1,"a process is found once");
  close(d[i].fdout);
  d[i].pid = 0;
}

/* a turn of the main loop; how many were ready */
static int turn(void)
{
  struct timeval tv;
  fd_set rfds;
  char buf[128];
  int ready = 0;
  int nfds;
  int i;
  int r;
  int some = flagreading && (asked > answered);

  ++turns;
  for (i = 0;i < MOST;++i) if (d[i].used && (d[i].pending || !d[i].pid)) some = 1;
  FD_ZERO(&rfds);
  if (flagreading) FD_SET(0,&rfds);
  nfds = 1;
  for (i = events_all();i < MOST;++i) if (d[i].used)
    { FD_SET(d[i].fdin,&rfds); if (d[i].fdin >= nfds) nfds = d[i].fdin + 1; }
  tv.tv_sec = 0;
  tv.tv_usec = 100;
  r = events_select(nfds,&rfds,(fd_set *) 0,(fd_set *) 0,(some && below(2)) ? (struct timeval *) 0 : &tv);
  if (r == -1) return 1; /* come again */
  if (flagreading && FD_ISSET(0,&rfds)) {
    r = (int) read(0,buf,sizeof buf);
    must(r > 0,"descriptor 0 is ready, and there is nothing");
    answered += r;
    ++ready;
    /* as getcmd does, while the others are still to be looked at */
    for (i = 0;i < MOST;++i) if (!d[i].used) { start(i); break; }
  }
  for (i = events_first();i < MOST;i = events_next(i)) if (d[i].used)
    if (FD_ISSET(d[i].fdin,&rfds)) {
      ++ready;
      r = (int) read(d[i].fdin,buf,sizeof buf);
      must(r >= 0,"a delivery is ready, and there is nothing");
      if (r == 0) {
        must(!d[i].pid && !d[i].pending,"a delivery has ended before its time");
        events_remove(i,d[i].fdin);
        close(d[i].fdin);
        d[i].used = 0;
        continue;
      }
      d[i].pending -= r;
      must(d[i].pending >= 0,"bytes from nowhere");
    }
  must(ready > 0 || !some,"nothing was ready");
  return ready;
}

int main(int argc, char **argv)
{
  unsigned long steps;
  int i;

  if (argc != 4) return 2;
  below((unsigned int) atoi(argv[1]) + 1);
  steps = strtoul(argv[2],0,10);
  fails = atoi(argv[3]);
  must(pipe(commands) == 0,"pipe");
  must(dup2(commands[0],0) == 0,"dup2");
  events_open(MOST);
  while (steps--) {
    i = (int) below(MOST);
    switch (below(6)) {
      case 0: case 1: if (!d[i].used) start(i); break;
      case 2: if (d[i].used && d[i].pid && (d[i].pending < 4096)) speak(i); break;
      case 3: if (d[i].used && d[i].pid) child(i); break;
      case 4: if (asked - answered < 4096) { must(write(commands[1],"c",1) == 1,"write"); ++asked; } break;
      default: turn();
    }
  }
  flagreading = 0;
  for (i = 0;i < MOST;++i) if (d[i].used && d[i].pid) child(i);
  /* nobody waits for long behind others: 64 come in a turn */
  for (i = 0;(i < 40) && turn();++i)
    ;
  for (i = 0;i < MOST;++i) must(!d[i].used,"a delivery was forgotten");
  printf("%s, %d calls\n",(queue == -1) ? "select" : "epoll",calls);
  return 0;
}
