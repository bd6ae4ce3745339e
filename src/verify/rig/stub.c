/* The program that a proof needs beside the tree's own: one program with several names. As these, it is the far end of
   a delivery:

   qmail-remote HOST SENDER RECIPIENT
   qmail-local -- USER HOME LOCAL DASH EXT DOMAIN SENDER DEFAULT
   qmail-getpw LOCAL

   A recipient is MODE-HOLD-TAG@DOMAIN. The delivery writes into the events pipe that it has started, waits while
   another process holds an exclusive lock on RIG/hold/HOLD (if there is no such file, it does not wait), writes that
   it ends, and does what MODE says. HOLD+MS waits for that many milliseconds more.
     k z d   accepted, temporary, permanent
     s h     (remote) accepted as a message, this recipient temporary, permanent
     c       dies of a signal
     n       writes nothing and exits 0
     x       writes nothing and exits 111
   Every other answer has the whole recipient.

   An event is one line, in one write: S or E, process, CLOCK_MONOTONIC in ns, program, recipient. The pipe is opened
   without waiting: if there is no reader, the proof is over and the stub exits.

   As these, it is a helper:

   qmail-rspawn, qmail-lspawn   in RIG/relay: passes bytes between qmail-send and the rig, which plays the spawner,
                                through small pipes. If qmail-send has several remote channels, each has a relay of
                                its own.
   rig-limit PID NAME SOFT      sets the soft limit NAME (nproc, nofile) of a process of the same user, and prints the
                                old one; exits 1 if that is not possible. Linux only, and not with dietlibc.

   It is small, without stdio and heap, because thousands of them run at once. It is C89, so that any conf-cc compiles
   it. */

#define _GNU_SOURCE
#define _DEFAULT_SOURCE
#include <sys/types.h>
#include <sys/file.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/resource.h>
#endif
#include <time.h>
#include <unistd.h>

#ifdef REMOTE_SERVE
#include "remote_start.h"
#endif

#ifndef RIG
#error RIG must name the directory of the rig
#endif

static char out[4000];
static unsigned int outlen;

static void put(const char *s, unsigned int len)
{
  if (len > sizeof out - outlen) len = sizeof out - outlen;
  memcpy(out + outlen, s, len);
  outlen += len;
}

static void puts0(const char *s) { put(s, strlen(s)); }

static void putnum(unsigned long u)
{
  char digits[40];
  unsigned int i = sizeof digits;
  do { digits[--i] = '0' + u % 10; u /= 10; } while (u);
  put(digits + i, sizeof digits - i);
}

/* Writes a time in nanoseconds, digit by digit, because it does not fit into an unsigned long of 32 bits. */
static void puttime(const struct timespec *at)
{
  unsigned long rest = at->tv_nsec;
  unsigned long unit;
  putnum(at->tv_sec);
  for (unit = 100000000UL; unit; unit /= 10) putnum(rest / unit % 10);
}

static void flushto(int fd)
{
  unsigned int done = 0;
  while (done < outlen) {
    int w = write(fd, out + done, outlen - done);
    if (w == -1) { if (errno == EINTR) continue; _exit(111); }
    done += w;
  }
  outlen = 0;
}

static void event(int fd, const char *what, const char *program, const char *local, const char *at, const char *domain)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  puts0(what);
  putnum(getpid());
  puts0(" ");
  puttime(&now);
  puts0(" ");
  puts0(program);
  puts0(" ");
  puts0(local); puts0(at); puts0(domain);
  puts0("\n");
  flushto(fd);
}

/* Waits while the hold of this recipient is locked, and as long as it says. */
static void await(const char *local)
{
  char name[sizeof RIG + 100];
  const char *start;
  const char *end;
  char *more;
  int ms = 0;
  int fd;

  if (!local[0] || local[1] != '-') return;
  start = local + 2;
  end = strchr(start, '-');
  if (!end || end == start || end - start > 60) return;
  strcpy(name, RIG "/hold/");
  memcpy(name + sizeof RIG + 5, start, end - start);
  name[sizeof RIG + 5 + (end - start)] = 0;
  if (strchr(name + sizeof RIG + 5, '/')) return;
  more = strchr(name + sizeof RIG + 5, '+');
  if (more) {
    *more = 0;
    ms = atoi(more + 1);
  }
  fd = open(name, O_RDONLY);
  if (fd != -1) {
    while (flock(fd, LOCK_SH) == -1) if (errno != EINTR) break;
    close(fd);
  }
  if (ms > 0) poll(0, 0, ms);
}

static int remote(int argc, char **argv)
{
  const char *r;
  int fd;
  if (argc < 4) return 100;
  r = argv[3];
  fd = open(RIG "/events", O_WRONLY | O_NONBLOCK);
  if (fd == -1) return 111;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  event(fd, "S ", "remote", r, "", "");
  await(r);
  event(fd, "E ", "remote", r, "", "");
  switch (r[0]) {
    case 'k': put("r", 2); puts0("K"); puts0(r); puts0(" accepted\n"); put("", 1); break;
    case 'z': put("r", 2); puts0("Z"); puts0(r); puts0(" later (#4.0.0)\n"); put("", 1); break;
    case 'd': put("r", 2); puts0("D"); puts0(r); puts0(" never (#5.0.0)\n"); put("", 1); break;
    case 's': puts0("s"); puts0(r); puts0(" later (#4.0.0)\n"); put("", 1); puts0("Kdone\n"); put("", 1); break;
    case 'h': puts0("h"); puts0(r); puts0(" never (#5.0.0)\n"); put("", 1); puts0("Kdone\n"); put("", 1); break;
    case 'c': kill(getpid(), SIGKILL); return 111;
    case 'n': return 0;
    case 'x': return 111;
    default: put("r", 2); puts0("Z"); puts0(r); puts0(" is not an address of this rig\n"); put("", 1); break;
  }
  flushto(1);
  return 0;
}

static int local(int argc, char **argv)
{
  const char *l;
  const char *domain;
  int fd;
  if (argc < 10) return 100;
  l = argv[4];
  domain = argv[7];
  fd = open(RIG "/events", O_WRONLY | O_NONBLOCK);
  if (fd == -1) return 111;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  event(fd, "S ", "local", l, "@", domain);
  await(l);
  event(fd, "E ", "local", l, "@", domain);
  if (l[0] == 'c') kill(getpid(), SIGKILL);
  if (l[0] == 'x') return 111;
  if (l[0] != 'n') { puts0(l); puts0("@"); puts0(domain); }
  flushto(1);
  switch (l[0]) {
    case 'k': case 'n': return 0;
    case 'd': case 'h': return 100;
    default: return 111;
  }
}

static int getpw(int argc, char **argv)
{
  if (argc < 2) return 100;
  put("rig", 4);
  putnum(getuid()); put("", 1);
  putnum(getgid()); put("", 1);
  put(RIG, sizeof RIG);
  put("-", 2);
  puts0(argv[1]); put("", 1);
  flushto(1);
  return 0;
}

/* Copies what is there; 0 at the end of the input. */
static int pass(int from, int to)
{
  int r = read(from, out, sizeof out);
  if (r == -1) return errno == EINTR;
  if (r == 0) return 0;
  outlen = r;
  flushto(to);
  return 1;
}

/* Opens a file of relay number i: RIG/relay/remote.0.lock, .cmd (to the rig), .rep (from the rig). */
static int openrelay(const char *channel, int i, const char *kind, int flags)
{
  char name[sizeof RIG + 40];
  outlen = 0;
  puts0(RIG "/relay/"); puts0(channel); puts0("."); putnum(i); puts0("."); puts0(kind); put("", 1);
  memcpy(name, out, outlen);
  outlen = 0;
  return open(name, flags);
}

static int relay(const char *channel)
{
  struct pollfd fds[2];
  int cmd;
  int i;
  int lock;

  signal(SIGPIPE, SIG_IGN);
#ifdef F_SETPIPE_SZ
  fcntl(0, F_SETPIPE_SZ, 4096);
  fcntl(1, F_SETPIPE_SZ, 4096);
#endif
  for (i = 0;; ++i) {
    lock = openrelay(channel, i, "lock", O_RDWR);
    if (lock == -1) return 111;
    if (flock(lock, LOCK_EX | LOCK_NB) == 0) break;
    close(lock);
  }
  cmd = openrelay(channel, i, "cmd", O_WRONLY | O_NONBLOCK);
  if (cmd == -1) return 111;
  fcntl(cmd, F_SETFL, fcntl(cmd, F_GETFL) & ~O_NONBLOCK);
  fds[0].fd = 0;
  fds[1].fd = openrelay(channel, i, "rep", O_RDONLY);
  if (fds[1].fd == -1) return 111;
  for (;;) {
    fds[0].events = fds[1].events = POLLIN;
    if (poll(fds, 2, -1) == -1) { if (errno == EINTR) continue; return 111; }
    if (fds[0].revents) if (!pass(0, cmd)) return 0;
    if (fds[1].revents) if (!pass(fds[1].fd, 1)) return 0;
  }
}

static int limit(int argc, char **argv)
{
#if defined(__linux__) && defined(RLIMIT_NPROC) && !defined(__dietlibc__)
  struct rlimit old;
  struct rlimit new;
  int which = RLIMIT_NOFILE;
  int pid;
  if (argc < 4) return 100;
  pid = atoi(argv[1]);
  if (!strcmp(argv[2], "nproc")) which = RLIMIT_NPROC;
  if (prlimit(pid, which, 0, &old) == -1) return 1;
  new.rlim_max = old.rlim_max;
  new.rlim_cur = strtoul(argv[3], 0, 10);
  if (new.rlim_cur > new.rlim_max) new.rlim_cur = new.rlim_max;
  if (prlimit(pid, which, &new, 0) == -1) return 1;
  putnum(old.rlim_cur);
  flushto(1);
  return 0;
#else
  return 1;
#endif
}

int main(int argc, char **argv)
{
  const char *name;
#ifdef REMOTE_SERVE
  /* In a tree with the fork server, the stub serves as its qmail-remote does. */
  remote_serve(&argc, &argv);
#endif
  name = argc > 0 ? strrchr(argv[0], '/') : 0;
  name = name ? name + 1 : argc > 0 ? argv[0] : "";
  if (!strcmp(name, "qmail-remote")) return remote(argc, argv);
  if (!strcmp(name, "qmail-local")) return local(argc, argv);
  if (!strcmp(name, "qmail-getpw")) return getpw(argc, argv);
  if (!strcmp(name, "qmail-rspawn")) return relay("remote");
  if (!strcmp(name, "qmail-lspawn")) return relay("local");
  if (!strcmp(name, "rig-limit")) return limit(argc, argv);
  return 100;
}
