#!/bin/bash
# sendmail 8.17.1.9 (Debian sendmail-bin 8.17.1.9-2+deb12u2) with MaxDaemonChildren=5.
#
# Guess: with five sessions a sixth client is refused by a 421 or waits; when a session ends, the daemon hears of it (SIGCHLD) and serves
#        the next one within milliseconds.
# Seen:  the daemon closes its listening socket when the fifth session begins, so the sixth connection is refused as if no server
#        ran there, and it opens it again 15.0 s after the first session has ended, however many of the five are free by then.
#        five sessions: 220
#        one more: connection refused
#        one session ended, listens again after 15.0 s
#        all sessions ended, listens again after 15.0 s
#
# Needs python3, and root for a host name of its own in a namespace. Nothing is installed.
set -euo pipefail
if [ "${1-}" != inside ]; then
  dir=$(mktemp -d); chmod 755 "$dir"; trap 'rm -rf "$dir"' EXIT
  (cd "$dir"; apt-get download sendmail-bin=8.17.1.9-2+deb12u2 libdb5.3 libldap-2.5-0 liblockfile1 libnsl2 libsasl2-2 libtirpc3 libwrap0 >/dev/null 2>&1
   for package in *.deb; do dpkg -x "$package" root; done)
  unshare --uts --net bash "$0" inside "$dir"
  exit
fi
cd "$2"; mkdir -m 700 queue; ip link set lo up; hostname server.example
# A copy has no set-group-id bit, with which LD_LIBRARY_PATH would not count.
install -m 755 root/usr/libexec/sendmail/sendmail sendmail
cat > sendmail.cf <<END
V10
Djserver.example
DnMAILER-DAEMON
O QueueDirectory=$2/queue
O PidFile=$2/pid
O Timeout.ident=0
O DontBlameSendmail=TrustStickyBit
O DontProbeInterfaces=True
O RefuseLA=0
O DelayLA=0
O MaxDaemonChildren=5
O DaemonPortOptions=Name=MTA, Family=inet, Addr=127.0.0.1, Port=25
Mlocal, P=[IPC], F=lmDFMuXk, A=TCP \$h
Mprog, P=[IPC], F=lmDFMuXk, A=TCP \$h
S0
R\$*	\$#local \$@ nowhere \$: \$1
END
LD_LIBRARY_PATH=$2/root/usr/lib/x86_64-linux-gnu:$2/root/lib/x86_64-linux-gnu ./sendmail -bD "-C$2/sendmail.cf" & pid=$!
trap 'kill $pid; wait $pid || true' EXIT
python3 - <<'END'
import socket, time
def session():
    s = socket.create_connection(('127.0.0.1', 25), 20)
    return s, s.recv(200)[:3].decode()
def listens(secs):
    """When somebody is greeted, in seconds from now."""
    start = time.time()
    while time.time() - start < secs:
        try: return session()[0], time.time() - start
        except OSError: time.sleep(0.01)
    raise SystemExit('it does not listen any more')
def end(s):
    s.sendall(b'QUIT\r\n')
    while s.recv(200): pass
    s.close()
held = [listens(20)[0]] + [session()[0] for _ in range(4)]
print('five sessions: 220')
time.sleep(1)
try: more = session()[1] or 'closed'
except ConnectionRefusedError: more = 'connection refused'
print('one more:', more)
end(held.pop())
again, one = listens(60)
print('one session ended, listens again after %.1f s' % one)
held.append(again); time.sleep(1)
for s in held: end(s)
again, all_ = listens(60)
print('all sessions ended, listens again after %.1f s' % all_)
if not (more == 'connection refused' and 14.5 < one < 17 and 14.5 < all_ < 17):
    raise SystemExit('this has changed')
END
