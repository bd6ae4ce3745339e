//! Which site each domain gets, and a gate that uses the map that was written.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::dns::{Says, mx, name};
use crate::rig::{HEAD, LIMITS, Rig, domains};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::Name;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Host};

fn ask(host: &mut Host, slot: u32, domain: &str) -> Ask {
    let recipient = format!("user@{domain}\0");
    host.ask(slot, &Parts::new(&[b"1/1\0", b"sender\0", recipient.as_bytes()]).unwrap())
}

#[test]
fn domains_are_matched_by_their_exchangers() {
    let rig = Rig::new(LIMITS);
    let dns = &rig.dns;
    dns.says("a.example", mx(&[(10, "a-example.mail.protection.OUTLOOK.com.")]));
    dns.says("g.example", mx(&[(20, "alt.aspmx.google.com."), (10, "aspmx.google.com.")]));
    dns.says("alone.example", mx(&[(5, "mx.alone.example.")]));
    dns.says("else.example", mx(&[(5, "mx.else.example.")]));
    // A match of a less preferred exchanger does not count: mail goes to the most preferred one.
    dns.says(
        "behind.example",
        mx(&[(1, "filter.else.example."), (5, "x.google.com."), (9, "x.outlook.com.")]),
    );
    // Of equally preferred exchangers, the line that comes first counts.
    dns.says("equal.example", mx(&[(5, "x.google.com."), (5, "x.outlook.com.")]));
    dns.says("null.example", mx(&[(0, ".")]));
    dns.says("alias.example", Says::Alias("a.example."));
    // Without MX records a domain is its own exchanger.
    dns.says("mx.alone.example", Says::NoData);
    dns.says("loop.example", Says::Alias("loop2.example."));
    dns.says("loop2.example", Says::Alias("loop.example."));
    let names = "a.example g.example alone.example else.example behind.example equal.example null.example \
                 alias.example mx.alone.example loop.example own.example missing.example user@A.Example.";
    let args: Vec<&str> = names.split(' ').flat_map(|name| ["--domain", name]).collect();
    let out = rig.sites(&args).ok().out;
    assert_eq!(
        out,
        "CHANGE   DOMAIN            SITE                 BECAUSE\n\
         added    a.example         outlook              a-example.mail.protection.outlook.com (10), concurrencydomains:3\n\
         added    alias.example     outlook              a-example.mail.protection.outlook.com (10), concurrencydomains:3\n\
         added    alone.example     mx:mx.alone.example  mx.alone.example (5), concurrencydomains:5\n\
         added    equal.example     outlook              x.outlook.com (5), concurrencydomains:3\n\
         added    g.example         google               aspmx.google.com (10), concurrencydomains:4\n\
         added    mx.alone.example  mx:mx.alone.example  mx.alone.example (0), concurrencydomains:5\n\
         unknown  loop.example      -                    too many aliases, or a loop of them\n\
         \n\
         11 names looked up: 10 answered, of which 4 at no site; 1 not answered\n\
         ./control/concurrencysites: 6 domains, 6 added, 0 changed, 0 removed; written\n"
    );
    let expected = "a.example:outlook\nalias.example:outlook\nalone.example:mx:mx.alone.example\n\
                    equal.example:outlook\ng.example:google\n\
                    mx.alone.example:mx:mx.alone.example\n";
    assert_eq!(rig.map(), format!("{HEAD}{expected}"));
    let file = rig.path("control/concurrencysites");
    let before = fs::metadata(&file).unwrap();
    assert_eq!(before.permissions().mode() & 0o7777, 0o644);

    // The second run looks up only the names of the map: nothing changes, and nothing is written.
    let report = rig.json(&[]);
    assert_eq!((&report["asked"], &report["written"]), (&6.into(), &false.into()));
    assert_eq!(fs::metadata(&file).unwrap().ino(), before.ino());

    // DNS has other answers now.
    dns.says("a.example", mx(&[(10, "aspmx.google.com.")]));
    dns.says("alone.example", Says::Code(ResponseCode::NXDomain));
    dns.says("g.example", mx(&[(0, ".")]));
    dns.says("equal.example", Says::NoData);
    rig.control("concurrencydomains", &format!("{LIMITS}mx.alone.example:4\n"));
    let out = rig.sites(&[]).ok().out;
    assert_eq!(
        out,
        "CHANGE   DOMAIN            SITE    BECAUSE\n\
         changed  a.example         google  aspmx.google.com (10), concurrencydomains:4; was outlook\n\
         changed  alias.example     google  aspmx.google.com (10), concurrencydomains:4; was outlook\n\
         removed  alone.example     -       no such domain; was mx:mx.alone.example\n\
         removed  equal.example     -       equal.example (0) matches no line; was outlook\n\
         removed  g.example         -       it takes no mail (null MX); was google\n\
         removed  mx.alone.example  -       concurrencydomains:6 names it; was mx:mx.alone.example\n\
         \n\
         5 names looked up: 5 answered, of which 3 at no site; 0 not answered\n\
         ./control/concurrencysites: 2 domains, 0 added, 2 changed, 4 removed; written\n"
    );
    assert_eq!(rig.map(), format!("{HEAD}a.example:google\nalias.example:google\n"));
    let left: Vec<_> = fs::read_dir(rig.path("control")).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing is left over");
}

/// A domain that was a member because of a spare exchanger leaves the map, and the reason is printed.
#[test]
fn a_spare_exchanger_makes_no_member() {
    let rig = Rig::new(LIMITS);
    rig.control("concurrencysites", "spare.example:google\n");
    let exchangers = [(10, "mx.own.example."), (20, "x.google.com."), (30, "x.outlook.com.")];
    rig.dns.says("spare.example", mx(&exchangers));
    let out = rig.sites(&[]).ok().out;
    assert_eq!(
        out,
        "CHANGE   DOMAIN         SITE  BECAUSE\n\
         removed  spare.example  -     mx.own.example (10) is tried first, before x.google.com (20), concurrencydomains:4; was \
         google\n\
         \n\
         1 name looked up: 1 answered, of which 1 at no site; 0 not answered\n\
         ./control/concurrencysites: 0 domains, 0 added, 0 changed, 1 removed; written\n"
    );
}

/// Part of such a domain's mail goes to a server elsewhere.
#[test]
fn an_equal_exchanger_elsewhere_makes_no_member() {
    let rig = Rig::new(LIMITS);
    rig.dns.says("half.example", mx(&[(10, "x.google.com."), (10, "mx.own.example.")]));
    let all: Vec<_> = (0..40).map(|n| (10, name(&format!("h{n}.google.com.")))).collect();
    rig.dns.says("many.example", Says::Mx([&all[..], &[(10, name("z.own.example."))]].concat()));
    rig.control("concurrencysites", "half.example:google\nmany.example:google\n");
    let report = rig.json(&[]);
    assert_eq!(domains(&report["removed"]), ["half.example", "many.example"]);
    let why = "mx.own.example (10) is tried as early as x.google.com (10), concurrencydomains:4";
    assert_eq!(report["removed"][0]["because"], why);
    assert_eq!(rig.map(), HEAD);
}

/// Many names without an answer, which one stranger may own, do not end the look-up of the others.
#[test]
fn strangers_who_do_not_answer_do_not_end_the_look_up() {
    let rig = Rig::new(LIMITS);
    let mut names: Vec<String> = (0..60).map(|n| format!("d{n:03}.attacker.example")).collect();
    for name in &names {
        rig.dns.says(name, Says::Code(ResponseCode::ServFail));
    }
    names.push("good.example".to_string());
    rig.dns.says("good.example", mx(&[(1, "x.google.com.")]));
    let args: Vec<&str> = names.iter().flat_map(|name| ["--domain", name.as_str()]).collect();
    // The order does not matter: the server answers for the root.
    for _ in 0..3 {
        assert_eq!(domains(&rig.json(&args)["added"]), ["good.example"]);
        fs::remove_file(rig.path("control/concurrencysites")).unwrap();
    }
}

/// A domain to which no mail was seen for long is no longer looked up. A domain that is seen stays, however old it is.
#[test]
fn a_domain_that_is_not_seen_for_long_leaves_the_map() {
    let rig = Rig::new(LIMITS);
    for domain in ["new.example", "old.example", "back.example"] {
        rig.dns.says(domain, mx(&[(1, "x.outlook.com.")]));
    }
    rig.control(
        "concurrencysites",
        "new.example:outlook\n# seen 2020-01-02\nback.example:outlook\nold.example:outlook\n",
    );
    let report = rig.json(&["--domain", "back.example"]);
    assert_eq!(report["asked"], 2);
    assert_eq!(domains(&report["removed"]), ["old.example"]);
    assert_eq!(report["removed"][0]["because"], "not seen since 2020-01-02");
    assert_eq!(rig.map(), format!("{HEAD}back.example:outlook\nnew.example:outlook\n"));
    let text = fs::read_to_string(rig.path("control/concurrencysites")).unwrap();
    let days: Vec<_> = text.lines().filter(|line| line.starts_with("# seen 20")).collect();
    assert_eq!(days.len(), 1, "both were seen today: {text}");
}

#[test]
fn a_domain_without_an_answer_stays_as_it_was() {
    // One of these names never has an answer.
    let rig = Rig { timeout: "3", ..Rig::new(LIMITS) };
    let dns = &rig.dns;
    let before = "# by hand\nfail.example:outlook\nloop.example:outlook\nnoise.example:Outlook\n\
                  referral.example:google\nrefused.example:google\nsilent.example:google\n";
    rig.control("concurrencysites", before);
    dns.says("fail.example", Says::Code(ResponseCode::ServFail));
    dns.says("refused.example", Says::Code(ResponseCode::Refused));
    dns.says("silent.example", Says::Silence);
    dns.says("noise.example", Says::Noise);
    dns.says("referral.example", Says::Referral);
    dns.says("loop.example", Says::Alias("loop.example."));

    // No name has an answer: an error, and no file changes.
    let failed = rig.sites(&[]);
    assert_eq!((failed.code, failed.out.as_str()), (1, ""));
    let (address, err) = (dns.address, failed.err);
    assert!(err.starts_with(&format!("qpatch: {address}: no answer to 6 look-ups: ")), "{err}");
    assert!(err.ends_with(
        "; ./control/concurrencysites is as it was\n  name another server, or leave --server out\n"
    ));
    assert_eq!(rig.map(), before);

    dns.says("new.example", mx(&[(1, "x.outlook.com.")]));
    let report = rig.json(&["--domain", "new.example", "--domain", "lost.example"]);
    let kept = domains(&report["kept"]);
    let names = ["fail", "loop", "noise", "referral", "refused", "silent"];
    assert_eq!(kept, names.map(|name| format!("{name}.example")));
    let why = |name: &str| {
        let kept = report["kept"].as_array().unwrap();
        let change = kept.iter().find(|kept| kept["domain"] == format!("{name}.example"));
        change.unwrap()["because"].as_str().unwrap().to_string()
    };
    assert_eq!((why("fail").as_str(), why("refused").as_str()), ("SERVFAIL", "REFUSED"));
    assert_eq!(why("silent"), "no answer in time");
    assert_eq!(why("referral"), "the server does not ask others");
    assert_eq!(domains(&report["added"]), ["new.example"]);
    assert_eq!(
        rig.map(),
        format!(
            "{HEAD}fail.example:outlook\nloop.example:outlook\nnew.example:outlook\nnoise.example:Outlook\n\
             referral.example:google\nrefused.example:google\nsilent.example:google\n"
        )
    );
}

#[test]
fn a_dry_run_and_a_home_without_such_lines_write_nothing() {
    let rig = Rig::new(LIMITS);
    rig.dns.says("a.example", mx(&[(1, "x.outlook.com.")]));
    let report = rig.json(&["--domain", "a.example", "--dry-run"]);
    assert_eq!(domains(&report["added"]), ["a.example"]);
    assert_eq!((&report["written"], &report["domains"]), (&false.into(), &1.into()));
    assert!(!rig.path("control/concurrencysites").exists());
    let out = rig.sites(&["--domain", "a.example", "--dry-run"]).ok().out;
    assert!(
        out.ends_with("1 domain, 1 added, 0 changed, 0 removed; not written (--dry-run)\n"),
        "{out}"
    );

    // Nothing has been seen, so there is nothing to write.
    let out = rig.sites(&[]).ok().out;
    assert!(out.ends_with("0 domains, 0 added, 0 changed, 0 removed; nothing changed\n"), "{out}");
    assert!(!rig.path("control/concurrencysites").exists());

    rig.control("concurrencydomains", ":20\n");
    rig.control("concurrencysites", "a.example:outlook\n");
    let asked = rig.dns.asked();
    let out = rig.sites(&["--domain", "b.example"]).ok().out;
    assert_eq!(
        out,
        "note: no line of ./control/concurrencydomains begins with mx: nothing to look up\n\
         ./control/concurrencysites: 1 domain, 0 added, 0 changed, 0 removed; nothing changed\n"
    );
    assert_eq!(rig.map(), "a.example:outlook\n");
    fs::remove_file(rig.path("control/concurrencydomains")).unwrap();
    let out = rig.sites(&[]).ok().out;
    assert!(out.starts_with("note: there is no ./control/concurrencydomains"), "{out}");
    assert_eq!(rig.dns.asked(), asked, "nobody was asked");
}

#[test]
fn the_gate_counts_by_the_new_map() {
    let rig = Rig::new(LIMITS);
    for domain in ["a.example", "b.example"] {
        rig.dns.says(domain, mx(&[(1, "x.outlook.com.")]));
    }
    rig.dns.says("c.example", mx(&[(1, "x.else.example.")]));
    let mut host = rig.host(50);
    // Each domain counts by itself, so all of them run.
    for (slot, domain) in (0..).zip(["a.example", "b.example", "b.example", "c.example"]) {
        assert_eq!(ask(&mut host, slot, domain), Ask::Go);
    }
    thread::sleep(Duration::from_millis(1100));
    host.due();
    // The status file names them.
    let report = rig.json(&[]);
    assert_eq!(domains(&report["added"]), ["a.example", "b.example"]);
    assert_eq!((&report["asked"], &report["elsewhere"]), (&3.into(), &1.into()));

    let start = Instant::now();
    while host.gate().rules().sites.map.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "it is not read");
        thread::sleep(Duration::from_millis(50));
        host.due();
    }
    // Three of them run, where two may.
    assert_eq!(ask(&mut host, 10, "a.example"), Ask::Hold);
    assert_eq!(ask(&mut host, 11, "c.example"), Ask::Go);
    host.done(0, DeliveryEnd::Reported(b"r\0Kok\0"));
    host.done(1, DeliveryEnd::Reported(b"r\0Kok\0"));
    assert_eq!(ask(&mut host, 12, "b.example"), Ask::Hold, "one runs and one is before it");
    thread::sleep(Duration::from_millis(1100));
    host.due();
    // The status no longer names the domains of the group, and they stay in the map.
    let report = rig.json(&[]);
    assert_eq!((&report["asked"], &report["written"]), (&3.into(), &false.into()));
    assert_eq!(rig.map(), format!("{HEAD}a.example:outlook\nb.example:outlook\n"));
}

#[test]
fn domains_of_logs_are_looked_up_and_relays_by_their_own_names() {
    let rig = Rig::new(LIMITS);
    rig.control(
        "smtproutes",
        "via.example:smart.example:587\nother.example:x.outlook.com\n.ip.example:192.0.2.1\n",
    );
    let dns = &rig.dns;
    dns.says("a.example", mx(&[(1, "x.outlook.com.")]));
    // qmail-remote asks for the address of a relay, not for its exchangers.
    dns.says("smart.example", Says::Alias("relay.google.com."));
    dns.says("relay.google.com", Says::NoData);
    dns.says("x.outlook.com", mx(&[(1, "x.google.com.")]));
    dns.says("via.example", mx(&[(1, "x.outlook.com.")]));
    rig.control("concurrencysites", "via.example:outlook\n");
    let mut log = String::new();
    for (number, domain) in (1..).zip([
        "a.example",
        "A.EXAMPLE.",
        "via.example",
        "other.example",
        "a.ip.example",
        "[192.0.2.1]",
        "b\u{fc}cher.example",
        "a:outlook",
        "..",
        "",
    ]) {
        log.push_str(&format!(
            "@40000000499602dc075bca00 starting delivery {number}: msg 1 to remote u@{domain}\n"
        ));
    }
    log.push_str("@40000000499602dc075bca00 starting delivery 99: msg 1 to remote nobody\nnoise\n");
    fs::write(rig.path("log"), log).unwrap();
    let out = rig.sites(&["--log", "log", "--domain", "[192.0.2.9]"]).ok().out;
    assert_eq!(
        out,
        "CHANGE   DOMAIN         SITE     BECAUSE\n\
         added    a.example      outlook  x.outlook.com (1), concurrencydomains:3\n\
         added    smart.example  google   relay.google.com (0), concurrencydomains:4\n\
         added    x.outlook.com  outlook  x.outlook.com (0), concurrencydomains:3\n\
         removed  via.example    -        smtproutes:1 sends it to a relay; was outlook\n\
         \n\
         note: 7 names that DNS cannot have: not looked up\n\
         3 names looked up: 3 answered, of which 0 at no site; 0 not answered\n\
         ./control/concurrencysites: 3 domains, 3 added, 0 changed, 1 removed; written\n"
    );
    // They stay, although none of them is the domain of a recipient.
    let report = rig.json(&[]);
    assert_eq!((&report["asked"], &report["written"]), (&3.into(), &false.into()));
    let failed = rig.sites(&["--log", "nowhere"]);
    assert_eq!(failed.code, 1);
    assert!(failed.err.starts_with("qpatch: nowhere: cannot open the log: "), "{}", failed.err);
}

#[test]
fn hostile_names_get_no_line_of_their_own() {
    let rig = Rig::new("mx:.outlook.com:2:outlook\n:20\n");
    let dns = &rig.dns;
    let odd = |labels: &[&[u8]]| Name::from_labels(labels.iter().copied()).unwrap();
    for (domain, target) in [
        ("dot.example", odd(&[b"x.outlook", b"com"])),
        ("line.example", odd(&[b"x\nvictim.example:outlook\n", b"outlook", b"com"])),
        ("colon.example", odd(&[b"a:b", b"outlook", b"com"])),
        ("escape.example", odd(&[b"\x1b[2J", b"outlook", b"com"])),
        ("byte.example", odd(&[b"\xff\x00", b"outlook", b"com"])),
    ] {
        dns.says(domain, Says::Mx(vec![(1, target)]));
    }
    let many = |count: u16| (0..count).map(|n| (n, name(&format!("h{n}.outlook.com.")))).collect();
    dns.says("many.example", Says::Mx(many(30)));
    dns.says("huge.example", Says::Truncated(many(1500)));
    // The records of another name are not those of this one.
    dns.says("other.example", Says::Other(1, "x.outlook.com."));
    let names = ["dot", "line", "colon", "escape", "byte", "many", "huge", "other"]
        .map(|name| format!("{name}.example"));
    let args: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .chain(["x\ny.example:outlook\nz"])
        .flat_map(|name| ["--domain", name])
        .collect();
    let report = rig.json(&args);
    assert_eq!(report["elsewhere"], 6, "{report}");
    assert_eq!(rig.map(), format!("{HEAD}huge.example:outlook\nmany.example:outlook\n"));
    // Mail goes to the first of them whatever it is called.
    let behind = vec![(1, odd(&[b"x.outlook", b"com"])), (2, name("x.outlook.com."))];
    dns.says("behind.example", Says::Mx(behind));
    let report = rig.json(&["--domain", "behind.example"]);
    assert_eq!((&report["elsewhere"], domains(&report["added"]).len()), (&1.into(), 0), "{report}");
    assert!(dns.asked().1 > 0, "what is too long for UDP comes by TCP");
    // A damaged map is read as the gate reads it, and written in order.
    rig.control(
        "concurrencysites",
        "many.example:outlook\nnonsense\n:x\n.y:outlook\na b:outlook\n[192.0.2.1]:outlook\n",
    );
    let report = rig.json(&[]);
    assert_eq!(domains(&report["removed"]), ["[192.0.2.1]"]);
    assert_eq!(rig.map(), format!("{HEAD}many.example:outlook\n"));
}

#[test]
fn files_that_cannot_be_used() {
    let rig = Rig::new(":2O\n");
    let run = rig.sites(&["--domain", "a.example"]);
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert!(run.err.starts_with("qpatch: ./control/concurrencydomains:1:3: "), "{}", run.err);

    rig.control("concurrencydomains", LIMITS);
    rig.dns.says("a.example", mx(&[(1, "x.outlook.com.")]));
    let file = rig.path("control/concurrencysites");
    fs::create_dir(&file).unwrap();
    let run = rig.sites(&["--domain", "a.example"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("concurrencysites: not a regular file"), "{}", run.err);
    fs::remove_dir(&file).unwrap();

    // A link is replaced, not followed.
    fs::write(rig.path("elsewhere"), "b.example:outlook\n").unwrap();
    symlink("../elsewhere", &file).unwrap();
    rig.sites(&["--domain", "a.example"]).ok();
    assert!(fs::symlink_metadata(&file).unwrap().is_file());
    assert_eq!(fs::read_to_string(rig.path("elsewhere")).unwrap(), "b.example:outlook\n");
    assert_eq!(rig.map(), format!("{HEAD}a.example:outlook\n"));

    // A status that cannot be read is reported, and the other names are looked up.
    fs::write(rig.path("queue/lock/gatestatus"), "what\n").unwrap();
    let out = rig.sites(&[]).ok().out;
    assert!(out.starts_with("note: ./queue/lock/gatestatus: "), "{out}");

    rig.dns.says("a.example", mx(&[(1, "x.google.com.")]));
    fs::set_permissions(rig.path("control"), Permissions::from_mode(0o555)).unwrap();
    let run = crate::common::run_as_user(&mut rig.command(&[]), rig.home.path());
    fs::set_permissions(rig.path("control"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("qpatch: ./control: cannot write into it: "), "{}", run.err);
    assert_eq!(rig.map(), format!("{HEAD}a.example:outlook\n"));
}

#[test]
fn many_at_once_leave_a_whole_file() {
    let rig = Rig::new(LIMITS);
    let names: Vec<String> = (0..200).map(|n| format!("d{n:03}.example")).collect();
    for name in &names {
        rig.dns.says(name, mx(&[(1, "x.outlook.com.")]));
    }
    let args: Vec<&str> = names.iter().flat_map(|name| ["--domain", name.as_str()]).collect();
    let children: Vec<_> =
        (0..3).map(|_| rig.command(&args).stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let lines: String = names.iter().map(|name| format!("{name}:outlook\n")).collect();
    assert_eq!(rig.map(), format!("{HEAD}{lines}"));
    assert_eq!(fs::read_dir(rig.path("control")).unwrap().count(), 2);
}

#[test]
fn a_thousand_domains_are_looked_up() {
    let rig = Rig::new(LIMITS);
    let names: Vec<String> = (0..1000).map(|n| format!("d{n:03}.example")).collect();
    for name in &names {
        rig.dns.says(name, mx(&[(1, "x.outlook.com."), (2, "y.outlook.com.")]));
    }
    let args: Vec<&str> = names.iter().flat_map(|name| ["--domain", name.as_str()]).collect();
    let start = Instant::now();
    let report = rig.json(&args);
    let took = start.elapsed();
    eprintln!("1000 domains looked up in {took:?}");
    assert_eq!((&report["answered"], &report["domains"]), (&1000.into(), &1000.into()));
}
