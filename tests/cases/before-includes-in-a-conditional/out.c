/* a file */
int early;
#include "select.h"
#ifdef TLS
#include <ssl.h>
#endif
int x;
