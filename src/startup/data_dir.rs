//! The data directory and its lock, which prevents a second server from using it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::config::Config;
use crate::error::data_dir::describe_failure;

/// The data directory of this server. It stays locked until this value is dropped.
pub struct DataDir {
    pub path: PathBuf,
    _lock: Option<File>,
}

impl DataDir {
    /// Creates the directory if it does not exist, and locks it if it contains the database or the objects.
    ///
    /// # Errors
    /// Returns an error with a remedy if the directory cannot be created or another server uses it.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let path = create_data_dir(config)?;
        let contains_data = !config.database.is_external() || !config.s3.is_configured();
        let lock = contains_data.then(|| lock_dir(&path)).transpose()?;
        Ok(Self { path, _lock: lock })
    }
}

/// Creates the data directory if it does not exist. A new directory gets mode 0711, because the embedded Postgres may run as
/// another user, which must be able to traverse it.
fn create_data_dir(config: &Config) -> anyhow::Result<PathBuf> {
    let dir = config.server.data_dir();
    let create = || -> io::Result<_> {
        let is_new = !dir.exists();
        fs::create_dir_all(&dir)?;
        if is_new {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        }
        fs::canonicalize(&dir)
    };
    create().map_err(|error| describe_failure(&error, "create", &dir, &dir))
}

/// Locks the data directory for this process.
fn lock_dir(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let file = fs::OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| describe_failure(&error, "open", &path, dir))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "ACONTEXTD_DATA_DIR is {}, but another acontextd uses that directory: stop it, or choose another directory",
            dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(describe_failure(&error, "lock", &path, dir)),
    }
}
