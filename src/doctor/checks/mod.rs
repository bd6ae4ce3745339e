//! The checks: pure functions from [`Facts`] to [`Finding`]s.
#![forbid(unsafe_code)]

mod common;
mod descriptors;
mod machine;
mod processes;
mod qmail;

use super::facts::Facts;
use super::finding::Finding;
use super::options::Options;

/// Returns the number of remote deliveries that the findings are about: the number that was asked for, or else the
/// number in control/concurrencyremote, but not more than conf-spawn.
pub fn concurrency(facts: &Facts, options: &Options) -> u32 {
    let wanted = options.concurrency.or(facts.remote.as_ref().ok().copied()).unwrap_or(20);
    match &facts.spawn {
        Ok(spawn) if options.concurrency.is_none() => wanted.min(*spawn),
        _ => wanted,
    }
}

/// Runs all checks: qmail's settings first, then the limits of processes, then the machine.
pub fn all(facts: &Facts, concurrency: u32) -> Vec<Finding> {
    let remote = u64::from(concurrency);
    let local = u64::from(facts.local.as_ref().copied().unwrap_or(10));
    let mut all = vec![
        qmail::conf_spawn(facts, concurrency),
        qmail::domain_limits(facts, concurrency),
        qmail::relays(facts),
        descriptors::shell_files(facts, remote),
        descriptors::daemon_files(facts, remote.max(local)),
        descriptors::launch_files(facts, remote.max(local)),
        descriptors::replaced(facts),
        processes::unit_settings(facts),
        processes::user_processes(facts, remote),
        processes::unit_processes(facts, remote + local),
        processes::kernel_processes(facts, remote + local),
        machine::memory(facts, remote),
        machine::pipes(facts, remote),
        machine::ports(facts, remote),
        machine::conntrack(facts, remote),
        machine::c_library(facts),
        machine::fortify(facts),
        machine::queue(facts),
    ];
    all.extend(qmail::starts(facts));
    all
}

#[cfg(test)]
mod tests {
    use qpatch_gate::status::InForce;

    use super::*;
    use std::path::PathBuf;
    use std::rc::Rc;

    use super::common::SYSCTL;
    use crate::doctor::facts::{Compiler, DomainLimits, Libc, Mount};
    use crate::doctor::launch::limits::{
        InheritedLimit, LimitPair, LimitState, LimitValue, Limited, Setting,
    };
    use crate::doctor::launch::{Ceiling, Launch, Service, Start};
    use crate::doctor::process::Daemon;
    use crate::doctor::process::{ControlGroup, Daemons, Measure, ProcessLimits, RemoteMemory};
    use crate::doctor::{CheckVerdict, DoctorReport, Fix};

    /// qmail's rc with a line that sets the limit of descriptors to `value`.
    fn start(value: LimitValue) -> Start {
        let setting =
            Rc::new(Setting::new(Limited::OpenFiles, value, "/q/rc", 2, "ulimit -n 4000", "4000"));
        let bound = || crate::doctor::launch::limits::SourcedLimit {
            value,
            source: crate::doctor::launch::limits::LimitSource::Set(Rc::clone(&setting)),
        };
        Start {
            file: "/q/rc".to_owned(),
            unit: None,
            states: vec![LimitState::new(
                LimitPair { soft: bound(), hard: bound() },
                LimitPair::NOT_FOUND,
            )],
            idle: Vec::new(),
            raise: ("/q/rc line 2".to_owned(), "ulimit -n ".to_owned()),
        }
    }

    /// The same without that line: it has the limit of what starts it.
    fn start_given(soft: u64, certain: bool) -> Start {
        let by = Rc::new(InheritedLimit { by: "the default".to_owned(), certain, raise: None });
        let pair = LimitPair::inherited(LimitValue::Number(soft), LimitValue::Number(soft), &by);
        Start {
            states: vec![LimitState::new(pair, LimitPair::NOT_FOUND)],
            ..start(LimitValue::Unlimited)
        }
    }

    /// A machine on which 1000 deliveries can run.
    fn healthy() -> Facts {
        let limits =
            ProcessLimits { files: Some(65536), files_hard: Some(65536), processes: Some(100_000) };
        let daemon = |name: &str, pid| Daemon {
            name: name.to_owned(),
            pid,
            limits: Ok(limits),
            replaced: Some(false),
            group: Some(ControlGroup {
                path: "/qmail.service".to_owned(),
                most: 10_000,
                now: 5,
                others: 0,
            }),
            group_memory_kib: None,
        };
        Facts {
            home: PathBuf::from("/q"),
            spawn: Ok(1000),
            remote: Ok(1000),
            local: Ok(10),
            caps: Ok(Some(caps(b":20\n"))),
            in_force: None,
            relay_warnings: Vec::new(),
            remote_server: None,
            starts: Vec::new(),
            shell: Ok(limits),
            daemons: Ok(Daemons {
                ours: vec![daemon("qmail-send", 7), daemon("qmail-rspawn", 8)],
                ..Daemons::default()
            }),
            launch: Launch { starts: vec![start(LimitValue::Number(4000))], ..Launch::default() },
            pid_max: Ok(4_194_304),
            threads_max: Ok(100_000),
            threads: Ok(300),
            memory_kib: Ok(8 << 20),
            remotes: None,
            pipe_pages: (Ok(16384), Ok(0)),
            outgoing: Vec::new(),
            files_each: 2,
            takes_ports_late: Ok(false),
            ports: Ok((32768, 60999)),
            conntrack: Ok(None),
            limits_conf: Vec::new(),
            compiler: Ok(Compiler { libc: Libc::Glibc("2.36".to_owned()), fortify: 0 }),
            queue: Ok(Mount {
                point: "/".to_owned(),
                kind: "ext4".to_owned(),
                options: "rw".to_owned(),
            }),
        }
    }

    fn found(facts: &Facts, name: &str) -> Finding {
        let concurrency = concurrency(facts, &Options::default());
        let all = all(facts, concurrency);
        all.into_iter().find(|finding| finding.name == name).expect("a check of this name")
    }

    fn assert_warns(facts: &Facts, name: &str, place: &str, line: &str) {
        let finding = found(facts, name);
        assert_eq!(finding.verdict, CheckVerdict::Warn, "{finding}");
        let fix = Fix { place: place.to_owned(), line: line.to_owned() };
        assert!(finding.fixes.contains(&fix), "{finding}");
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_change() {
        for finding in all(&healthy(), 1000) {
            assert_eq!(finding.verdict, CheckVerdict::Ok, "{finding}");
            assert!(finding.fixes.is_empty(), "{finding}");
        }
    }

    #[test]
    fn a_fixed_fd_set_is_fine() {
        let compiler = Compiler { libc: Libc::Nameless, fortify: 0 };
        let facts = Facts { compiler: Ok(compiler), ..healthy() };
        let finding = found(&facts, "C library");
        assert_eq!(finding.verdict, CheckVerdict::Ok, "{finding}");
        assert!(finding.to_string().contains("has one of its own"), "{finding}");
    }

    #[test]
    fn a_fact_that_cannot_be_seen_is_unknown_and_says_why() {
        let facts = Facts {
            spawn: Err("no showctl".to_owned()),
            shell: Err("no proc".to_owned()),
            daemons: Err("no proc".to_owned()),
            pid_max: Err("no proc".to_owned()),
            memory_kib: Err("no proc".to_owned()),
            ports: Err("no proc".to_owned()),
            conntrack: Err("no proc".to_owned()),
            compiler: Err("no cc".to_owned()),
            queue: Err("no mounts".to_owned()),
            pipe_pages: (Err("no proc".to_owned()), Ok(0)),
            launch: Launch::default(),
            ..healthy()
        };
        let unknown: Vec<&str> = all(&facts, 1000)
            .iter()
            .filter(|finding| finding.verdict == CheckVerdict::Unknown)
            .map(|finding| finding.name)
            .collect();
        assert_eq!(unknown.len(), 15, "{unknown:?}");
    }

    #[test]
    fn the_limits_that_count_instead_of_the_file_are_named() {
        let limits = |text: &[u8], in_force| {
            let facts = Facts { caps: Ok(Some(caps(text))), in_force, ..healthy() };
            let finding = found(&facts, "domain limits");
            (finding.verdict, finding.detail)
        };
        let (verdict, detail) = limits(b":20\na.example:x\n", Some(InForce::Kept));
        assert_eq!(verdict, CheckVerdict::Warn);
        assert!(
            detail.ends_with("; the last one without errors counts, also after a restart"),
            "{detail}"
        );
        // Good as it stands here, but the gate may not have been able to read it.
        let (verdict, detail) = limits(b":20\n", Some(InForce::Part));
        assert_eq!(verdict, CheckVerdict::Warn);
        assert!(detail.contains("a limit of 20 for all other domains"), "{detail}");
        assert_eq!(limits(b":20\n", Some(InForce::File)), limits(b":20\n", None));
    }

    #[test]
    fn no_limits_per_domain_is_a_note() {
        let finding = found(&Facts { caps: Ok(None), ..healthy() }, "domain limits");
        assert_eq!(
            finding.to_string(),
            "note  domain limits       none: one domain may take all 1000 deliveries (there is no \
             control/concurrencydomains)\n      a file to start from: qpatch gate init /q"
        );
        let report = DoctorReport { home: "/q".into(), concurrency: 1000, findings: vec![finding] };
        assert!(report.ok());
        let summary = "0 of 1 checks are fine for 1000 remote deliveries at once; 0 to change, 1 to consider, 0 could \
                       not be seen";
        assert_eq!(report.summary(), summary);
    }

    #[test]
    fn daemons_that_may_be_of_another_qmail_are_not_judged() {
        let checked = |count: u32, asked_by_root| {
            let unclear = (7..7 + count).map(|pid| format!("qmail-send (process {pid})")).collect();
            let daemons = Daemons { unclear, asked_by_root, ..Daemons::default() };
            let finding = found(&Facts { daemons: Ok(daemons), ..healthy() }, "descriptors, qmail");
            assert_eq!(finding.verdict, CheckVerdict::Unknown);
            finding.detail
        };
        let why =
            "running: qmail-send (process 7); only root can see whether that is the qmail in /q";
        assert_eq!(checked(1, false), why);
        let why = "running: qmail-send (process 7), qmail-send (process 8), qmail-send (process 9) and 19 more; it cannot be \
                   seen from here, not even by root, whether that is the qmail in /q";
        assert_eq!(checked(22, true), why);
    }

    #[test]
    fn the_plan_is_the_smaller_of_concurrencyremote_and_conf_spawn() {
        let facts = Facts { remote: Ok(5000), ..healthy() };
        assert_eq!(concurrency(&facts, &Options::default()), 1000);
        let options = Options { concurrency: Some(3000), ..Options::default() };
        assert_eq!(concurrency(&facts, &options), 3000);
        assert_warns(
            &facts,
            "conf-spawn",
            "in the source tree",
            "qpatch apply . --spawn 5000 && make setup check",
        );
    }

    #[test]
    fn a_daemon_with_few_descriptors_is_fixed_where_it_is_started() {
        let mut facts = healthy();
        if let Ok(daemons) = &mut facts.daemons {
            daemons.ours[1].limits =
                Ok(ProcessLimits { files: Some(1024), ..ProcessLimits::default() });
        }
        assert_warns(&facts, "descriptors, qmail", "/q/rc line 2", "ulimit -n 2016");
        facts.launch.starts = vec![start(LimitValue::Number(1024))];
        assert_warns(&facts, "descriptors, qmail", "/q/rc line 2", "ulimit -n 2016");
        assert_warns(&facts, "start scripts", "/q/rc line 2", "ulimit -n 2016");
        // With spawn-events a delivery takes one.
        facts.files_each = 1;
        facts.launch.starts = vec![start(LimitValue::Number(1015))];
        assert_warns(&facts, "start scripts", "/q/rc line 2", "ulimit -n 1016");
    }

    #[test]
    fn processes_of_qmailr_are_raised_in_each_shell() {
        let mut facts = healthy();
        if let Ok(daemons) = &mut facts.daemons {
            daemons.ours[1].limits =
                Ok(ProcessLimits { processes: Some(100), ..ProcessLimits::default() });
        }
        let place = "where qmail is started, before it";
        assert_warns(&facts, "processes, qmailr", place, "ulimit -u 1010 || ulimit -p 1010");
    }

    #[test]
    fn only_a_certain_limit_is_a_warning() {
        let verdict = |start: Start, runs: bool| {
            let mut facts =
                Facts { launch: Launch { starts: vec![start], ..Launch::default() }, ..healthy() };
            if !runs {
                facts.daemons = Ok(Daemons::default());
            }
            found(&facts, "start scripts").verdict
        };
        assert_eq!(verdict(start_given(1024, true), true), CheckVerdict::Warn);
        assert_eq!(verdict(start_given(1024, false), false), CheckVerdict::Unknown);
        // What runs shows that what starts it gives enough.
        assert_eq!(verdict(start_given(1024, false), true), CheckVerdict::Ok);
        let nothing =
            Start { states: vec![LimitState::not_found()], ..start(LimitValue::Unlimited) };
        assert_eq!(verdict(nothing.clone(), false), CheckVerdict::Unknown);
        assert_eq!(verdict(nothing.clone(), true), CheckVerdict::Ok);
        assert_eq!(verdict(start(LimitValue::Unknown), true), CheckVerdict::Unknown);
        assert_eq!(verdict(start(LimitValue::AtMost(9999)), true), CheckVerdict::Unknown);
        assert_eq!(verdict(start(LimitValue::AtMost(1024)), true), CheckVerdict::Warn);
        // Two ways through one script.
        let mut either = start(LimitValue::Number(1024));
        either.states[0].join(&start(LimitValue::Number(4000)).states[0]);
        assert_eq!(verdict(either, true), CheckVerdict::Unknown);
        // 1024 descriptors are enough for 20 deliveries, and the kernel gives them by itself.
        let facts = Facts {
            remote: Ok(20),
            daemons: Ok(Daemons::default()),
            launch: Launch { starts: vec![nothing], ..Launch::default() },
            ..healthy()
        };
        assert_eq!(found(&facts, "start scripts").verdict, CheckVerdict::Ok);
    }

    #[test]
    fn kernel_limits_are_raised_to_what_systemd_sets_or_a_power_of_two() {
        let facts = Facts { pid_max: Ok(1500), threads_max: Ok(900), ..healthy() };
        assert_warns(&facts, "processes, kernel", SYSCTL, "kernel.pid_max = 32768");
        assert_warns(&facts, "processes, kernel", SYSCTL, "kernel.threads-max = 2048");
        let facts = Facts { pid_max: Ok(32768), threads: Ok(40_000), ..healthy() };
        assert_warns(&facts, "processes, kernel", SYSCTL, "kernel.pid_max = 4194304");
    }

    #[test]
    fn memory_is_judged_by_running_qmail_remotes_if_there_are_any() {
        let facts = Facts { memory_kib: Ok(100 << 10), ..healthy() };
        assert_warns(&facts, "memory", "/q/control/concurrencyremote", "512");
        let remotes = |kib| Some(RemoteMemory { count: 10, kib, measure: Measure::Proportional });
        let facts = Facts { remotes: remotes(600), ..facts };
        assert_eq!(found(&facts, "memory").verdict, CheckVerdict::Ok);
        let facts = Facts { remotes: remotes(9600), ..facts };
        assert_warns(&facts, "memory", "/q/control/concurrencyremote", "102");
        // Less than the machine has is free in the control group.
        let mut facts = healthy();
        if let Ok(daemons) = &mut facts.daemons {
            daemons.ours[0].group_memory_kib = Some(10 << 10);
        }
        let finding = found(&facts, "memory");
        assert!(
            finding.detail.starts_with("10 MiB free in qmail's control group, 195 MiB needed"),
            "{finding}"
        );
    }

    #[test]
    fn a_group_above_holds_others_as_well() {
        let mut facts = healthy();
        let group = |most, others| ControlGroup {
            path: "/system.slice".to_owned(),
            most,
            now: others + 5,
            others,
        };
        let mut set = |most, others| {
            if let Ok(daemons) = &mut facts.daemons {
                daemons.ours[0].group = Some(group(most, others));
            }
            found(&facts, "processes, unit")
        };
        assert_eq!(set(1060, 0).verdict, CheckVerdict::Ok);
        let finding = set(1060, 100);
        assert_eq!(
            finding.to_string(),
            "WARN  processes, unit     the control group /system.slice may have 1060, has 105; 1160 needed\n      \
             /etc/systemd/system/system.slice.d/limits.conf, in [Slice]: TasksMax=1160"
        );
    }

    #[test]
    fn pipes_become_small_and_then_none() {
        let checked = |remote, soft, hard| {
            let facts = Facts {
                remote: Ok(remote),
                spawn: Ok(65000),
                pipe_pages: (Ok(soft), Ok(hard)),
                ..healthy()
            };
            found(&facts, "pipes")
        };
        assert_eq!(checked(1000, 16384, 0).detail, "fs.pipe-user-pages-hard limits none");
        assert_eq!(
            checked(2000, 16384, 0).detail,
            "fs.pipe-user-pages-hard limits none; from number 1025 on a pipe of qmailr holds 8192 bytes, which is enough for \
             a report"
        );
        // 1024 of 16 pages, and 1000 of 2.
        assert_eq!(checked(2016, 16384, 18384).verdict, CheckVerdict::Ok);
        let finding = checked(2017, 16384, 18384);
        assert_eq!(finding.verdict, CheckVerdict::Warn, "{finding}");
        assert!(
            finding
                .detail
                .starts_with("fs.pipe-user-pages-hard 18384 allows qmailr 2024 pipes; 2025 needed")
        );
        assert_eq!(finding.fixes[0].line, "fs.pipe-user-pages-hard = 32768");
        // A hard limit below the soft one: the kernel makes none smaller.
        assert!(checked(1000, 16384, 8192).detail.contains("allows qmailr 512 pipes"));
        assert!(checked(1000, 0, 8192).detail.contains("allows qmailr 512 pipes"));
    }

    #[test]
    fn an_address_of_ones_own_shares_the_ports() {
        let outgoing = vec!["/q/control/outgoingip".to_owned()];
        let with =
            |takes_ports_late| Facts { outgoing: outgoing.clone(), takes_ports_late, ..healthy() };
        let built = found(&with(Ok(true)), "ephemeral ports");
        assert_eq!(built.verdict, CheckVerdict::Ok, "{built}");
        assert!(
            built
                .detail
                .ends_with("/q/control/outgoingip: qmail-remote was built with outgoing-ports"),
            "{built}"
        );
        let unseen = found(&with(Err("it may not be read".to_owned())), "ephemeral ports");
        assert!(unseen.detail.contains("could not be seen: it may not be read; when"), "{unseen}");
        let finding = found(&with(Ok(false)), "ephemeral ports");
        assert_eq!(finding.verdict, CheckVerdict::Note, "{finding}");
        assert!(
            finding.detail.contains("; this qmail-remote was built without it; when"),
            "{finding}"
        );
        assert!(
            finding.detail.starts_with(
                "32768 to 60999, 28232 ports, 10000 needed; a connection that has its address from \
            /q/control/outgoingip shares them with all destinations"
            ),
            "{finding}"
        );
    }

    #[test]
    fn other_limits_name_their_line() {
        let facts = Facts { ports: Ok((50000, 51000)), ..healthy() };
        let line = "net.ipv4.ip_local_port_range = 1024 65535";
        assert_warns(&facts, "ephemeral ports", "/etc/sysctl.d/qmail.conf", line);
        let facts = Facts { conntrack: Ok(Some((4096, 100))), ..healthy() };
        let line = "net.netfilter.nf_conntrack_max = 32768";
        assert_warns(&facts, "connection tracking", "/etc/sysctl.d/qmail.conf", line);
        let facts = Facts { caps: Ok(Some(caps(b":20\n\nbig.example:1500\n"))), ..healthy() };
        assert_warns(&facts, "domain limits", "/q/control/concurrencyremote", "3000");
        let place = (
            "/etc/systemd/system/qmail.service.d/limits.conf, in [Service]".to_owned(),
            "TasksMax=".to_owned(),
        );
        let ceiling = |most| Ceiling {
            unit: "qmail.service".to_owned(),
            most,
            by: "systemd's own DefaultTasksMax of 15%".to_owned(),
            setting: None,
            raise: place.clone(),
        };
        let service = Service {
            name: "qmail.service".to_owned(),
            tasks: vec![ceiling(512)],
            memory: vec![Ceiling {
                raise: (place.0.clone(), "MemoryMax=".to_owned()),
                ..ceiling(64 << 20)
            }],
            ends_on_lack_of_memory: true,
            obstacles: Vec::new(),
        };
        let launch = Launch { services: vec![service], ..healthy().launch };
        let facts = Facts { launch, ..healthy() };
        assert_warns(&facts, "processes, unit", &place.0, "TasksMax=1060");
        assert_warns(&facts, "memory", &place.0, "MemoryMax=256M");
    }

    fn caps(text: &[u8]) -> DomainLimits {
        DomainLimits::parse(text).expect("memory")
    }

    #[test]
    fn limits_are_read_as_the_gate_reads_them() {
        let checked = |text: &str| {
            found(&Facts { caps: Ok(Some(caps(text.as_bytes()))), ..healthy() }, "domain limits")
        };
        for (line, fix) in [
            ("mx:.outlook.com:1500:outlook", "mx:.outlook.com:1000:outlook"),
            ("192.0.2.0/24:1500", "192.0.2.0/24:1000"),
            ("[2001:db8::]/32:1500:g:learn", "[2001:db8::]/32:1000:g:learn"),
            ("[2001:db8::25]:1500::learn", "[2001:db8::25]:1000::learn"),
            ("mx:1500", "mx:1000"),
            (":1500", ":1000"),
            ("\u{feff}a.example:1500", "a.example:1000"),
            ("relay.example|user|S3cretPass:1500", "relay.example:1000"),
        ] {
            let finding = checked(&format!("{line}\nfree.example:\nb.example:7\n"));
            assert_eq!(finding.verdict, CheckVerdict::Warn, "{line}: {finding}");
            assert!(
                finding.detail.starts_with("1 of 3 limits can never be reached"),
                "{line}: {finding}"
            );
            let lines: Vec<_> = finding.fixes.iter().map(|fix| fix.line.as_str()).collect();
            assert_eq!(lines, ["3000", fix]);
            assert!(!finding.to_string().contains("S3cretPass"), "{finding}");
        }
        // The lowest limit of a group counts for all its lines; unlimited is above nothing.
        for text in [
            "a.example:1500:g\nb.example:5:g\n",
            "a.example:\n192.0.2.0/24:\n",
            "# a.example:1500\n",
            ":1000\n",
        ] {
            let finding = checked(text);
            assert_eq!(finding.verdict, CheckVerdict::Ok, "{finding}");
        }
        for (text, what) in [
            (
                ":20\na.example:many\n",
                "has an error, and the gate does not use it: control/concurrencydomains:2:11: the limit is",
            ),
            (
                "a.example\nb.example:5:\n",
                "has 2 errors, and the gate does not use it: control/concurrencydomains:1:10: no colon",
            ),
        ] {
            let finding = checked(text);
            assert!(
                finding.verdict == CheckVerdict::Warn && finding.detail.contains(what),
                "{finding}"
            );
            assert_eq!(finding.fixes[0].line, "qpatch gate check /q");
        }
        let finding = checked("*:20\n");
        let detail =
            "1 line, none above concurrencyremote 1000; a warning, see qpatch gate check /q";
        assert_eq!((finding.verdict, finding.detail.as_str()), (CheckVerdict::Ok, detail));
    }

    #[test]
    fn relays_that_the_gate_does_not_follow_are_reported() {
        let relay_warnings = vec![("authsenders chooses".to_owned(), "do this".to_owned())];
        let facts = Facts { relay_warnings: relay_warnings.clone(), ..healthy() };
        let finding = found(&facts, "relays");
        assert_eq!(
            (finding.verdict, finding.detail.as_str()),
            (CheckVerdict::Note, "authsenders chooses")
        );
        assert_eq!(finding.fixes[0].line, "do this");
        let facts = Facts { relay_warnings, caps: Ok(None), ..healthy() };
        assert_eq!(found(&facts, "relays").verdict, CheckVerdict::Ok);
    }

    #[test]
    fn a_queue_in_memory_or_on_the_network_is_warned_of() {
        for kind in ["tmpfs", "nfs4", "overlay"] {
            let queue = Mount { kind: kind.to_owned(), ..healthy().queue.expect("healthy") };
            let facts = Facts { queue: Ok(queue), ..healthy() };
            assert_eq!(found(&facts, "queue").verdict, CheckVerdict::Warn, "{kind}");
        }
    }
}
