//! Fixture trees in the states that the end-to-end tests need: patched, or broken in a known way.
#![allow(dead_code, unreachable_pub)]

use qpatch::fixture::Dialect;

use crate::common::Fixture;

/// Whether a patched tree has the limits per domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    In,
    Out,
}

/// A fixture as `qpatch apply` leaves it.
pub(crate) fn patched(dialect: Dialect, gate: Gate) -> Fixture {
    let fixture = Fixture::new(dialect);
    let gate = match gate {
        Gate::In => "--gate",
        Gate::Out => "--no-gate",
    };
    fixture.qpatch(&["apply", "--spawn", "1000", gate]).ok();
    fixture
}

/// The best that could be had before: the classic patch (two bytes, with its sign bug), and the recipe that goes with
/// it, which raises FD_SETSIZE in select.h and includes that first.
pub(crate) fn classic() -> Fixture {
    let fixture = Fixture::new(Dialect::TwoByte);
    fixture.replace(
        "select.h2",
        "#include <sys/types.h>\n",
        "#include <features.h>\n#include <bits/types.h>\n#undef __FD_SETSIZE\n\
         #define __FD_SETSIZE 131077\n#include <sys/types.h>\n",
    );
    for source in ["spawn.c", "qmail-send.c", "timeoutconn.c"] {
        fixture.replace(source, "#include \"select.h\"\n", "");
        fixture.replace(
            source,
            "#include <sys/types.h>\n",
            "#include \"select.h\"\n#include <sys/types.h>\n",
        );
    }
    fixture
}
