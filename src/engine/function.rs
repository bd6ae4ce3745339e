//! The functions of a C source, K&R or ANSI.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::lex::{Source, TokenKind};

/// A function definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its tokens, from the name to the closing brace.
    pub tokens: Range<usize>,
    /// Whether its parameters are declared between the list and the body (K&R).
    pub old_style: bool,
}

/// Returns the function definitions of a C source, K&R or ANSI, in order.
///
/// It counts braces along the first branch of each conditional, because the branches of an `#ifdef`
/// may open the same brace twice.
#[must_use]
pub fn functions(source: &Source<'_>) -> Vec<Function> {
    let code = code_tokens(source);
    let text = |i: usize| code.get(i).map(|&t| source.text(t)).unwrap_or_default();
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        match &*text(at) {
            b"{" => at = closing(source, &code, at) + 1,
            b"(" if at > 0 && is_name(source, code[at - 1]) => {
                let close = closing(source, &code, at);
                match body(source, &code, close + 1) {
                    Some(open) => {
                        let end = closing(source, &code, open);
                        let last = code.get(end).copied().unwrap_or(source.tokens.len() - 1);
                        found.push(Function {
                            name: String::from_utf8_lossy(&text(at - 1)).into_owned(),
                            tokens: code[at - 1]..last + 1,
                            old_style: open > close + 1 && &*text(open - 1) == b";",
                        });
                        at = end + 1;
                    }
                    None => at = close + 1,
                }
            }
            _ => at += 1,
        }
    }
    found
}

/// Returns the indices of the tokens that are neither in a preprocessor line nor in an `#else` or
/// `#elif` branch.
fn code_tokens(source: &Source<'_>) -> Vec<usize> {
    let mut code = Vec::with_capacity(source.tokens.len());
    // For each open conditional: whether the current branch is skipped.
    let mut skipped: Vec<bool> = Vec::new();
    let mut at = 0;
    while at < source.tokens.len() {
        if source.tokens[at].kind == TokenKind::Directive {
            match &*source.tokens.get(at + 1).map(|_| source.text(at + 1)).unwrap_or_default() {
                b"if" | b"ifdef" | b"ifndef" => skipped.push(false),
                b"elif" | b"else" => {
                    if let Some(last) = skipped.last_mut() {
                        *last = true;
                    }
                }
                b"endif" => {
                    skipped.pop();
                }
                _ => {}
            }
            while at < source.tokens.len() && source.tokens[at].kind != TokenKind::LineEnd {
                at += 1;
            }
        } else if !skipped.contains(&true) {
            code.push(at);
        }
        at += 1;
    }
    code
}

fn is_name(source: &Source<'_>, token: usize) -> bool {
    const KEYWORDS: [&[u8]; 10] = [
        b"if",
        b"while",
        b"for",
        b"switch",
        b"return",
        b"sizeof",
        b"__attribute__",
        b"do",
        b"else",
        b"case",
    ];
    source.tokens[token].kind == TokenKind::Ident && !KEYWORDS.contains(&&*source.text(token))
}

/// Returns the index in `code` of the bracket that closes the one at `open`, or the last index.
fn closing(source: &Source<'_>, code: &[usize], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, &token) in code.iter().enumerate().skip(open) {
        match &*source.text(token) {
            b"(" | b"[" | b"{" => depth += 1,
            b")" | b"]" | b"}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    code.len().saturating_sub(1).max(open)
}

/// Returns the opening brace of a definition whose parameter list ended before `at`: the brace
/// follows at once (ANSI), or after K&R parameter declarations.
fn body(source: &Source<'_>, code: &[usize], mut at: usize) -> Option<usize> {
    let text = |i: usize| code.get(i).map(|&t| source.text(t)).unwrap_or_default();
    while &*text(at) == b"__attribute__" {
        at = closing(source, code, at + 1) + 1;
    }
    let start = at;
    loop {
        match &*text(at) {
            b"{" => return (at == start || &*text(at - 1) == b";").then_some(at),
            b"" | b"=" | b"}" => return None,
            b";" | b"," if at == start => return None,
            b"(" if at > start && is_name(source, code[at - 1]) && &*text(at + 1) != b"*" => {
                return None;
            }
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::lex::Lang;

    fn names(text: &str) -> Vec<String> {
        functions(&Source::new(Lang::C, text.as_bytes())).into_iter().map(|f| f.name).collect()
    }

    #[test]
    fn functions_in_both_dialects() {
        assert_eq!(names("int f(a,b) int a; char *b; { x(); }"), ["f"]);
        assert_eq!(names("void g(int a, void (*h)(int)) { if (a) { h(a); } }"), ["g"]);
        assert_eq!(names("int main() { return 0; }\nstatic int k(void) { }"), ["main", "k"]);
        assert_eq!(names("int f(h) int (*h)(); { }"), ["f"]);
    }

    #[test]
    fn what_is_not_a_definition() {
        assert_eq!(names("extern int spawn(); struct d { int x; } ; int y = f(3);"), [""; 0]);
        assert_eq!(
            names("MACRO(x)\nint g;\nint main(argc,argv) int argc; char **argv; {}"),
            ["main"]
        );
        assert_eq!(names("struct s { int (*f)(); } a; int h() {}"), ["h"]);
    }

    #[test]
    fn branches_may_open_the_same_brace_twice() {
        let text = "int f(){\n#ifdef A\nif (a) {\n#else\nif (b) {\n#endif\n} }\nint g(){}";
        assert_eq!(names(text), ["f", "g"]);
    }

    #[test]
    fn unclosed_source_ends_in_peace() {
        for text in
            ["int f(", "int f() {", "f(a) int a; {{", "(", "{", "}", "int f()", "__attribute__"]
        {
            let _ = names(text);
        }
    }
}
