//! Reads control files as qmail and the gate do.

#![forbid(unsafe_code)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use qpatch_gate::problem::Kind;

/// Why a file was not opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// It is a folder, a FIFO, a socket or a device.
    NotRegular,
    /// The system's error.
    System(io::Error),
}

/// Opens a regular file for reading, and returns its metadata, too. It never waits for the writer of a FIFO or for a
/// device. It checks the file that it has opened, so a file that is replaced meanwhile does no harm.
///
/// # Errors
/// It is not a regular file, or cannot be opened.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Metadata), NotOpened> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => NotOpened::NotRegular,
        _ => NotOpened::System(error),
    })?;
    let metadata = file.metadata().map_err(NotOpened::System)?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(NotOpened::NotRegular) }
}

/// Reads a file as the gate does: only a regular file of at most `max` bytes. `None` if there is no such file.
///
/// # Errors
/// The file is not regular, is larger, or cannot be read.
pub(crate) fn read_file(path: &Path, max: u64) -> Result<Option<(Metadata, Vec<u8>)>, Kind> {
    let unreadable = |error: io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    let (file, metadata) = match open_regular(path) {
        Err(NotOpened::System(error)) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(NotOpened::System(error)) => return Err(unreadable(error)),
        Err(NotOpened::NotRegular) => return Err(Kind::NotRegular),
        Ok(opened) => opened,
    };
    if metadata.len() > max {
        return Err(Kind::TooBig(metadata.len(), max));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(Some((metadata, bytes)))
}

/// Returns the number in control/concurrencyremote as qmail-send reads it: the digits at the beginning; `None` if
/// there are none. A number that is too large is `u32::MAX`.
pub(crate) fn leading_number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |value: Option<u32>, digit| {
        Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u32::from(digit - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrencyremote_as_qmail_reads_it() {
        assert_eq!(leading_number(b"100\n"), Some(100));
        assert_eq!(leading_number(b"12x"), Some(12));
        assert_eq!(leading_number(b" 12"), None);
        assert_eq!(leading_number(b""), None);
        assert_eq!(leading_number(b"99999999999999"), Some(u32::MAX));
    }
}
