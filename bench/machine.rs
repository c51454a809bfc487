//! Describes the machine on which the numbers were measured, and how busy it was with other processes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::{Times, to_f64};

/// The number of cores that other processes may keep busy before a benchmark starts.
const MAX_BUSY_CORES: f64 = 0.1;

/// Returns the machine, the date and the command as a section of a report. `dir` is on the disk that the benchmark
/// uses.
///
/// Waits at most `max_wait` until other processes are idle.
pub fn describe(command: &str, dir: &Path, max_wait: Duration) -> anyhow::Result<String> {
    let other_load = busy_cores(max_wait);
    let mut text = String::from("## Measured on\n\n");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let lines = [
        ("Date", chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string()),
        ("Command", format!("`{command}`")),
        ("CPU", format!("{} ({cores} cores)", value_of("/proc/cpuinfo", "model name"))),
        ("Memory", value_of("/proc/meminfo", "MemTotal")),
        ("Kernel", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
        ("Disk", disk(dir)?),
        ("Other load", format!("{other_load:.2} cores busy in the second before the benchmark")),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "- {name}: {value}");
    }
    Ok(text)
}

/// Returns the number of cores that other processes keep busy, measured over a second. Waits at most `max_wait` until
/// it is at most [`MAX_BUSY_CORES`].
fn busy_cores(max_wait: Duration) -> f64 {
    let deadline = Instant::now() + max_wait;
    loop {
        let (before, start) = (busy_ticks(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let busy = to_f64(busy_ticks().saturating_sub(before)) / 100.0 / start.elapsed().as_secs_f64();
        if busy <= MAX_BUSY_CORES || Instant::now() >= deadline {
            return busy;
        }
    }
}

/// Returns the busy time of all cores in hundredths of a second, which excludes the time idle and waiting for the disk.
fn busy_ticks() -> u64 {
    let ticks = value_of("/proc/stat", "cpu ");
    let ticks = ticks.split_whitespace().filter_map(|ticks| ticks.parse::<u64>().ok()).take(8).enumerate();
    ticks.filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

/// Returns the text after the first `name:` in a file.
fn value_of(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned()
}

/// Returns the file system, the device, and the time of a small synced write, which characterizes the device best.
fn disk(dir: &Path) -> anyhow::Result<String> {
    let device = fs::metadata(dir)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_device = |line: &&str| line.split(' ').nth(2) == Some(&format!("{major}:{minor}"));
    let mount = mounts.lines().find(of_device).and_then(|line| line.split_once(" - ")).map_or("", |parts| parts.1);
    let kind = mount.split(' ').take(2).collect::<Vec<_>>().join(" on ");
    let sync = sync_time(dir)?;
    Ok(format!(
        "{kind}; 4 KiB written and synced in {:.2} ms (p50), {:.2} ms (p99) of {}",
        sync.p50(),
        sync.p99(),
        sync.count()
    ))
}

fn sync_time(dir: &Path) -> anyhow::Result<Times> {
    let path = dir.join(".sync");
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
