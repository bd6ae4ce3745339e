/* gate_retry.c against what its header says, with a clock that this program sets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include "gate_retry.h"

static long clock_tenths = 17000000000L;

int gettimeofday(struct timeval *tv, void *zone)
{
  (void) zone;
  tv->tv_sec = clock_tenths / 10;
  tv->tv_usec = clock_tenths % 10 * 100000;
  return 0;
}

static int failures = 0;

static void is(char *what, long found, long wanted)
{
  if (found == wanted) return;
  printf("wrong: %s: %ld, not %ld\n",what,found,wanted);
  ++failures;
}

static long now(void)
{
  return clock_tenths / 10;
}

static char *reported(int j, unsigned long id, unsigned long mpos, long natural, char *report)
{
  static char buf[300];

  strcpy(buf,report);
  gate_retry_report(j,1,id,mpos,natural,buf);
  return buf;
}

/* the job's natural retry time is 1000 seconds away */
static int closed(int j, unsigned long id, long *dt)
{
  *dt = now() + 1000;
  return gate_retry_close(j,1,id,dt);
}

static void reports(void)
{
  static char *garbage[] = {
    "B", "B ", "B x", "Bx", "B-1 x", "B0 x", "B3601 x", "B99999999999999999999 x", "B5", "B5x y", "B 5 x", 0
  };
  long dt;
  int i;

  gate_retry_open(0);
  is("text",strcmp(reported(0,7,0,now() + 1000,"B73 a.example is at its limit\n"),"Za.example is at its limit\n"),0);
  is("waits",closed(0,7,&dt),1);
  for (i = 0;garbage[i];++i) {
    gate_retry_open(1);
    is("garbage is a deferral",*reported(1,8,0,now() + 1000,garbage[i]),'Z');
    is("garbage does not wait",closed(1,8,&dt),0);
    is("garbage is natural",dt,now() + 1000);
  }
  gate_retry_open(1);
  is("K stays",strcmp(reported(1,8,0,0,"Kfine\n"),"Kfine\n"),0);
  is("D stays",strcmp(reported(1,8,0,0,"Dbad\n"),"Dbad\n"),0);
  is("Z stays",strcmp(reported(1,8,0,now() + 1000,"Zlater\n"),"Zlater\n"),0);
  is("nobody busy",closed(1,8,&dt),0);
  is("natural",dt,now() + 1000);
  is("forgotten",gate_retry_skip(1,1,8,0,now()),0);
}

static void comesback(void)
{
  unsigned long id;
  long start;
  int n;

  start = clock_tenths;
  is("wakeup is not now",gate_retry_wakeup(now() + 500) > now(),1);
  is("wakeup",gate_retry_wakeup(now() + 500) <= now() + 75,1);
  is("an earlier wakeup stays",gate_retry_wakeup(now() + 3),now() + 3);
  for (n = 0;!gate_retry_due(1,&id);++n) {
    if (n > 1000) { is("comes back",0,1); return; }
    ++clock_tenths;
  }
  is("id",(long) id,7);
  is("after S seconds and some tenths",clock_tenths - start >= 730 && clock_tenths - start < 740,1);
  is("once",gate_retry_due(1,&id),0);
  is("other channel",gate_retry_due(0,&id),0);
  is("no wakeup",gate_retry_wakeup(now() + 500),now() + 500);
}

/* one recipient is busy, one is deferred by its own server, one is done */
static void mixed(void)
{
  unsigned long id;
  long natural;
  long dt;

  natural = now() + 1000;
  gate_retry_open(3);
  reported(3,9,0,natural,"B10 busy\n");
  reported(3,9,20,natural,"Zgreylisted\n");
  reported(3,9,40,natural,"Kdone\n");
  dt = natural;
  is("waits",gate_retry_close(3,1,9,&dt),1);
  clock_tenths += 110;
  is("due",gate_retry_due(1,&id),1);

  /* the early pass: its own natural time is later, the deferred one keeps its first */
  gate_retry_open(4);
  is("busy one is tried",gate_retry_skip(4,1,9,0,now()),0);
  is("deferred one is passed over",gate_retry_skip(4,1,9,20,now()),1);
  is("other message",gate_retry_skip(4,1,10,20,now()),0);
  is("other channel",gate_retry_skip(4,0,9,20,now()),0);
  reported(4,9,0,natural + 600,"Kdone\n");
  dt = natural + 600;
  is("goes to pqchan",gate_retry_close(4,1,9,&dt),0);
  is("at the first one's time",dt,natural);

  /* at that time it is tried again */
  clock_tenths = natural * 10;
  gate_retry_open(5);
  is("tried at its time",gate_retry_skip(5,1,9,20,now()),0);
  reported(5,9,20,natural + 5000,"Zagain\n");
  dt = natural + 5000;
  is("natural",gate_retry_close(5,1,9,&dt),0);
  is("natural",dt,natural + 5000);
  is("forgotten",gate_retry_skip(6,1,9,20,now()),0);
}

/* deferred first, then busy again and again: tried at its time, not before */
static void patience(void)
{
  unsigned long id;
  long natural;
  long dt;
  int passes;

  natural = now() + 400;
  gate_retry_open(0);
  reported(0,11,0,natural,"Zfull\n");
  reported(0,11,20,natural,"B60 busy\n");
  dt = natural;
  is("waits",gate_retry_close(0,1,11,&dt),1);
  for (passes = 0;passes < 20;++passes) {
    while (!gate_retry_due(1,&id)) {
      ++clock_tenths;
      if (now() > natural + 100) { is("comes back",0,1); return; }
    }
    gate_retry_open(0);
    if (!gate_retry_skip(0,1,11,0,now())) break;
    is("busy one is tried",gate_retry_skip(0,1,11,20,now()),0);
    reported(0,11,20,natural + 3000,"B60 busy\n");
    dt = natural + 3000;
    if (!gate_retry_close(0,1,11,&dt)) {
      is("sooner than busy",dt,natural);
      clock_tenths = natural * 10;
      gate_retry_open(0);
      is("at its time",gate_retry_skip(0,1,11,0,now()),0);
      break;
    }
  }
  is("passes",passes >= 4 && passes <= 6,1);
  is("not before its time",now() >= natural,1);
}

static void flush(void)
{
  unsigned long id;
  long dt;
  long start;
  int n;

  for (n = 0;n < 100;++n) {
    gate_retry_open(n);
    reported(n,100 + n,0,now() + 9000,"Zdeferred\n");
    reported(n,100 + n,1,now() + 9000,"B3600 busy\n");
    dt = now() + 9000;
    is("waits",gate_retry_close(n,1,100 + n,&dt),1);
  }
  is("remembered",gate_retry_skip(0,1,150,0,now()),1);
  for (n = 0;gate_retry_flush(1,&id,&dt);++n)
    is("stored time",dt >= now() + 3600 && dt <= now() + 3601,1);
  is("all",n,100);
  is("forgotten",gate_retry_skip(0,1,150,0,now()),0);

  /* a clock that is set back does not keep them */
  gate_retry_open(0);
  reported(0,5,0,now() + 9000,"B3600 busy\n");
  dt = now() + 9000;
  is("waits",gate_retry_close(0,1,5,&dt),1);
  start = clock_tenths;
  clock_tenths -= 1000000;
  is("clock set back",gate_retry_due(1,&id),1);
  clock_tenths = start;
}

/* the tenths are spread: 1000 jobs, each busy for 5 seconds, at the same time */
static void spread(void)
{
  int count[10];
  unsigned long id;
  long dt;
  int i;
  int n;

  for (n = 0;n < 1000;++n) {
    gate_retry_open(n);
    reported(n,5000 + n,0,now() + 9000,"B5 busy\n");
    dt = now() + 9000;
    gate_retry_close(n,1,5000 + n,&dt);
  }
  clock_tenths += 50;
  for (i = 0;i < 10;++i) {
    count[i] = 0;
    while (gate_retry_due(1,&id)) ++count[i];
    ++clock_tenths;
  }
  for (i = 0;i < 10;++i) is("a tenth of them each tenth of a second",count[i],100);
}

/* more than fits: those jobs are deferred, and no deferred recipient is tried too soon */
static void many(void)
{
  unsigned long id;
  unsigned long mpos;
  long dt;

  gate_retry_open(0);
  for (mpos = 0;mpos < GATE_RETRY_MAX + 10;++mpos)
    reported(0,77,mpos,now() + 1000,"Zdeferred\n");
  reported(0,77,mpos,now() + 1000,"B5 busy\n");
  is("does not wait",closed(0,77,&dt),0);
  is("natural",dt,now() + 1000);
  is("forgotten",gate_retry_skip(0,1,77,5,now()),0);
  gate_retry_open(0);
  for (mpos = 0;mpos < 1000;++mpos)
    reported(0,78,mpos,now() + 1000,"Zdeferred\n");
  reported(0,78,mpos,now() + 1000,"B5 busy\n");
  is("waits",closed(0,78,&dt),1);
  for (mpos = 0;mpos < 1000;++mpos)
    is("remembered",gate_retry_skip(0,1,78,mpos,now()),1);
  while (gate_retry_flush(1,&id,&dt)) ;
  is("no job",gate_retry_skip(-1,1,78,5,now()),0);
  gate_retry_open(-1);
  is("channel",gate_retry_due(2,&id) + gate_retry_due(-1,&id) + gate_retry_flush(7,&id,&dt),0);
}

int main(void)
{
  reports();
  comesback();
  mixed();
  patience();
  flush();
  spread();
  many();
  if (failures) return 1;
  printf("retry ok\n");
  return 0;
}
