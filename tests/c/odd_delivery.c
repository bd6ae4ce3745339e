/*
In place of qmail-remote or qmail-local: closes its output before it ends, or leaves it open behind it. The recipient
says how: odd-MODE-STATUS-TAG@HOST.
  now     reports and ends with STATUS (-9: dies of a signal)
  early   reports and closes its output, waits until RIG/TAG can be opened and ends, then ends with STATUS
  behind  leaves its output to a child, which waits in that way; reports and ends with STATUS
*/
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef REMOTE
#include "remote_start.h"
#endif

static void hold(const char *tag)
{
  char name[4096];
  char byte;
  int fd;

  strcpy(name,RIG "/");
  strncat(name,tag,strcspn(tag,"@"));
  fd = open(name,O_RDONLY);
  if (fd == -1) _exit(99);
  while (read(fd,&byte,1) > 0) ;
  close(fd);
}

static int shut(void)
{
  return close(0) == -1 || close(1) == -1 || close(2) == -1;
}

int main(int argc, char **argv)
{
  char *word = 0;
  char *status;
  char *tag;
  int i;

#ifdef REMOTE
  remote_serve(&argc,&argv);
#endif
  for (i = 1;i < argc && !word;++i) word = strstr(argv[i],"odd-");
  if (!word) return 98;
  word += 4;
  status = strchr(word,'-') + 1;
  tag = strchr(status + 1,'-') + 1;
  if (!strncmp(word,"behind",6)) {
    i = fork();
    if (i == -1) return 97;
    if (i == 0) { hold(tag); _exit(0); }
  }
#ifdef REMOTE
  if (write(1,"r\0Kok\n",7) != 7) return 96;
#else
  if (write(1,"ok\n",3) != 3) return 96;
#endif
  if (!strncmp(word,"early",5)) {
    if (shut()) return 95;
    hold(tag);
  }
  if (!strncmp(status,"-9",2)) kill(getpid(),SIGKILL);
  return atoi(status);
}
