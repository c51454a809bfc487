//! Copies files into and out of a sandbox. The programs that do so run in the sandbox, so that a path in it, with all its symbolic
//! links, means what it means there and can lead nowhere else.

use std::io;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio_util::io::{StreamReader, SyncIoBridge};
use uuid::Uuid;

use super::disk::DiskUsage;
use super::prepare::{LocalSandbox, Machine};
use super::program::{FinishedProgram, Program, start_script};
use super::{LocalProvider, MAX_MESSAGE_LEN};
use crate::blob::spool::SpoolDir;
use crate::sandboxes::provider::output::read_excerpt;
use crate::sandboxes::provider::{FileToWrite, ProviderError, SandboxFile};

/// The script that reads the file `$1`: it writes a line with the mode and the size, then the content.
const READ_FILE: &str = concat!(
    start_script!(),
    r#"PATH=/usr/bin:/bin; [ -e "$1" ] || exit 66; [ -f "$1" ] || exit 67; stat -Lc '%a %s' -- "$1" && exec cat -- "$1""#
);
/// The exit code of [`READ_FILE`] if there is no such file.
const NO_INPUT: i32 = 66;
/// The exit code of [`READ_FILE`] if there is something else than a file, such as a directory.
const NO_FILE: i32 = 67;
/// The script that extracts an archive into the temporary directory `$4` in the directory `$1`, and moves the entry `$2` from there to
/// its place. `$3` is `new` if the entry must not exist.
const EXTRACT: &str = concat!(
    start_script!(),
    r#"
    PATH=/usr/bin:/bin
    if [ "$3" = new ] && [ -e "$1/$2" ]; then exit 73; fi
    mkdir -p -- "$1" && mkdir -m 700 -- "$1/$4" || exit
    trap 'rm -rf -- "$1/$4"' EXIT
    tar -xf - --no-same-owner -C "$1/$4" && mv -fT -- "$1/$4/$2" "$1/$2""#
);
/// The exit code of [`EXTRACT`] if the entry exists.
const EXISTS: i32 = 73;
/// The script that deletes the directory `$2` in the directory `$1`.
const CLEAN_UP: &str = concat!(start_script!(), r#"PATH=/usr/bin:/bin exec rm -rf -- "$1/$2""#);
/// How long a transfer may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_mins(5);

/// The maximum length of the line before the content that [`READ_FILE`] writes.
const MAX_HEADER_LEN: u64 = 64;
/// The size of the buffer for the content of a file.
const BUFFER_LEN: usize = 256 * 1024;

impl LocalProvider {
    /// Copies files into a sandbox. All are below the entry `name` of the directory `dir`, which appears when they are complete. `mode`
    /// is `new` if the entry must not exist. Returns the path of `dir` for programs in the sandbox.
    ///
    /// # Errors
    /// Returns the errors of [`write_file`](crate::sandboxes::provider::SandboxProvider::write_file).
    pub(super) async fn extract(
        &self,
        id: &str,
        [dir, name, mode]: [&str; 3],
        files: Vec<FileToWrite>,
    ) -> Result<String, ProviderError> {
        let (machine, sandbox, _running) = self.find(id).await?;
        let size: u64 = files.iter().map(|file| file.size).sum();
        let usage = sandbox.disk.usage();
        if (DiskUsage { bytes: usage.bytes.saturating_add(size), ..usage }).exceeds(self.max_disk()) {
            return Err(ProviderError::FileRejected("the disk of the sandbox is full".into()));
        }
        let dir = machine.isolation.path_in(&self.dir.sandbox(sandbox.id), dir);
        let incoming = format!(".incoming-{}", Uuid::new_v4().simple());
        let program = Program { script: EXTRACT, arguments: &[&dir, name, mode, &incoming], timeout: TRANSFER_TIMEOUT };
        let (program, stdin, stdout) = self.start(machine, &sandbox, program).await?;
        let write = tokio::task::spawn_blocking(move || write_archive(SyncIoBridge::new(stdin), files));
        let io = async { tokio::join!(write, read_excerpt(stdout, MAX_MESSAGE_LEN)) };
        let (finished, (written, _)) = program.finish(MAX_MESSAGE_LEN, io).await?;
        if self.end_if_far_over_limit(machine.prepared, &sandbox)? {
            return Err(ProviderError::Ended);
        }
        if finished.end.kill_reason.is_some() {
            self.clean_up(machine, &sandbox, [&dir, &incoming]).await?;
        }
        match (finished.end.exit_code, written.context("cannot write an archive")?) {
            (_, Err(ArchiveError::Content(err))) => Err(ProviderError::Content(err)),
            (0, Ok(())) => Ok(dir),
            (EXISTS, _) => Err(ProviderError::AlreadyExists),
            _ => Err(self.rejected(&finished)),
        }
    }

    /// Deletes the temporary directory of a script that was killed.
    async fn clean_up(
        &self,
        machine: Machine<'_>,
        sandbox: &LocalSandbox,
        dir: [&str; 2],
    ) -> Result<(), ProviderError> {
        if sandbox.cancel.is_cancelled() {
            return Ok(());
        }
        let program = Program { script: CLEAN_UP, arguments: &dir, timeout: TRANSFER_TIMEOUT };
        let (program, _stdin, stdout) = self.start(machine, sandbox, program).await?;
        program.finish(MAX_MESSAGE_LEN, read_excerpt(stdout, MAX_MESSAGE_LEN)).await.map(drop)
    }

    /// Copies a file out of a sandbox.
    ///
    /// # Errors
    /// Returns the errors of [`read_file`](crate::sandboxes::provider::SandboxProvider::read_file).
    pub(super) async fn copy_out(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError> {
        let (machine, sandbox, _running) = self.find(id).await?;
        let path_in = machine.isolation.path_in(&self.dir.sandbox(sandbox.id), path);
        let program = Program { script: READ_FILE, arguments: &[&path_in], timeout: TRANSFER_TIMEOUT };
        let (mut program, _stdin, stdout) = self.start(machine, &sandbox, program).await?;
        let cancel = sandbox.cancel.child_token();
        program.supervision.cancel = cancel.clone();
        // A program whose output is not read to its end would wait.
        let read = async { read_content(stdout, &self.spool, max_bytes).await.inspect_err(|_| cancel.cancel()) };
        let (finished, content) = program.finish(MAX_MESSAGE_LEN, read).await?;
        match (finished.end.exit_code, content?) {
            (0, Some(file)) => Ok(file),
            (NO_INPUT, _) => Err(ProviderError::FileNotFound(path.to_owned())),
            (NO_FILE, _) => Err(ProviderError::FileRejected(format!("{path} is not a regular file"))),
            _ => Err(self.rejected(&finished)),
        }
    }

    /// Returns the error for a failed transfer.
    fn rejected(&self, finished: &FinishedProgram) -> ProviderError {
        ProviderError::FileRejected(match finished.end.kill_reason {
            Some(reason) => format!("the copy was canceled, because {}", self.describe_kill(reason)),
            None => finished.stderr.text.trim().to_owned(),
        })
    }
}

/// Why an archive could not be written.
enum ArchiveError {
    /// The content of a file could not be read.
    Content(io::Error),
    /// The program has ended before it has read the archive.
    Archive,
}

/// Writes an archive of files in the format of `tar`.
fn write_archive(output: impl io::Write, files: Vec<FileToWrite>) -> Result<(), ArchiveError> {
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
async fn read_content(
    output: impl AsyncRead + Unpin,
    spool: &SpoolDir,
    max_bytes: u64,
) -> Result<Option<SandboxFile>, ProviderError> {
    let mut output = BufReader::with_capacity(BUFFER_LEN, output);
    let (mut header, mut content) = (String::new(), spool.writer());
    (&mut output).take(MAX_HEADER_LEN).read_line(&mut header).await.context("cannot read a file")?;
    if header.is_empty() {
        return Ok(None);
    }
    let parsed = header.trim_end().split_once(' ');
    let parsed = parsed.and_then(|(mode, size)| Some((u32::from_str_radix(mode, 8).ok()?, size.parse::<u64>().ok()?)));
    let unusable = "the program `stat` of the sandbox does not return the mode and the size of the file";
    let (mode, size) = parsed.ok_or_else(|| ProviderError::FileRejected(unusable.to_owned()))?;
    if size > max_bytes {
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
