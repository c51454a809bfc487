//! The server's executable: reads the settings, starts the server, prints the startup banner, and serves until it receives a
//! signal.

use std::io::Write;
use std::process::ExitCode;

use acontextd::config::{Command, Config, EarlyExit};
use acontextd::startup::{Server, Signals};
use acontextd::{confine, http, llm, platform, telemetry};

// Messages consist of many small strings. With jemalloc, the conversion of a page of messages is a fifth faster, and unused
// memory is returned to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match confine::run_if_requested(std::env::args_os()) {
        Some(Ok(code)) => return ExitCode::from(code),
        Some(Err(err)) => return exit_with_error(&format!("{err:#}")),
        None => {}
    }
    let config = match Config::load() {
        Ok(config) => config,
        Err(EarlyExit::Help(text)) => {
            write_out(&mut std::io::stdout(), &text);
            return ExitCode::SUCCESS;
        }
        Err(EarlyExit::Error(message)) => return exit_with_error(&message),
    };
    match run(config) {
        Ok(code) => code,
        Err(err) => exit_with_error(&format!("{err:#}")),
    }
}

fn run(config: Config) -> anyhow::Result<ExitCode> {
    // Files get mode 0600 and directories mode 0700. A wider mode requires `set_permissions` after the creation.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(Command::Health) = config.command {
        let alive = runtime.block_on(http::server::check_health(config.server.address()));
        return Ok(if alive { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(Command::CheckModel) = config.command {
        return runtime.block_on(check_model(&config));
    }
    let telemetry = telemetry::init(&config.telemetry)?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::install()?;
        let server = tokio::select! {
            server = Server::start(config) => server?,
            // No request was accepted yet, and the embedded Postgres exits with this process.
            _ = signals.next() => return Ok(()),
        };
        write_out(&mut std::io::stdout(), &server.startup_banner()?);
        server.run(signals).await
    });
    telemetry.flush();
    // Shutdown is complete; blocking threads that still run get one more second.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Prints whether the configured model can be used.
async fn check_model(config: &Config) -> anyhow::Result<ExitCode> {
    let llm = llm::from_config(&config.model, platform::build_http_client()?);
    let report = llm::check::check_model(&config.model, &*llm).await;
    write_out(&mut std::io::stdout(), &report.text);
    Ok(match report.problem {
        Some(problem) => exit_with_error(&problem),
        None => ExitCode::SUCCESS,
    })
}

fn exit_with_error(message: &str) -> ExitCode {
    write_out(&mut std::io::stderr(), &format!("acontextd: {}\n", message.trim_end()));
    ExitCode::FAILURE
}

/// Writes to a terminal or a pipe. Ignores errors, because the program that reads the pipe may have closed it.
fn write_out(out: &mut impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
