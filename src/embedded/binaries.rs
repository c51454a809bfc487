//! Finds the Postgres server binaries on this machine, and the user to run them as.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::process::geteuid;

use crate::error::data_dir::describe_failure;

/// Returns the directory of the server binaries. Uses the configured directory if there is one. Otherwise searches Debian's
/// directories, where it prefers the version that created the data (`data_version`), and then the newest version. Searches
/// `PATH` last.
pub(super) fn find_binaries(configured: Option<&Path>, data_version: &str) -> anyhow::Result<PathBuf> {
    let has_binaries = |dir: &Path| ["initdb", "postgres"].iter().all(|name| dir.join(name).is_file());
    if let Some(dir) = configured {
        if has_binaries(dir) {
            return Ok(dir.to_owned());
        }
        bail!(
            "ACONTEXTD_POSTGRES_BIN is {}, but that directory does not contain initdb and postgres: set it to a \
             directory such as /usr/lib/postgresql/15/bin",
            dir.display()
        );
    }
    let rank = |dir: &PathBuf| {
        let name = dir.file_name()?.to_str()?;
        Some((name == data_version, name.parse::<u32>().ok()?))
    };
    let debian_dirs = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let best = debian_dirs.filter(|dir| has_binaries(&dir.join("bin"))).max_by_key(rank);
    let find_on_path = || search_path().into_iter().find(|dir| has_binaries(dir));
    best.map(|dir| dir.join("bin")).or_else(find_on_path).ok_or_else(|| {
        anyhow!(
            "no Postgres server binaries found: install them (apt-get install postgresql), set ACONTEXTD_POSTGRES_BIN \
             to their directory, or set DATABASE_URL to use an external Postgres"
        )
    })
}

#[expect(clippy::disallowed_methods, reason = "PATH is not a setting of the server")]
fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// A Unix user. If the server runs as root, it runs Postgres as this user.
pub(super) struct PostgresUser {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl PostgresUser {
    /// Checks that this user can traverse a directory and all its ancestors.
    pub(super) fn check_traversable(&self, dir: &Path) -> anyhow::Result<()> {
        for ancestor in dir.ancestors() {
            let metadata = fs::metadata(ancestor).map_err(|error| describe_failure(&error, "read", ancestor, dir))?;
            let (mode, owner, group) = (metadata.mode(), metadata.uid(), metadata.gid());
            let execute_bit = if owner == self.uid {
                mode & 0o100
            } else if group == self.gid {
                mode & 0o010
            } else {
                mode & 0o001
            };
            if execute_bit == 0 {
                bail!(
                    "ACONTEXTD_DATA_DIR is {}, but the user {}, which Postgres runs as, cannot traverse {}: choose a \
                     directory that this user can access, such as /var/lib/acontextd",
                    dir.display(),
                    self.name,
                    ancestor.display()
                );
            }
        }
        Ok(())
    }

    /// Returns the user `postgres`, which Debian's package creates, otherwise `nobody`. Returns `None` if the server does
    /// not run as root.
    pub(super) fn find() -> anyhow::Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let find_user = |name: &str| {
            let mut fields = users.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Self { name: name.to_owned(), uid, gid })
        };
        let user = find_user("postgres").or_else(|| find_user("nobody"));
        user.map(Some).ok_or_else(|| {
            anyhow!(
                "Postgres cannot run as root, and the users postgres and nobody do not exist: create the user \
                 postgres, or start acontextd as another user"
            )
        })
    }
}
