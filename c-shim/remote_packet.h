/*
What qmail-rspawn and its server say to each other, over a socket that keeps packets apart. Both are built from the same tree;
a program that was built from another one has another REMOTE_MAGIC, or none.
*/
#ifndef REMOTE_PACKET_H
#define REMOTE_PACKET_H

#define REMOTE_MAGIC "qpatch-remote 1"

/* argv[1] of a server. argv[2] is room for the arguments of a delivery, which ps then shows in place of the server's. */
#define REMOTE_WORD "--serve-qmail-rspawn"
#define REMOTE_ROOM 2048

/* strings of a delivery: arguments and environment; more of them go by exec */
#define REMOTE_STRINGS 2000

/* the server's first packet: it is the file that was meant (wrappers are not), and the very process */
struct remote_hello {
  char magic[sizeof REMOTE_MAGIC];
  long pid;
  unsigned long dev;
  unsigned long ino;
};

/* one for each delivery, with two descriptors. text: the arguments, then the environment, each string with its 0 */
struct remote_packet {
  unsigned int args;
  unsigned int envs;
  char text[60000];
};

/* the answer: the pid of the child, by which the child itself says that it is there; 0: there is none */
struct remote_answer {
  long pid;
};

#endif
