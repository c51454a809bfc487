//! What a sandbox uses of the disk. The kernel limits the size of each file. Their sum is measured here.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat, statvfs};
use rustix::io::Errno;

/// The unit of `st_blocks`.
pub(super) const BLOCK_BYTES: u64 = 512;
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
    /// More than any limit: for directories that are nested so deeply that they cannot be opened.
    const TOO_DEEP: Self = Self { bytes: u64::MAX, files: u64::MAX };

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
    /// Held during a measurement.
    measuring: Mutex<()>,
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
        let last = Measurement { usage: DiskUsage::default(), free: None, at: Instant::now() };
        Self { dirs, max, measuring: Mutex::new(()), last: Mutex::new(last) }
    }

    fn last(&self) -> MutexGuard<'_, Measurement> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last measured usage.
    pub(super) fn usage(&self) -> DiskUsage {
        self.last().usage
    }

    /// Returns the number of bytes that are free on the file system.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        free_space(&self.dirs).map(|free| free.bytes)
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
    ///
    /// If another thread is measuring, or if a measurement fails for a reason that is not in the files, returns the last usage.
    pub(super) fn measure(&self) -> DiskUsage {
        let Ok(_measuring) = self.measuring.try_lock() else { return self.usage() };
        let free = free_space(&self.dirs);
        let add = |mut usage, dir: &PathBuf| add_tree(dir, &mut usage, self.max).map(|()| usage);
        let usage = match self.dirs.iter().try_fold(DiskUsage::default(), add) {
            Ok(usage) => usage,
            Err(err) if err.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) => DiskUsage::TOO_DEEP,
            // The sandbox has ended.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return self.usage(),
            Err(err) => {
                tracing::warn!(error = %err, "cannot measure the files of a sandbox");
                return self.usage();
            }
        };
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
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
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

/// Opens a directory below `root`, without following symbolic links, which a program in the sandbox could create in the meantime. If
/// its owner has made it inaccessible, makes it accessible, because its files count, too.
fn open_beneath(root: &OwnedFd, dir: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = openat2(root, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let mode = fstat(&path)?.st_mode & 0o7777;
    // Root does not need the permissions.
    if mode & 0o500 != 0o500 && !rustix::process::geteuid().is_root() {
        // Not by its path, which a program in the sandbox could exchange.
        let link = format!("/proc/self/fd/{}", path.as_raw_fd());
        fs::set_permissions(&link, fs::Permissions::from_mode(mode | 0o500)).map_err(|_| Errno::ACCESS)?;
    }
    openat(&path, ".", flags, Mode::empty())
}
