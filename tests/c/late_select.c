/* A select that waits for a signal first, once: loaded into a program by LD_PRELOAD. If there is a file ARMED and select
   would wait for a minute or more, it renames the file to READY, waits until a signal has been caught, and then does its
   work. So a test can send a signal that arrives just before select. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int select(int limit, fd_set *reading, fd_set *writing, fd_set *failing, struct timeval *timeout)
{
  struct timespec rest;

  if (timeout && timeout->tv_sec >= 60 && rename(ARMED,READY) == 0) pause();
  if (!timeout) return syscall(SYS_pselect6,limit,reading,writing,failing,(void *) 0,(void *) 0);
  rest.tv_sec = timeout->tv_sec;
  rest.tv_nsec = timeout->tv_usec * 1000;
  return syscall(SYS_pselect6,limit,reading,writing,failing,&rest,(void *) 0);
}
