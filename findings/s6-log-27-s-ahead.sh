#!/bin/bash
# s6-log 2.11.3.2 (Debian s6), multilog 0.76 (Debian daemontools) and svlogd 2.1.2 (Debian runit), which put the same TAI64N label before
# a line: `@4000...`. The labels of one are read by the tools of the others (tai64nlocal, s6-tai64nlocal, log analysers for qmail).
#
# Guess: lines written in the same second get labels of the same second, so the logs of a service that moves from one to another can be
#        merged and sorted.
# Seen:  s6-log is 27 s ahead of the two others, and so is whatever its labels are read with, unless it is s6's own tool, which in turn
#        shows multilog's lines 27 s too early:
#        s6-log - multilog: 27 s, svlogd - multilog: 0 s
#        tai64nlocal: s6-log 27 s in the future; s6-tai64nlocal: multilog 27 s in the past
# Why:   multilog and svlogd add 10 to the Unix time; s6 has the leap seconds since 1972 in it, 27 by now, as TAI has.
#
# Needs python3; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download s6=2.11.3.2-1 libs6-2.11=2.11.3.2-1 libskarnet2.13 libexecline2.9 daemontools=1:0.76-8.1 runit=2.1.2-54 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export PATH=$dir/root/usr/bin:$PATH TZ=UTC
export LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu
mkdir svlogd
date +%s > before
echo line | multilog t ./multilog
echo line | s6-log t ./s6-log
echo line | svlogd -t svlogd 2>/dev/null
tai64nlocal < s6-log/current > s6-log.local
s6-tai64nlocal < multilog/current > multilog.local
python3 - <<'END'
import calendar, time
start = int(open('before').read())
secs = {name: int(open(name + '/current').read()[1:17], 16) for name in ('multilog', 's6-log', 'svlogd')}
local = {name: calendar.timegm(time.strptime(open(name + '.local').read()[:19], '%Y-%m-%d %H:%M:%S')) for name in ('s6-log', 'multilog')}
if time.time() - start > 8: raise SystemExit('this machine is too busy to tell')
print('s6-log - multilog: %d s, svlogd - multilog: %d s' % (secs['s6-log'] - secs['multilog'], secs['svlogd'] - secs['multilog']))
print('tai64nlocal: s6-log %d s in the future; s6-tai64nlocal: multilog %d s in the past' % (local['s6-log'] - start, start - local['multilog']))
def about(secs, wanted): return abs(secs - wanted) <= 8
if not (about(secs['s6-log'] - secs['multilog'], 27) and about(secs['svlogd'] - secs['multilog'], 0)
        and about(local['s6-log'] - start, 27) and about(start - local['multilog'], 27)): raise SystemExit('this has changed')
END
