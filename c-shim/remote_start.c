#include "remote_start.h"

#if !defined(__linux__) || defined(__dietlibc__)

int remote_start(char *program, char **args, int fdmess, int fdout)
{
  (void) program;
  (void) args;
  (void) fdmess;
  (void) fdout;
  return 0;
}

#else

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/types.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "remote_packet.h"

#ifndef REMOTE_CONTROL
#define REMOTE_CONTROL "../../control/remoteserver"
#endif
#ifndef REMOTE_STATUS
#define REMOTE_STATUS "../lock/remotestatus"
#endif

/* calls of Linux 5.1, 5.3 and 5.9, which older headers lack; alpha has numbers of its own */
#ifdef __alpha__
#define REMOTE_CALLS 110
#else
#define REMOTE_CALLS 0
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal (424 + REMOTE_CALLS)
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open (434 + REMOTE_CALLS)
#endif
#ifndef SYS_close_range
#define SYS_close_range (436 + REMOTE_CALLS)
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2U
#endif

#define MOST_MAX 1000000UL

/* time for a server to say hello, while deliveries go by exec; and for a child to answer, while qmail-rspawn waits */
#ifndef REMOTE_HELLO_SECS
#define REMOTE_HELLO_SECS 10
#endif
#ifndef REMOTE_ANSWER_MS
#define REMOTE_ANSWER_MS 10000
#endif

/* pause after a server that failed, before the next one; the longer one if it had made fewer deliveries than WELL */
#define AGAIN_SECS 1
#ifndef REMOTE_LATER_SECS
#define REMOTE_LATER_SECS 30
#endif
#define WELL 100UL

#define STATUS_SECS 1
#define STATUS_LEN 512
#define STATUS_RECORDS 64

extern char **environ;
extern int error_temp(int); /* of the tree */

static char path[4096];      /* of the program, as it was found last */
static struct stat program;  /* that file */

static unsigned long most;   /* deliveries for a server; 0: no server */
static int sock = -1;        /* to the server; -1: there is none */
static pid_t server;
static int handle = -1;      /* its pidfd: its pid may belong to another process when it is killed */
static int ready;            /* it has said hello */
static time_t begun;         /* when it was started */
static time_t again;         /* no new server before this time */
static int doubts;           /* servers of this program in a row that said nothing */
static unsigned long served; /* its deliveries */
static const char *reason = "control/remoteserver does not exist"; /* why there is no server; empty: there may be one */

static unsigned long by_server, by_exec, by_spawn, failed;

static time_t seconds(void)
{
  struct timespec t;

  if (clock_gettime(CLOCK_MONOTONIC,&t) == -1) return 0;
  return t.tv_sec;
}

/* ---------------------------------------------------------------- control and status */

static void configure(void)
{
  static int done;
  char buf[64];
  unsigned long n;
  ssize_t r, i;
  int fd;

  if (done) return;
  fd = open(REMOTE_CONTROL,O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd == -1) {
    reason = errno == ENOENT ? "control/remoteserver does not exist" : "control/remoteserver cannot be read";
    done = errno != EMFILE && errno != ENFILE;
    return;
  }
  done = 1;
  r = read(fd,buf,sizeof buf);
  close(fd);
  n = 0;
  for (i = 0;i < r && buf[i] >= '0' && buf[i] <= '9' && n <= MOST_MAX;++i) n = n * 10 + (unsigned long) (buf[i] - '0');
  if (i <= 0 || n > MOST_MAX || (i < r && buf[i] != '\n' && buf[i] != ' ')) {
    reason = "control/remoteserver has no number from 0 to 1000000";
    return;
  }
  if (n && syscall(SYS_close_range,~0U,~0U,0U) == -1) {
    reason = "this kernel has no close_range (Linux 5.9 has)";
    return;
  }
  most = n;
  reason = n ? "" : "control/remoteserver is 0";
}

/* If a queue has several spawners, each has a record of its own. It holds it by a lock that ends with the process. */
static int record(int *fd)
{
  struct flock lock;
  int i;

  *fd = open(REMOTE_STATUS,O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  if (*fd == -1) {
    if (errno == EMFILE || errno == ENFILE) *fd = -2; /* try again at the next delivery */
    return 0;
  }
  for (i = 0;i < STATUS_RECORDS;++i) {
    memset(&lock,0,sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t) i * STATUS_LEN;
    lock.l_len = STATUS_LEN;
    if (fcntl(*fd,F_SETLK,&lock) != -1) return i;
  }
  close(*fd);
  *fd = -1;
  return 0;
}

static void status(int at_once)
{
  static int fd = -2;
  static int mine;
  static time_t last;
  time_t t;
  char buf[STATUS_LEN + 1];
  int n;

  if (fd == -2) {
    mine = record(&fd);
    at_once = 1;
  }
  if (fd < 0) return;
  t = seconds();
  if (!at_once && t - last < STATUS_SECS) return;
  last = t;
  n = snprintf(buf,sizeof buf,
    "qpatch-remote 1\npid %ld\nwritten %ld\nmost %lu\nserver %ld\nby-server %lu\nby-exec %lu\nby-spawn %lu\n"
    "failed %lu\nreason %s\n",
    (long) getpid(),(long) time((time_t *) 0),most,ready ? (long) server : 0L,by_server,by_exec,by_spawn,failed,reason);
  if (n < 0 || n > STATUS_LEN) return;
  memset(buf + n,'\n',(size_t) (STATUS_LEN - n));
  if (pwrite(fd,buf,STATUS_LEN,(off_t) mine * STATUS_LEN) == -1) return;
}

/* ---------------------------------------------------------------- the program */

/* sets path to the file that execvp would run; 0: there is none */
static int look(const char *name, struct stat *st)
{
  const char *dirs;
  size_t n, len;

  len = strlen(name);
  if (strchr(name,'/')) {
    if (len >= sizeof path) return 0;
    memcpy(path,name,len + 1);
    return stat(path,st) == 0;
  }
  dirs = getenv("PATH");
  if (!dirs) return 0;
  for (;;) {
    n = strcspn(dirs,":");
    if (n + len + 3 > sizeof path) return 0;
    memcpy(path,dirs,n);
    if (!n) path[n++] = '.';
    path[n] = '/';
    memcpy(path + n + 1,name,len + 1);
    if (stat(path,st) == 0 && S_ISREG(st->st_mode) && access(path,X_OK) == 0) return 1;
    dirs += strcspn(dirs,":");
    if (!*dirs++) return 0;
  }
}

static int same(const struct stat *a, const struct stat *b)
{
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size
    && a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec
    && a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* ---------------------------------------------------------------- quick exec */

struct start {
  char *program;
  char **args;
  int fdmess;
  int fdout;
  int low[2];
};

static int execute(void *p)
{
  struct start *s;

  s = (struct start *) p;
  /* until here the descriptors are the parent's own; this call makes a table with only the first few of them */
  if (syscall(SYS_close_range,(unsigned int) s->low[1] + 1,~0U,CLOSE_RANGE_UNSHARE) == -1) _exit(111);
  if (dup2(s->low[0],0) == -1 || dup2(s->low[1],1) == -1 || dup2(s->low[1],2) == -1) _exit(111);
  close(s->low[0]);
  close(s->low[1]);
  /* they may be among the first few; on 2 they may be too, since qmail-start has closed that */
  if (s->fdmess > 2) close(s->fdmess);
  if (s->fdout > 2) close(s->fdout);
  execvp(s->program,s->args);
  _exit(error_temp(errno) ? 111 : 100);
}

static int quick(char *program, char **args, int fdmess, int fdout)
{
  static int state; /* 0: not tried; 1: works; 2: does not */
  static int low[2] = { -1, -1 };
  static int null = -1;
  static char stack[65536] __attribute__((aligned(64)));
  struct start s;
  int f;

  if (state == 2) return 0;
  if (!state) {
    /* closes nothing, and unshares nothing, since nothing is shared: it only asks whether the kernel has this call */
    if (syscall(SYS_close_range,~0U,~0U,CLOSE_RANGE_UNSHARE) == -1) {
      state = 2;
      return 0;
    }
    null = open("/dev/null",O_RDWR | O_CLOEXEC);
    if (null == -1) return 0;
    low[0] = fcntl(null,F_DUPFD_CLOEXEC,3);
    low[1] = low[0] == -1 ? -1 : fcntl(null,F_DUPFD_CLOEXEC,low[0] + 1);
    if (low[1] == -1) {
      /* start over at the next delivery: the second must be above the first */
      if (low[0] != -1) close(low[0]);
      close(null);
      return 0;
    }
    state = 1;
  }
  f = -1;
  if (dup2(fdmess,low[0]) != -1 && dup2(fdout,low[1]) != -1) {
    s.program = program;
    s.args = args;
    s.fdmess = fdmess;
    s.fdout = fdout;
    s.low[0] = low[0];
    s.low[1] = low[1];
#if defined(__hppa__)
    f = clone(execute,stack,CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD,&s);
#else
    f = clone(execute,stack + sizeof stack,CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD,&s);
#endif
    if (f == -1 && errno == EINVAL) state = 2;
  }
  /* keep the numbers, close the files */
  dup3(null,low[0],O_CLOEXEC);
  dup3(null,low[1],O_CLOEXEC);
  return f > 0 ? f : 0;
}

/* ---------------------------------------------------------------- the server */

/* the server finishes what it was sent before, and ends */
static void leave(void)
{
  if (sock != -1) close(sock);
  if (handle != -1) close(handle);
  sock = handle = -1;
  ready = 0;
}

static void destroy(void)
{
  if (handle != -1) syscall(SYS_pidfd_send_signal,handle,SIGKILL,(void *) 0,0U);
}

static void broken(void)
{
  destroy();
  leave();
  ++failed;
  again = seconds() + (served < WELL ? REMOTE_LATER_SECS : AGAIN_SECS);
}

static void refuse(const char *why)
{
  reason = why;
  destroy();
  leave();
}

/* The server said nothing. It may have been killed, or the machine may be busy: only the second one in a row counts. */
static void doubt(const char *why)
{
  if (doubts++) refuse(why);
  else broken();
}

static void begin(char *name)
{
  static char room[REMOTE_ROOM];
  char *args[4];
  int two[2];
  pid_t f;

  begun = seconds();
  if (socketpair(AF_UNIX,SOCK_SEQPACKET | SOCK_CLOEXEC,0,two) == -1) return;
  memset(room,'.',sizeof room - 1);
  args[0] = name;
  args[1] = (char *) REMOTE_WORD;
  args[2] = room;
  args[3] = 0;
  f = fork();
  if (f == 0) {
    if (dup2(two[1],0) == -1 || dup2(two[1],1) == -1 || dup2(two[1],2) == -1) _exit(111);
    fcntl(2,F_SETFD,0); /* two[1] may have been 2, and then this is it */
    /* a descriptor that stays open here would be open in all its children */
    if (syscall(SYS_close_range,3U,~0U,0U) == -1) _exit(111);
    execvp(name,args);
    /* The file is being written, or there is no memory: try again later. That does not make it a wrapper. */
    if (error_temp(errno)) send(0,"",1,MSG_NOSIGNAL);
    _exit(111);
  }
  close(two[1]);
  if (f == -1) {
    close(two[0]);
    return;
  }
  sock = two[0];
  server = f;
  served = 0;
  handle = (int) syscall(SYS_pidfd_open,(long) f,0L);
  /* do not keep a server that could not be killed, nor start another one for each delivery */
  if (handle == -1) broken();
}

/* 1: the server has said hello */
static int greeted(void)
{
  struct remote_hello hello;
  ssize_t r;

  if (ready) return 1;
  r = recv(sock,&hello,sizeof hello,MSG_DONTWAIT);
  if (r == -1 && (errno == EAGAIN || errno == EINTR)) {
    if (seconds() - begun > REMOTE_HELLO_SECS)
      doubt("qmail-remote says nothing when it is started as a server: it is a wrapper, or from another tree");
    return 0;
  }
  if (r <= 0) {
    doubt("qmail-remote ends when it is started as a server: it is a wrapper, or from another tree");
    return 0;
  }
  if (r == 1 && !*hello.magic) {
    broken(); /* begin() could not execute it */
    return 0;
  }
  if (r != sizeof hello || memcmp(hello.magic,REMOTE_MAGIC,sizeof hello.magic)) {
    refuse("qmail-remote is no server: it is a wrapper, or from another tree");
    return 0;
  }
  if (hello.pid != (long) server || hello.dev != (unsigned long) program.st_dev
      || hello.ino != (unsigned long) program.st_ino) {
    refuse("qmail-remote starts another program: it is a wrapper");
    return 0;
  }
  ready = 1;
  doubts = 0;
  return 1;
}

/* the pid of the child; 0: no child delivers, now or later */
static pid_t answered(void)
{
  struct remote_answer a;
  struct pollfd p;
  int tries;
  ssize_t r;

  for (tries = 0;tries < 2;++tries) {
    p.fd = sock;
    p.events = POLLIN;
    p.revents = 0;
    do r = poll(&p,1,REMOTE_ANSWER_MS); while (r == -1 && errno == EINTR);
    if (r > 0) break;
    destroy(); /* it hangs; if it has made a child, that answers for itself */
  }
  if (tries) shutdown(sock,SHUT_RD); /* a child that has not answered by now cannot, and exits */
  r = recv(sock,&a,sizeof a,MSG_DONTWAIT);
  if (r != sizeof a || a.pid < 0) a.pid = -1;
  if (a.pid == -1 || tries) broken();
  return a.pid > 0 ? (pid_t) a.pid : 0;
}

/* 1: all strings fit into the packet */
static int pack(struct remote_packet *packet, size_t *used, char **args)
{
  char **s;
  size_t len;
  int env;

  *used = 0;
  packet->args = packet->envs = 0;
  for (env = 0;env < 2;++env) {
    s = env ? environ : args;
    if (!s) continue;
    for (;*s;++s) {
      len = strlen(*s) + 1;
      if (len > sizeof packet->text - *used) return 0;
      if (packet->args + packet->envs >= REMOTE_STRINGS) return 0;
      memcpy(packet->text + *used,*s,len);
      *used += len;
      if (env) ++packet->envs; else ++packet->args;
    }
  }
  return packet->args > 0;
}

static int ask(char **args, int fdmess, int fdout)
{
  static struct remote_packet packet;
  struct msghdr m;
  struct iovec iov;
  struct cmsghdr *h;
  union {
    struct cmsghdr align;
    char room[CMSG_SPACE(2 * sizeof(int))];
  } control;
  int fds[2];
  size_t used;
  pid_t pid;

  if (!pack(&packet,&used,args)) return 0;
  memset(&m,0,sizeof m);
  memset(&control,0,sizeof control);
  iov.iov_base = &packet;
  iov.iov_len = sizeof packet - sizeof packet.text + used;
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = &control;
  m.msg_controllen = sizeof control;
  h = CMSG_FIRSTHDR(&m);
  h->cmsg_level = SOL_SOCKET;
  h->cmsg_type = SCM_RIGHTS;
  h->cmsg_len = CMSG_LEN(sizeof fds);
  fds[0] = fdmess;
  fds[1] = fdout;
  memcpy(CMSG_DATA(h),fds,sizeof fds);
  if (sendmsg(sock,&m,MSG_NOSIGNAL | MSG_DONTWAIT) == -1) {
    if (errno != EMSGSIZE) broken();
    return 0;
  }
  pid = answered();
  if (pid && ++served >= most) leave();
  return (int) pid;
}

/* delivers by a server, and starts one when needed; returns the pid, or 0: use exec */
static int serve(char *name, char **args, int fdmess, int fdout)
{
  struct stat st;

  if (!look(name,&st)) return 0;
  if (!same(&st,&program)) {
    /* another qmail-remote was installed: deliveries that run go on, the next one runs the new program */
    leave();
    program = st;
    reason = "";
    doubts = 0;
    again = 0;
  }
  if (*reason) return 0;
  if (sock == -1) {
    if (seconds() >= again) begin(name);
    return 0;
  }
  if (!greeted()) return 0;
  return ask(args,fdmess,fdout);
}

int remote_start(char *name, char **args, int fdmess, int fdout)
{
  const char *why;
  int was, f;

  configure();
  was = ready;
  why = reason;
  f = most ? serve(name,args,fdmess,fdout) : 0;
  if (f) ++by_server;
  else {
    f = quick(name,args,fdmess,fdout);
    if (f) ++by_exec; else ++by_spawn;
  }
  status(was != ready || why != reason);
  return f;
}

#endif
