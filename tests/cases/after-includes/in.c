#include <a.h>
#include "b.h" /* b */
#ifdef X
#include "x.h"
#endif
int f() { alloc(); }
