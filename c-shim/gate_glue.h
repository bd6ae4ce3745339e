/*
NAME
  gate_glue.h - what spawn.c calls: gate.h in qmail's types

DESCRIPTION
  qmail-rspawn links gate_glue.o and the gate. qmail-lspawn links gate_stub.o, which lets every delivery go.
  cmd is an array of pointers to spawn.c's own strings of one command (messid, sender, ..., recip), in the order in
  which they are read, ended by a null pointer. The recipient is the last. HOOKS.md shows the calls in spawn.c.
*/
#ifndef GATE_GLUE_H
#define GATE_GLUE_H

#include <sys/types.h>
#include <sys/time.h>
#include "stralloc.h"
#include "gate.h"

/* the report to write after GATE_BUSY, or in place of a delivery's own; valid until the next call of a function here */
extern char *gateglue_text;

/* slots: auto_spawn. Never fails: without a gate every answer is GATE_GO. */
extern void gateglue_open(unsigned int slots);

/* GATE_GO: call docmd. GATE_HOLD: do nothing. GATE_BUSY: call err(gateglue_text). */
extern int gateglue_ask(unsigned int slot, stralloc **cmd);

/*
GATE_NONE: nothing to do. GATE_GO: *slot and cmd are those of a held command; call docmd. GATE_BUSY: call
err(gateglue_text) for *slot; so does a call for mail that is away, with a slot that no delivery has.
It overwrites cmd, so call it only while no command is half read.
*/
extern int gateglue_next(unsigned int *slot, stralloc **cmd);

/*
The delivery has ended. output: what it printed; null when none ran.
1: it was not really tried; write gateglue_text in place of its report. 0: write its report; output may have gained a
line.
*/
extern int gateglue_done(unsigned int slot, stralloc *output);

/* the last argument of select: tv, or null when there is no need to wake up */
extern struct timeval *gateglue_wait(struct timeval *tv);

/* qmail-send is gone: forget the held commands */
extern void gateglue_drop(void);

#endif
