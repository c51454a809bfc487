//! The end of sandboxes: those whose time is over, and what servers that were killed have left behind.

use std::collections::HashSet;

use chrono::Utc;
use uuid::Uuid;

use super::provider::ProviderError;
use super::store::{self, EndedSandbox};
use super::{Sandboxes, command_store};
use crate::db::Tx;
use crate::error::Result;
use crate::ids::{ProjectId, SandboxId};
use crate::time::Timestamp;
use crate::usage_metrics::store::{SANDBOX_ALIVE_TAG, increment};

/// The number of sandboxes that are ended in one transaction.
const BATCH_LEN: i64 = 100;
/// How much longer than its timeout a command may take before it counts as interrupted.
const INTERRUPTION_MARGIN: chrono::Duration = chrono::Duration::minutes(10);

/// Marks a running sandbox as ended, and corrects the metric of its life. Has no effect if it is not running.
pub(super) async fn mark_ended(tx: &mut Tx, project: ProjectId, sandbox: SandboxId) -> Result<()> {
    if let Some(grown) = store::end(tx, project, sandbox).await? {
        increment(tx, project, SANDBOX_ALIVE_TAG, grown).await?;
    }
    Ok(())
}

/// Records that a provider has ended a sandbox by itself.
pub(super) async fn record_end(ctx: &Sandboxes, project: ProjectId, sandbox: SandboxId) -> Result<()> {
    let mut tx = ctx.db.begin().await?;
    mark_ended(&mut tx, project, sandbox).await?;
    Ok(tx.commit().await?)
}

/// Deletes the row of a sandbox that could not be created.
pub(super) async fn discard(ctx: &Sandboxes, sandbox: SandboxId) -> Result<()> {
    let mut conn = ctx.db.acquire().await?;
    Ok(store::delete_starting(&mut conn, sandbox).await?)
}

/// Ends the sandboxes whose time is over, and those whose rows were deleted with their project. A periodic task.
///
/// # Errors
/// Returns an error if the database fails. A sandbox that the provider cannot end is logged, and ended by a later call.
pub async fn end_expired(ctx: Sandboxes) -> Result<()> {
    let host = match &ctx.provider {
        Some(provider) => match provider.host().await {
            // The provider has logged the reason. Without it, no sandbox of this machine can be ended.
            Err(ProviderError::Unavailable { .. }) => return Ok(()),
            host => host?,
        },
        None => None,
    };
    loop {
        let mut tx = ctx.db.begin().await?;
        let expired = store::end_expired(&mut tx, host, BATCH_LEN).await?;
        // In the order of the projects, so that two processes do not lock their metrics in opposite orders.
        let mut created: Vec<_> = expired.iter().filter(|ended| ended.provider_sandbox_id.is_some()).collect();
        created.sort_unstable_by_key(|ended| ended.project);
        for ended in created {
            increment(&mut tx, ended.project, SANDBOX_ALIVE_TAG, ended.grown).await?;
        }
        tx.commit().await?;
        for ended in &expired {
            end_in_provider(&ctx, ended).await;
        }
        if expired.is_empty() {
            break;
        }
    }
    end_orphaned(&ctx).await?;
    interrupt_lost_commands(&ctx, host).await
}

async fn end_in_provider(ctx: &Sandboxes, ended: &EndedSandbox) {
    let (Some(provider), Some(id)) = (&ctx.provider, &ended.provider_sandbox_id) else { return };
    if provider.name() != ended.provider {
        return;
    }
    if let Err(err) = provider.end(id).await {
        tracing::warn!(sandbox.id = %ended.id, error = %err, "the provider cannot end an expired sandbox");
    }
}

/// Ends the sandboxes that the provider has, but the database has not, or not any more.
async fn end_orphaned(ctx: &Sandboxes) -> Result<()> {
    let Some(provider) = &ctx.provider else { return Ok(()) };
    let sandboxes = provider.sweep().await?;
    if sandboxes.is_empty() {
        return Ok(());
    }
    let mut conn = ctx.db.acquire().await?;
    let orphaned: HashSet<SandboxId> = store::list_ended(&mut conn, &sandboxes).await?.into_iter().collect();
    drop(conn);
    for sandbox in orphaned {
        if let Err(err) = provider.end(&sandbox.to_string()).await {
            tracing::warn!(sandbox.id = %sandbox, error = %err, "the provider cannot end an orphaned sandbox");
        }
    }
    Ok(())
}

/// Marks the commands as interrupted whose server was killed while they ran.
async fn interrupt_lost_commands(ctx: &Sandboxes, host: Option<Uuid>) -> Result<()> {
    let timeout = chrono::Duration::from_std(ctx.config.sandbox.command_timeout).unwrap_or(INTERRUPTION_MARGIN);
    // Its end may also not have been stored, because the database has failed.
    let timed_out = Utc::now() - timeout - INTERRUPTION_MARGIN;
    let before = match host {
        // The commands of this machine belong to this process.
        Some(_) => Timestamp(ctx.started_at.0.max(timed_out)),
        None => Timestamp(timed_out),
    };
    let mut conn = ctx.db.acquire().await?;
    command_store::interrupt_lost(&mut conn, host, before).await?;
    Ok(())
}
