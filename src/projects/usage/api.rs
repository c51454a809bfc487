//! The routes for a project's statistics and usage.

use axum::extract::State;
use chrono::{Days, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::store::{self, DailyCount, DailyMean, DailyTaskCounts, Statistics};
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::response::{self, Data, QueryResult};
use crate::ids::ProjectId;
use crate::projects::Projects;
use crate::tasks::TaskStatus;

const NOT_FOUND: Error = Error::NotFound("project not found");
/// The number of reported days if the request specifies none.
const DEFAULT_DAYS: u64 = 30;
const MAX_DAYS: u64 = 366;

/// Get project statistics
#[utoipa::path(get, path = "/admin/v1/project/{project_id}/statistics", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])))]
pub async fn get_project_statistics(
    State(ctx): State<Projects>,
    Path(project): Path<ProjectId>,
) -> QueryResult<Data<Statistics>> {
    let mut conn = ctx.db.acquire().await?;
    let statistics = store::count_entities(&mut conn, project).await?.ok_or(NOT_FOUND)?;
    Ok(response::ok(statistics))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Number of days to report, up to and including today (UTC). A value that is not a positive integer is treated as 30.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 366, default = 30)]
    interval_days: Option<String>,
    /// Comma-separated names of the requested fields of the response; all fields if absent. Fields that are not requested are
    /// null.
    #[serde(default)]
    #[param(example = "storage,new_sessions")]
    fields: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct SuccessRate {
    date: NaiveDate,
    /// Percentage of finished tasks that succeeded, with one decimal.
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
    /// Size in bytes of the files that were stored by the end of the day and still exist.
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
    /// Percentage of all tasks, with one decimal.
    pub percentage: f64,
    /// Average time from the creation to the end of a task, in minutes with one decimal; null if the tasks have not
    /// ended.
    pub avg_time: Option<f64>,
}

/// The usage per day, with an entry for each day. Fields that were not requested are null. Planning tasks are not counted.
#[derive(Default, Serialize, utoipa::ToSchema)]
pub struct UsageReport {
    /// Success rate of tasks created on that day.
    task_success: Option<Vec<SuccessRate>>,
    /// Number of tasks created on that day, by their current status.
    task_status: Option<Vec<TaskStatusCounts>>,
    /// Average number of messages in sessions created on that day.
    session_message: Option<Vec<MessageTurns>>,
    /// Average number of tasks in sessions created on that day.
    session_task: Option<Vec<SessionTasks>>,
    /// Average number of messages of tasks created on that day.
    task_message: Option<Vec<TaskTurns>>,
    storage: Option<Vec<Storage>>,
    new_sessions: Option<Vec<Count>>,
    new_disks: Option<Vec<Count>>,
    /// Number of learning spaces created on that day.
    new_spaces: Option<Vec<Count>>,
    /// Tasks created on the requested days, by status.
    task_stats: Option<Vec<TaskStats>>,
}

/// Get project usage
#[utoipa::path(get, path = "/admin/v1/project/{project_id}/usages", tag = "admin",
    params(("project_id" = ProjectId, Path), UsageQuery), security(("AdminToken" = [])))]
pub async fn get_project_usages(
    State(ctx): State<Projects>,
    Path(project): Path<ProjectId>,
    Query(query): Query<UsageQuery>,
) -> QueryResult<Data<UsageReport>> {
    let selection = UsageSelection::parse(&query)?;
    let mut conn = ctx.db.acquire().await?;
    if !store::exists(&mut conn, project).await? {
        return Err(NOT_FOUND);
    }
    Ok(response::ok(selection.read(&mut conn, project).await?))
}

/// The requested days and fields.
struct UsageSelection {
    days: Vec<NaiveDate>,
    /// Empty if all fields are requested.
    fields: Vec<String>,
}

impl UsageSelection {
    fn parse(query: &UsageQuery) -> Result<Self> {
        let days = query.interval_days.as_deref().and_then(|days| days.trim().parse::<u64>().ok());
        let days = days.filter(|days| *days > 0).unwrap_or(DEFAULT_DAYS);
        if days > MAX_DAYS {
            return Err(Error::invalid_field("interval_days", format_args!("must not exceed {MAX_DAYS} days")));
        }
        let today = Utc::now().date_naive();
        let days = (0..days).rev().filter_map(|days_ago| today.checked_sub_days(Days::new(days_ago)));
        let fields = query.fields.as_deref().unwrap_or_default().split(',').map(str::trim);
        let fields = fields.filter(|field| !field.is_empty()).map(ToOwned::to_owned);
        Ok(Self { days: days.collect(), fields: fields.collect() })
    }

    fn includes(&self, field: &str) -> bool {
        self.fields.is_empty() || self.fields.iter().any(|name| name == field)
    }

    fn first_day(&self) -> NaiveDate {
        self.days.first().copied().unwrap_or_default()
    }

    async fn read(&self, conn: &mut PgConnection, project: ProjectId) -> Result<UsageReport> {
        let from = self.first_day();
        let mut report = UsageReport::default();
        if self.includes("task_success") || self.includes("task_status") {
            let tasks = store::count_tasks(conn, project, from).await?;
            report.task_success =
                self.includes("task_success").then(|| self.per_day(|date| success_rate(date, &tasks)));
            report.task_status = self.includes("task_status").then(|| self.per_day(|date| task_status(date, &tasks)));
        }
        if self.includes("session_message") {
            let means = store::messages_per_session(conn, project, from).await?;
            let turns = |date| MessageTurns { date, avg_message_turns: mean_on(date, &means) };
            report.session_message = Some(self.per_day(turns));
        }
        if self.includes("session_task") {
            let means = store::tasks_per_session(conn, project, from).await?;
            report.session_task = Some(self.per_day(|date| SessionTasks { date, avg_tasks: mean_on(date, &means) }));
        }
        if self.includes("task_message") {
            let means = store::messages_per_task(conn, project, from).await?;
            report.task_message = Some(self.per_day(|date| TaskTurns { date, avg_turns: mean_on(date, &means) }));
        }
        if self.includes("storage") {
            report.storage = Some(self.cumulative(&store::storage_by_day(conn, project, from).await?));
        }
        if self.includes("new_sessions") {
            report.new_sessions = Some(self.daily_counts(&store::count_sessions(conn, project, from).await?));
        }
        if self.includes("new_disks") {
            report.new_disks = Some(self.daily_counts(&store::count_disks(conn, project, from).await?));
        }
        if self.includes("new_spaces") {
            report.new_spaces = Some(self.daily_counts(&store::count_spaces(conn, project, from).await?));
        }
        if self.includes("task_stats") {
            report.task_stats = Some(task_stats(store::task_durations(conn, project, from).await?));
        }
        Ok(report)
    }

    /// Returns an entry for each day.
    fn per_day<T>(&self, entry: impl Fn(NaiveDate) -> T) -> Vec<T> {
        self.days.iter().map(|date| entry(*date)).collect()
    }

    fn daily_counts(&self, rows: &[DailyCount]) -> Vec<Count> {
        self.per_day(|date| Count { date, count: count_on(date, rows) })
    }

    /// Returns the sum of all rows up to and including each day. Rows before the first day are included.
    fn cumulative(&self, rows: &[DailyCount]) -> Vec<Storage> {
        let before = rows.iter().filter(|row| row.day < self.first_day()).map(|row| row.count).sum();
        let days = self.days.iter().scan(before, |sum: &mut i64, date| {
            *sum += count_on(*date, rows);
            Some(Storage { date: *date, usage_bytes: *sum })
        });
        days.collect()
    }
}

fn count_on(date: NaiveDate, rows: &[DailyCount]) -> i64 {
    rows.iter().find(|row| row.day == date).map_or(0, |row| row.count)
}

fn mean_on(date: NaiveDate, rows: &[DailyMean]) -> f64 {
    rows.iter().find(|row| row.day == date).map_or(0.0, |row| row.mean)
}

fn success_rate(date: NaiveDate, tasks: &[DailyTaskCounts]) -> SuccessRate {
    let counts = tasks.iter().find(|row| row.day == date);
    SuccessRate { date, success_rate: counts.map_or(0.0, |row| percent(row.success, row.success + row.failed)) }
}

fn task_status(date: NaiveDate, tasks: &[DailyTaskCounts]) -> TaskStatusCounts {
    let counts = tasks.iter().find(|row| row.day == date);
    let count = |select: fn(&DailyTaskCounts) -> i64| counts.map_or(0, select);
    TaskStatusCounts {
        date,
        completed: count(|row| row.success),
        in_progress: count(|row| row.running),
        pending: count(|row| row.pending),
        failed: count(|row| row.failed),
    }
}

fn task_stats(rows: Vec<store::TaskDuration>) -> Vec<TaskStats> {
    let total = rows.iter().map(|row| row.count).sum();
    let stats = rows.into_iter().map(|row| TaskStats {
        percentage: percent(row.count, total),
        avg_time: row.seconds.map(|seconds| truncate_to_tenth(seconds / 60.0)),
        status: row.status,
        count: row.count,
    });
    stats.collect()
}

/// Returns a percentage with one decimal.
#[expect(clippy::cast_precision_loss, reason = "only one decimal is returned")]
fn percent(part: i64, total: i64) -> f64 {
    if total == 0 { 0.0 } else { truncate_to_tenth(part as f64 / total as f64 * 100.0) }
}

/// Truncates a number to one decimal. Clients expect truncated numbers, not rounded ones.
fn truncate_to_tenth(number: f64) -> f64 {
    (number * 10.0).trunc() / 10.0
}
