/* in place of a tree's */
#include <sys/types.h>
#include <sys/time.h>
#include <sys/select.h>
