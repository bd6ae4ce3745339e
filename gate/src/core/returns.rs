//! How often a mail goes back as busy after its delivery was refused.
//!
//! A delivery that was refused only because too many ran does not count as an attempt, and its mail goes back as busy.
//! That must not go on for ever: a server that refuses one sender with 421, and accepts all others, must see that mail
//! age. So after [`RETURNS_MAX`] returns the next refusal is an attempt. The memory is fixed: a table of marks by hash,
//! where mails share a mark if there are many.

#![forbid(unsafe_code)]

/// How often a mail may go back as busy between two real attempts.
pub const RETURNS_MAX: u8 = 3;

/// The number of marks: 4 KiB. More mails than marks share them, which only ends their returns sooner.
const MARKS: usize = 1024;

/// Counts how often mails went back as busy.
#[derive(Clone, Debug)]
pub struct Returns {
    /// For mails with this low end of their hash: the high end, and the number of returns in the lowest two bits.
    marks: [u32; MARKS],
}

impl Default for Returns {
    fn default() -> Self {
        Self { marks: [0; MARKS] }
    }
}

impl Returns {
    /// Whether a mail whose delivery did not count may go back as busy once more. `mail`: a hash of its queue number
    /// and its recipient.
    pub fn may_return(&mut self, mail: u64) -> bool {
        let mark = &mut self.marks[mail as usize % MARKS];
        let count = (*mark & 3) as u8;
        if count >= RETURNS_MAX {
            *mark = 0;
            return false;
        }
        if count == 0 {
            *mark = (mail >> 32) as u32 & !3;
        }
        // This also counts the returns of other mails with the same mark: where there are more mails than marks, one
        // refusal of four is an attempt all the same.
        *mark += 1;
        true
    }

    /// Notes a real attempt: the mail may go back as often as at first.
    pub fn note_attempt(&mut self, mail: u64) {
        let mark = &mut self.marks[mail as usize % MARKS];
        if *mark & !3 == (mail >> 32) as u32 & !3 {
            *mark = 0;
        }
    }
}
