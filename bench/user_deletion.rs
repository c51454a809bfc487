//! Deleting a user with ten thousand sessions, while a client of another project (the *bystander*) stores messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::corpus::prose;
use crate::embedded_postgres::EmbeddedPostgres;
use crate::growth::MESSAGES_SQL;
use crate::http::Request;
use crate::load::{Outcome, Plan, Source, median, run_load};
use crate::messages::store_numbered;
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const SESSIONS: usize = 10_000;
const MESSAGES_PER_SESSION: usize = 10;
/// The size of a text, in bytes.
const SIZE: usize = 1 << 10;
const ROUNDS: usize = 3;
/// The target for the time of the deletion, in seconds.
const MAX_SECONDS: f64 = 5.0;
/// The target for the longest request of the bystander, as a fraction of the time of the deletion.
const MAX_WAIT_SHARE: f64 = 0.5;
/// How long the bystander is measured before and after the deletion, in seconds.
const ALONE_SECS: u64 = 5;
/// The kinds of the bystander's requests, according to when they are sent.
const PHASES: [&str; 3] = ["before", "during", "after"];

/// Inserts a user of the default project.
const USER_SQL: &str = "insert into users (project_id, identifier)
    select p.id, $1 from projects p where not exists (select from users where users.project_id = p.id and identifier = 'other')
    order by p.created_at limit 1 returning id";
const SESSIONS_SQL: &str = "insert into sessions (id, project_id, user_id, last_message_id, last_message_at)
    select s, u.project_id, u.id, gen_random_uuid(), now() from unnest($1::uuid[]) s, users u where u.id = $2";
/// Inserts two tasks into each session.
const TASKS_SQL: &str = r#"insert into tasks (session_id, project_id, "order", data, status)
    select s, u.project_id, n, '{"task_description": "Find the barrel."}', 'success'
    from unnest($1::uuid[]) s, generate_series(1, 2) n, users u where u.id = $2"#;
/// Inserts a different file for the first message of each session.
const FILES_SQL: &str = "with m as (
        select distinct on (session_id) id, session_id from messages where session_id = any($1)
        order by session_id, created_at),
    b as (
        insert into blobs (id, project_id, object_key, sha256, size, state)
        select gen_random_uuid(), u.project_id, 'bench/' || m.id, encode(sha256(convert_to(m.id::text, 'UTF8')), 'hex'),
               1000, 'live'
        from m, users u where u.id = $2 returning id, object_key, sha256)
    insert into message_files (message_id, s3_key, session_id, blob_id, sha256, mime, filename)
    select m.id, b.object_key, m.session_id, b.id, b.sha256, 'image/png', 'picture.png'
    from m join b on b.object_key = 'bench/' || m.id";
/// Counts the remaining sessions and messages, and the blobs that were released since the last round.
const REMAINING_SQL: &str = "select (select count(*) from sessions where id = any($1)),
    (select count(*) from messages where session_id = any($1)), (select count(*) from blob_releases)";

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let sessions = bench.full_or_quick(SESSIONS, SESSIONS / 50);
    let mut table = Table::new(&["round", "deletion s", "SQL s"]);
    let mut bystander_times = Table::new(&["other project's POST", "messages", "p50 ms", "p99 ms", "max ms", "failed"]);
    let (times, longest, failed) = block_on(async {
        let server = Server::start(bench, "user-deletion").await?;
        let mut connection = EmbeddedPostgres::find(&server)?.options().connect().await?;
        let bystander = BystanderClient::create(&server).await?;
        let (mut times, mut longest, mut failed) = (Vec::new(), 0.0_f64, 0);
        for round in 1..=bench.full_or_quick(ROUNDS, 1) {
            let user = format!("user-{round}");
            let ids = create_user(&mut connection, &user, sessions).await?;
            let (time, outcome) = delete_user(bench, &server, &bystander, &user).await?;
            ensure_deleted(&mut connection, &ids).await?;
            let sql = delete_plain_rows(&mut connection, &ids).await?;
            let row = [time, sql].map(|time| number(time.as_secs_f64()));
            table.add_row([round.to_string()].into_iter().chain(row));
            for phase in PHASES {
                let phase_times = outcome.times(Some(phase));
                let numbers = [phase_times.p50(), phase_times.p99(), phase_times.max()].map(number);
                let row =
                    [format!("round {round}, {phase}"), phase_times.count().to_string()].into_iter().chain(numbers);
                bystander_times.add_row(row.chain([outcome.failed().to_string()]));
            }
            longest = longest.max(outcome.times(Some("during")).max() / 1000.0 / time.as_secs_f64());
            failed += outcome.failed();
            times.push(time.as_secs_f64());
        }
        connection.close().await?;
        server.stop()?;
        Ok((times, longest, failed))
    })?;
    report.add_text(&format!(
        "A user with {sessions} sessions of {MESSAGES_PER_SESSION} messages of 1 KiB of text. Each session has two \
         tasks and a file in its first message. The rows were inserted by SQL, and the tables were vacuumed and \
         analyzed. A client of another project stores messages of 1 KiB before, during and after the deletion. *SQL* \
         deletes the same number of messages, and nothing else, from a table with the same indexes and without foreign \
         keys."
    ));
    report.add_table("Deletion", &table);
    report.add_table("Requests of the other project", &bystander_times);
    let time = median(times);
    report.add_target("deletion (median)", &format!("{} s", number(time)), "< 5 s", time < MAX_SECONDS);
    report.add_target("failed requests of the other project", &failed.to_string(), "0", failed == 0);
    let measured = format!("{} of the deletion", number(longest));
    report.add_target(
        "longest wait of the other project",
        &measured,
        "< 0.5 of the deletion",
        longest < MAX_WAIT_SHARE,
    );
    Ok(())
}

/// A client of another project, with a session in which it stores messages.
struct BystanderClient {
    project: Project,
    session: String,
}

impl BystanderClient {
    async fn create(server: &Server) -> anyhow::Result<Self> {
        let mut client = server.client().await?;
        let project = Project::create(&mut client).await?;
        let session = Request::post_json("create a session", "/api/v1/session", r#"{"user": "other"}"#);
        let session = client.new_id(&project.with_key(session)).await?;
        // The first message loads the tokenizer.
        client.data(&project.with_key(store_numbered(&session, 0, &prose(1, SIZE)))).await?;
        Ok(Self { project, session })
    }
}

/// Creates a user of the default project with `sessions` sessions. Returns the ids of the sessions.
async fn create_user(connection: &mut PgConnection, user: &str, sessions: usize) -> anyhow::Result<Vec<Uuid>> {
    let ids: Vec<Uuid> = (0..sessions).map(|_| Uuid::now_v7()).collect();
    // Without these settings, the checks of foreign keys would take most of the time.
    let settings = "set session_replication_role = replica; set synchronous_commit = off";
    sqlx::raw_sql(settings).execute(&mut *connection).await?;
    let user = sqlx::query_scalar::<_, Uuid>(USER_SQL).bind(user).fetch_one(&mut *connection).await?;
    sqlx::query(SESSIONS_SQL).bind(&ids).bind(user).execute(&mut *connection).await?;
    let messages = sqlx::query(MESSAGES_SQL)
        .bind(&ids)
        .bind(i32::try_from(MESSAGES_PER_SESSION)?)
        .bind(prose(0, SIZE)[..SIZE].to_owned());
    messages.execute(&mut *connection).await?;
    for insert in [TASKS_SQL, FILES_SQL] {
        sqlx::query(insert).bind(&ids).bind(user).execute(&mut *connection).await?;
    }
    sqlx::raw_sql("set session_replication_role = default; truncate blob_releases").execute(&mut *connection).await?;
    for table in ["users", "sessions", "messages", "tasks", "message_files", "blobs"] {
        sqlx::raw_sql(&format!("vacuum (analyze) {table}")).execute(&mut *connection).await?;
    }
    sqlx::query("checkpoint").execute(&mut *connection).await?;
    Ok(ids)
}

/// Deletes the user while the bystander stores messages. Returns the time of the deletion, and the measurements of the
/// bystander.
async fn delete_user(
    bench: &Bench,
    server: &Server,
    bystander: &BystanderClient,
    user: &str,
) -> anyhow::Result<(Duration, Outcome)> {
    let phase = Arc::new(AtomicUsize::new(0));
    let text: Arc<str> = prose(1, SIZE).into();
    let stored = run_load(server.address, Plan::until_exhausted(1), |_| -> Source {
        let (phase, text, key, session) =
            (Arc::clone(&phase), Arc::clone(&text), bystander.project.key.clone(), bystander.session.clone());
        let mut numbers = 1..;
        Box::new(move || {
            let kind = PHASES.get(phase.load(Ordering::Relaxed))?;
            let mut request = store_numbered(&session, numbers.next()?, &text).with_key(&key);
            request.kind = kind;
            Some(request)
        })
    });
    let deletion = async {
        let mut client = server.client().await?;
        client.data(&Request::get("list", "/api/v1/user/ls")).await?;
        tokio::time::sleep(bench.seconds(ALONE_SECS)).await;
        phase.store(1, Ordering::Relaxed);
        let deleted = client.timed(&Request::delete("DELETE", &format!("/api/v1/user/{user}"))).await;
        phase.store(2, Ordering::Relaxed);
        tokio::time::sleep(bench.seconds(ALONE_SECS)).await;
        phase.store(3, Ordering::Relaxed);
        anyhow::Ok(deleted?.1)
    };
    let (time, outcome) = tokio::join!(deletion, stored);
    Ok((time?, outcome))
}

/// Checks that the sessions and their messages are deleted and their files released.
async fn ensure_deleted(connection: &mut PgConnection, ids: &[Uuid]) -> anyhow::Result<()> {
    let remaining: (i64, i64, i64) = sqlx::query_as(REMAINING_SQL).bind(ids).fetch_one(connection).await?;
    let expected = (0, 0, i64::try_from(ids.len())?);
    ensure!(remaining == expected, "(sessions, messages, released files) are {remaining:?} instead of {expected:?}");
    Ok(())
}

/// Returns how long Postgres takes to delete the same number of messages from a table without foreign keys.
async fn delete_plain_rows(connection: &mut PgConnection, ids: &[Uuid]) -> anyhow::Result<Duration> {
    let table =
        "drop table if exists plain; create table plain (like messages including all); set synchronous_commit = on";
    sqlx::raw_sql(table).execute(&mut *connection).await?;
    let fill = MESSAGES_SQL.replacen("into messages", "into plain", 1);
    let fill =
        sqlx::query(&fill).bind(ids).bind(i32::try_from(MESSAGES_PER_SESSION)?).bind(prose(0, SIZE)[..SIZE].to_owned());
    fill.execute(&mut *connection).await?;
    sqlx::raw_sql("vacuum (analyze) plain").execute(&mut *connection).await?;
    let start = Instant::now();
    sqlx::query("delete from plain where session_id = any($1)").bind(ids).execute(&mut *connection).await?;
    let time = start.elapsed();
    sqlx::raw_sql("drop table plain").execute(&mut *connection).await?;
    Ok(time)
}
