#!/bin/bash
# dash (Debian dash 0.5.12-2; 0.5.12-12 of Debian 13 does the same) with `ulimit -SHn 65536`, which many guides put into start
# scripts, and with two limits in one command, as OpenRC's rc_ulimit has them. dash is Debian's /bin/sh.
#
# Guess: -SHn sets both limits, as in bash, ksh93, zsh and busybox. (For two limits in one command there was none.)
# Seen:  the last of the two letters counts. -SHn sets the hard limit alone, says nothing, and the soft one stays at 1000, which is
#        the one that counts; -HSn sets the soft one alone. Two limits in one command set neither.
#        dash ulimit -SHn 4000          -> 1000 4000
#        dash ulimit -HSn 4000          -> 4000 5000
#        dash ulimit -n 4000            -> 4000 4000
#        dash ulimit -n 4000 -u 100     -> 1000 5000  (dash: 1: ulimit: too many arguments)
#        bash ulimit -SHn 4000          -> 4000 4000
#        bash ulimit -HSn 4000          -> 4000 4000
#        bash ulimit -n 4000            -> 4000 4000
#        bash ulimit -n 4000 -u 100     -> 4000 4000
#
# Needs bash; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download dash=0.5.12-2 >/dev/null 2>&1
dpkg -x dash_*.deb root
dash=$(find root -name dash -type f -perm -100 | head -n 1)
ulimit -Sn 1000
ulimit -Hn 5000
seen=
for shell in "$dash" bash; do
  for command in '-SHn 4000' '-HSn 4000' '-n 4000' '-n 4000 -u 100'; do
    limits=$("$shell" -c "ulimit $command; echo \$(ulimit -Sn) \$(ulimit -Hn)" 2>error)
    printf '%-4s ulimit %-16s -> %s  %s\n' "$(basename "$shell")" "$command" "$limits" "$(sed "s#^$shell#dash#; s/.*/(&)/" error)"
    seen="$seen$limits;"
  done
done
[ "$seen" = '1000 4000;4000 5000;4000 4000;1000 5000;4000 4000;4000 4000;4000 4000;4000 4000;' ] || { echo 'this has changed'; exit 1; }
