//! The benchmarks. Each one starts the real program, sends requests to it and compares its numbers with a baseline that
//! is measured in the same run. No benchmark fails because of a time: it prints its numbers next to their targets.
//!
//! `README.md` describes what each benchmark measures. [`http`] and [`load`] are the load generator, [`server`] runs
//! the program as a child process, [`disk`], [`baseline_axum`] and [`pgbench`] are three of the baselines, and
//! [`report`] prints the results.

#![expect(unreachable_pub, reason = "this crate has no public API")]

mod artifacts;
mod baseline_axum;
mod concurrent_connections;
mod conversation;
mod copy;
mod corpus;
mod disk;
mod edits;
mod embedded_postgres;
mod encrypted_workload;
mod encryption;
mod external;
mod growth;
mod http;
mod json_memory;
mod key_check;
mod learning;
mod load;
mod long_message;
mod machine;
mod memory;
mod messages;
mod model;
mod observation;
mod pgbench;
mod ping;
mod project;
mod queue;
mod queue_harness;
mod report;
mod sandboxes;
mod search;
mod server;
mod skill_list;
mod skills;
mod slow_readers;
mod start;
mod user_deletion;
mod zip_bomb;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use report::{Report, print_text};

/// Measures acontextd. Without a name, it only lists the benchmarks.
#[derive(Parser)]
struct Args {
    /// The benchmarks to run, or `all`
    names: Vec<String>,
    /// Run with small data and for a short time, to check that everything works; the numbers are meaningless and not
    /// saved
    #[arg(long)]
    quick: bool,
    /// The program to measure
    #[arg(long, value_name = "FILE", default_value = "target/dist/acontextd")]
    server: PathBuf,
    /// The directory for data, which is removed at the end
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    dir: PathBuf,
    /// The directory for the reports
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    results: PathBuf,
    /// Run as the axum server that is the baseline of `ping`
    #[arg(long, hide = true, value_enum)]
    baseline: Option<baseline_axum::Layers>,
    /// The port of the axum server
    #[arg(long, hide = true, default_value = "0")]
    port: u16,
    /// `cargo bench` passes this flag to every benchmark
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// One run of the benchmarks.
pub struct Bench {
    /// The program to measure.
    pub server: PathBuf,
    /// The directory for data during the run.
    pub dir: PathBuf,
    pub quick: bool,
}

impl Bench {
    /// Returns `full` in a full run and `quick` in a quick run.
    pub fn full_or_quick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Returns `full` seconds in a full run, and half a second in a quick run.
    pub fn seconds(&self, full: u64) -> Duration {
        self.full_or_quick(Duration::from_secs(full), Duration::from_millis(500))
    }
}

/// A benchmark: its name, the title of its report, and its function.
type Benchmark = (&'static str, &'static str, fn(&Bench, &mut Report) -> anyhow::Result<()>);

const BENCHMARKS: [Benchmark; 26] = [
    ("artifacts", "Storing and reading files", artifacts::run),
    ("upload-memory", "Memory during uploads of large files", memory::uploads),
    ("json-memory", "Memory during requests with JSON of many values", json_memory::run),
    ("grep", "grep over 10 000 files", search::grep),
    ("names", "glob and ls over 10 000 files", search::names),
    ("start", "Startup on existing data", start::run),
    ("idle", "Memory of an idle server", memory::idle),
    ("ping", "Ping requests", ping::run),
    ("concurrent-connections", "500 concurrent connections", concurrent_connections::run),
    ("key-check", "The longest request of 200 clients with one key", key_check::run),
    ("slow-readers", "Memory while clients do not read", slow_readers::run),
    ("observation", "Observation with a model that takes 1 s", observation::run),
    ("learning", "Learning with a model that responds immediately", learning::run),
    ("queue", "Background jobs", queue::run),
    ("sandboxes", "Sandboxes on this machine", sandboxes::run),
    ("messages", "Storing messages", messages::run),
    ("conversation", "Reading a conversation", conversation::run),
    ("edits", "Reading a conversation with edit strategies", edits::run),
    ("copy", "Copying a session", copy::run),
    ("long-message", "Memory while a long message is stored and read", long_message::run),
    ("tokenizer", "Memory of the tokenizer", long_message::tokenizer),
    ("growth", "Small and large tables and sessions", growth::run),
    ("skills", "Uploading a skill, and rejecting a zip bomb", skills::run),
    ("skill-list", "Listing 1 000 skills", skill_list::run),
    ("user-deletion", "Deleting a user with 100 000 messages", user_deletion::run),
    ("encryption", "Encrypting a project, and requests to an encrypted project", encryption::run),
];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(layers) = args.baseline {
        return baseline_axum::serve(layers, args.port, &args.dir);
    }
    let selected = select(&args.names)?;
    if selected.is_empty() {
        let names: Vec<&str> = BENCHMARKS.iter().map(|benchmark| benchmark.0).collect();
        print_text(&format!("specify the benchmarks to run, or `all`: {}\n", names.join(", ")));
        return Ok(());
    }
    // Some benchmarks run the program in another working directory.
    let server = fs::canonicalize(&args.server).with_context(|| {
        format!("{} does not exist: build it with cargo build --profile dist", args.server.display())
    })?;
    fs::create_dir_all(&args.dir)?;
    let bench = Bench { server, dir: fs::canonicalize(&args.dir)?, quick: args.quick };
    let outcome = run_all(&bench, &args, selected);
    fs::remove_dir_all(&bench.dir)?;
    outcome
}

fn run_all(bench: &Bench, args: &Args, selected: Vec<Benchmark>) -> anyhow::Result<()> {
    let lock = File::create(bench.dir.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another run is using {}", bench.dir.display());
    }
    fs::set_permissions(&bench.dir, fs::Permissions::from_mode(0o711))?;
    for (name, title, run) in selected {
        let mut report = Report::new(name, title);
        let max_wait = bench.full_or_quick(Duration::from_mins(2), Duration::ZERO);
        let machine = machine::describe(&format!("bench/run {name}"), &bench.dir, max_wait)?;
        run(bench, &mut report).with_context(|| format!("benchmark {name} failed"))?;
        report.finish(&machine, (!bench.quick).then_some(&args.results))?;
    }
    Ok(())
}

fn select(names: &[String]) -> anyhow::Result<Vec<Benchmark>> {
    if names.iter().any(|name| name == "all") {
        return Ok(BENCHMARKS.to_vec());
    }
    let find = |name: &String| BENCHMARKS.iter().find(|benchmark| benchmark.0 == name).copied();
    names.iter().map(|name| find(name).with_context(|| format!("there is no benchmark named {name}"))).collect()
}

/// Runs the load generator on one thread, so that the other cores are left to the server.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
