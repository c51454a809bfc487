//! The thread that starts the processes of sandboxes.
//!
//! bubblewrap asks the kernel to kill it when its parent ends, and for the kernel the parent is a thread, not a process. Threads
//! of the runtime may end earlier than the process, so this thread starts all sandboxes and ends with the process.

use std::process::Stdio;
use std::sync::mpsc;

use anyhow::{Context, anyhow};
use rustix::io::Errno;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::sandboxes::provider::ProviderError;

type Request = (Command, Handle, oneshot::Sender<std::io::Result<Child>>);

/// A handle to the thread. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Spawner(mpsc::Sender<Request>);

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// Returns an error if the system has no thread to spare.
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("sandbox-spawner".into()).spawn(move || {
            for (mut command, runtime, reply) in receiver {
                let _context = runtime.enter();
                // If the caller has been canceled, the process is dropped, which kills it.
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok(Self(sender))
    }

    /// Starts a process. Its standard streams become pipes.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the system has no resources for the process, and other errors if it cannot be started.
    pub(super) async fn spawn(&self, mut command: Command) -> Result<Child, ProviderError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (reply, child) = oneshot::channel();
        self.0
            .send((command, Handle::current(), reply))
            .map_err(|_| anyhow!("the thread that starts sandboxes has ended"))?;
        let spawned = child.await.context("the thread that starts sandboxes has ended")?;
        spawned.map_err(|err| match Errno::from_io_error(&err) {
            Some(Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM) => ProviderError::Unavailable {
                msg: "the server has too many files or processes to start another command; retry later".to_owned(),
                cause: Some(err.into()),
            },
            _ => ProviderError::Internal(anyhow::Error::new(err).context("cannot start a process")),
        })
    }
}
