/*
NAME
  remote_start.h - starts qmail-remote, at a cost that does not grow

DESCRIPTION
  spawn() of qmail-rspawn calls remote_start() before it forks. There are two ways:

  Quick exec, always: the child shares memory and descriptors with qmail-rspawn until exec. So neither is copied, and the
  descriptors of the other deliveries are not closed one by one.

  Server, only where control/remoteserver has a number: one qmail-remote is kept, which has called remote_serve() and waits.
  For each delivery it is sent the arguments, the environment and the two descriptors, and makes a child that goes on in
  main() as if it had just been executed. The child is qmail-rspawn's own (CLONE_PARENT), so that spawn.c waits for it as
  for any other. After as many deliveries as the number says another server takes its place.

  Linux only. Elsewhere, and whenever something is missing or fails, remote_start() returns 0, and spawn() forks and
  executes as it always did.

FILES
  control/remoteserver     1 to 1000000, read at the first delivery; without it, or with 0, there is no server
  queue/lock/remotestatus  what remote_start() does, written once a second at most; it must exist and belong to qmailr

SEE ALSO
  patches/fork-server/README.md in qpatch: what a child can see of the difference, and what happens when a server fails.
*/
#ifndef REMOTE_START_H
#define REMOTE_START_H

/*
Starts program, looked up as execvp does, with args (ended by a null pointer), descriptor 0 from fdmess, 1 and 2 from fdout.
SIGCHLD must be blocked. Returns the pid of a child of this process, or 0: nothing was started, do it another way.
*/
extern int remote_start(char *program, char **args, int fdmess, int fdout);

/*
Called first in main() of qmail-remote. Returns at once, but in a server: there it returns in each child, and argc, argv and
environ are those of the delivery.
*/
extern void remote_serve(int *argc, char ***argv);

#endif
