#include <sys/types.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "gate_retry.h"

#define SECONDS_MAX 3600
#define CALL_DELNUM 65535UL
#define ALL ((unsigned int) -1)

static long seconds(void)
{
  return (long) time((time_t *) 0);
}

/* ---- the jobs that run */

#define PASS_ALL 0 /* everybody */
#define PASS_CALLED 1 /* so many of the busy ones, from here on */
#define PASS_DEFERRED 2 /* the deferred ones whose time has come */

struct running {
  long due; /* since when */
  long back; /* when a busy recipient wants it back at the latest; 0 if none does */
  long deferred; /* the first retry time of the recipients that their own server deferred; 0 if there are none */
  unsigned long from; /* no busy one is before this */
  unsigned long start; /* where this pass begins */
  unsigned int queue; /* the one in which a busy recipient waits */
  unsigned int busy; /* how many of its recipients do */
  unsigned int called; /* how many of these were called before the job was closed */
  int c;
  unsigned int allowed; /* how many recipients may still be tried in this pass */
  unsigned int left; /* how many of busy this pass is not to see */
  int flagfull; /* 1: a deferred recipient could not be remembered */
  int pass; /* what it is over */
  int flagstop; /* 1: PASS_CALLED, and it has been stopped behind the last of them */
};

#define NOWHERE ((unsigned long) -1)

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
    for (;numrunning < n;++numrunning) {
      running[numrunning].allowed = ALL;
      running[numrunning].from = NOWHERE;
    }
  }
  return running + j;
}

/*
---- what is remembered of messages: how the pass over the called recipients goes, and the recipients that their own
server deferred. The latter by message and position, so that a message may have any number of them.
*/

struct message {
  unsigned long id;
  int pass; /* what the next one is to be; the six that follow are for that */
  unsigned int allowed;
  unsigned int left;
  unsigned int queue;
  unsigned long from;
  long back;
  long deferred;
  unsigned int first; /* of its deferred recipients */
  unsigned int next; /* of its chain, or of the free ones */
  int c;
};

struct deferred {
  unsigned long mpos;
  long retry; /* when to try it all the same */
  unsigned int message;
  unsigned int next; /* of its chain, or of the free ones */
  unsigned int nextof; /* of its message */
  unsigned int prevof;
};

/* indices are + 1, and 0 is none */

#define M(i) (message[(i) - 1])
#define D(i) (deferred[(i) - 1])

#define MCHAINS 4096
#define DCHAINS 16384

static struct message *message = 0;
static unsigned int nummessage = 0; /* as allocated */
static unsigned int freemessage = 0;
static unsigned int usemessage = 0;
static unsigned int mchain[MCHAINS];

static struct deferred *deferred = 0;
static unsigned int numdeferred = 0; /* as allocated */
static unsigned int freedeferred = 0;
static unsigned int usedeferred = 0;
static unsigned int dchain[DCHAINS];

static unsigned int *message_find(int c, unsigned long id)
{
  unsigned int *link;

  for (link = mchain + (id * 2654435761UL >> 7) % MCHAINS;*link;link = &M(*link).next)
    if (M(*link).id == id && M(*link).c == c) break;
  return link;
}

/* nothing is remembered of it any more */
static void message_drop(unsigned int *link)
{
  unsigned int m;

  m = *link;
  *link = M(m).next;
  M(m).next = freemessage;
  freemessage = m;
  if (!--usemessage) {
    free(message);
    message = 0;
    nummessage = freemessage = 0;
  }
}

/* its index; 0: no memory */
static unsigned int message_make(int c, unsigned long id)
{
  struct message *new;
  unsigned int *link;
  unsigned int n;
  unsigned int m;

  link = message_find(c,id);
  if (*link) return *link;
  if (!freemessage) {
    n = nummessage + nummessage / 2 + 64;
    if (n < nummessage || n > ((unsigned int) -1) / sizeof(struct message)) return 0;
    new = (struct message *) realloc(message,n * sizeof(struct message));
    if (!new) return 0;
    message = new;
    for (m = nummessage + 1;m <= n;++m) {
      M(m).next = freemessage;
      freemessage = m;
    }
    nummessage = n;
    link = message_find(c,id); /* the chain's links have moved */
  }
  m = freemessage;
  freemessage = M(m).next;
  ++usemessage;
  memset(&M(m),0,sizeof(struct message));
  M(m).id = id;
  M(m).c = c;
  *link = m;
  return m;
}

static unsigned int *deferred_find(unsigned int m, unsigned long mpos)
{
  unsigned int *link;

  for (link = dchain + ((m * 2654435761UL) ^ (mpos * 2246822519UL >> 5)) % DCHAINS;*link;link = &D(*link).next)
    if (D(*link).message == m && D(*link).mpos == mpos) break;
  return link;
}

static void deferred_drop(unsigned int *link)
{
  unsigned int i;

  i = *link;
  *link = D(i).next;
  if (D(i).nextof) D(D(i).nextof).prevof = D(i).prevof;
  if (D(i).prevof)
    D(D(i).prevof).nextof = D(i).nextof;
  else
    M(D(i).message).first = D(i).nextof;
  D(i).next = freedeferred;
  freedeferred = i;
  if (!--usedeferred) {
    free(deferred);
    deferred = 0;
    numdeferred = freedeferred = 0;
  }
}

static void forgetmessage(int c, unsigned long id)
{
  unsigned int *link;

  if (!usemessage) return;
  link = message_find(c,id);
  if (!*link) return;
  while (M(*link).first) deferred_drop(deferred_find(*link,D(M(*link).first).mpos));
  message_drop(link);
}

/* 0: no memory, or the table is full */
static int defer(int c, unsigned long id, unsigned long mpos, long retry)
{
  struct deferred *new;
  unsigned int *link;
  unsigned int n;
  unsigned int i;
  unsigned int m;

  m = message_make(c,id);
  if (!m) return 0;
  link = deferred_find(m,mpos);
  if (!*link) {
    if (!freedeferred) {
      n = numdeferred ? numdeferred * 2 : 64;
      new = 0;
      if (n <= GATE_RETRY_MAX) new = (struct deferred *) realloc(deferred,n * sizeof(struct deferred));
      if (!new) {
        if (!M(m).first && !M(m).pass) message_drop(message_find(c,id));
        return 0;
      }
      deferred = new;
      for (i = numdeferred + 1;i <= n;++i) {
        D(i).next = freedeferred;
        freedeferred = i;
      }
      numdeferred = n;
      link = deferred_find(m,mpos); /* the chain's links have moved */
    }
    i = freedeferred;
    freedeferred = D(i).next;
    ++usedeferred;
    D(i).mpos = mpos;
    D(i).message = m;
    D(i).next = 0;
    D(i).prevof = 0;
    D(i).nextof = M(m).first;
    if (M(m).first) D(M(m).first).prevof = i;
    M(m).first = i;
    *link = i;
  }
  D(*link).retry = retry;
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
  long back; /* as in struct running */
  long deferred;
  unsigned long from;
  unsigned long id;
  unsigned long serial; /* those that were due in the same second stay in order */
  unsigned int queue; /* the number of its queue */
  unsigned int busy; /* how many of its recipients wait */
  int c;
  int flagin; /* 1: it is in both orders. 0: it has been called, or is none */
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
static unsigned int enqueue(int c, unsigned long id, struct running *r, unsigned int busy)
{
  static unsigned long serial = 0;
  struct waiting *w;
  struct queue **q;
  unsigned int number;
  unsigned int n;
  unsigned int i;

  number = r->queue;
  if (!channel_make(c)) return 0;
  if (!freewaiting) {
    n = numwaiting + numwaiting / 2 + 64;
    if (n < numwaiting || n > ((unsigned int) -1) / sizeof(struct waiting)) return 0;
    w = (struct waiting *) realloc(waiting,n * sizeof(struct waiting));
    if (!w) return 0;
    waiting = w;
    for (i = numwaiting + 1;i <= n;++i) {
      W(i).flagin = 0;
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
  W(i).when = r->back;
  if (r->deferred && r->deferred < r->back) W(i).when = r->deferred;
  W(i).due = r->due;
  W(i).back = r->back;
  W(i).deferred = r->deferred;
  W(i).from = r->from == NOWHERE ? 0 : r->from;
  W(i).id = id;
  W(i).serial = ++serial;
  W(i).queue = number;
  W(i).busy = busy;
  W(i).c = c;
  W(i).flagin = 1;
  channel[c].top = meld(CLOCK,channel[c].top,i);
  (*q)->top = meld(QUEUE,(*q)->top,i);
  return i;
}

/* takes a job out of both orders */
static void unwait(int c, unsigned int i)
{
  struct queue **q;

  W(i).flagin = 0;
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

/* what the pass over this job is to be. Without memory it is over everybody. */
static void plan(int c, unsigned int i, int pass, unsigned int allowed)
{
  unsigned int m;

  m = message_make(c,W(i).id);
  if (!m) return;
  M(m).pass = pass;
  M(m).allowed = allowed;
  M(m).left = W(i).busy - allowed;
  M(m).queue = W(i).queue;
  M(m).from = W(i).from;
  M(m).back = W(i).back;
  M(m).deferred = W(i).deferred;
}

/* so many of its recipients are called, 1 or more */
static void call(int c, unsigned int i, unsigned int most)
{
  unwait(c,i);
  /* all of a message that begins with them: a pass like any other, which sees that it is done */
  if (W(i).busy > most || W(i).from) plan(c,i,PASS_CALLED,most);
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
  r->from = NOWHERE;
  r->allowed = ALL;
  if (!usemessage) return;
  link = message_find(c,id);
  if (!*link || !M(*link).pass) return;
  r->pass = M(*link).pass;
  r->back = M(*link).back;
  r->queue = M(*link).queue;
  if (r->pass == PASS_CALLED) {
    r->allowed = M(*link).allowed;
    r->busy = r->left = M(*link).left;
    r->start = M(*link).from;
    r->deferred = M(*link).deferred;
  }
  M(*link).pass = PASS_ALL;
  if (!M(*link).first) message_drop(link);
}

int gate_retry_from(int j, unsigned long *mpos)
{
  struct running *r;

  r = running_get(j);
  if (!r || r->pass != PASS_CALLED) return 0;
  *mpos = r->start;
  return 1;
}

int gate_retry_seek(int fd, unsigned long mpos)
{
  return lseek(fd,(off_t) mpos,SEEK_SET) != (off_t) -1;
}

int gate_retry_stop(int j, unsigned long mpos)
{
  struct running *r;

  r = running_get(j);
  if (!r || r->pass != PASS_CALLED || r->allowed) return 0;
  r->flagstop = 1;
  if (mpos < r->from) r->from = mpos;
  return 1;
}

static void sooner(long *when, long other)
{
  if (!*when || other < *when) *when = other;
}

int gate_retry_skip(int j, int c, unsigned long id, unsigned long mpos, long now)
{
  struct running *r;
  unsigned int *link;
  unsigned int *of;
  int was; /* deferred, until now */

  r = running_get(j);
  was = 0;
  if (usedeferred) {
    of = message_find(c,id);
    if (*of) {
      link = deferred_find(*of,mpos);
      if (*link) {
        if (r && D(*link).retry > now) {
          sooner(&r->deferred,D(*link).retry);
          return 1;
        }
        was = 1;
        deferred_drop(link);
        if (!M(*of).first && !M(*of).pass) message_drop(of);
      }
    }
  }
  if (!r) return 0;
  if (r->pass == PASS_CALLED) {
    if (!r->allowed) return 1;
    --r->allowed;
  }
  if (r->pass == PASS_DEFERRED && !was) {
    if (mpos < r->from) r->from = mpos;
    ++r->busy;
    return 1;
  }
  return 0;
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
      /* in the queue that promises the least */
      if (!r->back || back <= r->back) r->queue = (unsigned int) queue;
      sooner(&r->back,back);
      if (mpos < r->from) r->from = mpos;
      ++r->busy;
      return;
    }
  }
  if (r) {
    sooner(&r->deferred,natural);
    if (!defer(c,id,mpos,natural)) r->flagfull = 1;
  }
}

int gate_retry_close(int j, int c, unsigned long id, long *dt)
{
  struct running *r;
  unsigned int busy;
  unsigned int called;
  unsigned int i;

  r = running_get(j);
  if (!r || r->flagfull) {
    if (r) r->busy = r->called = 0;
    forgetmessage(c,id);
    return 0;
  }
  busy = r->busy;
  /* it came to the end of the file before it had seen as many as there should have been */
  if (r->pass == PASS_CALLED && !r->flagstop) busy -= r->left < busy ? r->left : busy;
  called = r->called < busy ? r->called : busy;
  r->busy = r->called = 0; /* no call looks for it here any more */
  if (!busy) r->back = 0;
  if (r->back) {
    if ((i = enqueue(c,id,r,busy))) {
      if (called) call(c,i,called);
      return 1;
    }
    /* a job that was only busy has not been tried: its natural retry time means nothing */
    *dt = r->back;
    if (r->deferred && r->deferred < *dt) *dt = r->deferred;
    return 0;
  }
  if (r->deferred && r->deferred < *dt) {
    *dt = r->deferred;
    return 0;
  }
  forgetmessage(c,id);
  /* whether it is done only a pass from the beginning sees */
  if (r->pass == PASS_CALLED && !r->deferred) *dt = seconds();
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
    /* the busy ones have not been called, nor is their time over */
    if (W(i).back > now && W(i).deferred && W(i).deferred <= now) plan(c,i,PASS_DEFERRED,0);
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

int gate_retry_alarm(int c, unsigned long *id, long *dt)
{
  static unsigned int at = 0; /* those up to here have been looked at */
  unsigned int i;
  long now;

  now = seconds();
  while (at < numwaiting) {
    i = ++at;
    if (!W(i).flagin || W(i).c != c || !W(i).deferred) continue;
    unwait(c,i);
    plan(c,i,PASS_DEFERRED,0);
    *id = W(i).id;
    *dt = W(i).due < now ? W(i).due : now;
    forget(i);
    return 1;
  }
  at = 0;
  if (usedeferred)
    for (i = 1;i <= numdeferred;++i) D(i).retry = 0;
  return 0;
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
  if (usemessage) {
    free(message);
    message = 0;
    nummessage = freemessage = usemessage = 0;
    memset(mchain,0,sizeof(mchain));
    free(deferred);
    deferred = 0;
    numdeferred = freedeferred = usedeferred = 0;
    memset(dchain,0,sizeof(dchain));
  }
  return 0;
}
