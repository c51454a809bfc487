//! The server binary, as its own process.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
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

/// A copy of the program that every user can execute. Other users may have no access to the build directory.
pub struct ProgramCopy(TempDir);

impl ProgramCopy {
    pub fn create() -> Self {
        let dir = data_dir();
        // Another process writes the file. If this process did, a concurrent test could inherit the open file, and the program
        // could not be executed.
        assert!(Command::new("cp").arg(PROGRAM).arg(dir.path()).status().unwrap().success());
        Self(dir)
    }
}

pub struct ServerProcess {
    child: Child,
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    /// What the server printed when it was ready.
    pub banner: String,
    log: PathBuf,
}

impl ServerProcess {
    /// Runs the server with settings that it rejects, and returns its error message.
    pub fn startup_error(dir: &Path, settings: &[(&str, &str)]) -> String {
        let output = command(dir, settings).output().unwrap();
        assert!(!output.status.success(), "the server started");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command of the program, such as `check-model`. Returns whether it succeeded, its output and its error output.
    pub fn run_command(name: &str, settings: &[(&str, &str)]) -> (bool, String, String) {
        let dir = data_dir();
        let output = command(dir.path(), settings).arg(name).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    /// Runs a copy of the server as another user, and returns its error message.
    pub fn startup_error_as(uid: u32, program: &ProgramCopy, dir: &Path, settings: &[(&str, &str)]) -> String {
        let mut command = command_of(&program.0.path().join("acontextd"), dir, settings);
        let output = command.uid(uid).gid(uid).env("HOME", "/nonexistent").current_dir("/").output().unwrap();
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
        let mut command = command_of(Path::new("prlimit"), dir, settings);
        command.arg(format!("--nofile={limit}")).arg(PROGRAM);
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
        let child = command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut server = Self { child, url: String::new(), banner: String::new(), log };
        let lines = BufReader::new(server.child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines {
            server.banner.extend([line.as_str(), "\n"]);
            if line.starts_with("  try ") {
                break;
            }
        }
        // Without an address, the server has exited, and dropping it waits for the process.
        let base_url = server.banner.lines().find_map(|line| line.trim().strip_prefix("base URL"))?;
        server.url = base_url.trim().trim_end_matches("/api/v1").to_owned();
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
    command_of(Path::new(PROGRAM), dir, settings)
}

fn command_of(program: &Path, dir: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("ACONTEXTD_DATA_DIR", dir);
    command.env("API_EXPORT_PORT", "0").envs(settings.iter().copied());
    command
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // These calls fail after `kill` and `stop`, because the process has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
