//! Uploading a skill as an archive, compared with writing its files to the disk; and the effect of a zip bomb on the
//! server.

use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use rand::RngCore;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::corpus::prose;
use crate::http::Request;
use crate::load::{median, to_f64};
use crate::memory::mib;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server, new_dir};
use crate::{Bench, block_on, disk, zip_bomb};

const FILES: usize = 200;
/// The sizes of the files in bytes, which are used in turn. All files together have 20 MB.
const SIZES: [usize; 4] = [10_000, 40_000, 100_000, 250_000];
const ROUNDS: usize = 7;
/// The number of files that the server writes concurrently.
const THREADS: usize = 8;
/// How much longer than writing the files to the disk an upload may take, in seconds.
const MAX_EXTRA_SECONDS: f64 = 1.0;
/// How long a server is idle before its memory is measured, in seconds.
const IDLE_SECS: u64 = 10;
/// How often each bomb is sent.
const UPLOADS_PER_BOMB: usize = 2;
/// The target for the growth of the memory by a bomb, in MiB.
const MAX_GROWTH_MIB: f64 = 8.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        measure_bombs(bench, report).await?;
        measure_uploads(bench, report).await
    })
}

/// Starts a server, lets it verify the key, and waits. Returns the server and its idle memory in KiB.
async fn start_idle_server(bench: &Bench) -> anyhow::Result<(Server, u64)> {
    let server = Server::start(bench, "skills").await?;
    server.client().await?.data(&Request::get("list", "/api/v1/agent_skills")).await?;
    tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
    let idle = server.process.memory()?.resident;
    Ok((server, idle))
}

/// The response and the cost of one request.
struct RequestStats {
    status: u16,
    body: String,
    /// The length of the response body, in bytes.
    length: usize,
    time: Duration,
    cpu: Duration,
    /// The peak memory during the request, in KiB.
    peak: u64,
}

impl RequestStats {
    /// Sends the request and measures it.
    async fn measure(server: &Server, request: &Request) -> anyhow::Result<Self> {
        let mut client = server.client().await?;
        Memory::reset_peak(&server.process)?;
        let (before, start) = (server.process.cpu_time()?, Instant::now());
        let response = client.send(request).await.with_context(|| format!("{} got no response", request.kind))?;
        let time = start.elapsed();
        let cpu = server.process.cpu_time()?.saturating_sub(before);
        let body = String::from_utf8_lossy(response.body).into_owned();
        let peak = server.process.memory()?.peak;
        Ok(Self { status: response.status, body, length: response.length, time, cpu, peak })
    }

    fn ms(&self) -> f64 {
        self.time.as_secs_f64() * 1000.0
    }
}

async fn measure_bombs(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let headings = ["declared sizes", "archive bytes", "unpacked MiB", "status", "ms", "peak MiB", "above idle MiB"];
    let mut table = Table::new(&headings);
    let (server, idle) = start_idle_server(bench).await?;
    let (mut highest, mut rejected, mut responses) = (0.0_f64, true, Vec::new());
    for (name, declares_real_sizes) in [("real sizes", true), ("small sizes", false)] {
        let zip_bomb = zip_bomb::build(declares_real_sizes)?;
        for index in 0..UPLOADS_PER_BOMB {
            let stats =
                RequestStats::measure(&server, &Request::skill("POST a bomb", zip_bomb.archive.clone())).await?;
            let above = mib(stats.peak.saturating_sub(idle));
            (highest, rejected) = (highest.max(above), rejected && (400..500).contains(&stats.status));
            let mut row = vec![name.to_owned(), zip_bomb.archive.len().to_string()];
            row.extend([number(to_f64(zip_bomb.unpacked) / 1_048_576.0), stats.status.to_string()]);
            row.extend([stats.ms(), mib(stats.peak), above].map(number));
            table.add_row(row);
            if index == 0 {
                responses.push(format!("- {name}: `{}`", stats.body));
            }
        }
    }
    server.stop()?;
    report.add_text(&format!(
        "A zip archive whose files overlap, on a server that has verified the key and then was idle for {IDLE_SECS} s \
         ({} MiB). The memory is that of the server process alone (`VmRSS`). The peak is that of one request (`VmHWM`, \
         reset before each request). The responses of the server:",
        number(mib(idle))
    ));
    report.add_text(&responses.join("\n"));
    report.add_table("Zip bombs", &table);
    report.add_target("bombs are rejected", if rejected { "all" } else { "not all" }, "all", rejected);
    let measured = format!("{} MiB", number(highest));
    report.add_target("growth by a bomb", &measured, "<= 8 MiB above idle", highest <= MAX_GROWTH_MIB);
    Ok(())
}

async fn measure_uploads(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let headings = ["upload", "archive MB", "ms", "server CPU ms", "disk ms", "peak MiB", "above idle MiB"];
    let mut table = Table::new(&headings);
    let (server, idle) = start_idle_server(bench).await?;
    let (mut times, mut disk_times, mut skill) = (Vec::new(), Vec::new(), String::new());
    for round in 0..bench.full_or_quick(ROUNDS, 2) {
        let contents = create_contents(bench, round);
        let archive = pack(&contents)?;
        let size = to_f64(archive.len() as u64) / 1e6;
        wait_for_disk_idle(bench).await;
        let stats = RequestStats::measure(&server, &Request::skill("POST a skill", archive)).await?;
        ensure!(stats.status == 201, "the upload of a skill returned {}: {}", stats.status, stats.body);
        skill = skill_id(&stats.body, contents.len())?;
        wait_for_disk_idle(bench).await;
        let disk = disk::write_contents(&new_dir(&bench.dir, "disk")?, THREADS, &contents)?.as_secs_f64() * 1000.0;
        let memory = [stats.peak, stats.peak.saturating_sub(idle)].map(mib);
        let numbers = [size, stats.ms(), stats.cpu.as_secs_f64() * 1000.0, disk, memory[0], memory[1]].map(number);
        table.add_row([format!("{}", round + 1)].into_iter().chain(numbers));
        times.push(stats.ms());
        disk_times.push(disk);
    }
    report.add_text(&format!(
        "A zip archive of {} files, half of them text and half random bytes, 20 MB unpacked, with different contents \
         in every upload. *disk* is the time of {THREADS} threads that write files with the same contents: each is \
         written to a temporary file, synced and renamed, and its directory is synced. The idle memory is {} MiB. \
         Memory that the allocator retains after one upload counts in the next.",
        bench.full_or_quick(FILES, FILES / 10),
        number(mib(idle))
    ));
    report.add_table("Uploads", &table);
    report.add_table("Downloads as an archive", &measure_downloads(bench, &server, &skill, idle).await?);
    server.stop()?;
    let (upload_secs, disk) = (median(times) / 1000.0, median(disk_times) / 1000.0);
    let measured = format!("{} s, disk {} s", number(upload_secs), number(disk));
    report.add_target("upload of 20 MB (median)", &measured, "< disk + 1 s", upload_secs - disk < MAX_EXTRA_SECONDS);
    Ok(())
}

async fn measure_downloads(bench: &Bench, server: &Server, skill: &str, idle: u64) -> anyhow::Result<Table> {
    let mut table = Table::new(&["download", "archive MB", "ms", "server CPU ms", "peak MiB", "above idle MiB"]);
    let request = Request::get("GET download_zip", &format!("/api/v1/agent_skills/{skill}/download_zip"));
    for round in 0..bench.full_or_quick(3, 1) {
        let stats = RequestStats::measure(server, &request).await?;
        ensure!(stats.status == 200, "a download returned {}: {}", stats.status, stats.body);
        let size = to_f64(stats.length as u64) / 1e6;
        let memory = [stats.peak, stats.peak.saturating_sub(idle)].map(mib);
        let numbers = [size, stats.ms(), stats.cpu.as_secs_f64() * 1000.0, memory[0], memory[1]].map(number);
        table.add_row([format!("{}", round + 1)].into_iter().chain(numbers));
    }
    Ok(table)
}

/// Waits until the disk has processed the writes and deletions.
async fn wait_for_disk_idle(bench: &Bench) {
    rustix::fs::sync();
    tokio::time::sleep(bench.seconds(1)).await;
}

/// Returns the contents of the files of a skill, beginning with SKILL.md.
fn create_contents(bench: &Bench, round: usize) -> Vec<Bytes> {
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
    (0..bench.full_or_quick(FILES, FILES / 10)).map(file).collect()
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

/// Returns the id of a new skill from the response. Checks that the skill has `files` files.
fn skill_id(body: &str, files: usize) -> anyhow::Result<String> {
    let response: serde_json::Value = serde_json::from_str(body)?;
    let skill = &response["data"];
    let listed = skill["file_index"].as_array().map_or(0, Vec::len);
    ensure!(listed == files, "a skill has {listed} files instead of {files}");
    Ok(skill["id"].as_str().context("a new skill has no id")?.to_owned())
}
