#!/bin/bash
# Python's ratelimiter 1.2.0 (Debian python3-ratelimiter 1.2.0.post0-4): `with RateLimiter(max_calls=5, period=2):` around a call that
# takes a second, in 30 threads. It has a lock for threads.
#
# Guess: five calls start at once, and five more every two seconds.
# Seen:  all 30 start at once. A call is counted when its block ends, not when it begins: as long as the first ones go on, there is
#        nothing to count. One thread alone keeps the rate, if its calls are short.
#        30 threads, calls of 1 s: 30 started within 0.5 s
#        30 threads, calls of 0 s: 5 started within 0.5 s
#        So whether connections to a mail server are limited depends on how slowly it answers.
#
# Needs python3; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download python3-ratelimiter=1.2.0.post0-4 >/dev/null 2>&1
dpkg -x *.deb root
cat > calls.py <<'END'
import threading, time
from ratelimiter import RateLimiter
def started(length, threads):
    limiter, start, starts = RateLimiter(max_calls=5, period=2), time.monotonic(), []
    def call():
        with limiter:
            starts.append(time.monotonic() - start)
            time.sleep(length)
    running = [threading.Thread(target=call, daemon=True) for _ in range(threads)]
    for thread in running: thread.start()
    time.sleep(0.7)
    return sum(at < 0.5 for at in starts)
for length in 1, 0:
    print('30 threads, calls of %d s: %d started within 0.5 s' % (length, started(length, 30)), flush=True)
END
PYTHONPATH=root/usr/lib/python3/dist-packages python3 calls.py | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
30 threads, calls of 1 s: 30 started within 0.5 s
30 threads, calls of 0 s: 5 started within 0.5 s
END
