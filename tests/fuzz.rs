//! The properties that fuzz/ tries, with drawn bytes: arbitrary ones, and pieces that get deep into each reader.

#[allow(unreachable_pub, reason = "it is a library for the programs of fuzz/")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// How many inputs each reader gets of each kind.
const CASES: u32 = 300;

/// Pieces of what the readers read.
fn pieces(reader: &str) -> &'static [&'static str] {
    match reader {
        "lexer" => &[
            "#include <a.h>",
            "#define X(a) \\\n",
            "/*",
            "*/",
            "//",
            "\"",
            "'",
            "\\",
            "f(a) int a; {",
            "}",
        ],
        "rule" => &[
            "file a.c",
            "file? ",
            "files *.c with ",
            "function f",
            "calls g",
            "create a.h from b",
            "refuse ",
            "when spawn",
            "| ",
            "|@@ in f() : title",
            "|@@ all : t",
            "@& together : t",
            "@|",
            " x",
            "+y($a);",
            "-int x;",
            " ...",
            "=x",
            "!y",
            "as b.c",
            "unless",
            "at end",
            "${",
            "$$",
            "$a",
        ],
        "table" => &[
            "a.example",
            ":",
            "20",
            ":group",
            ":learn",
            ":fixed",
            "mx:",
            ".outlook.com",
            "[192.0.2.1]",
            "192.0.2.0/24",
            "[2001:db8::]/32",
            "#",
            "@",
            "*",
            "4294967296",
            "xn--",
            "a.b.",
        ],
        "routes" => &[
            "a.example",
            ":",
            "relay.example",
            "[192.0.2.1]",
            ":25",
            "|user|pass",
            ".",
            " ",
            "*",
            "\u{feff}",
        ],
        "lease" => {
            &["domain\t", "group\t", "a.example", "%", "%00", "%zz", "\t", "\n", "4294967296", "0"]
        }
        "status" => &[
            "qpatch-gate\t1\t3",
            "key\tdomain\t",
            "a.example",
            "\t",
            "20",
            "0",
            "end\t3",
            "state\tlimits",
            "problem\t",
            "pid\t",
            "0.0",
            "key\trelay\t",
        ],
        "classify" => &[
            "r\0",
            "h\0",
            "K",
            "Z",
            "D",
            "s\0",
            "192.0.2.1",
            " does not like recipient.",
            "Remote host said: ",
            "421 ",
            "4.7.28 ",
            "too many connections",
            " but ",
            "greeting failed",
            " accepted message",
            "\0",
            "Connected to ",
        ],
        "import" => &[
            "[\"a.example\"]\n",
            "[\"default\"]\n",
            "[provider.\"x y:\"]\n",
            "connection_limit = 7\n",
            "provider_connection_limit = \"local:1_0\"\n",
            "max_message_rate = \"9/90m,max_burst=3\"\n",
            "match = [{MXSuffix=\"b.example\"}, {DomainSuffix=\".c\"}]\n",
            "replace_base = true\n",
            "mx_rollup = false\n",
            "[[\"a.example\".automation]]\nregex = \"x\"\naction = \"y\"\n",
            "[\"a.example\".sources.\"s\"]\n",
            "{\"a.example\": {\"connection_limit\": 3, \"sources\": {\"s\": 1}}, ",
            "\"provider\": {\"x\": {\"match\": [{\"MXSuffix\": \".b.\"}]}}}",
            "<domain *>\n",
            "<virtual-mta v>\n",
            "</virtual-mta>\n",
            "include more\n",
            "<domain $m, [*.]d.example>\n",
            "</domain>\n",
            "max-smtp-out 3\n",
            "max-msg-rate 10/3d\n",
            "queue-to \"q.queue\"\n",
            "domain-macro m a.example,b.example\n",
            "mx *.e.example q.queue\n",
            "smtp_destination_concurrency_limit = $x\n",
            "x = ${y?{1}:{2}}\n",
            "slow_destination_rate_delay = 2s\n",
            "relay_domains = f.example\n",
            " continued\n",
            "f.example slow:[r.example]:26\n",
            "#",
        ],
        _ => &[
            "@4000000065b4c1d20c3f1e2c ",
            "1700000000.5 ",
            "Jan 28 10:11:12 host ",
            "2024-01-28T10:11:12+01:00 ",
            "qmail: ",
            "starting delivery 1: msg 2 to remote u@a.example",
            "delivery 1: success: ok/",
            "delivery 1: deferral: x/",
            "status: local 0/10 remote 1/20",
            "new msg 2",
            "end msg 2",
            "exiting",
            "warning: ",
        ],
    }
}

/// Lines of pieces of what `reader` reads, and of bytes.
fn nearly(reader: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(pieces(reader)).prop_map(|piece| piece.as_bytes().to_vec()),
        2 => Just(b"\n".to_vec()),
        1 => Just(b" ".to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn tried(strategy: &impl Strategy<Value = Vec<u8>>, property: fn(&[u8])) {
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() };
    let run = TestRunner::new(config).run(strategy, |bytes| {
        property(&bytes);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A test for each reader.
macro_rules! readers {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                tried(&vec(any::<u8>(), 0..400), fuzz::$name);
                tried(&nearly(stringify!($name)), fuzz::$name);
            }
        )*

        #[test]
        fn every_reader_is_tried_here_and_has_a_target() {
            let here = [$(stringify!($name)),*];
            assert_eq!(fuzz::READERS.map(|(name, _)| name), here);
            let targets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let count = std::fs::read_dir(&targets).unwrap().count();
            assert_eq!(count, here.len());
            assert!(here.iter().all(|name| targets.join(name).with_extension("rs").is_file()));
        }
    };
}

readers!(lexer, rule, lease, table, routes, status, classify, log, import);
