/*
 * How many connections one address of this host can have to two destinations, when there are four
 * ephemeral ports: with bind() four in all, with bind_noport() four to each. In a network of its own,
 * since the number of ports is a setting of the network.
 *
 * Prints four numbers: IPv4 with bind() and bind_noport(), IPv6 with both ("none": there is no IPv6).
 * Exits with 77 where no network of its own can be had.
 */
#define _GNU_SOURCE
#include "bind_noport.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PORTS "40000 40003"
#define MANY 20

static void skip(const char *what)
{
  fprintf(stderr,"%s: %s\n",what,strerror(errno));
  exit(77);
}

static void own_network(void)
{
  struct ifreq lo;
  int s;
  int fd;

  if (unshare(CLONE_NEWNET) == -1 && unshare(CLONE_NEWUSER | CLONE_NEWNET) == -1) skip("unshare");
  s = socket(AF_INET,SOCK_DGRAM,0);
  memset(&lo,0,sizeof(lo));
  strcpy(lo.ifr_name,"lo");
  lo.ifr_flags = IFF_UP | IFF_RUNNING;
  if (s == -1 || ioctl(s,SIOCSIFFLAGS,&lo) == -1) skip("bring lo up");
  close(s);
  fd = open("/proc/sys/net/ipv4/ip_local_port_range",O_WRONLY);
  if (fd == -1 || write(fd,PORTS,sizeof(PORTS) - 1) == -1) skip("ip_local_port_range");
  close(fd);
}

/* An address of this host: number 2, 3, ... for IPv4; IPv6 has but one. */
static socklen_t address(int family,int number,int port,void *to)
{
  struct sockaddr_in *v4 = to;
  struct sockaddr_in6 *v6 = to;

  if (family == AF_INET) {
    memset(v4,0,sizeof(*v4));
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    v4->sin_addr.s_addr = htonl(0x7f000000 + number);
    return sizeof(*v4);
  }
  memset(v6,0,sizeof(*v6));
  v6->sin6_family = AF_INET6;
  v6->sin6_port = htons(port);
  v6->sin6_addr = in6addr_loopback;
  return sizeof(*v6);
}

/* -1: this host has no such address. */
static int connections(int family,int (*binds)(int,void *,unsigned int))
{
  static struct sockaddr_storage to;
  socklen_t len;
  int listening[2];
  int open[2 * MANY];
  int count = 0;
  int i;
  int j;
  int s;

  for (i = 0;i < 2;++i) {
    listening[i] = socket(family,SOCK_STREAM,0);
    len = address(family,3 + i,2525 + i,&to);
    if (listening[i] == -1 || bind(listening[i],(struct sockaddr *) &to,len) == -1) return -1;
    if (listen(listening[i],MANY) == -1) return -1;
  }
  for (i = 0;i < 2;++i)
    for (j = 0;j < MANY;++j) {
      s = socket(family,SOCK_STREAM,0);
      len = address(family,2,0,&to);
      if (binds(s,&to,len) == -1) { close(s); break; }
      len = address(family,3 + i,2525 + i,&to);
      if (connect(s,(struct sockaddr *) &to,len) == -1) { close(s); break; }
      open[count++] = s;
    }
  /* With a reset, so that no port waits for a minute. */
  for (i = 0;i < count;++i) {
    struct linger now = { 1, 0 };
    setsockopt(open[i],SOL_SOCKET,SO_LINGER,&now,sizeof(now));
    close(open[i]);
  }
  for (i = 0;i < 2;++i) close(listening[i]);
  return count;
}

static int plain(int s,void *to,unsigned int len)
{
  return bind(s,(struct sockaddr *) to,len);
}

static void show(int count)
{
  if (count == -1) printf("none ");
  else printf("%d ",count);
}

int main(void)
{
  own_network();
  show(connections(AF_INET,plain));
  show(connections(AF_INET,bind_noport));
  show(connections(AF_INET6,plain));
  show(connections(AF_INET6,bind_noport));
  printf("\n");
  return 0;
}
