//! Glob and grep over a disk. Both walk the files by path and name, in batches, and stop at the limit.
//!
//! A pattern matches in linear time, a grep ends at its deadline, and no more than a few run at once: what one asks for
//! cannot take the server from the others.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Input, meta};
use tokio::sync::OwnedSemaphorePermit;

use super::files::{self, Candidate, File, Name};
use super::parse::Kind;
use super::path::Directory;
use crate::blob::content::Key;
use crate::disks::Disks;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::DiskId;

/// How many names are read at once.
const NAMES: i64 = 5_000;
/// How many files a grep takes on at once, and how many after the first batch, when a match is known not to be near.
const FIRST_FILES: i64 = 500;
const FILES: i64 = 4_000;
/// How many steps (states of the pattern times bytes) a match may take before the clock is looked at: well under a second.
const STEPS: usize = 1 << 28;
/// How far a match may reach over the end of a piece, where a file must be matched in pieces for the steps it takes.
const OVERLAP: usize = 4 * 1024;

/// For what is not stopped from outside.
static NEVER: AtomicBool = AtomicBool::new(false);

/// How many greps run in this process at one time.
pub(super) const MAX_GREPS: usize = 4;

/// A compiled pattern and what it costs.
struct Pattern {
    regex: meta::Regex,
    /// How many bytes may be matched before the clock is looked at.
    piece: usize,
}

impl Pattern {
    fn compile(pattern: &str, syntax: syntax::Config, max_bytes: u64) -> Result<Self> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let refuse =
            |why: &dyn std::fmt::Display| Error::invalid_field("query", format_args!("is no valid pattern: {why}"));
        let thompson = thompson::Config::new().nfa_size_limit(Some(max_bytes)).utf8(false);
        let states = thompson::NFA::compiler()
            .syntax(syntax)
            .configure(thompson)
            .build(pattern)
            .map_err(|why| refuse(&last_line(&why)))?
            .states()
            .len();
        let regex = meta::Regex::builder()
            .syntax(syntax)
            .configure(meta::Config::new().nfa_size_limit(Some(max_bytes)).utf8_empty(false))
            .build(pattern)
            .map_err(|why| refuse(&last_line(&why)))?;
        Ok(Self { regex, piece: (STEPS / states.max(1)).max(4 * OVERLAP) })
    }

    /// Whether the text contains a match; `None` if the deadline came first, or nobody wants to know any more.
    ///
    /// A text is matched as a whole if that takes few enough steps, as it nearly always does. Otherwise in pieces that
    /// overlap, with the clock between them: then a match longer than the overlap can be missed.
    fn is_match(&self, text: &[u8], deadline: Instant, stop: &AtomicBool) -> Option<bool> {
        let mut start = 0;
        loop {
            let end = text.len().min(start + self.piece);
            if self.regex.is_match(Input::new(text).range(start..end)) {
                return Some(true);
            }
            if end == text.len() {
                return Some(false);
            }
            if Instant::now() > deadline || stop.load(Ordering::Relaxed) {
                return None;
            }
            start = end - OVERLAP;
        }
    }
}

/// The parser's messages draw the pattern with a mark under it; the last line says what is wrong.
fn last_line(err: &dyn std::error::Error) -> String {
    let mut deepest = err;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// The files whose path and name match a glob pattern.
pub async fn glob(ctx: &Disks, disk: DiskId, pattern: &str, limit: usize) -> Result<Vec<File>> {
    let syntax = syntax::Config::new().dot_matches_new_line(true).utf8(false);
    // What stands before the first special character bounds where to look.
    let within = Directory::around(pattern.split(['*', '?', '[', '\\']).next().unwrap_or_default());
    let pattern = Pattern::compile(&glob_to_regex(pattern), syntax, ctx.config.limits.regex)?;
    let deadline = Instant::now() + ctx.config.limits.grep;
    let mut conn = ctx.db.acquire().await?;
    let mut found = Vec::new();
    let mut after = Name { path: within.as_str().to_owned(), filename: String::new() };
    let end = within.end();
    loop {
        let names = files::list_names(&mut conn, disk, &after, &end, NAMES).await?;
        let Some(last) = names.last() else { break };
        after = last.clone();
        for name in names {
            let full = format!("{}{}", name.path, name.filename);
            if pattern.is_match(full.as_bytes(), deadline, &NEVER).ok_or_else(late)? {
                found.push(name);
            }
        }
        if found.len() >= limit {
            found.truncate(limit);
            break;
        }
        if Instant::now() > deadline {
            return Err(late());
        }
    }
    Ok(files::get_many(&mut conn, disk, &found).await?)
}

/// The files whose text contains a match of a regular expression.
pub async fn grep(
    ctx: &Disks,
    encryption: &ProjectEncryption,
    disk: DiskId,
    pattern: &str,
    limit: usize,
) -> Result<Vec<File>> {
    let deadline = Instant::now() + ctx.config.limits.grep;
    let syntax = syntax::Config::new().case_insensitive(true).multi_line(true).utf8(false);
    let pattern = Arc::new(Pattern::compile(pattern, syntax, ctx.config.limits.regex)?);
    let work = async {
        let turn = Arc::clone(&ctx.grep_limiter).acquire_owned().await.map_err(Error::internal)?;
        let run = Run { pattern, deadline, stop: StopOnDrop::default(), turn: Arc::new(turn) };
        let mut found = Vec::new();
        let mut after = Name::default();
        let mut batch = FIRST_FILES;
        loop {
            let mut conn = ctx.db.acquire().await?;
            let files = files::list_candidates(&mut conn, disk, &after, batch).await?;
            drop(conn);
            batch = FILES;
            let Some(last) = files.last() else { break };
            after = last.name.clone();
            let text = |file: &Candidate| Kind::of(&file.name.filename, &file.mime).is_some();
            found.extend(scan(ctx, encryption, files.into_iter().filter(text).collect(), &run).await?);
            if found.len() >= limit {
                found.truncate(limit);
                break;
            }
        }
        Ok::<_, Error>(found)
    };
    let found = tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| late())??;
    let mut conn = ctx.db.acquire().await?;
    Ok(files::get_many(&mut conn, disk, &found).await?)
}

/// A grep at work. Its turn is held by the threads that read for it: a client that hangs up ends them, and until they have
/// ended no other takes the turn.
struct Run {
    pattern: Arc<Pattern>,
    deadline: Instant,
    stop: StopOnDrop,
    turn: Arc<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads the files and answers with those that match, in their order.
async fn scan(ctx: &Disks, encryption: &ProjectEncryption, files: Vec<Candidate>, run: &Run) -> Result<Vec<Name>> {
    let (names, contents): (Vec<_>, Vec<_>) = files.into_iter().map(|file| (Some(file.name), file.content)).unzip();
    let matches = Arc::new(Mutex::new(Vec::new()));
    let is_late = Arc::new(AtomicBool::new(false));
    let visit = {
        let (matches, is_late, pattern) = (Arc::clone(&matches), Arc::clone(&is_late), Arc::clone(&run.pattern));
        let (stop, turn, deadline) = (Arc::clone(&run.stop.0), Arc::clone(&run.turn), run.deadline);
        move |at: usize, text: &mut Vec<u8>| {
            let _turn = &turn;
            match pattern.is_match(text, deadline, &stop) {
                Some(true) => matches.lock().unwrap_or_else(PoisonError::into_inner).push(at),
                Some(false) if Instant::now() <= deadline && !stop.load(Ordering::Relaxed) => {}
                Some(false) | None => {
                    is_late.store(true, Ordering::Relaxed);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        }
    };
    ctx.blobs.scan(Key::Project(encryption.kek.as_deref()), contents, Arc::new(visit)).await?;
    if is_late.load(Ordering::Relaxed) {
        return Err(late());
    }
    let mut matches = std::mem::take(&mut *matches.lock().unwrap_or_else(PoisonError::into_inner));
    matches.sort_unstable();
    let mut names: Vec<Option<Name>> = names;
    Ok(matches.into_iter().filter_map(|at| names[at].take()).collect())
}

fn late() -> Error {
    Error::unavailable("the search took too long and was stopped; narrow it down")
}

/// A glob pattern as a regular expression over path and name. `*` and `**` match anything, slashes too; `?` one character;
/// `[…]` one of a class, `[!…]` and `[^…]` one that is not in it; a backslash takes the next character as it is. Everything
/// else, a bracket that is never closed among it, stands for itself.
fn glob_to_regex(glob: &str) -> String {
    let chars: Vec<char> = glob.chars().collect();
    let mut regex = String::from("^");
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '*' => {
                while chars.get(at + 1) == Some(&'*') {
                    at += 1;
                }
                regex.push_str(".*");
            }
            '?' => regex.push('.'),
            '[' => match class(&chars[at..]) {
                Some((class, length)) => {
                    regex.push_str(&class);
                    at += length - 1;
                }
                None => regex.push_str(r"\["),
            },
            '\\' if at + 1 < chars.len() => {
                at += 1;
                regex.push_str(&literal(chars[at]));
            }
            other => regex.push_str(&literal(other)),
        }
        at += 1;
    }
    regex.push('$');
    regex
}

/// A class that begins here: as a regular expression, and how many characters it takes up.
fn class(chars: &[char]) -> Option<(String, usize)> {
    let negated = matches!(chars.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    // A bracket in the first place is a member.
    let end = chars.iter().enumerate().skip(first + 1).find(|(_, c)| **c == ']')?.0;
    let mut class = String::from(if negated { "[^" } else { "[" });
    for (at, member) in chars[first..end].iter().enumerate() {
        let inner = at > 0 && first + at + 1 < end;
        class.push_str(&if *member == '-' && inner { "-".to_owned() } else { literal(*member) });
    }
    class.push(']');
    Some((class, end + 1))
}

fn literal(c: char) -> String {
    regex_syntax::escape(c.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn globs(pattern: &str, name: &str) -> bool {
        let syntax = syntax::Config::new().dot_matches_new_line(true).utf8(false);
        let pattern = Pattern::compile(&glob_to_regex(pattern), syntax, 10 << 20).unwrap();
        pattern.is_match(name.as_bytes(), soon(), &NEVER).unwrap()
    }

    fn greps(pattern: &str) -> Result<Pattern> {
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
            assert_eq!(globs(pattern, name), matches, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_pattern_that_does_not_compile_is_named() {
        for pattern in ["(", "[a-", "*x", "todo(?=:)", r"(a)\1", "a{1000}{1000}{100}"] {
            let Err(Error::BadRequest { detail: Some(detail), .. }) = greps(pattern) else { panic!("{pattern}") };
            assert!(detail.starts_with("query: ") && !detail.contains('\n'), "{detail}");
        }
    }

    #[test]
    fn a_text_in_pieces_is_matched_over_their_ends() {
        let mut pattern = greps(r"needle\s+found$").unwrap();
        pattern.piece = 4 * OVERLAP;
        for at in [0, pattern.piece - 10, pattern.piece, 3 * pattern.piece - 7] {
            let mut text = "x\n".repeat(at / 2) + "Needle  FOUND\n";
            text.push_str(&"y\n".repeat(5 * pattern.piece));
            assert_eq!(pattern.is_match(text.as_bytes(), soon(), &NEVER), Some(true), "{at}");
        }
        let without = "needle\nlost\n".repeat(pattern.piece);
        assert_eq!(pattern.is_match(without.as_bytes(), soon(), &NEVER), Some(false));
        assert_eq!(pattern.is_match(without.as_bytes(), Instant::now(), &NEVER), None);
        assert_eq!(pattern.is_match(without.as_bytes(), soon(), &AtomicBool::new(true)), None);
    }

    proptest! {
        #[test]
        fn every_text_is_a_glob_pattern(pattern in ".{1,40}", name in ".{0,40}") {
            globs(&pattern, &name);
        }

        #[test]
        fn an_escaped_text_matches_itself_alone(text in ".{1,20}", other in ".{1,20}") {
            let pattern: String = text.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(globs(&pattern, &text));
            prop_assert_eq!(globs(&pattern, &other), text == other);
        }
    }
}
