//! Stores messages. The [`writer`] stores most of them in batches. A message is stored in its own transaction if it has files or
//! function
//! responses without call ids, if the request has an idempotency key, if it is large, or if the writer rejects it.

use futures_util::stream;

use super::request::{ParsedMessage, PreparedMessage};
use super::{StoredMessage, file_store, files, function_results, store, writer};
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
/// Returns 404 if the project has no such session, and 400 if a part refers to a file that the request does not contain.
pub async fn save(
    ctx: &Messages,
    caller: &Caller,
    idempotency: &Idempotency,
    session: SessionId,
    mut parsed: ParsedMessage,
) -> Result<StoredMessage, HandlerError> {
    let files = files::attach_files(ctx, caller.project, &mut parsed)?;
    if !files.is_empty() {
        // Check that the session exists before the files are uploaded to the object store.
        let mut conn = ctx.db.acquire().await?;
        if !sessions::store::exists(&mut conn, caller.project, session).await? {
            return Err(sessions::SESSION_NOT_FOUND.into());
        }
    }
    let prepared = parsed.prepare(ctx, caller, session).await?;
    if files.is_empty() && !prepared.needs_call_ids() && !idempotency.has_key() {
        let message = prepared.to_storage(ctx, &caller.encryption, caller.encryption.format).await?;
        if message.content.len() <= writer::MAX_BATCHED_MESSAGE_BYTES
            && let Some(inserted) = ctx.writer.store(message).await?
        {
            return Ok(StoredMessage { prepared, inserted, tx: None });
        }
    }
    // Boxed to keep the futures of other requests small.
    Box::pin(save_in_transaction(ctx, &caller.encryption, idempotency, session, prepared, &files)).await
}

async fn save_in_transaction(
    ctx: &Messages,
    encryption: &ProjectEncryption,
    idempotency: &Idempotency,
    id: SessionId,
    prepared: PreparedMessage,
    files: &[AttachedFile],
) -> Result<StoredMessage, HandlerError> {
    let buffer = (&ctx.config.learning).into();
    // Encrypt before the session is locked, because encrypting a long message takes time.
    let mut message = prepared.to_storage(ctx, encryption, encryption.format).await?;
    let mut attempts = idempotency.tx_attempts();
    // The first attempt does not wait if another transaction has locked the session. Later attempts wait, and need a permit, so
    // that they cannot use up the connections.
    let mut wait_for_lock = false;
    let mut uploads = ingest_files(ctx, encryption, files).await?;
    loop {
        let mut tx = attempts.begin().await?;
        let Some(blobs) = uploads.make_live(&mut tx).await? else {
            // A concurrent change, such as a sweep, has made the uploads unusable.
            tx.rollback().await?;
            uploads = ingest_files(ctx, encryption, files).await?;
            continue;
        };
        let locked = if wait_for_lock {
            let locked = LockedSession::lock_to_store(&mut tx, encryption.project, id).await?;
            Some(locked.ok_or(sessions::SESSION_NOT_FOUND)?)
        } else {
            LockedSession::try_lock_to_store(&mut tx, encryption.project, id).await?
        };
        let Some((format, mut session)) = locked else {
            tx.rollback().await?;
            wait_for_lock = true;
            attempts.limit_concurrency(&ctx.lock_wait_permits);
            continue;
        };
        let with_call_ids = function_results::match_calls(&mut session, ctx, encryption, &prepared).await?;
        if with_call_ids.is_some() || message.storage_format() != format {
            message = with_call_ids.as_ref().unwrap_or(&prepared).to_storage(ctx, encryption, format).await?;
        }
        let inserted = match store::insert_one(&mut session, &message, buffer).await {
            Ok(inserted) => inserted,
            // The writer has stored the message although it lost its connection.
            Err(err) if store::is_duplicate_id(&err) => {
                tx.rollback().await?;
                let mut conn = ctx.db.acquire().await?;
                let inserted = store::find_inserted(&mut conn, &[message.id]).await?.pop().flatten();
                let inserted = inserted.ok_or(sessions::SESSION_NOT_FOUND)?;
                return Ok(StoredMessage { prepared, inserted, tx: None });
            }
            Err(err) => return Err(err.into()),
        };
        for file in files {
            file_store::insert_file(&mut session, message.id, &file.row(&blobs)?).await?;
        }
        let prepared = with_call_ids.unwrap_or(prepared);
        return Ok(StoredMessage { prepared, inserted, tx: tx.commit_if_no_key().await? });
    }
}

async fn ingest_files(ctx: &Messages, encryption: &ProjectEncryption, files: &[AttachedFile]) -> Result<Ingest> {
    let contents: Vec<_> = files.iter().map(|file| file.upload.content.clone()).collect();
    ctx.blobs.ingest(encryption, stream::iter(contents)).await
}
