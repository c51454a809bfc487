//! Patterns of glob and grep: a regular expression that matches in linear time, and stops at a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Input, meta};
use tokio::sync::OwnedSemaphorePermit;

use crate::disks::Disks;
use crate::error::{Error, Result};

/// The number of steps between two checks of the deadline. They take well under a second. To match one byte takes one step for
/// each state of the pattern. A chunk has at least `4 * CHUNK_OVERLAP` bytes, even if it takes more steps than this.
const STEPS_PER_CHECK: usize = 1 << 28;
/// The overlap of consecutive chunks, in bytes, for files that need too many steps to be matched as a whole.
const CHUNK_OVERLAP: usize = 4 * 1024;

/// The cancellation flag of searches that cannot be canceled.
pub static NOT_CANCELED: AtomicBool = AtomicBool::new(false);

/// A compiled pattern.
pub struct Pattern {
    regex: meta::Regex,
    /// The number of bytes to match between two checks of the deadline.
    chunk_len: usize,
}

impl Pattern {
    /// Compiles a regular expression whose automaton (NFA) is not larger than `max_nfa_bytes`. Compiles it twice, because
    /// `meta::Regex` does not return the number of states.
    ///
    /// # Errors
    /// Returns 400 if the pattern is invalid or the automaton is too large.
    pub fn compile(pattern: &str, syntax: syntax::Config, max_nfa_bytes: u64) -> Result<Self> {
        let max_nfa_bytes = usize::try_from(max_nfa_bytes).unwrap_or(usize::MAX);
        let invalid_pattern = |err: &dyn std::error::Error| {
            Error::invalid_field("query", format_args!("invalid pattern: {}", pattern_error_reason(err)))
        };
        let nfa_config = thompson::Config::new().nfa_size_limit(Some(max_nfa_bytes)).utf8(false);
        let state_count = thompson::NFA::compiler()
            .syntax(syntax)
            .configure(nfa_config)
            .build(pattern)
            .map_err(|err| invalid_pattern(&err))?
            .states()
            .len();
        let regex = meta::Regex::builder()
            .syntax(syntax)
            .configure(meta::Config::new().nfa_size_limit(Some(max_nfa_bytes)).utf8_empty(false))
            .build(pattern)
            .map_err(|err| invalid_pattern(&err))?;
        Ok(Self { regex, chunk_len: (STEPS_PER_CHECK / state_count.max(1)).max(4 * CHUNK_OVERLAP) })
    }

    /// Returns `Some(true)` if the text contains a match, and `None` if the deadline passed or the search was canceled first.
    ///
    /// A text that is not longer than a chunk is matched as a whole, which is nearly always the case. A longer text is matched in
    /// overlapping chunks, and the deadline is checked after each. A match that is longer than the overlap can be missed.
    pub fn is_match(&self, text: &[u8], deadline: Instant, canceled: &AtomicBool) -> Option<bool> {
        let mut start = 0;
        loop {
            let end = text.len().min(start + self.chunk_len);
            if self.regex.is_match(Input::new(text).range(start..end)) {
                return Some(true);
            }
            if end == text.len() {
                return Some(false);
            }
            if Instant::now() > deadline || canceled.load(Ordering::Relaxed) {
                return None;
            }
            start = end - CHUNK_OVERLAP;
        }
    }
}

/// Compiles a regular expression on a blocking thread, because the time grows with the size of the automaton. The thread holds
/// the permit even if the request is aborted.
///
/// # Errors
/// Returns 400 if the pattern is invalid or the automaton is too large.
pub async fn compile_blocking(
    ctx: &Disks,
    pattern: String,
    syntax: syntax::Config,
    permit: OwnedSemaphorePermit,
) -> Result<(Pattern, OwnedSemaphorePermit)> {
    let max_nfa_bytes = ctx.config.limits.max_regex_bytes;
    let compile = move || Pattern::compile(&pattern, syntax, max_nfa_bytes).map(|pattern| (pattern, permit));
    tokio::task::spawn_blocking(compile).await.map_err(Error::internal)?
}

/// Returns the reason why a pattern is invalid: the last line of the root cause. The lines before it show the pattern.
fn pattern_error_reason(err: &dyn std::error::Error) -> String {
    let mut cause = err;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Converts a glob pattern to a regular expression for the full path. `*` and `**` match any characters including slashes, `?`
/// matches one character, `[…]` matches one character of a class, and `[!…]` and `[^…]` match one character outside of a class. A
/// backslash escapes the next character. All other characters, including an opening bracket that is never closed, match
/// themselves.
pub fn glob_to_regex(glob: &str) -> String {
    let chars: Vec<char> = glob.chars().collect();
    let mut regex = String::from("^");
    let mut i = 0;
    while i < chars.len() {
        match chars[i] {
            '*' => {
                while chars.get(i + 1) == Some(&'*') {
                    i += 1;
                }
                regex.push_str(".*");
            }
            '?' => regex.push('.'),
            '[' => match parse_class(&chars[i..]) {
                Some((class, length)) => {
                    regex.push_str(&class);
                    i += length - 1;
                }
                None => regex.push_str(r"\["),
            },
            '\\' if i + 1 < chars.len() => {
                i += 1;
                regex.push_str(&escape_char(chars[i]));
            }
            other => regex.push_str(&escape_char(other)),
        }
        i += 1;
    }
    regex.push('$');
    regex
}

/// Parses the character class at the start of `chars`. Returns the regular expression for the class, and the number of characters
/// that were parsed. Returns `None` if the class is not closed.
fn parse_class(chars: &[char]) -> Option<(String, usize)> {
    let negated = matches!(chars.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    // A closing bracket in the first position is a member.
    let end = chars.iter().enumerate().skip(first + 1).find(|(_, c)| **c == ']')?.0;
    let mut class = String::from(if negated { "[^" } else { "[" });
    for (i, member) in chars[first..end].iter().enumerate() {
        // Between two members, a dash means a range.
        let is_range = *member == '-' && i > 0 && first + i + 1 < end;
        class.push_str(&if is_range { "-".to_owned() } else { escape_char(*member) });
    }
    class.push(']');
    Some((class, end + 1))
}

fn escape_char(c: char) -> String {
    regex_syntax::escape(c.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn glob_matches(pattern: &str, name: &str) -> bool {
        let syntax = syntax::Config::new().dot_matches_new_line(true).utf8(false);
        let pattern = Pattern::compile(&glob_to_regex(pattern), syntax, 10 << 20).unwrap();
        pattern.is_match(name.as_bytes(), in_a_minute(), &NOT_CANCELED).unwrap()
    }

    fn compile_grep(pattern: &str) -> Result<Pattern> {
        Pattern::compile(pattern, syntax::Config::new().case_insensitive(true).multi_line(true).utf8(false), 10 << 20)
    }

    #[test]
    fn a_glob_matches_path_and_name() {
        for (pattern, name, matches) in [
            ("*.md", "/docs/a.md", true),
            ("**/*.md", "/a.md", true),
            ("/docs/*.md", "/docs/sub/a.md", true),
            ("docs/*.md", "/docs/a.md", false),
            ("/?1.txt", "/ü1.txt", true),
            ("/a%.txt", "/ab.txt", false),
            ("/a_.txt", "/ab.txt", false),
            ("/[ab]1.txt", "/b1.txt", true),
            ("/[!ab]1.txt", "/b1.txt", false),
            ("/[^ab]1.txt", "/c1.txt", true),
            ("/[a-c]1.txt", "/b1.txt", true),
            ("/[a-]1.txt", "/-1.txt", true),
            ("/[]]1.txt", "/]1.txt", true),
            ("/[ab", "/[ab", true),
            ("/{a,b}.txt", "/a.txt", false),
            (r"/\*.txt", "/*.txt", true),
            (r"/\*.txt", "/a.txt", false),
            ("/a.c", "/abc", false),
            ("*.TXT", "/a.txt", false),
            ("*", "/a\nb", true),
        ] {
            assert_eq!(glob_matches(pattern, name), matches, "{pattern} on {name}");
        }
    }

    #[test]
    fn an_invalid_pattern_is_a_400_that_names_the_field() {
        for pattern in ["(", "[a-", "*x", "todo(?=:)", r"(a)\1", "a{1000}{1000}{100}"] {
            let Err(Error::BadRequest { detail: Some(detail), .. }) = compile_grep(pattern) else {
                panic!("{pattern}")
            };
            assert!(detail.starts_with("query: ") && !detail.contains('\n'), "{detail}");
        }
    }

    #[test]
    fn matches_across_chunks_are_found() {
        let mut pattern = compile_grep(r"needle\s+found$").unwrap();
        pattern.chunk_len = 4 * CHUNK_OVERLAP;
        for offset in [0, pattern.chunk_len - 10, pattern.chunk_len, 3 * pattern.chunk_len - 7] {
            let mut text = "x\n".repeat(offset / 2) + "Needle  FOUND\n";
            text.push_str(&"y\n".repeat(5 * pattern.chunk_len));
            assert_eq!(pattern.is_match(text.as_bytes(), in_a_minute(), &NOT_CANCELED), Some(true), "{offset}");
        }
        let without = "needle\nlost\n".repeat(pattern.chunk_len);
        assert_eq!(pattern.is_match(without.as_bytes(), in_a_minute(), &NOT_CANCELED), Some(false));
        assert_eq!(pattern.is_match(without.as_bytes(), Instant::now(), &NOT_CANCELED), None);
        assert_eq!(pattern.is_match(without.as_bytes(), in_a_minute(), &AtomicBool::new(true)), None);
    }

    proptest! {
        #[test]
        fn every_text_is_a_glob_pattern(pattern in ".{1,40}", name in ".{0,40}") {
            glob_matches(&pattern, &name);
        }

        #[test]
        fn an_escaped_text_matches_itself_alone(text in ".{1,20}", other in ".{1,20}") {
            let pattern: String = text.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(glob_matches(&pattern, &text));
            prop_assert_eq!(glob_matches(&pattern, &other), text == other);
        }
    }
}
