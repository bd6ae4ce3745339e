#include "gate_glue.h"
#include "gate_reads.h"

/* Where this tree's qmail-remote looks for a relay, besides smtproutes. The Makefile finds that out from qmail-remote.c
   and writes gate_reads.h. qpatch looks for this text in the program, too. */
#define GATE_READS "qmail-remote reads:" GATE_READS_SENDERS GATE_READS_BOUNCES

#ifndef GATE_CONTROL
#define GATE_CONTROL "../../control"
#endif
#ifndef GATE_STATUS
#define GATE_STATUS "../lock/gatestatus"
#endif

/* K&R trees have no prototype of it, and the others differ in const: this call suits all of them */
#define GATEGLUE_COPY(sa,t) stralloc_copyb(sa,(char *) (t).s,(t).len)

char *gateglue_text = "Zqmail-spawn gate error. (#4.3.5)\n";

void gateglue_open(unsigned int slots)
{
  gate_open(slots,GATE_CONTROL,GATE_STATUS,GATE_READS);
}

int gateglue_ask(unsigned int slot, stralloc **cmd)
{
  struct gate_text part[GATE_PARTS];
  const char *text;
  unsigned int n;
  int r;

  for (n = 0;cmd[n];++n) {
    if (n == GATE_PARTS) return GATE_GO;
    part[n].s = cmd[n]->s;
    part[n].len = cmd[n]->len;
  }
  text = 0;
  r = gate_ask(slot,part,n,&text);
  if (r == GATE_HOLD) return r;
  if (r != GATE_BUSY || !text) return GATE_GO;
  gateglue_text = (char *) text;
  return r;
}

int gateglue_next(unsigned int *slot, stralloc **cmd)
{
  struct gate_next next;
  unsigned int n;
  int r;

  r = gate_next(&next);
  if (r != GATE_GO && r != GATE_BUSY && r != GATE_CALL) return GATE_NONE;
  *slot = next.slot;
  if (r != GATE_GO) {
    gateglue_text = (char *) next.text;
    return GATE_BUSY;
  }
  for (n = 0;n < next.parts && cmd[n];++n)
    if (!GATEGLUE_COPY(cmd[n],next.part[n])) {
      gate_done(next.slot,(char *) 0,0,(const char **) 0);
      gateglue_text = "Zqmail-spawn out of memory. (#4.3.0)\n";
      return GATE_BUSY;
    }
  return r;
}

/* puts text before the zero byte at the end; without memory it is left out */
static void addline(stralloc *output, const char *text)
{
  unsigned int n;
  char *to;

  for (n = 0;text[n];++n) ;
  if (!stralloc_readyplus(output,n)) return;
  to = output->s + output->len - 1;
  while ((*to++ = *text++)) ;
  output->len += n;
}

int gateglue_done(unsigned int slot, stralloc *output)
{
  const char *text;
  int r;

  text = 0;
  if (!output) {
    gate_done(slot,(char *) 0,0,(const char **) 0);
    return 0;
  }
  r = gate_done(slot,output->len ? output->s : "",output->len,&text);
  if (!text) return 0;
  if (r == GATE_BUSY) {
    gateglue_text = (char *) text;
    return 1;
  }
  if (output->len) addline(output,text);
  return 0;
}

struct timeval *gateglue_wait(struct timeval *tv)
{
  long ms;

  ms = gate_timeout_ms();
  if (ms < 0) return 0;
  if (ms > 60000) ms = 60000;
  tv->tv_sec = ms / 1000;
  tv->tv_usec = (ms % 1000) * 1000L;
  return tv;
}

void gateglue_drop(void)
{
  gate_drop_held();
}
