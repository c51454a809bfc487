//! Listing a thousand skills page by page, compared with one SQL statement that reads the same rows on the same
//! Postgres.

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
use crate::embedded_postgres::EmbeddedPostgres;
use crate::http::Request;
use crate::load::{Outcome, Plan, Source, Times, run_load, to_f64};
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const SKILLS: usize = 1_000;
/// The files of a skill.
const FILES: [&str; 5] = ["SKILL.md", "scripts/run.py", "scripts/check.sh", "references/forms.md", "assets/table.csv"];
/// The size of each file, in bytes.
const SIZE: usize = 1 << 10;
/// The maximum page size.
const PAGE_SIZE: usize = 200;
const CLIENTS: [usize; 2] = [1, 4];
/// The page sizes that are compared.
const PAGE_SIZES: [usize; 4] = [1, 20, 100, 200];
/// The number of requests for each page size.
const REQUESTS: usize = 300;
/// The number of seconds at rest after which the processes of Postgres have reported their statistics.
const STATS_FLUSH_SECS: u64 = 11;

/// Selects the page after a position in the list, with one row per file.
const PAGE_SQL: &str = "select s.*, f.path, f.filename, f.mime
    from (select * from agent_skills where project_id = (select id from projects) and (created_at, id) > ($1, $2)
          order by created_at, id limit $3) s
    cross join lateral (select path, filename, mime from artifact_versions v
                        where v.disk_id = s.disk_id and v.to_revision is null order by path, filename) f
    order by s.created_at, s.id, f.path, f.filename";
/// Selects the positions at which the pages begin: the last skill before each page.
const PAGE_STARTS_SQL: &str = "select created_at, id from (
        select created_at, id, row_number() over (order by created_at, id) n from agent_skills) s
    where n % $1 = 0 order by n";

/// The position of a skill in the list.
type Position = (DateTime<Utc>, Uuid);

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let skills = bench.full_or_quick(SKILLS, 2 * PAGE_SIZE);
    block_on(async {
        let server = Server::start(bench, "skill-list").await?;
        create_skills(&server, skills).await?;
        let options = EmbeddedPostgres::find(&server)?.options();
        let mut connection = options.connect().await?;
        // Otherwise the autovacuum of Postgres could start during a measurement.
        for command in ["vacuum (analyze) agent_skills", "vacuum (analyze) artifact_versions", "checkpoint"] {
            sqlx::query(command).execute(&mut connection).await?;
        }
        let pages = list_pages(&server, skills).await?;
        let mut starts = vec![(DateTime::<Utc>::UNIX_EPOCH, Uuid::nil())];
        starts.extend(
            sqlx::query_as::<_, Position>(PAGE_STARTS_SQL)
                .bind(i64::try_from(PAGE_SIZE)?)
                .fetch_all(&mut connection)
                .await?,
        );
        starts.truncate(pages.len());
        let table = compare_with_sql(bench, &server, &options, &pages, &starts).await?;
        report.add_text(&format!(
            "A project with {skills} skills of {} files each. Each client reads the pages of {PAGE_SIZE} skills again \
             and again. The baseline is the same number of connections that run one prepared statement for the same \
             skills and files.",
            FILES.len()
        ));
        report.add_table("Pages of 200", &table);
        let table = measure_page_sizes(bench, &server, &mut connection).await?;
        report.add_text(&format!(
            "One client reads the first page {REQUESTS} times. The transactions are the number that Postgres has \
             counted (`xact_commit`), divided by the number of pages: each statement of a request is a transaction. If \
             the server ran a statement for each skill, the number would grow with the page."
        ));
        report.add_table("Pages of other sizes", &table);
        connection.close().await?;
        server.stop()
    })
}

/// Creates the skills from archives.
async fn create_skills(server: &Server, skills: usize) -> anyhow::Result<()> {
    let archives = (0..skills).map(archive).collect::<anyhow::Result<Vec<_>>>()?;
    let (next, archives) = (Arc::new(AtomicUsize::new(0)), Arc::new(archives));
    let created = run_load(server.address, Plan::until_exhausted(8), |_| -> Source {
        let (next, archives) = (Arc::clone(&next), Arc::clone(&archives));
        Box::new(move || {
            let archive = archives.get(next.fetch_add(1, Ordering::Relaxed))?;
            Some(Request::skill("POST", archive.clone()))
        })
    })
    .await;
    ensure!(created.failed() == 0, "could not create skills: {:?}", created.failures());
    Ok(())
}

fn archive(number: usize) -> anyhow::Result<Bytes> {
    let text = prose(number as u64, SIZE);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (index, name) in FILES.into_iter().enumerate() {
        writer.start_file(name, SimpleFileOptions::default())?;
        if index == 0 {
            let description = text[..80].replace(['"', '\n'], " ");
            writer.write_all(format!("---\nname: skill-{number:04}\ndescription: {description}\n---\n").as_bytes())?;
        }
        writer.write_all(format!("{number} {index} {text}").as_bytes())?;
    }
    Ok(writer.finish()?.into_inner().into())
}

/// Returns the paths of all pages. Checks that the pages contain all skills with all their files.
async fn list_pages(server: &Server, skills: usize) -> anyhow::Result<Vec<String>> {
    let (mut client, mut pages, mut cursor, mut skill_count) = (server.client().await?, Vec::new(), String::new(), 0);
    loop {
        let path = format!("/api/v1/agent_skills?limit={PAGE_SIZE}&cursor={cursor}");
        let page = client.data(&Request::get("GET", &path)).await?;
        pages.push(path);
        for skill in page["items"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let files = skill["file_index"].as_array().map_or(0, Vec::len);
            ensure!(files == FILES.len(), "a skill has {files} files");
            skill_count += 1;
        }
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    ensure!(skill_count == skills, "the list has {skill_count} skills instead of {skills}");
    Ok(pages)
}

/// Measures the pages of 200 skills and the SQL statement for the same rows.
async fn compare_with_sql(
    bench: &Bench,
    server: &Server,
    options: &PgConnectOptions,
    pages: &[String],
    starts: &[Position],
) -> anyhow::Result<Table> {
    let headings =
        ["clients, pages", "pages/s", "p50 ms", "p99 ms", "SQL p50 ms", "SQL p99 ms", "server/SQL p50", "CPU ms/page"];
    let mut table = Table::new(&headings);
    for clients in CLIENTS {
        for (name, from, to) in
            [("all", 0, pages.len()), ("first", 0, 1), ("last", pages.len().saturating_sub(1), pages.len())]
        {
            let before = server.process.cpu_time()?;
            let outcome = run_requests(bench, server, clients, &pages[from..to]).await;
            ensure!(outcome.failed() == 0, "pages failed: {:?}", outcome.failures());
            let cpu = server.process.cpu_time()?.saturating_sub(before).as_secs_f64() * 1000.0;
            let sql = run_statements(bench, options, clients, &starts[from..to]).await?;
            let times = outcome.times(None);
            let cpu = cpu / to_f64(outcome.count());
            let numbers =
                [outcome.per_second(), times.p50(), times.p99(), sql.p50(), sql.p99(), times.p50() / sql.p50(), cpu];
            table.add_row([format!("{clients}, {name}")].into_iter().chain(numbers.map(number)));
        }
    }
    Ok(table)
}

async fn run_requests(bench: &Bench, server: &Server, clients: usize, pages: &[String]) -> Outcome {
    let requests: Vec<Request> = pages.iter().map(|path| Request::get("GET", path)).collect();
    let plan = Plan { clients, warm_up: Duration::ZERO, time: bench.seconds(4) };
    run_load(server.address, plan, |client| -> Source {
        let mut next = requests.clone().into_iter().cycle().skip(client);
        Box::new(move || next.next())
    })
    .await
}

/// Reads the same pages by SQL on `clients` concurrent connections.
async fn run_statements(
    bench: &Bench,
    options: &PgConnectOptions,
    clients: usize,
    starts: &[Position],
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
                times.push(run_statement(&mut connection, *start).await?);
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

async fn run_statement(connection: &mut PgConnection, (time, id): Position) -> anyhow::Result<Duration> {
    let rows = sqlx::query(PAGE_SQL).bind(time).bind(id).bind(i64::try_from(PAGE_SIZE)?);
    let start = Instant::now();
    let rows = rows.fetch_all(connection).await?.len();
    let time = start.elapsed();
    ensure!(rows == PAGE_SIZE * FILES.len(), "a page has {rows} rows");
    Ok(time)
}

/// Measures how the time and the number of statements grow with the page size.
async fn measure_page_sizes(bench: &Bench, server: &Server, connection: &mut PgConnection) -> anyhow::Result<Table> {
    let mut table = Table::new(&["skills per page", "p50 ms", "p99 ms", "us/skill", "transactions/page"]);
    let (count, mut client) = (bench.full_or_quick(REQUESTS, 20), server.client().await?);
    for limit in PAGE_SIZES {
        let request = Request::get("GET", &format!("/api/v1/agent_skills?limit={limit}"));
        let before = count_transactions(bench, connection).await?;
        let mut times = Vec::new();
        for _ in 0..count {
            times.push(client.timed(&request).await?.1);
        }
        let transactions = count_transactions(bench, connection).await? - before;
        let times = Times::from_iter(times);
        let per_skill = times.p50() * 1000.0 / to_f64(limit as u64);
        let per_page = to_f64(transactions.unsigned_abs()) / to_f64(count as u64);
        let numbers = [times.p50(), times.p99(), per_skill, per_page].map(number);
        table.add_row([limit.to_string()].into_iter().chain(numbers));
    }
    Ok(table)
}

/// Returns the number of committed transactions, after the statistics of all processes have been reported.
async fn count_transactions(bench: &Bench, connection: &mut PgConnection) -> anyhow::Result<i64> {
    tokio::time::sleep(bench.seconds(STATS_FLUSH_SECS)).await;
    let count = "select xact_commit from pg_stat_database where datname = current_database()";
    Ok(sqlx::query_scalar(count).fetch_one(connection).await?)
}
