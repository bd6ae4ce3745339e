#!/bin/bash
# nslookup of busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1), asked for the MX of domains with 0, 20 and 21 of them, at NSD 4.6.1 (Debian nsd
# 4.6.1-1). The answer with 20 has 510 bytes; that with 21 is over 512, so NSD answers by UDP that it is cut (TC), and whole by TCP.
#
# Guess: 20 and 21 are shown, the latter by TCP; and if busybox cannot do TCP, then it says that the answer is cut, or fails.
# Seen:  of the 21 none is shown, without a word and with exit code 0: to the letter what is printed for a domain that has no MX.
#        20 MX: 20 shown, exit code 0
#        21 MX: 0 shown, exit code 0, the same words as for no MX
#        So a check in a small container (that a domain has MX, or how many) says no for just the domains with many.
#
# Needs python3; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); pid=
trap 'kill $pid; wait $pid || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download busybox=1:1.35.0-4+deb12u1+b1 nsd=4.6.1-1 libfstrm0 libprotobuf-c1 libevent-2.1-7 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
{
  printf '%s\n' '$TTL 300' '@ IN SOA ns.mail.example. host.mail.example. 1 3600 600 86400 300' '@ IN NS ns' 'ns IN A 127.0.0.1' 'm0 IN A 127.0.0.2'
  for n in 20 21; do for ((i = 101; i <= 100 + n; i++)); do echo "m$n IN MX 10 mx0$i"; done; done
} > zone
cat > nsd.conf <<END
server:
  ip-address: 127.0.0.1@2753
  username: ""
  database: ""
  zonesdir: "$dir"
  pidfile: "$dir/pid"
  xfrdfile: "$dir/xfrd"
  zonelistfile: "$dir/zones"
  server-count: 1
remote-control:
  control-enable: no
zone:
  name: mail.example
  zonefile: zone
END
LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu root/usr/sbin/nsd -d -c "$dir/nsd.conf" 2> log & pid=$!
python3 - <<'END'
import socket, struct, subprocess, time
question = lambda mx: struct.pack('>6H', 4242, 0, 1, 0, 0, 0) + b'%cm%d\4mail\7example\0' % (1 + len(str(mx)), mx) + struct.pack('>2H', 15, 1)
def udp(mx):
    """What NSD answers by UDP: how many MX, TC; None if nothing yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2); s.connect(('127.0.0.1', 2753))
        try: s.send(question(mx)); r = s.recv(65535)
        except (ConnectionRefusedError, TimeoutError): return None
    return struct.unpack('>H', r[6:8])[0], r[2] >> 1 & 1
def tcp(mx):
    with socket.create_connection(('127.0.0.1', 2753), 5) as s:
        s.sendall(struct.pack('>H', len(question(mx))) + question(mx))
        return struct.unpack('>H', s.makefile('rb').read(10)[8:10])[0]
until = time.time() + 20
while not udp(20) and time.time() < until: time.sleep(0.2)
if (udp(20), udp(21), tcp(21)) != ((20, 0), (0, 1), 21): raise SystemExit('NSD answers otherwise, this has changed')
def shown(mx):
    name = 'm%d.mail.example' % mx
    done = subprocess.run(['root/bin/busybox', 'nslookup', '-type=mx', name, '127.0.0.1:2753'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.count('mail exchanger'), done.returncode, done.stdout.replace(name, 'NAME')
none, twenty, more = map(shown, (0, 20, 21))
print('20 MX: %d shown, exit code %d' % twenty[:2])
print('21 MX: %d shown, exit code %d, %s words as for no MX' % (*more[:2], 'the same' if more == none else 'other'))
if not (twenty[:2] == (20, 0) and more[:2] == (0, 0) and more == none): raise SystemExit('this has changed')
END
