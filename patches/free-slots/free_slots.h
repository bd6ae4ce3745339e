/*
NAME
  free_slots.h - finds a free delivery number and a free job at a cost that does not grow with those in use

DESCRIPTION
  qmail-send looks for a free delivery number, and for a free job, from 0 on. With 30,000 in use that is most of what a
  delivery costs it. These functions remember what has become free. The last that did comes first.

  They only say where to look: the loops of qmail-send.c check each number, as before. So what they have forgotten (no
  memory, or a place that did not tell them) is found by a search through all numbers, and nothing is given out twice.

  A loop over the numbers below most:
    for (i = free_first(which,most);i < most;i = free_next(which,i,most))
  It ends in the body as soon as a free number is found. free_take() says that a number is in use, free_give() that it is
  free again.
*/
#ifndef FREE_SLOTS_H
#define FREE_SLOTS_H

/* which numbers: those of jobs, or delivery numbers of channel c: FREE_SLOTS + c */
#define FREE_JOBS 0
#define FREE_SLOTS 1

extern int free_first(int which, int most);
extern int free_next(int which, int i, int most);
extern void free_take(int which, int i);
extern void free_give(int which, int i);

#endif
