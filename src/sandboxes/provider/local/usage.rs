//! What a sandbox uses of the disk and of memory. The kernel limits each process and each file. Their sums are measured here.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat, statvfs};
use rustix::io::Errno;

/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;
/// How often the disk is measured, unless the free space shrinks faster.
const DISK_INTERVAL: Duration = Duration::from_secs(2);
/// The shrinking of the free space after which the disk is measured: bytes, and files.
const MIN_SHRINKING: DiskUsage = DiskUsage { bytes: 16 << 20, files: 5_000 };

/// A number of bytes and a number of files on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskUsage {
    pub(super) bytes: u64,
    /// The number of files and directories.
    pub(super) files: u64,
}

impl DiskUsage {
    /// More than any limit: for directories that cannot be read.
    const UNKNOWN: Self = Self { bytes: u64::MAX, files: u64::MAX };

    /// Returns `true` if there are more bytes or more files than in `other`.
    pub(super) fn exceeds(self, other: Self) -> bool {
        self.bytes > other.bytes || self.files > other.files
    }

    pub(super) fn twice(self) -> Self {
        Self { bytes: self.bytes.saturating_mul(2), files: self.files.saturating_mul(2) }
    }
}

/// Measures the disk usage of a sandbox.
#[derive(Debug)]
pub(super) struct DiskMeter {
    /// The directories of the sandbox.
    dirs: Vec<PathBuf>,
    /// A measurement ends when it exceeds this, so that its duration is limited.
    max: DiskUsage,
    last: Mutex<Measurement>,
}

#[derive(Clone, Copy, Debug)]
struct Measurement {
    usage: DiskUsage,
    /// What was free on the file system. `None` before the first measurement.
    free: Option<DiskUsage>,
    at: Instant,
}

impl DiskMeter {
    /// Creates the meter of a new sandbox.
    pub(super) fn new(dirs: Vec<PathBuf>, max: DiskUsage) -> Self {
        Self {
            dirs,
            max,
            last: Mutex::new(Measurement { usage: DiskUsage::default(), free: None, at: Instant::now() }),
        }
    }

    fn last(&self) -> MutexGuard<'_, Measurement> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last measured usage.
    pub(super) fn usage(&self) -> DiskUsage {
        self.last().usage
    }

    /// Measures the usage if the last measurement is old, or if the free space has shrunk since. Returns the last measured usage.
    pub(super) fn measure_if_due(&self) -> DiskUsage {
        let (last, free) = (*self.last(), free_space(&self.dirs));
        let has_shrunk = match (last.free, free) {
            (Some(earlier), Some(free)) => {
                let shrinking = DiskUsage {
                    bytes: earlier.bytes.saturating_sub(free.bytes),
                    files: earlier.files.saturating_sub(free.files),
                };
                shrinking.exceeds(MIN_SHRINKING)
            }
            _ => true,
        };
        if has_shrunk || last.at.elapsed() >= DISK_INTERVAL { self.measure() } else { last.usage }
    }

    /// Measures the usage, up to the maximum of the meter. Files that disappear in the meantime do not count.
    pub(super) fn measure(&self) -> DiskUsage {
        let free = free_space(&self.dirs);
        let add = |mut usage, dir: &PathBuf| add_tree(dir, &mut usage, self.max).map(|()| usage);
        let usage = self.dirs.iter().try_fold(DiskUsage::default(), add).unwrap_or(DiskUsage::UNKNOWN);
        *self.last() = Measurement { usage, free, at: Instant::now() };
        usage
    }
}

/// Returns what is free on the file system of the directories.
fn free_space(dirs: &[PathBuf]) -> Option<DiskUsage> {
    let stat = statvfs(dirs.first()?).ok()?;
    Some(DiskUsage { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), files: stat.f_favail })
}

/// Adds the files below a directory to the usage, until it exceeds `max`.
///
/// # Errors
/// Returns an error if a directory cannot be read, for example because it is nested too deeply.
fn add_tree(root: &Path, usage: &mut DiskUsage, max: DiskUsage) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags | OFlags::NOFOLLOW, Mode::empty())?;
    let mut pending = vec![PathBuf::from(".")];
    while let Some(dir) = pending.pop() {
        let opened = match open_beneath(&root, &dir, flags) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            opened => opened?,
        };
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            if usage.exceeds(max) {
                return Ok(());
            }
            usage.files += 1;
            usage.bytes = usage.bytes.saturating_add(stat.st_blocks.cast_unsigned() * BLOCK_BYTES);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push(dir.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Ok(())
}

/// Opens a directory below `root`, without following symbolic links, which a program in the sandbox could create in the meantime. Makes
/// a directory readable whose owner has made it unreadable.
fn open_beneath(root: &OwnedFd, dir: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(root, dir, flags, Mode::empty(), resolve) {
        Err(Errno::ACCESS) => {
            let path = openat2(root, dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
            let link = format!("/proc/self/fd/{}", path.as_raw_fd());
            fs::set_permissions(link, fs::Permissions::from_mode(0o700)).map_err(|_| Errno::ACCESS)?;
            openat2(root, dir, flags, Mode::empty(), resolve)
        }
        opened => opened,
    }
}

/// Returns the resident memory in bytes of a process and all its descendants. Memory that processes share is counted for each of
/// them, unless the result exceeds `max`: then it is divided between them.
pub(super) fn measure_memory(pid: u32, max: u64) -> u64 {
    let pids = descendants(pid);
    let resident: u64 = pids.iter().filter_map(|pid| read_kib(*pid, "status", "VmRSS:")).sum();
    if resident * 1024 <= max {
        return resident * 1024;
    }
    let proportional: u64 = pids.iter().filter_map(|pid| read_kib(*pid, "smaps_rollup", "Pss:")).sum();
    proportional * 1024
}

/// Returns a process and all its descendants. Processes that end in the meantime are left out.
fn descendants(pid: u32) -> HashSet<u32> {
    let (mut found, mut pending) = (HashSet::new(), vec![pid]);
    while let Some(pid) = pending.pop() {
        if !found.insert(pid) {
            continue;
        }
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            pending.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Reads a value in KiB from a file of `/proc/<pid>`. Returns `None` if the process has ended.
fn read_kib(pid: u32, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
