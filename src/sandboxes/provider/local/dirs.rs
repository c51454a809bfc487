//! The directories of sandboxes, also those that a server that was killed has left behind.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use crate::confine::SANDBOX_USERS;
use crate::ids::SandboxId;

/// The home directory in a sandbox.
pub(super) const HOME: &str = "/home/user";
/// The directory in which commands start.
pub(super) const WORKSPACE: &str = "/workspace";
/// The directories that commands can write to: the name in the directory of the sandbox, and the path in the sandbox.
const WRITABLE: [(&str, &str); 4] = [("workspace", WORKSPACE), ("skills", "/skills"), ("tmp", "/tmp"), ("home", HOME)];
/// The prefix of the directories of sandboxes that are being deleted.
const TRASH_PREFIX: &str = "ended-";
/// The file with the id of the directory.
const HOST_FILE: &str = "host-id";

/// The directory of all sandboxes of a server.
#[derive(Clone, Debug)]
pub(super) struct SandboxesDir(pub(super) PathBuf);

/// The directory of a sandbox.
#[derive(Clone, Debug)]
pub(super) struct SandboxDir(pub(super) PathBuf);

impl SandboxDir {
    /// Returns the writable directories with their paths in the sandbox.
    pub(super) fn writable(&self) -> impl Iterator<Item = (PathBuf, &'static str)> {
        WRITABLE.into_iter().map(|(name, path)| (self.0.join(name), path))
    }

    /// Returns the path on the machine of a path in a sandbox, if it is in a writable directory. Otherwise returns it as it is.
    pub(super) fn path_on_machine(&self, path: &str) -> String {
        let (mut writable, mut path) = (self.writable(), path.to_owned());
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        let found = writable.find_map(|(source, dir)| {
            let rest = path.strip_prefix(dir).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
            Some(format!("{}{rest}", source.display()))
        });
        found.unwrap_or(path)
    }

    /// Creates the directories. `user` is the user of the sandbox, if the server runs as root.
    ///
    /// # Errors
    /// Returns an error if a directory exists or cannot be created.
    pub(super) fn create(&self, user: Option<u32>) -> io::Result<()> {
        create_dir(&self.0, 0o711)?;
        for (path, _) in self.writable() {
            create_dir(&path, 0o700)?;
            if let Some(user) = user {
                chown(&path, Some(user), Some(user))?;
            }
        }
        Ok(())
    }
}

/// Creates a directory with a mode that does not depend on the umask.
fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// What is in the directory of the sandboxes.
#[derive(Default)]
pub(super) struct FoundDirs {
    /// The sandboxes, with the owner of their files.
    pub(super) sandboxes: HashMap<SandboxId, u32>,
    /// Sandboxes that are being created, or whose creation was interrupted.
    pub(super) incomplete: Vec<SandboxId>,
    /// Directories to delete.
    pub(super) trash: Vec<PathBuf>,
}

impl SandboxesDir {
    /// Creates the directory if it does not exist. `for_other_users` is `true` if other users must be able to traverse it, because the
    /// sandboxes have users of their own.
    ///
    /// # Errors
    /// Returns an error if it cannot be created.
    pub(super) fn create(&self, for_other_users: bool) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let mode = if for_other_users { 0o711 } else { 0o700 };
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode))
    }

    /// Returns whether this process can give a file to another user, which is what a sandbox with a user of its own requires. Root can
    /// do so, but not in a user namespace that does not have the user.
    ///
    /// # Errors
    /// Returns an error if no file can be created.
    pub(super) fn can_change_owner(&self, user: u32) -> io::Result<bool> {
        let file = self.0.join("owner-test");
        fs::write(&file, "")?;
        let changed = chown(&file, Some(user), Some(user)).is_ok();
        fs::remove_file(&file)?;
        Ok(changed)
    }

    /// Returns the id of this directory. Rows of the database refer to it, because only a server with this directory has the files
    /// of its sandboxes.
    ///
    /// # Errors
    /// Returns an error if the file with the id can be neither read nor created.
    pub(super) fn host_id(&self) -> anyhow::Result<Uuid> {
        let path = self.0.join(HOST_FILE);
        match fs::read_to_string(&path) {
            Ok(id) => id.trim().parse().with_context(|| format!("{} has no valid id", path.display())),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let id = Uuid::new_v4();
                // Renamed, so that an interruption leaves no empty file.
                let new = self.0.join(format!("{HOST_FILE}.new"));
                fs::write(&new, id.to_string())?;
                fs::rename(&new, &path)?;
                Ok(id)
            }
            Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(super) fn sandbox(&self, sandbox: SandboxId) -> SandboxDir {
        SandboxDir(self.0.join(sandbox.to_string()))
    }

    /// Lists the directories.
    ///
    /// # Errors
    /// Returns an error if they cannot be read.
    pub(super) fn find(&self) -> io::Result<FoundDirs> {
        let mut found = FoundDirs::default();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.starts_with(TRASH_PREFIX) {
                found.trash.push(path);
            } else if let Ok(sandbox) = name.parse::<SandboxId>() {
                // The last directory that `SandboxDir::create` creates.
                match fs::symlink_metadata(path.join("home")) {
                    Ok(metadata) => drop(found.sandboxes.insert(sandbox, metadata.uid())),
                    Err(_) => found.incomplete.push(sandbox),
                }
            }
        }
        Ok(found)
    }

    /// Renames the directory of a sandbox, which ends with that. Returns the new path; `None` if the directory does not exist.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be renamed.
    pub(super) fn move_to_trash(&self, sandbox: SandboxId) -> anyhow::Result<Option<PathBuf>> {
        let root = self.sandbox(sandbox).0;
        let trash = self.0.join(format!("{TRASH_PREFIX}{sandbox}"));
        match fs::rename(&root, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).with_context(|| format!("cannot rename {}", root.display())),
        }
    }

    /// Deletes the directory of a sandbox. Has no effect if it does not exist.
    ///
    /// # Errors
    /// Returns an error if something is left.
    pub(super) async fn remove(&self, sandbox: SandboxId) -> anyhow::Result<()> {
        match self.move_to_trash(sandbox)? {
            // If this is interrupted, `delete_trash` continues it.
            Some(trash) => delete_tree(&trash).await,
            None => Ok(()),
        }
    }

    /// Deletes the directories of sandboxes that have ended.
    ///
    /// # Errors
    /// Returns an error if something is left.
    pub(super) async fn delete_trash(&self) -> anyhow::Result<()> {
        let found = self.find().with_context(|| format!("cannot read {}", self.0.display()))?;
        let mut result = Ok(());
        for trash in &found.trash {
            result = delete_tree(trash).await.and(result);
        }
        result
    }

    /// Kills the processes of sandboxes that a killed server has started. They end with the server, but not if it is killed while they
    /// are starting.
    ///
    /// # Errors
    /// Returns an error if the processes cannot be listed.
    pub(super) fn kill_orphans(&self, sandboxes: &HashMap<SandboxId, u32>) -> io::Result<()> {
        let users: HashSet<u32> = sandboxes.values().copied().filter(|user| SANDBOX_USERS.contains(user)).collect();
        let dir = self.0.as_os_str().as_encoded_bytes();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let path = entry.path();
            let signal = if let Some(signal) = signal_if_starting(&path, dir) {
                signal
            } else if entry.metadata().is_ok_and(|metadata| users.contains(&metadata.uid()))
                || has_mounted(&path, sandboxes)
            {
                Signal::KILL
            } else {
                continue;
            };
            if let Some(pid) = Pid::from_raw(pid) {
                // An error means that it has ended.
                let _ = kill_process(pid, signal);
            }
        }
        Ok(())
    }
}

/// Returns the signal that ends a process, given by its directory in `/proc`, if it will execute a program in a sandbox below `dir`.
fn signal_if_starting(process: &Path, dir: &[u8]) -> Option<Signal> {
    let command_line = fs::read(process.join("cmdline")).ok()?;
    let mut arguments = command_line.split(|byte| *byte == 0);
    let is_bubblewrap = arguments.next().is_some_and(|program| program.ends_with(b"/bwrap"));
    let is_confined = arguments.next() == Some(crate::confine::SUBCOMMAND.as_bytes());
    // As an argument of bubblewrap, or as a text in the JSON of the subcommand.
    let is_path = |start: usize| {
        let before = start.checked_sub(1).and_then(|index| command_line.get(index));
        matches!(before, Some(0 | b'"')) && command_line.get(start + dir.len()) == Some(&b'/')
    };
    let is_of_dir = (is_bubblewrap || is_confined) && memchr::memmem::find_iter(&command_line, dir).any(is_path);
    let contains = |text: &[u8]| memchr::memmem::find(&command_line, text).is_some();
    // A supervisor that is killed would leave processes behind. The first process of a namespace ignores other signals.
    let is_supervisor = is_confined && contains(b"\"is_supervised\":false") && !contains(b"\"restriction\":null");
    is_of_dir.then_some(if is_supervisor { Signal::TERM } else { Signal::KILL })
}

/// Returns whether a process, given by its directory in `/proc`, is in one of these sandboxes. Unlike its command line, it cannot change
/// what is mounted.
fn has_mounted(process: &Path, sandboxes: &HashMap<SandboxId, u32>) -> bool {
    let Ok(mounts) = fs::read_to_string(process.join("mountinfo")) else { return false };
    // The fourth column is the directory that is mounted, and the fifth one where.
    let mut columns = mounts.lines().map(|line| line.split(' ').skip(3));
    columns.any(|mut columns| match (columns.next(), columns.next()) {
        (Some(source), Some(WORKSPACE)) => {
            source.split('/').any(|name| name.parse().is_ok_and(|id: SandboxId| sandboxes.contains_key(&id)))
        }
        _ => false,
    })
}

/// Deletes a directory with all its files, also those that their owner may not read.
///
/// # Errors
/// Returns an error with what `rm` has written if something is left.
pub(super) async fn delete_tree(dir: &Path) -> anyhow::Result<()> {
    // Not `std::fs::remove_dir_all`, which needs a file descriptor for each level of directories.
    let remove = || tokio::process::Command::new("rm").args(["-rf", "--"]).arg(dir).output();
    let mut output = remove().await.context("cannot run rm")?;
    if !output.status.success() {
        let mut chmod = tokio::process::Command::new("chmod");
        chmod.args(["-R", "u+rwX", "--"]).arg(dir).output().await.context("cannot run chmod")?;
        output = remove().await.context("cannot run rm")?;
    }
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    anyhow::bail!("cannot delete {}: {}", dir.display(), reason.lines().next().unwrap_or("unknown reason"))
}
