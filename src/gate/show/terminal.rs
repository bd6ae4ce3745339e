//! The terminal while `gate show --watch` draws on it: keys come at once and are not echoed, and the screen is one of
//! its own. What was there comes back at the end, also after a panic, whose message would otherwise go with the screen.
//!
//! For a signal the caller drops the terminal before it dies of it (`sys::SignalGuard`). SIGKILL leaves the terminal as
//! it is; `reset` repairs it.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr,
};

/// Another screen, without a cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
/// The cursor, and the screen that was there.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

/// What has to be restored. There is one terminal for the process.
static CHANGED: Mutex<Option<Changed>> = Mutex::new(None);
static HOOK: Once = Once::new();

struct Changed {
    output: OwnedFd,
    /// The input and how it was; None: it is no terminal.
    input: Option<(OwnedFd, Termios)>,
}

/// The terminal, until this is dropped.
#[derive(Debug)]
pub(super) struct Terminal(());

impl Terminal {
    /// Takes the terminal at these descriptors.
    ///
    /// # Errors
    /// It cannot be written, or does not take its new settings. It is then as before.
    pub(super) fn enter(input: impl AsFd, output: impl AsFd) -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                before(panic);
            }));
        });
        let mut changed = Changed { output: output.as_fd().try_clone_to_owned()?, input: None };
        if isatty(&input) {
            let was = tcgetattr(&input)?;
            let mut now = was.clone();
            now.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            now.special_codes[SpecialCodeIndex::VMIN] = 1;
            now.special_codes[SpecialCodeIndex::VTIME] = 0;
            // Ctrl-Z would stop the process with the terminal as it is now.
            now.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(&input, OptionalActions::Now, &now)?;
            changed.input = Some((input.as_fd().try_clone_to_owned()?, was));
        }
        *CHANGED.lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
        let terminal = Self(());
        write_all(&output, ENTER)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal if it is changed. What fails is left: there is nobody to report it to.
fn restore() {
    let changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Changed { output, input }) = changed else { return };
    let _ = write_all(&output, LEAVE);
    if let Some((input, was)) = input {
        let _ = tcsetattr(&input, OptionalActions::Now, &was);
    }
}

fn write_all(output: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    // Text that the process has printed comes before.
    io::stdout().flush()?;
    let mut left = bytes;
    while !left.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(&output, left))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => left = &left[written..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    #[test]
    fn a_panic_restores_the_terminal_before_its_message() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path.to_str().unwrap())
            .unwrap();
        let modes = || tcgetattr(&slave).unwrap().local_modes;
        let before = modes();
        let panicked = std::panic::catch_unwind(|| {
            let _terminal = Terminal::enter(&slave, &slave).unwrap();
            assert!(!modes().contains(LocalModes::ECHO) && !modes().contains(LocalModes::ICANON));
            // What the hook does before it prints the message.
            panic!("as a test wants it");
        });
        assert!(panicked.is_err());
        assert_eq!(modes(), before);
        let mut drawn = [0; 100];
        let length = rustix::io::read(&master, &mut drawn).unwrap();
        assert_eq!(drawn[..length], [ENTER, LEAVE].concat());
    }
}
