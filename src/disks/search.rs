//! Glob and grep over the files of a disk. Glob reads the paths of files, and grep also reads the contents of text files. Both
//! read batches in the order of directory and file name, until they have found enough files.
//!
//! So that one request cannot monopolize the server, the time of a match is linear in the length of the text, searches have a
//! deadline, and only a few greps run concurrently.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Input, meta};
use tokio::sync::OwnedSemaphorePermit;

use super::files::{self, ArtifactPath, ArtifactRow, GrepCandidate};
use super::path::Directory;
use super::text_kind::TextKind;
use crate::blob::content::ContentKey;
use crate::disks::Disks;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::DiskId;

/// The number of paths that glob reads per query.
const PATH_BATCH_SIZE: i64 = 5_000;
/// The number of files in the first batch of a grep. It is small, because the first batch often contains enough matches.
const FIRST_FILE_BATCH_SIZE: i64 = 500;
/// The number of files in the other batches of a grep.
const FILE_BATCH_SIZE: i64 = 4_000;
/// The number of steps between two checks of the deadline. They take well under a second. To match one byte takes one step for
/// each state of the pattern. A chunk has at least `4 * CHUNK_OVERLAP` bytes, even if it takes more steps than this.
const STEPS_PER_CHECK: usize = 1 << 28;
/// The overlap of consecutive chunks, in bytes, for files that need too many steps to be matched as a whole.
const CHUNK_OVERLAP: usize = 4 * 1024;

/// The cancellation flag of searches that cannot be canceled.
static NOT_CANCELED: AtomicBool = AtomicBool::new(false);

/// The maximum number of greps that run concurrently in this process.
pub(super) const MAX_CONCURRENT_GREPS: usize = 4;
/// The maximum number of globs that run concurrently in this process. They have a limit of their own, because they take
/// milliseconds, and a grep can take until its deadline.
pub(super) const MAX_CONCURRENT_GLOBS: usize = 8;

/// A compiled pattern.
struct Pattern {
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
    fn compile(pattern: &str, syntax: syntax::Config, max_nfa_bytes: u64) -> Result<Self> {
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
    fn is_match(&self, text: &[u8], deadline: Instant, canceled: &AtomicBool) -> Option<bool> {
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
async fn compile_blocking(
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

/// Returns the first `limit` files whose full path matches a glob pattern.
pub async fn glob(ctx: &Disks, disk: DiskId, pattern: &str, limit: usize) -> Result<Vec<ArtifactRow>> {
    let syntax = syntax::Config::new().dot_matches_new_line(true).utf8(false);
    // Only files below the literal prefix of the pattern can match.
    let dir = Directory::containing(pattern.split(['*', '?', '[', '\\']).next().unwrap_or_default());
    let deadline = Instant::now() + ctx.config.limits.grep_timeout;
    let permit = tokio::time::timeout_at(deadline.into(), Arc::clone(&ctx.glob_limiter).acquire_owned()).await;
    let permit = permit.map_err(|_| timeout_error())?.map_err(Error::internal)?;
    let (pattern, _permit) = compile_blocking(ctx, glob_to_regex(pattern), syntax, permit).await?;
    let mut conn = ctx.db.acquire().await?;
    let mut matches = Vec::new();
    let mut after = ArtifactPath { path: dir.as_str().to_owned(), filename: String::new() };
    let end = dir.upper_bound();
    loop {
        let paths = files::list_paths(&mut conn, disk, &after, &end, PATH_BATCH_SIZE).await?;
        let Some(last) = paths.last() else { break };
        after = last.clone();
        for path in paths {
            let full_path = format!("{}{}", path.path, path.filename);
            if pattern.is_match(full_path.as_bytes(), deadline, &NOT_CANCELED).ok_or_else(timeout_error)? {
                matches.push(path);
            }
        }
        if matches.len() >= limit {
            matches.truncate(limit);
            break;
        }
        if Instant::now() > deadline {
            return Err(timeout_error());
        }
    }
    Ok(files::get_many(&mut conn, disk, &matches).await?)
}

/// Returns the first `limit` text files that contain a match of a regular expression. Skips files whose content is corrupt or
/// missing in the object store.
///
/// # Errors
/// Returns 400 if the pattern is invalid, 403 if a file is encrypted and the request has no key, and 503 if the object store
/// fails or the deadline has passed.
pub async fn grep(
    ctx: &Disks,
    encryption: &ProjectEncryption,
    disk: DiskId,
    pattern: &str,
    limit: usize,
) -> Result<Vec<ArtifactRow>> {
    let deadline = Instant::now() + ctx.config.limits.grep_timeout;
    let syntax = syntax::Config::new().case_insensitive(true).multi_line(true).utf8(false);
    let search = async {
        let permit = Arc::clone(&ctx.grep_limiter).acquire_owned().await.map_err(Error::internal)?;
        let (pattern, permit) = compile_blocking(ctx, pattern.to_owned(), syntax, permit).await?;
        let pattern = Arc::new(pattern);
        let run = GrepRun { pattern, deadline, canceled: CancelOnDrop::default(), permit: Arc::new(permit) };
        let mut matches = Vec::new();
        let mut after = ArtifactPath::default();
        let mut batch_size = FIRST_FILE_BATCH_SIZE;
        loop {
            let mut conn = ctx.db.acquire().await?;
            let files = files::list_grep_candidates(&mut conn, disk, &after, batch_size).await?;
            drop(conn);
            batch_size = FILE_BATCH_SIZE;
            let Some(last) = files.last() else { break };
            after = last.path.clone();
            let is_text = |file: &GrepCandidate| TextKind::detect(&file.path.filename, &file.mime).is_some();
            matches.extend(scan_batch(ctx, encryption, files.into_iter().filter(is_text).collect(), &run).await?);
            if matches.len() >= limit {
                matches.truncate(limit);
                break;
            }
        }
        Ok::<_, Error>(matches)
    };
    let matches = tokio::time::timeout_at(deadline.into(), search).await.map_err(|_| timeout_error())??;
    let mut conn = ctx.db.acquire().await?;
    Ok(files::get_many(&mut conn, disk, &matches).await?)
}

/// A running grep. If it is dropped before it has finished, for instance because the client disconnects, its threads are
/// canceled. Each thread holds the permit until it ends.
struct GrepRun {
    pattern: Arc<Pattern>,
    deadline: Instant,
    canceled: CancelOnDrop,
    permit: Arc<OwnedSemaphorePermit>,
}

/// A cancellation flag that is set when this value is dropped.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Searches the contents of files. Returns the paths of the files that contain a match, in the order of `files`.
async fn scan_batch(
    ctx: &Disks,
    encryption: &ProjectEncryption,
    files: Vec<GrepCandidate>,
    run: &GrepRun,
) -> Result<Vec<ArtifactPath>> {
    let (mut paths, blobs): (Vec<Option<ArtifactPath>>, Vec<_>) =
        files.into_iter().map(|file| (Some(file.path), file.blob)).unzip();
    let matches = Arc::new(Mutex::new(Vec::new()));
    let timed_out = Arc::new(AtomicBool::new(false));
    let visit = {
        let (matches, timed_out, pattern) = (Arc::clone(&matches), Arc::clone(&timed_out), Arc::clone(&run.pattern));
        let (canceled, permit, deadline) = (Arc::clone(&run.canceled.0), Arc::clone(&run.permit), run.deadline);
        move |index: usize, text: &mut Vec<u8>| {
            // Because the closure captures the permit, each thread that runs the closure holds the permit.
            let _permit = &permit;
            match pattern.is_match(text, deadline, &canceled) {
                Some(true) => matches.lock().unwrap_or_else(PoisonError::into_inner).push(index),
                Some(false) if Instant::now() <= deadline && !canceled.load(Ordering::Relaxed) => {}
                Some(false) | None => {
                    timed_out.store(true, Ordering::Relaxed);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        }
    };
    ctx.blobs.scan(ContentKey::Kek(encryption.kek.as_deref()), blobs, Arc::new(visit)).await?;
    if timed_out.load(Ordering::Relaxed) {
        return Err(timeout_error());
    }
    let mut matches = std::mem::take(&mut *matches.lock().unwrap_or_else(PoisonError::into_inner));
    matches.sort_unstable();
    Ok(matches.into_iter().filter_map(|index| paths[index].take()).collect())
}

fn timeout_error() -> Error {
    Error::unavailable("search timed out; use a more specific pattern")
}

/// Converts a glob pattern to a regular expression for the full path. `*` and `**` match any characters including slashes, `?`
/// matches one character, `[…]` matches one character of a class, and `[!…]` and `[^…]` match one character outside of a class. A
/// backslash escapes the next character. All other characters, including an opening bracket that is never closed, match
/// themselves.
fn glob_to_regex(glob: &str) -> String {
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
