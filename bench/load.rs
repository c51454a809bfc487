//! Many clients at once, each sending its next request when the last one is answered, and what came of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::http::{Client, Request};

/// How long after its time a load may still wait for answers.
const PATIENCE: Duration = Duration::from_mins(2);

/// How many clients, and how long: what is sent in the warm-up is not counted.
#[derive(Clone, Copy)]
pub struct Plan {
    pub clients: usize,
    pub warm_up: Duration,
    pub time: Duration,
}

impl Plan {
    /// Until the sources of requests are empty.
    pub fn to_the_end(clients: usize) -> Self {
        Self { clients, warm_up: Duration::ZERO, time: Duration::from_hours(1) }
    }
}

/// Gives one client its requests; `None` ends it.
pub type Source = Box<dyn FnMut() -> Option<Request> + Send>;

/// What one client, or one thread, has done.
#[derive(Default)]
pub struct Lane {
    /// What it was and how long it took.
    samples: Vec<(&'static str, Duration)>,
    span: Option<(Instant, Instant)>,
    failures: BTreeMap<String, u64>,
}

impl Lane {
    pub fn record(&mut self, kind: &'static str, start: Instant, end: Instant) {
        self.samples.push((kind, end - start));
        self.span = Some((self.span.map_or(start, |span| span.0), end));
    }

    pub fn fail(&mut self, what: String) {
        *self.failures.entry(what).or_default() += 1;
    }

    /// In its own time, so that a last request which ran over the end counts in full.
    fn per_second(&self) -> f64 {
        let seconds = self.span.map_or(0.0, |(start, end)| (end - start).as_secs_f64());
        if seconds > 0.0 { real(self.samples.len() as u64) / seconds } else { 0.0 }
    }
}

/// What all of them have done.
#[derive(Default)]
pub struct Outcome(pub Vec<Lane>);

impl Outcome {
    pub fn count(&self) -> u64 {
        self.0.iter().map(|lane| lane.samples.len() as u64).sum()
    }

    pub fn per_second(&self) -> f64 {
        self.0.iter().map(Lane::per_second).sum()
    }

    pub fn failures(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (what, times) in self.0.iter().flat_map(|lane| &lane.failures) {
            *all.entry(what.as_str()).or_default() += times;
        }
        all
    }

    pub fn failed(&self) -> u64 {
        self.failures().values().sum()
    }

    /// How long each took, of one kind or of all.
    pub fn times(&self, kind: Option<&str>) -> Times {
        let wanted = |sample: &&(&'static str, Duration)| kind.is_none_or(|kind| sample.0 == kind);
        self.0.iter().flat_map(|lane| &lane.samples).filter(wanted).map(|sample| sample.1).collect()
    }
}

/// Times in order.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds.
    pub fn p50(&self) -> f64 {
        self.at(500)
    }

    /// In milliseconds.
    pub fn p99(&self) -> f64 {
        self.at(990)
    }

    /// In milliseconds.
    pub fn max(&self) -> f64 {
        self.at(1000)
    }

    fn at(&self, permille: usize) -> f64 {
        let at = self.0.len().saturating_sub(1) * permille / 1000;
        self.0.get(at).map_or(0.0, Duration::as_secs_f64) * 1000.0
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times = Vec::from_iter(times);
        times.sort_unstable();
        Self(times)
    }
}

#[expect(clippy::cast_precision_loss, reason = "no count or size here needs more than 52 bits")]
pub fn real(count: u64) -> f64 {
    count as f64
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Puts the load on a server. `source` makes the requests of the client with that number.
pub async fn drive(address: SocketAddr, plan: Plan, mut source: impl FnMut(usize) -> Source) -> Outcome {
    let ready = Arc::new(Barrier::new(plan.clients));
    let mut lanes = JoinSet::new();
    for number in 0..plan.clients {
        lanes.spawn(lane(address, plan, source(number), Arc::clone(&ready)));
    }
    let deadline = tokio::time::Instant::now() + plan.warm_up + plan.time + PATIENCE;
    let mut outcome = Outcome::default();
    while !lanes.is_empty() {
        let mut missing = Lane::default();
        match tokio::time::timeout_at(deadline, lanes.join_next()).await {
            Ok(Some(Ok(lane))) => outcome.0.push(lane),
            Ok(None) => break,
            Ok(Some(Err(err))) => missing.fail(err.to_string()),
            Err(_) => {
                missing.fail("no answer at all".into());
                lanes.abort_all();
            }
        }
        outcome.0.push(missing);
    }
    outcome
}

async fn lane(address: SocketAddr, plan: Plan, mut source: Source, ready: Arc<Barrier>) -> Lane {
    let mut lane = Lane::default();
    let connected = Client::connect(address).await;
    ready.wait().await;
    let mut client = match connected {
        Ok(client) => client,
        Err(err) => {
            lane.fail(format!("no connection: {err}"));
            return lane;
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
            Ok(answer) if !answer.is_success() => lane.fail(format!("{} answered {}", request.kind, answer.status)),
            Ok(_) if start >= counted_from => lane.record(request.kind, start, Instant::now()),
            Ok(_) => {}
            Err(err) => {
                lane.fail(format!("{} failed: {err}", request.kind));
                let Ok(again) = Client::connect(address).await else {
                    break;
                };
                client = again;
            }
        }
    }
    lane
}
