/*
Tests that gate_retry.c does what its header says, with a clock that this program sets. This file has more than 700
lines because the cases share one qmail-send.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
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

/* a channel file in which a recipient begins everywhere */
static int file;

/* one in which none does, and an empty one */
static int other;
static int empty;

static char *reportedby(int j, unsigned long id, unsigned long mpos, long natural, char *recip, char *report)
{
  static char buf[300];

  strcpy(buf,report);
  gate_retry_report(j,1,id,mpos,natural,recip,buf);
  return buf;
}

static char *reported(int j, unsigned long id, unsigned long mpos, long natural, char *report)
{
  return reportedby(j,id,mpos,natural,"user@a.example",report);
}

/* the job's natural retry time is 1000 seconds away */
static int closed(int j, long *dt)
{
  *dt = now() + 1000;
  return gate_retry_close(j,1,dt);
}

/* the same, after a pass that did not come to the end of the file */
static int closedearly(int j, long *dt)
{
  *dt = now() + 1000;
  return gate_retry_close(j,0,dt);
}

/* the next recipient of a pass that has come to mpos; -1: it has ended */
static long next(int j, unsigned long mpos)
{
  unsigned long at;

  at = mpos;
  switch(gate_retry_next(j,file,&at)) {
    case 0: is("it stays",(long) at,(long) mpos); return (long) at;
    case 1: is("it moves",at == mpos,0); return (long) at;
  }
  return -1;
}

/* a pass in which all goes well */
static void passover(int j, unsigned long id)
{
  long at;
  long dt;

  gate_retry_open(j,1,id,now());
  for (at = 0;(at = next(j,at)) != -1;++at) ;
  closed(j,&dt);
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
  is("waits",closed(0,&dt),1);
  for (i = 0;garbage[i];++i) {
    gate_retry_open(1,1,8,now());
    is("garbage is a deferral",*reported(1,8,0,now() + 1000,garbage[i]),'Z');
    is("garbage does not wait",closed(1,&dt),0);
    is("garbage is natural",dt,now() + 1000);
  }
  gate_retry_open(1,1,8,now());
  is("K stays",strcmp(reported(1,8,0,0,"Kfine\n"),"Kfine\n"),0);
  is("D stays",strcmp(reported(1,8,0,0,"Dbad\n"),"Dbad\n"),0);
  is("Z stays",strcmp(reported(1,8,0,now() + 1000,"Zlater\n"),"Zlater\n"),0);
  is("nobody busy",closed(1,&dt),0);
  is("natural",dt,now() + 1000);
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
  passover(0,7);
}

static int called(unsigned long delnum, char *report)
{
  static char buf[300];

  strcpy(buf,report);
  return gate_retry_call(1,delnum,buf);
}

static void calls(void)
{
  static char *garbage[] =
    { "", "R", "R5", "R5 ", "R5 x\n", "R5 0\n", "R0 5\n", "R5 -1\n", "R5 4294967296\n", "R5 5", "Z5 5\n", 0 };
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
    is("waits",closed(i,&dt),1);
  }
  is("waits",gate_retry_due(1,&id,&dt),0);
  is("call",called(65535,"R5 3\n"),1);
  for (i = 29;i > 26;--i) {
    is("due",gate_retry_due(1,&id,&dt),1);
    is("due first, called first",(long) id,i);
    is("due since",dt,now() - i);
    passover(0,id);
  }
  is("no more than called",gate_retry_due(1,&id,&dt),0);
  is("call all",called(65535,"R6 4294967295\n"),1);
  for (i = 34;i > 29;--i) {
    is("due",gate_retry_due(1,&id,&dt),1);
    is("id",(long) id,i);
    passover(0,id);
  }
  is("no more",gate_retry_due(1,&id,&dt),0);
  is("call",called(65535,"R5 100\n"),1);
  for (i = 0;gate_retry_due(1,&id,&dt);++i) passover(0,id);
  is("the others",i,7);
}

/* a call that comes while the job is open: its pass has not seen the end of its recipients yet */
static void early(void)
{
  unsigned long id;
  unsigned long mpos;
  long dt;

  gate_retry_open(0,1,60,now());
  for (mpos = 0;mpos < 4;++mpos) reported(0,60,mpos,now() + 400,"B3000 5 busy\n");
  is("call",called(65535,"R5 2\n"),1);
  is("due at once",gate_retry_due(1,&id,&dt) && id == 60,1);
  is("once",gate_retry_due(1,&id,&dt),0);
  is("a part",gate_retry_open(1,1,60,dt),1);
  is("the first",next(1,0),0);
  is("is tried",gate_retry_skip(1,0,"user@a.example"),0);
  is("the second",next(1,1),1);
  is("and no more",next(1,2),-1);
  is("the other job goes on",closed(1,&dt),1);
  is("others wait",closed(0,&dt),1);
  is("not called again",gate_retry_due(1,&id,&dt),0);
  while (gate_retry_flush(1,&id,&dt)) ;
}

/* a message with busy recipients: as many come as were called, several jobs at once, and then it is done */
static void portions(void)
{
  unsigned long id;
  long dt;
  long mpos;
  long from;
  int pass;

  is("from the beginning",gate_retry_open(0,1,40,now() - 1),0);
  for (mpos = 0;mpos < 100;mpos += 10) {
    is("to the end",next(0,mpos),mpos);
    reported(0,40,mpos,now() + 400,"B3000 5 busy\n");
  }
  is("waits",closed(0,&dt),1);
  gate_retry_open(1,1,41,now());
  reported(1,41,0,now() + 400,"B3000 5 busy\n");
  is("waits",closed(1,&dt),1);
  from = 0;
  for (pass = 0;pass < 4;++pass) {
    called(65535,pass < 3 ? "R5 3\n" : "R5 1\n");
    is("due",gate_retry_due(1,&id,&dt),1);
    is("it was first",(long) id,40);
    is("a part",gate_retry_open(pass,1,40,dt),1);
    mpos = 0;
    while ((mpos = next(pass,mpos)) != -1) {
      is("where the last one ended",mpos,from);
      is("the same until it is read",next(pass,mpos),mpos);
      from += 10;
      mpos += 5; /* it was so long */
    }
    is("as called",from,pass < 3 ? 30 * (pass + 1) : 100);
  }
  is("nobody else",gate_retry_due(1,&id,&dt),0);
  is("an entry without business",gate_retry_open(4,1,40,now()),1);
  is("is a pass over nobody",next(4,0),-1);
  for (pass = 4;pass > 0;--pass) is("others are under way",closed(pass,&dt),1);
  is("none is left",closed(0,&dt),0);
  is("a whole pass sees that it is done, now",dt,now());
  is("from the beginning",gate_retry_open(0,1,40,now()),0);
  is("of everybody",next(0,0),0);
  called(65535,"R5 3\n");
  is("then the other",gate_retry_due(1,&id,&dt) && id == 41,1);
  passover(1,41);

  /* by the clock all of them come, at the time of the last one */
  gate_retry_open(0,1,42,now());
  for (mpos = 0;mpos < 10;++mpos) reported(0,42,mpos,now() + 400,mpos ? "B30 5 busy\n" : "B20 5 busy\n");
  is("waits",closed(0,&dt),1);
  clock_seconds += 29;
  is("not yet",gate_retry_due(1,&id,&dt),0);
  clock_seconds += 1;
  is("due",gate_retry_due(1,&id,&dt),1);
  is("a part",gate_retry_open(0,1,42,dt),1);
  for (mpos = 0;mpos < 10;++mpos) is("tried",next(0,mpos),mpos);
  is("all",next(0,mpos),-1);
  is("done",closed(0,&dt),0);
  while (gate_retry_flush(1,&id,&dt)) ;
}

/* Two names with the same 32-bit FNV-1a. A domain whose owner chose it like that does not take the other one's mail. */
static void colliding(void)
{
  unsigned long id;
  char *recip;
  long dt;

  gate_retry_open(0,1,51,now());
  reportedby(0,51,0,now() + 400,"a@x496069.example","B3000 5 busy\n");
  is("the other one is tried",gate_retry_skip(0,10,"b@x1035124.example"),0);
  is("its own are not",gate_retry_skip(0,20,"c@x496069.example"),1);
  reportedby(0,51,10,now() + 400,"b@x1035124.example","K\n");
  is("ask",gate_retry_ask(1,&id,&recip) && !strcmp(recip,"1@x496069.example"),1);
  is("answer",called(65535,"B3000 5 busy\n"),1);
  is("waits",closed(0,&dt),1);
  while (gate_retry_flush(1,&id,&dt)) ;
}

/* once one of a domain is busy, the gate is asked for the others together */
static void together(void)
{
  static char *answers[] = { "B3000 5 busy\n", "B3000 6 busy\n", "Zdelnum too big\n", 0 };
  unsigned long id;
  char *recip;
  long mpos;
  long dt;
  int i;

  for (i = 0;answers[i];++i) {
    gate_retry_open(0,1,50,now());
    is("tried",gate_retry_skip(0,0,"a@a.example"),0);
    reportedby(0,50,0,now() + 400,"a@a.example","B3000 5 busy\n");
    is("nothing to ask",gate_retry_ask(1,&id,&recip),0);
    is("an other domain",gate_retry_skip(0,10,"b@b.example"),0);
    is("no domain",gate_retry_skip(0,20,"nobody"),0);
    is("the same domain",gate_retry_skip(0,30,"b@c@A.Example"),1);
    is("and again",gate_retry_skip(0,40,"c@a.example"),1);
    is("an answer to nothing",called(65535,answers[i]),0);
    is("other channel",gate_retry_ask(0,&id,&recip),0);
    is("ask",gate_retry_ask(1,&id,&recip),1);
    is("for two",strcmp(recip,"2@A.Example"),0);
    is("of this message",(long) id,50);
    is("those that come now are asked for later",gate_retry_skip(0,50,"d@a.example"),1);
    is("one question at a time",gate_retry_ask(1,&id,&recip),0);
    is("answer",called(65535,answers[i]),1);
    is("the one that came later",gate_retry_ask(1,&id,&recip) && !strcmp(recip,"1@a.example"),1);
    is("answer",called(65535,"B3000 5 busy\n"),1);
    is("waits",closed(0,&dt),1);
    if (i == 1) called(65535,"R6 2\n");
    if (i == 2) is("at once",gate_retry_due(1,&id,&dt),1);
    if (i) {
      if (i == 1) is("due",gate_retry_due(1,&id,&dt),1);
      is("a part",gate_retry_open(1,1,50,now()),1);
      is("the two",next(1,0),30);
      is("the two",next(1,31),40);
      is("no more",next(1,41),-1);
      is("waits",closed(1,&dt),1);
    }
    called(65535,"R5 100\n");
    is("due",gate_retry_due(1,&id,&dt),1);
    is("a part",gate_retry_open(1,1,50,now()),1);
    mpos = next(1,1);
    is("the first",mpos,0);
    is("nobody was busy in this pass",gate_retry_skip(1,0,"a@a.example"),0);
    if (!i) {
      is("the two",next(1,1),30);
      is("the two",next(1,31),40);
    }
    is("the last",next(1,45),50);
    is("no more",next(1,51),-1);
    is("done",closed(1,&dt),0);
  }
  while (gate_retry_flush(1,&id,&dt)) ;
}

/* what hands out nobody takes no turn of the main loop, but for 100 of them */
static void steps(void)
{
  unsigned long mpos;
  int n;

  while (gate_retry_again()) ;
  is("nothing was done",gate_retry_again(),0);
  gate_retry_open(0,1,51,now());
  for (n = 0,mpos = 0;;++n,++mpos) {
    next(0,mpos);
    if (!gate_retry_again()) break;
  }
  is("steps",n,99);
  next(0,mpos + 1);
  is("handed out",gate_retry_skip(0,mpos + 1,"a@a.example"),0);
  is("its turn is over",gate_retry_again(),0);
  next(0,mpos + 2);
  is("again",gate_retry_again(),1);
  next(0,mpos + 2);
  is("no slot was free",gate_retry_again(),0);
}

/* what is busy waits on when the time of a deferred one has come, and after SIGALRM */
static void deferredones(void)
{
  unsigned long id;
  long mpos;
  long dt;
  int alarm;
  int n;

  for (alarm = 0;alarm < 2;++alarm) {
    gate_retry_open(0,1,44,now());
    for (mpos = 0;mpos < 10;++mpos)
      reported(0,44,mpos,now() + 400,mpos % 2 ? "B3000 5 busy\n" : "Zlater\n");
    is("waits",closed(0,&dt),1);
    gate_retry_open(0,1,45,now());
    reported(0,45,0,now() + 400,"B3000 5 busy\n");
    is("waits",closed(0,&dt),1);
    if (alarm) {
      is("SIGALRM",gate_retry_alarm(1,&id,&dt) && id == 44,1);
      is("the other is only busy",gate_retry_alarm(1,&id,&dt),0);
    }
    else {
      is("wakeup",gate_retry_wakeup(now() + 9000),now() + 400);
      clock_seconds += 400;
      is("due",gate_retry_due(1,&id,&dt) && id == 44,1);
      is("the other is only busy",gate_retry_due(1,&id,&dt),0);
    }
    is("a part",gate_retry_open(0,1,44,dt),1);
    for (mpos = 0;mpos < 10;mpos += 2) {
      is("the deferred ones",next(0,mpos),mpos);
      reported(0,44,mpos,now() + 400,"Kdone\n");
    }
    is("and no more",next(0,9),-1);
    is("the others wait",closed(0,&dt),1);
    called(65535,"R5 100\n");
    for (n = 0;gate_retry_due(1,&id,&dt);++n) passover(0,id);
    is("both",n,2);
  }
}

/* 65000 recipients, of whom 400 were asked for: called 20 at a time, a pass is the work of those */
static void list(void)
{
  unsigned long id;
  unsigned long mpos;
  char *recip;
  long looked;
  long at;
  long dt;
  int j;

  gate_retry_open(0,1,90,now());
  for (mpos = 0;mpos < 65000;++mpos) {
    is("to the end",next(0,mpos),(long) mpos);
    if (gate_retry_skip(0,mpos,"u@a.example")) continue;
    reported(0,90,mpos < 400 ? mpos : 0,now() + 400,mpos < 400 ? "Kok\n" : "B3600 5 busy\n");
    if (mpos > 400) is("asked for one by one",1,0);
  }
  is("ask",gate_retry_ask(1,&id,&recip) && !strcmp(recip,"64599@a.example"),1);
  is("answer",called(65535,"B3600 5 busy\n"),1);
  looked = 0;
  for (j = 1;;++j) {
    called(65535,"R5 20\n");
    if (!gate_retry_due(1,&id,&dt)) break;
    is("a part",gate_retry_open(j,1,90,dt),1);
    for (at = 0;(at = next(j,at)) != -1;++at) ++looked;
  }
  is("all of them",looked,65000 - 401 + 1);
  for (--j;j;--j) is("others are under way",closed(j,&dt),1);
  is("done",closed(0,&dt),0);
  is("now",dt,now());
}

/* after 256 that were handed out since one was busy */
static void turns(void)
{
  unsigned long id;
  unsigned long mpos;
  char recip[40];
  long dt;
  int n;

  gate_retry_open(0,1,91,now() - 100);
  for (mpos = 0;next(0,mpos) != -1;++mpos) {
    sprintf(recip,"u@d%lu.example",mpos);
    is("a domain of its own",gate_retry_skip(0,mpos,recip),0);
    if (!mpos) reportedby(0,91,mpos,now() + 400,recip,"B3600 5 busy\n");
  }
  is("others go first",(long) mpos,257);
  is("goes on",gate_retry_due(1,&id,&dt) && id == 91,1);
  is("behind them",dt,now());
  is("the rest",gate_retry_open(1,1,91,dt),1);
  is("from there",next(1,0),257);
  for (n = 0;n < 1000;++n) is("to the end",next(1,257 + n),257 + n);
  is("waits",closed(1,&dt),1);
  is("waits",closed(0,&dt),1);
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
        is("waits",gate_retry_close(0,1,&dt),1);
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
        passover(1,id);
        job[best].flagwaits = 0;
        break;
      case 3:
        if (round % 50) break;
        clock_seconds += 20;
        while (gate_retry_due(1,&id,&dt)) {
          is("its time has come",job[id].when <= now(),1);
          is("it waited",job[id].flagwaits,1);
          passover(1,id);
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
  is("waits",closed(3,&dt),1);
  clock_seconds += 11;
  is("due",gate_retry_due(1,&id,&dt),1);
  is("a part",gate_retry_open(4,1,9,now()),1);
  is("the busy one",next(4,0),0);
  is("is tried",gate_retry_skip(4,0,"u@a.example"),0);
  is("the deferred one is not",next(4,15),-1);
  reported(4,9,0,natural + 600,"Kdone\n");
  is("waits for its time",closed(4,&dt),1);
  is("wakeup",gate_retry_wakeup(now() + 5000),natural);
  is("not yet",gate_retry_due(1,&id,&dt),0);

  /* at that time it is tried again */
  clock_seconds = natural;
  is("due",gate_retry_due(1,&id,&dt),1);
  is("a part",gate_retry_open(5,1,9,dt),1);
  is("at its place",next(5,0),20);
  reported(5,9,20,natural + 5000,"Zagain\n");
  is("no more",next(5,30),-1);
  is("waits",closed(5,&dt),1);
  is("wakeup",gate_retry_wakeup(now() + 9000),natural + 5000);
  clock_seconds = natural + 5000;
  is("due",gate_retry_due(1,&id,&dt),1);
  gate_retry_open(5,1,9,dt);
  is("at its place",next(5,0),20);
  reported(5,9,20,0,"Kdone\n");
  is("no more",next(5,30),-1);
  is("done",closed(5,&dt),0);
  is("now",dt,now());
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
    is("waits",closed(n,&dt),1);
  }
  for (n = 0;gate_retry_flush(1,&id,&dt);++n)
    is("due since it was due",dt,now() - ((long) id - 100));
  is("all",n,100);
  is("forgotten",gate_retry_open(0,1,150,now()),0);

  /* with nothing but a deferred recipient it is stored for its time */
  gate_retry_open(0,1,6,now());
  reported(0,6,0,now() + 9000,"B3600 5 busy\n");
  reported(0,6,1,now() + 9000,"Zdeferred\n");
  is("waits",closed(0,&dt),1);
  called(65535,"R5 1\n");
  is("due",gate_retry_due(1,&id,&dt),1);
  passover(0,6);
  is("stored",gate_retry_flush(1,&id,&dt) && id == 6,1);
  is("at its time",dt,now() + 9000);
  is("no more",gate_retry_flush(1,&id,&dt),0);

  /* a clock that is set back does not keep them */
  gate_retry_open(0,1,5,now());
  reported(0,5,0,now() + 9000,"B3600 5 busy\n");
  is("waits",closed(0,&dt),1);
  start = clock_seconds;
  clock_seconds -= 100000;
  is("clock set back",gate_retry_due(1,&id,&dt),1);
  is("not due later than now",dt,now());
  clock_seconds = start;
  passover(0,5);
}

/* more than fits: the message comes back for those when the others have been tried */
static void many(void)
{
  unsigned long id;
  unsigned long mpos;
  long dt;

  gate_retry_open(0,1,77,now());
  reported(0,77,0,now() + 1000,"B5 5 busy\n");
  for (mpos = 1;mpos < GATE_RETRY_MAX + 10;++mpos)
    reported(0,77,mpos,now() + 700,"Zdeferred\n");
  is("the busy one waits",closed(0,&dt),1);
  called(65535,"R5 1\n");
  is("due",gate_retry_due(1,&id,&dt),1);
  is("a part",gate_retry_open(0,1,77,dt),1);
  is("the busy one",next(0,0),0);
  is("then all of it",closed(0,&dt),0);
  is("at the others' time",dt,now() + 700);
  is("forgotten",gate_retry_open(0,1,77,now()),0);
  is("nothing waits",gate_retry_wakeup(now() + 9000),now() + 9000);

  /* nobody busy: as without the gate */
  for (mpos = 0;mpos < GATE_RETRY_MAX + 10;++mpos)
    reported(0,77,mpos,now() + 1000,"Zdeferred\n");
  is("natural",closed(0,&dt),0);
  is("natural",dt,now() + 1000);

  is("no job",gate_retry_skip(-1,5,"u@a.example"),0);
  is("no job",gate_retry_open(-1,1,78,now()),0);
  is("channel",gate_retry_due(2,&id,&dt) + gate_retry_due(-1,&id,&dt) + gate_retry_flush(7,&id,&dt),0);
}

/* a message that was removed while qmail-send ran, and another one that has its number */
static void another(void)
{
  unsigned long id;
  unsigned long at;
  long start;
  long dt;
  int kind;

  for (kind = 0;kind < 3;++kind) {
    start = now();
    gate_retry_open(0,1,70,now());
    reported(0,70,0,now() + 400,"Zlater\n");
    reported(0,70,100,now() + 400,"B3000 5 busy\n");
    reported(0,70,200,now() + 400,"B3000 5 busy\n");
    is("waits",closed(0,&dt),1);
    called(65535,"R5 2\n");
    is("due",gate_retry_due(1,&id,&dt),1);
    is("a part",gate_retry_open(0,1,70,dt),1);
    at = 0;
    if (kind < 2) {
      /* nobody begins there: something else is there, or nothing at all */
      is("none of it is there",gate_retry_next(0,kind ? empty : other,&at),2);
      is("back",closedearly(0,&dt),0);
    }
    else {
      /* it ends behind the first */
      is("the first",next(0,0),100);
      is("is tried",gate_retry_skip(0,100,"u@a.example"),0);
      reported(0,70,100,now() + 400,"Kok\n");
      is("the second",next(0,110),200);
      is("back",closed(0,&dt),0);
    }
    is("natural",dt,start + 1000);
    is("forgotten",gate_retry_open(0,1,70,dt),0);
    is("nothing waits",gate_retry_due(1,&id,&dt) + gate_retry_flush(1,&id,&dt),0);
  }
  /* an error of reading is not that: they are tried later */
  gate_retry_open(0,1,70,now());
  reported(0,70,100,now() + 400,"B3000 5 busy\n");
  is("waits",closed(0,&dt),1);
  called(65535,"R5 2\n");
  is("due",gate_retry_due(1,&id,&dt) && gate_retry_open(0,1,70,dt),1);
  at = 0;
  is("error",gate_retry_next(0,-1,&at),2);
  is("waits",closedearly(0,&dt),1);
  clock_seconds += 1000;
  is("due",gate_retry_due(1,&id,&dt) && gate_retry_open(0,1,70,dt),1);
  is("it seeks well, and cannot read",next(0,0),100);
  is("waits",closedearly(0,&dt),1);
  clock_seconds += 1000;
  is("due",gate_retry_due(1,&id,&dt) && gate_retry_open(0,1,70,dt),1);
  is("the same one",next(0,0),100);
  is("tried",gate_retry_skip(0,100,"u@a.example"),0);
  reported(0,70,100,now() + 400,"Kok\n");
  is("done",next(0,110),-1);
  is("done",closed(0,&dt),0);
}

/* whom a pass did not come to does not wait for those that are deferred again and again */
static void unread(void)
{
  unsigned long id;
  long start;
  long mpos;
  long dt;
  int kind;

  for (kind = 0;kind < 4;++kind) {
    start = now();
    gate_retry_open(0,1,71,now());
    reported(0,71,0,now() + 5000,"Zlater\n");
    if (kind == 3) reported(0,71,10,now() + 5000,"B3000 5 busy\n");
    else reportedby(0,71,10,now() + 5000,"u@a.example","B3000 5 busy\n");
    if (kind == 0) is("it cannot be read on",closedearly(0,&dt),1);
    if (kind == 1) {
      is("no memory to start it",gate_retry_skip(0,20,"u@b.example"),0);
      is("it waits for the busy one",closed(0,&dt),1);
    }
    if (kind > 1) {
      for (mpos = 20;next(0,mpos) != -1;++mpos) gate_retry_skip(0,mpos,"u@b.example"), reported(0,71,mpos,0,"Kok\n");
      is("the rest",gate_retry_due(1,&id,&dt) && gate_retry_open(1,1,71,dt),1);
      is("waits",closedearly(0,&dt),1);
      if (kind == 2) is("from there",next(1,0),mpos);
      else {
        unsigned long at = 0;
        is("it cannot be read at all",gate_retry_next(1,-1,&at),2);
      }
      is("and cannot be read on",closedearly(1,&dt),1);
    }
    called(65535,"R5 1\n");
    is("due",gate_retry_due(1,&id,&dt) && gate_retry_open(0,1,71,dt),1);
    is("the busy one",next(0,0),10);
    is("is tried",gate_retry_skip(0,10,"u@a.example"),0);
    reported(0,71,10,0,"Kok\n");
    is("no more",next(0,20),-1);
    is("all of it again",closed(0,&dt),0);
    is("natural",dt,start + 1000);
    is("forgotten",gate_retry_open(0,1,71,dt),0);
  }
}

/* birth + (a lot)^2, or a birth that is to come: not at once for that, and not in a year */
static void faraway(void)
{
  unsigned long id;
  long mpos;
  long dt;
  int n;

  gate_retry_open(0,1,72,now());
  reported(0,72,0,now() + 400,"B3000 5 busy\n");
  reported(0,72,10,now() + 200000,"Zlater\n");
  is("waits",closed(0,&dt),1);
  is("not at once",gate_retry_due(1,&id,&dt),0);
  called(65535,"R5 1\n");
  is("due",gate_retry_due(1,&id,&dt),1);
  passover(0,72);
  for (n = 0;n < 3;++n) {
    is("wakeup",gate_retry_wakeup(now() + 900000),now() + 86400);
    clock_seconds += 86399;
    is("not yet",gate_retry_due(1,&id,&dt),0);
    clock_seconds += 1;
    is("due",gate_retry_due(1,&id,&dt),1);
    is("a part",gate_retry_open(0,1,72,dt),1);
    is("the deferred one",next(0,0),10);
    reported(0,72,10,now() + 200000,n < 2 ? "Zlater\n" : "Kok\n");
    mpos = next(0,20);
    is("and no more",mpos,-1);
    is("waits",closed(0,&dt),n < 2);
  }
}

/* a message whose recipients are deferred again and again does not go before newer mail for ever */
static void ages(void)
{
  unsigned long id;
  long dt;

  gate_retry_open(0,1,73,now() - 50);
  reported(0,73,0,now() + 400,"Zlater\n");
  reported(0,73,10,now() + 400,"B3000 5 busy\n");
  is("waits",closed(0,&dt),1);
  clock_seconds += 400;
  is("due",gate_retry_due(1,&id,&dt),1);
  is("since it was to be tried again",dt,now());
  is("a part",gate_retry_open(0,1,73,dt),1);
  is("the deferred one",next(0,0),0);
  is("is tried",gate_retry_skip(0,0,"u@a.example"),0);
  gate_retry_open(1,1,74,now() - 100);
  reported(1,74,0,now() + 400,"B3000 5 busy\n");
  is("waits",closed(1,&dt),1);
  reported(0,73,0,now() + 400,"B3000 5 busy\n");
  is("waits",closed(0,&dt),1);
  called(65535,"R5 1\n");
  is("who was busy from the first",gate_retry_due(1,&id,&dt) && id == 73,1);
  is("since it was due",dt,now() - 450);
  passover(0,73);
  called(65535,"R5 1\n");
  is("the newer message",gate_retry_due(1,&id,&dt) && id == 74,1);
  passover(0,74);
  called(65535,"R5 1\n");
  is("who was deferred before",gate_retry_due(1,&id,&dt) && id == 73,1);
  passover(0,73);
}

/* those with the same retry time come back together, whatever jobs they are of */
static void gathered(void)
{
  unsigned long id;
  long retry;
  long mpos;
  long dt;

  retry = now() + 400;
  for (mpos = 0;mpos < 1000;mpos += 10) {
    gate_retry_open(mpos ? 1 : 0,1,75,now());
    if (!mpos) reported(0,75,5000,retry,"B3000 5 busy\n");
    else reported(1,75,mpos,retry,"Zlater\n");
    if (mpos) is("waits",closed(1,&dt),1);
  }
  is("waits",closed(0,&dt),1);
  is("SIGALRM",gate_retry_alarm(1,&id,&dt),1);
  is("all of them",gate_retry_alarm(1,&id,&dt),0);
  is("a part",gate_retry_open(0,1,75,dt),1);
  for (mpos = 10;mpos < 1000;mpos += 10) is("one after the other",next(0,mpos - 1),mpos);
  is("no more",next(0,mpos - 1),-1);
  is("the busy one waits",closed(0,&dt),1);
  while (gate_retry_flush(1,&id,&dt)) ;
}

int main(void)
{
  FILE *f;
  int i;

  f = tmpfile();
  if (!f || ftruncate(fileno(f),1 << 20) == -1) return 2;
  file = fileno(f);
  f = tmpfile();
  if (!f) return 2;
  empty = fileno(f);
  f = tmpfile();
  if (!f) return 2;
  for (i = 0;i < 1000;++i) putc('T',f);
  if (fflush(f) == EOF) return 2;
  other = fileno(f);
  reports();
  comesback();
  calls();
  early();
  portions();
  together();
  colliding();
  steps();
  deferredones();
  list();
  turns();
  orders();
  mixed();
  flush();
  another();
  unread();
  faraway();
  ages();
  gathered();
  many();
  if (failures) return 1;
  printf("retry ok\n");
  return 0;
}
