#!/bin/bash
# OpenBSD's inetd (Debian openbsd-inetd 0.20221205-2~deb12u1) with `nowait.N`. inetd(8): "the maximum number of server instances that may
# be spawned from inetd within an interval of 60 seconds".
#
# Guess: with nowait.5, five sessions are served in a minute, and the sixth is closed without a word.
# Seen:  four are served, and the fifth is closed without a word, and so on: one less than N, but for N = 1, where one is.
#        nowait.1: 1 served
#        nowait.2: 1 served
#        nowait.5: 4 served
#        nowait.20: 19 served
#        (A minute later it serves again; it does not end the service for ten minutes, as other inetds do.)
#
# Needs python3; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); pid=
trap 'kill $pid; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download openbsd-inetd=0.20221205-2~deb12u1 libwrap0 libnsl2 libtirpc3 libbsd0 libmd0 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
user=$(id -un)
cat > inetd.conf <<END
127.0.0.1:2741 stream tcp nowait.1 $user /bin/echo echo 220 server.example ESMTP
127.0.0.1:2742 stream tcp nowait.2 $user /bin/echo echo 220 server.example ESMTP
127.0.0.1:2745 stream tcp nowait.5 $user /bin/echo echo 220 server.example ESMTP
127.0.0.1:2760 stream tcp nowait.20 $user /bin/echo echo 220 server.example ESMTP
END
LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu root/usr/sbin/inetd -d -i "$dir/inetd.conf" > log 2>&1 & pid=$!
python3 - <<'END'
import socket, time
def greeting(port):
    until = time.time() + 10
    while True:
        try:
            with socket.create_connection(('127.0.0.1', port)) as s: return s.recv(200)
        except ConnectionRefusedError:
            if time.time() > until: raise
            time.sleep(0.1)
        except ConnectionResetError: return b''
served = {}
for most in 1, 2, 5, 20:
    served[most] = sum(greeting(2740 + most).startswith(b'220') for _ in range(most + 2))
    print('nowait.%d: %d served' % (most, served[most]))
if served != {1: 1, 2: 1, 5: 4, 20: 19}: raise SystemExit('this has changed')
END
