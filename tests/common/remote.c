/* qmail-remote of the gate's tests: the far end of a delivery that takes its time, or that talks nonsense.

   qmail-remote HOST SENDER RECIPIENT

   A recipient is MODE-HOLD-TAG@DOMAIN, as for verify's stub. Here a HOLD that is a number is the time that the delivery
   takes, in milliseconds: it says in the events pipe that it has started, sleeps, says that it ends, and accepts. MODE g
   prints 64 KiB in which nothing is where a report has it. Anything else is left to the stub. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static void event(int fd, char what, const char *recipient)
{
  char line[1000];
  struct timespec now;
  int len;
  clock_gettime(CLOCK_MONOTONIC, &now);
  len = snprintf(line, sizeof line, "%c %ld %ld%09ld remote %s\n", what, (long) getpid(), (long) now.tv_sec,
                 now.tv_nsec, recipient);
  if (len < 0 || write(fd, line, len) != len) _exit(111);
}

static void say(const char *text, size_t len)
{
  if (write(1, text, len) != (ssize_t) len) _exit(111);
}

int main(int argc, char **argv)
{
  char *recipient;
  char *end;
  struct timespec pause;
  long ms;
  int events;

  if (argc < 4) return 100;
  recipient = argv[3];
  if (recipient[0] == 'g') {
    char garbage[4096];
    int i;
    for (i = 0; i < (int) sizeof garbage; ++i) garbage[i] = (char) (i * 7 + i / 256);
    for (i = 0; i < 16; ++i) say(garbage, sizeof garbage);
    return 0;
  }
  ms = recipient[1] == '-' ? strtol(recipient + 2, &end, 10) : 0;
  if (ms <= 0 || *end != '-') {
    execv(RIG "/stub", argv);
    return 111;
  }
  events = open(RIG "/events", O_WRONLY);
  if (events == -1) return 111;
  event(events, 'S', recipient);
  pause.tv_sec = ms / 1000;
  pause.tv_nsec = ms % 1000 * 1000000L;
  nanosleep(&pause, 0);
  event(events, 'E', recipient);
  say("r\0K", 3);
  say(recipient, strlen(recipient));
  say(" accepted\n", 11);
  return 0;
}
