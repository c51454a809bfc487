//! Measures the rate of ping requests, compared with a bare axum server.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::baseline_axum::Layers;
use crate::http::{Client, Request};
use crate::load::{Plan, Source, median, run_load, to_f64};
use crate::report::{Report, Table, number};
use crate::server::{Process, Server, free_address};
use crate::{Bench, block_on};

const CLIENTS: usize = 16;
const ROUNDS: usize = 3;
const PATH: &str = "/api/v1/ping";
const MIN_REQUESTS_PER_SECOND: f64 = 25_000.0;
const MIN_SHARE: f64 = 0.8;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table =
        Table::new(&["server", "requests/s", "p50 ms", "p99 ms", "server CPU us/request", "server cores busy"]);
    let medians = block_on(async {
        let server = Server::start(bench, "ping").await?;
        let (with_middleware, with_middleware_address) = start_baseline(bench, Layers::Server).await?;
        let (without_middleware, without_middleware_address) = start_baseline(bench, Layers::None).await?;
        let servers = [
            ("acontextd, key checked", &server.process, server.address),
            ("bare axum, same middleware", &with_middleware, with_middleware_address),
            ("bare axum, no middleware", &without_middleware, without_middleware_address),
        ];
        let mut rounds = vec![Vec::new(); servers.len()];
        for _ in 0..bench.full_or_quick(ROUNDS, 1) {
            for (index, (_, process, address)) in servers.iter().enumerate() {
                rounds[index].push(run_round(bench, process, *address).await?);
            }
        }
        let mut medians = Vec::new();
        for ((name, ..), rounds) in servers.iter().zip(&rounds) {
            let column_median = |index: usize| median(rounds.iter().map(|round: &[f64; 5]| round[index]).collect());
            let numbers = [0, 1, 2, 3, 4].map(column_median);
            medians.push(numbers[0]);
            table.add_row([(*name).to_owned()].into_iter().chain(numbers.map(number)));
        }
        server.stop()?;
        Ok(medians)
    })?;
    report.add_text(&format!(
        "`GET {PATH}` by {CLIENTS} clients with persistent connections. The servers are measured alternately in \
         {ROUNDS} rounds of 5 s; each column is the median. The load generator runs on one thread of the same machine. \
         Each server writes its log to a file, except for the one without middleware, which has no log."
    ));
    report.add_table("ping", &table);
    let share = medians[0] / medians[1];
    let measured = format!("{} requests/s, {} of bare axum", number(medians[0]), number(share));
    let met = medians[0] >= MIN_REQUESTS_PER_SECOND || share >= MIN_SHARE;
    report.add_target("ping", &measured, ">= 25000 requests/s, or >= 0.8 of bare axum with the same middleware", met);
    Ok(())
}

/// Returns the requests per second, p50 and p99 in milliseconds, the CPU microseconds per request, and the number of
/// busy cores.
async fn run_round(bench: &Bench, process: &Process, address: SocketAddr) -> anyhow::Result<[f64; 5]> {
    let request = Request::get("ping", PATH);
    let source = |_: usize| -> Source {
        let request = request.clone();
        Box::new(move || Some(request.clone()))
    };
    let plan = Plan { clients: CLIENTS, warm_up: Duration::ZERO, time: Duration::from_millis(500) };
    run_load(address, plan, source).await;
    let (start, before) = (Instant::now(), process.cpu_time()?);
    let outcome = run_load(address, Plan { time: bench.seconds(5), ..plan }, source).await;
    let (cpu, wall) = (process.cpu_time()?.saturating_sub(before), start.elapsed());
    ensure!(outcome.failed() == 0, "ping failed: {:?}", outcome.failures());
    let times = outcome.times(None);
    let per_request = cpu.as_secs_f64() * 1e6 / to_f64(outcome.count());
    Ok([outcome.per_second(), times.p50(), times.p99(), per_request, cpu.as_secs_f64() / wall.as_secs_f64()])
}

/// Starts a bare axum server.
async fn start_baseline(bench: &Bench, layers: Layers) -> anyhow::Result<(Process, SocketAddr)> {
    let address = free_address()?;
    let name = format!("{layers:?}").to_lowercase();
    let dir = bench.dir.join(format!("baseline-{name}"));
    fs::create_dir_all(&dir)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--baseline", &name, "--port", &address.port().to_string(), "--dir"]).arg(&dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("log"))?);
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
    bail!("the bare axum server does not start")
}
