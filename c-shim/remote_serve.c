#include "remote_start.h"

#if !defined(__linux__) || defined(__dietlibc__)

void remote_serve(int *argc, char ***argv)
{
  (void) argc;
  (void) argv;
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
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "remote_packet.h"

extern char **environ;

/* Functions of OpenSSL, if qmail-remote is linked with it. Making an SSL_CTX reads its configuration and its tables of
   algorithms. The server does that once, so no child has to. */
extern const void *TLS_client_method(void) __attribute__((weak));
extern void *SSL_CTX_new(const void *) __attribute__((weak));
extern void SSL_CTX_free(void *) __attribute__((weak));
extern int RAND_poll(void) __attribute__((weak));

static void warm(void)
{
  void *ctx;

  if (!TLS_client_method || !SSL_CTX_new || !SSL_CTX_free) return;
  ctx = SSL_CTX_new(TLS_client_method());
  if (ctx) SSL_CTX_free(ctx);
}

/* asks the kernel: getpid() of glibc before 2.25 remembers its result and does not notice the clone below */
static long self(void)
{
#ifdef SYS_getpid
  return syscall(SYS_getpid);
#else
  return (long) getpid();
#endif
}

/* makes a child of this process's parent, which gets SIGCHLD at its end */
static long child(void)
{
  long me, f;

  me = self();
#if defined(__s390__) || defined(__CRIS__)
  f = syscall(SYS_clone,0L,(long) (CLONE_PARENT | SIGCHLD),0L,0L,0L);
#else
  f = syscall(SYS_clone,(long) (CLONE_PARENT | SIGCHLD),0L,0L,0L,0L);
#endif
  /* on sparc the call returns the parent's pid in the child, not 0 */
  return f != -1 && self() != me ? 0 : f;
}

static void answer(long pid)
{
  struct remote_answer a;

  a.pid = pid;
  /* qmail-rspawn no longer waits for this answer and has started the delivery another way: do not deliver twice */
  if (send(0,&a,sizeof a,MSG_NOSIGNAL) != sizeof a) _exit(111);
}

/* 1: the packet has exactly as many strings as it says. qmail-rspawn sends no other packets. But anyone who may run a
   set-user-id qmail-remote can send it a packet, and the array of strings has a fixed size. */
static int whole(const struct remote_packet *packet, size_t used)
{
  size_t i;
  unsigned long n;

  if (!packet->args || packet->args > REMOTE_STRINGS || packet->envs > REMOTE_STRINGS - packet->args) return 0;
  n = 0;
  for (i = 0;i < used;++i) if (!packet->text[i]) ++n;
  return n == (unsigned long) packet->args + packet->envs && !packet->text[used - 1];
}

/* receives the next delivery; ends the process when qmail-rspawn has closed the socket, or cannot have sent this */
static void next(struct remote_packet *packet, int fds[2])
{
  struct msghdr m;
  struct iovec iov;
  struct cmsghdr *h;
  union {
    struct cmsghdr align;
    char room[CMSG_SPACE(2 * sizeof(int))];
  } control;
  ssize_t r;

  for (;;) {
    iov.iov_base = packet;
    iov.iov_len = sizeof *packet;
    memset(&m,0,sizeof m);
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    m.msg_control = &control;
    m.msg_controllen = sizeof control;
    r = recvmsg(0,&m,0);
    if (r == -1 && errno == EINTR) continue;
    if (r <= (ssize_t) (sizeof *packet - sizeof packet->text)) _exit(0);
    h = CMSG_FIRSTHDR(&m);
    if (!h || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) _exit(0);
    if (h->cmsg_len != CMSG_LEN(2 * sizeof(int))) _exit(0);
    if (!whole(packet,(size_t) r - (sizeof *packet - sizeof packet->text))) _exit(0);
    memcpy(fds,CMSG_DATA(h),2 * sizeof(int));
    return;
  }
}

void remote_serve(int *argc, char ***argv)
{
  static struct remote_packet packet;
  static char *strings[REMOTE_STRINGS + 2];
  struct remote_hello hello;
  struct stat st;
  char *room, *at;
  size_t space, used;
  unsigned int i;
  int fds[2];
  long pid;

  if (*argc != 3 || strcmp((*argv)[1],REMOTE_WORD)) return;

  /* argv is one stretch of memory, as the kernel has laid it out; ps reads it */
  room = (*argv)[0];
  space = (size_t) ((*argv)[2] - room) + strlen((*argv)[2]);
  memset((*argv)[2],0,strlen((*argv)[2]));

  warm();

  if (stat("/proc/self/exe",&st) == -1) _exit(0);
  memset(&hello,0,sizeof hello);
  memcpy(hello.magic,REMOTE_MAGIC,sizeof hello.magic);
  hello.pid = self();
  hello.dev = (unsigned long) st.st_dev;
  hello.ino = (unsigned long) st.st_ino;
  if (send(0,&hello,sizeof hello,MSG_NOSIGNAL) != sizeof hello) _exit(0);

  for (;;) {
    next(&packet,fds);
    pid = child();
    if (pid == 0) break;
    if (pid == -1) answer(0L);
    close(fds[0]);
    close(fds[1]);
  }

  answer(self());
  if (dup2(fds[0],0) == -1 || dup2(fds[1],1) == -1 || dup2(fds[1],2) == -1) _exit(111);
  close(fds[0]);
  close(fds[1]);

  at = packet.text;
  for (i = 0;i < packet.args + packet.envs;++i) {
    strings[i < packet.args ? i : i + 1] = at;
    at += strlen(at) + 1;
    if (i + 1 == packet.args) {
      used = (size_t) (at - packet.text);
      memset(room,0,space);
      memcpy(room,packet.text,used < space ? used : space);
    }
  }
  *argc = (int) packet.args;
  *argv = strings;
  environ = strings + packet.args + 1;
  /* before 1.1.1d OpenSSL notices only the fork() of the C library, and would repeat its random numbers */
  if (RAND_poll) RAND_poll();
}

#endif
