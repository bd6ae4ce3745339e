/* What the drivers share: the turn that they are at, a check, and random numbers. */
#include <stdio.h>
#include <stdlib.h>

static unsigned long turns;

static void must(int true, const char *what)
{
  if (true) return;
  fprintf(stderr,"turn %lu: %s\n",turns,what);
  exit(1);
}

/* 0 to n - 1. The first call sets the seed, and is 0 to seed - 1. */
static unsigned int below(unsigned int n)
{
  static unsigned long long state;

  if (!state) state = (unsigned long long) n;
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return (unsigned int) (state >> 33) % n;
}
