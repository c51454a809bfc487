//! The default project: made at the first start with the configured root token as its key.
//!
//! A later start changes that key only if the configured token differs from the one applied last, so that a key rotated
//! meanwhile survives a restart. It refuses to while the project is encrypted: the new key could not open its content.

use anyhow::{Context, anyhow, bail};
use secrecy::ExposeSecret;
use serde_json::json;

use super::pepper;
use super::store::{self, NewKey, ROOT_TOKEN};
use crate::crypto::ProjectKey;
use crate::db::server_state;
use crate::ids::ProjectId;
use crate::platform::Platform;

/// Sees to the default project. Several processes may do this at once.
///
/// # Errors
/// The database fails, or the token changed while the project is encrypted.
pub async fn ensure(platform: &Platform) -> anyhow::Result<ProjectId> {
    let key = ProjectKey::parse(platform.config.keys.root_token.expose_secret());
    let pepper = platform.config.keys.pepper();
    let lookup = key.lookup(pepper);
    key.master_key(pepper)
        .context("ROOT_API_BEARER_TOKEN is a compact key that was made under another ROOT_SECRET_PEPPER")?;

    let mut tx = platform.db.begin().await?;
    sqlx::query!("select pg_advisory_xact_lock(hashtext('acontextd root project'))").fetch_one(&mut *tx).await?;
    pepper::record(&mut tx, &platform.config.keys).await?;
    let root = store::lock_root(&mut tx).await?;
    let applied = server_state::get_state(&mut tx, ROOT_TOKEN).await?;
    let project = match root {
        Some((project, _)) if applied.as_deref() == Some(lookup.as_str()) => project,
        Some((_, true)) => bail!(
            "ROOT_API_BEARER_TOKEN differs from the one applied last, but the default project is encrypted and a new \
             token could not open its content; set the former token, or decrypt the project first"
        ),
        Some((project, false)) => {
            let new = hashed(key, lookup.clone(), platform).await?;
            let updated = store::update_key(&mut tx, project, &new).await;
            updated.map_err(taken_or)?;
            // It is current again, whether or not it was rotated before.
            store::delete_replaced_key(&mut tx, &lookup).await?;
            project
        }
        None => {
            let new = hashed(key, lookup.clone(), platform).await?;
            let inserted = store::insert(&mut tx, &new, Some(json!({"__default_init_project__": true}))).await;
            inserted.map_err(taken_or)?
        }
    };
    server_state::set_state(&mut tx, ROOT_TOKEN, &lookup).await?;
    tx.commit().await?;
    Ok(project)
}

/// Explains the violation of the unique index on keys.
fn taken_or(error: sqlx::Error) -> anyhow::Error {
    match &error {
        sqlx::Error::Database(inner) if inner.constraint() == Some("projects_secret_key_hmac_key") => anyhow!(
            "ROOT_API_BEARER_TOKEN is the key of another project: set it to the former token, or to a new random text"
        ),
        _ => error.into(),
    }
}

async fn hashed(key: ProjectKey, secret_key_hmac: String, platform: &Platform) -> anyhow::Result<NewKey> {
    let platform = platform.clone();
    let hash = tokio::task::spawn_blocking(move || key.hash(platform.config.keys.pepper())).await??;
    Ok(NewKey { secret_key_hmac, secret_key_hash_phc: hash })
}
