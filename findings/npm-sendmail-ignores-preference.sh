#!/bin/bash
# npm's sendmail 1.6.1, which sends mail straight to the MX of its domain, on Node.js 20.
#
# Guess: it sorts the MX by their preference and begins with the lowest, as every sender has to; the others are for when that one is down.
# Seen:  it begins with the one that the DNS answer names first, whatever the preference, so a backup MX gets all mail while the first is up:
#        answer says 20 backup, 10 primary: 4 of 4 mails to backup
#        answer says 10 primary, 20 backup: 4 of 4 mails to primary
# Why:   it does sort, by a comparison that says true or false. For sort() these are 1 and 0, never a negative number, and the sort of
#        Node.js 20 then leaves everything in its place.
#
# Needs root, for a name server and port 25 in a namespace; node, npm and python3. Nothing is installed outside the temporary folder.
set -euo pipefail
if [ "${1-}" != inside ]; then
  dir=$(mktemp -d); chmod 755 "$dir"; trap 'rm -rf "$dir"' EXIT
  (cd "$dir"; apt-get download nsd=4.6.1-1 libfstrm0 libprotobuf-c1 libevent-2.1-7 >/dev/null 2>&1
   for package in *.deb; do dpkg -x "$package" root; done
   npm install --silent --no-audit --no-fund --prefix "$dir" sendmail@1.6.1 >/dev/null 2>&1)
  unshare --mount --net --uts bash "$0" inside "$dir"
  exit
fi
cd "$2"; ip link set lo up; hostname client.example
echo 'nameserver 127.0.0.1' > resolv.conf; mount --bind resolv.conf /etc/resolv.conf
cat > zone <<END
\$TTL 300
@ IN SOA ns.mail.example. host.mail.example. 1 3600 600 86400 300
@ IN NS ns
ns IN A 127.0.0.1
primary IN A 127.0.0.2
backup IN A 127.0.0.3
one IN MX 20 backup
one IN MX 10 primary
two IN MX 10 primary
two IN MX 20 backup
END
cat > nsd.conf <<END
server:
  ip-address: 127.0.0.1
  username: ""
  database: ""
  zonesdir: "$2"
  pidfile: "$2/pid"
  xfrdfile: "$2/xfrd"
  zonelistfile: "$2/zones"
  server-count: 1
remote-control:
  control-enable: no
zone:
  name: mail.example
  zonefile: zone
END
cat > sink.py <<'END'
import socket, threading
def serve(s, name):
    lines = s.makefile('rb'); s.sendall(b'220 sink ESMTP\r\n')
    for line in lines:
        verb = line[:4].upper()
        if verb == b'DATA':
            s.sendall(b'354 go on\r\n')
            while lines.readline() not in (b'.\r\n', b''): pass
            print(name, flush=True)
        s.sendall(b'221 bye\r\n' if verb == b'QUIT' else b'250 ok\r\n')
        if verb == b'QUIT': break
    s.close()
def listen(listener, name):
    while True: threading.Thread(target=serve, args=(listener.accept()[0], name), daemon=True).start()
listeners = {name: socket.create_server((address, 25)) for name, address in (('primary', '127.0.0.2'), ('backup', '127.0.0.3'))}
for name, listener in listeners.items(): threading.Thread(target=listen, args=(listener, name)).start()
print('ready', flush=True)
END
cat > send.js <<'END'
const dns = require('dns').promises, fs = require('fs'), sendmail = require('sendmail')({ silent: true });
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const got = () => fs.readFileSync('got', 'utf8').split('\n').filter(Boolean).slice(1);
(async () => {
  for (let n = 0; !fs.readFileSync('got', 'utf8') || !(await dns.resolveMx('one.mail.example').catch(() => null)); n++) {
    if (n > 100) throw new Error('the servers do not start');
    await wait(100);
  }
  for (const domain of ['one.mail.example', 'two.mail.example']) {
    const answer = (await dns.resolveMx(domain)).map((mx) => mx.priority + ' ' + mx.exchange.split('.')[0]).join(', ');
    const before = got().length;
    for (let n = 0; n < 4; n++) {
      await new Promise((done, fail) => sendmail({ from: 'a@client.example', to: 'b@' + domain, subject: 'x', text: 'x' }, (e) => (e ? fail(e) : done())));
    }
    const to = got().slice(before);
    console.log('answer says %s: %d of 4 mails to %s', answer, to.length, [...new Set(to)].join(' and '));
  }
})().catch((e) => { console.log(String(e)); process.exit(1); });
END
: > got
LD_LIBRARY_PATH=$2/root/usr/lib/x86_64-linux-gnu root/usr/sbin/nsd -d -c "$2/nsd.conf" 2> log & pids=($!)
python3 sink.py > got & pids+=($!)
trap 'kill "${pids[@]}"; wait' EXIT
node send.js | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
answer says 20 backup, 10 primary: 4 of 4 mails to backup
answer says 10 primary, 20 backup: 4 of 4 mails to primary
END
