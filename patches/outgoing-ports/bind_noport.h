#ifndef BIND_NOPORT_H
#define BIND_NOPORT_H

/*
 * bind() to an address of this host, for a socket that is to connect.
 *
 * bind() takes a free port at once, before it is known where the socket will connect to: all
 * connections from the address, whatever their destinations, share one range of ports
 * (net.ipv4.ip_local_port_range, 28232 by default). With IP_BIND_ADDRESS_NO_PORT, connect() takes the
 * port, and each destination has the whole range, as without bind(). It counts for IPv6 as well.
 *
 * A kernel that does not know the option (before Linux 4.2) refuses it: bind() then works as ever.
 * Elsewhere than on Linux there is no such option. Any kind of pointer is taken as the address.
 */

#include <sys/types.h>
#include <sys/socket.h>
#include <netinet/in.h>

/* Linux has this number on every machine; old C libraries do not know it. */
#ifdef __linux__
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif
#endif

/* By this text `qpatch doctor` knows a program that has it. */
#ifdef __GNUC__
#define BIND_NOPORT_KEPT __attribute__((used))
#else
#define BIND_NOPORT_KEPT
#endif
static char bind_noport_mark[] BIND_NOPORT_KEPT = "qpatch: IP_BIND_ADDRESS_NO_PORT";

static int bind_noport(int s,void *address,unsigned int length)
{
#ifdef IP_BIND_ADDRESS_NO_PORT
  int on;

  on = 1;
  (void) setsockopt(s,IPPROTO_IP,IP_BIND_ADDRESS_NO_PORT,(char *) &on,sizeof(on));
#endif
  return bind(s,(struct sockaddr *) address,length);
}

#endif
