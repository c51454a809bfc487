//! Puts jobs on the queue, in the transaction that makes them necessary.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use super::{Job, WaitReason, store};
use crate::db::{Db, Tx};
use crate::encryption::jobs::JobKeys;
use crate::encryption::{Kek, ProjectEncryption};
use crate::error::{Error, Result};
use crate::telemetry;

/// When a job is due.
#[derive(Clone, Copy, Debug)]
pub struct Delay(Duration);

impl Delay {
    pub const NONE: Self = Self(Duration::ZERO);

    pub fn from_duration(duration: Duration) -> Self {
        Self(duration)
    }
}

/// The queue as producers see it; cheap to clone.
#[derive(Clone)]
pub struct JobQueue {
    keys: Arc<JobKeys>,
}

impl JobQueue {
    /// Jobs of encrypted projects are given the project's key, encrypted with a key that is derived from the pepper.
    ///
    /// # Errors
    /// Never in practice: the key has a valid length.
    pub fn new(pepper: &str) -> anyhow::Result<Self> {
        Ok(Self { keys: Arc::new(JobKeys::derive(pepper)?) })
    }

    /// Enqueues a job, with the project's key if it is encrypted. If an equal job (same kind and dedupe key) is waiting, that one
    /// becomes due at the earlier of the two times and is given the project's key if it has none, and nothing is added; a job that
    /// backs off after a failure keeps its time. Runners are woken when the transaction is committed.
    ///
    /// # Errors
    /// The database fails.
    pub async fn enqueue<J: Job>(
        &self,
        tx: &mut Tx,
        encryption: &ProjectEncryption,
        job: &J,
        delay: Delay,
    ) -> Result<()> {
        let payload = serde_json::to_value(job).map_err(Error::internal)?;
        let new = store::NewJob {
            kind: J::KIND,
            payload,
            lane: job.lane(),
            dedupe_key: job.dedupe_key(),
            delay: delay.0,
            encrypted_kek: self.wrap_key(encryption)?,
            traceparent: telemetry::current_traceparent(),
        };
        store::insert(tx, encryption.project, new).await?;
        tx.wake_on_commit();
        Ok(())
    }

    /// Returns the key that a job for this project is given; `None` if the project is not encrypted, or its key is not known.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn wrap_key(&self, encryption: &ProjectEncryption) -> anyhow::Result<Option<Vec<u8>>> {
        encryption.kek.as_ref().filter(|_| encryption.format.is_encrypted()).map(|kek| self.wrap_kek(kek)).transpose()
    }

    /// Encrypts a project's key for its jobs.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn wrap_kek(&self, kek: &Kek) -> anyhow::Result<Vec<u8>> {
        self.keys.seal(kek)
    }

    /// Gives the project's key to those of its jobs that wait for it. Costs next to nothing if none does.
    ///
    /// # Errors
    /// The database fails.
    pub async fn provide_key(&self, tx: &mut Tx, encryption: &ProjectEncryption) -> Result<()> {
        if let Some(key) = self.wrap_key(encryption)?
            && store::provide_key(tx, encryption.project, &key).await? > 0
        {
            tx.wake_on_commit();
        }
        Ok(())
    }

    /// As [`JobQueue::provide_key`], in a transaction of its own; needs no connection if the project is not encrypted.
    ///
    /// # Errors
    /// The database fails.
    pub async fn provide_key_now(&self, db: &Db, encryption: &ProjectEncryption) -> Result<()> {
        if !encryption.format.is_encrypted() || encryption.kek.is_none() {
            return Ok(());
        }
        let mut tx = db.begin_statement().await?;
        self.provide_key(&mut tx, encryption).await?;
        Ok(tx.commit().await?)
    }

    /// Makes the waiting job with the kind and dedupe key of `job` due now, whatever it waits for, and clears its last error.
    /// Returns `true` if there is one.
    ///
    /// # Errors
    /// The database fails.
    pub async fn make_due<J: Job>(&self, tx: &mut Tx, job: &J) -> sqlx::Result<bool> {
        self.make_job_due(tx, job, true).await
    }

    /// As [`JobQueue::make_due`], but the job keeps its last error and wait reason until it runs.
    ///
    /// # Errors
    /// The database fails.
    pub async fn make_due_with_error<J: Job>(&self, tx: &mut Tx, job: &J) -> sqlx::Result<bool> {
        self.make_job_due(tx, job, false).await
    }

    async fn make_job_due<J: Job>(&self, tx: &mut Tx, job: &J, clears_error: bool) -> sqlx::Result<bool> {
        let is_waiting = store::make_due(tx, J::KIND, job.dedupe_key().as_deref(), clears_error).await?;
        if is_waiting {
            tx.wake_on_commit();
        }
        Ok(is_waiting)
    }

    /// Makes all jobs of a kind due now that wait for this reason.
    ///
    /// # Errors
    /// The database fails.
    pub async fn make_all_due<J: Job>(&self, tx: &mut Tx, reason: WaitReason) -> sqlx::Result<()> {
        if store::make_all_due(tx, J::KIND, reason).await? > 0 {
            tx.wake_on_commit();
        }
        Ok(())
    }

    /// Finds a job with the kind and dedupe key of `job` that waits or runs; for one that waits, the inner value is why its last
    /// attempt failed.
    ///
    /// # Errors
    /// The database fails.
    pub async fn find<J: Job>(&self, conn: &mut PgConnection, job: &J) -> sqlx::Result<Option<Option<String>>> {
        store::find_unfinished(conn, J::KIND, job.dedupe_key().as_deref()).await
    }

    pub(super) fn keys(&self) -> &JobKeys {
        &self.keys
    }
}
