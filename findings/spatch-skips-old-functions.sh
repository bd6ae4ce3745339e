#!/bin/bash
# spatch of Coccinelle 1.1.1 (Debian coccinelle 1.1.1.deb-2+b1), semantic patches for C, and functions in the style of before 1989, which the
# sources of old daemons have and gcc compiles. The semantic patch replaces every call close(E) by shut(E).
#
# Guess: spatch knows this style, so the call is replaced in every function; if there were a function that it cannot read, it would say so.
# Seen:  it is replaced where the function has a type of its own (int, char *, struct), and where it has `static` or no parameters. Where it
#        has parameters and no type (which means int), where its name is in parentheses, and where it returns a pointer to a function,
#        the call stays as it was. spatch writes no word about it and exits with 0; --parse-c tells of 4 functions that it cannot read:
#        replaced: typed pointer static_ empty
#        left, without a word: untyped two parenthesized returns_a_function; exit code 0
#
# Needs gcc; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download coccinelle=1.1.1.deb-2+b1 libpcre3=2:8.39-15 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu COCCINELLE_HOME=$dir/root/usr/lib/coccinelle
cat > old.c <<'END'
int typed(fd) int fd; { close(fd); return 0; }
char *pointer(fd) int fd; { close(fd); return 0; }
static static_(fd) int fd; { close(fd); return 0; }
empty() { close(0); return static_(0); }
untyped(fd) int fd; { close(fd); return 0; }
two(fd, name) int fd; char *name; { close(fd); return *name; }
int (parenthesized)(fd) int fd; { close(fd); return 0; }
int (*returns_a_function(fd))() int fd; { close(fd); return 0; }
END
gcc -std=gnu89 -w -c old.c
cat > close.cocci <<'END'
@@ expression E; @@
- close(E)
+ shut(E)
END
code=0; root/usr/bin/spatch --very-quiet --sp-file close.cocci old.c -o new.c >/dev/null 2>said || code=$?
names() { grep "$1" new.c | sed "s,\(.*[^a-z_]\|\)\([a-z_]\{3\,\}\)[)]*(.*{.*,\2," | paste -sd" "; }
{
  echo "replaced: $(names shut)"
  echo "left, without a word: $(names close); exit code $code"
} | tee seen
[ ! -s said ] || { cat said; echo 'it says something, this has changed'; exit 1; }
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
replaced: typed pointer static_ empty
left, without a word: untyped two parenthesized returns_a_function; exit code 0
END
