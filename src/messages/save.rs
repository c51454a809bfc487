//! Stores messages. Most are stored in batches by the [`writer`]. A message with files, function results or an idempotency key, a long
//! one, and one that the writer does not take, is stored in a transaction of its own.

use futures_util::stream;

use super::incoming::{Draft, Ready};
use super::{Written, file_store, files, function_results, store, writer};
use crate::auth::Caller;
use crate::blob::ingest::Ingest;
use crate::encryption::ProjectEncryption;
use crate::error::Result;
use crate::http::idempotency::Idempotency;
use crate::http::response::HandlerError;
use crate::ids::SessionId;
use crate::messages::Messages;
use crate::sessions;
use crate::sessions::lock::LockedSession;
use files::AttachedFile;

/// Stores a message.
///
/// # Errors
/// 404 if the project has no such session. 400 for a part that names a file which the request does not contain, and for the result of a
/// call that is not pending.
pub async fn save(
    ctx: &Messages,
    caller: &Caller,
    idempotency: &Idempotency,
    session: SessionId,
    mut draft: Draft,
) -> Result<Written, HandlerError> {
    let files = files::attach_files(ctx, caller.project, &mut draft)?;
    if !files.is_empty() {
        // Before the files are stored.
        let mut conn = ctx.db.acquire().await?;
        if !sessions::store::exists(&mut conn, caller.project, session).await? {
            return Err(sessions::NOT_FOUND.into());
        }
    }
    let ready = draft.finish(ctx, caller, session).await?;
    if files.is_empty() && ready.results.is_empty() && !idempotency.has_key() {
        let message = ready.to_storage(ctx, &caller.encryption, caller.encryption.format).await?;
        if message.content.len() <= writer::LARGE
            && let Some(stored) = ctx.writer.store(message).await?
        {
            return Ok(Written { ready, stored, tx: None });
        }
    }
    // Boxed, so that the futures of most requests are small.
    Box::pin(save_in_transaction(ctx, &caller.encryption, idempotency, session, ready, &files)).await
}

async fn save_in_transaction(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    idempotency: &Idempotency,
    id: SessionId,
    ready: Ready,
    files: &[AttachedFile],
) -> Result<Written, HandlerError> {
    let buffer = (&ctx.config.learning).into();
    // Before the session is locked: encrypting a long message takes a while.
    let mut message = ready.to_storage(ctx, encryption, encryption.format).await?;
    let mut attempts = idempotency.attempts();
    // The first attempt does not wait for a transaction that has locked the session. Those that wait need a permit, so that they leave
    // connections to messages of other sessions.
    let mut waits = false;
    let mut contents = ingest(ctx, encryption, files).await?;
    loop {
        let mut tx = attempts.begin().await?;
        let Some(blobs) = contents.claim(&mut tx).await? else {
            tx.rollback().await?;
            contents = ingest(ctx, encryption, files).await?;
            continue;
        };
        let locked = if waits {
            Some(LockedSession::lock_to_store(&mut tx, encryption.project, id).await?.ok_or(sessions::NOT_FOUND)?)
        } else {
            LockedSession::try_lock_to_store(&mut tx, encryption.project, id).await?
        };
        let Some((format, mut session)) = locked else {
            tx.rollback().await?;
            waits = true;
            attempts.limit(&ctx.direct_store_permits);
            continue;
        };
        let with_call_ids = function_results::match_calls(&mut session, ctx, encryption, &ready).await?;
        if with_call_ids.is_some() || message.storage_format() != format {
            message = with_call_ids.as_ref().unwrap_or(&ready).to_storage(ctx, encryption, format).await?;
        }
        let stored = match store::insert_one(&mut session, &message, buffer).await {
            Ok(stored) => stored,
            // The writer stored it before its connection was lost.
            Err(err) if store::is_duplicate_id(&err) => {
                tx.rollback().await?;
                let mut conn = ctx.db.acquire().await?;
                let stored = store::find_inserted(&mut conn, &[message.id]).await?.pop().flatten();
                return Ok(Written { ready, stored: stored.ok_or(sessions::NOT_FOUND)?, tx: None });
            }
            Err(err) => return Err(err.into()),
        };
        for file in files {
            file_store::insert_file(&mut session, message.id, &file.row(&blobs)?).await?;
        }
        let ready = with_call_ids.unwrap_or(ready);
        return Ok(Written { ready, stored, tx: tx.commit_if_unkeyed().await? });
    }
}

async fn ingest(ctx: &Messages, encryption: &ProjectEncryption, files: &[AttachedFile]) -> Result<Ingest> {
    let contents: Vec<_> = files.iter().map(|file| file.upload.content.clone()).collect();
    ctx.blobs.ingest(encryption, stream::iter(contents)).await
}
