//! Rates of an hour and a day over restarts, and a file that cannot be written.

use std::fs;

use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::Ask;

use super::home::{Home, ask, at_rest, next_second, pass_ms, text};

/// Asks this often, a second apart, ends what starts, and returns how many started.
fn starts(host: &mut super::home::Host, times: u32) -> u32 {
    let mut starts = 0;
    for _ in 0..times {
        next_second();
        if ask(host, 1, "a.example") == Ask::Go {
            starts += 1;
            host.done(1, DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\n\0"));
        } else {
            assert!(text(host).contains(" a.example is at its rate of 40/h; not tried."));
        }
    }
    starts
}

#[test]
fn an_hour_holds_over_a_kill_and_over_a_restart() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\na.example:20::40/h\n");
    let mut host = at_rest(&home, |home| home.open(100));
    assert_eq!(starts(&mut host, 10), 10);
    // Killed: the last start is not in the file. One that may be missing there counts all the same.
    drop(host);
    let mut host = home.open(100);
    assert_eq!(starts(&mut host, 10), 10);
    next_second();
    host.due();
    let key = home.status().unwrap().keys.into_iter().find(|key| key.name == "a.example").unwrap();
    assert_eq!((&key.rates[..], key.hour_left, key.day_left), ("40/h", Some(20), None));
    // qmail-send ends: the file is exact.
    host.drop_held();
    drop(host);
    let mut host = home.open(100);
    assert_eq!(starts(&mut host, 30), 20);
    // Another table keeps what was counted.
    home.write("concurrencydomains", ":20\na.example:20::40/h\nb.example:5\n");
    pass_ms(250);
    assert_eq!(starts(&mut host, 3), 0);
    assert_eq!(ask(&mut host, 2, "b.example"), Ask::Go);
}

#[test]
fn mail_goes_on_without_the_file() {
    let home = Home::new();
    let file = home.path.join("lock/gatekept.rates");
    home.write("concurrencydomains", "a.example:20::40/h\n");
    for contents in ["no log", "qpatch-kept\t2\t1"] {
        fs::write(&file, contents).unwrap();
        let mut host = at_rest(&home, |home| home.open(100));
        assert!(home.problem().starts_with("queue/lock/gatekept.rates: "), "{}", home.problem());
        assert_eq!(starts(&mut host, 3), 3, "{contents}");
        next_second();
        host.due();
        assert_eq!(home.problem(), "", "it was written");
    }
    fs::remove_file(&file).unwrap();
    let mut host = at_rest(&home, |home| home.open(100));
    assert_eq!(starts(&mut host, 45), 40);
    next_second();
    host.due();
    assert_eq!(home.problem(), "queue/lock/gatekept.rates: cannot be written (error 2)");
}

#[test]
fn nothing_is_written_without_such_rates() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\na.example:20::20/s\n");
    let mut host = at_rest(&home, |home| home.open(100));
    for slot in 0..5 {
        next_second();
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    host.drop_held();
    assert_eq!(fs::read(home.path.join("lock/gatekept.rates")).unwrap(), b"");
}
