/*
 * select_set.h - an fd_set of SELECT_FDS descriptors for the select() that is
 * there.
 *
 * For C libraries on Linux whose fd_set cannot be made larger: musl's has 1024
 * bits, whatever is defined. The kernel has no such limit; it looks at as many
 * bits, in words of unsigned long, as select's first argument says. select.h
 * includes this file there, after the system's own headers. From then on
 * fd_set, FD_ZERO, FD_SET, FD_CLR, FD_ISSET and select are the ones below.
 */
#ifndef SELECT_SET_H
#define SELECT_SET_H

#ifdef __GNUC__
#define SELECT_UNUSED __attribute__((__unused__))
#else
#define SELECT_UNUSED
#endif

#define SELECT_BITS (8 * sizeof(unsigned long))

typedef struct {
  unsigned long bits[(SELECT_FDS + SELECT_BITS - 1) / SELECT_BITS];
} select_set;

SELECT_UNUSED static void select_zero(select_set *s)
{
  unsigned int i;

  for (i = 0;i < sizeof(s->bits) / sizeof(s->bits[0]);++i) s->bits[i] = 0;
}

/* The system's select. */
SELECT_UNUSED static int select_sets(int n,select_set *r,select_set *w,select_set *e,struct timeval *t)
{
  return select(n,(fd_set *) r,(fd_set *) w,(fd_set *) e,t);
}

#define SELECT_WORD(d) ((unsigned int) (d) / SELECT_BITS)
#define SELECT_BIT(d) (1UL << ((unsigned int) (d) % SELECT_BITS))

#undef fd_set
#define fd_set select_set
#undef FD_SETSIZE
#define FD_SETSIZE SELECT_FDS
#undef FD_ZERO
#define FD_ZERO(s) select_zero(s)
#undef FD_SET
#define FD_SET(d,s) ((void) ((s)->bits[SELECT_WORD(d)] |= SELECT_BIT(d)))
#undef FD_CLR
#define FD_CLR(d,s) ((void) ((s)->bits[SELECT_WORD(d)] &= ~SELECT_BIT(d)))
#undef FD_ISSET
#define FD_ISSET(d,s) (((s)->bits[SELECT_WORD(d)] & SELECT_BIT(d)) != 0)
#undef select
#define select select_sets

#endif
