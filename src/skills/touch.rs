//! Marks skills as changed. This file is in a layer below `disks`, because every change of a skill's files goes through its disk.

use sqlx::PgConnection;

use crate::ids::DiskId;

/// Sets the time of the last change of the skill on this disk, if there is one. The time increases with each change, in whichever
/// order transactions commit.
pub async fn touch(conn: &mut PgConnection, disk: DiskId) -> sqlx::Result<()> {
    sqlx::query!(
        "update agent_skills set updated_at = greatest(clock_timestamp(), updated_at + interval '1 microsecond')
         where disk_id = $1",
        disk as _,
    )
    .execute(conn)
    .await
    .map(drop)
}
