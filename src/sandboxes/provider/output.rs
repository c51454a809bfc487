//! The output of a command, of which the first and the last part are kept, and what a command outputs that was killed.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::CommandStream;

/// The size of the buffer for reading.
const BUFFER_LEN: usize = 64 * 1024;
/// The exit code of a command that was killed because it took too long, as that of the program `timeout`.
pub(super) const TIMED_OUT_EXIT_CODE: i32 = 124;

/// The first and the last bytes of a stream.
pub(super) struct Excerpt {
    first: Vec<u8>,
    last: VecDeque<u8>,
    /// The maximum length of each part.
    max_part_len: usize,
    total_len: u64,
}

impl Excerpt {
    /// Creates an excerpt that keeps the first and the last half of `max_len` bytes.
    pub(super) fn new(max_len: usize) -> Self {
        Self { first: Vec::new(), last: VecDeque::new(), max_part_len: max_len / 2, total_len: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total_len += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.max_part_len - self.first.len()));
        self.first.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.max_part_len)..];
        let excess = (self.last.len() + rest.len()).saturating_sub(self.max_part_len);
        self.last.drain(..excess);
        self.last.extend(rest);
    }

    pub(super) fn finish(self) -> CommandStream {
        let kept = (self.first.len() + self.last.len()) as u64;
        let omitted_bytes = self.total_len - kept;
        let mut bytes = self.first;
        if omitted_bytes > 0 {
            bytes.extend_from_slice(format!("\n[… {omitted_bytes} bytes omitted …]\n").as_bytes());
        }
        bytes.extend(self.last);
        // A character may be cut at the omitted part.
        let text = String::from_utf8(bytes).unwrap_or_else(|err| String::from_utf8_lossy(err.as_bytes()).into_owned());
        CommandStream { text, total_bytes: self.total_len, omitted_bytes }
    }
}

/// Keeps the first and the last half of `max_len` bytes of a text.
pub(super) fn excerpt(text: &str, max_len: usize) -> CommandStream {
    let mut excerpt = Excerpt::new(max_len);
    excerpt.push(text.as_bytes());
    excerpt.finish()
}

/// Reads a stream to its end, and keeps the first and the last half of `max_len` bytes.
///
/// # Errors
/// Returns an error if the stream cannot be read.
pub(super) async fn read_excerpt(mut stream: impl AsyncRead + Unpin, max_len: usize) -> io::Result<CommandStream> {
    let mut excerpt = Excerpt::new(max_len);
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(excerpt.finish()),
            length => excerpt.push(&buffer[..length]),
        }
    }
}

/// Returns the reason why a command was killed that has taken longer than `timeout`.
pub(super) fn describe_timeout(timeout: Duration) -> String {
    format!("it took longer than {} s", timeout.as_secs())
}

/// Appends a line to the standard error of a command that says why the command was killed.
pub(super) fn append_kill_reason(stderr: &mut CommandStream, reason: &str) {
    let separator = if stderr.text.is_empty() || stderr.text.ends_with('\n') { "" } else { "\n" };
    stderr.text = format!("{}{separator}The command was killed: {reason}.\n", stderr.text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn excerpt_of(chunks: &[Vec<u8>], max_len: usize) -> CommandStream {
        let mut excerpt = Excerpt::new(max_len);
        for chunk in chunks {
            excerpt.push(chunk);
        }
        excerpt.finish()
    }

    #[test]
    fn short_output_is_kept() {
        let stream = excerpt_of(&[b"one ".to_vec(), b"two".to_vec()], 8);
        assert_eq!((stream.text.as_str(), stream.total_bytes, stream.omitted_bytes), ("one two", 7, 0));
    }

    #[test]
    fn the_middle_of_long_output_is_omitted() {
        let stream = excerpt_of(&[b"0123456789".to_vec()], 4);
        assert_eq!(stream.text, "01\n[… 6 bytes omitted …]\n89");
    }

    proptest! {
        #[test]
        fn the_excerpt_does_not_depend_on_the_chunks(
            chunks in prop::collection::vec(prop::collection::vec(b'a'..=b'z', 0..20), 0..10),
            max_len in (0_usize..20).prop_map(|half| half * 2),
        ) {
            let whole = chunks.concat();
            let stream = excerpt_of(&chunks, max_len);
            prop_assert_eq!(stream.total_bytes, whole.len() as u64);
            if whole.len() <= max_len {
                prop_assert_eq!(stream.text.as_bytes(), &whole[..]);
            } else {
                let half = max_len / 2;
                prop_assert!(stream.text.as_bytes().starts_with(&whole[..half]));
                prop_assert!(stream.text.as_bytes().ends_with(&whole[whole.len() - half..]));
                prop_assert_eq!(stream.omitted_bytes, (whole.len() - max_len) as u64);
            }
        }
    }
}
