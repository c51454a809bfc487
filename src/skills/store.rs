//! SQL of skills.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::front_matter::FrontMatter;
use super::{FileEntry, Skill};
use crate::db::page::{PageRequest, fetch_page, impl_paged};
use crate::ids::{DiskId, ProjectId, SkillId, SpaceId, UserId};
use crate::time::Timestamp;

/// A skill's row.
#[derive(Debug)]
pub struct Row {
    pub id: SkillId,
    pub user_id: Option<UserId>,
    pub disk_id: DiskId,
    pub name: String,
    pub description: String,
    pub meta: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Row);

impl Row {
    /// The skill as clients see it.
    pub fn with_files(self, file_index: Vec<FileEntry>) -> Skill {
        let Self { id, user_id, disk_id, name, description, meta, created_at, updated_at } = self;
        Skill { id, user_id, name, description, disk_id: Some(disk_id), file_index, meta, created_at, updated_at }
    }
}

/// Selects skills from the table that the caller calls `t`. A skill was updated when a file on its disk changed.
macro_rules! select_skills {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"select t.id as "id: SkillId", t.user_id as "user_id: UserId", t.disk_id as "disk_id: DiskId", t.name,
                      t.description, t.meta as "meta: Json<Map<String, Value>>", t.created_at as "created_at: Timestamp",
                      (select d.changed_at from disks d where d.id = t.disk_id) as "updated_at!: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// A skill that is to be, on a disk of its project.
pub struct NewSkill<'a> {
    pub disk: DiskId,
    pub user: Option<UserId>,
    pub says: &'a FrontMatter,
    pub meta: Option<Map<String, Value>>,
}

pub async fn insert(conn: &mut PgConnection, project: ProjectId, new: NewSkill<'_>) -> sqlx::Result<Row> {
    sqlx::query_as!(
        Row,
        r#"insert into agent_skills (id, project_id, user_id, disk_id, name, description, meta)
           values ($1, $2, $3, $4, $5, $6, $7)
           returning id as "id: SkillId", user_id as "user_id: UserId", disk_id as "disk_id: DiskId", name, description,
                     meta as "meta: Json<Map<String, Value>>", created_at as "created_at: Timestamp",
                     (select d.changed_at from disks d where d.id = disk_id) as "updated_at!: Timestamp""#,
        SkillId::new() as _,
        project as _,
        new.user as _,
        new.disk as _,
        new.says.name.as_str(),
        new.says.description,
        new.meta.map(Json) as _,
    )
    .fetch_one(conn)
    .await
}

/// A skill of the project; others are as if they were not there.
pub async fn get(conn: &mut PgConnection, project: ProjectId, skill: SkillId) -> sqlx::Result<Option<Row>> {
    select_skills!("agent_skills t where t.id = $1 and t.project_id = $2"; skill as _, project as _)
        .fetch_optional(conn)
        .await
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    user: Option<&str>,
    page: &PageRequest,
) -> sqlx::Result<Vec<Row>> {
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

/// The skills that a space has, in the order they came into it.
pub async fn list_by_space(
    conn: &mut PgConnection,
    project: ProjectId,
    space: SpaceId,
    limit: usize,
) -> sqlx::Result<Vec<Row>> {
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

/// A file of one of several disks.
#[derive(Debug)]
pub struct DiskFile {
    pub disk_id: DiskId,
    pub path: String,
    pub filename: String,
    pub mime: String,
}

/// The files of disks, in the order of the disks and then by path and name: up to `of_each` of a disk, and `limit` in all.
pub async fn list_files(
    conn: &mut PgConnection,
    disks: &[DiskId],
    of_each: usize,
    limit: usize,
) -> sqlx::Result<Vec<DiskFile>> {
    sqlx::query_as!(
        DiskFile,
        // One disk after the other, along its index.
        r#"select f.disk_id as "disk_id: DiskId", f.path, f.filename, f.mime
           from unnest($1::uuid[]) with ordinality as d (id, n)
           cross join lateral (select v.disk_id, v.path, v.filename, v.mime from artifact_versions v
                               where v.disk_id = d.id and v.to_revision is null
                               order by v.path, v.filename limit $2) f
           order by d.n, f.path, f.filename limit $3"#,
        disks as _,
        i64::try_from(of_each).unwrap_or(i64::MAX),
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// The name of a skill of the project, which stays until the transaction ends.
pub async fn hold(conn: &mut PgConnection, project: ProjectId, skill: SkillId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "select name from agent_skills where id = $1 and project_id = $2 for key share",
        skill as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// How many files lie on a disk, and how many bytes they are together.
pub async fn measure(conn: &mut PgConnection, disk: DiskId) -> sqlx::Result<(u64, u64)> {
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
