#include <errno.h>
extern int errno;
  extern int errno; /* old */
int a; extern int errno;
int b; extern int errno; int c;
extern int errno;