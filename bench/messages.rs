//! Storing small messages durably, compared with pgbench, which inserts rows of the same size on the same Postgres:
//! over its Unix socket, over TCP, and over TCP with TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::corpus::prose;
use crate::external::{ExternalPostgres, Transport};
use crate::http::Request;
use crate::load::{Outcome, Plan, Source, median, run_load, to_f64};
use crate::pgbench::Pgbench;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

/// The size of the text of a message, in bytes.
const SIZE: usize = 1 << 10;
const SESSIONS: usize = 64;
const CLIENTS: [usize; 4] = [1, 16, 64, 500];
const ROUNDS: usize = 3;
/// The target for the rate over TCP, as a fraction of the rate over the Unix socket.
const MIN_TCP_SHARE: f64 = 0.8;
/// The numbers of clients, and the target for their rate as a fraction of the rate of pgbench.
const MIN_PGBENCH_SHARES: [(usize, f64); 2] = [(16, 0.6), (64, 0.9)];
/// The target for p99 with 64 clients, in milliseconds.
const MAX_P99_MS: f64 = 10.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        let server = Server::start(bench, "messages").await?;
        let mut client = server.client().await?;
        let (mut tracked, mut untracked) = (Vec::new(), Vec::new());
        for _ in 0..SESSIONS {
            tracked.push(client.new_session(true).await?);
            untracked.push(client.new_session(false).await?);
        }
        let run = Run { bench, server, tracked, untracked, count: Arc::default() };
        // The first message loads the tokenizer.
        client.data(&store_numbered(&run.tracked[0], 0, &prose(0, SIZE))).await?;
        run.measure_clients(report).await?;
        run.compare_with_pgbench(report).await
    })
}

struct Run<'a> {
    bench: &'a Bench,
    server: Server,
    tracked: Vec<String>,
    untracked: Vec<String>,
    /// The number of messages so far. It makes the text of each message different.
    count: Arc<AtomicUsize>,
}

impl Run<'_> {
    /// Measures each number of clients, with many sessions and with one, with and without task tracking.
    async fn measure_clients(&self, report: &mut Report) -> anyhow::Result<()> {
        let headings = ["clients x sessions", "messages/s", "p50 ms", "p99 ms", "server CPU us/message", "failed"];
        let [mut tracked, mut untracked] = [Table::new(&headings), Table::new(&headings)];
        let (mut failed, mut succeeded) = (0, 0);
        for (table, sessions) in [(&mut tracked, &self.tracked), (&mut untracked, &self.untracked)] {
            for sessions in [&sessions[..], &sessions[..1]] {
                for clients in CLIENTS {
                    let before = self.server.process.cpu_time()?;
                    let outcome = self.run_clients(clients, sessions, 2).await;
                    let cpu = self.server.process.cpu_time()?.saturating_sub(before);
                    let label = format!("{clients} x {}", sessions.len());
                    table.add_row(table_row(&label, &outcome, cpu));
                    for (what, times) in outcome.failures() {
                        report.add_text(&format!("- {label}: {what}: {times} times"));
                    }
                    if clients == CLIENTS[3] {
                        failed += outcome.failed();
                        succeeded += outcome.count();
                    }
                }
            }
        }
        report.add_text(&format!(
            "Each client stores messages of {SIZE} bytes of text, one after the other. All texts are different. The \
             clients are distributed over the sessions. The response 201 means that the message is on disk."
        ));
        report.add_table("Sessions whose tasks are tracked", &tracked);
        report.add_table("Sessions whose tasks are not tracked", &untracked);
        let measured = format!("{failed} of {succeeded}");
        report.add_target("errors of 500 clients, all rows", &measured, "0", failed == 0);
        Ok(())
    }

    /// Compares three servers on one Postgres with pgbench. One server is connected over the Unix socket, one over TCP,
    /// and one over TCP with TLS.
    async fn compare_with_pgbench(self, report: &mut Report) -> anyhow::Result<()> {
        let headings = [
            "connection",
            "clients",
            "messages/s",
            "p50 ms",
            "p99 ms",
            "pgbench rows/s",
            "pgbench p50 ms",
            "pgbench p99 ms",
            "server/pgbench",
        ];
        let mut table = Table::new(&headings);
        let Self { bench, server, tracked, count, .. } = self;
        let postgres = ExternalPostgres::replace(server).await?;
        let pgbench = Pgbench::prepare(bench, &postgres, SIZE).await?;
        let mut servers = Vec::new();
        for transport in Transport::ALL {
            let name = format!("messages-{}", transport.name().replace([' ', ','], "-"));
            servers.push((transport, Server::start_with(bench, &name, &postgres.settings(transport)).await?));
        }
        for (clients, share) in MIN_PGBENCH_SHARES {
            let mut server_runs = Transport::ALL.map(|_| Vec::new());
            let mut pgbench_runs = Transport::ALL.map(|_| Vec::new());
            for _ in 0..bench.full_or_quick(ROUNDS, 1) {
                for (index, (transport, server)) in servers.iter().enumerate() {
                    let outcome = store_messages(bench, server.address, &count, clients, &tracked, 3).await;
                    let times = outcome.times(None);
                    server_runs[index].push([outcome.per_second(), times.p50(), times.p99()]);
                    if let Some(pgbench) = &pgbench {
                        let result = pgbench.run(&postgres, *transport, clients, bench.seconds(3))?;
                        pgbench_runs[index].push([result.per_second, result.times.p50(), result.times.p99()]);
                    }
                }
            }
            let server_medians = server_runs.map(|runs| medians(&runs));
            let pgbench_medians = pgbench_runs.map(|runs| pgbench.is_some().then(|| medians(&runs)));
            add_rows(report, &mut table, clients, share, server_medians, pgbench_medians);
        }
        report.add_text(&format!(
            "{SESSIONS} sessions with task tracking, on three servers that use one Postgres. The baseline is `pgbench \
             -M prepared -j 2` with the same kind of connection, which inserts rows with an id, {SIZE} bytes and a \
             time. Servers and pgbench are measured alternately in {ROUNDS} rounds of 3 s; each column is the median."
        ));
        if pgbench.is_none() {
            report.add_text(
                "**pgbench is not in the directory of the Postgres server programs: its columns are empty.**",
            );
        }
        report.add_table("Compared with pgbench", &table);
        for (_, server) in servers {
            server.stop()?;
        }
        postgres.stop()
    }

    async fn run_clients(&self, clients: usize, sessions: &[String], seconds: u64) -> Outcome {
        store_messages(self.bench, self.server.address, &self.count, clients, sessions, seconds).await
    }
}

/// Adds the rows and targets for one number of clients. `server` and `rows` contain the rate, p50 and p99 of the server
/// and of pgbench for each kind of connection.
fn add_rows(
    report: &mut Report,
    table: &mut Table,
    clients: usize,
    share: f64,
    server: [[f64; 3]; 3],
    rows: [Option<[f64; 3]>; 3],
) {
    for ((transport, server), rows) in Transport::ALL.into_iter().zip(server).zip(rows) {
        let pgbench_cells = rows.map_or_else(Vec::new, |rows| [&rows[..], &[server[0] / rows[0]]].concat());
        let pgbench_cells = pgbench_cells.into_iter().map(number).chain(std::iter::repeat("-".into())).take(4);
        table.add_row(
            [transport.name().into(), clients.to_string()].into_iter().chain(server.map(number)).chain(pgbench_cells),
        );
        if let Some(rows) = rows {
            let ratio = server[0] / rows[0];
            let what = format!("messages by {clients} clients, {}", transport.name());
            let measured = format!("{} messages/s, {} of pgbench", number(server[0]), number(ratio));
            report.add_target(&what, &measured, &format!(">= {share} of pgbench"), ratio >= share);
        }
        if clients == MIN_PGBENCH_SHARES[1].0 {
            let what = format!("a message by {clients} clients, {}", transport.name());
            report.add_target(&what, &format!("p99 {} ms", number(server[2])), "p99 < 10 ms", server[2] < MAX_P99_MS);
        }
    }
    for (transport, rates) in Transport::ALL.into_iter().zip(server).skip(1) {
        let ratio = rates[0] / server[0][0];
        let what = format!("messages by {clients} clients, {} / Unix socket", transport.name());
        report.add_target(&what, &number(ratio), &format!(">= {MIN_TCP_SHARE}"), ratio >= MIN_TCP_SHARE);
    }
}

async fn store_messages(
    bench: &Bench,
    address: SocketAddr,
    count: &Arc<AtomicUsize>,
    clients: usize,
    sessions: &[String],
    seconds: u64,
) -> Outcome {
    let text: Arc<str> = prose(1, SIZE).into();
    let warm_up = Duration::from_millis(bench.full_or_quick(300, 100));
    let plan = Plan { clients, warm_up, time: bench.seconds(seconds) };
    run_load(address, plan, |client| -> Source {
        let (text, count) = (Arc::clone(&text), Arc::clone(count));
        let session = sessions[client % sessions.len()].clone();
        Box::new(move || Some(store_numbered(&session, count.fetch_add(1, Ordering::Relaxed), &text)))
    })
    .await
}

/// Returns a request that stores a message with the number and the beginning of the text.
pub fn store_numbered(session: &str, number: usize, text: &str) -> Request {
    let number = format!("{number:09} ");
    let content = [&number, &text[..SIZE - number.len()]].concat();
    store_message(session, &json!({"role": "user", "content": content}))
}

/// Returns a request that stores a message in the format `openai`.
pub fn store_message(session: &str, message: &serde_json::Value) -> Request {
    let body = Bytes::from(json!({"format": "openai", "blob": message}).to_string());
    Request::post_json("POST", &format!("/api/v1/session/{session}/messages"), body)
}

fn table_row(label: &str, outcome: &Outcome, cpu: Duration) -> Vec<String> {
    let times = outcome.times(None);
    let per_message = cpu.as_secs_f64() * 1e6 / to_f64(outcome.count());
    vec![
        label.to_owned(),
        number(outcome.per_second()),
        number(times.p50()),
        number(times.p99()),
        number(per_message),
        outcome.failed().to_string(),
    ]
}

/// Returns the median of each column.
fn medians(runs: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|index| median(runs.iter().map(|run| run[index]).collect()))
}
