//! What operators ask about a project: counts, days, and whether it has too much.

use chrono::{Days, NaiveDate, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::Client;
use crate::support::{TestApp, run};

fn day(ago: u64) -> NaiveDate {
    Utc::now().date_naive().checked_sub_days(Days::new(ago)).unwrap()
}

async fn usages(app: &TestApp, client: &Client, query: &str) -> Value {
    let answer = app.admin().get(&format!("/admin/v1/project/{}/usages?{query}", client.project())).await;
    answer.assert_status(200);
    answer.data()
}

/// The row of a day.
fn on(rows: &Value, ago: u64) -> Value {
    let wanted = json!(day(ago));
    rows.as_array().unwrap().iter().find(|row| row["date"] == wanted).unwrap_or_else(|| panic!("{ago}: {rows}")).clone()
}

/// A session of some days ago with so many messages, and tasks of these statuses, the last of which has two messages.
async fn fill(app: &TestApp, client: &Client, ago: i32, messages: i32, tasks: &[&str]) {
    let session = client.new_session().await;
    for n in 0..messages {
        client.say_text(&session, &format!("message {n}")).await;
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
        "update messages set task_id = (select id from tasks where session_id = $1::uuid order by \"order\" desc limit 1)
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
async fn what_a_project_has_is_counted() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        fill(&app, &client, 0, 0, &["success", "pending"]).await;
        fill(&app, &other, 0, 0, &["failed"]).await;
        client.new_skill("one").await;
        app.execute("update tasks set is_planning = true where status = 'pending'").await;
        let of = async |project: Uuid| app.admin().get(&format!("/admin/v1/project/{project}/statistics")).await;
        assert_eq!(of(client.project()).await.data(), json!({"taskCount": 1, "skillCount": 1, "sessionCount": 1}));
        assert_eq!(of(other.project()).await.data(), json!({"taskCount": 1, "skillCount": 0, "sessionCount": 1}));
        of(Uuid::new_v4()).await.assert_refused(404, "project not found");
        client.get(&format!("/admin/v1/project/{}/statistics", client.project())).await.assert_refused(401, "");
    })
    .await;
}

#[tokio::test]
async fn what_came_is_told_day_by_day() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        fill(&app, &client, 1, 3, &["success", "success", "failed", "running"]).await;
        fill(&app, &client, 1, 0, &[]).await;
        fill(&app, &client, 40, 1, &["success"]).await;
        fill(&app, &other, 1, 5, &["pending"]).await;
        client.new_disk().await;
        client.new_space().await;
        let told = usages(&app, &client, "").await;
        for (name, rows) in told.as_object().unwrap() {
            let wanted = if name == "task_stats" { 3 } else { 30 };
            assert_eq!(rows.as_array().unwrap().len(), wanted, "{name}");
        }
        let yesterday = |name: &str| on(&told[name], 1);
        assert_eq!(yesterday("task_success")["success_rate"], 66.6, "cut and not rounded");
        let status = json!({"date": day(1), "completed": 2, "in_progress": 1, "pending": 0, "failed": 1});
        assert_eq!(yesterday("task_status"), status);
        assert_eq!(yesterday("session_message")["avg_message_turns"], 1.5);
        assert_eq!(yesterday("session_task")["avg_tasks"], 2.0);
        assert_eq!(yesterday("task_message")["avg_turns"], 0.5);
        assert_eq!(yesterday("new_sessions")["count"], 2);
        assert_eq!(on(&told["new_disks"], 0)["count"], 3, "two are of the space's skills");
        assert_eq!(on(&told["new_spaces"], 0)["count"], 1);
        assert_eq!(on(&told["task_success"], 2)["success_rate"], 0.0);
        assert_eq!(
            told["task_stats"],
            json!([
                {"status": "success", "count": 2, "percentage": 50.0, "avg_time": 2.2},
                {"status": "running", "count": 1, "percentage": 25.0, "avg_time": null},
                {"status": "failed", "count": 1, "percentage": 25.0, "avg_time": 4.5},
            ])
        );
        let long = usages(&app, &client, "interval_days=60").await;
        assert_eq!(on(&long["session_message"], 40)["avg_message_turns"], 1.0);
    })
    .await;
}

#[tokio::test]
async fn storage_is_what_is_there_at_the_end_of_each_day() {
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
        let told = usages(&app, &client, "fields=storage&interval_days=5").await;
        let bytes: Vec<_> = told["storage"].as_array().unwrap().iter().map(|row| row["usage_bytes"].clone()).collect();
        assert_eq!(bytes, [1000, 1200, 1200, 1200, 1230], "what came before the first day counts");
    })
    .await;
}

#[tokio::test]
async fn only_what_is_asked_for_is_told() {
    run(async |app| {
        let client = app.project().await;
        let told = usages(&app, &client, "fields=new_disks,%20task_stats,nothing&interval_days=2").await;
        let given: Vec<_> = told.as_object().unwrap().iter().filter(|(_, rows)| !rows.is_null()).collect();
        let wanted = json!([{"date": day(1), "count": 0}, {"date": day(0), "count": 0}]);
        assert_eq!(given.len(), 2);
        assert_eq!((&told["new_disks"], &told["task_stats"]), (&wanted, &json!([])));
        for days in ["", "0", "-3", "many"] {
            let told = usages(&app, &client, &format!("fields=storage&interval_days={days}")).await;
            assert_eq!(told["storage"].as_array().unwrap().len(), 30, "{days}");
        }
        let path = format!("/admin/v1/project/{}/usages", client.project());
        app.admin().get(&format!("{path}?interval_days=367")).await.assert_refused(400, "interval_days");
        let nobody = format!("/admin/v1/project/{}/usages", Uuid::new_v4());
        app.admin().get(&nobody).await.assert_refused(404, "project not found");
        client.get(&path).await.assert_refused(401, "Unauthorized");
    })
    .await;
}

#[tokio::test]
async fn a_gateway_hears_that_a_project_stores_too_much() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let root = app.client().with_key("your-root-api-bearer-token");
        let ask = async |project: String, query: &str| root.get(&format!("/metrics/v1/{project}/quota?{query}")).await;
        let store = "path=/api/v1/disk/:disk_id/artifact&method=POST";
        let (mine, theirs) = (client.project().to_string(), other.project().to_string());
        assert_eq!(ask(mine.clone(), store).await.json(), json!({"code": 0, "msg": "ok"}));
        let flag =
            "insert into metrics (project_id, tag, increment, created_at) values ($1, 'excess.storage.usage', $2, $3)";
        for (up, at) in [(1_i64, "1970-01-01T00:00:00Z"), (0, "1970-01-02T00:00:00Z"), (1, "1970-01-03T00:00:00Z")] {
            let at = at.parse::<chrono::DateTime<Utc>>().unwrap();
            sqlx::query(flag).bind(client.project()).bind(up).bind(at).execute(&*app.app.db).await.unwrap();
            let answer = ask(mine.clone(), store).await;
            if up == 1 { answer.assert_refused(403, "quota exceeded") } else { answer.assert_status(200) }
        }
        ask(mine.clone(), "path=/api/v1/session/:session_id/messages&method=POST").await.assert_refused(403, "quota");
        ask(mine.clone(), "path=/api/v1/disk&method=POST").await.assert_status(200);
        ask(mine.clone(), "path=/api/v1/disk/:disk_id/artifact&method=GET").await.assert_status(200);
        ask(theirs, store).await.assert_status(200);
        for (query, name) in
            [("", "path"), ("method=POST", "path"), ("path=/x", "method"), ("path=&method=POST", "path")]
        {
            ask(mine.clone(), query).await.assert_refused(400, name);
        }
        ask("nope".into(), store).await.assert_refused(400, "invalid project id");
    })
    .await;
}

#[tokio::test]
async fn quotas_are_told_to_the_root_token_and_the_operator_alone() {
    run(async |app| {
        let client = app.project().await;
        let path = format!("/metrics/v1/{}/quota?path=/x&method=POST", client.project());
        for closed in [app.client(), client, app.client().with_key("sk-ac-your-root-api-bearer-token")] {
            closed.get(&path).await.assert_refused(401, "Unauthorized");
        }
        app.admin().get(&path).await.assert_status(200);
        app.client().with_key("your-root-api-bearer-token").get(&path).await.assert_status(200);
    })
    .await;
}
