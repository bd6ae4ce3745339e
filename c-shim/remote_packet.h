/*
The packets between qmail-rspawn and its server, on a socket that keeps packets apart. Both programs are built from the
same tree; a program from a tree with another form of packets has another REMOTE_MAGIC, or none.
*/
#ifndef REMOTE_PACKET_H
#define REMOTE_PACKET_H

#define REMOTE_MAGIC "qpatch-remote 1"

/* argv[1] of a server. argv[2] is room for the arguments of a delivery, so that ps shows them in the child. */
#define REMOTE_WORD "--serve-qmail-rspawn"
#define REMOTE_ROOM 2048

/* strings of a delivery, arguments and environment together; a delivery with more goes by exec */
#define REMOTE_STRINGS 2000

/* the server's first packet, which proves that it is the intended file and process, and not one behind a wrapper */
struct remote_hello {
  char magic[sizeof REMOTE_MAGIC];
  long pid;
  unsigned long dev;
  unsigned long ino;
};

/* one for each delivery, with two descriptors. text: the arguments, then the environment, each with its zero byte */
struct remote_packet {
  unsigned int args;
  unsigned int envs;
  char text[60000];
};

/* the answer. The child itself sends its pid; the server sends 0: no child was made */
struct remote_answer {
  long pid;
};

#endif
