//! The words of a line of a rule file.

#![forbid(unsafe_code)]

/// The words of a line, each with its column, counted from 0.
pub(super) struct LineWords<'a> {
    pub(super) words: Vec<(usize, &'a str)>,
    pub(super) at: usize,
    /// The column where the line ends.
    pub(super) end: usize,
}

impl<'a> LineWords<'a> {
    /// Splits `text`, which starts in column `start` of its line.
    pub(super) fn new(text: &'a str, start: usize) -> LineWords<'a> {
        let words = text.split_whitespace();
        let column = |word: &str| start + (word.as_ptr() as usize - text.as_ptr() as usize);
        LineWords {
            words: words.map(|word| (column(word), word)).collect(),
            at: 0,
            end: start + text.trim_end().len(),
        }
    }

    pub(super) fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|(_, word)| *word)
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.at += 1;
        Some(word)
    }

    /// Returns the column of the word that [`LineWords::peek`] returns; after the last word, that of
    /// the line end.
    pub(super) fn column(&self) -> usize {
        self.words.get(self.at).map_or(self.end, |(column, _)| *column)
    }

    /// Returns what [`LineWords::peek`] returns, quoted for an error.
    pub(super) fn found(&self) -> String {
        match self.peek() {
            Some(word) => format!("{word:?}"),
            None => "the end of the line".to_string(),
        }
    }
}
