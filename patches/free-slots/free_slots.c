#include <stdlib.h>
#include "free_slots.h"

#define LISTS 64             /* jobs, and 63 channels; more are searched as before */
#define ROOM 256             /* numbers in a list at first; it doubles */
#ifndef ROOM_MAX
#define ROOM_MAX (1 << 21)
#endif

/* Each free number is in the list, or not below from; unless one was forgotten. */
static struct list {
  int *numbers;
  int count;
  int room;
  int from;
  int again; /* this loop has come to the end once, and goes through all numbers */
} lists[LISTS];

static int best(struct list *l, int most)
{
  while (l->count && (l->numbers[l->count - 1] >= most)) --l->count;
  if (l->count) return l->numbers[l->count - 1];
  if ((l->from >= most) && !l->again) {
    l->again = 1;
    l->from = 0;
  }
  return l->from;
}

int free_first(int which, int most)
{
  if (which >= LISTS) return 0;
  lists[which].again = 0;
  return best(lists + which,most);
}

/* number i is in use */
int free_next(int which, int i, int most)
{
  if (which >= LISTS) return i + 1;
  free_take(which,i);
  return best(lists + which,most);
}

void free_take(int which, int i)
{
  struct list *l;

  if (which >= LISTS) return;
  l = lists + which;
  if (l->count && (l->numbers[l->count - 1] == i)) --l->count;
  else if (l->from == i) ++l->from;
}

void free_give(int which, int i)
{
  struct list *l;
  int *numbers;
  int room;

  if (which >= LISTS) return;
  l = lists + which;
  if (l->count == l->room) {
    room = l->room ? l->room * 2 : ROOM;
    numbers = (room > ROOM_MAX) ? (int *) 0 : realloc(l->numbers,(size_t) room * sizeof(int));
    if (!numbers) {
      /* all are searched once, from 0 on */
      l->count = 0;
      l->from = 0;
      return;
    }
    l->numbers = numbers;
    l->room = room;
  }
  l->numbers[l->count++] = i;
}
