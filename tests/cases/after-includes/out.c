#include <a.h>
#include "b.h" /* b */
#include "alloc.h"
#ifdef X
#include "x.h"
#endif
int f() { alloc(); }
