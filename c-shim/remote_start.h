/*
NAME
  remote_start.h - starts qmail-remote, at a cost that does not grow

DESCRIPTION
  spawn() of qmail-rspawn calls remote_start() before it forks. There are two ways:

  Quick exec: the child shares memory and descriptors with qmail-rspawn until exec. So neither is copied, and the child
  does not close the descriptors of other deliveries one by one.

  Server, only if control/remoteserver has a number: one qmail-remote has called remote_serve() and waits. For each
  delivery remote_start() sends it the arguments, the environment and two descriptors, and it makes a child that goes on
  in main() as if it had just been executed. That is a child of qmail-rspawn (CLONE_PARENT), so spawn.c waits for it as
  for any other. After that number of deliveries another server takes its place. If the server cannot take the
  delivery, it goes by quick exec.

  This works on Linux only. Elsewhere, and whenever something is missing or fails, remote_start() returns 0, and spawn()
  forks and executes as it always did.

FILES
  control/remoteserver     1 to 1000000, read at the first delivery; without this file, or with 0, there is no server
  queue/lock/remotestatus  what remote_start() does, written once a second at most; it must exist and belong to qmailr

SEE ALSO
  patches/fork-server/README.md in qpatch: how a child differs, and what happens when a server fails.
*/
#ifndef REMOTE_START_H
#define REMOTE_START_H

/*
Starts program, which it looks up as execvp does. args ends with a null pointer; descriptor 0 becomes fdmess, 1 and 2
become fdout. SIGCHLD must be blocked. Returns the pid of a child of this process, or 0: nothing was started, fork.
*/
extern int remote_start(char *program, char **args, int fdmess, int fdout);

/*
The first call in main() of qmail-remote. It returns at once, unless this process is a server: then it returns only in
each child, where argc, argv and environ are those of the delivery.
*/
extern void remote_serve(int *argc, char ***argv);

#endif
