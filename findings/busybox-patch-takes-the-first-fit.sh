#!/bin/bash
# patch of busybox 1.35.0 (Debian 1:1.35.0-4+deb12u1+b1) and of toybox 0.8.9 (Debian toybox 0.8.9+dfsg-1), beside GNU patch 2.7.6, and a file
# in which the same lines come three times. diff -u has made the patch from this very file; it changes the limit of the third queue.
#
# Guess: the lines at the hunk's own line number are just those that the hunk has, so each of the three changes the third queue.
# Seen:  GNU patch does. busybox and toybox change the first queue, say nothing and exit with 0: the line number counts for nothing, the
#        first lines that fit are taken.
#        GNU patch: changed queue c, exit code 0
#        busybox patch: changed queue a, exit code 0
#        toybox patch: changed queue a, exit code 0
#        So a port that is built in a container with busybox's patch may be another program, without a warning.
#
# Needs no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download patch=2.7.6-7 busybox=1:1.35.0-4+deb12u1+b1 toybox=0.8.9+dfsg-1 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
for queue in a b c; do
  printf '%s\n' "queue $queue" '  first try at once' '  next try after 400 s' '  last try after a week' '  limit 20' \
    '  report failures' '  keep no copy' '  end of queue'
done > before
awk '/^queue/ { queue = $2 } queue == "c" { sub(/limit 20/, "limit 65000") } { print }' before > after
diff -u before after > change || true
try() {
  name=$1; shift; cp before now; code=0
  "$@" now change >/dev/null || code=$?
  echo "$name: changed queue $(awk '/^queue/ { queue = $2 } /65000/ { print queue }' now), exit code $code"
}
{
  try 'GNU patch' root/usr/bin/patch
  try 'busybox patch' root/bin/busybox patch
  try 'toybox patch' root/bin/toybox patch
} | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
GNU patch: changed queue c, exit code 0
busybox patch: changed queue a, exit code 0
toybox patch: changed queue a, exit code 0
END
