/* What gate_glue.c needs of qmail's stralloc.h, declared as a K&R tree declares it. Written for this test. */
#ifndef STRALLOC_H
#define STRALLOC_H

typedef struct stralloc {
  char *s;
  unsigned int len;
  unsigned int a;
} stralloc;

extern int stralloc_copyb();
extern int stralloc_readyplus();

#endif
