//! What is on this machine to run a Postgres with: its server programs, and the user that they run as.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::process::geteuid;

/// The folder of the server programs: the configured one, else the version that made the data, else the newest.
pub(super) fn find_programs(configured: Option<&Path>, made_with: &str) -> anyhow::Result<PathBuf> {
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
    let version = |folder: &PathBuf| {
        let name = folder.file_name()?.to_str()?;
        Some((name == made_with, name.parse::<u32>().ok()?))
    };
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
    /// Whether this user gets to a folder at all.
    pub(super) fn check_way_to(&self, folder: &Path) -> anyhow::Result<()> {
        for above in folder.ancestors() {
            let found = fs::metadata(above)?;
            let (mode, owner, group) = (found.mode(), found.uid(), found.gid());
            let may_pass = if owner == self.uid {
                mode & 0o100
            } else if group == self.gid {
                mode & 0o010
            } else {
                mode & 0o001
            };
            if may_pass == 0 {
                bail!(
                    "ACONTEXTD_DATA_DIR is {}, but the user {}, as which Postgres runs, may not pass through {}: choose a \
                     folder that it can reach, such as /var/lib/acontextd",
                    folder.display(),
                    self.name,
                    above.display()
                );
            }
        }
        Ok(())
    }

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
