# gate.a, the static library that qpatch links into qmail-rspawn, from its sources. This needs rustc @RUST@ or later and
# nothing else: the gate has no dependencies.
#
#   make                                   for the machine that runs rustc
#   make TARGET=i686-unknown-linux-gnu     for another one; rustc needs the standard library of that target
#   make RUSTFLAGS='-C target-cpu=native'  with further flags for rustc
#
# It also writes gate.lib: what the linker needs after gate.a on that target. Copy both into a tree that qpatch has
# patched, in place of the tree's own. The same rustc gives the same bytes in every folder.

RUSTC = rustc
TARGET = @TARGET@
STRIP = strip

all: gate.a

# gate.lib is as rustc says, with two changes for the forks of qmail-rspawn: libgcc is linked statically, and all symbols
# are bound at the start, where the linker can do that.
gate.a: src/lib.rs
	target='$(TARGET)'; \
	test -n "$$target" || target=`$(RUSTC) -vV | sed -n 's/^host: //p'`; \
	$(RUSTC) $(RUSTFLAGS) --remap-path-prefix src=gate @FLAGS@ \
	  --target "$$target" -o gate.new src/lib.rs >gate.log 2>&1 || { cat gate.log >&2; exit 1; }; \
	case "$$target" in *apple*|*aix*) now=;; *) now=' -Wl,-z,now';; esac; \
	sed -n 's/^.*native-static-libs: *//p' gate.log | sed "s/-lgcc_s/-static-libgcc/; s/ *$$/$$now/" >gate.lib
	-$(STRIP) --strip-debug gate.new
	mv gate.new gate.a

clean:
	rm -f gate.a gate.lib gate.new gate.log
