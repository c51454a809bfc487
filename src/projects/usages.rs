//! What operators ask about a project: how much it has, and how much came day by day.

use axum::extract::State;
use chrono::{Days, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::usage_store::{self as store, Counted, Mean, Statistics, TaskCounts};
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::response::{self, Data, QueryResult};
use crate::ids::ProjectId;
use crate::projects::Projects;
use crate::tasks::TaskStatus;

const NOT_FOUND: Error = Error::NotFound("project not found");
/// How many days are told about, if it is not said or cannot be.
const DAYS: u64 = 30;
const MAX_DAYS: u64 = 366;

/// Count what a project has
#[utoipa::path(get, path = "/admin/v1/project/{project_id}/statistics", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])))]
pub async fn get_project_statistics(
    State(ctx): State<Projects>,
    Path(project): Path<ProjectId>,
) -> QueryResult<Data<Statistics>> {
    let mut conn = ctx.db.acquire().await?;
    let statistics = store::count(&mut conn, project).await?.ok_or(NOT_FOUND)?;
    Ok(response::ok(statistics))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetUsages {
    /// So many days, the last one today (UTC). What is no number above 0 counts as 30.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 366, default = 30)]
    interval_days: Option<String>,
    /// Which of the answer's keys are wanted, separated by commas; all without it. The others are null.
    #[serde(default)]
    #[param(example = "storage,new_sessions")]
    fields: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct SuccessRate {
    date: NaiveDate,
    /// Of the tasks that came to an end, in percent with one decimal.
    success_rate: f64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct TaskStatusCounts {
    date: NaiveDate,
    completed: i64,
    in_progress: i64,
    pending: i64,
    failed: i64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct MessageTurns {
    date: NaiveDate,
    avg_message_turns: f64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct SessionTasks {
    date: NaiveDate,
    avg_tasks: f64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct TaskTurns {
    date: NaiveDate,
    avg_turns: f64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct Storage {
    date: NaiveDate,
    /// At the end of the day, of what is still there.
    usage_bytes: i64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct Count {
    date: NaiveDate,
    count: i64,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TaskStats {
    pub status: TaskStatus,
    pub count: i64,
    /// Of all of these tasks, with one decimal.
    pub percentage: f64,
    /// From the beginning of a task to its end, in minutes with one decimal; null for what has not ended.
    pub avg_time: Option<f64>,
}

/// How much came day by day; a row for each day, and null for what was not asked for. Tasks that only plan are left out.
#[derive(Default, Serialize, utoipa::ToSchema)]
pub struct Usages {
    task_success: Option<Vec<SuccessRate>>,
    task_status: Option<Vec<TaskStatusCounts>>,
    /// Of the sessions made that day.
    session_message: Option<Vec<MessageTurns>>,
    /// Of the sessions made that day.
    session_task: Option<Vec<SessionTasks>>,
    /// Of the tasks made that day.
    task_message: Option<Vec<TaskTurns>>,
    storage: Option<Vec<Storage>>,
    new_sessions: Option<Vec<Count>>,
    new_disks: Option<Vec<Count>>,
    /// Learning spaces.
    new_spaces: Option<Vec<Count>>,
    /// Of all these days.
    task_stats: Option<Vec<TaskStats>>,
}

/// Tell how a project is used
#[utoipa::path(get, path = "/admin/v1/project/{project_id}/usages", tag = "admin",
    params(("project_id" = ProjectId, Path), GetUsages), security(("AdminToken" = [])))]
pub async fn get_project_usages(
    State(ctx): State<Projects>,
    Path(project): Path<ProjectId>,
    Query(query): Query<GetUsages>,
) -> QueryResult<Data<Usages>> {
    let wanted = Wanted::parse(&query)?;
    let mut conn = ctx.db.acquire().await?;
    if !store::exists(&mut conn, project).await? {
        return Err(NOT_FOUND);
    }
    Ok(response::ok(wanted.read(&mut conn, project).await?))
}

/// The days and the keys that are wanted.
struct Wanted {
    days: Vec<NaiveDate>,
    fields: Vec<String>,
}

impl Wanted {
    fn parse(query: &GetUsages) -> Result<Self> {
        let days = query.interval_days.as_deref().and_then(|days| days.trim().parse::<u64>().ok());
        let days = days.filter(|days| *days > 0).unwrap_or(DAYS);
        if days > MAX_DAYS {
            return Err(Error::invalid_field("interval_days", format_args!("must not be more than {MAX_DAYS}")));
        }
        let today = Utc::now().date_naive();
        let days = (0..days).rev().filter_map(|ago| today.checked_sub_days(Days::new(ago)));
        let fields = query.fields.as_deref().unwrap_or_default().split(',').map(str::trim);
        let fields = fields.filter(|field| !field.is_empty()).map(ToOwned::to_owned);
        Ok(Self { days: days.collect(), fields: fields.collect() })
    }

    fn wants(&self, field: &str) -> bool {
        self.fields.is_empty() || self.fields.iter().any(|wanted| wanted == field)
    }

    fn from(&self) -> NaiveDate {
        self.days.first().copied().unwrap_or_default()
    }

    async fn read(&self, conn: &mut PgConnection, project: ProjectId) -> Result<Usages> {
        let from = self.from();
        let mut usages = Usages::default();
        if self.wants("task_success") || self.wants("task_status") {
            let tasks = store::count_tasks(conn, project, from).await?;
            usages.task_success = self.wants("task_success").then(|| self.each(|date| success_rate(date, &tasks)));
            usages.task_status = self.wants("task_status").then(|| self.each(|date| task_status(date, &tasks)));
        }
        if self.wants("session_message") {
            let means = store::messages_per_session(conn, project, from).await?;
            let turns = |date| MessageTurns { date, avg_message_turns: mean(date, &means) };
            usages.session_message = Some(self.each(turns));
        }
        if self.wants("session_task") {
            let means = store::tasks_per_session(conn, project, from).await?;
            usages.session_task = Some(self.each(|date| SessionTasks { date, avg_tasks: mean(date, &means) }));
        }
        if self.wants("task_message") {
            let means = store::messages_per_task(conn, project, from).await?;
            usages.task_message = Some(self.each(|date| TaskTurns { date, avg_turns: mean(date, &means) }));
        }
        if self.wants("storage") {
            usages.storage = Some(self.running(&store::storage_by_day(conn, project, from).await?));
        }
        if self.wants("new_sessions") {
            usages.new_sessions = Some(self.counts(&store::count_sessions(conn, project, from).await?));
        }
        if self.wants("new_disks") {
            usages.new_disks = Some(self.counts(&store::count_disks(conn, project, from).await?));
        }
        if self.wants("new_spaces") {
            usages.new_spaces = Some(self.counts(&store::count_spaces(conn, project, from).await?));
        }
        if self.wants("task_stats") {
            usages.task_stats = Some(task_stats(store::task_durations(conn, project, from).await?));
        }
        Ok(usages)
    }

    fn each<T>(&self, row: impl Fn(NaiveDate) -> T) -> Vec<T> {
        self.days.iter().map(|date| row(*date)).collect()
    }

    fn counts(&self, found: &[Counted]) -> Vec<Count> {
        self.each(|date| Count { date, count: counted(date, found) })
    }

    /// What came before the first day stands at its eve.
    fn running(&self, found: &[Counted]) -> Vec<Storage> {
        let before = found.iter().filter(|row| row.day < self.from()).map(|row| row.count).sum();
        let days = self.days.iter().scan(before, |sum: &mut i64, date| {
            *sum += counted(*date, found);
            Some(Storage { date: *date, usage_bytes: *sum })
        });
        days.collect()
    }
}

fn counted(date: NaiveDate, found: &[Counted]) -> i64 {
    found.iter().find(|row| row.day == date).map_or(0, |row| row.count)
}

fn mean(date: NaiveDate, found: &[Mean]) -> f64 {
    found.iter().find(|row| row.day == date).map_or(0.0, |row| row.mean)
}

fn success_rate(date: NaiveDate, tasks: &[TaskCounts]) -> SuccessRate {
    let of_day = tasks.iter().find(|row| row.day == date);
    SuccessRate { date, success_rate: of_day.map_or(0.0, |row| percent(row.success, row.success + row.failed)) }
}

fn task_status(date: NaiveDate, tasks: &[TaskCounts]) -> TaskStatusCounts {
    let of_day = tasks.iter().find(|row| row.day == date);
    let count = |of: fn(&TaskCounts) -> i64| of_day.map_or(0, of);
    TaskStatusCounts {
        date,
        completed: count(|row| row.success),
        in_progress: count(|row| row.running),
        pending: count(|row| row.pending),
        failed: count(|row| row.failed),
    }
}

fn task_stats(found: Vec<store::Timed>) -> Vec<TaskStats> {
    let all = found.iter().map(|row| row.count).sum();
    let stats = found.into_iter().map(|row| TaskStats {
        percentage: percent(row.count, all),
        avg_time: row.seconds.map(|seconds| one_decimal(seconds / 60.0)),
        status: row.status,
        count: row.count,
    });
    stats.collect()
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn percent(part: i64, of: i64) -> f64 {
    if of == 0 { 0.0 } else { one_decimal(part as f64 / of as f64 * 100.0) }
}

/// Cut, not rounded, as clients know it.
fn one_decimal(number: f64) -> f64 {
    (number * 10.0).trunc() / 10.0
}
