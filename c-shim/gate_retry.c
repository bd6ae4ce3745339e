#include <sys/types.h>
#include <sys/time.h>
#include <stdlib.h>
#include <string.h>
#include "gate_retry.h"

#define SECONDS_MAX 3600

/* ---- time: tenths of a second since the first look at the clock, so that 32 bits last for 6 years */

static long clock_base = 0;

static long tenths(void)
{
  struct timeval tv;

  gettimeofday(&tv,(void *) 0);
  if (!clock_base) clock_base = (long) tv.tv_sec - 1;
  return ((long) tv.tv_sec - clock_base) * 10 + tv.tv_usec / 100000;
}

static long seconds(long tenth)
{
  return clock_base + tenth / 10;
}

/* ---- the jobs that run */

struct running {
  long back; /* tenths: when a busy recipient wants it back; 0 if none does */
  long skipped; /* seconds: the first retry time of the recipients passed over; 0 if none was */
  int flagfull; /* 1: a deferred recipient could not be remembered */
};

static struct running *running = 0;
static int numrunning = 0;

static struct running *running_get(int j)
{
  struct running *r;
  int n;

  if (j < 0) return 0;
  if (j >= numrunning) {
    n = j + j / 2 + 32;
    r = (struct running *) realloc(running,n * sizeof(struct running));
    if (!r) return 0;
    memset(r + numrunning,0,(n - numrunning) * sizeof(struct running));
    running = r;
    numrunning = n;
  }
  return running + j;
}

/* ---- the recipients that their own server deferred, by message */

struct deferred {
  unsigned long id;
  unsigned long mpos;
  long retry; /* seconds */
  unsigned int next; /* of its chain, or of the free ones; + 1 */
  int c;
};

#define CHAINS 4096

static struct deferred *deferred = 0;
static unsigned int numdeferred = 0; /* as allocated */
static unsigned int freedeferred = 0; /* index + 1 */
static unsigned int usedeferred = 0;
static unsigned int chain[CHAINS]; /* index + 1 */

static unsigned int *deferred_chain(unsigned long id)
{
  return chain + (id * 2654435761UL >> 7) % CHAINS;
}

/* the link to the record of this recipient, or to the end of the chain */
static unsigned int *deferred_find(int c, unsigned long id, unsigned long mpos)
{
  unsigned int *link;
  struct deferred *d;

  for (link = deferred_chain(id);*link;link = &d->next) {
    d = deferred + (*link - 1);
    if (d->id == id && d->mpos == mpos && d->c == c) break;
  }
  return link;
}

static void deferred_drop(unsigned int *link)
{
  unsigned int i;

  i = *link;
  *link = deferred[i - 1].next;
  deferred[i - 1].next = freedeferred;
  freedeferred = i;
  if (!--usedeferred) {
    free(deferred);
    deferred = 0;
    numdeferred = freedeferred = 0;
  }
}

static void deferred_dropjob(int c, unsigned long id)
{
  unsigned int *link;
  struct deferred *d;

  link = deferred_chain(id);
  while (*link) {
    d = deferred + (*link - 1);
    if (d->id == id && d->c == c) {
      deferred_drop(link);
      if (!deferred) return;
    }
    else
      link = &d->next;
  }
}

static int deferred_add(int c, unsigned long id, unsigned long mpos, long retry)
{
  struct deferred *d;
  unsigned int *link;
  unsigned int n;
  unsigned int i;

  link = deferred_find(c,id,mpos);
  if (!*link) {
    if (!freedeferred) {
      n = numdeferred ? numdeferred * 2 : 64;
      if (n > GATE_RETRY_MAX) return 0;
      d = (struct deferred *) realloc(deferred,n * sizeof(struct deferred));
      if (!d) return 0;
      deferred = d;
      for (i = numdeferred;i < n;++i) {
        d[i].next = freedeferred;
        freedeferred = i + 1;
      }
      numdeferred = n;
      link = deferred_find(c,id,mpos); /* the chains' links have moved */
    }
    i = freedeferred;
    d = deferred + (i - 1);
    freedeferred = d->next;
    d->id = id;
    d->mpos = mpos;
    d->c = c;
    d->next = 0;
    *link = i;
    ++usedeferred;
  }
  deferred[*link - 1].retry = retry;
  return 1;
}

/* ---- the jobs that are away: a heap per channel, the first to come back on top */

struct away {
  long when; /* tenths */
  unsigned long id;
};

struct heap {
  struct away *p;
  unsigned int len;
  unsigned int a;
};

static struct heap heap[GATE_RETRY_CHANNELS];

static int heap_insert(struct heap *h, long when, unsigned long id)
{
  struct away *p;
  unsigned int n;
  unsigned int i;
  unsigned int j;

  if (h->len == h->a) {
    n = h->a + h->a / 2 + 64;
    if (n < h->a || n > ((unsigned int) -1) / sizeof(struct away)) return 0;
    p = (struct away *) realloc(h->p,n * sizeof(struct away));
    if (!p) return 0;
    h->p = p;
    h->a = n;
  }
  for (j = h->len++;j;j = i) {
    i = (j - 1) / 2;
    if (h->p[i].when <= when) break;
    h->p[j] = h->p[i];
  }
  h->p[j].when = when;
  h->p[j].id = id;
  return 1;
}

static void heap_delmin(struct heap *h)
{
  struct away last;
  unsigned int i;
  unsigned int j;

  last = h->p[--h->len];
  if (!h->len) {
    free(h->p);
    h->p = 0;
    h->a = 0;
    return;
  }
  for (i = 0;(j = 2 * i + 1) < h->len;i = j) {
    if (j + 1 < h->len && h->p[j + 1].when < h->p[j].when) ++j;
    if (last.when <= h->p[j].when) break;
    h->p[i] = h->p[j];
  }
  h->p[i] = last;
}

/* ---- the calls */

void gate_retry_open(int j)
{
  struct running *r;

  r = running_get(j);
  if (!r) return;
  r->back = 0;
  r->skipped = 0;
  r->flagfull = 0;
}

int gate_retry_skip(int j, int c, unsigned long id, unsigned long mpos, long now)
{
  struct running *r;
  unsigned int *link;
  long retry;

  if (!usedeferred) return 0;
  link = deferred_find(c,id,mpos);
  if (!*link) return 0;
  retry = deferred[*link - 1].retry;
  r = running_get(j);
  if (retry <= now || !r) {
    deferred_drop(link);
    return 0;
  }
  if (!r->skipped || retry < r->skipped) r->skipped = retry;
  return 1;
}

/* 1..SECONDS_MAX, and *text what follows it and a space; 0: garbage */
static long busy_seconds(char *s, char **text)
{
  long n;
  unsigned int i;

  n = 0;
  for (i = 0;s[i] >= '0' && s[i] <= '9';++i) {
    n = n * 10 + (s[i] - '0');
    if (n > SECONDS_MAX) return 0;
  }
  if (!i || s[i] != ' ') return 0;
  *text = s + i + 1;
  return n;
}

void gate_retry_report(int j, int c, unsigned long id, unsigned long mpos, long natural, char *report)
{
  /* steps of 7 go through all ten tenths of a second before they repeat one, and neighbours end up far apart */
  static unsigned int phase = 0;
  struct running *r;
  char *text;
  long n;
  long when;

  if (*report == 'K' || *report == 'D') return;
  r = running_get(j);
  if (*report == 'B') {
    *report = 'Z';
    n = busy_seconds(report + 1,&text);
    if (n) {
      memmove(report + 1,text,strlen(text) + 1);
      if (!r) return;
      phase = (phase + 7) % 10;
      when = tenths() + n * 10 + phase;
      if (!r->back || when < r->back) r->back = when;
      return;
    }
  }
  if (r)
    if (!deferred_add(c,id,mpos,natural))
      r->flagfull = 1;
}

int gate_retry_close(int j, int c, unsigned long id, long *dt)
{
  struct running *r;
  long back;
  long skipped;
  int flagfull;

  r = running_get(j);
  back = r ? r->back : 0;
  skipped = r ? r->skipped : 0;
  flagfull = r ? r->flagfull : 1;

  if (back && seconds(back) >= *dt) back = 0;
  if (skipped && skipped >= *dt) skipped = 0;

  /* nobody wants it sooner, or somebody who was deferred would be tried too soon */
  if (flagfull || (!back && !skipped)) {
    if (usedeferred) deferred_dropjob(c,id);
    return 0;
  }
  if (back && (!skipped || seconds(back) < skipped)) {
    if (c >= 0 && c < GATE_RETRY_CHANNELS)
      if (heap_insert(&heap[c],back,id))
        return 1;
    *dt = seconds(back) + 1;
    return 0;
  }
  *dt = skipped;
  return 0;
}

int gate_retry_due(int c, unsigned long *id)
{
  struct heap *h;
  long now;

  if (c < 0 || c >= GATE_RETRY_CHANNELS) return 0;
  h = &heap[c];
  if (!h->len) return 0;
  now = tenths();
  /* further ahead than anything can be: the clock was set back */
  if (h->p[0].when > now && h->p[0].when <= now + (SECONDS_MAX + 2) * 10L) return 0;
  *id = h->p[0].id;
  heap_delmin(h);
  return 1;
}

long gate_retry_wakeup(long wakeup)
{
  int c;
  long when;

  for (c = 0;c < GATE_RETRY_CHANNELS;++c)
    if (heap[c].len) {
      /* qmail-send sleeps for whole seconds: one tenth too early would be a busy loop */
      when = seconds(heap[c].p[0].when) + 1;
      if (when < wakeup) wakeup = when;
    }
  return wakeup;
}

int gate_retry_flush(int c, unsigned long *id, long *dt)
{
  struct heap *h;

  if (c < 0 || c >= GATE_RETRY_CHANNELS) return 0;
  h = &heap[c];
  if (h->len) {
    *id = h->p[0].id;
    *dt = seconds(h->p[0].when);
    heap_delmin(h);
    return 1;
  }
  if (usedeferred) {
    free(deferred);
    deferred = 0;
    numdeferred = freedeferred = usedeferred = 0;
    memset(chain,0,sizeof(chain));
  }
  return 0;
}
