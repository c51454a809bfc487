//! Encrypting a project and opening it again: how long it takes, beside what Postgres and the disk need for as much, and the
//! server's memory meanwhile. What it costs to work in an encrypted project is in [`sealed`].

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
use crate::http::Request;
use crate::load::{Plan, Source, drive, median, real};
use crate::memory::mib;
use crate::messages::store;
use crate::private::Private;
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server, new_folder};
use crate::{Bench, block_on, disk, sealed};

/// What is in a project: so many messages and files of that size, in bytes.
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

const WHOLE: Content =
    Content { name: "10 000 messages and 1 000 files", messages: (10_000, 1 << 10), files: (1_000, 20_000) };
/// Each with more of the same, which must not take more memory.
const PAIRS: [[Content; 2]; 4] = [
    [messages("10 000 messages of 1 KiB", 10_000, 1 << 10), messages("20 000 messages of 1 KiB", 20_000, 1 << 10)],
    [messages("1 000 messages of 64 KiB", 1_000, 64 << 10), messages("2 000 messages of 64 KiB", 2_000, 64 << 10)],
    [files("1 000 files of 20 KB", 1_000, 20_000), files("2 000 files of 20 KB", 2_000, 20_000)],
    [files("8 files of 16 MiB", 8, 16 << 20), files("16 files of 16 MiB", 16, 16 << 20)],
];
/// How many messages a session has.
const EACH: usize = 100;
const ROUNDS: usize = 3;
/// As many as the server turns at once.
const THREADS: usize = 4;
/// How long a server is left alone, in seconds.
const ALONE: u64 = 3;
/// In MiB: what it may take, and how much more for more of the same.
const GROWTH: f64 = 64.0;
const MORE: f64 = 8.0;

/// What sealing a message adds to it, about.
const SEAL: &[u8; 140] = &[b'x'; 140];
const PLAIN: &str = "drop table if exists plain; create table plain (like messages including all)";
const FILL: &str = "insert into plain select m.* from messages m join sessions s on s.id = m.session_id
    where s.project_id = $1";
const LEFT: &str = "select (select count(*) from messages m join sessions s on s.id = m.session_id
        where s.project_id = $1 and (m.encrypted_as is null) = $2),
    (select count(*) from blobs where project_id = $1 and (encryption_format is null) = $2)";

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        conversions(bench, report).await?;
        sealed::run(bench, report).await
    })
}

async fn conversions(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let heads = ["project", "encrypting s", "server CPU s", "a second", "decrypting s", "a second", "SQL and disk s"];
    let mut times = Table::new(&heads);
    let mut memory =
        Table::new(&["project", "idle MiB", "encrypting, peak MiB", "decrypting, peak MiB", "above idle MiB"]);
    let (mut most, mut more) = (0.0_f64, Vec::new());
    // The first start makes a key's hash, which takes memory that a later one does not.
    Server::start(bench, "encryption").await?.stop()?;
    for pair in PAIRS {
        let mut above = Vec::new();
        for one in pair {
            above.push(measure(bench, one, &mut times, &mut memory).await?);
        }
        most = above.iter().copied().fold(most, f64::max);
        more.push((pair, above[1] - above[0]));
    }
    most = most.max(measure(bench, WHOLE, &mut times, &mut memory).await?);
    report.text(&format!(
        "Each project lies on a server that was started for it, has checked the key and was then alone for {ALONE} s. It \
         is encrypted and opened again {ROUNDS} times; the median of the times, from the request until the route that tells \
         how far it is says that it is done. Messages are in sessions of {EACH}, and every file has a content of its own. \
         *SQL and disk*: one statement that writes as many messages anew, {} bytes longer, in a table with the same indexes \
         and without references; then {THREADS} threads that write files with the same contents, each written aside, synced, \
         renamed and its folder synced.",
        SEAL.len()
    ));
    report.table("Encrypting and decrypting", &times);
    report.text(
        "The server process alone (`VmRSS`), and its peak (`VmHWM`, reset before each conversion) of all rounds. 16 MiB of it \
         are a check of the key: a change of the project makes the server forget which keys it knows.",
    );
    report.table("Memory meanwhile", &memory);
    report.target("growth while converting", &format!("{} MiB", number(most)), "< 64 MiB above idle", most < GROWTH);
    for ([one, other], more) in more {
        let what = format!("{} instead of {}", other.name, one.name);
        report.target(&what, &format!("{} MiB more", number(more)), "<= 8 MiB more", more <= MORE);
    }
    Ok(())
}

/// What the conversions of a project have taken.
#[derive(Default)]
struct Taken {
    /// In seconds.
    times: Vec<f64>,
    cpu: Vec<f64>,
    /// In KiB.
    peak: u64,
}

/// How much memory was taken above idle, in MiB.
async fn measure(bench: &Bench, content: Content, times: &mut Table, memory: &mut Table) -> anyhow::Result<f64> {
    let content = if bench.quick { smaller(content) } else { content };
    let contents = file_contents(content.files);
    let project = fill(bench, content, &contents).await?;
    let server = Server::start(bench, "encryption").await?;
    let mut client = server.client().await?;
    let mut connection = Private::of(&server)?.options().connect().await?;
    client.data(&project.asks(Request::get("encryption", "/api/v1/project/encryption"))).await?;
    tokio::time::sleep(bench.seconds(ALONE)).await;
    let idle = server.process.memory()?.resident;
    let (count, mut taken, mut beside) =
        (content.messages.0 + content.files.0, [Taken::default(), Taken::default()], Vec::new());
    for _ in 0..bench.pick(ROUNDS, 1) {
        for (seals, taken) in [true, false].into_iter().zip(&mut taken) {
            Memory::forget_peak(&server.process)?;
            let (before, start) = (server.process.cpu_time()?, Instant::now());
            project.convert(&mut client, seals, count).await?;
            taken.times.push(start.elapsed().as_secs_f64());
            taken.cpu.push(server.process.cpu_time()?.saturating_sub(before).as_secs_f64());
            taken.peak = taken.peak.max(server.process.memory()?.peak);
            ensure_turned(&mut connection, &project, seals).await?;
        }
        let sql = rewrite(&mut connection, &project, content.messages.0).await?;
        let files = disk::write_each(&new_folder(&bench.folder, "disk")?, THREADS, &contents)?;
        beside.push((sql + files).as_secs_f64());
    }
    connection.close().await?;
    server.stop()?;
    let [sealing, opening] = taken;
    let above = mib(sealing.peak.max(opening.peak).saturating_sub(idle));
    let numbers = [mib(idle), mib(sealing.peak), mib(opening.peak), above].map(number);
    memory.row([content.name.to_owned()].into_iter().chain(numbers));
    let (count, sealed, opened) = (real(count as u64), median(sealing.times), median(opening.times));
    let numbers = [sealed, median(sealing.cpu), count / sealed, opened, count / opened, median(beside)].map(number);
    times.row([content.name.to_owned()].into_iter().chain(numbers));
    Ok(above)
}

fn smaller(content: Content) -> Content {
    let less = |(count, size): (usize, usize)| (count.div_ceil(50), size);
    Content { messages: less(content.messages), files: less(content.files), ..content }
}

/// Random bytes, which differ.
fn file_contents((count, size): (usize, usize)) -> Vec<Bytes> {
    let mut random = vec![0; size];
    rand::rng().fill_bytes(&mut random);
    let random = Bytes::from(random);
    (0..count).map(|number| content(&random, size, format!("{number:09}")).concat().into()).collect()
}

/// A project with that content. What storing it takes of memory stays with the server that did it.
async fn fill(bench: &Bench, content: Content, contents: &[Bytes]) -> anyhow::Result<Project> {
    let server = Server::start(bench, "encryption").await?;
    let mut client = server.client().await?;
    let project = Project::make(&mut client).await?;
    let (count, size) = content.messages;
    let mut sessions = Vec::new();
    for _ in 0..count.div_ceil(EACH) {
        sessions.push(project.new_session(&mut client, false).await?);
    }
    let text: Arc<str> = prose(1, size).into();
    send(&server, count, &project, move |number| {
        let said = [&format!("{number:09} "), &text[..size - 10]].concat();
        store(&sessions[number / EACH], &json!({"role": "user", "content": said}))
    })
    .await?;
    let (contents, disk) = (contents.to_vec(), project.new_disk(&mut client).await?);
    send(&server, contents.len(), &project, move |number| {
        let content = [contents[number].clone(), Bytes::new()];
        Request::upload("PUT", &disk, "/", &format!("{number}.bin"), content)
    })
    .await?;
    server.stop()?;
    Ok(project)
}

/// So many requests by 16 clients.
async fn send(
    server: &Server,
    requests: usize,
    project: &Project,
    make: impl Fn(usize) -> Request + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let (count, make) = (Arc::new(AtomicUsize::new(0)), Arc::new(make));
    let done = drive(server.address, Plan::to_the_end(16), |_| -> Source {
        let (count, make, key) = (Arc::clone(&count), Arc::clone(&make), project.key.clone());
        Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            (number < requests).then(|| make(number).with_key(&key))
        })
    })
    .await;
    ensure!(done.failed() == 0, "a project could not be filled: {:?}", done.failures());
    Ok(())
}

/// Nothing is left in the other form.
async fn ensure_turned(connection: &mut PgConnection, project: &Project, seals: bool) -> anyhow::Result<()> {
    let left: (i64, i64) = sqlx::query_as(LEFT).bind(project.id).bind(seals).fetch_one(connection).await?;
    ensure!(left == (0, 0), "{left:?} messages and files are still in the other form");
    Ok(())
}

/// How long Postgres takes to write as many messages anew in a table that nothing refers to.
async fn rewrite(connection: &mut PgConnection, project: &Project, messages: usize) -> anyhow::Result<Duration> {
    if messages == 0 {
        return Ok(Duration::ZERO);
    }
    sqlx::raw_sql(PLAIN).execute(&mut *connection).await?;
    sqlx::query(FILL).bind(project.id).execute(&mut *connection).await?;
    sqlx::raw_sql("vacuum (analyze) plain").execute(&mut *connection).await?;
    let update = sqlx::query("update plain set content = content || $1, encrypted_as = $2");
    let update = update.bind(&SEAL[..]).bind(Uuid::now_v7());
    let start = Instant::now();
    let rewritten = update.execute(&mut *connection).await?.rows_affected();
    let time = start.elapsed();
    ensure!(rewritten == messages as u64, "{rewritten} rows instead of {messages}");
    sqlx::raw_sql("drop table plain").execute(&mut *connection).await?;
    Ok(time)
}
