/*
Plays qmail-send to free_slots.c: takes and frees numbers in random order, and compares what is found with what is free.

free_driver SEED STEPS FAILS FORGETS: the FAILSth call of realloc() and all later ones fail, counted from 0 (-1: none);
each FORGETSth number is freed without a word (0: none).
*/
#include "driver.h"

static int calls, fails;

static void *test_realloc(void *p, size_t len)
{
  return ((fails != -1) && (calls++ >= fails)) ? (void *) 0 : realloc(p,len);
}

#define realloc test_realloc
#define ROOM_MAX (1 << 11)
#include "../../patches/free-slots/free_slots.c"

#define KINDS 4
#define MOST 1500

static const int kind[KINDS] = { FREE_JOBS, FREE_SLOTS, FREE_SLOTS + 1, FREE_SLOTS + 62 + 1 /* it has no list */ };
static char used[KINDS][MOST];
static int busy[KINDS], most[KINDS];
static unsigned long looks, finds; /* where one is free, and there is a list */

/* the loop of qmail-send.c; MOST: there is none */
static int find(int k)
{
  int i;

  for (i = free_first(kind[k],most[k]);i < most[k];i = free_next(kind[k],i,most[k])) {
    must(i >= 0,"a number below 0");
    if ((k != 3) && (busy[k] < most[k])) ++looks;
    if (!used[k][i]) break;
  }
  if ((k != 3) && (busy[k] < most[k])) ++finds;
  must((i < most[k]) == (busy[k] < most[k]),"one is free and not found, or none is free");
  return i;
}

int main(int argc, char **argv)
{
  unsigned long steps;
  unsigned int filling = 50;
  int forgets;
  int i;
  int k;

  if (argc != 5) return 2;
  below((unsigned int) atoi(argv[1]) + 1);
  steps = strtoul(argv[2],0,10);
  fails = atoi(argv[3]);
  forgets = atoi(argv[4]);
  for (k = 0;k < KINDS;++k) most[k] = 1 + (int) below(MOST);
  while (steps--) {
    ++turns;
    if (steps % 4000 == 0) filling = below(101);
    k = (int) below(KINDS);
    if (below(100) < filling) {
      i = find(k);
      if (below(4) == 0) continue; /* job_avail() only looks, and del_start() may have no memory */
      if (busy[k] == most[k]) continue;
      free_take(kind[k],i);
      used[k][i] = 1;
      ++busy[k];
      continue;
    }
    i = (int) below((unsigned int) most[k]);
    if (!used[k][i]) continue;
    used[k][i] = 0;
    --busy[k];
    if (!forgets || below((unsigned int) forgets)) free_give(kind[k],i);
  }
  for (k = 0;k < KINDS;++k)
    while (busy[k] < most[k]) {
      i = find(k);
      free_take(kind[k],i);
      used[k][i] = 1;
      ++busy[k];
    }
  for (k = 0;k < KINDS;++k)
    for (i = 0;i < most[k];++i) must(used[k][i],"a number was never given out");
  printf("%lu %lu\n",looks,finds);
  return 0;
}
