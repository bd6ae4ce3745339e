//! Reads the status for all who ask, and keeps what came of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::history::History;
use crate::error::Error;
use crate::gate::show::View;
use crate::gate::show::rates::Readings;
use crate::gate::status_file::{explain, read};
use crate::qmail::home::Home;
use crate::qmail::remote_status::RemoteStatus;

/// How long a reading serves all who ask. A gate writes once a second at most.
const READ_EVERY: Duration = Duration::from_millis(250);

/// The status, or why there is none, as it was at some time.
#[derive(Debug)]
pub(super) struct Reading {
    at: Instant,
    pub(super) look: Result<View, Error>,
}

/// Reads the status of one qmail.
#[derive(Debug)]
pub(super) struct Feed {
    home: Home,
    busiest: u32,
    state: Mutex<FeedState>,
}

#[derive(Debug, Default)]
struct FeedState {
    last: Option<Arc<Reading>>,
    /// For the rates, as in `gate show --watch`.
    readings: HashMap<u32, Readings>,
    history: History,
}

impl Feed {
    /// `busiest` is that of `gate show`.
    pub(super) fn new(home: Home, busiest: u32) -> Self {
        Self { home, busiest, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, FeedState> {
        // After a panic the state is as good as before: each step leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the status. It was read at most [`READ_EVERY`] ago.
    pub(super) fn latest(&self) -> Arc<Reading> {
        self.read(&mut self.state())
    }

    fn read(&self, state: &mut FeedState) -> Arc<Reading> {
        if let Some(last) = &state.last
            && last.at.elapsed() < READ_EVERY
        {
            return last.clone();
        }
        let look = match read(&self.home) {
            Ok(spawners) => {
                let starts = RemoteStatus::running(self.home.path());
                Ok(View::new(spawners, starts, &mut state.readings))
            }
            Err(unread) => Err(explain(&self.home, &unread)),
        };
        let reading = Arc::new(Reading { at: Instant::now(), look });
        state.last = Some(reading.clone());
        reading
    }

    /// Adds what there is now to the history.
    pub(super) fn sample(&self) {
        let mut state = self.state();
        let reading = self.read(&mut state);
        state.history.add(reading.look.as_ref().ok().map(|view| (&view.status, view.alive())));
    }

    /// Returns the history as JSON.
    pub(super) fn history(&self) -> Vec<u8> {
        serde_json::to_vec(&self.state().history.report()).expect("numbers and names are JSON")
    }

    /// Returns what `gate show --format prometheus` prints.
    pub(super) fn metrics(&self, view: &View) -> String {
        view.prometheus(self.busiest)
    }
}

/// Why there is no status, as JSON.
pub(super) fn error_json(error: &Error) -> Vec<u8> {
    let Error { place, what, help } = error;
    let mut text = json!({"error": {"place": place, "what": what, "help": help}}).to_string();
    text.push('\n');
    text.into_bytes()
}
