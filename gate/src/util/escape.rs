//! How bytes of names and texts are written in files whose fields are separated by tabs.

#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

/// Bytes as printable ASCII without tabs: any other byte, and `%`, becomes `%` and two hexadecimal digits. Different
/// texts stay different.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            if (b' '..=b'~').contains(&byte) && byte != b'%' {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Reads what [`Escaped`] wrote. A `%` without two digits stands for itself. None: no memory.
#[must_use]
pub fn unescaped_bytes(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(rest.len()).ok()?;
    while let [first, tail @ ..] = rest {
        let code = (*first == b'%').then(|| text_byte(tail)).flatten();
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    Some(bytes)
}

fn text_byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits.get(..2)?).ok()?, 16).ok()
}
