//! SQL of skills.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::front_matter::FrontMatter;
use super::{FileEntry, Skill};
use crate::db::page::{PageRequest, fetch_page, impl_paged};
use crate::ids::{DiskId, LearningSpaceId, ProjectId, SkillId, UserId};
use crate::time::Timestamp;

/// A row of `agent_skills`, with the time of the last change of a file.
#[derive(Debug)]
pub struct SkillRow {
    pub id: SkillId,
    pub user_id: Option<UserId>,
    pub disk_id: DiskId,
    pub name: String,
    pub description: String,
    pub meta: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(SkillRow);

impl SkillRow {
    /// Converts the row to the skill that is returned to clients.
    pub fn with_files(self, file_index: Vec<FileEntry>) -> Skill {
        let Self { id, user_id, disk_id, name, description, meta, created_at, updated_at } = self;
        Skill { id, user_id, name, description, disk_id: Some(disk_id), file_index, meta, created_at, updated_at }
    }
}

/// Selects skills from the table that the caller names `t`. `updated_at` is the time at which a file on its disk
/// last changed.
macro_rules! select_skills {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            SkillRow,
            r#"select t.id as "id: SkillId", t.user_id as "user_id: UserId", t.disk_id as "disk_id: DiskId", t.name,
                      t.description, t.meta as "meta: Json<Map<String, Value>>",
                      t.created_at as "created_at: Timestamp",
                      (select d.changed_at from disks d where d.id = t.disk_id) as "updated_at!: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// The values of a new row of `agent_skills`. The disk must belong to the project of the skill.
pub struct NewSkill<'a> {
    pub disk: DiskId,
    pub user: Option<UserId>,
    pub front_matter: &'a FrontMatter,
    pub meta: Option<Map<String, Value>>,
}

pub async fn insert(conn: &mut PgConnection, project: ProjectId, new: NewSkill<'_>) -> sqlx::Result<SkillRow> {
    sqlx::query_as!(
        SkillRow,
        r#"insert into agent_skills (id, project_id, user_id, disk_id, name, description, meta)
           values ($1, $2, $3, $4, $5, $6, $7)
           returning id as "id: SkillId", user_id as "user_id: UserId", disk_id as "disk_id: DiskId", name, description,
                     meta as "meta: Json<Map<String, Value>>", created_at as "created_at: Timestamp",
                     (select d.changed_at from disks d where d.id = disk_id) as "updated_at!: Timestamp""#,
        SkillId::new() as _,
        project as _,
        new.user as _,
        new.disk as _,
        new.front_matter.name.as_str(),
        new.front_matter.description,
        new.meta.map(Json) as _,
    )
    .fetch_one(conn)
    .await
}

/// Returns a skill of the project.
pub async fn get(conn: &mut PgConnection, project: ProjectId, skill: SkillId) -> sqlx::Result<Option<SkillRow>> {
    select_skills!("agent_skills t where t.id = $1 and t.project_id = $2"; skill as _, project as _)
        .fetch_optional(conn)
        .await
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    user: Option<&str>,
    page: &PageRequest,
) -> sqlx::Result<Vec<SkillRow>> {
    fetch_page!(
        select_skills!(
            "agent_skills t
             where t.project_id = $4
               and ($5::text is null
                    or t.user_id = (select u.id from users u where u.project_id = $4 and u.identifier = $5))";
            project as _,
            user,
        ),
        conn,
        page
    )
}

/// Returns up to `limit` skills of a learning space, in the order in which they were added.
pub async fn list_by_space(
    conn: &mut PgConnection,
    project: ProjectId,
    space: LearningSpaceId,
    limit: usize,
) -> sqlx::Result<Vec<SkillRow>> {
    select_skills!(
        "learning_space_skills l join agent_skills t on t.id = l.skill_id and t.project_id = $1
         where l.learning_space_id = $2 order by l.created_at, l.id limit $3";
        project as _,
        space as _,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// The path and the MIME type of a file on a disk.
#[derive(Debug)]
pub struct DiskFile {
    pub disk_id: DiskId,
    pub path: String,
    pub filename: String,
    pub mime: String,
}

/// Returns the files of several disks, in the order of `disks` and then of directory and file name. Returns at most
/// `per_disk_limit` files of each disk, and at most `limit` files in total.
pub async fn list_files(
    conn: &mut PgConnection,
    disks: &[DiskId],
    per_disk_limit: usize,
    limit: usize,
) -> sqlx::Result<Vec<DiskFile>> {
    sqlx::query_as!(
        DiskFile,
        // Because of `lateral`, Postgres reads the files of each disk from the index and stops at the limit.
        r#"select f.disk_id as "disk_id: DiskId", f.path, f.filename, f.mime
           from unnest($1::uuid[]) with ordinality as d (id, n)
           cross join lateral (select v.disk_id, v.path, v.filename, v.mime from artifact_versions v
                               where v.disk_id = d.id and v.to_revision is null
                               order by v.path, v.filename limit $2) f
           order by d.n, f.path, f.filename limit $3"#,
        disks as _,
        i64::try_from(per_disk_limit).unwrap_or(i64::MAX),
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// Returns the name of a skill of the project, and locks the skill so that it cannot be deleted until the transaction ends.
pub async fn lock_for_share(
    conn: &mut PgConnection,
    project: ProjectId,
    skill: SkillId,
) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "select name from agent_skills where id = $1 and project_id = $2 for key share",
        skill as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// Returns the number of files on a disk and their total size in bytes.
pub async fn count_files_and_bytes(conn: &mut PgConnection, disk: DiskId) -> sqlx::Result<(u64, u64)> {
    let row = sqlx::query!(
        r#"select count(*) as "count!", coalesce(sum(size), 0)::bigint as "size!"
           from artifact_versions where disk_id = $1 and to_revision is null"#,
        disk as _,
    );
    let row = row.fetch_one(conn).await?;
    Ok((row.count.cast_unsigned(), row.size.cast_unsigned()))
}

/// Returns the disk of a skill.
pub async fn get_disk(conn: &mut PgConnection, project: ProjectId, skill: SkillId) -> sqlx::Result<Option<DiskId>> {
    sqlx::query_scalar!(
        r#"select disk_id as "id: DiskId" from agent_skills where id = $1 and project_id = $2"#,
        skill as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// Sets the description of a skill, which is that of its SKILL.md.
pub async fn set_description(
    conn: &mut PgConnection,
    project: ProjectId,
    skill: SkillId,
    description: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update agent_skills set description = $3 where id = $1 and project_id = $2",
        skill as _,
        project as _,
        description,
    )
    .execute(conn)
    .await
    .map(drop)
}
