//! Texts of strangers in HTML.

use std::fmt::{self, Display, Write as _};

/// Writes a text into HTML, also between double or single quotes.
pub(super) struct EscapedHtml<'a>(pub(super) &'a str);

impl Display for EscapedHtml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}
