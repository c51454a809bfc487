//! The job queue, for code that enqueues jobs. A job is enqueued in the transaction that makes the work necessary.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use super::store::{self, UnfinishedJob};
use super::{Job, WaitReason, list};
use crate::db::{Db, Tx};
use crate::encryption::job_keys::JobKeyWrapper;
use crate::encryption::{Kek, ProjectEncryption, StorageFormat};
use crate::error::{Error, Result};
use crate::ids::{JobId, ProjectId};
use crate::telemetry;

/// The delay until a job is due.
#[derive(Clone, Copy, Debug)]
pub struct Delay(Duration);

impl Delay {
    pub const NONE: Self = Self(Duration::ZERO);

    pub fn from_duration(duration: Duration) -> Self {
        Self(duration)
    }
}

/// The job queue, for code that enqueues jobs. A clone is cheap.
#[derive(Clone)]
pub struct JobQueue {
    key_wrapper: Arc<JobKeyWrapper>,
}

impl JobQueue {
    /// Creates the queue. Jobs of encrypted projects contain the project's master key, wrapped with a key that is derived
    /// from the pepper.
    ///
    /// # Errors
    /// Returns an error if key derivation fails, which cannot happen with the key length used.
    pub fn new(pepper: &str) -> anyhow::Result<Self> {
        Ok(Self { key_wrapper: Arc::new(JobKeyWrapper::derive(pepper)?) })
    }

    /// Enqueues a job, with the project's master key if the project is encrypted. The commit wakes the job runners.
    ///
    /// If a duplicate (same kind and dedupe key) is ready, no job is added. The duplicate gets the master key if it has none,
    /// and becomes due at the earlier of the two times. If it is in backoff after a failure, it keeps its time, unless it
    /// waited for the master key.
    ///
    /// # Errors
    /// Returns an error if the database fails.
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
            encrypted_kek: self.wrap_kek_if_encrypted(encryption)?,
            traceparent: telemetry::current_traceparent(),
        };
        store::insert(tx, encryption.project, new).await?;
        tx.wake_on_commit();
        Ok(())
    }

    /// Wraps the project's master key for a job. Returns `None` if the project is not encrypted or its master key is not
    /// known.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn wrap_kek_if_encrypted(&self, encryption: &ProjectEncryption) -> anyhow::Result<Option<Vec<u8>>> {
        encryption.kek.as_ref().filter(|_| encryption.format.is_encrypted()).map(|kek| self.wrap_kek(kek)).transpose()
    }

    /// Wraps a master key for a job of its project.
    ///
    /// # Errors
    /// Returns an error if the system's random number generator fails.
    pub fn wrap_kek(&self, kek: &Kek) -> anyhow::Result<Vec<u8>> {
        self.key_wrapper.wrap(kek)
    }

    /// Provides the project's master key to its jobs that wait for it, and makes these jobs due. If no job waits, this costs
    /// one index lookup.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn provide_key(&self, tx: &mut Tx, encryption: &ProjectEncryption) -> Result<()> {
        if let Some(key) = self.wrap_kek_if_encrypted(encryption)?
            && store::provide_key(tx, encryption.project, &key).await? > 0
        {
            tx.wake_on_commit();
        }
        Ok(())
    }

    /// Provides the project's master key as [`JobQueue::provide_key`] does, but without a transaction of the caller. Acquires
    /// no connection if the project is not encrypted or its master key is not known.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn provide_key_autocommit(&self, db: &Db, encryption: &ProjectEncryption) -> Result<()> {
        if !encryption.format.is_encrypted() || encryption.kek.is_none() {
            return Ok(());
        }
        let mut tx = db.begin_autocommit().await?;
        self.provide_key(&mut tx, encryption).await?;
        Ok(tx.commit().await?)
    }

    /// Makes the ready job with the kind and dedupe key of `job` due now, whatever its wait reason. Clears its wait reason and
    /// last error. Returns `true` if there is such a job.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn make_due<J: Job>(&self, tx: &mut Tx, job: &J) -> sqlx::Result<bool> {
        self.make_ready_job_due(tx, job, true).await
    }

    /// Makes the ready job with the kind and dedupe key of `job` due now, whatever its wait reason. Keeps its wait reason and
    /// last error. Returns `true` if there is such a job.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn make_due_keeping_error<J: Job>(&self, tx: &mut Tx, job: &J) -> sqlx::Result<bool> {
        self.make_ready_job_due(tx, job, false).await
    }

    async fn make_ready_job_due<J: Job>(&self, tx: &mut Tx, job: &J, clears_error: bool) -> sqlx::Result<bool> {
        let exists = store::make_due(tx, J::KIND, job.dedupe_key().as_deref(), clears_error).await?;
        if exists {
            tx.wake_on_commit();
        }
        Ok(exists)
    }

    /// Makes due all jobs, of all kinds and projects, that have this wait reason.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn make_all_due(&self, tx: &mut Tx, reason: WaitReason) -> sqlx::Result<()> {
        if store::make_all_due(tx, reason).await? > 0 {
            tx.wake_on_commit();
        }
        Ok(())
    }

    /// Finds the ready or running job with the kind and dedupe key of `job`. If there are two, returns the running one.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn find<J: Job>(&self, conn: &mut PgConnection, job: &J) -> sqlx::Result<Option<UnfinishedJob>> {
        store::find_unfinished(conn, J::KIND, job.dedupe_key().as_deref()).await
    }

    /// Deletes the failed jobs of a project with the kind and dedupe key of `job`, because a new job replaces them.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn delete_failed<J: Job>(
        &self,
        conn: &mut PgConnection,
        project: ProjectId,
        job: &J,
    ) -> sqlx::Result<()> {
        list::delete_failed(conn, project, J::KIND, job.dedupe_key().as_deref()).await
    }

    /// Returns the error of the newest failed job with the kind and dedupe key of `job`; `None` if there is no such job.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn find_last_error<J: Job>(
        &self,
        conn: &mut PgConnection,
        project: ProjectId,
        job: &J,
    ) -> sqlx::Result<Option<String>> {
        store::find_last_error(conn, project, J::KIND, job.dedupe_key().as_deref()).await
    }

    /// Returns the encryption of a job's project, with its master key if the job has it. A key that cannot be unwrapped counts as
    /// missing.
    pub(super) fn unwrap_kek(&self, job: JobId, project: ProjectId, wrapped: Option<&[u8]>) -> ProjectEncryption {
        let kek = wrapped.and_then(|wrapped| match self.key_wrapper.unwrap(project, wrapped) {
            Ok(kek) => Some(Arc::new(kek)),
            Err(err) => {
                tracing::error!(
                    job.id = %job, error = %err, "failed to unwrap the job's master key; the job runs without it"
                );
                None
            }
        });
        ProjectEncryption { project, format: StorageFormat::from_flag(kek.is_some()), kek }
    }
}
