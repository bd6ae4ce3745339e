#!/bin/bash
# YADIFA 2.6.4 (Debian yadifa 2.6.4-1), the name server, and a domain with 30 MX. A client without EDNS, as qmail-remote is, takes 512 bytes by
# UDP and asks again by TCP when the answer says that it has been cut (TC).
#
# Guess: without EDNS the answer is cut to 512 bytes and says TC, as that of NSD, Knot and PowerDNS.
# Seen:  YADIFA keeps to the size that a client with EDNS gives, and to none if the client gives none: the whole answer comes in one datagram,
#        and it says nothing of being cut, so that a client with room for 512 bytes has the end cut off and does not know.
#        no EDNS: 30 MX, 1200 bytes, TC 0
#        EDNS 512: 20 MX, 501 bytes, TC 1
#        EDNS 1232: 30 MX, 1211 bytes, TC 0
#
# Needs python3; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); pid=
trap 'kill $pid; wait $pid || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download yadifa=2.6.4-1 >/dev/null 2>&1
dpkg -x yadifa_*.deb root; mkdir data
{
  printf '%s\n' '$TTL 300' '@ IN SOA ns.many.example. host.many.example. 1 3600 600 86400 300' '@ IN NS ns' 'ns IN A 127.0.0.1'
  for n in {1001..1030}; do printf '@ IN MX 10 mx%s\nmx%s IN A 127.0.0.2\n' $n $n; done
} > data/many.example
cat > yadifad.conf <<END
<main>
    listen 127.0.0.1 port 2753
    pidfile $dir/data/pid
    logpath $dir/data
    keyspath $dir/data
    datapath $dir/data
    xfrpath $dir/data
    uid $(id -un)
    gid $(id -gn)
    daemon no
</main>
<zone>
    domain many.example
    file many.example
    type master
</zone>
END
root/usr/sbin/yadifad -c "$dir/yadifad.conf" > log 2>&1 & pid=$!
python3 - <<'END'
import socket, struct, time
def query(edns):
    """The answer to many.example MX: how many MX, how many bytes, TC; None if there is none yet."""
    q = struct.pack('>6H', 4242, 0, 1, 0, 0, 1 if edns else 0) + b'\4many\7example\0' + struct.pack('>2H', 15, 1)
    if edns: q += b'\0' + struct.pack('>HHIH', 41, edns, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2); s.connect(('127.0.0.1', 2753))
        try: s.send(q); r = s.recv(65535)
        except (ConnectionRefusedError, TimeoutError): return None
    flags, _, answers = struct.unpack('>3H', r[2:8])
    return (answers, len(r), flags >> 9 & 1) if flags & 15 == 0 else None
until = time.time() + 20
while not query(0) and time.time() < until: time.sleep(0.2)
seen = {edns: query(edns) for edns in (0, 512, 1232)}
for edns, answer in seen.items():
    if not answer: raise SystemExit('no answer')
    print('EDNS %d:' % edns if edns else 'no EDNS:', '%d MX, %d bytes, TC %d' % answer)
if not (seen[0] == (30, 1200, 0) and seen[512][1] <= 512 and seen[512][2] == 1 and seen[1232][::2] == (30, 0)):
    raise SystemExit('this has changed')
END
