/* patches/fd-setsize/select_set.h beside the system's own fd_set: random
 * descriptors in random states, in sets of both kinds, must be told alike; and
 * above the system's limit, where there is nothing to compare with.
 * Exits 0, or prints what differs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

typedef fd_set system_set;

static void system_zero(system_set *s) { FD_ZERO(s); }
static void system_add(int d, system_set *s) { FD_SET(d, s); }
static int system_has(int d, system_set *s) { return FD_ISSET(d, s) != 0; }
static int system_select(int n, system_set *r, system_set *w, struct timeval *t)
{
  return select(n, r, w, 0, t);
}

#define SELECT_FDS 5000
#include "select_set.h"
/* As old trees have it behind that. */
extern int select();

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

static unsigned long long state = 1;

static unsigned int below(unsigned int n)
{
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return (unsigned int) (state >> 33) % n;
}

/* A pipe or a pair of sockets: idle, with something to read, full, or with one
 * end closed. Descriptors are written to d, or -1. */
static int make_pair(int d[2])
{
  static char block[65536];
  int end;

  if (below(2) ? pipe(d) : socketpair(AF_UNIX, SOCK_STREAM, 0, d)) return 0;
  fcntl(d[1], F_SETFL, O_NONBLOCK);
  switch (below(4)) {
    case 0: break;
    case 1: if (write(d[1], "x", 1) != 1) return 0; break;
    case 2: while (write(d[1], block, sizeof block) > 0) continue; break;
    default:
      end = below(2);
      if (write(d[1], "x", below(2)) == -1) return 0;
      close(d[end]);
      d[end] = -1;
  }
  return 1;
}

static int alike(void)
{
  int d[2 * PAIRS];
  int pairs = 1 + below(PAIRS);
  system_set sr, sw;
  fd_set pr, pw;
  struct timeval now = {0, 0};
  int n = 0;
  int i, theirs, ours;

  system_zero(&sr); system_zero(&sw);
  FD_ZERO(&pr); FD_ZERO(&pw);
  for (i = 0; i < pairs; ++i)
    if (!make_pair(d + 2 * i)) return fail("make a pair");
  for (i = 0; i < 2 * pairs; ++i) {
    if (d[i] == -1) continue;
    if (below(2)) { system_add(d[i], &sr); FD_SET(d[i], &pr); }
    if (below(2)) { system_add(d[i], &sw); FD_SET(d[i], &pw); }
    if (d[i] >= n) n = d[i] + 1;
  }
  theirs = system_select(n, &sr, &sw, &now);
  ours = select(n, &pr, &pw, (fd_set *) 0, &now);
  if (differs("ready in both sets", ours, theirs)) return 1;
  for (i = 0; i < n; ++i)
    if (differs("readable", FD_ISSET(i, &pr), system_has(i, &sr))
        || differs("writable", FD_ISSET(i, &pw), system_has(i, &sw))) {
      fprintf(stderr, "descriptor %d\n", i);
      return 1;
    }
  for (i = 0; i < 2 * pairs; ++i) if (d[i] != -1) close(d[i]);
  return 0;
}

int main(void)
{
  struct rlimit files;
  struct timeval t;
  fd_set r;
  int p[2];
  int i, high;

  for (i = 0; i < 2000; ++i) if (alike()) return 1;

  if (pipe(p)) return fail("pipe");
  if (getrlimit(RLIMIT_NOFILE, &files)) return fail("getrlimit");
  files.rlim_cur = SELECT_FDS;
  if (files.rlim_max != RLIM_INFINITY && files.rlim_max < SELECT_FDS) files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files)) return fail("setrlimit");
  high = (int) files.rlim_cur - 1;
  if (high < 1100) return fail("more than 1100 descriptors are not allowed here");
  FD_ZERO(&r);
  for (i = high - 40; i <= high; ++i) {
    if (dup2(p[0], i) != i) return fail("dup2");
    FD_SET(i, &r);
  }
  t.tv_sec = 0; t.tv_usec = 0;
  if (differs("empty pipes above 1024", select(high + 1, &r, 0, 0, &t), 0)) return 1;
  for (i = high - 40; i <= high; ++i)
    if (differs("the bit of an empty pipe", FD_ISSET(i, &r), 0)) return 1;
  if (write(p[1], "x", 1) != 1) return fail("write");
  FD_SET(high, &r);
  FD_SET(high - 1, &r);
  FD_CLR(high - 1, &r);
  if (differs("the highest", select(high + 1, &r, 0, 0, 0), 1)) return 1;
  if (differs("the bit of the highest", FD_ISSET(high, &r), 1)) return 1;
  if (differs("the bit that was cleared", FD_ISSET(high - 1, &r), 0)) return 1;
  FD_SET(high, &r);
  if (differs("what is not below n", select(high, &r, 0, 0, &t), 0)) return 1;

  /* Fewer are allowed than are open: no hindrance. (poll fails with EINVAL.) */
  files.rlim_cur = 0;
  if (setrlimit(RLIMIT_NOFILE, &files)) return fail("setrlimit");
  FD_ZERO(&r);
  FD_SET(high, &r);
  if (differs("with a limit of 0", select(high + 1, &r, 0, 0, &t), 1)) return 1;
  close(high);
  FD_SET(high, &r);
  if (differs("what is not open", select(high + 1, &r, 0, 0, &t), -1)) return 1;
  if (differs("errno of what is not open", errno, EBADF)) return 1;
  /* The sanitizer opens files at the end. */
  files.rlim_cur = high + 1;
  return setrlimit(RLIMIT_NOFILE, &files) ? fail("setrlimit") : 0;
}
