//! Rejects a pepper that differs from the one with which the database was set up.
//!
//! The lookup hashes of project keys, the signatures of public links, and the wrapped master keys in compact keys and in jobs
//! depend on the pepper. A process with another pepper would replace the key of the default project and reject the keys of all
//! other projects. The database therefore stores a digest of its pepper (`server_state`, name `pepper_digest`). Startup compares
//! the digest before it migrates the database or writes to it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;

use super::store::{self, PepperEvidence};
use crate::config::{Config, Keys, MIN_EXPOSED_SECRET_LEN, is_short_secret};
use crate::crypto::{self, ProjectKey};
use crate::db::server_state;
use crate::error::data_dir::describe_failure;

/// The name of the digest in `server_state`.
const PEPPER_DIGEST: &str = "pepper_digest";

/// The sources of the pepper of this process.
pub struct PepperSources {
    /// `ROOT_SECRET_PEPPER`.
    configured: Option<SecretString>,
    /// The content of the file `pepper` in the data directory, if there is one.
    from_file: Option<SecretString>,
    /// The path of this file.
    path: PathBuf,
}

impl PepperSources {
    /// Reads the file `pepper` in the data directory, if it exists. Writes nothing.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or is empty and no pepper is configured.
    pub fn load(configured: Option<SecretString>, data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join("pepper");
        let from_file = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(describe_failure(&error, "read", &path, data_dir)),
        };
        if from_file.as_ref().is_some_and(|text| text.trim().is_empty()) && configured.is_none() {
            bail!("{} is empty: restore the file from your backup", path.display());
        }
        Ok(Self { configured, from_file: from_file.map(|text| text.trim().into()), path })
    }

    /// Returns the configured pepper, or else the pepper from the file, after verifying that the database was set up with it. If
    /// there is neither, and the database is not set up yet, generates a pepper and stores it in the data directory.
    ///
    /// If the server listens on an address that other machines can reach, a short pepper is rejected for a database that is not
    /// set up yet. For a database that was set up with it, a warning is logged, because the pepper cannot be changed.
    ///
    /// # Errors
    /// Returns an error with instructions for the operator if the pepper is missing, differs from the one with which the
    /// database was set up, cannot be verified, or is too short.
    pub async fn resolve(self, conn: &mut PgConnection, config: &Config) -> anyhow::Result<SecretString> {
        let keys = &config.keys;
        let evidence = store::get_pepper_evidence(conn, PEPPER_DIGEST).await?;
        let Some(pepper) = self.configured.as_ref().or(self.from_file.as_ref()) else {
            if evidence.is_some_and(|evidence| evidence.is_set_up()) {
                bail!(
                    "{} is missing, but the database was set up with a pepper and its project keys do not work \
                     without it: restore the file from your backup, or set ROOT_SECRET_PEPPER to its content",
                    self.path.display()
                );
            }
            return generate_and_store(&self.path);
        };
        // Without evidence, the database has no tables yet.
        if let Some(evidence) = &evidence {
            match compare(evidence, pepper, keys) {
                Verdict::Same => {}
                Verdict::Different => bail!(self.explain_difference(evidence, keys)),
                Verdict::Unknown => bail!(UNVERIFIED_MSG),
            }
        }
        if config.server.is_exposed() && is_short_secret(pepper.expose_secret()) {
            self.report_short_pepper(evidence.is_some_and(|evidence| evidence.is_set_up()))?;
        }
        Ok(pepper.clone())
    }

    /// Logs a warning for a short pepper if the database was set up with it, because the pepper cannot be changed then.
    ///
    /// # Errors
    /// Returns an error with a remedy if the database is not set up yet.
    fn report_short_pepper(&self, is_set_up: bool) -> anyhow::Result<()> {
        let path = self.path.display();
        let (source, remedy) = match self.configured {
            Some(_) => (
                "ROOT_SECRET_PEPPER".to_owned(),
                "set it to a long random text (generate one with openssl rand -hex 32)".to_owned(),
            ),
            None => {
                (format!("the pepper in {path}"), "delete that file, so that startup generates a pepper".to_owned())
            }
        };
        if !is_set_up {
            bail!(
                "{source} has fewer than {MIN_EXPOSED_SECRET_LEN} characters and can never be changed after the first \
                 start, but the server listens on an address other than loopback: {remedy}"
            );
        }
        tracing::warn!(
            "{source} has fewer than {MIN_EXPOSED_SECRET_LEN} characters, so an attacker may guess it, and it cannot be \
             changed, because the keys of this database depend on it: listen on a loopback address, or set up a new \
             database with a long random pepper and move the data there"
        );
        Ok(())
    }

    /// Returns the error message for a pepper that is not that of the database.
    fn explain_difference(&self, evidence: &PepperEvidence, keys: &Keys) -> String {
        let path = self.path.display();
        let is_correct = |pepper: &SecretString| matches!(compare(evidence, pepper, keys), Verdict::Same);
        match (&self.configured, &self.from_file) {
            (Some(_), Some(from_file)) if is_correct(from_file) => format!(
                "ROOT_SECRET_PEPPER is not the pepper that this database was set up with, but {path} contains it: \
                 unset ROOT_SECRET_PEPPER, or set it to the content of that file"
            ),
            (Some(_), _) => {
                "ROOT_SECRET_PEPPER is not the pepper that this database was set up with, and no project key would \
                 work: set it to the previous value, or connect to the database that belongs to this pepper"
                    .into()
            }
            _ => format!(
                "{path} does not contain the pepper that this database was set up with, and no project key would \
                 work: restore the file from your backup, or set ROOT_SECRET_PEPPER to the previous pepper"
            ),
        }
    }
}

const UNVERIFIED_MSG: &str = "cannot verify the pepper: the database was set up by a version that did not record it, \
     and ROOT_API_BEARER_TOKEN is not the token that was applied last with this pepper. Start once with the previous \
     ROOT_API_BEARER_TOKEN and ROOT_SECRET_PEPPER. You can change the token at the next start";

/// The result of comparing a pepper with the database.
enum Verdict {
    Same,
    Different,
    /// The database has projects but no digest, and the lookup hash of the root token under this pepper is neither that of the
    /// default project's key nor that of the token that was applied last. The pepper or the token is another one.
    Unknown,
}

/// Compares a pepper with the database.
fn compare(evidence: &PepperEvidence, pepper: &SecretString, keys: &Keys) -> Verdict {
    let pepper = pepper.expose_secret();
    if let Some(digest) = &evidence.digest {
        let is_same = crypto::constant_time_eq(digest, &crypto::pepper_digest(pepper));
        return if is_same { Verdict::Same } else { Verdict::Different };
    }
    let lookup_hash = ProjectKey::parse(keys.root_token.expose_secret()).lookup_hash(pepper);
    let is_same = !evidence.has_projects || evidence.root_lookup_hashes.contains(&lookup_hash);
    if is_same { Verdict::Same } else { Verdict::Unknown }
}

/// Records the digest of the pepper in the transaction that sets up the default project. The caller must hold the lock of this
/// setup, so that the first startups of two processes with different peppers cannot both succeed.
///
/// # Errors
/// Returns an error if the database fails, or if it has been set up with another pepper in the meantime.
pub async fn record(conn: &mut PgConnection, keys: &Keys) -> anyhow::Result<()> {
    let pepper = keys.pepper().into();
    let evidence = store::get_pepper_evidence(conn, PEPPER_DIGEST).await?;
    match evidence.map(|evidence| compare(&evidence, &pepper, keys)) {
        Some(Verdict::Different) => bail!(
            "ROOT_SECRET_PEPPER is not the pepper with which another process has set up this database: use the \
             same value for every process"
        ),
        Some(Verdict::Unknown) => bail!(UNVERIFIED_MSG),
        Some(Verdict::Same) | None => {}
    }
    Ok(server_state::set_state(conn, PEPPER_DIGEST, &crypto::pepper_digest(pepper.expose_secret())).await?)
}

/// Generates a pepper and stores it durably in a file.
fn generate_and_store(path: &Path) -> anyhow::Result<SecretString> {
    let pepper = crypto::generate_secret()?;
    let dir = path.parent().unwrap_or(path);
    let write = || -> io::Result<()> {
        let tmp = path.with_extension("new");
        let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(pepper.as_bytes())?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| describe_failure(&error, "write", path, dir))?;
    Ok(pepper.as_str().into())
}
