/* Plays the part of spawn.c: starts deliveries by remote_start(), waits for them, and answers the commands of a test. One command a
   line, words separated by tabs; each answer ends with a line "ok". */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include "remote_start.h"
#include "remote_packet.h"

int error_temp(int e)
{
  return e != ENOENT && e != EACCES;
}

static void nothing(int sig)
{
  (void) sig;
}

/* as spawn(): the pid, and the end of the pipe to read */
static int start(char *program, char **args, int *out)
{
  int two[2], mess, f;

  mess = open("message",O_RDONLY);
  if (mess == -1 || pipe(two) == -1) { perror("start"); exit(1); }
  fcntl(two[0],F_SETFD,FD_CLOEXEC);
  f = remote_start(program,args,mess,two[1]);
  if (!f) {
    f = fork();
    if (!f) {
      dup2(mess,0); dup2(two[1],1); dup2(1,2);
      close(mess); close(two[1]);
      execvp(program,args);
      _exit(error_temp(errno) ? 111 : 100);
    }
  }
  close(mess);
  close(two[1]);
  *out = two[0];
  return f;
}

static void copy(int fd)
{
  char buf[65536];
  ssize_t r;

  while ((r = read(fd,buf,sizeof buf)) > 0) fwrite(buf,1,(size_t) r,stdout);
  close(fd);
}

static int await(int f)
{
  int wstat;

  if (waitpid(f,&wstat,0) != f) { perror("waitpid"); exit(1); }
  return wstat;
}

/* a stranger's packet, with strings of 9 bytes and their 0: what the server answers, a child's pid or nothing */
static long poke(char *program, unsigned int args, unsigned int envs, size_t text)
{
  static struct remote_packet packet;
  static char room[REMOTE_ROOM];
  union {
    struct cmsghdr align;
    char room[CMSG_SPACE(2 * sizeof(int))];
  } control;
  struct remote_hello hello;
  struct remote_answer a;
  struct msghdr m;
  struct iovec iov;
  struct cmsghdr *h;
  int two[2], fds[2], f;
  size_t i;

  if (socketpair(AF_UNIX,SOCK_SEQPACKET | SOCK_CLOEXEC,0,two) == -1) return -2;
  memset(room,'.',sizeof room - 1);
  f = fork();
  if (!f) {
    dup2(two[1],0); dup2(two[1],1);
    execl(program,"server",REMOTE_WORD,room,(char *) 0);
    _exit(111);
  }
  close(two[1]);
  if (recv(two[0],&hello,sizeof hello,0) != sizeof hello) return -2;
  packet.args = args;
  packet.envs = envs;
  for (i = 0;i < sizeof packet.text;++i) packet.text[i] = i % 10 == 9 ? 0 : 'x';
  memset(&m,0,sizeof m);
  memset(&control,0,sizeof control);
  iov.iov_base = &packet;
  iov.iov_len = sizeof packet - sizeof packet.text + text;
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = &control;
  m.msg_controllen = sizeof control;
  h = CMSG_FIRSTHDR(&m);
  h->cmsg_level = SOL_SOCKET;
  h->cmsg_type = SCM_RIGHTS;
  h->cmsg_len = CMSG_LEN(sizeof fds);
  fds[0] = fds[1] = two[0];
  memcpy(CMSG_DATA(h),fds,sizeof fds);
  if (sendmsg(two[0],&m,MSG_NOSIGNAL) == -1) return -2;
  if (recv(two[0],&a,sizeof a,0) != sizeof a) a.pid = -1;
  close(two[0]);
  waitpid(f,(int *) 0,0);
  if (a.pid > 0) waitpid((pid_t) a.pid,(int *) 0,0);
  return a.pid;
}

/* as containers do whose list of system calls is older than this one; 1: this machine lets nobody do that */
static int deny(unsigned int number)
{
  struct sock_filter steps[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS,0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,number,0,1),
    BPF_STMT(BPF_RET | BPF_K,SECCOMP_RET_ERRNO | EPERM),
    BPF_STMT(BPF_RET | BPF_K,SECCOMP_RET_ALLOW)
  };
  struct sock_fprog program;

  program.len = sizeof steps / sizeof *steps;
  program.filter = steps;
  if (prctl(PR_SET_NO_NEW_PRIVS,1,0,0,0) == -1) return 1;
  return prctl(PR_SET_SECCOMP,SECCOMP_MODE_FILTER,&program) == -1;
}

int main(void)
{
  static char line[200000];
  static int begun[20000], pipes[20000];
  char *args[4000], *word;
  struct rlimit limit;
  struct sigaction sa;
  sigset_t chld;
  int n, f, out, count, i, k;
  FILE *in;

  memset(&sa,0,sizeof sa);
  sa.sa_handler = nothing;
  sigaction(SIGCHLD,&sa,0);
  signal(SIGPIPE,SIG_IGN);
  sigemptyset(&chld);
  sigaddset(&chld,SIGCHLD);
  sigprocmask(SIG_BLOCK,&chld,0);
  count = 0;
  /* the commands on a number of their own: 0 is not a delivery's */
  i = fcntl(0,F_DUPFD_CLOEXEC,100);
  in = fdopen(i,"r");
  /* as qmail-start leaves it: a pipe of a delivery, or of the server, may get number 2; also what the test inherited */
  if (syscall(SYS_close_range,2U,99U,0U) == -1) return 1;
  while (fgets(line,sizeof line,in)) {
    n = 0;
    for (word = strtok(line,"\t\n");word;word = strtok(0,"\t\n")) args[n++] = word;
    args[n] = 0;
    if (!n) continue;
    if (!strcmp(args[0],"run")) {
      f = start(args[1],args + 1,&out);
      if (f == -1) printf("no fork\n");
      else { copy(out); printf("end %d\n",await(f)); }
    } else if (!strcmp(args[0],"many")) {
      /* many TIMES PROGRAM ...: one after the other; only how often one ended in another way than with 0 */
      i = 0;
      for (k = atoi(args[1]);k > 0;--k) {
        f = start(args[2],args + 2,&out);
        if (f == -1) { ++i; continue; }
        copy(out);
        if (await(f)) ++i;
      }
      printf("bad %d\n",i);
    } else if (!strcmp(args[0],"begin")) {
      begun[count] = start(args[1],args + 1,&pipes[count]);
      printf("pid %d\n",begun[count++]);
    } else if (!strcmp(args[0],"await")) {
      while (count) { copy(pipes[--count]); printf("end %d\n",await(begun[count])); }
    } else if (!strcmp(args[0],"poke")) {
      /* poke PROGRAM ARGS ENVS BYTES */
      printf("child %d\n",poke(args[1],(unsigned int) strtoul(args[2],0,10),(unsigned int) strtoul(args[3],0,10),
        (size_t) atol(args[4])) > 0);
    } else if (!strcmp(args[0],"deny")) {
      /* all numbers here are newer than the time when each machine had its own */
      printf("denied %d\n",!deny((unsigned int) atoi(args[1])));
    } else if (!strcmp(args[0],"set")) setenv(args[1],args[2],1);
    else if (!strcmp(args[0],"nofile") || !strcmp(args[0],"nproc")) {
      f = *args[0] == 'n' && args[0][1] == 'o' ? RLIMIT_NOFILE : RLIMIT_NPROC;
      getrlimit(f,&limit);
      limit.rlim_cur = (rlim_t) atol(args[1]);
      if (setrlimit(f,&limit) == -1) { perror("setrlimit"); return 1; }
    } else if (!strcmp(args[0],"reap")) while (waitpid(-1,&i,WNOHANG) > 0) ;
    else { printf("what?\n"); return 1; }
    printf("ok\n");
    fflush(stdout);
  }
  return 0;
}
