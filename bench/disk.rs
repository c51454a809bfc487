//! The baseline for files: plain file operations on the disk, by as many threads as there are clients.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::load::{ClientStats, Outcome, Plan};

/// Writes new files of the given size as durably as a server must: writes and syncs a temporary file, renames it, and
/// syncs the directory.
pub fn write_files(dir: &Path, plan: Plan, size: usize) -> io::Result<Outcome> {
    on_threads(plan, |thread| {
        let dir = dir.join(format!("disk-{thread}"));
        fs::create_dir_all(&dir)?;
        let tmp = dir.join("tmp");
        let content = vec![b'x'; size];
        let mut number = 0_u64;
        Ok(move || {
            number += 1;
            write_file(&dir, &tmp, &dir.join(number.to_string()), &content)
        })
    })
}

/// Writes each content to its own file, as durably as [`write_files`], on `threads` threads. Returns how long all took.
pub fn write_contents(dir: &Path, threads: usize, contents: &[Bytes]) -> io::Result<Duration> {
    let next = AtomicUsize::new(0);
    let work = |thread: usize| -> io::Result<()> {
        let tmp = dir.join(format!("tmp-{thread}"));
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(content) = contents.get(number) else { return Ok(()) };
            write_file(dir, &tmp, &dir.join(number.to_string()), content)?;
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.try_for_each(|ended| ended.map_err(|_| io::Error::other("a thread panicked"))?)
    })?;
    Ok(start.elapsed())
}

fn write_file(dir: &Path, tmp: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(tmp)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(tmp, path)?;
    File::open(dir)?.sync_all()
}

/// Reads complete files, one after the other.
pub fn read_files(files: &[PathBuf], plan: Plan) -> io::Result<Outcome> {
    on_threads(plan, |thread| {
        let mut next = files.iter().cycle().skip(thread).cloned();
        Ok(move || next.next().map_or(Ok(()), |file| fs::read(file).map(drop)))
    })
}

/// Calls the function that `work` returns for a thread again and again on that thread, for the duration of the plan.
fn on_threads<W: FnMut() -> io::Result<()> + Send>(
    plan: Plan,
    work: impl Fn(usize) -> io::Result<W>,
) -> io::Result<Outcome> {
    let mut all = (0..plan.clients).map(work).collect::<io::Result<Vec<_>>>()?;
    let stats: io::Result<Vec<ClientStats>> = std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter_mut().map(|work| scope.spawn(|| run_thread(plan, work))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a thread panicked"))?).collect()
    });
    stats.map(Outcome)
}

fn run_thread(plan: Plan, mut work: impl FnMut() -> io::Result<()>) -> io::Result<ClientStats> {
    let mut stats = ClientStats::default();
    let counted_from = Instant::now() + plan.warm_up;
    loop {
        let start = Instant::now();
        if start >= counted_from + plan.time {
            return Ok(stats);
        }
        work()?;
        if start >= counted_from {
            stats.record("file", start, Instant::now());
        }
    }
}
