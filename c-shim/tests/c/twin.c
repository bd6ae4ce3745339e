/* gate_retry.c as it is, but for the clock and the allocator, which are those of src/retry.rs, and for files, which are
what it says. */
#include <sys/types.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern time_t gate_test_time(time_t *);
extern void *gate_test_malloc(size_t);
extern void *gate_test_realloc(void *, size_t);
extern void gate_test_free(void *);

static off_t gate_test_lseek(int fd, off_t to, int whence)
{
  (void) fd;
  (void) whence;
  return to;
}

/* before every recipient. 0: its place is as it was; 1: another file; 2: another one, shorter; 3: unreadable */
static int gate_test_file = 0;

static ssize_t gate_test_read(int fd, char *to, size_t len)
{
  (void) fd;
  memset(to,gate_test_file == 1 ? 'T' : 0,len);
  return gate_test_file == 2 ? 0 : gate_test_file == 3 ? -1 : (ssize_t) len;
}

void gate_test_set_file(int file)
{
  gate_test_file = file;
}

#define lseek gate_test_lseek
#define read gate_test_read
#define time gate_test_time
#define malloc gate_test_malloc
#define realloc gate_test_realloc
#define free gate_test_free

#include "../../gate_retry.c"

/* in place of one from /dev/urandom */
void gate_test_set_key(unsigned int first, unsigned int second)
{
  domain_key[0] = first;
  domain_key[1] = second;
  flagkey = 1;
}

static void pool_clear(struct pool *p)
{
  free(p->all);
  p->all = 0;
  p->num = p->idle = p->used = 0;
}

/* as it is when qmail-send starts */
void gate_test_reset(void)
{
  struct queue **q;
  unsigned int m;
  unsigned int i;
  int c;
  int n;

  for (m = 1;m <= messages.num;++m)
    if (M(m).flagused)
      for (i = M(m).parts;i;i = W(i).nextof) free(W(i).domain);
  for (c = 0;c < numchannels;++c)
    for (n = 0;n < QUEUES;++n)
      for (q = channel[c].queue + n;*q;) queue_drop(q);
  free(channel);
  channel = 0;
  numchannels = 0;
  free(running);
  running = 0;
  numrunning = 0;
  free(domains);
  domains = 0;
  pool_clear(&messages);
  pool_clear(&parts);
  pool_clear(&recips);
  memset(mchain,0,sizeof(mchain));
  memset(wchain,0,sizeof(wchain));
  flagstep = 0;
  gate_test_file = 0;
}

/* how much is in use: messages, their parts, recipients */
unsigned int gate_test_used(int which)
{
  return which == 0 ? messages.used : which == 1 ? parts.used : recips.used;
}

/* what gate_retry.h says of memory */
unsigned int gate_test_sizes(int which)
{
  switch(which) {
    case 0: return (unsigned int) sizeof(struct channel);
    case 1: return (unsigned int) sizeof(struct part);
    case 2: return (unsigned int) sizeof(struct queue);
    case 3: return (unsigned int) sizeof(struct message);
    case 4: return (unsigned int) sizeof(struct recip);
    case 5: return (unsigned int) sizeof(struct running);
    case 6: return (unsigned int) (DOMAINS * sizeof(*domains));
  }
  return 0;
}
