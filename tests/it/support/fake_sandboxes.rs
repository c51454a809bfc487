//! A sandbox provider that runs nothing: it records commands and keeps files in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use acontextd::blob::spool::Spool;
use acontextd::ids::SandboxId;
use acontextd::sandboxes::provider::{
    CommandEnd, CommandOutput, CommandStream, FileToWrite, ProviderError, ProviderName, ProviderStatus, SandboxFile,
    SandboxProvider,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use tokio::sync::Notify;

/// The files of a sandbox by their paths, with their content and whether they can be executed.
pub type Files = BTreeMap<String, (Bytes, bool)>;

#[derive(Default)]
pub struct FakeSandboxes {
    sandboxes: Mutex<BTreeMap<String, Files>>,
    /// Ends the command `wait`, and lets the file `slow` be read.
    pub latch: Notify,
    /// The number of these that wait.
    pub waiting: AtomicUsize,
}

impl FakeSandboxes {
    pub fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, Files>> {
        self.sandboxes.lock().unwrap()
    }

    async fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.latch.notified().await;
    }

    fn with_files<T>(&self, id: &str, change: impl FnOnce(&mut Files) -> T) -> Result<T, ProviderError> {
        self.sandboxes().get_mut(id).map(change).ok_or(ProviderError::Ended)
    }
}

fn stream(text: String) -> CommandStream {
    CommandStream { total_bytes: text.len() as u64, text, omitted_bytes: 0 }
}

async fn read(file: FileToWrite) -> Result<(Bytes, bool), ProviderError> {
    let content: BytesMut = file.content.try_collect().await.map_err(ProviderError::Content)?;
    assert_eq!(content.len() as u64, file.size);
    Ok((content.freeze(), file.is_executable))
}

#[async_trait]
impl SandboxProvider for FakeSandboxes {
    fn name(&self) -> ProviderName {
        ProviderName::Cloudflare
    }

    async fn status(&self) -> ProviderStatus {
        ProviderStatus {
            provider: self.name(),
            problem: None,
            warning: None,
            isolation: "none",
            limits: BTreeMap::new(),
        }
    }

    /// The new sandbox has the file `/tmp/old.txt`.
    async fn create(&self, sandbox: SandboxId, _: Duration) -> Result<String, ProviderError> {
        let id = format!("fake-{sandbox}");
        let files = Files::from([("/tmp/old.txt".to_owned(), (Bytes::from_static(b"old"), false))]);
        self.sandboxes().insert(id.clone(), files);
        Ok(id)
    }

    /// Writes the command to the standard output. The command `exit N` fails with that exit code. `wait` waits for the latch.
    async fn run_command(&self, id: &str, command: &str, _: Duration) -> Result<CommandOutput, ProviderError> {
        self.with_files(id, |_| ())?;
        if command == "wait" {
            self.wait().await;
        }
        let exit_code = command.strip_prefix("exit ").map_or(0, |code| code.parse().unwrap());
        let (stdout, stderr) = (stream(command.to_owned()), stream(String::new()));
        Ok(CommandOutput { stdout, stderr, exit_code, end: CommandEnd::Exited })
    }

    async fn read_file(&self, id: &str, path: &str, max_bytes: u64) -> Result<SandboxFile, ProviderError> {
        if path.ends_with("/slow") {
            self.wait().await;
        }
        let file = self.with_files(id, |files| files.get(path).cloned())?;
        let (content, is_executable) = file.ok_or_else(|| ProviderError::FileNotFound(path.to_owned()))?;
        if content.len() as u64 > max_bytes {
            return Err(ProviderError::FileTooLarge(max_bytes));
        }
        Ok(SandboxFile { content: Spool::from_bytes(content), is_executable })
    }

    /// Rejects files in `/etc`.
    async fn write_file(&self, id: &str, dir: &str, file: FileToWrite) -> Result<(), ProviderError> {
        if dir.starts_with("/etc") {
            return Err(ProviderError::FileRejected("read-only file system".into()));
        }
        let path = format!("{dir}/{}", file.path);
        let content = read(file).await?;
        self.with_files(id, |files| drop(files.insert(path, content)))
    }

    async fn write_dir(
        &self,
        id: &str,
        dir: &str,
        name: &str,
        files: Vec<FileToWrite>,
    ) -> Result<String, ProviderError> {
        let prefix = format!("{dir}/{name}/");
        if self.with_files(id, |existing| existing.keys().any(|path| path.starts_with(&prefix)))? {
            return Err(ProviderError::AlreadyExists);
        }
        for file in files {
            let path = format!("{prefix}{}", file.path);
            let content = read(file).await?;
            self.with_files(id, |files| drop(files.insert(path, content)))?;
        }
        Ok(format!("{dir}/{name}"))
    }

    async fn end(&self, id: &str) -> Result<(), ProviderError> {
        self.sandboxes().remove(id);
        Ok(())
    }
}
