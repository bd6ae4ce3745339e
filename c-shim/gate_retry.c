#include <sys/types.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "gate_retry.h"

#define SECONDS_MAX 3600
#define RETRY_MAX 86400 /* qmail's own retry time is sooner, until a message is 50 days old; then it is this */
#define CALL_DELNUM 65535UL
#define TURN 256 /* so many a pass may hand out after one was busy, before it lets others go first */
#define STEPS 100 /* so many steps of a pass that hand out nobody are made at once */
#define DOMAIN_MAX 255
#define NOWHERE ((unsigned long) -1)

static long seconds(void)
{
  return (long) time((time_t *) 0);
}

static void sooner(long *when, long other)
{
  if (!*when || other < *when) *when = other;
}

/*
---- pools: arrays that grow, and are freed when nothing of them is used. An element is known by its index + 1, and 0 is none:
an address is good only until the next element is taken. Its first member chains it, to whatever it belongs.
*/

struct pool {
  char *all;
  unsigned int size; /* of an element */
  unsigned int most; /* of them */
  unsigned int num; /* as allocated */
  unsigned int idle; /* the first of those that are not used */
  unsigned int used;
};

#define NEXT(p,i) (*(unsigned int *) ((p).all + (size_t) ((i) - 1) * (p).size))

/* all zero but for its index; 0: no memory */
static unsigned int take(struct pool *p)
{
  char *all;
  unsigned int n;
  unsigned int i;

  if (!p->idle) {
    n = p->most - p->num < p->num / 2 + 64 ? p->most : p->num + p->num / 2 + 64;
    if (n == p->num || n > ((size_t) -1) / p->size) return 0;
    all = (char *) realloc(p->all,(size_t) n * p->size);
    if (!all) return 0;
    p->all = all;
    memset(all + (size_t) p->num * p->size,0,(size_t) (n - p->num) * p->size);
    for (i = n;i > p->num;--i) {
      NEXT(*p,i) = p->idle;
      p->idle = i;
    }
    p->num = n;
  }
  i = p->idle;
  p->idle = NEXT(*p,i);
  ++p->used;
  memset(&NEXT(*p,i),0,p->size);
  return i;
}

static void give(struct pool *p, unsigned int i)
{
  NEXT(*p,i) = p->idle;
  p->idle = i;
  if (!--p->used) {
    free(p->all);
    p->all = 0;
    p->num = p->idle = 0;
  }
}

/* ---- recipients, in chains: first in, first out */

struct place {
  unsigned int next;
  unsigned int mpos;
};

static struct pool places = { 0, sizeof(struct place), GATE_RETRY_MAX, 0, 0, 0 };

#define P(i) (((struct place *) places.all)[(i) - 1])

struct chain {
  unsigned int first;
  unsigned int last;
  unsigned int count;
};

/* 0: no memory, or the position is one that no file has */
static int chain_add(struct chain *to, unsigned long mpos)
{
  unsigned int i;

  if (mpos > 0xffffffffUL) return 0;
  i = take(&places);
  if (!i) return 0;
  P(i).mpos = (unsigned int) mpos;
  if (to->first) P(to->last).next = i;
  else to->first = i;
  to->last = i;
  ++to->count;
  return 1;
}

static unsigned long chain_pop(struct chain *of)
{
  unsigned long mpos;
  unsigned int i;

  i = of->first;
  mpos = P(i).mpos;
  of->first = P(i).next;
  --of->count;
  give(&places,i);
  return mpos;
}

static void chain_drop(struct chain *of)
{
  while (of->first) chain_pop(of);
}

/* all of it; then from is empty */
static void chain_move(struct chain *to, struct chain *from)
{
  if (!from->first) return;
  if (to->first) P(to->last).next = from->first;
  else to->first = from->first;
  to->last = from->last;
  to->count += from->count;
  memset(from,0,sizeof(*from));
}

/* its first n, fewer than it has; to is empty */
static void chain_cut(struct chain *to, struct chain *from, unsigned int n)
{
  to->first = from->first;
  to->count = n;
  from->count -= n;
  for (;n;--n) {
    to->last = from->first;
    from->first = P(to->last).next;
  }
  P(to->last).next = 0;
}

/* ---- messages of which something waits */

struct message {
  unsigned int next; /* of its hash chain */
  unsigned int parts; /* the first of those that wait */
  unsigned int plan; /* the first part that is to be passed over; chained by next */
  unsigned int lastplan;
  unsigned int numparts; /* all of them */
  unsigned int numlater; /* those that wait only for the clock */
  unsigned int open; /* how many of its jobs are */
  unsigned int later; /* the last part that began to wait for the clock alone; 0 if that waits no more */
  int c;
  int flagused;
  unsigned long id;
  long due; /* since when */
  long lost; /* when those that could not be remembered want to come back; 0: there are none */
};

static struct pool messages = { 0, sizeof(struct message), (unsigned int) -1, 0, 0, 0 };

#define M(i) (((struct message *) messages.all)[(i) - 1])
#define MCHAINS 4096

static unsigned int mchain[MCHAINS];

static unsigned int *message_find(int c, unsigned long id)
{
  unsigned int *link;

  for (link = mchain + (id * 2654435761UL >> 7) % MCHAINS;*link;link = &M(*link).next)
    if (M(*link).id == id && M(*link).c == c) break;
  return link;
}

/* 0: no memory */
static unsigned int message_make(int c, unsigned long id, long due)
{
  unsigned int *link;
  unsigned int m;

  link = message_find(c,id);
  if (*link) return *link;
  m = take(&messages);
  if (!m) return 0;
  M(m).c = c;
  M(m).id = id;
  M(m).due = due;
  M(m).flagused = 1;
  *message_find(c,id) = m; /* the chain's links may have moved */
  return m;
}

static void message_drop(unsigned int m)
{
  unsigned int *link;

  link = message_find(M(m).c,M(m).id);
  *link = M(m).next;
  M(m).flagused = 0;
  give(&messages,m);
}

/*
---- parts of messages: recipients that wait for the same thing. Those that wait to be called are in two orders: that of the
clock, and in their queue that of when their messages were due. Pairing heaps (Fredman, Sedgewick, Sleator, Tarjan,
Algorithmica 1, 1986), because a part leaves both when it is at the top of one.
*/

#define CLOCK 0
#define QUEUE 1

#define BUSY 1 /* waits to be called; in both orders */
#define LATER 2 /* waits for the clock alone */
#define ASKED 3 /* the gate is to be asked for them, or has been */
#define CALLED 4 /* is to be passed over */
#define REST 5 /* the same, and not a list: from here on to the end of the file */

struct part {
  unsigned int next; /* of those that are called, asked or planned */
  unsigned int message;
  unsigned int nextof; /* of its message */
  unsigned int prevof;
  unsigned int nextlike; /* of the hash chain */
  unsigned int queue;
  unsigned int asks; /* the part that is being filled to be asked for; 0: there is none */
  int state;
  struct chain chain;
  int flagbehind; /* others go first */
  unsigned long serial; /* those that were due in the same second stay in order */
  unsigned long pass; /* the last one in which somebody was busy */
  unsigned long from; /* of a REST */
  long due; /* since when; of those that their own server has deferred, since they were to be tried again */
  long when; /* it comes back at the latest */
  char *domain; /* of an ASKED */
  struct {
    unsigned int child;
    unsigned int next;
    unsigned int prev; /* the sibling before it, or for the first its parent */
  } link[2];
};

static struct pool parts = { 0, sizeof(struct part), (unsigned int) -1, 0, 0, 0 };

#define W(i) (((struct part *) parts.all)[(i) - 1])
#define WCHAINS 16384

static unsigned int wchain[WCHAINS]; /* those that are BUSY, by message, queue and when they were due */

struct queue {
  unsigned int number;
  unsigned int top;
  struct queue *next;
};

#define QUEUES 1024

struct fifo {
  unsigned int first;
  unsigned int last;
};

struct channel {
  unsigned int top; /* of CLOCK */
  unsigned int told; /* for these the gate has been asked, and has not answered */
  struct fifo asked; /* for these it is to be asked */
  struct fifo called;
  struct queue *queue[QUEUES];
};

/* as many as the tree has: the first part that waits on one makes room for it */
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

static void fifo_put(struct fifo *f, unsigned int i)
{
  W(i).next = 0;
  if (f->first) W(f->last).next = i;
  else f->first = i;
  f->last = i;
}

/* 0: there is none */
static unsigned int fifo_get(struct fifo *f)
{
  unsigned int i;

  i = f->first;
  if (i) f->first = W(i).next;
  return i;
}

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

/* 0: no memory */
static unsigned int part_make(unsigned int m, long due)
{
  unsigned int i;

  i = take(&parts);
  if (!i) return 0;
  W(i).message = m;
  W(i).due = due;
  W(i).nextof = M(m).parts;
  if (M(m).parts) W(M(m).parts).prevof = i;
  M(m).parts = i;
  ++M(m).numparts;
  return i;
}

/* it is in no order, and its chain has been taken over */
static void part_drop(unsigned int i)
{
  unsigned int m;

  m = W(i).message;
  if (W(i).nextof) W(W(i).nextof).prevof = W(i).prevof;
  if (W(i).prevof)
    W(W(i).prevof).nextof = W(i).nextof;
  else
    M(m).parts = W(i).nextof;
  --M(m).numparts;
  free(W(i).domain);
  give(&parts,i);
}

/* to the part of a message that waits in a queue since it was due then, or to the end of its chain */
static unsigned int *busy_find(unsigned int m, unsigned int queue, long due)
{
  unsigned int *link;

  link = wchain + (m * 2654435761UL ^ queue * 40503UL ^ (unsigned long) due * 69069UL) % WCHAINS;
  for (;*link;link = &W(*link).nextlike)
    if (W(*link).message == m && W(*link).queue == queue && W(*link).due == due) break;
  return link;
}

static unsigned long serial = 0;

/* by the clock alone */
static void wait_later(unsigned int i, long when)
{
  int c;

  c = M(W(i).message).c;
  W(i).state = LATER;
  W(i).when = when;
  W(i).serial = ++serial;
  channel[c].top = meld(CLOCK,channel[c].top,i);
  ++M(W(i).message).numlater;
}

/* 0: no memory. There is room for the channel, and none like it. */
static int wait_called(unsigned int i, unsigned int queue, long when)
{
  struct queue **q;
  int c;

  c = M(W(i).message).c;
  q = queue_find(c,queue);
  if (!*q) {
    *q = (struct queue *) malloc(sizeof(struct queue));
    if (!*q) return 0;
    (*q)->number = queue;
    (*q)->top = 0;
    (*q)->next = 0;
  }
  W(i).state = BUSY;
  W(i).queue = queue;
  W(i).when = when;
  W(i).serial = ++serial;
  W(i).nextlike = 0;
  *busy_find(W(i).message,queue,W(i).due) = i;
  channel[c].top = meld(CLOCK,channel[c].top,i);
  (*q)->top = meld(QUEUE,(*q)->top,i);
  return 1;
}

/* it waits for the latest time that was asked for: until then the gate knows of it */
static void wait_longer(unsigned int i, long when)
{
  unsigned int *top;

  if (when <= W(i).when) return;
  top = &channel[M(W(i).message).c].top;
  detach(CLOCK,top,i);
  W(i).when = when;
  *top = meld(CLOCK,*top,i);
}

/* takes a part that is BUSY or LATER out of its orders */
static void unwait(unsigned int i)
{
  struct queue **q;
  unsigned int *link;
  int c;

  c = M(W(i).message).c;
  detach(CLOCK,&channel[c].top,i);
  if (W(i).state == LATER) {
    --M(W(i).message).numlater;
    if (M(W(i).message).later == i) M(W(i).message).later = 0;
  }
  else {
    q = queue_find(c,W(i).queue);
    detach(QUEUE,&(*q)->top,i);
    if (!(*q)->top) queue_drop(q);
    link = busy_find(W(i).message,W(i).queue,W(i).due);
    *link = W(i).nextlike;
  }
  W(i).state = CALLED;
}

/* it is in no order */
static void call(unsigned int i)
{
  W(i).state = CALLED;
  fifo_put(&channel[M(W(i).message).c].called,i);
}

/* ---- in which queues the mail of domains has waited: a pass asks again before it relies on that */

#define DOMAINS 16384

static struct { unsigned long hash; unsigned int queue; } *domains = 0;

/* the domain of an address, and its hash; 0: there is none, or it is too long */
static char *domain_of(char *recip, unsigned long *hash)
{
  char *domain;
  char *s;
  unsigned char ch;

  domain = strrchr(recip,'@');
  if (!domain) return 0;
  ++domain;
  *hash = 2166136261UL; /* FNV-1a */
  for (s = domain;*s;++s) {
    if (s - domain == DOMAIN_MAX) return 0;
    ch = (unsigned char) *s;
    if (ch >= 'A' && ch <= 'Z') ch += 32;
    *hash = ((*hash ^ ch) * 16777619UL) & 0xffffffffUL;
  }
  return domain;
}

/* 0: not known */
static unsigned int domain_queue(unsigned long hash)
{
  if (!domains || domains[hash % DOMAINS].hash != hash) return 0;
  return domains[hash % DOMAINS].queue;
}

static void domain_learn(unsigned long hash, unsigned int queue)
{
  if (!domains) {
    domains = malloc(DOMAINS * sizeof(*domains));
    if (!domains) return;
    memset(domains,0,DOMAINS * sizeof(*domains));
  }
  domains[hash % DOMAINS].hash = hash;
  domains[hash % DOMAINS].queue = queue;
}

/* ---- the jobs that run */

#define PASS_NONE 0 /* nobody, or nobody any more: so is one that was begun when there was no memory */
#define PASS_ALL 1 /* everybody, from the beginning */
#define PASS_LIST 2 /* these */
#define PASS_REST 3 /* everybody from here on */

struct running {
  struct chain list; /* of a PASS_LIST, those that are still to come */
  struct chain deferred; /* those that their own server has deferred */
  long due; /* since when */
  long natural; /* the first retry time of those; 0 if there are none */
  long lost; /* when those that could not be remembered want to come back; 0 if there are none */
  unsigned long at; /* where the pass goes on; NOWHERE if it has to look */
  unsigned long seen; /* where it was at the last step */
  unsigned long serial; /* of the pass; 0: there was no memory when it began */
  unsigned int message; /* 0: nothing of it waits */
  unsigned int handed; /* how many were handed out since one was busy */
  unsigned int out; /* of how many there is no report yet */
  int pass; /* what it is over */
  int flagbusy; /* 1: one was */
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

static int flagstep = 0; /* the last step of a pass handed out nobody */

/* ---- the calls */

int gate_retry_open(int j, int c, unsigned long id, long dt)
{
  static unsigned long pass = 0;
  struct running *r;
  unsigned int m;
  unsigned int i;

  r = running_get(j);
  /* without memory it is over nobody, if anything waits: this message might */
  if (!r) return messages.used ? 1 : 0;
  chain_drop(&r->list);
  chain_drop(&r->deferred);
  memset(r,0,sizeof(*r));
  r->due = dt;
  r->at = r->seen = NOWHERE;
  r->serial = ++pass;
  r->pass = PASS_ALL;
  if (!messages.used) return 0;
  m = *message_find(c,id);
  if (!m) return 0;
  r->message = m;
  ++M(m).open;
  i = M(m).plan;
  if (!i) {
    r->pass = PASS_NONE;
    return 1;
  }
  M(m).plan = W(i).next;
  r->due = W(i).due; /* SIGALRM has made everything in pqchan due now */
  if (W(i).state == REST) {
    r->pass = PASS_REST;
    r->at = W(i).from;
  }
  else {
    r->pass = PASS_LIST;
    chain_move(&r->list,&W(i).chain);
  }
  part_drop(i);
  return 1;
}

/* the rest of a pass goes on behind others. 0: no memory. */
static int yield(struct running *r, unsigned long mpos)
{
  unsigned int i;

  i = part_make(r->message,r->due);
  if (!i) return 0;
  W(i).flagbehind = 1;
  call(i);
  if (r->pass == PASS_LIST)
    chain_move(&W(i).chain,&r->list);
  else {
    W(i).state = REST;
    W(i).from = mpos;
  }
  r->pass = PASS_NONE;
  return 1;
}

/*
To where a recipient begins; 0: it cannot. If none begins there, this is another file than it was: the message was removed
by somebody else than qmail-send, and another one has its number. Then what is remembered of it here means nothing.
*/
static int seek(struct running *r, int fd, unsigned long mpos)
{
  char ch;

  if (lseek(fd,(off_t) (mpos ? mpos - 1 : 0),SEEK_SET) == (off_t) -1) return 0;
  if (!mpos) return 1;
  switch(read(fd,&ch,1)) {
    case -1: return 0;
    case 1: if (!ch) return 1;
  }
  chain_drop(&r->list);
  r->pass = PASS_ALL; /* and it does not come to the end */
  return 0;
}

int gate_retry_next(int j, int fd, unsigned long *mpos)
{
  struct running *r;

  r = running_get(j);
  if (!r) return messages.used ? 2 : 0;
  flagstep = *mpos != r->seen;
  r->seen = *mpos;
  if (r->pass == PASS_NONE) return 2;
  if (r->pass == PASS_REST && r->at != NOWHERE) {
    if (!seek(r,fd,r->at)) return 2;
    *mpos = r->seen = r->at;
    r->at = NOWHERE;
    return 1;
  }
  if (r->pass == PASS_LIST) {
    if (r->at == *mpos) return 0; /* it has not been read */
    if (r->at != NOWHERE && r->list.first) chain_pop(&r->list);
    r->at = NOWHERE;
    if (!r->list.first) return 2;
  }
  if (r->handed >= TURN) {
    if (yield(r,*mpos)) return 2;
    r->handed = 0;
  }
  if (r->pass != PASS_LIST) return 0;
  r->at = P(r->list.first).mpos;
  if (r->at == *mpos) return 0;
  if (!seek(r,fd,r->at)) return 2;
  *mpos = r->seen = r->at;
  return 1;
}

/* 0: no memory */
static int park(struct running *r, unsigned int busy, unsigned long mpos, char *domain)
{
  unsigned int i;

  i = W(busy).asks;
  if (!i) {
    i = part_make(r->message,r->due);
    if (!i) return 0;
    W(i).domain = malloc(strlen(domain) + 1);
    if (!W(i).domain || !chain_add(&W(i).chain,mpos)) {
      part_drop(i);
      return 0;
    }
    strcpy(W(i).domain,domain);
    W(i).state = ASKED;
    W(i).queue = W(busy).queue;
    W(busy).asks = i;
    fifo_put(&channel[M(r->message).c].asked,i);
    return 1;
  }
  return chain_add(&W(i).chain,mpos);
}

int gate_retry_skip(int j, unsigned long mpos, char *recip)
{
  struct running *r;
  char *domain;
  unsigned long hash;
  unsigned int queue;
  unsigned int i;

  r = running_get(j);
  if (r && r->flagbusy && r->message) {
    domain = domain_of(recip,&hash);
    queue = domain ? domain_queue(hash) : 0;
    i = queue ? *busy_find(r->message,queue,r->due) : 0;
    if (i && W(i).pass == r->serial)
      if (park(r,i,mpos,domain)) return 1;
    ++r->handed;
  }
  if (r) ++r->out;
  flagstep = 0;
  return 0;
}

int gate_retry_again(void)
{
  static int steps = 0;

  if (flagstep && ++steps < STEPS) {
    flagstep = 0;
    return 1;
  }
  steps = 0;
  return 0;
}

static char *digits(char *end, unsigned long n)
{
  do *--end = (char) ('0' + n % 10); while (n /= 10);
  return end;
}

int gate_retry_tell(int c, unsigned long *id, char **recip)
{
  static char text[24 + DOMAIN_MAX];
  unsigned int busy;
  unsigned int i;

  if (c < 0 || c >= numchannels || channel[c].told) return 0;
  i = fifo_get(&channel[c].asked);
  if (!i) return 0;
  channel[c].told = i;
  busy = *busy_find(W(i).message,W(i).queue,W(i).due);
  if (busy && W(busy).asks == i) W(busy).asks = 0; /* those that come now are asked for anew */
  text[20] = '@';
  strcpy(text + 21,W(i).domain);
  *recip = digits(text + 20,W(i).chain.count);
  *id = M(W(i).message).id;
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

/* what follows the B of a report; *text behind the numbers. The queue; 0: garbage. */
static unsigned int busy_numbers(char **text, long *back)
{
  unsigned long secs;
  unsigned long queue;

  secs = number(text,' ',SECONDS_MAX);
  queue = secs ? number(text,' ',0xffffffffUL) : 0;
  if (queue) *back = seconds() + (long) secs;
  return (unsigned int) queue;
}

/* a recipient of job j is busy. 0: no memory. */
static int busy(struct running *r, int c, unsigned long id, unsigned long mpos, unsigned int queue, long back)
{
  unsigned int i;

  if (!r->message) {
    if (!channel_make(c)) return 0;
    r->message = message_make(c,id,r->due);
    if (!r->message) return 0;
    ++M(r->message).open;
  }
  i = *busy_find(r->message,queue,r->due);
  if (i) {
    if (!chain_add(&W(i).chain,mpos)) return 0;
    wait_longer(i,back);
  }
  else {
    i = part_make(r->message,r->due);
    if (!i) return 0;
    if (!chain_add(&W(i).chain,mpos)) {
      part_drop(i);
      return 0;
    }
    if (!wait_called(i,queue,back)) {
      chain_drop(&W(i).chain);
      part_drop(i);
      return 0;
    }
  }
  W(i).pass = r->serial;
  return 1;
}

void gate_retry_report(int j, int c, unsigned long id, unsigned long mpos, long natural, char *recip, char *report)
{
  struct running *r;
  char *text;
  unsigned long hash;
  unsigned int queue;
  long back;

  r = running_get(j);
  if (r && r->out) --r->out;
  if (*report == 'K' || *report == 'D') return;
  if (*report == 'B') {
    *report = 'Z';
    text = report + 1;
    queue = busy_numbers(&text,&back);
    if (queue) {
      memmove(report + 1,text,strlen(text) + 1);
      if (!r) return;
      if (!busy(r,c,id,mpos,queue,back)) {
        sooner(&r->lost,back);
        return;
      }
      r->flagbusy = 1;
      if (domain_of(recip,&hash)) domain_learn(hash,queue);
      return;
    }
  }
  if (r) {
    if (chain_add(&r->deferred,mpos)) sooner(&r->natural,natural);
    else sooner(&r->lost,natural);
  }
}

int gate_retry_close(int j, int flaghiteof, long *dt)
{
  struct running *r;
  unsigned int m;
  unsigned int i;
  long lost;
  long back;

  r = running_get(j);
  if (!r) return 0;
  m = r->message;
  lost = r->lost;
  r->message = 0;
  r->lost = 0;
  if (!m) {
    /* nobody was busy: as without the gate */
    chain_drop(&r->deferred);
    if (lost && lost < *dt) *dt = lost;
    return 0;
  }
  if (flaghiteof && r->list.first) {
    /* another file, as in seek() */
    chain_drop(&r->list);
    sooner(&lost,*dt);
  }
  /* The file could not be read to its end, or qmail-send had no memory to start a delivery. Which recipients these are is not known. */
  if (r->out || (!flaghiteof && (r->pass == PASS_ALL || r->pass == PASS_REST || !r->serial))) sooner(&lost,*dt);
  if (r->list.first) {
    /* the file could not be read */
    sooner(&r->natural,*dt);
    chain_move(&r->deferred,&r->list);
  }
  if (r->deferred.first) {
    back = r->natural;
    sooner(&back,seconds() + RETRY_MAX);
    i = M(m).later;
    if (i && W(i).when == back) chain_move(&W(i).chain,&r->deferred);
    else if ((i = part_make(m,back))) {
      chain_move(&W(i).chain,&r->deferred);
      wait_later(i,back);
      M(m).later = i;
    }
    else {
      sooner(&lost,back);
      chain_drop(&r->deferred);
    }
  }
  if (lost) sooner(&M(m).lost,lost);
  --M(m).open;
  if (M(m).open || M(m).numparts > M(m).numlater) return 1;
  if (M(m).numparts && !M(m).lost) return 1;
  /* all have been tried; those that wait for the clock come along with those that could not be remembered */
  while ((i = M(m).parts)) {
    unwait(i);
    chain_drop(&W(i).chain);
    part_drop(i);
  }
  *dt = M(m).lost ? M(m).lost : seconds();
  message_drop(m);
  return 0;
}

/* the gate's answer to what gate_retry_tell has asked */
static void answer(int c, char *report)
{
  unsigned int queue;
  unsigned int known;
  unsigned int i;
  long back;

  i = channel[c].told;
  channel[c].told = 0;
  free(W(i).domain);
  W(i).domain = 0;
  queue = 0;
  if (*report++ == 'B') queue = busy_numbers(&report,&back);
  if (!queue) {
    call(i);
    return;
  }
  known = *busy_find(W(i).message,queue,W(i).due);
  if (known) {
    chain_move(&W(known).chain,&W(i).chain);
    wait_longer(known,back);
    part_drop(i);
  }
  else if (!wait_called(i,queue,back)) wait_later(i,back);
}

int gate_retry_call(int c, unsigned long delnum, char *report)
{
  struct queue **q;
  char *text;
  unsigned long queue;
  unsigned long most;
  unsigned int i;
  unsigned int cut;

  if (delnum != CALL_DELNUM) return 0;
  text = report + 1;
  queue = *report == 'R' ? number(&text,' ',0xffffffffUL) : 0;
  most = queue ? number(&text,'\n',0xffffffffUL) : 0;
  if (!most) {
    if (c < 0 || c >= numchannels || !channel[c].told) return 0;
    answer(c,report);
    return 1;
  }
  while (most && c >= 0 && c < numchannels) {
    q = queue_find(c,(unsigned int) queue);
    if (!*q) break;
    i = (*q)->top;
    if (W(i).chain.count > most && (cut = part_make(W(i).message,W(i).due))) {
      chain_cut(&W(cut).chain,&W(i).chain,(unsigned int) most);
      call(cut);
      break;
    }
    /* without memory all of them */
    most -= W(i).chain.count < most ? W(i).chain.count : most;
    unwait(i);
    call(i);
  }
  return 1;
}

int gate_retry_due(int c, unsigned long *id, long *dt)
{
  unsigned int m;
  unsigned int i;
  long now;

  if (c < 0 || c >= numchannels || !parts.used) return 0;
  now = seconds();
  i = fifo_get(&channel[c].called);
  if (!i) {
    i = channel[c].top;
    if (!i) return 0;
    /* further ahead than anything can be: the clock was set back */
    if (W(i).when > now && W(i).when <= now + (W(i).state == LATER ? RETRY_MAX : SECONDS_MAX)) return 0;
    unwait(i);
  }
  m = W(i).message;
  W(i).next = 0;
  if (M(m).plan) W(M(m).lastplan).next = i;
  else M(m).plan = i;
  M(m).lastplan = i;
  *id = M(m).id;
  *dt = W(i).due < now && !W(i).flagbehind ? W(i).due : now;
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
  static unsigned int at = 0; /* messages up to here have been looked at */
  unsigned int i;

  while (at < messages.num) {
    if (M(at + 1).flagused && M(at + 1).c == c && M(at + 1).numlater)
      for (i = M(at + 1).parts;i;i = W(i).nextof)
        if (W(i).state == LATER) {
          unwait(i);
          call(i);
          return gate_retry_due(c,id,dt);
        }
    ++at;
  }
  at = 0;
  return 0;
}

int gate_retry_flush(int c, unsigned long *id, long *dt)
{
  static unsigned int at = 0; /* messages up to here have been looked at */
  unsigned int m;
  unsigned int i;
  long now;

  if (c < 0 || c >= numchannels) return 0;
  channel[c].called.first = channel[c].asked.first = channel[c].told = 0;
  now = seconds();
  while (at < messages.num) {
    m = ++at;
    /* with a plan it is in pqchan */
    if (!M(m).flagused || M(m).c != c || M(m).plan || !M(m).parts) continue;
    *id = M(m).id;
    *dt = M(m).due < now ? M(m).due : now;
    if (M(m).numparts == M(m).numlater && !M(m).open) *dt = W(M(m).parts).when;
    while ((i = M(m).parts)) {
      if (W(i).state == LATER && W(i).when < *dt) *dt = W(i).when;
      if (W(i).state == BUSY || W(i).state == LATER) unwait(i);
      chain_drop(&W(i).chain);
      part_drop(i);
    }
    if (!M(m).open) message_drop(m);
    return 1;
  }
  at = 0;
  return 0;
}
