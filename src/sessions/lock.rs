//! The lock of a session. The order of all locks is in `docs/architecture.md`.

use std::ops::{Deref, DerefMut};

use chrono::{DateTime, Utc};

use crate::db::Tx;
use crate::encryption::StorageFormat;
use crate::ids::{ProjectId, SessionId};

/// A session that this transaction has locked. Until the transaction ends, no other transaction can store or observe
/// messages of the session or change its settings. Functions that depend on this take a `LockedSession` instead of a connection.
pub struct LockedSession<'t> {
    tx: &'t mut Tx,
    pub id: SessionId,
    pub project: ProjectId,
    /// Time of the newest message.
    pub last_message_at: Option<DateTime<Utc>>,
}

impl<'t> LockedSession<'t> {
    /// Locks a session. Waits while another transaction has locked it. Returns `None` if the project has no such session.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn lock(tx: &'t mut Tx, project: ProjectId, id: SessionId) -> sqlx::Result<Option<Self>> {
        let found = sqlx::query!(
            "select last_message_at from sessions where id = $1 and project_id = $2 for no key update",
            id as _,
            project as _
        )
        .fetch_optional(&mut **tx)
        .await?;
        Ok(found.map(|row| Self { tx, id, project, last_message_at: row.last_message_at }))
    }

    /// Locks a session to store content in it: first the project's storage format, then the session. Returns `None` if the
    /// project has no such session.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn lock_to_store(
        tx: &'t mut Tx,
        project: ProjectId,
        id: SessionId,
    ) -> sqlx::Result<Option<(StorageFormat, Self)>> {
        let Some(format) = StorageFormat::lock_for_share(tx, project).await? else { return Ok(None) };
        Ok(Self::lock(tx, project, id).await?.map(|session| (format, session)))
    }

    /// Locks a session to store content in it, without waiting for its lock. Returns `None` if another transaction has locked the
    /// session, or if the project has no such session. May still wait for the lock of the storage format.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn try_lock_to_store(
        tx: &'t mut Tx,
        project: ProjectId,
        id: SessionId,
    ) -> sqlx::Result<Option<(StorageFormat, Self)>> {
        let Some(format) = StorageFormat::lock_for_share(tx, project).await? else { return Ok(None) };
        let found = sqlx::query!(
            "select last_message_at from sessions where id = $1 and project_id = $2 for no key update skip locked",
            id as _,
            project as _
        )
        .fetch_optional(&mut **tx)
        .await?;
        Ok(found.map(|row| (format, Self { tx, id, project, last_message_at: row.last_message_at })))
    }
}

impl Deref for LockedSession<'_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        self.tx
    }
}

impl DerefMut for LockedSession<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.tx
    }
}
