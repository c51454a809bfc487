//! Deleting a user who has ten thousand sessions, while a client of another project stores messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::corpus::prose;
use crate::growth::MESSAGES;
use crate::http::Request;
use crate::load::{Outcome, Plan, Source, drive, median};
use crate::messages::message;
use crate::private::Private;
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const SESSIONS: usize = 10_000;
const EACH: usize = 10;
/// Of a text, in bytes.
const SIZE: usize = 1 << 10;
const ROUNDS: usize = 3;
/// In seconds.
const TARGET: f64 = 5.0;
/// What part of the deletion the other client may wait for at most.
const WAIT: f64 = 0.5;
/// How long the other client is alone before the deletion, in seconds.
const ALONE: u64 = 5;
/// What the other client's requests are called, by when they are sent.
const MOMENTS: [&str; 3] = ["before", "during", "after"];

const USER: &str = "insert into users (project_id, identifier)
    select p.id, $1 from projects p where not exists (select from users where users.project_id = p.id and identifier = 'other')
    order by p.created_at limit 1 returning id";
const OWNED: &str = "insert into sessions (id, project_id, user_id, last_message_id, last_message_at)
    select s, u.project_id, u.id, gen_random_uuid(), now() from unnest($1::uuid[]) s, users u where u.id = $2";
/// Two tasks in each session.
const TASKS: &str = r#"insert into tasks (session_id, project_id, "order", data, status)
    select s, u.project_id, n, '{"task_description": "Find the barrel."}', 'success'
    from unnest($1::uuid[]) s, generate_series(1, 2) n, users u where u.id = $2"#;
/// A file of its own for the first message of each session.
const FILES: &str = "with m as (
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
/// Rows of sessions that are there, and files that were released since the last round.
const LEFT: &str = "select (select count(*) from sessions where id = any($1)),
    (select count(*) from messages where session_id = any($1)), (select count(*) from blob_releases)";

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let sessions = bench.pick(SESSIONS, SESSIONS / 50);
    let mut table = Table::new(&["round", "deletion s", "SQL s"]);
    let mut others = Table::new(&["other project's POST", "messages", "p50 ms", "p99 ms", "max ms", "failed"]);
    let (times, longest, failed) = block_on(async {
        let server = Server::start(bench, "user-deletion").await?;
        let mut connection = Private::of(&server)?.options().connect().await?;
        let other = Other::make(&server).await?;
        let (mut times, mut longest, mut failed) = (Vec::new(), 0.0_f64, 0);
        for round in 1..=bench.pick(ROUNDS, 1) {
            let user = format!("user-{round}");
            let ids = fill(&mut connection, &user, sessions).await?;
            let (time, outcome) = delete(bench, &server, &other, &user).await?;
            ensure_gone(&mut connection, &ids).await?;
            let sql = plain(&mut connection, &ids).await?;
            let row = [time, sql].map(|time| number(time.as_secs_f64()));
            table.row([round.to_string()].into_iter().chain(row));
            for moment in MOMENTS {
                let seen = outcome.times(Some(moment));
                let numbers = [seen.p50(), seen.p99(), seen.max()].map(number);
                let row = [format!("round {round}, {moment}"), seen.count().to_string()].into_iter().chain(numbers);
                others.row(row.chain([outcome.failed().to_string()]));
            }
            longest = longest.max(outcome.times(Some("during")).max() / 1000.0 / time.as_secs_f64());
            failed += outcome.failed();
            times.push(time.as_secs_f64());
        }
        connection.close().await?;
        server.stop()?;
        Ok((times, longest, failed))
    })?;
    report.text(&format!(
        "A user with {sessions} sessions of {EACH} messages of 1 KiB of text, two tasks in each, and a file in the first \
         message of each, written by SQL; then the tables are vacuumed and analysed. A client of another project stores \
         messages of 1 KiB before, during and after the deletion. *SQL* deletes as many messages, and nothing else, from a \
         table with the same indexes and without references."
    ));
    report.table("Deletion", &table);
    report.table("Meanwhile", &others);
    let time = median(times);
    report.target("deletion (median)", &format!("{} s", number(time)), "< 5 s", time < TARGET);
    report.target("failed requests of the other project", &failed.to_string(), "0", failed == 0);
    let measured = format!("{} of the deletion", number(longest));
    report.target("longest wait of the other project", &measured, "< 0.5 of the deletion", longest < WAIT);
    Ok(())
}

/// A client of another project.
struct Other {
    project: Project,
    session: String,
}

impl Other {
    async fn make(server: &Server) -> anyhow::Result<Self> {
        let mut client = server.client().await?;
        let project = Project::make(&mut client).await?;
        let session = Request::post_json("create a session", "/api/v1/session", r#"{"user": "other"}"#);
        let session = client.new_id(&project.asks(session)).await?;
        // The first message loads the tokenizer.
        client.data(&project.asks(message(&session, 0, &prose(1, SIZE)))).await?;
        Ok(Self { project, session })
    }
}

/// Makes a user of the first project with so many sessions, whose ids it answers with.
async fn fill(connection: &mut PgConnection, user: &str, sessions: usize) -> anyhow::Result<Vec<Uuid>> {
    let ids: Vec<Uuid> = (0..sessions).map(|_| Uuid::now_v7()).collect();
    // Checks of foreign keys would take most of the time.
    let quickly = "set session_replication_role = replica; set synchronous_commit = off";
    sqlx::raw_sql(quickly).execute(&mut *connection).await?;
    let user = sqlx::query_scalar::<_, Uuid>(USER).bind(user).fetch_one(&mut *connection).await?;
    sqlx::query(OWNED).bind(&ids).bind(user).execute(&mut *connection).await?;
    let messages = sqlx::query(MESSAGES).bind(&ids).bind(i32::try_from(EACH)?).bind(prose(0, SIZE)[..SIZE].to_owned());
    messages.execute(&mut *connection).await?;
    for owned in [TASKS, FILES] {
        sqlx::query(owned).bind(&ids).bind(user).execute(&mut *connection).await?;
    }
    sqlx::raw_sql("set session_replication_role = default; truncate blob_releases").execute(&mut *connection).await?;
    for table in ["users", "sessions", "messages", "tasks", "message_files", "blobs"] {
        sqlx::raw_sql(&format!("vacuum (analyze) {table}")).execute(&mut *connection).await?;
    }
    sqlx::query("checkpoint").execute(&mut *connection).await?;
    Ok(ids)
}

/// Deletes the user while the other client is at work; how long it took, and how that client fared.
async fn delete(bench: &Bench, server: &Server, other: &Other, user: &str) -> anyhow::Result<(Duration, Outcome)> {
    let moment = Arc::new(AtomicUsize::new(0));
    let text: Arc<str> = prose(1, SIZE).into();
    let stored = drive(server.address, Plan::to_the_end(1), |_| -> Source {
        let (moment, text, key, session) =
            (Arc::clone(&moment), Arc::clone(&text), other.project.key.clone(), other.session.clone());
        let mut numbers = 1..;
        Box::new(move || {
            let kind = MOMENTS.get(moment.load(Ordering::Relaxed))?;
            let mut request = message(&session, numbers.next()?, &text).with_key(&key);
            request.kind = kind;
            Some(request)
        })
    });
    let deletion = async {
        let mut client = server.client().await?;
        client.data(&Request::get("list", "/api/v1/user/ls")).await?;
        tokio::time::sleep(bench.seconds(ALONE)).await;
        moment.store(1, Ordering::Relaxed);
        let deleted = client.timed(&Request::delete("DELETE", &format!("/api/v1/user/{user}"))).await;
        moment.store(2, Ordering::Relaxed);
        tokio::time::sleep(bench.seconds(ALONE)).await;
        moment.store(3, Ordering::Relaxed);
        anyhow::Ok(deleted?.1)
    };
    let (time, outcome) = tokio::join!(deletion, stored);
    Ok((time?, outcome))
}

/// Nothing of the sessions is there, and their files are released.
async fn ensure_gone(connection: &mut PgConnection, ids: &[Uuid]) -> anyhow::Result<()> {
    let left: (i64, i64, i64) = sqlx::query_as(LEFT).bind(ids).fetch_one(connection).await?;
    let expected = (0, 0, i64::try_from(ids.len())?);
    ensure!(left == expected, "(sessions, messages, released files) are {left:?} instead of {expected:?}");
    Ok(())
}

/// How long Postgres takes to delete as many messages from a table that nothing refers to.
async fn plain(connection: &mut PgConnection, ids: &[Uuid]) -> anyhow::Result<Duration> {
    let table =
        "drop table if exists plain; create table plain (like messages including all); set synchronous_commit = on";
    sqlx::raw_sql(table).execute(&mut *connection).await?;
    let fill = MESSAGES.replacen("into messages", "into plain", 1);
    let fill = sqlx::query(&fill).bind(ids).bind(i32::try_from(EACH)?).bind(prose(0, SIZE)[..SIZE].to_owned());
    fill.execute(&mut *connection).await?;
    sqlx::raw_sql("vacuum (analyze) plain").execute(&mut *connection).await?;
    let start = Instant::now();
    sqlx::query("delete from plain where session_id = any($1)").bind(ids).execute(&mut *connection).await?;
    let time = start.elapsed();
    sqlx::raw_sql("drop table plain").execute(&mut *connection).await?;
    Ok(time)
}
