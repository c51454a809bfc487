//! Walking the list of a thousand skills, beside one SQL statement that reads the same rows on the same Postgres.

use std::io::{Cursor, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::corpus::prose;
use crate::http::Request;
use crate::load::{Outcome, Plan, Source, Times, drive, real};
use crate::private::Private;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const SKILLS: usize = 1_000;
/// The files of a skill.
const FILES: [&str; 5] = ["SKILL.md", "scripts/run.py", "scripts/check.sh", "references/forms.md", "assets/table.csv"];
/// Of each of them, in bytes.
const SIZE: usize = 1 << 10;
/// The largest page.
const PAGE: usize = 200;
const CLIENTS: [usize; 2] = [1, 4];
/// Sizes of pages that are compared.
const LIMITS: [usize; 4] = [1, 20, 100, 200];
/// How many pages of each size are asked for.
const ASKED: usize = 300;
/// After so many seconds at rest, Postgres' processes have told what they did.
const TOLD: u64 = 11;

/// The page after a place in the list: a row for each file.
const STATEMENT: &str = "select s.*, f.path, f.filename, f.mime
    from (select * from agent_skills where project_id = (select id from projects) and (created_at, id) > ($1, $2)
          order by created_at, id limit $3) s
    cross join lateral (select path, filename, mime from artifact_versions v
                        where v.disk_id = s.disk_id and v.to_revision is null order by path, filename) f
    order by s.created_at, s.id, f.path, f.filename";
/// Where the pages begin: the last skill before each.
const STARTS: &str = "select created_at, id from (
        select created_at, id, row_number() over (order by created_at, id) n from agent_skills) s
    where n % $1 = 0 order by n";

type Place = (DateTime<Utc>, Uuid);

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let skills = bench.pick(SKILLS, 2 * PAGE);
    block_on(async {
        let server = Server::start(bench, "catalog").await?;
        fill(&server, skills).await?;
        let options = Private::of(&server)?.options();
        let mut connection = options.connect().await?;
        // Or Postgres would do so by itself in one of the rounds.
        for command in ["vacuum (analyze) agent_skills", "vacuum (analyze) artifact_versions", "checkpoint"] {
            sqlx::query(command).execute(&mut connection).await?;
        }
        let pages = walk(&server, skills).await?;
        let mut starts = vec![(DateTime::<Utc>::UNIX_EPOCH, Uuid::nil())];
        starts.extend(sqlx::query_as::<_, Place>(STARTS).bind(i64::try_from(PAGE)?).fetch_all(&mut connection).await?);
        starts.truncate(pages.len());
        let table = beside(bench, &server, &options, &pages, &starts).await?;
        report.text(&format!(
            "A project with {skills} skills of {} files each. Each client walks the pages of {PAGE} skills again and again; \
             beside it as many connections that run one prepared statement for the same skills and files.",
            FILES.len()
        ));
        report.table("Pages of 200", &table);
        let table = by_size(bench, &server, &mut connection).await?;
        report.text(&format!(
            "One client asks for the first page {ASKED} times. The server's transactions are those that Postgres has counted \
             (`xact_commit`), divided by the pages: each statement of a list is one. With a statement for each skill they \
             would grow as the page does."
        ));
        report.table("Pages of other sizes", &table);
        connection.close().await?;
        server.stop()
    })
}

/// Makes the skills, from archives.
async fn fill(server: &Server, skills: usize) -> anyhow::Result<()> {
    let archives = (0..skills).map(archive).collect::<anyhow::Result<Vec<_>>>()?;
    let (next, archives) = (Arc::new(AtomicUsize::new(0)), Arc::new(archives));
    let made = drive(server.address, Plan::to_the_end(8), |_| -> Source {
        let (next, archives) = (Arc::clone(&next), Arc::clone(&archives));
        Box::new(move || {
            let archive = archives.get(next.fetch_add(1, Ordering::Relaxed))?;
            Some(Request::skill("POST", archive.clone()))
        })
    })
    .await;
    ensure!(made.failed() == 0, "skills could not be made: {:?}", made.failures());
    Ok(())
}

fn archive(number: usize) -> anyhow::Result<Bytes> {
    let text = prose(number as u64, SIZE);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (at, name) in FILES.into_iter().enumerate() {
        writer.start_file(name, SimpleFileOptions::default())?;
        if at == 0 {
            let description = text[..80].replace(['"', '\n'], " ");
            writer.write_all(format!("---\nname: skill-{number:04}\ndescription: {description}\n---\n").as_bytes())?;
        }
        writer.write_all(format!("{number} {at} {text}").as_bytes())?;
    }
    Ok(writer.finish()?.into_inner().into())
}

/// The paths of all pages, each of which must be full and show every file.
async fn walk(server: &Server, skills: usize) -> anyhow::Result<Vec<String>> {
    let (mut client, mut pages, mut cursor, mut seen) = (server.client().await?, Vec::new(), String::new(), 0);
    loop {
        let path = format!("/api/v1/agent_skills?limit={PAGE}&cursor={cursor}");
        let page = client.data(&Request::get("GET", &path)).await?;
        pages.push(path);
        for skill in page["items"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let files = skill["file_index"].as_array().map_or(0, Vec::len);
            ensure!(files == FILES.len(), "a skill shows {files} files");
            seen += 1;
        }
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    ensure!(seen == skills, "the list has {seen} skills instead of {skills}");
    Ok(pages)
}

async fn beside(
    bench: &Bench,
    server: &Server,
    options: &PgConnectOptions,
    pages: &[String],
    starts: &[Place],
) -> anyhow::Result<Table> {
    let heads =
        ["clients, pages", "pages/s", "p50 ms", "p99 ms", "SQL p50 ms", "SQL p99 ms", "server/SQL p50", "CPU ms/page"];
    let mut table = Table::new(&heads);
    for clients in CLIENTS {
        for (name, from, to) in
            [("all", 0, pages.len()), ("first", 0, 1), ("last", pages.len().saturating_sub(1), pages.len())]
        {
            let before = server.process.cpu_time()?;
            let ours = ask(bench, server, clients, &pages[from..to]).await;
            ensure!(ours.failed() == 0, "pages failed: {:?}", ours.failures());
            let cpu = server.process.cpu_time()?.saturating_sub(before).as_secs_f64() * 1000.0;
            let sql = statements(bench, options, clients, &starts[from..to]).await?;
            let times = ours.times(None);
            let cpu = cpu / real(ours.count());
            let numbers =
                [ours.per_second(), times.p50(), times.p99(), sql.p50(), sql.p99(), times.p50() / sql.p50(), cpu];
            table.row([format!("{clients}, {name}")].into_iter().chain(numbers.map(number)));
        }
    }
    Ok(table)
}

async fn ask(bench: &Bench, server: &Server, clients: usize, pages: &[String]) -> Outcome {
    let requests: Vec<Request> = pages.iter().map(|path| Request::get("GET", path)).collect();
    let plan = Plan { clients, warm_up: Duration::ZERO, time: bench.seconds(4) };
    drive(server.address, plan, |client| -> Source {
        let mut next = requests.clone().into_iter().cycle().skip(client);
        Box::new(move || next.next())
    })
    .await
}

/// The same pages by SQL, by so many connections at once.
async fn statements(
    bench: &Bench,
    options: &PgConnectOptions,
    clients: usize,
    starts: &[Place],
) -> anyhow::Result<Times> {
    let mut connections = JoinSet::new();
    for client in 0..clients {
        let (options, starts, time) = (options.clone(), starts.to_vec(), bench.seconds(4));
        connections.spawn(async move {
            let mut connection = options.connect().await?;
            let (begin, mut times) = (Instant::now(), Vec::new());
            for start in starts.iter().cycle().skip(client) {
                if begin.elapsed() >= time {
                    break;
                }
                times.push(statement(&mut connection, *start).await?);
            }
            connection.close().await?;
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = connections.join_next().await {
        times.extend(ended??);
    }
    Ok(times.into_iter().collect())
}

async fn statement(connection: &mut PgConnection, (time, id): Place) -> anyhow::Result<Duration> {
    let rows = sqlx::query(STATEMENT).bind(time).bind(id).bind(i64::try_from(PAGE)?);
    let start = Instant::now();
    let rows = rows.fetch_all(connection).await?.len();
    let time = start.elapsed();
    ensure!(rows == PAGE * FILES.len(), "a page has {rows} rows");
    Ok(time)
}

/// How the time and the number of statements grow with a page.
async fn by_size(bench: &Bench, server: &Server, connection: &mut PgConnection) -> anyhow::Result<Table> {
    let mut table = Table::new(&["skills of a page", "p50 ms", "p99 ms", "us/skill", "transactions/page"]);
    let (asked, mut client) = (bench.pick(ASKED, 20), server.client().await?);
    for limit in LIMITS {
        let request = Request::get("GET", &format!("/api/v1/agent_skills?limit={limit}"));
        let before = committed(bench, connection).await?;
        let mut times = Vec::new();
        for _ in 0..asked {
            times.push(client.timed(&request).await?.1);
        }
        let committed = committed(bench, connection).await? - before;
        let times = Times::from_iter(times);
        let each = times.p50() * 1000.0 / real(limit as u64);
        let per_page = real(committed.unsigned_abs()) / real(asked as u64);
        let numbers = [times.p50(), times.p99(), each, per_page].map(number);
        table.row([limit.to_string()].into_iter().chain(numbers));
    }
    Ok(table)
}

/// How many transactions there were, once all of them are counted.
async fn committed(bench: &Bench, connection: &mut PgConnection) -> anyhow::Result<i64> {
    tokio::time::sleep(bench.seconds(TOLD)).await;
    let count = "select xact_commit from pg_stat_database where datname = current_database()";
    Ok(sqlx::query_scalar(count).fetch_one(connection).await?)
}
