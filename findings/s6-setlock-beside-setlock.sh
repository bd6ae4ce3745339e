#!/bin/bash
# s6-setlock 2.11.3.2 (Debian s6), setlock of daemontools 0.76, chpst -L of runit 2.1.2 and flock of util-linux: each runs a program while it
# holds a lock on a file, so that it does not run twice. Two of them hold the same file.
#
# Guess: all four lock the file in the same way, so that whichever comes second is turned away; s6-setlock above all, which is
#        made to take setlock's place.
# Seen:  setlock, chpst and flock turn each other away. s6-setlock sees none of them, and none of them sees it: both programs run.
#        setlock, chpst, flock: the second is turned away in 9 of 9 pairs
#        s6-setlock with itself: turned away
#        s6-setlock with one of the others: both run, in 6 of 6 pairs
#        So while the jobs of a machine move from one to the other, a job can run twice.
# Why:   the three use flock(2), s6 uses fcntl(2); on Linux these two kinds of lock do not know of each other.
#
# Needs no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download s6=2.11.3.2-1 libs6-2.11=2.11.3.2-1 libskarnet2.13 libexecline2.9 daemontools=1:0.76-8.1 runit=2.1.2-54 util-linux >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu
bin=$dir/root/usr/bin
# Runs a program with the lock that the first argument names, or fails at once if it is taken.
with() {
  tool=$1; shift
  case $tool in
    setlock) "$bin/setlock" -n lock "$@" ;;
    s6-setlock) "$bin/s6-setlock" -n lock "$@" ;;
    chpst) "$bin/chpst" -L lock "$@" ;;
    flock) "$bin/flock" -n lock "$@" ;;
  esac
}
mkfifo has go; exec 3<>has
for first in setlock chpst flock s6-setlock; do
  for second in setlock chpst flock s6-setlock; do
    # The first says that it has the lock and holds it until it is told to go.
    with "$first" sh -c 'echo > has; read line < go' & pid=$!
    read -t 20 -r line <&3
    if with "$second" true 2>/dev/null; then result=both; else result=away; fi
    echo > go; wait "$pid"
    echo "$first $second $result"
  done
done > pairs
{
  echo "setlock, chpst, flock: the second is turned away in $(grep -v s6 pairs | grep -c away) of $(grep -vc s6 pairs) pairs"
  echo "s6-setlock with itself: $(sed -n 's/^s6-setlock s6-setlock away/turned away/p' pairs)"
  echo "s6-setlock with one of the others: both run, in $(grep s6 pairs | grep -c both) of $(grep s6 pairs | grep -vc '^s6-setlock s6-') pairs"
} | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
setlock, chpst, flock: the second is turned away in 9 of 9 pairs
s6-setlock with itself: turned away
s6-setlock with one of the others: both run, in 6 of 6 pairs
END
