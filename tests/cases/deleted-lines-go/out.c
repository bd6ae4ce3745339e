#include <errno.h>
  /* old */
int a;
int b; int c;
