//! The usage of projects that operators can query: counts, daily figures and quotas.

use chrono::{Days, NaiveDate, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::Client;
use crate::support::{TestApp, run};

/// Returns the date of some days ago.
fn day(ago: u64) -> NaiveDate {
    Utc::now().date_naive().checked_sub_days(Days::new(ago)).unwrap()
}

async fn get_usage(app: &TestApp, client: &Client, query: &str) -> Value {
    let response = app.admin().get(&format!("/admin/v1/project/{}/usages?{query}", client.project())).await;
    response.assert_status(200);
    response.data()
}

/// Returns the row of the day that was `ago` days ago.
fn row_of_day(rows: &Value, ago: u64) -> Value {
    let date = json!(day(ago));
    rows.as_array().unwrap().iter().find(|row| row["date"] == date).unwrap_or_else(|| panic!("{ago}: {rows}")).clone()
}

/// Inserts a session that is `ago` days old, with `messages` messages and tasks of these statuses. The last task has
/// two messages.
async fn insert_session(app: &TestApp, client: &Client, ago: i32, messages: i32, tasks: &[&str]) {
    let session = client.new_session().await;
    for n in 0..messages {
        client.store_text(&session, &format!("message {n}")).await;
    }
    for (order, status) in (1_i64..).zip(tasks) {
        sqlx::query(
            r#"insert into tasks (session_id, project_id, "order", data, status, created_at, updated_at)
               select id, project_id, $2, '{}', $3, now() - make_interval(days => $4),
                      now() - make_interval(days => $4) + interval '90 seconds' * $2
               from sessions where id = $1::uuid"#,
        )
        .bind(&session)
        .bind(order)
        .bind(status)
        .bind(ago)
        .execute(&*app.app.db)
        .await
        .unwrap();
    }
    sqlx::query(
        "update messages set task_id = (select id from tasks where session_id = $1::uuid
                                        order by \"order\" desc limit 1)
         where id in (select id from messages where session_id = $1::uuid order by created_at limit 2)",
    )
    .bind(&session)
    .execute(&*app.app.db)
    .await
    .unwrap();
    sqlx::query("update sessions set created_at = now() - make_interval(days => $2) where id = $1::uuid")
        .bind(&session)
        .bind(ago)
        .execute(&*app.app.db)
        .await
        .unwrap();
}

#[tokio::test]
async fn statistics_count_the_entities_of_a_project() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        insert_session(&app, &client, 0, 0, &["success", "pending"]).await;
        insert_session(&app, &other, 0, 0, &["failed"]).await;
        client.new_skill("one").await;
        app.execute("update tasks set is_planning = true where status = 'pending'").await;
        let get_statistics =
            async |project: Uuid| app.admin().get(&format!("/admin/v1/project/{project}/statistics")).await;
        assert_eq!(
            get_statistics(client.project()).await.data(),
            json!({"taskCount": 1, "skillCount": 1, "sessionCount": 1})
        );
        assert_eq!(
            get_statistics(other.project()).await.data(),
            json!({"taskCount": 1, "skillCount": 0, "sessionCount": 1})
        );
        get_statistics(Uuid::new_v4()).await.assert_error(404, "project not found");
        client.get(&format!("/admin/v1/project/{}/statistics", client.project())).await.assert_error(401, "");
    })
    .await;
}

#[tokio::test]
async fn usage_is_reported_by_day() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        insert_session(&app, &client, 1, 3, &["success", "success", "failed", "running"]).await;
        insert_session(&app, &client, 1, 0, &[]).await;
        insert_session(&app, &client, 40, 1, &["success"]).await;
        insert_session(&app, &other, 1, 5, &["pending"]).await;
        client.new_disk().await;
        client.new_space().await;
        let usage = get_usage(&app, &client, "").await;
        for (name, rows) in usage.as_object().unwrap() {
            let expected = if name == "task_stats" { 3 } else { 30 };
            assert_eq!(rows.as_array().unwrap().len(), expected, "{name}");
        }
        let yesterday = |name: &str| row_of_day(&usage[name], 1);
        assert_eq!(yesterday("task_success")["success_rate"], 66.6, "truncated and not rounded");
        let status = json!({"date": day(1), "completed": 2, "in_progress": 1, "pending": 0, "failed": 1});
        assert_eq!(yesterday("task_status"), status);
        assert_eq!(yesterday("session_message")["avg_message_turns"], 1.5);
        assert_eq!(yesterday("session_task")["avg_tasks"], 2.0);
        assert_eq!(yesterday("task_message")["avg_turns"], 0.5);
        assert_eq!(yesterday("new_sessions")["count"], 2);
        assert_eq!(row_of_day(&usage["new_disks"], 0)["count"], 3, "two belong to the skills of the space");
        assert_eq!(row_of_day(&usage["new_spaces"], 0)["count"], 1);
        assert_eq!(row_of_day(&usage["task_success"], 2)["success_rate"], 0.0);
        assert_eq!(
            usage["task_stats"],
            json!([
                {"status": "success", "count": 2, "percentage": 50.0, "avg_time": 2.2},
                {"status": "running", "count": 1, "percentage": 25.0, "avg_time": null},
                {"status": "failed", "count": 1, "percentage": 25.0, "avg_time": 4.5},
            ])
        );
        let long = get_usage(&app, &client, "interval_days=60").await;
        assert_eq!(row_of_day(&long["session_message"], 40)["avg_message_turns"], 1.0);
    })
    .await;
}

#[tokio::test]
async fn storage_is_the_size_at_the_end_of_each_day() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for (name, size, ago) in [("old", 1000, 50), ("middle", 200, 3), ("new", 30, 0)] {
            client.upload(&disk, "/", name, "x".repeat(size)).await;
            sqlx::query("update blobs set created_at = now() - make_interval(days => $1) where size = $2")
                .bind(ago)
                .bind(i64::try_from(size).unwrap())
                .execute(&*app.app.db)
                .await
                .unwrap();
        }
        let usage = get_usage(&app, &client, "fields=storage&interval_days=5").await;
        let bytes: Vec<_> = usage["storage"].as_array().unwrap().iter().map(|row| row["usage_bytes"].clone()).collect();
        assert_eq!(bytes, [1000, 1200, 1200, 1200, 1230], "content from before the first day counts");
    })
    .await;
}

#[tokio::test]
async fn only_requested_fields_are_returned() {
    run(async |app| {
        let client = app.project().await;
        let usage = get_usage(&app, &client, "fields=new_disks,%20task_stats,nothing&interval_days=2").await;
        let returned: Vec<_> = usage.as_object().unwrap().iter().filter(|(_, rows)| !rows.is_null()).collect();
        let expected = json!([{"date": day(1), "count": 0}, {"date": day(0), "count": 0}]);
        assert_eq!(returned.len(), 2);
        assert_eq!((&usage["new_disks"], &usage["task_stats"]), (&expected, &json!([])));
        for days in ["", "0", "-3", "many"] {
            let usage = get_usage(&app, &client, &format!("fields=storage&interval_days={days}")).await;
            assert_eq!(usage["storage"].as_array().unwrap().len(), 30, "{days}");
        }
        let path = format!("/admin/v1/project/{}/usages", client.project());
        app.admin().get(&format!("{path}?interval_days=367")).await.assert_error(400, "interval_days");
        let unknown = format!("/admin/v1/project/{}/usages", Uuid::new_v4());
        app.admin().get(&unknown).await.assert_error(404, "project not found");
        client.get(&path).await.assert_error(401, "Unauthorized");
    })
    .await;
}

#[tokio::test]
async fn a_gateway_can_query_whether_a_quota_is_exceeded() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let root = app.client().with_key("your-root-api-bearer-token");
        let get_quota =
            async |project: String, query: &str| root.get(&format!("/metrics/v1/{project}/quota?{query}")).await;
        let store = "path=/api/v1/disk/:disk_id/artifact&method=POST";
        let (project, other_project) = (client.project().to_string(), other.project().to_string());
        assert_eq!(get_quota(project.clone(), store).await.json(), json!({"code": 0, "msg": "ok"}));
        let flag =
            "insert into metrics (project_id, tag, increment, created_at) values ($1, 'excess.storage.usage', $2, $3)";
        for (increment, time) in
            [(1_i64, "1970-01-01T00:00:00Z"), (0, "1970-01-02T00:00:00Z"), (1, "1970-01-03T00:00:00Z")]
        {
            let time = time.parse::<chrono::DateTime<Utc>>().unwrap();
            sqlx::query(flag).bind(client.project()).bind(increment).bind(time).execute(&*app.app.db).await.unwrap();
            let response = get_quota(project.clone(), store).await;
            if increment == 1 { response.assert_error(403, "quota exceeded") } else { response.assert_status(200) }
        }
        get_quota(project.clone(), "path=/api/v1/session/:session_id/messages&method=POST")
            .await
            .assert_error(403, "quota");
        get_quota(project.clone(), "path=/api/v1/disk&method=POST").await.assert_status(200);
        get_quota(project.clone(), "path=/api/v1/disk/:disk_id/artifact&method=GET").await.assert_status(200);
        get_quota(other_project, store).await.assert_status(200);
        for (query, name) in
            [("", "path"), ("method=POST", "path"), ("path=/x", "method"), ("path=&method=POST", "path")]
        {
            get_quota(project.clone(), query).await.assert_error(400, name);
        }
        get_quota("nope".into(), store).await.assert_error(400, "invalid project id");
    })
    .await;
}

#[tokio::test]
async fn quotas_require_the_root_token_or_the_admin_token() {
    run(async |app| {
        let client = app.project().await;
        let path = format!("/metrics/v1/{}/quota?path=/x&method=POST", client.project());
        for unauthorized in [app.client(), client, app.client().with_key("sk-ac-your-root-api-bearer-token")] {
            unauthorized.get(&path).await.assert_error(401, "Unauthorized");
        }
        app.admin().get(&path).await.assert_status(200);
        app.client().with_key("your-root-api-bearer-token").get(&path).await.assert_status(200);
    })
    .await;
}
