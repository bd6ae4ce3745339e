#define A 1
#define B 2
#include "a.h"
#include "b.h"
int x;
