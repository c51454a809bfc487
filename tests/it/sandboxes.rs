//! Sandboxes: the routes, with a provider that runs nothing, and the local provider.

mod calls;
mod cloudflare;
mod e2b;
mod escapes;
mod landlock;
mod limits;
mod local;
mod routes;
mod transfer;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use acontextd::blob::spool::SpoolDir;
use acontextd::ids::SandboxId;
use acontextd::sandboxes::provider::local::{LocalProvider, LocalSettings};
use acontextd::sandboxes::provider::{CommandOutput, SandboxProvider};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long a sandbox lives; local sandboxes do not end by themselves.
const KEEPALIVE: Duration = Duration::from_mins(10);

/// A local provider with a directory of its own.
struct Local {
    provider: Arc<LocalProvider>,
    settings: LocalSettings,
    dir: TempDir,
}

impl Local {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// Creates a provider with other settings than the default ones.
    fn with(change: impl FnOnce(&mut LocalSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The user of a sandbox must be able to traverse it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut settings = LocalSettings {
            dir: dir.path().join("sandboxes"),
            executable: env!("CARGO_BIN_EXE_acontextd").into(),
            isolation: None,
            allows_network: false,
            command_timeout: Duration::from_mins(1),
            max_output_bytes: 1 << 20,
            max_memory_bytes: 1 << 30,
            max_disk_bytes: 1 << 30,
            min_free_bytes: 0,
            max_files: 100_000,
            max_processes: 128,
            max_open_files: 256,
        };
        change(&mut settings);
        let provider = Arc::new(start_provider(&dir, &settings));
        Self { provider, settings, dir }
    }

    /// Starts another provider with the same directory, as a server does that is started again.
    fn restart(&self) -> LocalProvider {
        start_provider(&self.dir, &self.settings)
    }

    async fn create(&self) -> Sandbox<'_> {
        let id = SandboxId::new();
        let name = self.provider.create(id, KEEPALIVE).await.unwrap();
        Sandbox { local: self, id: name }
    }

    /// Returns the directory of a sandbox on the machine.
    fn dir_of(&self, sandbox: &Sandbox<'_>) -> PathBuf {
        self.settings.dir.join(&sandbox.id)
    }
}

fn start_provider(dir: &TempDir, settings: &LocalSettings) -> LocalProvider {
    let spool = SpoolDir::open(dir.path()).unwrap();
    LocalProvider::new(settings.clone(), spool, CancellationToken::new())
}

struct Sandbox<'a> {
    local: &'a Local,
    id: String,
}

impl Sandbox<'_> {
    async fn run(&self, command: &str) -> CommandOutput {
        self.local.provider.run_command(&self.id, command, KEEPALIVE).await.unwrap()
    }

    /// Runs a command that must succeed, and returns its standard output.
    async fn output(&self, command: &str) -> String {
        let output = self.run(command).await;
        assert_eq!(output.exit_code, 0, "{command}: {}{}", output.stdout.text, output.stderr.text);
        output.stdout.text
    }
}
