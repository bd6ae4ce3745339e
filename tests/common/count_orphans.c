/* count-orphans COMMAND ...: runs the command as the first process of a container would that reaps nobody, and prints how many
   processes it has left behind, dead or alive. */

#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
  int status;
  int orphans = 0;
  pid_t child;

  if (argc < 2 || prctl(PR_SET_CHILD_SUBREAPER,1L,0L,0L,0L) == -1) return 100;
  child = fork();
  if (child == 0) { execvp(argv[1],argv + 1); _exit(111); }
  if (child == -1 || waitpid(child,&status,0) != child) return 111;
  while (waitpid(-1,0,WNOHANG) >= 0) {
    /* one that lives gives 0, for ever */
    if (++orphans > 1000) break;
  }
  printf("%d\n",orphans);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 111;
}
