//! The memory of the server process: idle, and while large files come in and go out.

use bytes::Bytes;
use rand::RngCore;

use crate::artifacts::content;
use crate::http::{Request, percent_encode};
use crate::load::{Outcome, Plan, Source, drive, real};
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server, watch_memory};
use crate::{Bench, block_on};

const CLIENTS: usize = 16;
const SIZE: usize = 16 << 20;
/// How many files each client stores, one after the other.
const EACH: usize = 4;
/// In MiB.
const GROWTH: f64 = 64.0;
const IDLE: f64 = 50.0;
/// How long a server is left alone, in seconds.
const ALONE: u64 = 10;

/// 16 clients store 16 MiB each, four times; then they read them.
pub fn uploads(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB", "above idle MiB"]);
    block_on(async {
        // The first start makes a key's hash, which takes memory that a later one does not.
        Server::start(bench, "memory").await?.stop()?;
        let server = Server::start(bench, "memory").await?;
        tokio::time::sleep(bench.seconds(ALONE)).await;
        let idle = server.process.memory()?;
        table.row(row("idle", idle, idle));
        let disk = server.client().await?.new_disk().await?;
        table.row(row("one request later", server.process.memory()?, idle));
        let stored = run(&server, |client| stores(&disk, client)).await?;
        table.row(row("while 16 store 16 MiB each", stored.0, idle));
        table.row(row("right after", server.process.memory()?, idle));
        let read = run(&server, |client| reads(&disk, client)).await?;
        table.row(row("while 16 read 16 MiB each", read.0, idle));
        tokio::time::sleep(bench.seconds(ALONE)).await;
        table.row(row("10 s later", server.process.memory()?, idle));
        let growth = mib(stored.0.peak.saturating_sub(idle.resident));
        let what =
            format!("growth while {CLIENTS} store 16 MiB ({} stored, {} failed)", stored.1.count(), stored.1.failed());
        report.target(&what, &format!("{} MiB", number(growth)), "< 64 MiB", growth < GROWTH);
        server.stop()
    })?;
    report.text(
        "Resident memory (`VmRSS`) of the server process, its anonymous part (`RssAnon`), and the most since the line \
         before (`VmHWM`, reset between the lines). The database's processes are not in it.",
    );
    report.table("Memory", &table);
    Ok(())
}

async fn run(server: &Server, source: impl FnMut(usize) -> Source) -> anyhow::Result<(Memory, Outcome)> {
    Memory::forget_peak(&server.process)?;
    let mut outcome = Outcome::default();
    let load = async { outcome = drive(server.address, Plan::to_the_end(CLIENTS), source).await };
    let mut most = watch_memory(&server.process, load).await?;
    most.peak = server.process.memory()?.peak;
    Ok((most, outcome))
}

fn stores(disk: &str, client: usize) -> Source {
    let mut bytes = vec![0; SIZE];
    rand::rng().fill_bytes(&mut bytes);
    let (random, disk, mut numbers) = (Bytes::from(bytes), disk.to_owned(), 0..EACH);
    Box::new(move || {
        let name = format!("{client}-{}.bin", numbers.next()?);
        Some(Request::upload("PUT", &disk, "/", &name, content(&random, SIZE, name.clone())))
    })
}

fn reads(disk: &str, client: usize) -> Source {
    let (disk, mut numbers) = (disk.to_owned(), 0..EACH);
    Box::new(move || {
        let file = percent_encode(&format!("/{client}-{}.bin", numbers.next()?));
        Some(Request::get("GET", &format!("/api/v1/disk/{disk}/artifact/download?file_path={file}")))
    })
}

/// A server that was started on its data and then left alone.
pub fn idle(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB", "above idle MiB"]);
    block_on(async {
        Server::start(bench, "idle").await?.stop()?;
        let server = Server::start(bench, "idle").await?;
        let started = server.process.memory()?;
        tokio::time::sleep(bench.seconds(ALONE)).await;
        let idle = server.process.memory()?;
        table.row(row("ready", started, idle));
        table.row(row("10 s later", idle, idle));
        let resident = mib(idle.resident);
        report.target("idle memory", &format!("{} MiB", number(resident)), "< 50 MiB", resident < IDLE);
        server.stop()
    })?;
    report.text(
        "Started on data that is there; no request but the one to `/ready`. The database's processes are not in it.",
    );
    report.table("Memory", &table);
    Ok(())
}

fn row(moment: &str, now: Memory, idle: Memory) -> Vec<String> {
    let above = mib(now.peak.max(now.resident)) - mib(idle.resident);
    let above = if moment.starts_with("while") { above } else { mib(now.resident) - mib(idle.resident) };
    vec![moment.to_owned(), number(mib(now.resident)), number(mib(now.anonymous)), number(mib(now.peak)), number(above)]
}

pub fn mib(kib: u64) -> f64 {
    real(kib) / 1024.0
}
