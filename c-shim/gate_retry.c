/*
gate_retry.h says what this does. It is one subject and so one file: the tables below belong to one another, and every
call uses most of them. A patched tree also gets one file to compile, and not several.

  pools      arrays that grow, of everything below
  recipients their positions, in chains
  messages   those with recipients that wait, by channel and number
  parts      the recipients of a message that wait for the same thing; ordered by time and in queues
  domains    in which queue the mail of a domain waited last
  jobs       what the pass of a running job covers

The order of the sections is that of this list; the calls of gate_retry.h come last.
*/
#include <sys/types.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "gate_retry.h"

#define SECONDS_MAX 3600
#define RETRY_MAX 86400 /* longest wait of a deferred recipient; qmail's is shorter until a message is 50 days old */
#define CALL_DELNUM 65535UL
#define TURN 256 /* after a busy one, a pass hands out this many recipients and then lets other messages go first */
#define STEPS 100 /* steps of a pass without a delivery that are made at once, at most */
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
---- pools: arrays that grow, and are freed when no element is in use. The number of an element is its index + 1; 0 is
none. A pointer to an element is valid only until the next one is taken. The first member of an element is the number
of the next one in its chain.
*/

struct pool {
  char *all;
  unsigned int size; /* of an element, in bytes */
  unsigned int most; /* elements, at most */
  unsigned int num; /* elements that are allocated */
  unsigned int idle; /* the first one that is free */
  unsigned int used; /* elements in use */
};

#define NEXT(p,i) (*(unsigned int *) ((p).all + (size_t) ((i) - 1) * (p).size))

/* takes an element, all zero, and returns its number; 0: no memory */
static unsigned int pool_take(struct pool *p)
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

static void pool_put(struct pool *p, unsigned int i)
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

struct recip {
  unsigned int next;
  unsigned int mpos;
};

static struct pool recips = { 0, sizeof(struct recip), GATE_RETRY_MAX, 0, 0, 0 };

#define R(i) (((struct recip *) recips.all)[(i) - 1])

struct chain {
  unsigned int first;
  unsigned int last;
  unsigned int count;
};

/* 0: no memory, or mpos is beyond the end of any file */
static int chain_add(struct chain *to, unsigned long mpos)
{
  unsigned int i;

  if (mpos > 0xffffffffUL) return 0;
  i = pool_take(&recips);
  if (!i) return 0;
  R(i).mpos = (unsigned int) mpos;
  if (to->first) R(to->last).next = i;
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
  mpos = R(i).mpos;
  of->first = R(i).next;
  --of->count;
  pool_put(&recips,i);
  return mpos;
}

static void chain_drop(struct chain *of)
{
  while (of->first) chain_pop(of);
}

/* moves all of it; from is empty afterwards */
static void chain_move(struct chain *to, struct chain *from)
{
  if (!from->first) return;
  if (to->first) R(to->last).next = from->first;
  else to->first = from->first;
  to->last = from->last;
  to->count += from->count;
  memset(from,0,sizeof(*from));
}

/* moves its first n, which must be fewer than it has; to must be empty */
static void chain_cut(struct chain *to, struct chain *from, unsigned int n)
{
  to->first = from->first;
  to->count = n;
  from->count -= n;
  for (;n;--n) {
    to->last = from->first;
    from->first = R(to->last).next;
  }
  R(to->last).next = 0;
}

/* ---- messages with recipients that wait */

struct message {
  unsigned int next; /* of its hash chain */
  unsigned int parts; /* the first part */
  unsigned int plan; /* the first part that the next passes will try; chained by next */
  unsigned int lastplan;
  unsigned int numparts; /* parts */
  unsigned int numlater; /* parts that wait for the clock alone */
  unsigned int open; /* jobs that run */
  unsigned int later; /* the part that began last to wait for the clock alone; 0: it no longer waits */
  int c;
  int flagused;
  unsigned long id;
  long due; /* when the message was due */
  long lost; /* when to come back for recipients that could not be remembered; 0: there are none */
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

/* finds or makes it; 0: no memory */
static unsigned int message_make(int c, unsigned long id, long due)
{
  unsigned int *link;
  unsigned int m;

  link = message_find(c,id);
  if (*link) return *link;
  m = pool_take(&messages);
  if (!m) return 0;
  M(m).c = c;
  M(m).id = id;
  M(m).due = due;
  M(m).flagused = 1;
  *message_find(c,id) = m; /* pool_take may have moved the link */
  return m;
}

static void message_drop(unsigned int m)
{
  unsigned int *link;

  link = message_find(M(m).c,M(m).id);
  *link = M(m).next;
  M(m).flagused = 0;
  pool_put(&messages,m);
}

/*
---- parts of messages: recipients that wait for the same thing. A part that waits for a call is in two orders: by the
time when it comes back without a call, and within its queue by the time when its message was due. Both are pairing
heaps (Fredman, Sedgewick, Sleator, Tarjan, Algorithmica 1, 1986), because a part that is taken from the top of one must
leave the other from anywhere.
*/

#define CLOCK 0
#define QUEUE 1

#define BUSY 1 /* waits for a call; in both orders */
#define LATER 2 /* waits for the clock alone; only in the order CLOCK */
#define ASKED 3 /* the gate has been asked about it, or will be */
#define CALLED 4 /* the next pass tries it */
#define REST 5 /* the same, but not a list: everything from a position to the end of the file */

struct part {
  unsigned int next; /* in a fifo, or in the plan of its message */
  unsigned int message;
  unsigned int nextof; /* next part of the message */
  unsigned int prevof;
  unsigned int nextlike; /* of its hash chain */
  unsigned int queue;
  unsigned int filling; /* of a BUSY one: the ASKED part that collects more recipients; 0: none */
  int state;
  struct chain chain;
  int flagbehind; /* 1: other messages go first */
  unsigned long serial; /* keeps the order of parts that were due in the same second */
  unsigned long pass; /* the last pass in which a recipient of it was busy */
  unsigned long from; /* of a REST: the position */
  long due; /* when the message was due; of recipients that their own server deferred, their retry time */
  long when; /* comes back at this time at the latest */
  char *domain; /* of an ASKED one */
  struct {
    unsigned int child;
    unsigned int next;
    unsigned int prev; /* the sibling before it, or for the first its parent */
  } link[2];
};

static struct pool parts = { 0, sizeof(struct part), (unsigned int) -1, 0, 0, 0 };

#define W(i) (((struct part *) parts.all)[(i) - 1])
#define WCHAINS 16384

static unsigned int wchain[WCHAINS]; /* BUSY parts, by message, queue and due */

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
  unsigned int top; /* of the order CLOCK */
  unsigned int asking; /* the part about which the gate has been asked, until it answers; 0: none */
  struct fifo asked; /* parts about which the gate will be asked */
  struct fifo called;
  struct queue *queue[QUEUES];
};

/* as many as the tree has: the first part that waits on a channel makes room for it */
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

/* 0: it is empty */
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

/* joins two heaps whose tops have no siblings; returns the top */
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

/* joins first and its siblings: in pairs, then the pairs */
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

/* the link to the queue with this number, or the end of its hash chain */
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

  i = pool_take(&parts);
  if (!i) return 0;
  W(i).message = m;
  W(i).due = due;
  W(i).nextof = M(m).parts;
  if (M(m).parts) W(M(m).parts).prevof = i;
  M(m).parts = i;
  ++M(m).numparts;
  return i;
}

/* the part must be in no order, and its chain empty */
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
  pool_put(&parts,i);
}

/* the link to the BUSY part with this message, queue and due, or the end of its hash chain */
static unsigned int *busy_find(unsigned int m, unsigned int queue, long due)
{
  unsigned int *link;

  link = wchain + (m * 2654435761UL ^ queue * 40503UL ^ (unsigned long) due * 69069UL) % WCHAINS;
  for (;*link;link = &W(*link).nextlike)
    if (W(*link).message == m && W(*link).queue == queue && W(*link).due == due) break;
  return link;
}

static unsigned long serial = 0;

/* waits for the clock alone */
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

/* waits for a call. The channel must have room, and there must be no BUSY part like it. 0: no memory. */
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

/* the latest time of its reports counts: until then the gate remembers it */
static void wait_longer(unsigned int i, long when)
{
  unsigned int *top;

  if (when <= W(i).when) return;
  top = &channel[M(W(i).message).c].top;
  detach(CLOCK,top,i);
  W(i).when = when;
  *top = meld(CLOCK,*top,i);
}

/* takes a BUSY or LATER part out of its orders */
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

/* the next pass tries it; it must be in no order */
static void call(unsigned int i)
{
  W(i).state = CALLED;
  fifo_put(&channel[M(W(i).message).c].called,i);
}

/*
---- domains: in which queue the mail of a domain waited last. It is a cache: of two domains with the same slot the
newer stays, and a pass asks the gate before it relies on what it finds. Strangers choose the names, so their hash has a
secret key. Without one, a list member at a domain of his own, which has the hash of a large provider, could make the
mail to that provider wait in the queue of his domain.
*/

#define DOMAINS 16384

static struct { unsigned int hash; unsigned int queue; } *domains = 0;

static unsigned int domain_key[2];
static int flagkey = 0;

/* without /dev/urandom, what a stranger does not know exactly */
static void key_make(void)
{
  int fd;
  int r;

  flagkey = 1;
  fd = open("/dev/urandom",O_RDONLY);
  r = fd == -1 ? -1 : (int) read(fd,(char *) domain_key,sizeof(domain_key));
  if (fd != -1) close(fd);
  if (r == (int) sizeof(domain_key)) return;
  domain_key[0] = (unsigned int) seconds();
  domain_key[1] = (unsigned int) getpid();
}

/* one round of HalfSipHash */
static void sip_round(unsigned int *v)
{
#define ROTATE(x,n) ((x) = (x) << (n) | (x) >> (32 - (n)))
  v[0] += v[1]; ROTATE(v[1],5); v[1] ^= v[0]; ROTATE(v[0],16);
  v[2] += v[3]; ROTATE(v[3],8); v[3] ^= v[2];
  v[0] += v[3]; ROTATE(v[3],7); v[3] ^= v[0];
  v[2] += v[1]; ROTATE(v[1],13); v[1] ^= v[2]; ROTATE(v[2],16);
#undef ROTATE
}

static void sip_word(unsigned int *v, unsigned int word)
{
  v[3] ^= word;
  sip_round(v);
  sip_round(v);
  v[0] ^= word;
}

/* the domain of an address, and its hash: HalfSipHash-2-4 (Aumasson, Bernstein). 0: there is none, or it is too long */
static char *domain_of(char *recip, unsigned int *hash)
{
  char *domain;
  unsigned int v[4];
  unsigned int word;
  unsigned int n;
  unsigned char ch;

  domain = strrchr(recip,'@');
  if (!domain) return 0;
  ++domain;
  if (!flagkey) key_make();
  v[0] = domain_key[0];
  v[1] = domain_key[1];
  v[2] = 0x6c796765U ^ domain_key[0];
  v[3] = 0x74656462U ^ domain_key[1];
  word = 0;
  for (n = 0;domain[n];++n) {
    if (n == DOMAIN_MAX) return 0;
    ch = (unsigned char) domain[n];
    if (ch >= 'A' && ch <= 'Z') ch += 32;
    word |= (unsigned int) ch << 8 * (n % 4);
    if (n % 4 == 3) {
      sip_word(v,word);
      word = 0;
    }
  }
  sip_word(v,word | n << 24);
  v[2] ^= 0xff;
  for (n = 0;n < 4;++n) sip_round(v);
  *hash = v[1] ^ v[3];
  return domain;
}

/* 0: not known */
static unsigned int domain_queue(unsigned int hash)
{
  if (!domains || domains[hash % DOMAINS].hash != hash) return 0;
  return domains[hash % DOMAINS].queue;
}

static void domain_learn(unsigned int hash, unsigned int queue)
{
  if (!domains) {
    domains = malloc(DOMAINS * sizeof(*domains));
    if (!domains) return;
    memset(domains,0,DOMAINS * sizeof(*domains));
  }
  domains[hash % DOMAINS].hash = hash;
  domains[hash % DOMAINS].queue = queue;
}

/* ---- jobs that run */

#define PASS_NONE 0 /* no recipient, or none any more; also a pass that began without memory */
#define PASS_ALL 1 /* all recipients, from the beginning of the file */
#define PASS_LIST 2 /* those in list */
#define PASS_REST 3 /* all recipients from a position on */

struct running {
  struct chain list; /* of a PASS_LIST: the recipients still to try */
  struct chain deferred; /* recipients that their own server deferred */
  long due; /* when the message was due */
  long natural; /* qmail's retry time of those, the earliest; 0: there are none */
  long lost; /* when to come back for recipients that could not be remembered; 0: there are none */
  unsigned long at; /* the position where the pass goes on; NOWHERE: not known yet */
  unsigned long seen; /* the position at the last step */
  unsigned long serial; /* of the pass; 0: there was no memory when it began */
  unsigned int message; /* 0: none of its recipients waits */
  unsigned int handed; /* recipients handed out since one was busy */
  unsigned int out; /* deliveries without a report yet */
  int pass; /* which recipients it covers: PASS_NONE and so on */
  int flagbusy; /* 1: a recipient was busy */
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

static int flagstep = 0; /* 1: the last step of a pass handed out no recipient */

/* ---- the calls */

int gate_retry_open(int j, int c, unsigned long id, long dt)
{
  static unsigned long pass = 0;
  struct running *r;
  unsigned int m;
  unsigned int i;

  r = running_get(j);
  /* without memory: if anything waits, this message might, so the pass covers no recipient */
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
  r->due = W(i).due; /* pqchan says "now" after a SIGALRM */
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

/* puts the rest of a pass behind other messages. 0: no memory. */
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
Moves fd to the position of a recipient; 0: failed. If no recipient begins there, the file is not the one it was:
somebody else than qmail-send has removed the message, and a new one has its number. What is remembered of it then
means nothing.
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
  r->pass = PASS_ALL; /* so the close sees a pass that did not reach the end */
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
    if (r->at == *mpos) return 0; /* this recipient has not been read yet */
    if (r->at != NOWHERE && r->list.first) chain_pop(&r->list);
    r->at = NOWHERE;
    if (!r->list.first) return 2;
  }
  if (r->handed >= TURN) {
    if (yield(r,*mpos)) return 2;
    r->handed = 0;
  }
  if (r->pass != PASS_LIST) return 0;
  r->at = R(r->list.first).mpos;
  if (r->at == *mpos) return 0;
  if (!seek(r,fd,r->at)) return 2;
  *mpos = r->seen = r->at;
  return 1;
}

/* puts a recipient aside, to be asked about with others of the busy part. 0: no memory. */
static int park(struct running *r, unsigned int busy, unsigned long mpos, char *domain)
{
  unsigned int i;

  i = W(busy).filling;
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
    W(busy).filling = i;
    fifo_put(&channel[M(r->message).c].asked,i);
    return 1;
  }
  return chain_add(&W(i).chain,mpos);
}

int gate_retry_skip(int j, unsigned long mpos, char *recip)
{
  struct running *r;
  char *domain;
  unsigned int hash;
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

int gate_retry_ask(int c, unsigned long *id, char **recip)
{
  static char text[24 + DOMAIN_MAX];
  unsigned int busy;
  unsigned int i;

  if (c < 0 || c >= numchannels || channel[c].asking) return 0;
  i = fifo_get(&channel[c].asked);
  if (!i) return 0;
  channel[c].asking = i;
  busy = *busy_find(W(i).message,W(i).queue,W(i).due);
  if (busy && W(busy).filling == i) W(busy).filling = 0; /* later recipients are asked about separately */
  text[20] = '@';
  strcpy(text + 21,W(i).domain);
  *recip = digits(text + 20,W(i).chain.count);
  *id = M(W(i).message).id;
  return 1;
}

/* reads the number at *s, which must end with the byte end, and moves *s behind that; 0: not a number up to most */
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

/* reads the numbers behind the B of a report, moves *text behind them, and returns the queue; 0: no busy report */
static unsigned int busy_numbers(char **text, long *back)
{
  unsigned long secs;
  unsigned long queue;

  secs = number(text,' ',SECONDS_MAX);
  queue = secs ? number(text,' ',0xffffffffUL) : 0;
  if (queue) *back = seconds() + (long) secs;
  return (unsigned int) queue;
}

/* a recipient of a job was busy. 0: no memory. */
static int note_busy(struct running *r, int c, unsigned long id, unsigned long mpos, unsigned int queue, long back)
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
  unsigned int hash;
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
      if (!note_busy(r,c,id,mpos,queue,back)) {
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
    /* no recipient was busy: as without the gate */
    chain_drop(&r->deferred);
    if (lost && lost < *dt) *dt = lost;
    return 0;
  }
  if (flaghiteof && r->list.first) {
    /* not the file it was, as in seek() */
    chain_drop(&r->list);
    sooner(&lost,*dt);
  }
  /* The file could not be read to its end, or qmail-send had no memory to start a delivery. Which recipients that
     concerns is not known. */
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
  /* All others have been tried. The next pass is for recipients that could not be remembered; those that wait for the
     clock join it. */
  while ((i = M(m).parts)) {
    unwait(i);
    chain_drop(&W(i).chain);
    part_drop(i);
  }
  *dt = M(m).lost ? M(m).lost : seconds();
  message_drop(m);
  return 0;
}

/* the gate's answer to the question of gate_retry_ask */
static void take_answer(int c, char *report)
{
  unsigned int queue;
  unsigned int known;
  unsigned int i;
  long back;

  i = channel[c].asking;
  channel[c].asking = 0;
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
    if (c < 0 || c >= numchannels || !channel[c].asking) return 0;
    take_answer(c,report);
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
    /* without memory to split the part, all of it is called */
    most -= W(i).chain.count < most ? W(i).chain.count : most;
    unwait(i);
    call(i);
  }
  return 1;
}

/*
Puts a part with the last one of its message that waits for its pass, if both would be in pqchan for the same time: one
pass then tries both. So a message has few entries in pqchan, even if no pass ever opens its file because somebody has
removed that. 1: done, and the part is gone.
*/
static int join(unsigned int i)
{
  unsigned int m;
  unsigned int last;

  m = W(i).message;
  if (!M(m).plan) return 0;
  last = M(m).lastplan;
  if (W(i).state != CALLED || W(last).state != CALLED) return 0;
  if (W(i).due != W(last).due || W(i).flagbehind != W(last).flagbehind) return 0;
  chain_move(&W(last).chain,&W(i).chain);
  part_drop(i);
  return 1;
}

int gate_retry_due(int c, unsigned long *id, long *dt)
{
  unsigned int m;
  unsigned int i;
  long now;

  if (c < 0 || c >= numchannels) return 0;
  now = seconds();
  do {
    if (!parts.used) return 0;
    i = fifo_get(&channel[c].called);
    if (!i) {
      i = channel[c].top;
      if (!i) return 0;
      /* too far ahead to be true: the clock was set back */
      if (W(i).when > now && W(i).when <= now + (W(i).state == LATER ? RETRY_MAX : SECONDS_MAX)) return 0;
      unwait(i);
    }
  } while (join(i));
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
  static unsigned int at = 0; /* messages up to this one are done */
  unsigned int i;

  while (at < messages.num) {
    i = 0;
    if (M(at + 1).flagused && M(at + 1).c == c && M(at + 1).numlater)
      for (i = M(at + 1).parts;i;i = W(i).nextof)
        if (W(i).state == LATER) break;
    if (!i) {
      ++at;
      continue;
    }
    unwait(i);
    call(i);
    if (gate_retry_due(c,id,dt)) return 1;
  }
  at = 0;
  return 0;
}

int gate_retry_flush(int c, unsigned long *id, long *dt)
{
  static unsigned int at = 0; /* messages up to this one are done */
  unsigned int m;
  unsigned int i;
  long now;

  if (c < 0 || c >= numchannels) return 0;
  channel[c].called.first = channel[c].asked.first = channel[c].asking = 0;
  now = seconds();
  while (at < messages.num) {
    m = ++at;
    /* a message with a plan is in pqchan */
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
