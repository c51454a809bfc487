//! The memory of the server process while it is idle, and while large files are uploaded and downloaded.

use bytes::Bytes;
use rand::RngCore;

use crate::artifacts::content;
use crate::http::{Request, percent_encode};
use crate::load::{Outcome, Plan, Source, run_load, to_f64};
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server, watch_memory};
use crate::{Bench, block_on};

const CLIENTS: usize = 16;
const SIZE: usize = 16 << 20;
/// The number of files that each client stores, one after the other.
const FILES_PER_CLIENT: usize = 4;
/// The target for the growth above the idle memory.
const MAX_GROWTH_MIB: f64 = 64.0;
/// The target for the memory of an idle server.
const MAX_IDLE_MIB: f64 = 50.0;
/// How long a server is idle before its memory is measured, in seconds.
const IDLE_SECS: u64 = 10;

/// Measures the memory while 16 clients store four files of 16 MiB each, and then read them.
pub fn uploads(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB", "above idle MiB"]);
    block_on(async {
        // The first startup hashes the key of the default project, which takes memory that later startups do not need.
        Server::start(bench, "memory").await?.stop()?;
        let server = Server::start(bench, "memory").await?;
        tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
        let idle = server.process.memory()?;
        table.add_row(table_row("idle", idle, idle));
        let disk = server.client().await?.new_disk().await?;
        table.add_row(table_row("after one request", server.process.memory()?, idle));
        let stored = measure_load(&server, |client| upload_source(&disk, client)).await?;
        table.add_row(table_row("while 16 store 16 MiB each", stored.0, idle));
        table.add_row(table_row("directly afterwards", server.process.memory()?, idle));
        let read = measure_load(&server, |client| download_source(&disk, client)).await?;
        table.add_row(table_row("while 16 read 16 MiB each", read.0, idle));
        tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
        table.add_row(table_row("10 s later", server.process.memory()?, idle));
        let growth = mib(stored.0.peak.saturating_sub(idle.resident));
        let what =
            format!("growth while {CLIENTS} store 16 MiB ({} stored, {} failed)", stored.1.count(), stored.1.failed());
        report.add_target(&what, &format!("{} MiB", number(growth)), "< 64 MiB", growth < MAX_GROWTH_MIB);
        server.stop()
    })?;
    report.add_text(
        "The resident memory (`VmRSS`) of the server process, its anonymous part (`RssAnon`), and the peak since the \
         previous row (`VmHWM`, reset before each load). The processes of the database are not included.",
    );
    report.add_table("Memory", &table);
    Ok(())
}

/// Runs the load. Returns the highest memory during it, and the outcome.
async fn measure_load(server: &Server, source: impl FnMut(usize) -> Source) -> anyhow::Result<(Memory, Outcome)> {
    Memory::reset_peak(&server.process)?;
    let mut outcome = Outcome::default();
    let load = async { outcome = run_load(server.address, Plan::until_exhausted(CLIENTS), source).await };
    let mut highest = watch_memory(&server.process, load).await?;
    highest.peak = server.process.memory()?.peak;
    Ok((highest, outcome))
}

/// Returns the uploads of one client.
fn upload_source(disk: &str, client: usize) -> Source {
    let mut bytes = vec![0; SIZE];
    rand::rng().fill_bytes(&mut bytes);
    let (random, disk, mut numbers) = (Bytes::from(bytes), disk.to_owned(), 0..FILES_PER_CLIENT);
    Box::new(move || {
        let name = format!("{client}-{}.bin", numbers.next()?);
        Some(Request::upload("PUT", &disk, "/", &name, content(&random, SIZE, name.clone())))
    })
}

/// Returns the downloads of one client.
fn download_source(disk: &str, client: usize) -> Source {
    let (disk, mut numbers) = (disk.to_owned(), 0..FILES_PER_CLIENT);
    Box::new(move || {
        let file = percent_encode(&format!("/{client}-{}.bin", numbers.next()?));
        Some(Request::get("GET", &format!("/api/v1/disk/{disk}/artifact/download?file_path={file}")))
    })
}

/// Measures the memory of a server that was started on existing data and receives no requests.
pub fn idle(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB", "above idle MiB"]);
    block_on(async {
        Server::start(bench, "idle").await?.stop()?;
        let server = Server::start(bench, "idle").await?;
        let started = server.process.memory()?;
        tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
        let idle = server.process.memory()?;
        table.add_row(table_row("ready", started, idle));
        table.add_row(table_row("10 s later", idle, idle));
        let resident = mib(idle.resident);
        report.add_target("idle memory", &format!("{} MiB", number(resident)), "< 50 MiB", resident < MAX_IDLE_MIB);
        server.stop()
    })?;
    report.add_text(
        "The server was started on existing data, and no request except the ones to `/ready` was sent. The processes \
         of the database are not included.",
    );
    report.add_table("Memory", &table);
    Ok(())
}

fn table_row(moment: &str, now: Memory, idle: Memory) -> Vec<String> {
    let above = mib(now.peak.max(now.resident)) - mib(idle.resident);
    let above = if moment.starts_with("while") { above } else { mib(now.resident) - mib(idle.resident) };
    vec![moment.to_owned(), number(mib(now.resident)), number(mib(now.anonymous)), number(mib(now.peak)), number(above)]
}

/// Converts KiB to MiB.
pub fn mib(kib: u64) -> f64 {
    to_f64(kib) / 1024.0
}
