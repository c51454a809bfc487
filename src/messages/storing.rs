//! Stores messages, in the form that their project wants: sealed or not.

use super::incoming::Ready;
use super::new_message::{InsertOutcome, NewMessage};
use super::store;
use super::{Written, writer};
use crate::encryption::Owner;
use crate::error::{Error, Result};
use crate::http::idempotency::Idempotency;
use crate::messages::Messages;
use crate::sessions;

/// How often a message is tried to be stored while the form changes that its project wants: at most twice, unless somebody turns
/// it back and forth.
pub(super) const FORM_TRIES: usize = 5;
pub(super) const CHANGING: Error = Error::Conflict(std::borrow::Cow::Borrowed(
    "the project is encrypted and decrypted at once; try again in a moment",
));

/// Stores a message.
pub async fn store(ctx: &Messages, owner: &Owner, ready: Ready) -> Result<Written> {
    let mut sealed = owner.encrypted;
    for _ in 0..FORM_TRIES {
        let message = ready.in_form(ctx, owner, sealed).await?;
        if message.content.len() <= writer::LARGE
            && let Some(stored) = ctx.writer.store(message.clone()).await?
        {
            return Ok(Written { ready, stored, tx: None });
        }
        match Box::pin(store_waiting(ctx, &message)).await? {
            InsertOutcome::Inserted(stored) => return Ok(Written { ready, stored, tx: None }),
            InsertOutcome::SessionNotFound => return Err(sessions::NOT_FOUND),
            InsertOutcome::EncryptionChanged => sealed = !sealed,
        }
    }
    Err(CHANGING)
}

async fn store_waiting(ctx: &Messages, message: &NewMessage) -> Result<InsertOutcome> {
    let buffer = (&ctx.config.learning).into();
    // Those who wait for a session that is held up must leave connections to the others.
    let _turn = ctx.direct_store_permits.acquire().await.map_err(Error::internal)?;
    let mut tx = ctx.db.begin().await?;
    match store::insert_one(&mut tx, message, buffer).await {
        Ok(outcome) => {
            tx.commit().await?;
            Ok(outcome)
        }
        // A try before this one has stored it.
        Err(fault) if store::is_there(&fault) => {
            tx.rollback().await?;
            let mut conn = ctx.db.acquire().await?;
            let stored = store::get_stored(&mut conn, &[message.id]).await?.pop().flatten();
            Ok(stored.map_or(InsertOutcome::SessionNotFound, InsertOutcome::Inserted))
        }
        // Whatever stands there by now, a part of a long message perhaps, goes with the transaction.
        Err(fault) => Err(fault.into()),
    }
}

/// Stores a message in the transaction that its answer is kept in.
pub async fn store_once(ctx: &Messages, idempotency: &Idempotency, owner: &Owner, ready: Ready) -> Result<Written> {
    let buffer = (&ctx.config.learning).into();
    let mut sealed = owner.encrypted;
    for _ in 0..FORM_TRIES {
        let message = ready.in_form(ctx, owner, sealed).await?;
        if message.content.len() <= writer::LARGE {
            let mut tx = idempotency.begin().await?;
            let mut stored = store::insert(&mut tx, std::slice::from_ref(&message), buffer).await?;
            if let Some(stored) = stored.pop().flatten() {
                return Ok(Written { ready, stored, tx: Some(tx) });
            }
            tx.rollback().await?;
        }
        // As above: those who wait must leave connections to the others.
        let _turn = ctx.direct_store_permits.acquire().await.map_err(Error::internal)?;
        let mut tx = idempotency.begin().await?;
        match store::insert_one(&mut tx, &message, buffer).await? {
            InsertOutcome::Inserted(stored) => return Ok(Written { ready, stored, tx: Some(tx) }),
            InsertOutcome::SessionNotFound => return Err(sessions::NOT_FOUND),
            InsertOutcome::EncryptionChanged => sealed = !sealed,
        }
        tx.rollback().await?;
    }
    Err(CHANGING)
}
