//! The program: reads the settings, starts, says where it is, and serves until it is told to stop.

use std::io::Write;
use std::process::ExitCode;

use acontextd::config::{Command, Config, Stop};
use acontextd::startup::{Server, Signals};
use acontextd::{http, telemetry};

// Messages are many small texts: this takes a fifth off converting a page of them, and gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = match Config::load() {
        Ok(config) => config,
        Err(Stop::Print(text)) => return say(&mut std::io::stdout(), &text, ExitCode::SUCCESS),
        Err(Stop::Refuse(sentence)) => return refuse(&sentence),
    };
    match run(config) {
        Ok(code) => code,
        Err(err) => refuse(&format!("{err:#}")),
    }
}

fn run(config: Config) -> anyhow::Result<ExitCode> {
    // What is kept is for this user alone, unless it is said otherwise where it is made.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(Command::Health) = config.command {
        let alive = runtime.block_on(http::server::check_health(config.server.address()));
        return Ok(if alive { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let traces = telemetry::init(&config.telemetry)?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::install()?;
        let server = tokio::select! {
            server = Server::start(config) => server?,
            // Nothing was promised yet; the private Postgres ends with us.
            _ = signals.next() => return Ok(()),
        };
        say(&mut std::io::stdout(), &server.startup_banner()?, ExitCode::SUCCESS);
        server.run(signals).await
    });
    traces.flush();
    // Whatever still runs on a thread of its own was told to end, and had its time.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.map(|()| ExitCode::SUCCESS)
}

fn refuse(sentence: &str) -> ExitCode {
    say(&mut std::io::stderr(), &format!("acontextd: {}\n", sentence.trim_end()), ExitCode::FAILURE)
}

/// Writes to a terminal or a pipe that may be gone.
fn say(out: &mut impl Write, text: &str, code: ExitCode) -> ExitCode {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    code
}
