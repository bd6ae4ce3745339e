#include "gate_glue.h"

/* gate_glue.h for qmail-lspawn: local deliveries have no gate, and the program works as before */

char *gateglue_text = "";

void gateglue_open(unsigned int slots)
{
  (void) slots;
}

int gateglue_ask(unsigned int slot, stralloc **cmd)
{
  (void) slot;
  (void) cmd;
  return GATE_GO;
}

int gateglue_next(unsigned int *slot, stralloc **cmd)
{
  (void) slot;
  (void) cmd;
  return GATE_NONE;
}

int gateglue_done(unsigned int slot, stralloc *output)
{
  (void) slot;
  (void) output;
  return 0;
}

struct timeval *gateglue_wait(struct timeval *tv)
{
  (void) tv;
  return 0;
}

void gateglue_drop(void)
{
}
