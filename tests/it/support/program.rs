//! The real program, as its own process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

/// A data folder that the user postgres can get to.
pub fn data_folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("acontextd-data-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

pub struct Program {
    child: Child,
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    log: PathBuf,
}

impl Program {
    /// Runs it with settings that it refuses, and returns what it says.
    pub fn refusal(folder: &Path, settings: &[(&str, &str)]) -> String {
        let output = command(folder, settings).output().unwrap();
        assert!(!output.status.success(), "it started");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts it and returns when it listens: it says so last of all.
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::try_start(folder, settings).unwrap_or_else(|| {
            panic!("it did not start: {}", std::fs::read_to_string(folder.join("program.log")).unwrap())
        })
    }

    /// Starts it; `None` if it ends before it listens.
    pub fn try_start(folder: &Path, settings: &[(&str, &str)]) -> Option<Self> {
        let log = folder.join("program.log");
        let mut child = command(folder, settings)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let base = lines.find_map(|line| Some(line.trim().strip_prefix("base URL")?.trim().to_owned()));
        let mut program = Self { child, url: String::new(), log };
        // Without an address it has ended, and is waited for when this is dropped.
        base?.trim_end_matches("/api/v1").clone_into(&mut program.url);
        Some(program)
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }

    /// It does nothing until [`Program::go_on`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

fn command(folder: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acontextd"));
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("ACONTEXTD_DATA_DIR", folder);
    command.env("API_EXPORT_PORT", "0").envs(settings.iter().copied());
    command
}

impl Drop for Program {
    fn drop(&mut self) {
        // After `kill` and `stop` there is nothing left to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
