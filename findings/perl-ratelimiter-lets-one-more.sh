#!/bin/bash
# Perl's Schedule::RateLimiter 0.01 (Debian libschedule-ratelimiter-perl 0.01-5): `iterations => N, seconds => S`, and event() waits until
# one more event would not exceed N in S seconds. That is what its manual promises.
#
# Guess: no interval of a second begins with more than N events; the events come in groups of N, a second apart.
# Seen:  the first group has N, and each later one N + 1. With N = 1 that is twice the rate. event() remembers when it was called,
#        not when it returned, so each event that had to wait counts as older than it is.
#        1 in 1 s: 0.0 1.0 1.0 2.0 2.0 3.0 3.0
#        5 in 1 s: 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0 1.0 1.0 1.0 2.0 2.0 2.0 2.0 2.0 2.0
#        (Without waiting, `block => 0`, the number is right: an event that may not happen is not remembered.)
#
# Needs perl; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download libschedule-ratelimiter-perl=0.01-5 >/dev/null 2>&1
dpkg -x *.deb root
cat > events.pl <<'END'
use strict;
use Schedule::RateLimiter;
use Time::HiRes qw(time sleep);
for ([1, 7], [5, 17]) {
  my ($most, $events) = @$_;
  my $limiter = Schedule::RateLimiter->new(iterations => $most, seconds => 1);
  my $start = time;
  my @at = map { $limiter->event; time - $start } 1 .. $events;
  # a busy machine is late, but by less than a tenth of a second
  print "$most in 1 s: ", join(' ', map { sprintf '%.1f', $_ } @at), "\n";
}
my $limiter = Schedule::RateLimiter->new(iterations => 1, seconds => 1, block => 0);
my ($start, $happened) = (time, 0);
while (time - $start < 3.5) { $happened++ if $limiter->event; sleep 0.01 }
print "without waiting, 1 in 1 s: $happened in 3.5 s\n";
END
perl -Iroot/usr/share/perl5 events.pl | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
1 in 1 s: 0.0 1.0 1.0 2.0 2.0 3.0 3.0
5 in 1 s: 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0 1.0 1.0 1.0 2.0 2.0 2.0 2.0 2.0 2.0
without waiting, 1 in 1 s: 4 in 3.5 s
END
