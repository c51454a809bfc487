//! How many requests a second the server answers when there is nothing to do, beside a bare axum server.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::bare::Layers;
use crate::http::{Client, Request};
use crate::load::{Plan, Source, drive, median, real};
use crate::report::{Report, Table, number};
use crate::server::{Process, Server, free_address};
use crate::{Bench, block_on};

const CLIENTS: usize = 16;
const ROUNDS: usize = 3;
const PATH: &str = "/api/v1/ping";
const PER_SECOND: f64 = 25_000.0;
const SHARE: f64 = 0.8;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["server", "requests/s", "p50 ms", "p99 ms", "its CPU us/request", "its cores busy"]);
    let medians = block_on(async {
        let server = Server::start(bench, "ping").await?;
        let (ours, ours_at) = bare(bench, Layers::Ours).await?;
        let (none, none_at) = bare(bench, Layers::None).await?;
        let servers = [
            ("acontextd, key checked", &server.process, server.address),
            ("bare axum, same middleware", &ours, ours_at),
            ("bare axum, no middleware", &none, none_at),
        ];
        let mut rounds = vec![Vec::new(); servers.len()];
        for _ in 0..bench.pick(ROUNDS, 1) {
            for (at, (_, process, address)) in servers.iter().enumerate() {
                rounds[at].push(round(bench, process, *address).await?);
            }
        }
        let mut medians = Vec::new();
        for ((name, ..), rounds) in servers.iter().zip(&rounds) {
            let middle = |at: usize| median(rounds.iter().map(|round: &[f64; 5]| round[at]).collect());
            let numbers = [0, 1, 2, 3, 4].map(middle);
            medians.push(numbers[0]);
            table.row([(*name).to_owned()].into_iter().chain(numbers.map(number)));
        }
        server.stop()?;
        Ok(medians)
    })?;
    report.text(&format!(
        "`GET {PATH}` by {CLIENTS} clients that keep their connection, {ROUNDS} rounds of 5 s by turns, the median of each \
         column. The load generator runs on one thread of the same machine. Each server writes its log to a file; the one \
         without middleware writes none."
    ));
    report.table("ping", &table);
    let share = medians[0] / medians[1];
    let measured = format!("{} requests/s, {} of bare", number(medians[0]), number(share));
    let met = medians[0] >= PER_SECOND || share >= SHARE;
    report.target("ping", &measured, ">= 25000 requests/s, or >= 0.8 of bare with the same middleware", met);
    Ok(())
}

/// Requests a second, p50 and p99 in milliseconds, CPU microseconds a request, cores busy.
async fn round(bench: &Bench, process: &Process, address: SocketAddr) -> anyhow::Result<[f64; 5]> {
    let request = Request::get("ping", PATH);
    let source = |_: usize| -> Source {
        let request = request.clone();
        Box::new(move || Some(request.clone()))
    };
    let plan = Plan { clients: CLIENTS, warm_up: Duration::ZERO, time: Duration::from_millis(500) };
    drive(address, plan, source).await;
    let (start, before) = (Instant::now(), process.cpu_time()?);
    let outcome = drive(address, Plan { time: bench.seconds(5), ..plan }, source).await;
    let (cpu, wall) = (process.cpu_time()?.saturating_sub(before), start.elapsed());
    ensure!(outcome.failed() == 0, "ping failed: {:?}", outcome.failures());
    let times = outcome.times(None);
    let per_request = cpu.as_secs_f64() * 1e6 / real(outcome.count());
    Ok([outcome.per_second(), times.p50(), times.p99(), per_request, cpu.as_secs_f64() / wall.as_secs_f64()])
}

/// Starts a bare server.
async fn bare(bench: &Bench, layers: Layers) -> anyhow::Result<(Process, SocketAddr)> {
    let address = free_address()?;
    let name = format!("{layers:?}").to_lowercase();
    let folder = bench.folder.join(format!("bare-{name}"));
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--bare", &name, "--port", &address.port().to_string(), "--folder"]).arg(&folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(folder.join("log"))?);
    let mut process = Process::spawn(&mut command)?;
    for _ in 0..1000 {
        if Client::connect(address).await.is_ok() {
            return Ok((process, address));
        }
        if process.has_ended() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("the bare server does not start")
}
