//! What is on this machine to run a Postgres with: its server programs, and the user that they run as.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::process::geteuid;

/// The folder of the server programs.
pub(super) fn find_programs(configured: Option<&Path>) -> anyhow::Result<PathBuf> {
    let complete = |folder: &Path| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file());
    if let Some(folder) = configured {
        if complete(folder) {
            return Ok(folder.to_owned());
        }
        bail!(
            "ACONTEXTD_POSTGRES_BIN is {}, but initdb and postgres are not in it: set it to a folder like \
             /usr/lib/postgresql/15/bin",
            folder.display()
        );
    }
    let version = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = debian.filter(|folder| complete(&folder.join("bin"))).max_by_key(version);
    let on_path = || search_path().into_iter().find(|folder| complete(folder));
    newest.map(|folder| folder.join("bin")).or_else(on_path).ok_or_else(|| {
        anyhow!(
            "no Postgres server programs were found: install them (apt-get install postgresql), name their folder in \
             ACONTEXTD_POSTGRES_BIN, or set DATABASE_URL to a Postgres of yours"
        )
    })
}

#[expect(clippy::disallowed_methods, reason = "PATH is no setting of ours")]
fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Who runs it, if not we ourselves.
pub(super) struct RunAs {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl RunAs {
    /// `postgres`, which the package makes, or else nobody.
    pub(super) fn find() -> anyhow::Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("/etc/passwd cannot be read")?;
        let user = |name: &str| {
            let mut fields = users.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Self { name: name.to_owned(), uid, gid })
        };
        let found = user("postgres").or_else(|| user("nobody"));
        found
            .map(Some)
            .ok_or_else(|| anyhow!("Postgres does not run as root, and there is no user postgres to run it as"))
    }
}
