/*
A spawner without processes: what spawn.c does with the glue, on commands that this program makes up.
glue MODE [COMMANDS], in a directory DIR/queue/mess with ../../control and ../lock/gatestatus.
  run       deliveries to a busy domain and to others; every command ends once, with the right strings
  memory    as run, but stralloc_copyb and stralloc_readyplus fail now and then
  panic     as run, after a call in which the gate panics (needs a gate built for that)
  overflow  writes behind an array: a sanitizer that is on must stop this
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "stralloc.h"
#include "gate_glue.h"

/* in a gate built with the feature panic-injection; else it is NULL */
extern void gate_inject_panics(unsigned int calls) __attribute__((weak));

#define SLOTS 200

static unsigned int commands = 5000;
static int failcopies = 0;

int stralloc_readyplus(sa,n)
stralloc *sa;
unsigned int n;
{
  static unsigned int calls = 0;

  if (failcopies && ++calls % 7 == 0) return 0;
  if (sa->a < sa->len + n) {
    sa->s = realloc(sa->s,sa->len + n);
    if (!sa->s) abort();
    sa->a = sa->len + n;
  }
  return 1;
}

int stralloc_copyb(sa,s,n)
stralloc *sa;
char *s;
unsigned int n;
{
  static unsigned int calls = 0;

  if (failcopies && ++calls % 7 == 0) return 0;
  if (sa->a < n + 1) {
    sa->s = realloc(sa->s,n + 1);
    if (!sa->s) abort();
    sa->a = n + 1;
  }
  memcpy(sa->s,s,n);
  sa->len = n;
  return 1;
}

static stralloc messid = {0};
static stralloc sender = {0};
static stralloc recip = {0};
static stralloc *cmd[] = { &messid, &sender, &recip, 0 };

static struct { int used; unsigned int command; } d[SLOTS];
static unsigned int waiting[SLOTS]; /* command + 1 that was held */
static unsigned int running = 0;
static unsigned int busyrunning = 0;
static unsigned int ended = 0;
static unsigned int busy = 0;
static unsigned int calls = 0;
static unsigned int held = 0;
static unsigned int lines = 0;
static unsigned int nomem = 0;
static int flagpanic = 0;

static void die(char *why)
{
  printf("wrong: %s\n",why);
  exit(1);
}

static char *domain(unsigned int command)
{
  static char buf[40];

  if (command % 4) return "busy.example";
  sprintf(buf,"other%u.example",command % 50);
  return buf;
}

static void set(stralloc *sa, char *s)
{
  int save;

  save = failcopies;
  failcopies = 0;
  if (!stralloc_copyb(sa,s,(unsigned int) strlen(s) + 1)) abort();
  failcopies = save;
}

static void make(unsigned int command)
{
  char buf[80];

  sprintf(buf,"%u/%u",command % 23,command);
  set(&messid,buf);
  sprintf(buf,"sender%u@a.example",command);
  set(&sender,buf);
  sprintf(buf,"user%u@%s",command,domain(command));
  set(&recip,buf);
}

/* the strings are those of this command */
static void check(unsigned int command)
{
  char buf[80];

  sprintf(buf,"%u/%u",command % 23,command);
  if (messid.len != strlen(buf) + 1 || memcmp(messid.s,buf,messid.len)) die("messid");
  sprintf(buf,"sender%u@a.example",command);
  if (sender.len != strlen(buf) + 1 || memcmp(sender.s,buf,sender.len)) die("sender");
  sprintf(buf,"user%u@%s",command,domain(command));
  if (recip.len != strlen(buf) + 1 || memcmp(recip.s,buf,recip.len)) die("recip");
}

static void start(unsigned int slot, unsigned int command)
{
  check(command);
  if (d[slot].used) die("used");
  if (command % 97 == 13) { gateglue_done(slot,(stralloc *) 0); ++ended; return; } /* as docmd when it fails */
  d[slot].used = 1;
  d[slot].command = command;
  ++running;
  if (command % 4) ++busyrunning;
  if (!flagpanic && busyrunning > 3) die("over the limit");
}

static void report(void)
{
  unsigned int n;
  unsigned int queue;

  if (*gateglue_text == 'Z') { ++nomem; return; }
  if (sscanf(gateglue_text,"B%u %u busy.example is at its limit of 3 deliveries; not tried.",&n,&queue) != 2) die(gateglue_text);
  if (n < 1 || n > 3600) die("seconds");
  if (!queue) die("queue");
  if (gateglue_text[strlen(gateglue_text) - 1] != '\n') die("newline");
  ++busy;
}

static void next(void)
{
  unsigned int slot;
  unsigned int command;
  int r;

  while ((r = gateglue_next(&slot,cmd)) != GATE_NONE) {
    if (slot == GATE_CALL_SLOT) {
      unsigned int queue;
      unsigned int most;
      char end;
      if (r != GATE_BUSY || sscanf(gateglue_text,"R%u %u%c",&queue,&most,&end) != 3) die(gateglue_text);
      if (!queue || !most || end != '\n') die("call");
      ++calls;
      continue;
    }
    if (slot >= SLOTS || !waiting[slot]) die("not held");
    command = waiting[slot] - 1;
    waiting[slot] = 0;
    if (r == GATE_BUSY) { report(); ++ended; } else start(slot,command);
  }
}

static void finish(unsigned int slot)
{
  static char text[] = "r\0K10.0.0.1 accepted message.\n\0";
  unsigned int len = sizeof text - 1;
  unsigned int n[4];
  stralloc output;

  output.s = malloc(len); /* not a byte more */
  if (!output.s) abort();
  memcpy(output.s,text,len);
  output.len = len;
  output.a = len;
  d[slot].used = 0;
  --running;
  if (d[slot].command % 4) --busyrunning;
  ++ended;
  if (gateglue_done(slot,&output)) die("not really tried");
  if (memcmp(output.s,text,len - 1) || output.s[output.len - 1]) die("report");
  if (output.len > len) {
    if (sscanf(output.s + len - 1,"Held %u.%3u s, ran %u.%3u s.\n",n,n + 1,n + 2,n + 3) != 4) die(output.s + 2);
    if (strlen(output.s + 2) != output.len - 3 || output.s[output.len - 2] != '\n') die("line");
    ++lines;
  }
  free(output.s);
}

static void run(void)
{
  unsigned int command;
  unsigned int slot;
  unsigned int seed = 1;
  struct timeval tv;

  for (command = 0;command < commands;) {
    seed = seed * 1103515245 + 12345;
    for (slot = 0;slot < SLOTS;++slot) if (!d[slot].used && !waiting[slot]) break;
    if (slot < SLOTS && (seed >> 16) % 3) {
      make(command);
      switch(gateglue_ask(slot,cmd)) {
        case GATE_HOLD: waiting[slot] = command + 1; ++held; break;
        case GATE_BUSY: report(); ++ended; break;
        default: start(slot,command);
      }
      ++command;
    }
    else {
      for (slot = (seed >> 16) % SLOTS;running && !d[slot].used;slot = (slot + 1) % SLOTS) ;
      if (running) finish(slot);
    }
    next();
    if (gateglue_wait(&tv))
      if (tv.tv_sec < 0 || tv.tv_sec > 60 || tv.tv_usec < 0 || tv.tv_usec > 999999) die("timeval");
  }
  while (running) {
    for (slot = 0;!d[slot].used;++slot) ;
    finish(slot);
    next();
  }
}

int main(int argc, char **argv)
{
  unsigned int slot;
  char *mode;

  mode = argc > 1 ? argv[1] : "run";
  if (argc > 2) commands = (unsigned int) atoi(argv[2]);
  if (!strcmp(mode,"overflow")) {
    char *p;
    volatile int i;
    p = malloc(10);
    if (!p) return 1;
    memset(p,0,10);
    for (i = 0;i < 11;++i) p[i] = 1;
    printf("not stopped: %d\n",p[3]);
    return 0;
  }
  gateglue_open(SLOTS);
  if (!strcmp(mode,"memory")) failcopies = 1;
  if (!strcmp(mode,"panic")) {
    flagpanic = 1;
    for (slot = 0;slot < 10;++slot) {
      make(slot * 4 + 1);
      if (gateglue_ask(slot,cmd) == GATE_HOLD) { waiting[slot] = slot * 4 + 2; ++held; } else start(slot,slot * 4 + 1);
    }
    if (!held) die("nothing held");
    if (!gate_inject_panics) die("no panics in this gate");
    gate_inject_panics(1);
    if (gateglue_ask(11,cmd) != GATE_GO) die("panic");
    next();
    for (slot = 0;slot < SLOTS;++slot) if (waiting[slot]) die("lost after a panic");
    while (running) {
      for (slot = 0;!d[slot].used;++slot) ;
      finish(slot);
      next();
    }
  }
  run();
  if (busyrunning) die("busyrunning");
  for (slot = 0;slot < SLOTS;++slot) if (d[slot].used || waiting[slot]) die("left over");
  gateglue_drop();
  if (held && !flagpanic && !lines) die("no line for what was held");
  printf("commands %u ended %u held %u busy %u nomem %u calls %u\n",commands,ended,held,busy,nomem,calls);
  free(messid.s);
  free(sender.s);
  free(recip.s);
  return 0;
}
