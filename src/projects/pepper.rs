//! Refuses a pepper other than the one that the database was set up with.
//!
//! Project keys are found, and links and job keys are made, with keys derived from the pepper. A process with another pepper would
//! take over the key of the default project and reject all other keys. The database therefore keeps a keyed digest of its pepper
//! (`server_state`, name `pepper_digest`), which startup compares before it writes anything, migrations included.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;

use super::store::{self, PepperEvidence};
use crate::config::Keys;
use crate::crypto::{self, ProjectKey};
use crate::db::server_state;

/// The name of the digest in `server_state`.
const DIGEST: &str = "pepper_digest";

/// Where the pepper of this process comes from.
pub struct Pepper {
    /// `ROOT_SECRET_PEPPER`.
    configured: Option<SecretString>,
    /// The content of the file `pepper` in the data directory, if there is one.
    kept: Option<SecretString>,
    path: PathBuf,
}

impl Pepper {
    /// Reads the file in the data directory, and writes nothing.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is empty.
    pub fn load(configured: Option<SecretString>, data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join("pepper");
        let kept = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context(format!("cannot read {}", path.display())),
        };
        if kept.as_ref().is_some_and(|text| text.trim().is_empty()) && configured.is_none() {
            bail!("{} is empty: restore the file from your backup", path.display());
        }
        Ok(Self { configured, kept: kept.map(|text| text.trim().into()), path })
    }

    /// Returns the pepper of this database. Generates one, and stores it in the data directory, if the database has no project
    /// yet and none is configured.
    ///
    /// # Errors
    /// Returns a sentence for the operator if the pepper is another one than the database was set up with, is missing, or
    /// cannot be verified.
    pub async fn resolve(self, conn: &mut PgConnection, keys: &Keys) -> anyhow::Result<SecretString> {
        let evidence = store::get_pepper_evidence(conn, DIGEST).await?;
        let Some(pepper) = self.configured.as_ref().or(self.kept.as_ref()) else {
            if evidence.is_some_and(|evidence| evidence.is_set_up()) {
                bail!(
                    "{} is missing, but the database was set up with a pepper and its project keys do not work without it: \
                     restore the file from your backup, or set ROOT_SECRET_PEPPER to its content",
                    self.path.display()
                );
            }
            return generate(&self.path);
        };
        // Without tables there is nothing to compare with.
        let Some(evidence) = evidence else { return Ok(pepper.clone()) };
        match compare(&evidence, pepper, keys) {
            Verdict::Same => Ok(pepper.clone()),
            Verdict::Different => bail!(self.explain_difference(&evidence, keys)),
            Verdict::Unknown => bail!(UNVERIFIED),
        }
    }

    fn explain_difference(&self, evidence: &PepperEvidence, keys: &Keys) -> String {
        let path = self.path.display();
        let is_right = |pepper: &SecretString| matches!(compare(evidence, pepper, keys), Verdict::Same);
        match (&self.configured, &self.kept) {
            (Some(_), Some(kept)) if is_right(kept) => format!(
                "ROOT_SECRET_PEPPER is not the pepper that this database was set up with, but {path} contains it: unset \
                 ROOT_SECRET_PEPPER, or set it to the content of that file"
            ),
            (Some(_), _) => {
                "ROOT_SECRET_PEPPER is not the pepper that this database was set up with, and no project key would \
                             work: set it to the former value, or connect to the database that belongs to this pepper"
                    .into()
            }
            _ => format!(
                "{path} does not contain the pepper that this database was set up with, and no project key would work: restore \
                 the file from your backup, or set ROOT_SECRET_PEPPER to the former pepper"
            ),
        }
    }
}

const UNVERIFIED: &str = "cannot verify that this is the pepper that the database was set up with, because the database comes from a version that did \
     not record it and ROOT_API_BEARER_TOKEN is not the token that was last applied with this pepper: start once with the former \
     ROOT_API_BEARER_TOKEN and ROOT_SECRET_PEPPER; the token can be changed at the next start";

/// The result of comparing a pepper with the database.
enum Verdict {
    Same,
    Different,
    /// The database has projects but no digest, and the configured root token finds none of them.
    Unknown,
}

fn compare(evidence: &PepperEvidence, pepper: &SecretString, keys: &Keys) -> Verdict {
    let pepper = pepper.expose_secret();
    if let Some(digest) = &evidence.digest {
        let is_same = crypto::same(digest, &crypto::pepper_digest(pepper));
        return if is_same { Verdict::Same } else { Verdict::Different };
    }
    let lookup = ProjectKey::parse(keys.root_token.expose_secret()).lookup(pepper);
    if !evidence.has_projects || evidence.root_lookups.contains(&lookup) { Verdict::Same } else { Verdict::Unknown }
}

/// Records the digest of the pepper, in the transaction that sets up the default project and under its lock, so that two first
/// starts with different peppers cannot both succeed.
///
/// # Errors
/// Returns an error if the database fails, or has another pepper in the meantime.
pub async fn record(conn: &mut PgConnection, keys: &Keys) -> anyhow::Result<()> {
    let pepper = keys.pepper().into();
    let evidence = store::get_pepper_evidence(conn, DIGEST).await?;
    match evidence.map(|evidence| compare(&evidence, &pepper, keys)) {
        Some(Verdict::Different) => bail!(
            "ROOT_SECRET_PEPPER is not the pepper that another process has set up this database with: use the same value for \
             every process"
        ),
        Some(Verdict::Unknown) => bail!(UNVERIFIED),
        Some(Verdict::Same) | None => {}
    }
    Ok(server_state::set_state(conn, DIGEST, &crypto::pepper_digest(pepper.expose_secret())).await?)
}

/// Generates a pepper and stores it durably.
fn generate(path: &Path) -> anyhow::Result<SecretString> {
    let store = || -> anyhow::Result<SecretString> {
        let pepper = crypto::random_secret()?;
        let temporary = path.with_extension("new");
        let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(pepper.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(path))?.sync_all()?;
        Ok(pepper.as_str().into())
    };
    store().with_context(|| format!("cannot write {}", path.display()))
}
