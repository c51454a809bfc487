//! Prepares the machine for sandboxes: creates their directory, removes what a killed server has left behind, and runs a program in
//! a sandbox to find out whether the machine can isolate it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rand::Rng;
use uuid::Uuid;

use super::bubblewrap::{self, Bubblewrap};
use super::process::Supervision;
use super::spawner::Spawner;
use super::{LocalProvider, LocalSandbox, MAX_MESSAGE_LEN, run_to_end};
use crate::ids::SandboxId;
use crate::sandboxes::provider::ProviderError;

/// The users of sandboxes if the server runs as root: each sandbox has a user of its own. systemd lists this range as unused.
const USERS: std::ops::Range<u32> = 2_000_000_000..2_001_000_000;
/// How long the self-test may take.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The command of the self-test. Clients of sandboxes expect these programs.
const SELF_TEST: &str = "command -v sh sed nl head wc base64 mkdir tar stat mv >/dev/null && test -w /workspace";

/// The directory of the sandboxes and what is in it.
pub(super) struct Prepared {
    pub(super) spawner: Spawner,
    pub(super) host: Uuid,
    /// `true` if the server runs as root, so that each sandbox has a user of its own.
    pub(super) is_root: bool,
    sandboxes: Mutex<HashMap<SandboxId, LocalSandbox>>,
}

impl Prepared {
    pub(super) fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, LocalSandbox>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a user that no other sandbox has.
    pub(super) fn choose_user(&self) -> u32 {
        let sandboxes = self.sandboxes();
        loop {
            let user = rand::rng().random_range(USERS);
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

    /// Runs a program in a sandbox to find out whether this machine can isolate programs. After a failure, the next call tries again.
    pub(super) async fn find_bubblewrap(&self) -> Result<&Bubblewrap, ProviderError> {
        let prepared = self.prepare().await?;
        let bubblewrap = self.bubblewrap.get_or_try_init(async || {
            let bubblewrap = Bubblewrap::new(self.etc_dir(), self.settings.allows_network)?;
            self.self_test(prepared, &bubblewrap).await?;
            anyhow::Ok(bubblewrap)
        });
        bubblewrap.await.map_err(|err| self.unavailable(&err))
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
        let is_root = rustix::process::geteuid().is_root();
        let name = self.dir.0.display();
        let found = self.dir.create().and_then(|()| {
            bubblewrap::write_etc_files(&self.etc_dir())?;
            self.dir.kill_orphans()?;
            self.dir.find()
        });
        let found = found.with_context(|| format!("cannot read and write the directory {name}"))?;
        let host = self.dir.host_id()?;
        for incomplete in found.incomplete {
            self.dir.move_to_trash(incomplete)?;
        }
        let sandboxes = found.sandboxes.into_iter().map(|(id, owner)| {
            let sandbox = self.new_sandbox(id, is_root.then_some(owner));
            (id, sandbox)
        });
        Ok(Prepared {
            spawner: Spawner::start().context("cannot start a thread")?,
            host,
            is_root,
            sandboxes: Mutex::new(sandboxes.collect()),
        })
    }

    async fn self_test(&self, prepared: &Prepared, bubblewrap: &Bubblewrap) -> anyhow::Result<()> {
        let sandbox = self.create_sandbox(prepared, SandboxId::new())?;
        let test = async {
            let mut child = self.spawn((prepared, bubblewrap), &sandbox, &self.command_program()).await?;
            let supervision = Supervision { timeout: SELF_TEST_TIMEOUT, ..self.supervision(&sandbox) };
            let (end, stdout, stderr) = run_to_end(&mut child, supervision, SELF_TEST, MAX_MESSAGE_LEN).await?;
            if end.exit_code == 0 {
                return Ok(());
            }
            let message = format!("{}\n{}", stderr.text.trim(), stdout.text.trim());
            bail!("a test program in bubblewrap has failed with exit code {}: {}", end.exit_code, message.trim())
        };
        let result = test.await;
        self.dir.remove(sandbox.id).await?;
        result
    }
}
