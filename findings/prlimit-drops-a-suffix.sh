#!/bin/bash
# prlimit (Debian util-linux 2.38.1-5+deb12u3) with a number that has a suffix, as fallocate and others of the same package take it.
#
# Guess: `prlimit --nofile=64K` allows 65536 descriptors, or is refused.
# Seen:  it allows 64, and says nothing: the digits at the start count, and the rest is dropped.
#        --nofile=64K -> 64
#        --nofile=1e3 -> 1
#        (2.41.5 of Debian 13 refuses both: "failed to parse NOFILE limit".)
#
# No root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download util-linux=2.38.1-5+deb12u3 libsmartcols1=2.38.1-5+deb12u3 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
prlimit() { LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu root/usr/bin/prlimit "$@"; }
ulimit -Sn 1000
for pair in 64K:64 1e3:1; do
  # cat of what the kernel says: with one descriptor no shell starts.
  sleep 60 & pid=$!
  prlimit --pid $pid --nofile="${pair%:*}:"
  allowed=$(awk '/Max open files/ { print $4 }' /proc/$pid/limits)
  kill $pid
  echo "--nofile=${pair%:*} -> $allowed"
  [ "$allowed" = "${pair#*:}" ] || { echo 'this has changed'; exit 1; }
done
