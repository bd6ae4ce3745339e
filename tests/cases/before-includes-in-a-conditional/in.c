/* a file */
int early;
#ifdef TLS
#include <ssl.h>
#include "select.h"
#endif
int x;
