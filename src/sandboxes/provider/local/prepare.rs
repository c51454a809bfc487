//! Prepares the machine for sandboxes: creates their directory, removes what a killed server has left behind, and runs a program in
//! a sandbox to find out whether the machine can isolate it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rand::Rng;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::bubblewrap::{self, Bubblewrap};
use super::disk::DiskMeter;
use super::isolation::{Isolation, Landlock};
use super::memory::MemoryMeter;
use super::spawner::Spawner;
use super::{LocalProvider, MAX_CONCURRENT_COMMANDS, MAX_MESSAGE_LEN};
use crate::config::SandboxIsolation;
use crate::confine::SANDBOX_USERS;
use crate::ids::SandboxId;
use crate::sandboxes::provider::ProviderError;

/// How long the self-test may take.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The command of the self-test. Clients of sandboxes expect these programs.
const SELF_TEST: &str = "command -v sh sed nl head wc base64 mkdir tar stat mv >/dev/null && test -w .";

/// What this process knows about a sandbox.
#[derive(Clone)]
pub(super) struct LocalSandbox {
    pub(super) id: SandboxId,
    /// The user of its processes, if it is not that of the server.
    pub(super) user: Option<u32>,
    /// Canceled when the sandbox ends.
    pub(super) cancel: CancellationToken,
    /// The programs that run in the sandbox.
    pub(super) running: TaskTracker,
    /// Has one permit for each command that may run concurrently.
    pub(super) permits: Arc<Semaphore>,
    pub(super) disk: Arc<DiskMeter>,
    pub(super) memory: Arc<MemoryMeter>,
}

/// The directory of the sandboxes and what is in it.
pub(super) struct Prepared {
    pub(super) spawner: Spawner,
    pub(super) host: Uuid,
    /// `true` if each sandbox has a user of its own, which requires that the server runs as root.
    pub(super) has_own_users: bool,
    sandboxes: Mutex<HashMap<SandboxId, LocalSandbox>>,
}

/// This machine, and how it separates programs from itself.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) isolation: &'a Isolation,
}

impl Prepared {
    pub(super) fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, LocalSandbox>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a user that no other sandbox has.
    pub(super) fn choose_user(&self) -> u32 {
        let sandboxes = self.sandboxes();
        loop {
            let user = rand::rng().random_range(SANDBOX_USERS);
            if sandboxes.values().all(|sandbox| sandbox.user != Some(user)) {
                return user;
            }
        }
    }
}

impl LocalProvider {
    /// Creates the directory of the sandboxes, and removes what a killed server has left behind. After a failure, the next call tries
    /// again.
    pub(super) async fn prepare(&self) -> Result<&Prepared, ProviderError> {
        let prepared = self.prepared.get_or_try_init(async || self.set_up());
        prepared.await.map_err(|err| self.unavailable(&err))
    }

    /// Finds out how this machine can isolate programs, by running one. After a failure, the next call tries again.
    pub(super) async fn find_isolation(&self) -> Result<Machine<'_>, ProviderError> {
        let prepared = self.prepare().await?;
        let isolation = self.isolation.get_or_try_init(async || self.choose_isolation(prepared).await);
        let isolation = isolation.await.map_err(|err| self.unavailable(&err))?;
        Ok(Machine { prepared, isolation })
    }

    async fn choose_isolation(&self, prepared: &Prepared) -> anyhow::Result<Isolation> {
        let reason = match self.settings.isolation {
            Some(SandboxIsolation::Bubblewrap) => return self.try_bubblewrap(prepared).await,
            Some(SandboxIsolation::Landlock) => "ACONTEXTD_SANDBOX_ISOLATION requires it".to_owned(),
            None => match self.try_bubblewrap(prepared).await {
                Ok(isolation) => return Ok(isolation),
                Err(err) => format!("bubblewrap does not work: {err:#}"),
            },
        };
        if rustix::process::geteuid().is_root() && !prepared.has_own_users {
            bail!("{reason}; Landlock does not work for root in a user namespace");
        }
        let problem = format!("{reason}; Landlock does not work");
        let isolation = Isolation::Landlock(Landlock { allows_network: self.settings.allows_network, reason });
        self.self_test(Machine { prepared, isolation: &isolation }).await.context(problem)?;
        let warning = isolation.warning();
        tracing::warn!(sandbox.warning = warning, "the isolation of sandboxes is weaker than it could be");
        Ok(isolation)
    }

    async fn try_bubblewrap(&self, prepared: &Prepared) -> anyhow::Result<Isolation> {
        let isolation = Isolation::Bubblewrap(Bubblewrap::new(self.etc_dir(), self.settings.allows_network)?);
        self.self_test(Machine { prepared, isolation: &isolation }).await?;
        Ok(isolation)
    }

    /// Returns the error for a machine that cannot run sandboxes, and logs it if it is not the last one.
    fn unavailable(&self, err: &anyhow::Error) -> ProviderError {
        let msg = format!("this machine cannot run sandboxes: {err:#}");
        let mut logged = self.logged_problem.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.as_ref() != Some(&msg) {
            tracing::warn!(sandbox.problem = msg, "no sandboxes can be created");
            *logged = Some(msg.clone());
        }
        ProviderError::Unavailable { msg, cause: None }
    }

    fn etc_dir(&self) -> PathBuf {
        self.dir.0.join("etc")
    }

    fn set_up(&self) -> anyhow::Result<Prepared> {
        let name = self.dir.0.display();
        let server_user = rustix::process::geteuid().as_raw();
        let is_root = server_user == 0;
        let found = self.dir.create(is_root).and_then(|()| {
            let has_own_users = is_root && self.dir.can_change_owner(SANDBOX_USERS.start)?;
            bubblewrap::write_etc_files(&self.etc_dir())?;
            let found = self.dir.find()?;
            self.dir.kill_orphans(&found.sandboxes)?;
            Ok((has_own_users, found))
        });
        let (has_own_users, found) = found.with_context(|| format!("cannot read and write the directory {name}"))?;
        let host = self.dir.host_id()?;
        for incomplete in found.incomplete {
            self.dir.move_to_trash(incomplete)?;
        }
        // Its commands would run as the owner of its files.
        let is_usable = |owner: u32| if has_own_users { SANDBOX_USERS.contains(&owner) } else { owner == server_user };
        let (usable, foreign): (Vec<_>, Vec<_>) = found.sandboxes.into_iter().partition(|(_, owner)| is_usable(*owner));
        for (id, owner) in foreign {
            tracing::warn!(sandbox.id = %id, owner, "a sandbox cannot be used, because its files belong to another user");
            if has_own_users {
                self.dir.move_to_trash(id)?;
            }
        }
        let sandboxes = usable.into_iter().map(|(id, owner)| {
            let sandbox = self.new_sandbox(id, has_own_users.then_some(owner));
            (id, sandbox)
        });
        Ok(Prepared {
            spawner: Spawner::start().context("cannot start a thread")?,
            host,
            has_own_users,
            sandboxes: Mutex::new(sandboxes.collect()),
        })
    }

    fn new_sandbox(&self, id: SandboxId, user: Option<u32>) -> LocalSandbox {
        let dirs = self.dir.sandbox(id).writable().map(|(path, _)| path).collect();
        LocalSandbox {
            id,
            user,
            cancel: self.abort.child_token(),
            running: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_COMMANDS)),
            disk: Arc::new(DiskMeter::new(dirs, self.max_disk().twice())),
            memory: Arc::default(),
        }
    }

    /// Creates the directories of a sandbox.
    ///
    /// # Errors
    /// Returns an error if they cannot be created.
    pub(super) fn create_sandbox(&self, prepared: &Prepared, id: SandboxId) -> anyhow::Result<LocalSandbox> {
        let sandbox = self.new_sandbox(id, prepared.has_own_users.then(|| prepared.choose_user()));
        let dir = self.dir.sandbox(id);
        dir.create(sandbox.user).with_context(|| format!("cannot create the directory {}", dir.0.display()))?;
        Ok(sandbox)
    }

    async fn self_test(&self, machine: Machine<'_>) -> anyhow::Result<()> {
        let sandbox = self.create_sandbox(machine.prepared, SandboxId::new())?;
        let test = async {
            let run = self.run_shell_command(machine, &sandbox, SELF_TEST, SELF_TEST_TIMEOUT, MAX_MESSAGE_LEN);
            let (finished, stdout) = run.await?;
            let exit_code = finished.end.exit_code;
            if exit_code == 0 {
                return Ok(());
            }
            let message = format!("{}\n{}", finished.stderr.text.trim(), stdout.text.trim());
            bail!("a test program has failed with exit code {exit_code}: {}", message.trim())
        };
        let result = test.await;
        self.dir.remove(sandbox.id).await?;
        result
    }
}
