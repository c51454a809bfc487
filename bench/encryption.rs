//! Encrypting and decrypting a project: how long the conversion takes, compared with writing the same amount of data
//! with Postgres and to the disk, and the server's memory during the conversion. [`encrypted_workload`] measures
//! requests to an encrypted project.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use rand::RngCore;
use serde_json::json;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::artifacts::content;
use crate::corpus::prose;
use crate::embedded_postgres::EmbeddedPostgres;
use crate::http::Request;
use crate::load::{Plan, Source, median, run_load, to_f64};
use crate::memory::mib;
use crate::messages::store_message;
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server, new_dir};
use crate::{Bench, block_on, disk, encrypted_workload};

/// The content of a project: the number and the size in bytes of its messages, and of its files.
#[derive(Clone, Copy)]
struct Content {
    name: &'static str,
    messages: (usize, usize),
    files: (usize, usize),
}

const fn messages(name: &'static str, count: usize, size: usize) -> Content {
    Content { name, messages: (count, size), files: (0, 0) }
}

const fn files(name: &'static str, count: usize, size: usize) -> Content {
    Content { name, messages: (0, 0), files: (count, size) }
}

const MIXED: Content =
    Content { name: "10 000 messages and 1 000 files", messages: (10_000, 1 << 10), files: (1_000, 20_000) };
/// Pairs of a content and twice as much of it, which must not need more memory.
const SCALING_PAIRS: [[Content; 2]; 4] = [
    [messages("10 000 messages of 1 KiB", 10_000, 1 << 10), messages("20 000 messages of 1 KiB", 20_000, 1 << 10)],
    [messages("1 000 messages of 64 KiB", 1_000, 64 << 10), messages("2 000 messages of 64 KiB", 2_000, 64 << 10)],
    [files("1 000 files of 20 KB", 1_000, 20_000), files("2 000 files of 20 KB", 2_000, 20_000)],
    [files("8 files of 16 MiB", 8, 16 << 20), files("16 files of 16 MiB", 16, 16 << 20)],
];
/// The number of messages in each session.
const MESSAGES_PER_SESSION: usize = 100;
const ROUNDS: usize = 3;
/// The number of files that the server converts concurrently.
const THREADS: usize = 4;
/// How long a server is idle before its memory is measured, in seconds.
const IDLE_SECS: u64 = 3;
/// The target for the growth of the memory, and for the additional growth with twice as much content.
const MAX_GROWTH_MIB: f64 = 64.0;
const MAX_EXTRA_MIB: f64 = 8.0;

/// About as many bytes as encryption adds to a message.
const ENCRYPTION_OVERHEAD: &[u8; 140] = &[b'x'; 140];
const PLAIN_TABLE_SQL: &str = "drop table if exists plain; create table plain (like messages including all)";
/// Copies the messages of the project into the plain table.
const FILL_SQL: &str = "insert into plain select m.* from messages m join sessions s on s.id = m.session_id
    where s.project_id = $1";
/// Counts the messages and the blobs of the project that are not in the expected storage format.
const UNCONVERTED_SQL: &str = "select (select count(*) from messages m join sessions s on s.id = m.session_id
        where s.project_id = $1 and (m.encrypted_as is null) = $2),
    (select count(*) from blobs where project_id = $1 and (encryption_format is null) = $2)";

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        measure_conversions(bench, report).await?;
        encrypted_workload::run(bench, report).await
    })
}

async fn measure_conversions(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let headings = ["project", "encryption s", "server CPU s", "items/s", "decryption s", "items/s", "SQL and disk s"];
    let mut times = Table::new(&headings);
    let mut memory =
        Table::new(&["project", "idle MiB", "encryption, peak MiB", "decryption, peak MiB", "above idle MiB"]);
    let (mut highest, mut extra) = (0.0_f64, Vec::new());
    // The first startup hashes the key of the default project, which takes memory that later startups do not need.
    Server::start(bench, "encryption").await?.stop()?;
    for pair in SCALING_PAIRS {
        let mut above = Vec::new();
        for content in pair {
            above.push(measure(bench, content, &mut times, &mut memory).await?);
        }
        highest = above.iter().copied().fold(highest, f64::max);
        extra.push((pair, above[1] - above[0]));
    }
    highest = highest.max(measure(bench, MIXED, &mut times, &mut memory).await?);
    report.add_text(&format!(
        "Each project is on a server that was started for it, has verified the key and was then idle for {IDLE_SECS} \
         s. It is encrypted and decrypted {ROUNDS} times. The times are medians, from the request until the status of \
         the conversion is `idle`. Messages are in sessions of {MESSAGES_PER_SESSION}, and every file has a different \
         content. *SQL and disk* is the time of one statement that rewrites the same number of messages, {} bytes \
         longer, in a table with the same indexes and without foreign keys, plus the time of {THREADS} threads that \
         write files with the same contents: each is written to a temporary file, synced and renamed, and its \
         directory is synced.",
        ENCRYPTION_OVERHEAD.len()
    ));
    report.add_table("Encrypting and decrypting", &times);
    report.add_text(
        "The memory of the server process alone (`VmRSS`), and its peak in all rounds (`VmHWM`, reset before each \
         conversion). 16 MiB of it are for the verification of the key, because a change of the project invalidates \
         the cache of verified keys.",
    );
    report.add_table("Memory during the conversion", &memory);
    report.add_target(
        "growth during a conversion",
        &format!("{} MiB", number(highest)),
        "< 64 MiB above idle",
        highest < MAX_GROWTH_MIB,
    );
    for ([small, large], extra) in extra {
        let what = format!("{} instead of {}", large.name, small.name);
        report.add_target(&what, &format!("{} MiB more", number(extra)), "<= 8 MiB more", extra <= MAX_EXTRA_MIB);
    }
    Ok(())
}

/// The measurements of the conversions of a project.
#[derive(Default)]
struct ConversionStats {
    /// The durations, in seconds.
    times: Vec<f64>,
    /// The CPU times of the server, in seconds.
    cpu: Vec<f64>,
    /// The peak memory of all conversions, in KiB.
    peak: u64,
}

/// Measures the conversions of a project with the given content and adds the rows to the tables. Returns the peak
/// memory above idle, in MiB.
async fn measure(bench: &Bench, content: Content, times: &mut Table, memory: &mut Table) -> anyhow::Result<f64> {
    let content = if bench.quick { shrink(content) } else { content };
    let contents = create_contents(content.files);
    let project = create_project(bench, content, &contents).await?;
    let server = Server::start(bench, "encryption").await?;
    let mut client = server.client().await?;
    let mut connection = EmbeddedPostgres::find(&server)?.options().connect().await?;
    client.data(&project.with_key(Request::get("encryption", "/api/v1/project/encryption"))).await?;
    tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
    let idle = server.process.memory()?.resident;
    let (count, mut stats, mut baseline_times) =
        (content.messages.0 + content.files.0, [ConversionStats::default(), ConversionStats::default()], Vec::new());
    for _ in 0..bench.full_or_quick(ROUNDS, 1) {
        for (encrypt, stats) in [true, false].into_iter().zip(&mut stats) {
            Memory::reset_peak(&server.process)?;
            let (before, start) = (server.process.cpu_time()?, Instant::now());
            project.convert(&mut client, encrypt, count).await?;
            stats.times.push(start.elapsed().as_secs_f64());
            stats.cpu.push(server.process.cpu_time()?.saturating_sub(before).as_secs_f64());
            stats.peak = stats.peak.max(server.process.memory()?.peak);
            ensure_converted(&mut connection, &project, encrypt).await?;
        }
        let sql = rewrite(&mut connection, &project, content.messages.0).await?;
        let files = disk::write_contents(&new_dir(&bench.dir, "disk")?, THREADS, &contents)?;
        baseline_times.push((sql + files).as_secs_f64());
    }
    connection.close().await?;
    server.stop()?;
    let [encryption, decryption] = stats;
    let above = mib(encryption.peak.max(decryption.peak).saturating_sub(idle));
    let numbers = [mib(idle), mib(encryption.peak), mib(decryption.peak), above].map(number);
    memory.add_row([content.name.to_owned()].into_iter().chain(numbers));
    let (count, encryption_secs, decryption_secs) =
        (to_f64(count as u64), median(encryption.times), median(decryption.times));
    let numbers = [
        encryption_secs,
        median(encryption.cpu),
        count / encryption_secs,
        decryption_secs,
        count / decryption_secs,
        median(baseline_times),
    ]
    .map(number);
    times.add_row([content.name.to_owned()].into_iter().chain(numbers));
    Ok(above)
}

/// Returns a fiftieth of the content, for a quick run.
fn shrink(content: Content) -> Content {
    let shrink_count = |(count, size): (usize, usize)| (count.div_ceil(50), size);
    Content { messages: shrink_count(content.messages), files: shrink_count(content.files), ..content }
}

/// Returns different contents of random bytes.
fn create_contents((count, size): (usize, usize)) -> Vec<Bytes> {
    let mut random = vec![0; size];
    rand::rng().fill_bytes(&mut random);
    let random = Bytes::from(random);
    (0..count).map(|number| content(&random, size, format!("{number:09}")).concat().into()).collect()
}

/// Creates a project with the given content, on another server process, so that its memory is not measured.
async fn create_project(bench: &Bench, content: Content, contents: &[Bytes]) -> anyhow::Result<Project> {
    let server = Server::start(bench, "encryption").await?;
    let mut client = server.client().await?;
    let project = Project::create(&mut client).await?;
    let (count, size) = content.messages;
    let mut sessions = Vec::new();
    for _ in 0..count.div_ceil(MESSAGES_PER_SESSION) {
        sessions.push(project.new_session(&mut client, false).await?);
    }
    let text: Arc<str> = prose(1, size).into();
    send_all(&server, count, &project, move |number| {
        let text = [&format!("{number:09} "), &text[..size - 10]].concat();
        store_message(&sessions[number / MESSAGES_PER_SESSION], &json!({"role": "user", "content": text}))
    })
    .await?;
    let (contents, disk) = (contents.to_vec(), project.new_disk(&mut client).await?);
    send_all(&server, contents.len(), &project, move |number| {
        let content = [contents[number].clone(), Bytes::new()];
        Request::upload("PUT", &disk, "/", &format!("{number}.bin"), content)
    })
    .await?;
    server.stop()?;
    Ok(project)
}

/// Sends the requests with the numbers below `requests` by 16 clients.
async fn send_all(
    server: &Server,
    requests: usize,
    project: &Project,
    create: impl Fn(usize) -> Request + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let (count, create) = (Arc::new(AtomicUsize::new(0)), Arc::new(create));
    let outcome = run_load(server.address, Plan::until_exhausted(16), |_| -> Source {
        let (count, create, key) = (Arc::clone(&count), Arc::clone(&create), project.key.clone());
        Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            (number < requests).then(|| create(number).with_key(&key))
        })
    })
    .await;
    ensure!(outcome.failed() == 0, "could not create the content of a project: {:?}", outcome.failures());
    Ok(())
}

/// Checks that nothing is left in the other storage format.
async fn ensure_converted(connection: &mut PgConnection, project: &Project, encrypt: bool) -> anyhow::Result<()> {
    let unconverted: (i64, i64) =
        sqlx::query_as(UNCONVERTED_SQL).bind(project.id).bind(encrypt).fetch_one(connection).await?;
    ensure!(unconverted == (0, 0), "{unconverted:?} messages and files are still in the other storage format");
    Ok(())
}

/// Returns how long Postgres takes to rewrite the same number of messages in a table without foreign keys.
async fn rewrite(connection: &mut PgConnection, project: &Project, messages: usize) -> anyhow::Result<Duration> {
    if messages == 0 {
        return Ok(Duration::ZERO);
    }
    sqlx::raw_sql(PLAIN_TABLE_SQL).execute(&mut *connection).await?;
    sqlx::query(FILL_SQL).bind(project.id).execute(&mut *connection).await?;
    sqlx::raw_sql("vacuum (analyze) plain").execute(&mut *connection).await?;
    let update = sqlx::query("update plain set content = content || $1, encrypted_as = $2");
    let update = update.bind(&ENCRYPTION_OVERHEAD[..]).bind(Uuid::now_v7());
    let start = Instant::now();
    let rewritten = update.execute(&mut *connection).await?.rows_affected();
    let time = start.elapsed();
    ensure!(rewritten == messages as u64, "{rewritten} rows instead of {messages}");
    sqlx::raw_sql("drop table plain").execute(&mut *connection).await?;
    Ok(time)
}
