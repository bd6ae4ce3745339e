/*
Plays spawn.c and the kernel's processes to spawn_events.c, with real pipes and signals: starts deliveries, lets them
speak, close their output, leave it open in another process and end, in random order, and compares what is reported
with what there is.

events_driver SEED STEPS FAILS: the FAILSth call of epoll's functions fails, counted from 0; -1: none does; -2: there is
no memory.
*/
#include "select.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include "driver.h"
#include <time.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/wait.h>

static int calls, fails;

static int failed(void)
{
  if (calls++ != fails) return 0;
  errno = ENOMEM;
  return 1;
}

static void meanwhile(void);
static pid_t test_waitpid(pid_t pid, int *wstat, int how);

static void *test_malloc(size_t len) { return (fails == -2) ? (void *) 0 : malloc(len); }
static int test_create(int flags) { return failed() ? -1 : epoll_create1(flags); }
static int test_ctl(int to, int what, int fd, struct epoll_event *event)
{
  return failed() ? -1 : epoll_ctl(to,what,fd,event);
}
static int test_wait(int from, struct epoll_event *events, int most, int ms, const sigset_t *signals)
{
  if (failed()) return -1;
  if (ms) meanwhile();
  return epoll_pwait(from,events,most,ms,signals);
}
static int test_pselect(int nfds, fd_set *r, fd_set *w, fd_set *e, const struct timespec *t, const sigset_t *signals)
{
  meanwhile();
  return pselect(nfds,r,w,e,t,signals);
}

static time_t seconds = 1000; /* of a clock that goes when the driver says so */
static time_t test_time(time_t *t) { (void) t; return seconds; }

#define EVENTS_SWEEP_MS 1
#define LATE_MAX 8
#define malloc test_malloc
#define epoll_create1 test_create
#define epoll_ctl test_ctl
#define epoll_pwait test_wait
#define pselect test_pselect
#define waitpid test_waitpid
#define time test_time
#include "../../patches/spawn-events/spawn_events.c"

#define MOST 250 /* up to three descriptors each: within the system's fd_set */
#define PIDS 600
#define OTHERS 5 /* processes that are no deliveries */

static struct {
  int used, fdin, pid, wstat;
  int keep;    /* spawn.c's writing end */
  int out;     /* that of the process, -1: closed */
  int held;    /* that of another process, -1: there is none */
  int process; /* 0: it has ended */
  int was;     /* its pid */
  int want;    /* how */
  int told;    /* the end of file was ready while the process went on */
  int pending; /* bytes in the pipe */
} d[MOST];

/* what the kernel knows of each pid */
static struct {
  enum { NOBODY, RUNS, ZOMBIE } is;
  int owner; /* its delivery */
  int wstat;
  time_t since;
  int turns; /* with a later time */
} process[PIDS];

static int other[OTHERS];

static int commands[2]; /* descriptor 0 and its writer */
static int flagreading = 1;
static int asked, answered; /* bytes for descriptor 0 */
static unsigned long lates_seen, sweeps_seen;

/* ---------------------------------------------------------------- the kernel */

static pid_t test_waitpid(pid_t pid, int *wstat, int how)
{
  int children = 0;
  int p;

  must(how == WNOHANG,"it waits for a process");
  for (p = 1;p < PIDS;++p) {
    if ((pid != (pid_t) -1) && (p != (int) pid)) continue;
    if (process[p].is == NOBODY) continue;
    ++children;
    if (process[p].is != ZOMBIE) continue;
    process[p].is = NOBODY;
    *wstat = process[p].wstat;
    if (pid == (pid_t) -1) ++sweeps_seen;
    return (pid_t) p;
  }
  if (children) return 0;
  errno = ECHILD;
  return -1;
}

/* a pid is another's as soon as its process was waited for */
static int new_process(int owner)
{
  int p;

  do p = 1 + (int) below(PIDS - 1); while (process[p].is != NOBODY);
  process[p].is = RUNS;
  process[p].owner = owner;
  return p;
}

static int end_process(int p)
{
  process[p].is = ZOMBIE;
  process[p].wstat = below(2) ? (int) below(256) << 8 : 1 + (int) below(15);
  process[p].since = seconds;
  process[p].turns = 0;
  raise(SIGCHLD);
  return process[p].wstat;
}

/* ---------------------------------------------------------------- spawn.c */

static void sigchld(int sig)
{
  int wstat;
  int pid;
  int i;

  (void) sig;
  while ((pid = events_noted() ? 0 : (int) test_waitpid((pid_t) -1,&wstat,WNOHANG)) > 0)
    for (i = 0;i < MOST;++i) if (d[i].used)
      if (d[i].pid == pid) {
        close(d[i].keep); d[i].keep = -1;
        d[i].wstat = wstat; d[i].pid = 0;
      }
}

static void start(int i)
{
  int pi[2];

  must(pipe(pi) == 0,"pipe");
  fcntl(pi[0],F_SETFL,O_NONBLOCK);
  d[i].fdin = pi[0];
  d[i].keep = pi[1];
  d[i].out = dup(pi[1]);
  d[i].held = -1;
  d[i].pid = d[i].process = d[i].was = new_process(i);
  d[i].wstat = -1;
  d[i].told = 0;
  d[i].pending = 0;
  d[i].keep = events_add(i,d[i].fdin,d[i].keep,d[i].pid);
  must((d[i].keep == -1) == (fails != -2),"who keeps the writing end");
  d[i].used = 1;
}

/* ---------------------------------------------------------------- deliveries */

static int is_open(int i) { return (d[i].out != -1) || (d[i].held != -1); }

static void speak(int i)
{
  must(write((d[i].out != -1) ? d[i].out : d[i].held,"words",5) == 5,"write");
  d[i].pending += 5;
}

static void shut(int *fd)
{
  if (*fd != -1) close(*fd);
  *fd = -1;
}

static void end_delivery(int i)
{
  if (below(2)) {
    shut(&d[i].out);
    d[i].want = end_process(d[i].process);
  }
  else {
    /* no kernel does it in this order, but nothing depends on it */
    d[i].want = end_process(d[i].process);
    shut(&d[i].out);
  }
  d[i].process = 0;
}

static int due = -1; /* a delivery whose process ends during this wait, and so ends it */

/* between the look at what has ended and the wait */
static void meanwhile(void)
{
  int i = (int) below(MOST);

  if (due != -1) i = due;
  else if (below(3)) return;
  due = -1;
  if (d[i].used && d[i].process) end_delivery(i);
}

/* a turn of the main loop; whether it may have had something to do */
static int turn(void)
{
  static int vain;
  struct timeval tv;
  struct timeval *rest = &tv;
  sigset_t set;
  fd_set rfds;
  char buf[128];
  int ready = 0;
  int zombies = 0;
  int nfds;
  int i;
  int r;
  int some = flagreading && (asked > answered);

  ++turns;
  if (!below(20)) ++seconds;
  for (i = 0;i < MOST;++i) if (d[i].used && (d[i].pending || (!d[i].process && !is_open(i)))) some = 1;
  for (i = 1;i < PIDS;++i) if (process[i].is == ZOMBIE) {
    zombies = 1;
    if (process[i].since != seconds) ++process[i].turns;
    must(process[i].turns < 4,"a process that has ended is not waited for");
  }
  sigemptyset(&set);
  sigaddset(&set,SIGCHLD);
  sigprocmask(SIG_UNBLOCK,&set,(sigset_t *) 0);
  FD_ZERO(&rfds);
  if (flagreading) FD_SET(0,&rfds);
  nfds = 1;
  for (i = events_all();i < MOST;++i) if (d[i].used)
    { FD_SET(d[i].fdin,&rfds); if (d[i].fdin >= nfds) nfds = d[i].fdin + 1; }
  tv.tv_sec = 0;
  tv.tv_usec = 100;
  due = -1;
  if (child)
    for (i = 0;i < MOST;++i) if (d[i].used && d[i].told && d[i].process && below(2)) due = i;
  /* a wait that ends by itself, since there is something to read, or since processes are to be asked for */
  if (some || (due != -1) || (child && zombies && (swept == seconds) && (latecount <= LATE_MAX))) {
    if (below(2)) tv.tv_sec = 3600;
    else if (below(2)) rest = (struct timeval *) 0;
  }
  r = events_select(nfds,&rfds,(fd_set *) 0,(fd_set *) 0,rest);
  sigprocmask(SIG_BLOCK,&set,(sigset_t *) 0);
  if (r == -1) {
    if (below(2)) ++seconds;
    must(++vain < 20,"it never waits");
    return 1; /* come again */
  }
  vain = 0;
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
      r = events_read(i,d[i].fdin,buf,sizeof buf,&d[i].wstat);
      if (r == -1) {
        must(!is_open(i) && !d[i].pending,"a delivery is ready, and there is nothing");
        must(d[i].process,"a process that has ended is said to go on");
        must(!d[i].told,"an end of file is ready again and again");
        d[i].told = 1;
        ++lates_seen;
        continue;
      }
      if (r == 0) {
        must(!d[i].process && !d[i].pending && !is_open(i),"a delivery has ended before its time");
        must(d[i].wstat == d[i].want,"another status");
        must(process[d[i].was].is != ZOMBIE || process[d[i].was].owner != i,"its process is not waited for");
        events_remove(i,d[i].fdin);
        close(d[i].fdin);
        d[i].used = 0;
        continue;
      }
      d[i].pending -= r;
      must(d[i].pending >= 0,"bytes from nowhere");
    }
  must(ready > 0 || !some,"nothing was ready");
  must(ready > 0 || r == 0,"ready, but for nothing");
  return ready;
}

int main(int argc, char **argv)
{
  struct sigaction action;
  sigset_t set;
  unsigned long steps;
  int lasting = 1; /* the higher, the longer processes last */
  int i;
  int j;

  if (argc != 4) return 2;
  below((unsigned int) atoi(argv[1]) + 1);
  steps = strtoul(argv[2],0,10);
  fails = atoi(argv[3]);
  must(pipe(commands) == 0,"pipe");
  must(dup2(commands[0],0) == 0,"dup2");
  events_open(MOST);
  action.sa_handler = sigchld;
  action.sa_flags = 0;
  sigemptyset(&action.sa_mask);
  sigaction(SIGCHLD,&action,(struct sigaction *) 0);
  sigemptyset(&set);
  sigaddset(&set,SIGCHLD);
  sigprocmask(SIG_BLOCK,&set,(sigset_t *) 0);
  while (steps--) {
    if (steps % 1000 == 0) lasting = 1 + (int) below(10);
    i = (int) below(MOST);
    j = (int) below(OTHERS);
    switch (below(12)) {
      case 0: case 1: if (!d[i].used) start(i); break;
      case 2: if (d[i].used && is_open(i) && (d[i].pending < 4096)) speak(i); break;
      case 3: if (d[i].used && d[i].process && !below(lasting)) end_delivery(i); break;
      case 4: if (asked - answered < 4096) { must(write(commands[1],"c",1) == 1,"write"); ++asked; } break;
      case 5: if (d[i].used && d[i].process) shut(&d[i].out); break;
      case 6: if (d[i].used && (d[i].out != -1) && (d[i].held == -1)) d[i].held = dup(d[i].out); break;
      case 7: if (d[i].used) shut(&d[i].held); break;
      case 8: if (!other[j]) other[j] = new_process(-1); else { end_process(other[j]); other[j] = 0; } break;
      default: turn();
    }
  }
  flagreading = 0;
  for (i = 0;i < MOST;++i) if (d[i].used) {
    shut(&d[i].held);
    if (d[i].process) end_delivery(i);
  }
  for (j = 0;j < OTHERS;++j) if (other[j]) end_process(other[j]);
  /* nobody waits for long behind others: 64 come in a turn */
  for (i = 0;i < 40;++i) turn();
  for (i = 0;i < MOST;++i) must(!d[i].used,"a delivery was forgotten");
  for (i = 1;i < PIDS;++i) must(process[i].is == NOBODY,"a process was forgotten");
  must(lates_seen > 0 || !child,"no output has ended before its process");
  must(sweeps_seen > 0,"no process was waited for by the way");
  printf("%s, %d calls\n",!child ? "any" : (queue == -1) ? "select" : "epoll",calls);
  return 0;
}
