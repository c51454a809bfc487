//! The yardstick of files: what the disk itself does, asked in the plainest way, by as many threads as there are clients.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::load::{Lane, Outcome, Plan};

/// Writes new files of that size as safely as a server must: to the side, synced, moved into place, the folder synced.
pub fn write_files(folder: &Path, plan: Plan, size: usize) -> io::Result<Outcome> {
    on_threads(plan, |thread| {
        let folder = folder.join(format!("disk-{thread}"));
        fs::create_dir_all(&folder)?;
        let beside = folder.join("beside");
        let content = vec![b'x'; size];
        let mut number = 0_u64;
        Ok(move || {
            number += 1;
            write_file(&folder, &beside, &folder.join(number.to_string()), &content)
        })
    })
}

/// Writes each content to a file of its own, as safely, by so many threads; how long all of them took.
pub fn write_each(folder: &Path, threads: usize, contents: &[Bytes]) -> io::Result<Duration> {
    let next = AtomicUsize::new(0);
    let work = |thread: usize| -> io::Result<()> {
        let beside = folder.join(format!("beside-{thread}"));
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(content) = contents.get(number) else { return Ok(()) };
            write_file(folder, &beside, &folder.join(number.to_string()), content)?;
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

fn write_file(folder: &Path, beside: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    File::open(folder)?.sync_all()
}

/// Reads whole files, one after the other.
pub fn read_files(files: &[PathBuf], plan: Plan) -> io::Result<Outcome> {
    on_threads(plan, |thread| {
        let mut next = files.iter().cycle().skip(thread).cloned();
        Ok(move || next.next().map_or(Ok(()), |file| fs::read(file).map(drop)))
    })
}

/// Does over and over on each thread what `work` makes for it.
fn on_threads<W: FnMut() -> io::Result<()> + Send>(
    plan: Plan,
    work: impl Fn(usize) -> io::Result<W>,
) -> io::Result<Outcome> {
    let mut all = (0..plan.clients).map(work).collect::<io::Result<Vec<_>>>()?;
    let lanes: io::Result<Vec<Lane>> = std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter_mut().map(|work| scope.spawn(|| lane(plan, work))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a thread panicked"))?).collect()
    });
    lanes.map(Outcome)
}

fn lane(plan: Plan, mut work: impl FnMut() -> io::Result<()>) -> io::Result<Lane> {
    let mut lane = Lane::default();
    let counted_from = Instant::now() + plan.warm_up;
    loop {
        let start = Instant::now();
        if start >= counted_from + plan.time {
            return Ok(lane);
        }
        work()?;
        if start >= counted_from {
            lane.record("file", start, Instant::now());
        }
    }
}
