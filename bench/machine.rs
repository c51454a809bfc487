//! What the numbers were measured on, and whether anybody else was at work there.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::{Times, real};

/// So many cores may be busy with something else.
const QUIET: f64 = 0.1;

/// The machine, the date and the command, as a section of a report. `folder` is on the disk that was used.
///
/// Waits for others to be quiet, up to `patience`.
pub fn describe(command: &str, folder: &Path, patience: Duration) -> anyhow::Result<String> {
    let others = busy_cores(patience);
    let mut text = String::from("## Measured on\n\n");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let lines = [
        ("Date", chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string()),
        ("Command", format!("`{command}`")),
        ("CPU", format!("{} ({cores} cores)", value_of("/proc/cpuinfo", "model name"))),
        ("Memory", value_of("/proc/meminfo", "MemTotal")),
        ("Kernel", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
        ("Disk", disk(folder)?),
        ("Others", format!("{others:.2} cores busy in the second before")),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "- {name}: {value}");
    }
    Ok(text)
}

/// How many cores others keep busy, over a second; waits a while for less.
fn busy_cores(patience: Duration) -> f64 {
    let deadline = Instant::now() + patience;
    loop {
        let (before, start) = (busy_ticks(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let busy = real(busy_ticks().saturating_sub(before)) / 100.0 / start.elapsed().as_secs_f64();
        if busy <= QUIET || Instant::now() >= deadline {
            return busy;
        }
    }
}

/// In hundredths of a second, of all cores together: everything but idle and waiting for the disk.
fn busy_ticks() -> u64 {
    let ticks = value_of("/proc/stat", "cpu ");
    let ticks = ticks.split_whitespace().filter_map(|ticks| ticks.parse::<u64>().ok()).take(8).enumerate();
    ticks.filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

/// What stands after the first `name:` of a file.
fn value_of(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned()
}

/// The file system, the device, and what tells most about it: how long a small write takes to be on it.
fn disk(folder: &Path) -> anyhow::Result<String> {
    let device = fs::metadata(folder)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_device = |line: &&str| line.split(' ').nth(2) == Some(&format!("{major}:{minor}"));
    let mount = mounts.lines().find(of_device).and_then(|line| line.split_once(" - ")).map_or("", |parts| parts.1);
    let kind = mount.split(' ').take(2).collect::<Vec<_>>().join(" on ");
    let sync = sync_time(folder)?;
    Ok(format!(
        "{kind}; 4 KiB written and synced in {:.2} ms (p50), {:.2} ms (p99) of {}",
        sync.p50(),
        sync.p99(),
        sync.count()
    ))
}

fn sync_time(folder: &Path) -> anyhow::Result<Times> {
    let path = folder.join(".sync");
    let mut file = File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        file.write_all(&[b'x'; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    fs::remove_file(&path)?;
    Ok(times.into_iter().collect())
}
