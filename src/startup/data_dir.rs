//! The data directory, and the lock that keeps other servers out of it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::config::Config;

/// The data directory of this server.
pub struct DataDir {
    pub path: PathBuf,
    _lock: Option<File>,
}

impl DataDir {
    /// Creates the directory if it does not exist, and locks it if the database or the objects are in it.
    ///
    /// # Errors
    /// It cannot be created, or another server uses it; the message says what to change.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let path = create_data_dir(config)?;
        let is_used = !config.database.is_external() || !config.s3.is_configured();
        let lock = is_used.then(|| lock(&path)).transpose()?;
        Ok(Self { path, _lock: lock })
    }
}

/// Creates the data directory. The embedded Postgres runs as another user and must be able to pass through it.
fn create_data_dir(config: &Config) -> anyhow::Result<PathBuf> {
    let dir = config.server.data_dir();
    let make = || -> io::Result<_> {
        let new = !dir.exists();
        fs::create_dir_all(&dir)?;
        if new {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        }
        fs::canonicalize(&dir)
    };
    make().with_context(|| {
        format!(
            "ACONTEXTD_DATA_DIR is {}, but that folder cannot be made: choose one that can, such as ~/acontextd-data",
            dir.display()
        )
    })
}

/// Locks the data directory for this process.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let file = fs::OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "ACONTEXTD_DATA_DIR is {}, but another acontextd uses that folder: stop it, or choose another folder",
            dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
