#!/bin/bash
# Prometheus pushgateway 1.5.1 (Debian prometheus-pushgateway 1.5.1-2+b5): a host pushes one series, while others have pushed theirs.
#
# Guess: a push replaces one group and is compared with what that group may clash with, so it costs the same whoever else has pushed.
# Seen:  each push collects all series of all groups anew. One line more is some 60 times as dear beside 40000 series of another host:
#        CPU time of a push of one series: alone 0.5 ms, beside 40000 other series 33 ms
#        the same with --push.disable-consistency-check: under 1 ms
#        So n hosts that push cost n squared.
#
# Needs python3; no root. Nothing is installed, and nothing kept (--persistence.file=).
set -euo pipefail
dir=$(mktemp -d); pid=
trap 'kill $pid 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download prometheus-pushgateway=1.5.1-2+b5 >/dev/null 2>&1
dpkg -x prometheus-pushgateway_*.deb root
cat > client.py <<'END'
import os, socket, sys, time
pid, checked = int(sys.argv[1]), sys.argv[2] == 'checked'
until = time.time() + 20
while True:
    try: s = socket.create_connection(('127.0.0.1', 2791)); break
    except OSError:
        if time.time() > until: raise
        time.sleep(0.1)
answers = s.makefile('rb')
def push(host, text):
    s.sendall(b'PUT /metrics/job/qmail/instance/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s' % (host, len(text), text))
    status, length = answers.readline().split()[1], 0
    while (line := answers.readline()) != b'\r\n':
        if line.lower().startswith(b'content-length:'): length = int(line.split()[1])
    answers.read(length)
    if status not in (b'200', b'202'): raise SystemExit('push: %r' % status)
def cost(pushes):
    """CPU time of the server for a push of one series, in ms: a busy machine does not add to it."""
    def used(): return sum(map(int, open('/proc/%d/stat' % pid).read().rsplit(')', 1)[1].split()[11:13])) * 1000 / os.sysconf('SC_CLK_TCK')
    before = used()
    for _ in range(pushes): push(b'one', b'# TYPE concurrency gauge\nconcurrency 1\n')
    return (used() - before) / pushes
alone = cost(200)
push(b'other', b'# TYPE queued gauge\n' + b''.join(b'queued{domain="d%d.example"} 1\n' % n for n in range(40000)))
beside = cost(50)
print('%s: CPU time of a push of one series: alone %.1f ms, beside 40000 other series %.1f ms' % (sys.argv[2], alone, beside))
if not (beside > 10 and beside > alone * 8 if checked else beside < 3): raise SystemExit('this has changed')
END
for how in checked unchecked; do
  option=; [ $how = checked ] || option=--push.disable-consistency-check
  root/usr/bin/prometheus-pushgateway --persistence.file= --web.listen-address=127.0.0.1:2791 $option 2>log & pid=$!
  python3 client.py "$pid" $how
  kill "$pid"; wait "$pid" || true
done
