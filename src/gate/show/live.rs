//! `gate show --watch` on a terminal: a table that fits its window, with a bar, a colour and a line of the last minute
//! for each key.
//!
//! Only the keys that fit are formatted, and what is remembered of each key is [`SLOTS`] numbers. So it keeps up with
//! thousands of keys: a frame with 4000 takes 50 to 90 ms in a build without optimization, from the status that was
//! read to the bytes for the terminal (November 2026, two virtual cores).

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::Limit;
use qpatch_gate_status::KeyStatus;

use super::View;
use super::screen::{ScreenLine, on_screen, shortened, size_of_screen};
use super::terminal::Terminal;
use crate::error::Error;
use crate::gate::text::{cap_text, cut, key_name, printable_status};
use crate::output::{CommandResult, count, written};
use crate::sys::{self, Interest, Polled, SignalGuard, Watch};

/// The last minute has so many parts of [`SLOT_SECS`].
const SLOTS: usize = 12;
const SLOT_SECS: u64 = 5;
/// How many cells a bar has.
const BAR: usize = 8;
/// How often the size of the window is looked at.
const RESIZE: Duration = Duration::from_millis(200);

/// What to draw with.
#[derive(Clone, Copy, Debug)]
struct Ink {
    has_colours: bool,
    /// Whether the terminal shows characters that are not ASCII.
    has_blocks: bool,
}

impl Ink {
    fn of_terminal() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
        let locale = locale.unwrap_or_default().to_ascii_lowercase().replace('-', "");
        Self {
            has_colours: AutoStream::choice(&io::stdout()) != ColorChoice::Never,
            has_blocks: locale.ends_with("utf8"),
        }
    }

    fn colour(self, colour: AnsiColor) -> Style {
        if self.has_colours { colour.on_default() } else { Style::new() }
    }

    fn dim(self) -> Style {
        if self.has_colours { Style::new().dimmed() } else { Style::new() }
    }

    /// How much of a limit is in use.
    fn bar(self, running: u32, limit: Limit) -> String {
        let (full, empty) = if self.has_blocks { ('\u{2588}', '\u{2591}') } else { ('#', '.') };
        let Limit::AtMost(limit) = limit else { return String::new() };
        let part = f64::from(running) / f64::from(limit.max(1));
        // A bar is full only if the limit is reached, and empty only if nothing runs.
        let cells = match running {
            0 => 0,
            running if running >= limit => BAR,
            _ => ((part * BAR as f64).round() as usize).clamp(1, BAR - 1),
        };
        (0..BAR).map(|cell| if cell < cells { full } else { empty }).collect()
    }

    fn line(self, slots: &[u32; SLOTS], top: u32) -> String {
        let signs: [char; 9] = match self.has_blocks {
            true => [
                ' ', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}',
                '\u{2587}', '\u{2588}',
            ],
            false => [' ', '.', ':', '-', '=', '+', '*', '#', '@'],
        };
        let sign = |&value: &u32| match value {
            0 => signs[0],
            _ => signs[(8 * u64::from(value)).div_ceil(u64::from(top.max(1))).clamp(1, 8) as usize],
        };
        slots.iter().map(sign).collect()
    }
}

/// The most that ran of a key in each part of the last minute.
#[derive(Clone, Copy, Debug, Default)]
struct LastMinute {
    slots: [u32; SLOTS],
    /// The number of the last part.
    at: u64,
}

impl LastMinute {
    fn add(&mut self, now_secs: u64, running: u32) {
        let at = now_secs / SLOT_SECS;
        let gone = at.saturating_sub(self.at).min(SLOTS as u64) as usize;
        self.slots.rotate_left(gone);
        self.slots[SLOTS - gone..].fill(0);
        self.at = self.at.max(at);
        self.slots[SLOTS - 1] = self.slots[SLOTS - 1].max(running);
    }
}

/// The last minute of all keys.
#[derive(Debug, Default)]
pub(super) struct History(HashMap<(KeyKind, String), LastMinute>);

impl History {
    pub(super) fn add(&mut self, view: &View) {
        for key in &view.status.keys {
            let minute = self.0.entry((key.kind, key.name.clone())).or_default();
            minute.add(view.now_secs, key.running);
        }
        // Keys that the gate has forgotten.
        let oldest = (view.now_secs / SLOT_SECS).saturating_sub(SLOTS as u64);
        self.0.retain(|_, minute| minute.at > oldest);
    }

    fn of(&self, key: &KeyStatus) -> [u32; SLOTS] {
        self.0.get(&(key.kind, key.name.clone())).map_or([0; SLOTS], |minute| minute.slots)
    }
}

/// What is the matter with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyState {
    Fine,
    /// As many run as may.
    Full,
    /// Its server takes less than its limit.
    Lowered,
    /// Nothing starts.
    Suspended,
}

impl KeyState {
    fn of(key: &KeyStatus, now_secs: u64) -> Self {
        match key.effective {
            _ if key.suspended_secs > now_secs => Self::Suspended,
            Limit::AtMost(0) => Self::Suspended,
            effective if effective < key.limit => Self::Lowered,
            Limit::AtMost(limit) if key.running >= limit => Self::Full,
            _ => Self::Fine,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Fine => "",
            Self::Full => "full",
            Self::Lowered => "lowered",
            Self::Suspended => "stopped",
        }
    }

    fn style(self, ink: Ink) -> Style {
        match self {
            Self::Fine => ink.colour(AnsiColor::Green),
            Self::Full => ink.colour(AnsiColor::Yellow),
            Self::Lowered => ink.colour(AnsiColor::Magenta),
            Self::Suspended => ink.colour(AnsiColor::Red),
        }
    }
}

/// `12 s`, `3 min`, `2 h`: how long the mail that waits takes at this rate.
fn time_to_empty(key: &KeyStatus, per_second: f64) -> String {
    let waiting = f64::from(key.held) + f64::from(key.away);
    match waiting / per_second {
        _ if waiting == 0.0 => "-".to_string(),
        _ if per_second < 0.05 => "?".to_string(),
        secs @ ..120.0 => format!("{:.0} s", secs.ceil()),
        secs @ ..7200.0 => format!("{:.0} min", secs / 60.0),
        secs @ ..172_800.0 => format!("{:.0} h", secs / 3600.0),
        secs => format!("{:.0} d", secs / 86_400.0),
    }
}

/// The titles of the table, and whether a column is of numbers.
const COLUMNS: [(&str, bool); 14] = [
    ("KEY", false),
    ("", false),
    ("LIMIT", true),
    ("ALLOWED", true),
    ("RUNNING", true),
    ("", false),
    ("HELD", true),
    ("AWAY", true),
    ("EMPTY IN", true),
    ("PER SEC", true),
    ("LAST MINUTE", false),
    ("MEAN", true),
    ("DONE", true),
    ("LAST ERROR", false),
];

impl View {
    /// The lines for a screen with room for so many, of so many columns. Where they are too few, keys and servers that
    /// objected are left out, and a line says how many.
    fn fitted(&self, room: usize, columns: usize, history: &History, ink: Ink) -> Vec<ScreenLine> {
        let lines = |text: Vec<u8>| -> Vec<ScreenLine> {
            let text = String::from_utf8_lossy(&text);
            text.lines().map(|line| line.to_string().into()).collect()
        };
        let mut shown = lines(written(|out| self.summary(out)));
        if self.domains.is_empty() {
            let objections = lines(written(|out| self.objections(out)));
            let left = room.saturating_sub(shown.len());
            let unlisted = u64::from(self.status.unlisted > 0);
            // An empty line and the titles come before the keys, and an empty line before the objections.
            let keys_len = match self.status.keys.len() {
                0 => 0,
                keys => keys + 2 + unlisted as usize,
            };
            // The keys get two thirds of the room, and what the others do not need.
            let for_objections =
                objections.len().min((left / 3).max(left.saturating_sub(keys_len)));
            let all = (self.status.keys.len() as u64).saturating_add(self.status.unlisted);
            let hidden = |lines: usize| all.saturating_sub(lines.saturating_sub(2) as u64);
            let keys =
                self.live_keys((left - for_objections).saturating_add(1), columns, history, ink);
            shown.extend(shortened(keys, left - for_objections, hidden));
            let all = objections.len() as u64;
            let hidden = |lines: usize| all - lines as u64;
            shown.extend(shortened(objections, for_objections, hidden));
        }
        shown
    }

    /// The table of keys: at most so many lines, for a window of so many columns.
    fn live_keys(
        &self,
        room: usize,
        columns: usize,
        history: &History,
        ink: Ink,
    ) -> Vec<ScreenLine> {
        let status = &self.status;
        if status.keys.is_empty() {
            return Vec::new();
        }
        let name_max = if columns < 110 { 24 } else { 48 };
        let mut rows = vec![COLUMNS.map(|(title, _)| (ink.dim(), title.to_string()))];
        for (key, rate) in status.keys.iter().zip(&self.rates).take(room) {
            let state = KeyState::of(key, self.now_secs);
            let style = state.style(ink);
            let name_style = if state == KeyState::Fine { Style::new() } else { style };
            let slots = history.of(key);
            let most = slots.iter().copied().max().unwrap_or(0);
            let top = match key.limit {
                Limit::AtMost(limit) => most.max(limit),
                Limit::Unlimited => most,
            };
            let mean = match key.mean_ms {
                0 => "-".to_string(),
                ms => format!("{:.2} s", ms as f64 / 1000.0),
            };
            let plain = |text: String| (Style::new(), text);
            rows.push([
                (name_style, cut(&key_name(key.kind, &key.name), name_max)),
                (style, state.name().to_string()),
                plain(cap_text(key.limit, &key.rates)),
                plain(self.limit_now(key)),
                plain(key.running.to_string()),
                (style, ink.bar(key.running, key.effective)),
                plain(key.held.to_string()),
                plain(key.away.to_string()),
                plain(time_to_empty(key, *rate)),
                plain(format!("{rate:.1}")),
                (style, ink.line(&slots, top)),
                plain(mean),
                plain(key.done.to_string()),
                plain(printable_status(&key.error)),
            ]);
        }
        let width =
            |column: usize| rows.iter().map(|row| row[column].1.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
        let mut lines = vec![ScreenLine::default()];
        for row in rows {
            let mut line = ScreenLine::default();
            for (((style, text), width), (at, (_, is_number))) in
                row.into_iter().zip(&widths).zip(COLUMNS.iter().enumerate())
            {
                // A column that is empty takes no room.
                if *width == 0 {
                    continue;
                }
                let gap = " ".repeat(width - text.chars().count());
                let space = if at == 0 { "" } else { "  " };
                match is_number {
                    true => line.push(Style::new(), format!("{space}{gap}")),
                    false => line.push(Style::new(), space.to_string()),
                }
                line.push(style, text);
                if !is_number {
                    line.push(Style::new(), gap);
                }
            }
            lines.push(line);
        }
        if status.unlisted > 0 {
            lines.push(format!("and {} that did less", count(status.unlisted, "key")).into());
        }
        lines
    }
}

/// Why the watching ends.
enum Ended {
    /// The operator pressed q.
    Quit,
    /// A signal came.
    Signal(i32),
}

impl View {
    /// Draws this, and then what `look` sees every so many seconds, until q or a signal.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub(super) fn watch(
        self,
        seconds: u32,
        mut look: impl FnMut() -> Result<View, Error>,
    ) -> CommandResult {
        let failed = |error: io::Error| {
            Error::new("the terminal", error.to_string(), "try it without --watch")
        };
        let signals = SignalGuard::install().map_err(failed)?;
        let terminal = Terminal::enter(io::stdin(), io::stdout()).map_err(failed)?;
        let ended = draw(seconds, self, &mut look);
        drop(terminal);
        drop(signals);
        if let Ended::Signal(signal) = ended.map_err(failed)? {
            sys::die_of(signal);
        }
        Ok(())
    }
}

fn draw(
    seconds: u32,
    first: View,
    look: &mut dyn FnMut() -> Result<View, Error>,
) -> io::Result<Ended> {
    let ink = Ink::of_terminal();
    let mut foot = ScreenLine::default();
    foot.push(ink.dim(), "q quits".to_string());
    let (stdin, mut history) = (io::stdin(), History::default());
    let mut reads_keys = rustix::termios::isatty(&stdin);
    let mut now: Result<View, Error> = Ok(first);
    loop {
        if let Ok(view) = &now {
            history.add(view);
        }
        let next = Instant::now() + Duration::from_secs(seconds.into());
        let mut drawn = None;
        while Instant::now() < next {
            let size = size_of_screen().unwrap_or((24, 80));
            if drawn != Some(size) {
                drawn = Some(size);
                let lines = match &now {
                    Ok(view) => view.fitted(size.0 - 1, size.1, &history, ink),
                    // qmail is being restarted, or the file was replaced: the next look may succeed.
                    Err(error) => {
                        error.to_string().lines().map(|line| line.to_string().into()).collect()
                    }
                };
                let mut out = io::stdout().lock();
                out.write_all(&on_screen(&lines, &foot, size))?;
                out.flush()?;
            }
            let until = next.min(Instant::now() + RESIZE);
            let mut watches = Vec::new();
            if reads_keys {
                watches.push(Watch::new(stdin.as_fd(), Interest::Read));
            }
            match sys::poll(&mut watches, until)? {
                Polled::Interrupted => return Ok(Ended::Signal(sys::stop_signal().unwrap_or(0))),
                Polled::TimedOut => {}
                Polled::Ready => {
                    let mut keys = [0; 64];
                    match rustix::io::read(&stdin, &mut keys) {
                        Ok(0) | Err(_) => reads_keys = false,
                        Ok(length)
                            if keys[..length].iter().any(|key| matches!(key, b'q' | b'Q')) =>
                        {
                            return Ok(Ended::Quit);
                        }
                        Ok(_) => {}
                    }
                }
            }
        }
        now = look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::show::tests::{status, view_of};

    const PLAIN: Ink = Ink { has_colours: false, has_blocks: false };

    #[test]
    fn keys_that_do_not_fit_the_window_are_counted() {
        let mut many = status(1000, 1, 1.0);
        many.unlisted = 7;
        let key = |number: u32| KeyStatus {
            name: format!("d{number:02}.example"),
            running: 50 - number,
            held: number % 5,
            objected_secs: u64::from(number % 2),
            effective: Limit::AtMost(number),
            ..many.keys[0].clone()
        };
        many.keys = (0..50).map(key).collect();
        let view = view_of(many);
        let history = History::default();
        let fitted = |room| -> Vec<String> {
            let lines = view.fitted(room, 200, &history, PLAIN);
            lines.iter().map(ScreenLine::text).collect()
        };
        let whole = fitted(1000);
        // Four lines of summary, 2 + 50 + 1 of keys, 1 + 25 of servers that objected.
        assert_eq!(whole.len(), 83, "{whole:?}");
        // Four lines of summary, 1 + 1 + 11 + 1 of keys, 1 + 5 + 1 of servers that objected.
        let text = fitted(25);
        assert_eq!(text.len(), 25, "{text:?}");
        let more: Vec<_> = text.iter().filter(|line| line.starts_with("and ")).collect();
        assert_eq!(more, ["and 46 more", "and 20 more"], "{text:?}");
        for room in 0..whole.len() {
            assert!(fitted(room).len() <= room.max(4), "{room}");
        }
    }

    #[test]
    fn a_key_has_a_bar_a_state_and_its_last_minute() {
        let mut all = status(1000, 1, 2.0);
        let key = |name: &str, running, limit, effective, suspended_secs| KeyStatus {
            name: name.to_string(),
            running,
            limit,
            effective,
            suspended_secs,
            held: 20,
            away: 20,
            ..all.keys[0].clone()
        };
        let most = Limit::AtMost;
        all.keys = vec![
            key("full", 10, most(10), most(10), 0),
            key("lowered", 4, most(10), most(5), 0),
            key("stopped", 3, most(10), most(10), 1100),
            key("fine", 1, most(10), most(10), 0),
            key("free", 2, Limit::Unlimited, Limit::Unlimited, 0),
        ];
        let mut view = view_of(all);
        let mut history = History::default();
        for second in 0..60 {
            view.now_secs = 1000 + second;
            // It ran half as many in the middle of the minute.
            view.status.keys[0].running = if (20..40).contains(&second) { 5 } else { 10 };
            history.add(&view);
        }
        view.rates = vec![2.0; 5];
        let lines = view.live_keys(9, 200, &history, PLAIN);
        let text: Vec<String> =
            lines.iter().map(|line| line.text().trim_end().to_string()).collect();
        let title = "KEY               LIMIT     ALLOWED  RUNNING            HELD  AWAY  EMPTY IN  PER SEC  \
                     LAST MINUTE   MEAN  DONE  LAST ERROR";
        assert_eq!(text[1], title);
        let expected = "\
full     full        10           -       10  ########    20    20      20 s      2.0  @@@@====@@@@     -     1
lowered  lowered     10           5        4  ######..    20    20      20 s      2.0  ============     -     1
stopped  stopped     10  0 for 41 s        3  ##......    20    20      20 s      2.0  ------------     -     1
free               none           -        2              20    20      20 s      2.0  @@@@@@@@@@@@     -     1
fine                 10           -        1  #.......    20    20      20 s      2.0  ............     -     1";
        assert_eq!(text[2..].join("\n"), expected);
        assert_eq!(KeyState::of(&view.status.keys[2], 5), KeyState::Suspended);
        assert_eq!(PLAIN.line(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10], 10), " .:-==+*#@@@");
        let blocks = Ink { has_blocks: true, ..PLAIN };
        assert_eq!(
            blocks.bar(5, most(10)),
            "\u{2588}\u{2588}\u{2588}\u{2588}\u{2591}\u{2591}\u{2591}\u{2591}"
        );
    }

    #[test]
    fn the_last_minute_moves_on() {
        let mut minute = LastMinute::default();
        minute.add(1000, 7);
        minute.add(1004, 3);
        minute.add(1005, 2);
        assert_eq!(minute.slots[10..], [7, 2]);
        minute.add(1064, 1);
        assert_eq!(minute.slots, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        minute.add(5000, 4);
        assert_eq!(minute.slots, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        // A clock that goes back.
        minute.add(10, 5);
        assert_eq!(minute.slots[11], 5);
    }
}
