#!/bin/bash
# Postfix 3.7.11 (Debian postfix 3.7.11-0+deb12u1), and a milter that has every mail discarded.
#
# Guess: discarded mail never enters the queue, so nothing fills up, and the 150th mail is taken as quickly as the first.
# Seen:  a hundred mails are taken in milliseconds each; from the 101st on, each takes a second, on an empty queue and an idle machine:
#        slow: 50 of 150 first: 101 quickest 0.001 s, slowest 1.053 s
# Why:   smtpd and cleanup take a token for each mail out of a pipe and wait for in_flow_delay (1 s) if there is none. The queue manager
#        puts as many back as default_process_limit (100) says, but only when it is woken, and discarded mail does not wake it. It
#        looks by itself after 300 s. So whoever filters mail away by a milter on a server with little other mail has it slowed
#        down. in_flow_delay = 0 switches it off.
#
# Needs root, for master(8); Debian's users mail and news; python3. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); chmod 755 "$dir"; pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; sleep 0.5; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download postfix=3.7.11-0+deb12u1 libdb5.3 libicu72 libnsl2 libsasl2-2 libtirpc3 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
mkdir -p etc data queue/{pid,active,bounce,corrupt,defer,deferred,flush,hold,incoming,private,public,saved,trace}
chown mail data queue/*; chown root queue/pid
cat > etc/main.cf <<END
compatibility_level = 3.6
queue_directory = $dir/queue
data_directory = $dir/data
daemon_directory = $dir/root/usr/lib/postfix/sbin
command_directory = $dir/root/usr/sbin
shlib_directory = $dir/root/usr/lib/postfix
meta_directory = $dir/etc
mail_owner = mail
setgid_group = news
import_environment = LD_LIBRARY_PATH MAIL_CONFIG
maillog_file = $dir/log
maillog_file_prefixes = $dir
myhostname = server.example
mydestination =
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_milters = inet:127.0.0.1:2791
END
: > etc/dynamicmaps.cf
cat > etc/master.cf <<END
127.0.0.1:2725 inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
retry unix - - n - - error
error unix - - n - - error
discard unix - - n - - discard
smtp unix - - n - - smtp
postlog unix-dgram n - n - 1 postlogd
END
cat > milter.py <<'END'
import socket, struct, threading
def serve(s):
    def take(n):
        data = b''
        while len(data) < n:
            more = s.recv(n - len(data))
            if not more: raise EOFError
            data += more
        return data
    try:
        while True:
            packet = take(struct.unpack('>I', take(4))[0])
            kind = packet[:1]
            if kind == b'O': answer = b'O' + struct.pack('>III', 6, 0, 0)
            elif kind in b'DAK': continue
            elif kind == b'Q': return
            else: answer = b'd' if kind == b'E' else b'c'
            s.sendall(struct.pack('>I', len(answer)) + answer)
    except (EOFError, ConnectionError): pass
listener = socket.create_server(('127.0.0.1', 2791))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
END
cat > client.py <<'END'
import smtplib, socket, time
for attempt in range(200):
    try: socket.create_connection(('127.0.0.1', 2725)).close(); break
    except OSError: time.sleep(0.1)
times = []
for number in range(150):
    with smtplib.SMTP('127.0.0.1', 2725, timeout=60) as smtp:
        before = time.time()
        smtp.sendmail('a@client.example', ['b@server.example'], 'Subject: x\r\n\r\nx\r\n')
        times.append(time.time() - before)
slow = [number for number, secs in enumerate(times, 1) if secs > 0.9]
print('slow:', len(slow), 'of 150 first:', *slow[:1], 'quickest %.3f s, slowest %.3f s' % (min(times), max(times)))
# The first connection above, and a mail that a busy machine slows down by itself, may shift it by a few.
raise SystemExit(not (len(slow) >= 45 and 95 <= min(slow, default=0) <= 102))
END
python3 milter.py & pids+=($!)
LD_LIBRARY_PATH=$(find "$dir"/root -name '*.so*' -printf '%h\n' | sort -u | paste -sd:) root/usr/lib/postfix/sbin/master -d -c "$dir/etc" & pids+=($!)
python3 client.py || { echo 'this has changed'; exit 1; }
