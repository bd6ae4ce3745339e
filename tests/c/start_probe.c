/* Stands in for qmail-remote in tests of the fork server. What it does follows from its first argument. */
#define VIEW_ONLY
#include "../../src/verify/rig/view.c"
#include <sys/syscall.h>
#include "remote_packet.h"

/* as glibc before 2.25 has it: what it was once, it stays, unless the C library's own fork() was called */
pid_t getpid(void)
{
  static pid_t first;

  if (!first) first = (pid_t) syscall(SYS_getpid);
  return first;
}

int main(int argc, char **argv)
{
  const char *once;
  int fd;

  /* the first server ends, or hangs, before it has said anything */
  once = getenv("FALTER");
  if (once && argc == 3 && !strcmp(argv[1],REMOTE_WORD) && open(once,O_WRONLY | O_CREAT | O_EXCL,0644) != -1) {
    if (getenv("HANG")) for (;;) pause();
    return 0;
  }
  getpid();
  remote_serve(&argc,&argv);
  if (argc < 2) return 100;
  if (!strcmp(argv[1],"view")) view(argc,argv);
  /* a line in a file for each delivery: what is delivered twice is there twice */
  else if (!strcmp(argv[1],"deliver")) {
    fd = open(argv[2],O_WRONLY | O_APPEND | O_CREAT,0644);
    dprintf(fd,"%s\n",argv[3]);
    printf("delivered %s\n",argv[3]);
  }
  else if (!strcmp(argv[1],"pid")) printf("%d %d\n",(int) syscall(SYS_getpid),(int) getppid());
  else if (!strcmp(argv[1],"length")) printf("length %lu\n",(unsigned long) strlen(argv[2]));
  else if (!strcmp(argv[1],"stop")) { kill((pid_t) syscall(SYS_getpid),SIGKILL); }
  else if (!strcmp(argv[1],"sleep")) for (;;) pause();
  fflush(stdout);
  return 0;
}
