#!/bin/bash
# tcc 0.9.27+git20200814 (Debian tcc 0.9.27+git20200814.62c30a4a-1) and pcc 1.2.0.DEVEL (Debian pcc 1.2.0~DEVEL+20220331-1), beside gcc: a function
# in the style of before 1989 has one parameter of each small type. The caller passes it promoted, a float as a double, and the function
# takes it back to its type; the C standards up to C17 have it so.
#
# Guess: all three compilers do it for every type, whichever of them has compiled the caller.
# Seen:  char and short are right in all. tcc reads a float as the first four bytes of the double: 2.5 becomes 0.
#        Both sides may be compiled by tcc itself, and it gives no warning, not with -Wall either:
#        gcc: char 44, short 4464, float 2.5 0.1
#        pcc: char 44, short 4464, float 2.5 0.1
#        tcc: char 44, short 4464, float 0 -1.0842e-19
#
# Needs gcc, for the linker and the C library; no root. Nothing is installed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download tcc=0.9.27+git20200814.62c30a4a-1 pcc=1.2.0~DEVEL+20220331-1 libpcc-dev >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export PATH=$dir/root/usr/bin:$PATH
cat > old.c <<'END'
int as_char(c) char c; { return c; }
int as_short(s) short s; { return s; }
double as_float(f) float f; { return f; }
END
cat > call.c <<'END'
int printf(const char *, ...);
int as_char(), as_short();
double as_float();
int main(void)
{
  float half = 2.5f, tenth = 0.1f;
  printf("char %d, short %d, float %g %g\n", as_char(300), as_short(70000), as_float(half), as_float(tenth));
  return 0;
}
END
compile() {
  case $1 in
    gcc) gcc -std=gnu89 -c "$2" -o "$3" ;;
    pcc) pcc -c "$2" -o "$3" ;;
    tcc) tcc -Wall -B"$dir/root/usr/lib/x86_64-linux-gnu/tcc" -c "$2" -o "$3" ;;
  esac
}
for compiler in gcc pcc tcc; do
  compile $compiler old.c old.o > said 2>&1; compile $compiler call.c call.o >> said 2>&1
  [ ! -s said ] || { cat said; echo "$compiler says something"; exit 1; }
  gcc -no-pie -z noexecstack old.o call.o -o call
  echo "$compiler: $(./call)"
done | tee seen
diff - seen <<'END' || { echo 'this has changed'; exit 1; }
gcc: char 44, short 4464, float 2.5 0.1
pcc: char 44, short 4464, float 2.5 0.1
tcc: char 44, short 4464, float 0 -1.0842e-19
END
