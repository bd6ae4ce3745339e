/* gate_retry.c as it is, but for the clock and the allocator, which are those of src/lib.rs. */
#include <sys/types.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern time_t gate_test_time(time_t *);
extern void *gate_test_malloc(size_t);
extern void *gate_test_realloc(void *, size_t);
extern void gate_test_free(void *);

#define time gate_test_time
#define malloc gate_test_malloc
#define realloc gate_test_realloc
#define free gate_test_free

#include "../gate_retry.c"

/* as it is when qmail-send starts */
void gate_test_reset(void)
{
  unsigned long id;
  long dt;
  int c;

  for (c = 0;c < numchannels || !c;++c)
    while (gate_retry_flush(c,&id,&dt)) ;
  free(channel);
  channel = 0;
  numchannels = 0;
  free(running);
  running = 0;
  numrunning = 0;
  free(waiting);
  waiting = 0;
  numwaiting = freewaiting = 0;
  free(message);
  message = 0;
  nummessage = freemessage = 0;
  free(deferred);
  deferred = 0;
  numdeferred = freedeferred = 0;
}

/* what gate_retry.h says of memory */
unsigned int gate_test_sizes(int which)
{
  switch(which) {
    case 0: return (unsigned int) sizeof(struct channel);
    case 1: return (unsigned int) sizeof(struct waiting);
    case 2: return (unsigned int) sizeof(struct queue);
    case 3: return (unsigned int) sizeof(struct message);
    case 4: return (unsigned int) sizeof(struct deferred);
    case 5: return (unsigned int) sizeof(struct running);
  }
  return 0;
}
