//! The yardstick of files: what the disk itself does, asked in the plainest way, by as many threads as there are clients.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
