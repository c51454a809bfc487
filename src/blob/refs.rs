//! The rows of stored objects. Every stored file goes through [`upload`] and then, in the transaction that inserts the rows
//! which refer to it, through [`claim`].
//!
//! The order makes a crash harmless at any point: a `pending` row, the object, then one transaction with `live` and the
//! reference. What is left over is a row that the sweep finds.

use sqlx::PgConnection;

use super::spool::Spool;
use crate::app::App;
use crate::error::{Error, Result};
use crate::ids::{BlobId, ProjectId};

/// Content that is stored but that no row refers to yet.
#[derive(Debug)]
pub struct Upload {
    blob: BlobId,
    /// Whether this upload put the object there, or found it.
    fresh: bool,
}

/// Sees to it that the content is in the object store: found there, or put there.
pub async fn upload(app: &App, project: ProjectId, content: &Spool) -> Result<Upload> {
    let known = sqlx::query_scalar!(
        r#"select id as "id: BlobId" from blobs where project_id = $1 and sha256 = $2 and state = 'live'"#,
        project as _,
        content.sha256,
    );
    if let Some(blob) = known.fetch_optional(&app.db).await? {
        return Ok(Upload { blob, fresh: false });
    }
    let blob = BlobId::new();
    let object_key = format!("{project}/{blob}");
    let size = i64::try_from(content.size).map_err(Error::internal)?;
    sqlx::query!(
        "insert into blobs (id, project_id, object_key, sha256, size) values ($1, $2, $3, $4, $5)",
        blob as _,
        project as _,
        object_key,
        content.sha256,
        size,
    )
    .execute(&app.db)
    .await?;
    app.blobs.put(&object_key, content).await?;
    Ok(Upload { blob, fresh: true })
}

/// Makes the upload's blob one that rows of this transaction may refer to, and holds it there until the transaction ends.
/// `None` if another one took its place meanwhile (an equal content that came first, or the sweep): begin again with
/// [`upload`], in a new transaction.
pub async fn claim(conn: &mut PgConnection, upload: &Upload) -> Result<Option<BlobId>> {
    Ok(claim_all(conn, std::slice::from_ref(upload)).await?.and_then(|blobs| blobs.first().copied()))
}

/// As [`claim`], for several contents of a project, no two of them equal: all of them or none.
pub async fn claim_all(conn: &mut PgConnection, uploads: &[Upload]) -> Result<Option<Vec<BlobId>>> {
    let ids = |fresh: bool| {
        let of_kind = uploads.iter().filter(|upload| upload.fresh == fresh).map(|upload| upload.blob);
        of_kind.collect::<Vec<BlobId>>()
    };
    let (fresh, found) = (ids(true), ids(false));
    if !found.is_empty() {
        // The share lock keeps the sweep from calling it dead before this transaction has ended. In one order, so that two
        // transactions do not wait for each other.
        let held = sqlx::query_scalar!(
            "select 1 as one from blobs where id = any($1) and state = 'live' order by id for share",
            &found as _,
        );
        if held.fetch_all(&mut *conn).await?.len() < found.len() {
            return Ok(None);
        }
    }
    if !fresh.is_empty() {
        let made =
            sqlx::query!("update blobs set state = 'live' where id = any($1) and state = 'pending'", &fresh as _);
        match made.execute(conn).await {
            Ok(made) if made.rows_affected() < fresh.len() as u64 => return Ok(None),
            // An equal content came first.
            Err(sqlx::Error::Database(fault)) if fault.constraint() == Some("blobs_live") => return Ok(None),
            made => made?,
        };
    }
    Ok(Some(uploads.iter().map(|upload| upload.blob).collect()))
}

/// Where a stored content is, if rows of the project still refer to it.
pub struct Stored {
    pub object_key: String,
    pub size: u64,
}

/// Finds content by its hash.
pub async fn get_by_sha256(conn: &mut PgConnection, project: ProjectId, sha256: &str) -> Result<Option<Stored>> {
    let row = sqlx::query!(
        "select object_key, size from blobs b
         where project_id = $1 and sha256 = $2 and state = 'live'
           and exists (select 1 from blob_references r where r.blob_id = b.id)",
        project as _,
        sha256,
    );
    let row = row.fetch_optional(conn).await?;
    Ok(row.map(|row| Stored { object_key: row.object_key, size: row.size.cast_unsigned() }))
}

/// The object keys of several contents by their hashes, in the order of the hashes.
pub async fn list_by_sha256(
    conn: &mut PgConnection,
    project: ProjectId,
    hashes: &[String],
) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query!(
        "select b.sha256, b.object_key
         from unnest($2::text[]) with ordinality as w (sha256, n)
         join blobs b on b.project_id = $1 and b.sha256 = w.sha256 and b.state = 'live'
         order by w.n",
        project as _,
        hashes,
    );
    let rows = rows.fetch_all(conn).await?;
    Ok(rows.into_iter().map(|row| (row.sha256, row.object_key)).collect())
}
