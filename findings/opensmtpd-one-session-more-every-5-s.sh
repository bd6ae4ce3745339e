#!/bin/bash
# OpenSMTPD 6.8.0p2 (Debian opensmtpd 6.8.0p2-4+b4) with 60 mails in its queue for one server, which takes a second for each and any number of
# sessions.
#
# Guess: it opens as many sessions as it allows itself (5 or 10) at once, and has sent all in about 10 s.
# Seen:  it opens one, and another every 5.0 s as long as mail waits, until there are five. Each takes mail after mail. With short mails the
#        first session has often done the work before there is a second; the limit of five is reached only after 20 s:
#        sessions began at 0, 5, 10, 15, 20 s; 60 mails in 23 s
#        No option of smtpd.conf(5) changes it.
#
# Needs root, for users and folders of its own in a namespace; python3. Nothing is installed.
set -euo pipefail
if [ "${1-}" != inside ]; then
  dir=$(mktemp -d); chmod 755 "$dir"; trap 'rm -rf "$dir"' EXIT
  (cd "$dir"; apt-get download opensmtpd=6.8.0p2-4+b4 libevent-2.1-7 libdb5.3 >/dev/null 2>&1
   for package in *.deb; do dpkg -x "$package" root; done)
  unshare --mount --net --uts bash "$0" inside "$dir"
  exit
fi
cd "$2"; ip link set lo up; hostname server.example
mount -t tmpfs none /var/spool; mount -t tmpfs none /run; mkdir -p lib/opensmtpd/empty; mount --bind lib /var/lib
for file in passwd group; do cp /etc/$file .; done
printf 'opensmtp%s:x:640%s:640%s::/var/lib/opensmtpd/empty:/bin/false\n' d 1 1 q 2 2 >> passwd
printf 'opensmtp%s:x:640%s:\n' d 1 q 2 >> group
mount --bind passwd /etc/passwd; mount --bind group /etc/group
cat > smtpd.conf <<END
listen on 127.0.0.1 port 2725
action "out" relay host smtp://127.0.0.1:2726
match from any for any action "out"
END
export LD_LIBRARY_PATH=$2/root/usr/lib/x86_64-linux-gnu:$2/root/lib/x86_64-linux-gnu
"$2"/root/usr/sbin/smtpd -d -f smtpd.conf > log 2>&1 & pid=$!
trap 'kill $pid; wait $pid || true' EXIT
LD_LIBRARY_PATH= python3 - <<'END'
import smtplib, socket, threading, time
began, sent, lock = [], [], threading.Lock()
def serve(s):
    with lock: began.append(time.time())
    lines = s.makefile('rb')
    s.sendall(b'220 sink.example ESMTP\r\n')
    for line in lines:
        verb = line[:4].upper()
        if verb == b'DATA':
            s.sendall(b'354 go on\r\n')
            while lines.readline() not in (b'.\r\n', b''): pass
            time.sleep(1)
            with lock: sent.append(time.time())
        s.sendall(b'221 bye\r\n' if verb == b'QUIT' else b'250 ok\r\n')
        if verb == b'QUIT': break
    s.close()
listener = socket.create_server(('127.0.0.1', 2726), backlog=100)
def listen():
    while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=listen, daemon=True).start()
until = time.time() + 20
while True:
    try: smtp = smtplib.SMTP('127.0.0.1', 2725); break
    except OSError:
        if time.time() > until: raise
        time.sleep(0.1)
for number in range(60): smtp.sendmail('a@client.example', ['u%d@server.example' % number], 'Subject: x\r\n\r\nx\r\n')
smtp.quit()
until = time.time() + 60
while len(sent) < 60 and time.time() < until: time.sleep(0.1)
print('sessions began at', ', '.join('%.0f' % (t - began[0]) for t in began), 's; %d mails in %.0f s' % (len(sent), max(sent) - began[0]))
gaps = [later - earlier for earlier, later in zip(began, began[1:])]
if not (len(sent) == 60 and len(began) == 5 and all(4.5 < gap < 7 for gap in gaps)): raise SystemExit('this has changed')
END
