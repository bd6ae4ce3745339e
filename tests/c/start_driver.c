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
#include "remote_start.h"

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
  /* as qmail-start leaves it: a pipe of a delivery, or of the server, may get this number */
  close(2);
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
