//! The programs that copy files into and out of a sandbox. They run in the sandbox, so that a path in it, with all its symbolic
//! links, means what it means there and can lead nowhere else.

use std::io;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::blob::spool::SpoolDir;
use crate::sandboxes::provider::{FileToWrite, ProviderError, SandboxFile};

/// The script that reads the file `$1`: it writes a line with the mode and the size, then the content.
pub(super) const READ_FILE: &str =
    r#"PATH=/usr/bin:/bin; [ -f "$1" ] || exit 66; stat -Lc '%a %s' -- "$1" && exec cat -- "$1""#;
/// The exit code of [`READ_FILE`] if there is no such file.
pub(super) const NO_INPUT: i32 = 66;
/// The script that extracts an archive into a temporary directory in the directory `$1`, and moves the entry `$2` from there to its
/// place. `$3` is `new` if the entry must not exist.
pub(super) const EXTRACT: &str = r#"
    PATH=/usr/bin:/bin
    if [ "$3" = new ] && [ -e "$1/$2" ]; then exit 73; fi
    mkdir -p -- "$1" && incoming=$(mktemp -d -- "$1/.incoming.XXXXXXXX") || exit
    trap 'rm -rf -- "$incoming"' EXIT
    tar -xf - --no-same-owner -C "$incoming" && mv -fT -- "$incoming/$2" "$1/$2""#;
/// The exit code of [`EXTRACT`] if the entry exists.
pub(super) const EXISTS: i32 = 73;

/// The maximum length of the line before the content that [`READ_FILE`] writes.
const MAX_HEADER_LEN: u64 = 64;
/// The size of the buffer for the content of a file.
const BUFFER_LEN: usize = 256 * 1024;

/// Why an archive could not be written.
pub(super) enum ArchiveError {
    /// The content of a file could not be read.
    Content(io::Error),
    /// The program has ended before it has read the archive.
    Archive,
}

/// Writes an archive of files in the format of `tar`.
pub(super) fn write_archive(output: impl io::Write, files: Vec<FileToWrite>) -> Result<(), ArchiveError> {
    let now = u64::try_from(chrono::Utc::now().timestamp()).unwrap_or_default();
    let mut archive = tar::Builder::new(ArchiveOutput(Some(output)));
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.size);
        header.set_mtime(now);
        header.set_mode(if file.is_executable { 0o755 } else { 0o644 });
        let mut content = ContentReader { reader: SyncIoBridge::new(StreamReader::new(file.content)), error: None };
        let appended = archive.append_data(&mut header, &file.path, &mut content);
        if let Some(error) = content.error {
            // Otherwise the builder would complete the archive.
            archive.get_mut().0 = None;
            return Err(ArchiveError::Content(error));
        }
        appended.map_err(|_| ArchiveError::Archive)?;
    }
    archive.into_inner().and_then(|mut output| io::Write::flush(&mut output)).map_err(|_| ArchiveError::Archive)
}

/// The output of an archive, until it is closed.
struct ArchiveOutput<W>(Option<W>);

impl<W: io::Write> io::Write for ArchiveOutput<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.flush()
    }
}

/// A reader that keeps its error, so that it is not mixed up with those of the output.
struct ContentReader<R> {
    reader: R,
    error: Option<io::Error>,
}

impl<R: io::Read> io::Read for ContentReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|err| {
            let copy = io::Error::from(err.kind());
            self.error = Some(err);
            copy
        })
    }
}

/// Reads the output of [`READ_FILE`]. Returns `None` if it is empty, because the program has failed.
pub(super) async fn read_content(
    output: impl AsyncRead + Unpin,
    spool: &SpoolDir,
    max_bytes: u64,
) -> Result<Option<SandboxFile>, ProviderError> {
    let mut output = BufReader::with_capacity(BUFFER_LEN, output);
    let (mut header, mut content) = (String::new(), spool.writer());
    (&mut output).take(MAX_HEADER_LEN).read_line(&mut header).await.context("cannot read a file")?;
    let Some((mode, size)) = header.trim_end().split_once(' ') else { return Ok(None) };
    let mode = u32::from_str_radix(mode, 8).context("invalid mode")?;
    if size.parse::<u64>().context("invalid size")? > max_bytes {
        return Err(ProviderError::FileTooLarge(max_bytes));
    }
    loop {
        let chunk = output.fill_buf().await.context("cannot read a file")?;
        if chunk.is_empty() {
            break;
        }
        // The file may have grown.
        if content.size() + chunk.len() as u64 > max_bytes {
            return Err(ProviderError::FileTooLarge(max_bytes));
        }
        content.write(chunk).await.map_err(ProviderError::Content)?;
        let length = chunk.len();
        output.consume(length);
    }
    let content = content.finish().await.map_err(ProviderError::Content)?;
    Ok(Some(SandboxFile { content, is_executable: mode & 0o100 != 0 }))
}
