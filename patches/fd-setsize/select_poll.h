/*
 * select_poll.h - an fd_set of any size, and a select() that waits with poll(2).
 *
 * For C libraries whose fd_set cannot be made larger: musl's has 1024 bits,
 * whatever is defined. select.h includes this file there, after the system's
 * own headers. From then on fd_set, FD_ZERO, FD_SET, FD_CLR, FD_ISSET and
 * select are the ones below, with these differences:
 *
 *   - A descriptor that has an error, has been hung up or is not open counts
 *     as ready for whatever was asked, so that whoever uses it sees that: poll
 *     returns for it in any case, and select must not then say that the time
 *     is over. For one that is not open select(2) fails with EBADF.
 *   - What is left of the time is not written back.
 *   - For more than SELECT_FEW descriptors in the sets, memory is taken once
 *     and kept. Without it select fails with ENOMEM.
 */
#ifndef SELECT_POLL_H
#define SELECT_POLL_H

#include <stddef.h>
#include <poll.h>

#ifdef __GNUC__
#define SELECT_UNUSED __attribute__((__unused__))
#else
#define SELECT_UNUSED
#endif

#define SELECT_BITS (8 * sizeof(unsigned long))

/* So many are waited for without memory: whatever is no spawner has fewer. */
#define SELECT_FEW 16

typedef struct {
  unsigned long bits[(SELECT_FDS + SELECT_BITS - 1) / SELECT_BITS];
} select_set;

#undef fd_set
#define fd_set select_set
#undef FD_SETSIZE
#define FD_SETSIZE SELECT_FDS
#undef FD_ZERO
#define FD_ZERO(s) select_zero(s)
#undef FD_SET
#define FD_SET(d,s) ((void) ((s)->bits[SELECT_INDEX(d)] |= SELECT_BIT(d)))
#undef FD_CLR
#define FD_CLR(d,s) ((void) ((s)->bits[SELECT_INDEX(d)] &= ~SELECT_BIT(d)))
#undef FD_ISSET
#define FD_ISSET(d,s) (((s)->bits[SELECT_INDEX(d)] & SELECT_BIT(d)) != 0)
#undef select
#define select select_poll

#define SELECT_INDEX(d) ((unsigned int) (d) / SELECT_BITS)
#define SELECT_BIT(d) (1UL << ((unsigned int) (d) % SELECT_BITS))

/* From stdlib.h, which must not be included here: old trees have functions of
 * their own with names that it declares. */
extern void *realloc(void *, size_t);

SELECT_UNUSED static void select_zero(select_set *s)
{
  unsigned int i;

  for (i = 0;i < sizeof(s->bits) / sizeof(s->bits[0]);++i) s->bits[i] = 0;
}

/* Word i of the union of the sets, each of which may be null. */
SELECT_UNUSED static unsigned long select_union(select_set *r,select_set *w,select_set *e,unsigned int i)
{
  return (r ? r->bits[i] : 0) | (w ? w->bits[i] : 0) | (e ? e->bits[i] : 0);
}

/* 1 if the descriptor was asked for in s, which may be null, and is ready;
 * else 0, and its bit is cleared. */
SELECT_UNUSED static int select_keep(select_set *s,struct pollfd *p,int events)
{
  if (!s || !FD_ISSET(p->fd,s)) return 0;
  if (p->revents & (events | POLLERR | POLLHUP | POLLNVAL)) return 1;
  FD_CLR(p->fd,s);
  return 0;
}

/* As select(2), but for what is said above. */
SELECT_UNUSED static int select_poll(int n,select_set *r,select_set *w,select_set *e,struct timeval *t)
{
  static struct pollfd *many = 0;
  static unsigned int room = 0;
  struct pollfd few[SELECT_FEW];
  struct pollfd *p;
  unsigned long word;
  unsigned int words;
  unsigned int len;
  unsigned int i;
  unsigned int d;
  int ms;
  int ready;

  if (n < 0) n = 0;
  if (n > SELECT_FDS) n = SELECT_FDS;
  words = (n + SELECT_BITS - 1) / SELECT_BITS;

  len = 0;
  for (i = 0;i < words;++i)
    for (word = select_union(r,w,e,i);word;word &= word - 1) ++len;
  p = few;
  if (len > SELECT_FEW) {
    if (len > room) {
      p = (struct pollfd *) realloc(many,2 * len * sizeof(struct pollfd));
      if (!p) return -1;
      many = p;
      room = 2 * len;
    }
    p = many;
  }

  len = 0;
  for (i = 0;i < words;++i) {
    word = select_union(r,w,e,i);
    for (d = i * SELECT_BITS;word;++d,word >>= 1)
      if ((word & 1) && d < (unsigned int) n) {
        p[len].fd = d;
        p[len].events = (r && FD_ISSET(d,r) ? POLLIN : 0)
                      | (w && FD_ISSET(d,w) ? POLLOUT : 0)
                      | (e && FD_ISSET(d,e) ? POLLPRI : 0);
        p[len++].revents = 0;
      }
  }

  /* poll takes milliseconds in an int: 24 days at most. Rounded up, so that it
   * does not return too early, again and again. */
  ms = -1;
  if (t)
    ms = t->tv_sec >= 2147483 ? 2147483000 : t->tv_sec * 1000 + (t->tv_usec + 999) / 1000;
  if (poll(p,len,ms) == -1) return -1;

  ready = 0;
  for (i = 0;i < len;++i)
    ready += select_keep(r,&p[i],POLLIN)
           + select_keep(w,&p[i],POLLOUT)
           + select_keep(e,&p[i],POLLPRI);
  return ready;
}

#endif
