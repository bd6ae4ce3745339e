/* gate_retry.c against what its header says, with a clock that this program sets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "gate_retry.h"

static long clock_seconds = 1700000000L;

time_t time(time_t *t)
{
  if (t) *t = clock_seconds;
  return clock_seconds;
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
  return clock_seconds;
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
    "B", "B ", "B x", "Bx", "B-1 1 x", "B0 1 x", "B3601 1 x", "B99999999999999999999 1 x", "B5", "B5x y", "B 5 1 x",
    "B5 ", "B5 x", "B5 0 x", "B5 1", "B5 4294967296 x", "B5 -1 x", 0
  };
  long dt;
  int i;

  gate_retry_open(0,1,7,now() - 5);
  is("text",strcmp(reported(0,7,0,now() + 1000,"B73 5 a.example is at its limit\n"),"Za.example is at its limit\n"),0);
  is("waits",closed(0,7,&dt),1);
  for (i = 0;garbage[i];++i) {
    gate_retry_open(1,1,8,now());
    is("garbage is a deferral",*reported(1,8,0,now() + 1000,garbage[i]),'Z');
    is("garbage does not wait",closed(1,8,&dt),0);
    is("garbage is natural",dt,now() + 1000);
  }
  gate_retry_open(1,1,8,now());
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
  long dt;
  long start;

  start = now();
  is("wakeup is not now",gate_retry_wakeup(now() + 500) > now(),1);
  is("wakeup",gate_retry_wakeup(now() + 500),now() + 73);
  is("an earlier wakeup stays",gate_retry_wakeup(now() + 3),now() + 3);
  while (!gate_retry_due(1,&id,&dt)) {
    if (now() > start + 100) { is("comes back",0,1); return; }
    ++clock_seconds;
  }
  is("id",(long) id,7);
  is("after S seconds",now() - start,73);
  is("due since it was due",dt,start - 5);
  is("once",gate_retry_due(1,&id,&dt),0);
  is("other channel",gate_retry_due(0,&id,&dt),0);
  is("no wakeup",gate_retry_wakeup(now() + 500),now() + 500);
}

static int called(unsigned long delnum, char *report)
{
  static char buf[300];

  strcpy(buf,report);
  return gate_retry_call(1,delnum,buf);
}

static void calls(void)
{
  static char *garbage[] = { "", "R", "R5", "R5 ", "R5 x\n", "R5 0\n", "R0 5\n", "R5 -1\n", "R5 4294967296\n", "R5 5", "Z5 5\n", 0 };
  unsigned long id;
  long dt;
  int i;

  for (i = 0;garbage[i];++i) is("garbage is no call",called(65535,garbage[i]),0);
  is("a delivery's number",called(7,"R5 5\n"),0);
  is("a call on a channel on which nothing waits",gate_retry_call(2,65535,"R5 5\n"),1);
  is("nobody there",called(65535,"R5 5\n"),1);
  is("nobody there",gate_retry_due(1,&id,&dt),0);

  /* jobs 20..29 in queue 5, the last ones due first; 30..34 in queue 6 */
  for (i = 20;i < 35;++i) {
    gate_retry_open(i,1,i,now() - i);
    reported(i,i,0,now() + 400,i < 30 ? "B3000 5 busy\n" : "B3000 6 busy\n");
    is("waits",closed(i,i,&dt),1);
  }
  is("waits",gate_retry_due(1,&id,&dt),0);
  is("call",called(65535,"R5 3\n"),1);
  for (i = 29;i > 26;--i) {
    is("due",gate_retry_due(1,&id,&dt),1);
    is("due first, called first",(long) id,i);
    is("due since",dt,now() - i);
  }
  is("no more than called",gate_retry_due(1,&id,&dt),0);
  is("call all",called(65535,"R6 4294967295\n"),1);
  for (i = 34;i > 29;--i) {
    is("due",gate_retry_due(1,&id,&dt),1);
    is("id",(long) id,i);
  }
  is("no more",gate_retry_due(1,&id,&dt),0);
  is("call",called(65535,"R5 100\n"),1);
  for (i = 0;gate_retry_due(1,&id,&dt);++i) ;
  is("the others",i,7);
}

/* a call that comes while the job is open: its pass has not seen the end of its recipients yet */
static void early(void)
{
  unsigned long id;
  unsigned long mpos;
  unsigned long from;
  long dt;
  int tried;

  gate_retry_open(0,1,60,now());
  gate_retry_open(1,1,61,now());
  gate_retry_open(2,0,62,now());
  reported(0,60,0,now() + 400,"B3000 5 busy\n");
  reported(1,61,0,now() + 400,"B3000 6 busy\n");
  is("call",called(65535,"R5 1\n"),1);
  is("it has not come yet",gate_retry_due(1,&id,&dt),0);
  is("waits",closed(1,61,&dt),1);
  is("the other was not called",gate_retry_due(1,&id,&dt),0);
  is("waits",closed(0,60,&dt),1);
  is("due at once",gate_retry_due(1,&id,&dt) && id == 60,1);
  is("once",gate_retry_due(1,&id,&dt),0);

  /* the call was for that time, and for no more recipients than it said */
  gate_retry_open(0,1,60,now());
  for (mpos = 0;mpos < 4;++mpos) reported(0,60,mpos,now() + 400,"B3000 5 busy\n");
  is("call",called(65535,"R5 2\n"),1);
  is("waits",closed(0,60,&dt),1);
  is("due at once",gate_retry_due(1,&id,&dt) && id == 60,1);
  gate_retry_open(0,1,60,now());
  is("from the first on",gate_retry_from(0,&from) && !from,1);
  tried = 0;
  for (mpos = 0;mpos < 4 && !gate_retry_stop(0,mpos);++mpos)
    if (!gate_retry_skip(0,1,60,mpos,now())) {
      ++tried;
      reported(0,60,mpos,now() + 400,"Kdone\n");
    }
  is("two",tried,2);
  is("waits",closed(0,60,&dt),1);
  is("not called again",gate_retry_due(1,&id,&dt),0);
  while (gate_retry_flush(1,&id,&dt)) ;
}

/* a job with busy recipients: as many come as were called, from where they begin, and then it is done */
static void portions(void)
{
  unsigned long id;
  unsigned long mpos;
  unsigned long from;
  long dt;
  int pass;
  int tried;
  int done;

  gate_retry_open(0,1,40,now() - 1);
  is("from the beginning",gate_retry_from(0,&from),0);
  for (mpos = 0;mpos < 10;++mpos) {
    is("to the end",gate_retry_stop(0,mpos),0);
    reported(0,40,mpos,now() + 400,"B3000 5 busy\n");
  }
  is("waits",closed(0,40,&dt),1);
  gate_retry_open(1,1,41,now());
  reported(1,41,0,now() + 400,"B3000 5 busy\n");
  is("waits",closed(1,41,&dt),1);
  done = 0;
  for (pass = 0;done < 10;++pass) {
    if (pass > 10) { is("ends",0,1); return; }
    called(65535,done < 9 ? "R5 3\n" : "R5 1\n");
    is("due",gate_retry_due(1,&id,&dt),1);
    is("it was first",(long) id,40);
    gate_retry_open(0,1,40,dt);
    is("a part",gate_retry_from(0,&from),1);
    is("from the first that is left",(long) from,done);
    tried = 0;
    for (mpos = from;mpos < 10 && !gate_retry_stop(0,mpos);++mpos) {
      is("tried",gate_retry_skip(0,1,40,mpos,now()),0);
      ++tried;
      ++done;
      reported(0,40,mpos,now() + 400,"Kdone\n");
    }
    is("as called",tried,pass < 3 ? 3 : 1);
    if (done < 10) is("waits again",closed(0,40,&dt),1);
  }
  is("passes",pass,4);
  is("none is left",closed(0,40,&dt),0);
  is("a whole pass sees that it is done, now",dt,now());
  called(65535,"R5 3\n");
  is("then the other",gate_retry_due(1,&id,&dt) && id == 41,1);

  /* by the clock all of them come */
  gate_retry_open(0,1,40,now());
  for (mpos = 0;mpos < 10;++mpos) reported(0,40,mpos,now() + 400,"B30 5 busy\n");
  is("waits",closed(0,40,&dt),1);
  clock_seconds += 30;
  is("due",gate_retry_due(1,&id,&dt),1);
  gate_retry_open(0,1,40,dt);
  is("from the beginning",gate_retry_from(0,&from),0);
  for (mpos = 0;mpos < 10;++mpos) is("tried",gate_retry_skip(0,1,40,mpos,now()),0);
}

/* what is busy waits on when the time of a deferred one has come, and after SIGALRM */
static void deferredones(void)
{
  unsigned long id;
  unsigned long mpos;
  unsigned long from;
  long dt;
  int alarm;

  for (alarm = 0;alarm < 2;++alarm) {
    gate_retry_open(0,1,44,now());
    for (mpos = 0;mpos < 10;++mpos)
      reported(0,44,mpos,now() + 400,mpos % 2 ? "B3000 5 busy\n" : "Zlater\n");
    is("waits",closed(0,44,&dt),1);
    gate_retry_open(0,1,45,now());
    reported(0,45,0,now() + 400,"B3000 5 busy\n");
    is("waits",closed(0,45,&dt),1);
    if (alarm) {
      is("SIGALRM",gate_retry_alarm(1,&id,&dt) && id == 44,1);
      is("the other is only busy",gate_retry_alarm(1,&id,&dt),0);
    }
    else {
      clock_seconds += 400;
      is("due",gate_retry_due(1,&id,&dt) && id == 44,1);
      is("the other is only busy",gate_retry_due(1,&id,&dt),0);
    }
    gate_retry_open(0,1,44,dt);
    is("from the beginning",gate_retry_from(0,&from),0);
    for (mpos = 0;mpos < 10;++mpos) {
      is("to the end",gate_retry_stop(0,mpos),0);
      is("the deferred ones",gate_retry_skip(0,1,44,mpos,now()),mpos % 2 ? 1 : 0);
      if (!(mpos % 2)) reported(0,44,mpos,now() + 400,"Kdone\n");
    }
    is("the others wait",closed(0,44,&dt),1);
    called(65535,"R5 4\n");
    is("one message or both",gate_retry_due(1,&id,&dt),1);
    while (gate_retry_flush(1,&id,&dt)) ;
  }
}

/* 65000 recipients, called 20 at a time: a pass over 20 is the work of 20 */
static void list(void)
{
  unsigned long id;
  unsigned long mpos;
  unsigned long from;
  unsigned long next;
  long looked;
  long dt;

  gate_retry_open(0,1,90,now());
  for (mpos = 0;mpos < 65000;++mpos)
    if (!gate_retry_skip(0,1,90,mpos,now()))
      reported(0,90,mpos,now() + 400,mpos % 100 ? "B3600 5 busy\n" : "Zlater\n");
  is("waits",closed(0,90,&dt),1);
  looked = 0;
  next = 0;
  for (;;) {
    called(65535,"R5 20\n");
    if (!gate_retry_due(1,&id,&dt)) break;
    gate_retry_open(0,1,90,dt);
    if (!gate_retry_from(0,&from)) { is("a part",0,1); break; }
    if (next) is("where the last one ended",(long) from,(long) next);
    for (mpos = from;mpos < 65000 && !gate_retry_stop(0,mpos);++mpos) {
      ++looked;
      if (gate_retry_skip(0,1,90,mpos,now())) is("deferred",(long) (mpos % 100),0);
      else reported(0,90,mpos,now() + 400,"Kdone\n");
    }
    next = mpos;
    if (!closed(0,90,&dt)) break;
  }
  is("all of them",(long) next,65000);
  is("each was looked at once",looked,64999);
  is("the deferred ones' time",dt,now() + 400);
  while (gate_retry_flush(1,&id,&dt)) ;
}

#define JOBS 3000

/* both orders against a plain search */
static void orders(void)
{
  static struct { long when; long due; long serial; unsigned int queue; int flagwaits; } job[JOBS];
  unsigned long seed;
  unsigned long id;
  char buf[60];
  long serial;
  long dt;
  long start;
  int round;
  int i;
  int best;

  seed = 1;
  serial = 0;
  start = now();
  for (i = 0;i < JOBS;++i) job[i].flagwaits = 0;
  for (round = 0;round < 20000;++round) {
    seed = seed * 1103515245UL + 12345UL;
    i = (int) ((seed >> 16) % JOBS);
    switch((seed >> 8) % 4) {
      case 0: case 1:
        if (job[i].flagwaits) break;
        seed = seed * 1103515245UL + 12345UL;
        job[i].when = now() + 1 + (long) ((seed >> 16) % 3000);
        job[i].due = start - (long) ((seed >> 4) % 100);
        job[i].queue = 1 + (unsigned int) (i % 5);
        job[i].serial = ++serial;
        job[i].flagwaits = 1;
        gate_retry_open(0,1,(unsigned long) i,job[i].due);
        sprintf(buf,"B%ld %u busy\n",job[i].when - now(),job[i].queue);
        reported(0,(unsigned long) i,0,now() + 9000,buf);
        dt = now() + 9000;
        is("waits",gate_retry_close(0,1,(unsigned long) i,&dt),1);
        break;
      case 2:
        sprintf(buf,"R%d 1\n",i % 5 + 1);
        best = -1;
        for (i %= 5;i < JOBS;i += 5)
          if (job[i].flagwaits)
            if (best == -1 || job[i].due < job[best].due
                || (job[i].due == job[best].due && job[i].serial < job[best].serial))
              best = i;
        called(65535,buf);
        if (best == -1) break;
        is("called",gate_retry_due(1,&id,&dt),1);
        is("the one that was due first",(long) id,best);
        job[best].flagwaits = 0;
        break;
      case 3:
        if (round % 50) break;
        clock_seconds += 20;
        while (gate_retry_due(1,&id,&dt)) {
          is("its time has come",job[id].when <= now(),1);
          is("it waited",job[id].flagwaits,1);
          job[id].flagwaits = 0;
        }
        for (i = 0;i < JOBS;++i)
          if (job[i].flagwaits) is("its time has not come",job[i].when > now(),1);
        break;
    }
    if (failures > 10) return;
  }
  best = 0;
  for (i = 0;i < JOBS;++i) best += job[i].flagwaits;
  is("many wait",best > 100,1);
  for (i = 0;gate_retry_flush(1,&id,&dt);++i) ;
  is("all of them",i,best);
}

/* one recipient is busy, one is deferred by its own server, one is done */
static void mixed(void)
{
  unsigned long id;
  long natural;
  long dt;

  natural = now() + 1000;
  gate_retry_open(3,1,9,now());
  reported(3,9,0,natural,"B10 5 busy\n");
  reported(3,9,20,natural,"Zgreylisted\n");
  reported(3,9,40,natural,"Kdone\n");
  dt = natural;
  is("waits",gate_retry_close(3,1,9,&dt),1);
  clock_seconds += 11;
  is("due",gate_retry_due(1,&id,&dt),1);

  /* the early pass: its own natural time is later, the deferred one keeps its first */
  gate_retry_open(4,1,9,now());
  is("busy one is tried",gate_retry_skip(4,1,9,0,now()),0);
  is("deferred one is passed over",gate_retry_skip(4,1,9,20,now()),1);
  is("other message",gate_retry_skip(4,1,10,20,now()),0);
  is("other channel",gate_retry_skip(4,0,9,20,now()),0);
  reported(4,9,0,natural + 600,"Kdone\n");
  dt = natural + 600;
  is("goes to pqchan",gate_retry_close(4,1,9,&dt),0);
  is("at the first one's time",dt,natural);

  /* at that time it is tried again */
  clock_seconds = natural;
  gate_retry_open(5,1,9,now());
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
  gate_retry_open(0,1,11,now());
  reported(0,11,0,natural,"Zfull\n");
  reported(0,11,20,natural,"B60 5 busy\n");
  dt = natural;
  is("waits",gate_retry_close(0,1,11,&dt),1);
  for (passes = 0;passes < 20;++passes) {
    while (!gate_retry_due(1,&id,&dt)) {
      ++clock_seconds;
      if (now() > natural + 100) { is("comes back",0,1); return; }
    }
    gate_retry_open(0,1,11,now());
    if (!gate_retry_skip(0,1,11,0,now())) break;
    is("busy one is tried",gate_retry_skip(0,1,11,20,now()),0);
    reported(0,11,20,natural + 3000,"B60 5 busy\n");
    dt = natural + 3000;
    if (!gate_retry_close(0,1,11,&dt)) {
      is("sooner than busy",dt,natural);
      clock_seconds = natural;
      gate_retry_open(0,1,11,now());
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
    gate_retry_open(n,1,100 + n,now() - n);
    reported(n,100 + n,0,now() + 9000,"Zdeferred\n");
    reported(n,100 + n,1,now() + 9000,"B3600 5 busy\n");
    dt = now() + 9000;
    is("waits",gate_retry_close(n,1,100 + n,&dt),1);
  }
  is("remembered",gate_retry_skip(0,1,150,0,now()),1);
  for (n = 0;gate_retry_flush(1,&id,&dt);++n)
    is("due since it was due",dt,now() - ((long) id - 100));
  is("all",n,100);
  is("forgotten",gate_retry_skip(0,1,150,0,now()),0);

  /* a clock that is set back does not keep them */
  gate_retry_open(0,1,5,now());
  reported(0,5,0,now() + 9000,"B3600 5 busy\n");
  dt = now() + 9000;
  is("waits",gate_retry_close(0,1,5,&dt),1);
  start = clock_seconds;
  clock_seconds -= 100000;
  is("clock set back",gate_retry_due(1,&id,&dt),1);
  is("not due later than now",dt,now());
  clock_seconds = start;
}

/* more than fits: those jobs are deferred, and no deferred recipient is tried too soon */
static void many(void)
{
  unsigned long id;
  unsigned long mpos;
  long dt;

  gate_retry_open(0,1,77,now());
  for (mpos = 0;mpos < GATE_RETRY_MAX + 10;++mpos)
    reported(0,77,mpos,now() + 1000,"Zdeferred\n");
  reported(0,77,mpos,now() + 1000,"B5 5 busy\n");
  is("does not wait",closed(0,77,&dt),0);
  is("natural",dt,now() + 1000);
  is("forgotten",gate_retry_skip(0,1,77,5,now()),0);
  gate_retry_open(0,1,78,now());
  for (mpos = 0;mpos < 1000;++mpos)
    reported(0,78,mpos,now() + 1000,"Zdeferred\n");
  reported(0,78,mpos,now() + 1000,"B5 5 busy\n");
  is("waits",closed(0,78,&dt),1);
  for (mpos = 0;mpos < 1000;++mpos)
    is("remembered",gate_retry_skip(0,1,78,mpos,now()),1);
  while (gate_retry_flush(1,&id,&dt)) ;
  is("no job",gate_retry_skip(-1,1,78,5,now()),0);
  gate_retry_open(-1,1,78,now());
  is("channel",gate_retry_due(2,&id,&dt) + gate_retry_due(-1,&id,&dt) + gate_retry_flush(7,&id,&dt),0);
}

int main(void)
{
  reports();
  comesback();
  calls();
  early();
  portions();
  deferredones();
  list();
  orders();
  mixed();
  patience();
  flush();
  many();
  if (failures) return 1;
  printf("retry ok\n");
  return 0;
}
