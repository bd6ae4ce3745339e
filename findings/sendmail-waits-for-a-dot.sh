#!/bin/bash
# sendmail 8.17.1.9 (Debian sendmail-bin 8.17.1.9-2+deb12u2) on a host whose own name has no dot, with its full name in sendmail.cf.
#
# Guess: `Dj` is the name that sendmail uses, so with `Djserver.example` it looks for no other one and listens at once; and if it does
#        look, then a name that /etc/hosts knows can only help.
# Seen:  with `127.0.0.1 localhost plain` in /etc/hosts it does not listen, and says nothing to its terminal: it sleeps for 60 s at a
#        time, in case that the name gets a dot. With a host name that has a dot, or with one that /etc/hosts does not know at all
#        (and no name server to be reached), the same file makes it listen within a second.
#        /etc/hosts has plain, host plain: does not listen after 20 s
#        /etc/hosts has plain, host plain.example: listens
#        /etc/hosts has not, host plain: listens
#
# Needs python3, and root for a host name of its own in a namespace. Nothing is installed.
set -euo pipefail
if [ "${1-}" != inside ]; then
  dir=$(mktemp -d); chmod 755 "$dir"; trap 'rm -rf "$dir"' EXIT
  (cd "$dir"; apt-get download sendmail-bin=8.17.1.9-2+deb12u2 libdb5.3 libldap-2.5-0 liblockfile1 libnsl2 libsasl2-2 libtirpc3 libwrap0 >/dev/null 2>&1
   for package in *.deb; do dpkg -x "$package" root; done)
  # No network, so that no name server gives the name a dot; /etc/hosts does not know it.
  ! grep -qw plain /etc/hosts
  unshare --uts --net --mount bash "$0" inside "$dir"
  exit
fi
cd "$2"; mkdir -p -m 700 queue; ip link set lo up
# A copy has no set-group-id bit, with which LD_LIBRARY_PATH would not count.
install -m 755 root/usr/libexec/sendmail/sendmail sendmail
export LD_LIBRARY_PATH=$2/root/usr/lib/x86_64-linux-gnu:$2/root/lib/x86_64-linux-gnu
cat > sendmail.cf <<END
V10
Djserver.example
DnMAILER-DAEMON
O QueueDirectory=$2/queue
O PidFile=$2/pid
O DontBlameSendmail=TrustStickyBit
O DontProbeInterfaces=True
O DaemonPortOptions=Name=MTA, Family=inet, Addr=127.0.0.1, Port=2725
Mlocal, P=[IPC], F=lmDFMuXk, A=TCP \$h
Mprog, P=[IPC], F=lmDFMuXk, A=TCP \$h
S0
R\$*	\$#local \$@ nowhere \$: \$1
END
# Whether it listens within 20 s.
listens() {
  hostname "$2"; ./sendmail -bD "-C$3/sendmail.cf" & pid=$!
  python3 -c 'import socket, time
until = time.time() + 20
while time.time() < until:
    try: socket.create_connection(("127.0.0.1", 2725)).close(); raise SystemExit(0)
    except OSError: time.sleep(0.1)
raise SystemExit(1)' && result=listens || result='does not listen after 20 s'
  kill "$pid" || true; wait "$pid" || true
  echo "$1, host $2: $result"
}
printf '127.0.0.1 localhost plain\n' > hosts; mount --bind hosts /etc/hosts
{
  listens '/etc/hosts has plain' plain "$2"; listens '/etc/hosts has plain' plain.example "$2"
  umount /etc/hosts; listens '/etc/hosts has not' plain "$2"
} | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
/etc/hosts has plain, host plain: does not listen after 20 s
/etc/hosts has plain, host plain.example: listens
/etc/hosts has not, host plain: listens
END
