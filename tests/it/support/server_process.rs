//! The server binary, as its own process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_acontextd");

/// Creates a data directory that the user `postgres` can access.
pub fn data_dir() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("acontextd-data-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

pub struct ServerProcess {
    child: Child,
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    log: PathBuf,
}

impl ServerProcess {
    /// Runs the server with settings that it rejects, and returns its error message.
    pub fn startup_error(dir: &Path, settings: &[(&str, &str)]) -> String {
        let output = command(dir, settings).output().unwrap();
        assert!(!output.status.success(), "the server started");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts the server and returns when it listens.
    pub fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::try_start(dir, settings).unwrap_or_else(|| {
            panic!("the server did not start: {}", std::fs::read_to_string(dir.join("program.log")).unwrap())
        })
    }

    /// Starts the server with a soft and a hard limit of open files, such as `300:1000`.
    pub fn start_with_file_limit(dir: &Path, settings: &[(&str, &str)], limit: &str) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(PROGRAM);
        set_environment(&mut command, dir, settings);
        Self::spawn(command, dir).unwrap_or_else(|| {
            panic!("the server did not start: {}", std::fs::read_to_string(dir.join("program.log")).unwrap())
        })
    }

    /// Starts the server. Returns `None` if it exits before it listens.
    pub fn try_start(dir: &Path, settings: &[(&str, &str)]) -> Option<Self> {
        Self::spawn(command(dir, settings), dir)
    }

    fn spawn(mut command: Command, dir: &Path) -> Option<Self> {
        let log = dir.join("program.log");
        let mut child = command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let base = lines.find_map(|line| Some(line.trim().strip_prefix("base URL")?.trim().to_owned()));
        let mut server = Self { child, url: String::new(), log };
        // Without an address, the server has exited, and dropping it waits for the process.
        base?.trim_end_matches("/api/v1").clone_into(&mut server.url);
        Some(server)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and returns the exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }

    /// Suspends the server until [`ServerProcess::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the log of the server.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

fn command(dir: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(PROGRAM);
    set_environment(&mut command, dir, settings);
    command
}

fn set_environment(command: &mut Command, dir: &Path, settings: &[(&str, &str)]) {
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("ACONTEXTD_DATA_DIR", dir);
    command.env("API_EXPORT_PORT", "0").envs(settings.iter().copied());
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // These calls fail after `kill` and `stop`, because the process has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
