/* Stands in for qmail-remote, and reports everything that a process can see of the way in which it was started. Facts
   that are the same in each executed delivery must be the same in a delivery by the fork server. */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "remote_start.h"

extern char **environ;

static int compare(const void *a, const void *b)
{
  return strcmp(*(char *const *) a,*(char *const *) b);
}

/* Prints the lines of a file that begin with one of these words. */
static void lines(const char *file, const char **wanted)
{
  char line[1000];
  const char **w;
  FILE *f;

  f = fopen(file,"r");
  while (f && fgets(line,sizeof line,f))
    for (w = wanted;*w;++w)
      if (!strncmp(line,*w,strlen(*w))) fputs(line,stdout);
  if (f) fclose(f);
}

static void view(int argc, char **argv)
{
  static const char *status[] = { "Name:", "Umask:", "Uid:", "Gid:", "Groups:", "SigPnd:", "ShdPnd:", "SigBlk:",
    "SigIgn:", "SigCgt:", "CapEff:", "NoNewPrivs:", "Seccomp:", "Threads:", "TracerPid:", "Cpus_allowed_list:", 0 };
  static const char *limits[] = { "Max", 0 };
  struct dirent *e;
  struct stat st;
  char buf[5000], cwd[1000];
  ssize_t r;
  DIR *d;
  int i, n;

  for (i = 0;i < argc;++i) printf("argv %d %s\n",i,argv[i]);
  printf("argv end %d\n",argv[argc] == 0);
  for (n = 0;environ[n];++n) ;
  qsort(environ,(size_t) n,sizeof *environ,compare);
  for (i = 0;i < n;++i) printf("env %s\n",environ[i]);
  printf("cwd %s\n",getcwd(cwd,sizeof cwd));
  printf("parent %d group %d session %d nice %d\n",(int) getppid(),(int) getpgrp(),(int) getsid(0),getpriority(PRIO_PROCESS,0));
  lines("/proc/self/status",status);
  lines("/proc/self/limits",limits);
  i = open("/proc/self/cmdline",O_RDONLY);
  r = read(i,buf,sizeof buf);
  close(i);
  while (r > 0 && !buf[r - 1]) --r;
  for (n = 0;n < r;++n) if (!buf[n]) buf[n] = '|';
  printf("cmdline %.*s\n",(int) r,buf);
  i = open("/proc/self/comm",O_RDONLY);
  r = read(i,buf,sizeof buf);
  close(i);
  printf("comm %.*s",(int) r,buf);
  d = opendir("/proc/self/fd");
  while (d && (e = readdir(d))) {
    i = atoi(e->d_name);
    if (*e->d_name == '.' || i == dirfd(d)) continue;
    if (fstat(i,&st) == -1) continue;
    printf("fd %d type %o flags %o descriptor %d at %ld\n",i,(unsigned int) st.st_mode & S_IFMT,(unsigned int) fcntl(i,F_GETFL),
      fcntl(i,F_GETFD),i ? 0L : (long) lseek(i,0,SEEK_CUR));
  }
  if (d) closedir(d);
  r = read(0,buf,sizeof buf);
  printf("message %.*s",(int) r,buf);
}

#ifndef VIEW_ONLY
int main(int argc, char **argv)
{
  remote_serve(&argc,&argv);
  fwrite("r\0K",1,3,stdout);
  view(argc,argv);
  putchar(0);
  fflush(stdout);
  return 0;
}
#endif
