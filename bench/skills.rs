//! Taking a skill in that comes as an archive, beside the disk's own time for its files; what a bomb does to the server.

use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use rand::RngCore;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::corpus::prose;
use crate::http::Request;
use crate::load::{median, real};
use crate::memory::mib;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server, new_folder};
use crate::{Bench, block_on, bomb, disk};

const FILES: usize = 200;
/// Of the files, by turns, in bytes: 20 MB together.
const SIZES: [usize; 4] = [10_000, 40_000, 100_000, 250_000];
const ROUNDS: usize = 7;
/// As many as the server writes at once.
const THREADS: usize = 8;
/// How much longer than the disk itself, in seconds.
const TARGET: f64 = 1.0;
/// How long a server is left alone, in seconds.
const ALONE: u64 = 10;
/// How often each bomb is sent.
const BOMBS: usize = 2;
/// What it may take, in MiB.
const GROWTH: f64 = 8.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        bombs(bench, report).await?;
        skills(bench, report).await
    })
}

/// A server that has checked the key and then was left alone, and what it holds, in KiB.
async fn idle(bench: &Bench) -> anyhow::Result<(Server, u64)> {
    let server = Server::start(bench, "skills").await?;
    server.client().await?.data(&Request::get("list", "/api/v1/agent_skills")).await?;
    tokio::time::sleep(bench.seconds(ALONE)).await;
    let idle = server.process.memory()?.resident;
    Ok((server, idle))
}

/// What came of one request.
struct Seen {
    status: u16,
    said: String,
    /// Of the answer, in bytes.
    length: usize,
    time: Duration,
    cpu: Duration,
    /// The most memory during it, in KiB.
    peak: u64,
}

impl Seen {
    async fn of(server: &Server, request: &Request) -> anyhow::Result<Self> {
        let mut client = server.client().await?;
        Memory::forget_peak(&server.process)?;
        let (before, start) = (server.process.cpu_time()?, Instant::now());
        let answer = client.send(request).await.with_context(|| format!("{} got no answer", request.kind))?;
        let time = start.elapsed();
        let cpu = server.process.cpu_time()?.saturating_sub(before);
        let said = String::from_utf8_lossy(answer.body).into_owned();
        let peak = server.process.memory()?.peak;
        Ok(Self { status: answer.status, said, length: answer.length, time, cpu, peak })
    }

    fn ms(&self) -> f64 {
        self.time.as_secs_f64() * 1000.0
    }
}

async fn bombs(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let heads = ["the list of contents", "archive bytes", "becomes MiB", "status", "ms", "peak MiB", "above idle MiB"];
    let mut table = Table::new(&heads);
    let (server, idle) = idle(bench).await?;
    let (mut most, mut refused, mut said) = (0.0_f64, true, Vec::new());
    for (name, honest) in [("tells the sizes", true), ("tells small sizes", false)] {
        let bomb = bomb::make(honest)?;
        for at in 0..BOMBS {
            let seen = Seen::of(&server, &Request::skill("POST a bomb", bomb.archive.clone())).await?;
            let above = mib(seen.peak.saturating_sub(idle));
            (most, refused) = (most.max(above), refused && (400..500).contains(&seen.status));
            let mut row = vec![name.to_owned(), bomb.archive.len().to_string()];
            row.extend([number(real(bomb.unpacked) / 1_048_576.0), seen.status.to_string()]);
            row.extend([seen.ms(), mib(seen.peak), above].map(number));
            table.row(row);
            if at == 0 {
                said.push(format!("- {name}: `{}`", seen.said));
            }
        }
    }
    server.stop()?;
    report.text(&format!(
        "A zip archive whose files overlap, on a server that has checked the key and then was alone for {ALONE} s ({} MiB). \
         Memory is the server process alone (`VmRSS`); the peak is of one request (`VmHWM`, reset before each). What the \
         server answered:",
        number(mib(idle))
    ));
    report.text(&said.join("\n"));
    report.table("Bombs", &table);
    report.target("bombs are refused", if refused { "all" } else { "not all" }, "all", refused);
    let measured = format!("{} MiB", number(most));
    report.target("growth by a bomb", &measured, "<= 8 MiB above idle", most <= GROWTH);
    Ok(())
}

async fn skills(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let heads = ["upload", "archive MB", "ms", "server CPU ms", "disk ms", "peak MiB", "above idle MiB"];
    let mut table = Table::new(&heads);
    let (server, idle) = idle(bench).await?;
    let (mut times, mut disk_times, mut skill) = (Vec::new(), Vec::new(), String::new());
    for round in 0..bench.pick(ROUNDS, 2) {
        let contents = contents(bench, round);
        let archive = pack(&contents)?;
        let size = real(archive.len() as u64) / 1e6;
        settle(bench).await;
        let seen = Seen::of(&server, &Request::skill("POST a skill", archive)).await?;
        ensure!(seen.status == 201, "a skill was answered {}: {}", seen.status, seen.said);
        skill = id(&seen.said, contents.len())?;
        settle(bench).await;
        let disk = disk::write_each(&new_folder(&bench.folder, "disk")?, THREADS, &contents)?.as_secs_f64() * 1000.0;
        let memory = [seen.peak, seen.peak.saturating_sub(idle)].map(mib);
        let numbers = [size, seen.ms(), seen.cpu.as_secs_f64() * 1000.0, disk, memory[0], memory[1]].map(number);
        table.row([format!("{}", round + 1)].into_iter().chain(numbers));
        times.push(seen.ms());
        disk_times.push(disk);
    }
    report.text(&format!(
        "A zip archive of {} files, half of them text and half random bytes, 20 MB unpacked, all contents its own. Right the \
         disk: {THREADS} threads that write files with the same contents, each written aside, synced, renamed and its folder \
         synced. Idle is {} MiB; what the allocator keeps of one upload counts in the next.",
        bench.pick(FILES, FILES / 10),
        number(mib(idle))
    ));
    report.table("Uploads", &table);
    report.table("Downloads as an archive", &downloads(bench, &server, &skill, idle).await?);
    server.stop()?;
    let (ours, disk) = (median(times) / 1000.0, median(disk_times) / 1000.0);
    let measured = format!("{} s, {} s of them the disk's", number(ours), number(disk));
    report.target("upload of 20 MB (median)", &measured, "< 1 s and the disk's time", ours - disk < TARGET);
    Ok(())
}

async fn downloads(bench: &Bench, server: &Server, skill: &str, idle: u64) -> anyhow::Result<Table> {
    let mut table = Table::new(&["download", "archive MB", "ms", "server CPU ms", "peak MiB", "above idle MiB"]);
    let request = Request::get("GET download_zip", &format!("/api/v1/agent_skills/{skill}/download_zip"));
    for round in 0..bench.pick(3, 1) {
        let seen = Seen::of(server, &request).await?;
        ensure!(seen.status == 200, "a download was answered {}: {}", seen.status, seen.said);
        let size = real(seen.length as u64) / 1e6;
        let memory = [seen.peak, seen.peak.saturating_sub(idle)].map(mib);
        let numbers = [size, seen.ms(), seen.cpu.as_secs_f64() * 1000.0, memory[0], memory[1]].map(number);
        table.row([format!("{}", round + 1)].into_iter().chain(numbers));
    }
    Ok(table)
}

/// Lets the disk be done with what was written and removed.
async fn settle(bench: &Bench) {
    rustix::fs::sync();
    tokio::time::sleep(bench.seconds(1)).await;
}

/// The files of a skill, SKILL.md first.
fn contents(bench: &Bench, round: usize) -> Vec<Bytes> {
    let text = prose(round as u64, 2 * SIZES[3]);
    let file = |number: usize| {
        let size = SIZES[number % SIZES.len()];
        if number % 8 < 4 {
            let head = if number == 0 {
                format!("---\nname: skill-{round}\ndescription: One of many files.\n---\n")
            } else {
                format!("{round} {number} ")
            };
            let start = number * 1_000;
            return Bytes::from([&head, &text[start..start + size - head.len()]].concat());
        }
        let mut random = vec![0; size];
        rand::rng().fill_bytes(&mut random);
        random.into()
    };
    (0..bench.pick(FILES, FILES / 10)).map(file).collect()
}

fn pack(contents: &[Bytes]) -> anyhow::Result<Bytes> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (number, content) in contents.iter().enumerate() {
        let name = match number {
            0 => "SKILL.md".to_owned(),
            _ if number % 8 < 4 => format!("notes/{}/{number:03}.md", number % 10),
            _ => format!("data/{}/{number:03}.bin", number % 10),
        };
        writer.start_file(name, SimpleFileOptions::default())?;
        writer.write_all(content)?;
    }
    Ok(writer.finish()?.into_inner().into())
}

/// The id of a new skill, which must have so many files.
fn id(said: &str, files: usize) -> anyhow::Result<String> {
    let answer: serde_json::Value = serde_json::from_str(said)?;
    let skill = &answer["data"];
    let listed = skill["file_index"].as_array().map_or(0, Vec::len);
    ensure!(listed == files, "a skill has {listed} files instead of {files}");
    Ok(skill["id"].as_str().context("a new skill has no id")?.to_owned())
}
