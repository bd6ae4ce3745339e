//! The first line of conf-cc and conf-ld: a compiler and its flags. The Makefile makes ./compile and ./load of it, so a
//! shell reads it.
#![forbid(unsafe_code)]

/// Returns where the first word of a shell's line ends: at the first blank outside of quotes, backquotes and brackets.
#[must_use]
pub(crate) fn first_word(line: &str) -> usize {
    let (mut quote, mut depth, mut escaped) = (None, 0_u32, false);
    let start = line.len() - line.trim_start().len();
    for (at, c) in line.char_indices().skip(start) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote != Some('\'') => escaped = true,
            '\'' | '"' | '`' if quote == Some(c) => quote = None,
            '\'' | '"' | '`' if quote.is_none() => quote = Some(c),
            '(' | '{' if quote.is_none() => depth += 1,
            ')' | '}' if quote.is_none() => depth = depth.saturating_sub(1),
            ' ' | '\t' if quote.is_none() && depth == 0 => return at,
            _ => {}
        }
    }
    line.len()
}

/// Returns whether some flags come from a command or a variable (`cc \`dpkg-buildflags --get CFLAGS\``, `cc
/// $CFLAGS`), so that the line does not show them. A command within a flag, as in ``-I`head -1 conf-ssl` ``, does not
/// count: it gives only a part of that flag.
#[must_use]
pub(crate) fn has_flags_from_elsewhere(line: &str) -> bool {
    let mut rest = line.get(first_word(line)..).unwrap_or_default();
    while !rest.trim_start().is_empty() {
        rest = rest.trim_start();
        if rest.trim_start_matches('"').starts_with(['`', '$']) {
            return true;
        }
        rest = rest.get(first_word(rest)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_a_line_may_have_blanks() {
        for (line, end) in [
            ("cc -O2", 2),
            ("cc", 2),
            ("", 0),
            (" cc -O2", 3),
            ("`which gcc` -O2", 11),
            ("$(head -1 a) -O2", 12),
            ("${CC:-c c} -O2", 10),
            ("'my cc' -O2", 7),
            ("my\\ cc -O2", 6),
            ("\"my 'cc\" '-O2'", 8),
        ] {
            assert_eq!(first_word(line), end, "{line}");
        }
    }

    #[test]
    fn flags_that_the_line_does_not_show() {
        for line in [
            "cc `dpkg-buildflags --get CFLAGS`",
            "cc -O2 $(rpm --eval '%{optflags}') -std=gnu89",
            "${CC:-cc} -O2 $CFLAGS",
            "cc \"$FLAG\"",
        ] {
            assert!(has_flags_from_elsewhere(line), "{line}");
        }
        for line in [
            "",
            "cc -O2",
            "`which gcc` -O2",
            "$CC -g",
            "cc -I`head -1 conf-ssl` -L\"$HOME\"/lib",
            "cc '`a`'",
        ] {
            assert!(!has_flags_from_elsewhere(line), "{line}");
        }
    }
}
