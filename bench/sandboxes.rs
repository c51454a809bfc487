//! Sandboxes on this machine: commands next to bubblewrap alone, 200 live sandboxes, and files that are copied in and out.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use rand::RngCore;
use serde_json::json;

use crate::disk;
use crate::http::{Client, Request};
use crate::load::{Plan, Times};
use crate::memory::mib;
use crate::report::{Report, Table, number};
use crate::server::{Server, new_dir};
use crate::{Bench, block_on};

const CLIENTS: [usize; 2] = [1, 32];
const LIVE_SANDBOXES: usize = 200;
const FILE_LEN: usize = 16 << 20;
/// What bubblewrap needs to run a program with namespaces of its own.
const BUBBLEWRAP: &[&str] = &[
    "--unshare-all",
    "--die-with-parent",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--",
    "/bin/bash",
    "-c",
    "true",
];

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        let server = Server::start_with(bench, "sandboxes", &[("ACONTEXTD_SANDBOXES", "1000".to_owned())]).await?;
        measure_commands(bench, report, &server).await?;
        measure_live_sandboxes(bench, report, &server).await?;
        measure_files(bench, report, &server).await?;
        server.stop()
    })
}

async fn create(client: &mut Client) -> anyhow::Result<String> {
    let created = client.data(&Request::post_json("create", "/api/v1/sandbox", "{}")).await?;
    Ok(created["sandbox_id"].as_str().context("no sandbox_id")?.to_owned())
}

async fn exec(client: &mut Client, sandbox: &str, command: &str) -> anyhow::Result<()> {
    let body = json!({"command": command}).to_string();
    let output = client.data(&Request::post_json("exec", &format!("/api/v1/sandbox/{sandbox}/exec"), body)).await?;
    ensure!(output["exit_code"] == 0, "the command has failed: {output}");
    Ok(())
}

async fn kill(client: &mut Client, sandbox: &str) -> anyhow::Result<()> {
    client.data(&Request::delete("kill", &format!("/api/v1/sandbox/{sandbox}"))).await.map(drop)
}

/// Measures how long it takes to create a sandbox, run `true` in it, and kill it.
async fn measure_commands(bench: &Bench, report: &mut Report, server: &Server) -> anyhow::Result<()> {
    let mut table =
        Table::new(&["clients", "server p50 ms", "server p99 ms", "bubblewrap p50 ms", "bubblewrap p99 ms"]);
    for clients in CLIENTS {
        let cycles = bench.full_or_quick(320, 32) / clients;
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(server.client().await?);
        }
        let run = connections.iter_mut().map(async |client| {
            let mut times = Vec::new();
            for _ in 0..cycles {
                let start = Instant::now();
                let sandbox = create(client).await?;
                exec(client, &sandbox, "true").await?;
                kill(client, &sandbox).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
        let server_times: Times = try_join_all(run).await?.concat().into_iter().collect();
        let alone: Times = run_bubblewrap(clients, cycles)?.into_iter().collect();
        let numbers = [server_times.p50(), server_times.p99(), alone.p50(), alone.p99()].map(number);
        table.add_row([clients.to_string()].into_iter().chain(numbers));
        let (what, measured, baseline) = match clients {
            1 => ("1 client, p50", server_times.p50(), alone.p50()),
            _ => ("32 clients, p99", server_times.p99(), alone.p99()),
        };
        let target = format!("at most 3 times that of bubblewrap ({} ms)", number(baseline));
        report.add_target(what, &format!("{} ms", number(measured)), &target, measured <= 3.0 * baseline);
    }
    report.add_text(
        "Left: POST `/sandbox`, POST `exec` with `true`, and DELETE. Right: the same number of threads, which run `true` with \
         bubblewrap and the same namespaces.",
    );
    report.add_table("Create, run a command, kill", &table);
    Ok(())
}

/// Runs `true` with bubblewrap on several threads. Returns how long each run took.
fn run_bubblewrap(threads: usize, runs: usize) -> anyhow::Result<Vec<Duration>> {
    let work = || -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::new();
        for _ in 0..runs {
            let start = Instant::now();
            let status = Command::new("bwrap").args(BUBBLEWRAP).stdin(Stdio::null()).status();
            ensure!(status.context("cannot run bwrap")?.success(), "bwrap has failed");
            times.push(start.elapsed());
        }
        Ok(times)
    };
    let times: anyhow::Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join =
            |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().map_err(|_| anyhow::anyhow!("panic"))?;
        threads.into_iter().map(join).collect()
    });
    Ok(times?.concat())
}

/// Measures what live sandboxes need, and what is left of them.
async fn measure_live_sandboxes(bench: &Bench, report: &mut Report, server: &Server) -> anyhow::Result<()> {
    let mut client = server.client().await?;
    let count = bench.full_or_quick(LIVE_SANDBOXES, 20);
    let mut table = Table::new(&["", "resident MiB", "processes", "directories"]);
    let mut resident = Vec::new();
    let dir = server.data.join("sandboxes");
    let mut measure = |what: &str| -> anyhow::Result<(usize, usize)> {
        let memory = mib(server.process.memory()?.resident);
        let (processes, directories) = (count_processes(&dir.display().to_string())?, fs::read_dir(&dir)?.count());
        table.add_row([what.to_owned(), number(memory), processes.to_string(), directories.to_string()]);
        resident.push(memory);
        Ok((processes, directories))
    };
    let before = measure("before")?;
    for round in 0..2 {
        let mut sandboxes = Vec::new();
        for _ in 0..count {
            sandboxes.push(create(&mut client).await?);
        }
        for sandbox in &sandboxes {
            exec(&mut client, sandbox, "echo x > file").await?;
        }
        measure(&format!("{count} sandboxes, round {}", round + 1))?;
        for sandbox in &sandboxes {
            kill(&mut client, sandbox).await?;
        }
    }
    let after = measure("all are killed")?;
    ensure!(before == after, "something is left: {before:?} processes and directories before, {after:?} after");
    report.add_table("Live sandboxes", &table);
    let [_, first, second, _] = resident[..] else { anyhow::bail!("four measurements were expected") };
    let target = format!("at most 10 % more than in the first one ({} MiB)", number(first));
    report.add_target("memory in the second round", &format!("{} MiB", number(second)), &target, second <= first * 1.1);
    Ok(())
}

/// Returns the number of processes whose command line contains a text.
fn count_processes(text: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        count += usize::from(command_line.windows(text.len()).any(|window| window == text.as_bytes()));
    }
    Ok(count)
}

/// Measures how fast a file is copied from a disk to a sandbox and back.
async fn measure_files(bench: &Bench, report: &mut Report, server: &Server) -> anyhow::Result<()> {
    let mut client = server.client().await?;
    let (sandbox, disk) = (create(&mut client).await?, client.new_disk().await?);
    let artifact = format!("/api/v1/disk/{disk}/artifact");
    let rounds = bench.full_or_quick(12, 2);
    let (mut inward, mut outward) = (Vec::new(), Vec::new());
    let mut content = vec![0; FILE_LEN];
    for round in 0..rounds {
        rand::rng().fill_bytes(&mut content);
        let name = format!("{round}.bin");
        let parts = [bytes::Bytes::from(content.clone()), bytes::Bytes::new()];
        client.data(&Request::upload("upload", &disk, "/", &name, parts)).await?;
        let body = json!({"file_path": "/", "filename": name, "sandbox_id": sandbox, "sandbox_path": "/workspace"});
        let request = Request::post_json("copy in", &format!("{artifact}/download_to_sandbox"), body.to_string());
        let (copied, time) = client.timed(&request).await?;
        ensure!(copied["success"] == true, "the file was not copied: {copied}");
        inward.push(time);
        // Another content, because the disk has this one already.
        exec(&mut client, &sandbox, &format!("echo x >> {name}; truncate -s {FILE_LEN} {name}; printf {round} | dd of={name} conv=notrunc status=none")).await?;
        let body = json!({"file_path": "/out/", "sandbox_filename": name, "sandbox_id": sandbox, "sandbox_path": "/workspace"});
        let request = Request::post_json("copy out", &format!("{artifact}/upload_from_sandbox"), body.to_string());
        outward.push(client.timed(&request).await?.1);
        exec(&mut client, &sandbox, &format!("rm {name}")).await?;
    }
    kill(&mut client, &sandbox).await?;
    let dir = new_dir(&bench.dir, "disk")?;
    let plan = Plan { clients: 1, warm_up: Duration::from_millis(100), time: bench.seconds(4) };
    let disk_rate = disk::write_files(&dir, plan, FILE_LEN)?.per_second() * 16.0;
    new_dir(&bench.dir, "disk")?;
    let mut table = Table::new(&["", "MiB/s", "of the disk"]);
    for (what, times) in [("into a sandbox", inward), ("out of a sandbox", outward)] {
        let rate = 16.0 * 1000.0 / times.into_iter().collect::<Times>().p50();
        table.add_row([what.to_owned(), number(rate), number(rate / disk_rate)]);
        let target = format!("70 % of the disk ({} MiB/s)", number(disk_rate));
        report.add_target(
            &format!("copy {what}"),
            &format!("{} MiB/s", number(rate)),
            &target,
            rate >= 0.7 * disk_rate,
        );
    }
    report.add_text(
        "The median of copies of a file of 16 MiB, compared with a thread that writes such files and syncs them. A copy out of a \
         sandbox is synced, too, and a copy into a sandbox is not.",
    );
    report.add_table("Copies of files", &table);
    Ok(())
}
