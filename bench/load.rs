//! The load generator: many concurrent clients, each of which sends its next request after the response to the last
//! one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::http::{Client, Request};

/// How long the load generator waits for responses after the end of the measurement.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(2);

/// The number of clients and the duration of a load. Requests sent during the warm-up are not counted.
#[derive(Clone, Copy)]
pub struct Plan {
    pub clients: usize,
    pub warm_up: Duration,
    pub time: Duration,
}

impl Plan {
    /// Returns a plan that ends when the sources have no more requests.
    pub fn until_exhausted(clients: usize) -> Self {
        Self { clients, warm_up: Duration::ZERO, time: Duration::from_hours(1) }
    }
}

/// Returns the next request of one client, or `None` to end the client.
pub type Source = Box<dyn FnMut() -> Option<Request> + Send>;

/// The measurements of one client or one thread.
#[derive(Default)]
pub struct ClientStats {
    /// The kind and the duration of each successful request.
    samples: Vec<(&'static str, Duration)>,
    span: Option<(Instant, Instant)>,
    failures: BTreeMap<String, u64>,
}

impl ClientStats {
    pub fn record(&mut self, kind: &'static str, start: Instant, end: Instant) {
        self.samples.push((kind, end - start));
        self.span = Some((self.span.map_or(start, |span| span.0), end));
    }

    pub fn fail(&mut self, what: String) {
        *self.failures.entry(what).or_default() += 1;
    }

    /// Returns the rate over the time in which this client was active, so that its last request counts in full even if
    /// it ended after the end of the measurement.
    fn per_second(&self) -> f64 {
        let seconds = self.span.map_or(0.0, |(start, end)| (end - start).as_secs_f64());
        if seconds > 0.0 { to_f64(self.samples.len() as u64) / seconds } else { 0.0 }
    }
}

/// The measurements of all clients.
#[derive(Default)]
pub struct Outcome(pub Vec<ClientStats>);

impl Outcome {
    pub fn count(&self) -> u64 {
        self.0.iter().map(|client| client.samples.len() as u64).sum()
    }

    pub fn per_second(&self) -> f64 {
        self.0.iter().map(ClientStats::per_second).sum()
    }

    pub fn failures(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (what, times) in self.0.iter().flat_map(|client| &client.failures) {
            *all.entry(what.as_str()).or_default() += times;
        }
        all
    }

    pub fn failed(&self) -> u64 {
        self.failures().values().sum()
    }

    /// Returns the durations of the requests of one kind, or of all requests.
    pub fn times(&self, kind: Option<&str>) -> Times {
        let matches_kind = |sample: &&(&'static str, Duration)| kind.is_none_or(|kind| sample.0 == kind);
        self.0.iter().flat_map(|client| &client.samples).filter(matches_kind).map(|sample| sample.1).collect()
    }
}

/// Sorted durations.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the median in milliseconds.
    pub fn p50(&self) -> f64 {
        self.percentile(500)
    }

    /// Returns the 99th percentile in milliseconds.
    pub fn p99(&self) -> f64 {
        self.percentile(990)
    }

    /// Returns the maximum in milliseconds.
    pub fn max(&self) -> f64 {
        self.percentile(1000)
    }

    fn percentile(&self, permille: usize) -> f64 {
        let index = self.0.len().saturating_sub(1) * permille / 1000;
        self.0.get(index).map_or(0.0, Duration::as_secs_f64) * 1000.0
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times = Vec::from_iter(times);
        times.sort_unstable();
        Self(times)
    }
}

#[expect(clippy::cast_precision_loss, reason = "all counts and sizes here fit into 52 bits")]
pub fn to_f64(count: u64) -> f64 {
    count as f64
}

/// Returns the median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Runs the load against a server. `source` returns the source of requests of the client with the given number.
pub async fn run_load(address: SocketAddr, plan: Plan, mut source: impl FnMut(usize) -> Source) -> Outcome {
    let ready = Arc::new(Barrier::new(plan.clients));
    let mut tasks = JoinSet::new();
    for number in 0..plan.clients {
        tasks.spawn(run_client(address, plan, source(number), Arc::clone(&ready)));
    }
    let deadline = tokio::time::Instant::now() + plan.warm_up + plan.time + DRAIN_TIMEOUT;
    let mut outcome = Outcome::default();
    while !tasks.is_empty() {
        let mut lost = ClientStats::default();
        match tokio::time::timeout_at(deadline, tasks.join_next()).await {
            Ok(Some(Ok(stats))) => outcome.0.push(stats),
            Ok(None) => break,
            Ok(Some(Err(err))) => lost.fail(err.to_string()),
            Err(_) => {
                lost.fail("no response before the deadline".into());
                tasks.abort_all();
            }
        }
        outcome.0.push(lost);
    }
    outcome
}

async fn run_client(address: SocketAddr, plan: Plan, mut source: Source, ready: Arc<Barrier>) -> ClientStats {
    let mut stats = ClientStats::default();
    let connected = Client::connect(address).await;
    ready.wait().await;
    let mut client = match connected {
        Ok(client) => client,
        Err(err) => {
            stats.fail(format!("no connection: {err}"));
            return stats;
        }
    };
    let counted_from = Instant::now() + plan.warm_up;
    let end = counted_from + plan.time;
    while let Some(request) = source() {
        let start = Instant::now();
        if start >= end {
            break;
        }
        match client.send(&request).await {
            Ok(response) if !response.is_success() => {
                stats.fail(format!("{} returned {}", request.kind, response.status));
            }
            Ok(_) if start >= counted_from => stats.record(request.kind, start, Instant::now()),
            Ok(_) => {}
            Err(err) => {
                stats.fail(format!("{} failed: {err}", request.kind));
                let Ok(reconnected) = Client::connect(address).await else {
                    break;
                };
                client = reconnected;
            }
        }
    }
    stats
}
