#include <sys/types.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "gate_retry.h"

#define SECONDS_MAX 3600
#define CALL_DELNUM 65535UL
#define ALL ((unsigned int) -1)

static long seconds(void)
{
  return (long) time((time_t *) 0);
}

/* ---- the jobs that run */

struct running {
  long due; /* since when */
  long back; /* when a busy recipient wants it back at the latest; 0 if none does */
  long deferred; /* the first retry time of the recipients that their own server deferred; 0 if there are none */
  unsigned int queue; /* the one in which a busy recipient waits */
  unsigned int busy; /* how many of its recipients do */
  unsigned int called; /* how many of these were called before the job was closed */
  int c;
  unsigned int allowed; /* how many of those that are remembered as busy may be tried */
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
    for (;numrunning < n;++numrunning) running[numrunning].allowed = ALL;
  }
  return running + j;
}

/*
---- the recipients that are not to be tried yet, by message: those that their own server deferred, and of those that are
busy all but the first of each job
*/

struct deferred {
  unsigned long id;
  unsigned long mpos; /* ALLOWANCE: queue is how many busy recipients of the job were called */
  long retry; /* when to try it all the same */
  unsigned int queue; /* where a busy one waits; 0: its own server deferred it */
  unsigned int next; /* of its chain, or of the free ones; + 1 */
  int c;
};

#define ALLOWANCE ((unsigned long) -1)

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

static int deferred_add(int c, unsigned long id, unsigned long mpos, long retry, unsigned int queue)
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
  deferred[*link - 1].queue = queue;
  return 1;
}

/*
---- the jobs that wait, each in two orders: that of the clock, and in its queue that of when it was due. Pairing heaps
(Fredman, Sedgewick, Sleator, Tarjan, Algorithmica 1, 1986), because a job leaves both when it is at the top of one.
Indices are + 1, and 0 is none.
*/

#define CLOCK 0
#define QUEUE 1

struct waiting {
  long when; /* it comes back at the latest */
  long due; /* it was first due */
  unsigned long id;
  unsigned long serial; /* those that were due in the same second stay in order */
  unsigned int queue; /* the number of its queue */
  unsigned int busy; /* how many of its recipients wait */
  struct {
    unsigned int child;
    unsigned int next;
    unsigned int prev; /* the sibling before it, or for the first its parent */
  } link[2];
};

static struct waiting *waiting = 0;
static unsigned int numwaiting = 0; /* as allocated */
static unsigned int freewaiting = 0; /* chained by link[CLOCK].next */
static unsigned int usewaiting = 0;

struct queue {
  unsigned int number;
  unsigned int top;
  struct queue *next;
};

#define QUEUES 1024

struct channel {
  unsigned int top; /* of CLOCK */
  unsigned int called; /* chained by link[CLOCK].next */
  unsigned int lastcalled;
  struct queue *queue[QUEUES];
};

/* as many as the tree has: the first job that waits on one makes room for it */
static struct channel *channel = 0;
static int numchannels = 0;

static int channel_make(int c)
{
  struct channel *n;

  if (c < 0) return 0;
  if (c < numchannels) return 1;
  if ((size_t) c >= ((size_t) -1) / sizeof(struct channel)) return 0;
  n = (struct channel *) realloc(channel,((size_t) c + 1) * sizeof(struct channel));
  if (!n) return 0;
  memset(n + numchannels,0,((size_t) c + 1 - numchannels) * sizeof(struct channel));
  channel = n;
  numchannels = c + 1;
  return 1;
}

#define W(i) (waiting[(i) - 1])

static int before(int order, unsigned int a, unsigned int b)
{
  if (order == CLOCK) {
    if (W(a).when != W(b).when) return W(a).when < W(b).when;
  }
  else if (W(a).due != W(b).due) return W(a).due < W(b).due;
  return W(a).serial < W(b).serial;
}

/* neither has siblings */
static unsigned int meld(int order, unsigned int a, unsigned int b)
{
  unsigned int t;

  if (!a) return b;
  if (!b) return a;
  if (before(order,b,a)) { t = a; a = b; b = t; }
  t = W(a).link[order].child;
  W(b).link[order].next = t;
  if (t) W(t).link[order].prev = b;
  W(b).link[order].prev = a;
  W(a).link[order].child = b;
  return a;
}

/* the siblings from first on, in pairs and then all of them */
static unsigned int meldall(int order, unsigned int first)
{
  unsigned int pairs;
  unsigned int top;
  unsigned int a;
  unsigned int b;

  pairs = 0;
  while (first) {
    a = first;
    b = W(a).link[order].next;
    first = b ? W(b).link[order].next : 0;
    W(a).link[order].next = W(a).link[order].prev = 0;
    if (b) W(b).link[order].next = W(b).link[order].prev = 0;
    a = meld(order,a,b);
    W(a).link[order].next = pairs;
    pairs = a;
  }
  top = 0;
  while (pairs) {
    a = pairs;
    pairs = W(a).link[order].next;
    W(a).link[order].next = 0;
    top = meld(order,top,a);
  }
  return top;
}

static void detach(int order, unsigned int *top, unsigned int i)
{
  unsigned int below;
  unsigned int prev;
  unsigned int next;

  below = meldall(order,W(i).link[order].child);
  W(i).link[order].child = 0;
  if (*top == i) {
    *top = below;
    return;
  }
  prev = W(i).link[order].prev;
  next = W(i).link[order].next;
  if (W(prev).link[order].child == i)
    W(prev).link[order].child = next;
  else
    W(prev).link[order].next = next;
  if (next) W(next).link[order].prev = prev;
  W(i).link[order].next = W(i).link[order].prev = 0;
  *top = meld(order,*top,below);
}

/* the link to the queue of this number, or to the end of its chain */
static struct queue **queue_find(int c, unsigned int number)
{
  struct queue **q;

  for (q = channel[c].queue + number % QUEUES;*q;q = &(*q)->next)
    if ((*q)->number == number) break;
  return q;
}

static void queue_drop(struct queue **q)
{
  struct queue *old;

  old = *q;
  *q = old->next;
  free(old);
}

/* the index of the job, as above; 0: no memory */
static unsigned int enqueue(int c, long when, long due, unsigned long id, unsigned int number, unsigned int busy)
{
  static unsigned long serial = 0;
  struct waiting *w;
  struct queue **q;
  unsigned int n;
  unsigned int i;

  if (!channel_make(c)) return 0;
  if (!freewaiting) {
    n = numwaiting + numwaiting / 2 + 64;
    if (n < numwaiting || n > ((unsigned int) -1) / sizeof(struct waiting)) return 0;
    w = (struct waiting *) realloc(waiting,n * sizeof(struct waiting));
    if (!w) return 0;
    waiting = w;
    for (i = numwaiting + 1;i <= n;++i) {
      W(i).link[CLOCK].next = freewaiting;
      freewaiting = i;
    }
    numwaiting = n;
  }
  q = queue_find(c,number);
  if (!*q) {
    *q = (struct queue *) malloc(sizeof(struct queue));
    if (!*q) return 0;
    (*q)->number = number;
    (*q)->top = 0;
    (*q)->next = 0;
  }
  i = freewaiting;
  freewaiting = W(i).link[CLOCK].next;
  ++usewaiting;
  memset(&W(i),0,sizeof(struct waiting));
  W(i).when = when;
  W(i).due = due;
  W(i).id = id;
  W(i).serial = ++serial;
  W(i).queue = number;
  W(i).busy = busy;
  channel[c].top = meld(CLOCK,channel[c].top,i);
  (*q)->top = meld(QUEUE,(*q)->top,i);
  return i;
}

/* takes a job out of both orders */
static void unwait(int c, unsigned int i)
{
  struct queue **q;

  detach(CLOCK,&channel[c].top,i);
  q = queue_find(c,W(i).queue);
  detach(QUEUE,&(*q)->top,i);
  if (!(*q)->top) queue_drop(q);
}

static void forget(unsigned int i)
{
  W(i).link[CLOCK].next = freewaiting;
  freewaiting = i;
  if (!--usewaiting) {
    free(waiting);
    waiting = 0;
    numwaiting = freewaiting = 0;
  }
}

/* so many of its recipients are called, 1 or more */
static void call(int c, unsigned int i, unsigned int most)
{
  unwait(c,i);
  /* without memory all of them come */
  if (W(i).busy > most) deferred_add(c,W(i).id,ALLOWANCE,0,most);
  if (channel[c].called)
    W(channel[c].lastcalled).link[CLOCK].next = i;
  else
    channel[c].called = i;
  channel[c].lastcalled = i;
  W(i).link[CLOCK].next = 0;
}

/* the first of those that were called; 0: none */
static unsigned int uncall(int c)
{
  unsigned int i;

  i = channel[c].called;
  if (i) channel[c].called = W(i).link[CLOCK].next;
  return i;
}

/* ---- the calls */

void gate_retry_open(int j, int c, unsigned long id, long dt)
{
  struct running *r;
  unsigned int *link;

  r = running_get(j);
  if (!r) return;
  memset(r,0,sizeof(*r));
  r->due = dt;
  r->c = c;
  r->allowed = ALL;
  if (usedeferred) {
    link = deferred_find(c,id,ALLOWANCE);
    if (*link) {
      r->allowed = deferred[*link - 1].queue;
      deferred_drop(link);
    }
  }
}

static void sooner(long *when, long other)
{
  if (!*when || other < *when) *when = other;
}

int gate_retry_skip(int j, int c, unsigned long id, unsigned long mpos, long now)
{
  struct running *r;
  struct deferred *d;
  unsigned int *link;

  if (!usedeferred) return 0;
  link = deferred_find(c,id,mpos);
  if (!*link) return 0;
  d = deferred + (*link - 1);
  r = running_get(j);
  if (d->retry <= now || !r) {
    deferred_drop(link);
    return 0;
  }
  if (!d->queue) {
    sooner(&r->deferred,d->retry);
    return 1;
  }
  if (r->allowed) {
    if (r->allowed != ALL) --r->allowed;
    deferred_drop(link);
    return 0;
  }
  sooner(&r->back,d->retry);
  r->queue = d->queue;
  ++r->busy;
  return 1;
}

/* the number at *s, which ends with the byte end, and *s behind that; 0: garbage */
static unsigned long number(char **s, char end, unsigned long most)
{
  unsigned long n;
  unsigned long digit;
  char *t;

  n = 0;
  for (t = *s;*t >= '0' && *t <= '9';++t) {
    digit = *t - '0';
    if (n > (most - digit) / 10) return 0;
    n = n * 10 + digit;
  }
  if (t == *s || *t != end) return 0;
  *s = t + 1;
  return n;
}

void gate_retry_report(int j, int c, unsigned long id, unsigned long mpos, long natural, char *report)
{
  struct running *r;
  char *text;
  unsigned long secs;
  unsigned long queue;
  long back;

  if (*report == 'K' || *report == 'D') return;
  r = running_get(j);
  if (*report == 'B') {
    *report = 'Z';
    text = report + 1;
    secs = number(&text,' ',SECONDS_MAX);
    queue = secs ? number(&text,' ',0xffffffffUL) : 0;
    if (queue) {
      memmove(report + 1,text,strlen(text) + 1);
      if (!r) return;
      back = seconds() + (long) secs;
      /* the first one is tried whenever the job is; without memory so are the others, and may be busy again */
      if (r->busy) deferred_add(c,id,mpos,back,(unsigned int) queue);
      /* in the queue that promises the least */
      if (!r->back || back <= r->back) r->queue = (unsigned int) queue;
      sooner(&r->back,back);
      ++r->busy;
      return;
    }
  }
  if (r) {
    sooner(&r->deferred,natural);
    if (!deferred_add(c,id,mpos,natural,0)) r->flagfull = 1;
  }
}

int gate_retry_close(int j, int c, unsigned long id, long *dt)
{
  struct running *r;
  unsigned int busy;
  unsigned int called;
  unsigned int i;
  long when;

  r = running_get(j);
  busy = called = 0;
  if (r) {
    busy = r->busy;
    called = r->called;
    r->busy = r->called = 0; /* no call looks for it here any more */
  }
  /* nobody wants it sooner, or somebody who was deferred would be tried too soon */
  if (!r || r->flagfull || (!r->back && (!r->deferred || r->deferred >= *dt))) {
    if (usedeferred) deferred_dropjob(c,id);
    return 0;
  }
  if (!r->back) {
    *dt = r->deferred;
    return 0;
  }
  /* a job that was only busy has not been tried: its natural retry time means nothing */
  when = r->back;
  if (r->deferred && r->deferred < when) when = r->deferred;
  if ((i = enqueue(c,when,r->due,id,r->queue,busy))) {
    if (called) call(c,i,called);
    return 1;
  }
  *dt = when;
  return 0;
}

int gate_retry_call(int c, unsigned long delnum, char *report)
{
  struct queue **q;
  struct running *r;
  unsigned long queue;
  unsigned long most;
  unsigned int busy;
  unsigned int i;
  int j;

  if (delnum != CALL_DELNUM || *report++ != 'R') return 0;
  queue = number(&report,' ',0xffffffffUL);
  most = queue ? number(&report,'\n',0xffffffffUL) : 0;
  if (!most) return 0;
  while (most && c >= 0 && c < numchannels) {
    q = queue_find(c,(unsigned int) queue);
    if (!*q) break;
    i = (*q)->top;
    busy = W(i).busy;
    call(c,i,busy < most ? busy : (unsigned int) most);
    most -= busy < most ? busy : most;
  }
  /* those whose job is still open: its pass has not seen the end of its recipients */
  for (j = 0;most && j < numrunning;++j) {
    r = running + j;
    if (!r->busy || r->c != c || r->queue != queue) continue;
    busy = r->busy - r->called;
    if (busy > most) busy = (unsigned int) most;
    r->called += busy;
    most -= busy;
  }
  return 1;
}

int gate_retry_due(int c, unsigned long *id, long *dt)
{
  unsigned int i;
  long now;

  if (c < 0 || c >= numchannels || !usewaiting) return 0;
  now = seconds();
  i = uncall(c);
  if (!i) {
    i = channel[c].top;
    if (!i) return 0;
    /* further ahead than anything can be: the clock was set back */
    if (W(i).when > now && W(i).when <= now + SECONDS_MAX) return 0;
    unwait(c,i);
  }
  *id = W(i).id;
  *dt = W(i).due < now ? W(i).due : now;
  forget(i);
  return 1;
}

long gate_retry_wakeup(long wakeup)
{
  int c;

  for (c = 0;c < numchannels;++c)
    if (channel[c].top)
      if (W(channel[c].top).when < wakeup) wakeup = W(channel[c].top).when;
  return wakeup;
}

int gate_retry_flush(int c, unsigned long *id, long *dt)
{
  unsigned int i;
  long now;

  i = 0;
  if (c >= 0 && c < numchannels) {
    i = uncall(c);
    if (!i) {
      i = channel[c].top;
      if (i) unwait(c,i);
    }
  }
  if (i) {
    now = seconds();
    *id = W(i).id;
    *dt = W(i).due < now ? W(i).due : now;
    forget(i);
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
