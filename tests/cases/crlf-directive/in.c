#define A 1
#include "a.h"
#include "c.h"
int x;
