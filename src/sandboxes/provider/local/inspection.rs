//! What the kernel says about the processes of a program: their memory, and the files that only they keep.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::BLOCK_BYTES;
use crate::confine::process_tree::descendants;

/// The device number in `/proc/<pid>/maps` of memory that processes share without a file.
const SHARED_MEMORY_DEVICE: &str = "00:01";

/// The processes of a program.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    /// A thread of each process, by its directory in `/proc`. The first thread may have ended before the others.
    threads: Vec<PathBuf>,
    /// The resident memory in bytes, without shared memory. Pages of a file that several processes map are counted for each of them.
    resident: u64,
    /// The size in bytes of each shared mapping without a file, by its inode. It may be allocated although it is in the resident
    /// memory of no process.
    shared: HashMap<u64, u64>,
    /// The allocated bytes of each file that has no name any more.
    unlinked: HashMap<(u64, u64), u64>,
    /// The processes whose open files cannot be listed, because they execute a file that they may not read.
    pub(super) hidden: HashSet<u32>,
    /// `true` if a file without a name is mapped, and this process is not permitted to find out its size.
    pub(super) has_file_of_unknown_size: bool,
}

impl Inspection {
    /// Inspects a process and all its descendants. Processes that end in the meantime are left out.
    pub(super) fn new(root: u32) -> Self {
        let mut inspection = Self::default();
        for pid in descendants(root) {
            if let Err(err) = inspection.add(pid)
                && err.kind() == io::ErrorKind::PermissionDenied
                // It is a process of the isolation.
                && pid != root
            {
                inspection.hidden.insert(pid);
            }
        }
        inspection
    }

    /// Returns the memory in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.resident + self.shared.values().sum::<u64>()
    }

    /// Returns the memory in bytes. Pages of a file that several processes map are divided between them.
    pub(super) fn proportional_memory(&self) -> u64 {
        let proportional = |thread: &Path| -> Option<u64> {
            let text = fs::read_to_string(thread.join("smaps_rollup")).ok()?;
            Some(field(&text, "Pss_Anon:")? + field(&text, "Pss_File:")?)
        };
        let resident = self.threads.iter().filter_map(|thread| {
            let status = status(thread)?;
            // A server without the privilege to trace processes cannot read how the memory is divided.
            Some(proportional(thread).map_or_else(|| resident_kib(&status), |kib| kib + page_table_kib(&status)))
        });
        resident.sum::<u64>() * 1024 + self.shared.values().sum::<u64>()
    }

    /// Returns the allocated bytes of files that have no name any more.
    pub(super) fn unlinked(&self) -> u64 {
        self.unlinked.values().sum()
    }

    fn add(&mut self, pid: u32) -> io::Result<()> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().map(|thread| thread.path());
        let alive: Vec<_> = threads.filter_map(|thread| Some((status(&thread)?, thread))).collect();
        // They share their memory.
        if let Some((status, thread)) = alive.first() {
            self.resident += resident_kib(status) * 1024;
            self.add_maps(pid, &fs::read_to_string(thread.join("maps"))?);
            self.threads.push(thread.clone());
        }
        // They can have open files of their own.
        alive.iter().try_for_each(|(_, thread)| self.add_open_files(thread))
    }

    fn add_open_files(&mut self, thread: &Path) -> io::Result<()> {
        let open = match fs::read_dir(thread.join("fd")) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            open => open?,
        };
        for file in open.flatten().filter_map(|file| fs::metadata(file.path()).ok()) {
            if file.is_file() && file.nlink() == 0 {
                self.add_unlinked(&file);
            }
        }
        Ok(())
    }

    fn add_unlinked(&mut self, file: &fs::Metadata) {
        self.unlinked.insert((file.dev(), file.ino()), file.blocks().saturating_mul(BLOCK_BYTES));
    }

    /// Adds what a process has mapped: a line has the range of addresses, permissions, offset, device, inode and path.
    fn add_maps(&mut self, pid: u32, maps: &str) {
        for line in maps.lines().filter(|line| line.ends_with(" (deleted)")) {
            let mut columns = line.split_ascii_whitespace();
            let (Some(range), Some(device), Some(inode)) = (columns.next(), columns.nth(2), columns.next()) else {
                continue;
            };
            let (Some(size), Ok(inode)) = (range_len(range), inode.parse::<u64>()) else { continue };
            if device == SHARED_MEMORY_DEVICE {
                let known = self.shared.entry(inode).or_default();
                *known = size.max(*known);
            } else if let Ok(file) = fs::metadata(format!("/proc/{pid}/map_files/{range}")) {
                self.add_unlinked(&file);
            } else {
                self.has_file_of_unknown_size = true;
            }
        }
    }
}

fn range_len(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
}

/// Returns the status of a process or thread. `None` if it has ended.
fn status(process: &Path) -> Option<String> {
    fs::read_to_string(process.join("status")).ok().filter(|status| field(status, "VmRSS:").is_some())
}

/// Returns the resident memory in KiB without shared memory, with the page tables.
fn resident_kib(status: &str) -> u64 {
    let field = |name| field(status, name).unwrap_or_default();
    field("RssAnon:") + field("RssFile:") + page_table_kib(status)
}

/// Returns the size of the page tables in KiB. They can be larger than the memory that they map.
fn page_table_kib(status: &str) -> u64 {
    field(status, "VmPTE:").unwrap_or_default()
}

/// Returns the number in the line that begins with a name.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
