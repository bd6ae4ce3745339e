/* patches/fd-setsize/select_poll.h against the system's own select(): random
 * descriptors in random states, in sets of both kinds, must be told alike.
 * Exits 0, or prints what differs. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef fd_set system_set;

static void system_zero(system_set *s) { FD_ZERO(s); }
static void system_add(int d, system_set *s) { FD_SET(d, s); }
static int system_has(int d, system_set *s) { return FD_ISSET(d, s); }
static int system_select(int n, system_set *r, system_set *w, struct timeval *t)
{
  return select(n, r, w, 0, t);
}

static int no_memory = 0;

static void *maybe_realloc(void *p, size_t len)
{
  if (no_memory) { errno = ENOMEM; return 0; }
  return realloc(p, len);
}

#define SELECT_FDS 5000
#define realloc maybe_realloc
#include "select_poll.h"
#undef realloc

#define PAIRS 100

static int fail(const char *what)
{
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  return 1;
}

/* What select has returned, and what it should have. */
static int differs(const char *what, int found, int expected)
{
  if (found == expected) return 0;
  fprintf(stderr, "%s: %d expected, %d found (errno: %s)\n", what, expected, found, strerror(errno));
  return 1;
}

static unsigned long state = 1;

static unsigned int below(unsigned int n)
{
  state = state * 6364136223846793005UL + 1442695040888963407UL;
  return (unsigned int) (state >> 33) % n;
}

/* A pipe or a pair of sockets: idle, with something to read, full, or with one
 * end closed. Descriptors are written to d, or -1. */
static int make_pair(int is_pipe, int d[2])
{
  static char block[65536];

  if (is_pipe ? pipe(d) : socketpair(AF_UNIX, SOCK_STREAM, 0, d)) return 0;
  fcntl(d[1], F_SETFL, O_NONBLOCK);
  switch (below(4)) {
    case 0: break;
    case 1: if (write(d[1], "x", 1) != 1) return 0; break;
    case 2: while (write(d[1], block, sizeof block) > 0) continue; break;
    default: {
      int end = below(2);
      if (write(d[1], "x", below(2)) == -1) return 0;
      close(d[end]);
      d[end] = -1;
    }
  }
  return 1;
}

static int alike(void)
{
  int d[2 * PAIRS];
  int is_pipe[PAIRS];
  int pairs = 1 + below(PAIRS);
  system_set sr, sw;
  select_set pr, pw;
  struct timeval now = {0, 0};
  int n = 0;
  int i, theirs, ours;

  system_zero(&sr); system_zero(&sw);
  FD_ZERO(&pr); FD_ZERO(&pw);
  for (i = 0; i < pairs; ++i) {
    is_pipe[i] = below(2);
    if (!make_pair(is_pipe[i], d + 2 * i)) return fail("make a pair");
  }
  for (i = 0; i < 2 * pairs; ++i) {
    if (d[i] == -1) continue;
    if (below(2)) { system_add(d[i], &sr); FD_SET(d[i], &pr); }
    /* But for writing to a pipe's reading end: hung up, it counts as ready
     * here, and not for select(2). */
    if (below(2) && !(is_pipe[i / 2] && i % 2 == 0)) { system_add(d[i], &sw); FD_SET(d[i], &pw); }
    if (d[i] >= n) n = d[i] + 1;
  }
  theirs = system_select(n, &sr, &sw, &now);
  ours = select(n, &pr, &pw, (fd_set *) 0, &now);
  if (differs("ready in both sets", ours, theirs)) return 1;
  for (i = 0; i < n; ++i)
    if (differs("readable", FD_ISSET(i, &pr), !!system_has(i, &sr))
        || differs("writable", FD_ISSET(i, &pw), !!system_has(i, &sw))) {
      fprintf(stderr, "descriptor %d\n", i);
      return 1;
    }
  for (i = 0; i < 2 * pairs; ++i) if (d[i] != -1) close(d[i]);
  return 0;
}

static void caught(int sig) { (void) sig; }

/* A connection over loopback whose end d[0] has something urgent to read. */
static int urgent(int d[2])
{
  struct sockaddr_in at;
  socklen_t len = sizeof at;
  int listener = socket(AF_INET, SOCK_STREAM, 0);

  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (listener == -1 || bind(listener, (struct sockaddr *) &at, len) || listen(listener, 1)) return -1;
  if (getsockname(listener, (struct sockaddr *) &at, &len)) return -1;
  d[1] = socket(AF_INET, SOCK_STREAM, 0);
  if (d[1] == -1 || connect(d[1], (struct sockaddr *) &at, len)) return -1;
  d[0] = accept(listener, 0, 0);
  close(listener);
  return d[0] == -1 || send(d[1], "!", 1, MSG_OOB) != 1 ? -1 : 0;
}

int main(void)
{
  struct rlimit files;
  struct timespec before, after;
  struct timeval t;
  struct sigaction action;
  fd_set r;
  int p[2];
  int d[2];
  int i, high;

  for (i = 0; i < 2000; ++i) if (alike()) return 1;

  if (pipe(p)) return fail("pipe");
  FD_ZERO(&r);
  FD_SET(p[0], &r);
  t.tv_sec = 0; t.tv_usec = 30500;
  clock_gettime(CLOCK_MONOTONIC, &before);
  if (differs("an empty pipe", select(p[0] + 1, &r, 0, 0, &t), 0)) return 1;
  clock_gettime(CLOCK_MONOTONIC, &after);
  if (differs("the bit of an empty pipe", FD_ISSET(p[0], &r), 0)) return 1;
  if ((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec < 30500000) {
    fprintf(stderr, "select came back before its time of 30.5 ms was over\n");
    return 1;
  }

  /* For ever, and for longer than poll can wait: until a signal. */
  memset(&action, 0, sizeof action);
  action.sa_handler = caught;
  sigaction(SIGALRM, &action, 0);
  for (i = 0; i < 2; ++i) {
    /* Again and again: the first may come before it waits. */
    struct itimerval often = {{0, 10000}, {0, 10000}};
    struct itimerval off = {{0, 0}, {0, 0}};
    FD_SET(p[0], &r);
    t.tv_sec = 3000000; t.tv_usec = 0;
    setitimer(ITIMER_REAL, &often, 0);
    if (differs("a signal", select(p[0] + 1, &r, 0, 0, i ? &t : 0), -1)) return 1;
    if (differs("errno after a signal", errno, EINTR)) return 1;
    setitimer(ITIMER_REAL, &off, 0);
  }

  /* What is urgent is neither read nor written. */
  if (urgent(d)) return fail("a connection with something urgent");
  FD_ZERO(&r);
  FD_SET(d[0], &r);
  t.tv_sec = 10; t.tv_usec = 0;
  if (differs("something urgent", select(d[0] + 1, 0, 0, &r, &t), 1)) return 1;
  if (differs("the bit of what is urgent", FD_ISSET(d[0], &r), 1)) return 1;

  /* Above what the system's own fd_set has room for. */
  if (getrlimit(RLIMIT_NOFILE, &files)) return fail("getrlimit");
  files.rlim_cur = SELECT_FDS;
  if (files.rlim_max != RLIM_INFINITY && files.rlim_max < SELECT_FDS) files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files)) return fail("setrlimit");
  high = (int) files.rlim_cur - 1;
  if (high < 1024) return fail("more than 1024 descriptors are not allowed here");
  FD_ZERO(&r);
  for (i = high - 40; i <= high; ++i) {
    if (dup2(p[0], i) != i) return fail("dup2");
    FD_SET(i, &r);
  }
  t.tv_sec = 0; t.tv_usec = 0;
  if (differs("empty pipes above 1024", select(high + 1, &r, 0, 0, &t), 0)) return 1;
  if (write(p[1], "x", 1) != 1) return fail("write");
  FD_SET(high, &r);
  if (differs("the highest", select(high + 1, &r, 0, 0, 0), 1)) return 1;
  if (differs("the bit of the highest", FD_ISSET(high, &r), 1)) return 1;
  if (differs("what is not below n", select(high, &r, 0, 0, &t), 0)) return 1;
  close(high);
  FD_ZERO(&r);
  FD_SET(high, &r);
  if (differs("what is not open", select(high + 1, &r, 0, 0, &t), 1)) return 1;

  /* Without memory what few there are go on, and more are refused. */
  no_memory = 1;
  FD_ZERO(&r);
  FD_SET(p[0], &r);
  if (differs("few without memory", select(p[0] + 1, &r, 0, 0, &t), 1)) return 1;
  for (i = 1000; i < 2000; ++i) FD_SET(i, &r);
  if (differs("many without memory", select(2000, &r, 0, 0, &t), -1)) return 1;
  return differs("errno without memory", errno, ENOMEM);
}
