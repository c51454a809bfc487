//! The benchmarks: each starts the real program, drives it from outside and puts its numbers beside a yardstick that is
//! measured in the same run. Nothing here asserts on a time: it prints numbers, and the targets beside them.
//!
//! `README.md` says what each one measures. [`http`] and [`load`] are the load generator, [`server`] the program as a child
//! process, [`disk`], [`bare`] and [`pgbench`] three of the yardsticks, [`report`] what is printed.

#![expect(unreachable_pub, reason = "nothing here can be reached from outside")]

mod artifacts;
mod bare;
mod bomb;
mod catalog;
mod conversation;
mod copy;
mod corpus;
mod crowd;
mod disk;
mod edits;
mod encryption;
mod external;
mod growth;
mod http;
mod json_memory;
mod load;
mod long_message;
mod machine;
mod memory;
mod messages;
mod pgbench;
mod ping;
mod private;
mod probe;
mod project;
mod queue;
mod report;
mod sealed;
mod search;
mod server;
mod skills;
mod start;
mod user_deletion;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use report::{Report, say};

/// Measures acontextd. Without a name it only lists what can be measured.
#[derive(Parser)]
struct Args {
    /// What to measure, or `all`
    names: Vec<String>,
    /// Small and short: shows that everything runs, its numbers mean nothing and are not kept
    #[arg(long)]
    quick: bool,
    /// The program
    #[arg(long, value_name = "FILE", default_value = "target/release/acontextd")]
    server: PathBuf,
    /// Where data is kept while it runs; is removed
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    folder: PathBuf,
    /// Where the reports go
    #[arg(long, value_name = "FOLDER", default_value = "bench/results")]
    results: PathBuf,
    /// Is the bare server that `ping` compares with
    #[arg(long, hide = true, value_enum)]
    bare: Option<bare::Layers>,
    /// The port of the bare server
    #[arg(long, hide = true, default_value = "0")]
    port: u16,
    /// `cargo bench` says so to every benchmark
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// One run of the benchmarks.
pub struct Bench {
    /// The program.
    pub server: PathBuf,
    /// Where data is kept while it runs.
    pub folder: PathBuf,
    pub quick: bool,
}

impl Bench {
    /// The first in a full run, the second in a quick one.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// As long as it says in a full run, half a second in a quick one.
    pub fn seconds(&self, full: u64) -> Duration {
        self.pick(Duration::from_secs(full), Duration::from_millis(500))
    }
}

/// A measurement: its name, its report's title, and itself.
type Measurement = (&'static str, &'static str, fn(&Bench, &mut Report) -> anyhow::Result<()>);

const ALL: [Measurement; 21] = [
    ("artifacts", "Storing and reading files", artifacts::run),
    ("upload-memory", "Memory while large files come in", memory::uploads),
    ("json-memory", "Memory while JSON of many values comes in", json_memory::run),
    ("grep", "grep over 10 000 files", search::grep),
    ("names", "glob and ls over 10 000 files", search::names),
    ("start", "Start on existing data", start::run),
    ("idle", "Memory of an idle server", memory::idle),
    ("ping", "Requests that do nothing", ping::run),
    ("crowd", "500 clients at once", crowd::run),
    ("queue", "Background jobs", queue::run),
    ("messages", "Storing messages", messages::run),
    ("conversation", "Reading a conversation", conversation::run),
    ("edits", "Reading a conversation that is made shorter", edits::run),
    ("copy", "Copying a session", copy::run),
    ("long-message", "Memory while a long message comes in and goes out", long_message::run),
    ("tokenizer", "Memory of the tokenizer", long_message::tokenizer),
    ("growth", "Few messages and many", growth::run),
    ("skills", "Taking in a skill, and refusing a bomb", skills::run),
    ("catalog", "Listing 1 000 skills", catalog::run),
    ("user-deletion", "Deleting a user with 100 000 messages", user_deletion::run),
    ("encryption", "Encrypting a project, and working in an encrypted one", encryption::run),
];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(layers) = args.bare {
        return bare::serve(layers, args.port, &args.folder);
    }
    let wanted = wanted(&args.names)?;
    if wanted.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|one| one.0).collect();
        say(&format!("name what to measure, or `all`: {}\n", names.join(", ")));
        return Ok(());
    }
    // It is run from other folders too.
    let server = fs::canonicalize(&args.server)
        .with_context(|| format!("{} is not there: build it with cargo build --release", args.server.display()))?;
    fs::create_dir_all(&args.folder)?;
    let bench = Bench { server, folder: fs::canonicalize(&args.folder)?, quick: args.quick };
    let outcome = measure(&bench, &args, wanted);
    fs::remove_dir_all(&bench.folder)?;
    outcome
}

fn measure(bench: &Bench, args: &Args, wanted: Vec<Measurement>) -> anyhow::Result<()> {
    let lock = File::create(bench.folder.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another run works in {}", bench.folder.display());
    }
    fs::set_permissions(&bench.folder, fs::Permissions::from_mode(0o711))?;
    for (name, title, run) in wanted {
        let mut report = Report::new(name, title);
        let patience = bench.pick(Duration::from_mins(2), Duration::ZERO);
        let machine = machine::describe(&format!("bench/run {name}"), &bench.folder, patience)?;
        run(bench, &mut report).with_context(|| format!("{name} could not be measured"))?;
        report.end(&machine, (!bench.quick).then_some(&args.results))?;
    }
    Ok(())
}

fn wanted(names: &[String]) -> anyhow::Result<Vec<Measurement>> {
    if names.iter().any(|name| name == "all") {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| ALL.iter().find(|one| one.0 == name).copied();
    names.iter().map(|name| find(name).with_context(|| format!("there is no measurement named {name}"))).collect()
}

/// Runs the load on one thread, so that the other cores are the server's.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
