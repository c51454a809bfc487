//! The process that keeps the processes of a program together where bubblewrap does not work. Without a process namespace, a process
//! can detach from its parent. The supervisor adopts such processes, and kills them when the program or the server ends.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper, wait};

use super::process_tree::kill_descendants;
use super::{Confinement, SUBCOMMAND, ensure_parent};

/// How long to wait between two checks whether the processes that were killed have ended.
const END_INTERVAL: Duration = Duration::from_millis(2);
/// The exit code if the server has ended.
const SERVER_ENDED: i32 = 128 + 9;

/// Runs the program of a confinement in another process. When it ends, kills all processes that it has left. Returns its exit code,
/// which is that of a shell.
///
/// # Errors
/// Returns an error if the program cannot be started.
pub(super) fn run(confinement: Confinement) -> anyhow::Result<u8> {
    close_fds::set_fds_cloexec(3, &[]);
    set_child_subreaper(Some(getpid())).context("cannot adopt the processes of a sandbox")?;
    let server = i32::try_from(confinement.parent).ok().and_then(Pid::from_raw).context("confine: invalid parent")?;
    let server = pidfd_open(server, PidfdFlags::empty()).context("the server has ended")?;
    ensure_parent(confinement.parent)?;
    thread::Builder::new().spawn(move || end_with(&server)).context("cannot start a thread")?;
    let mut program = start(confinement)?;
    let status = program.wait().context("cannot wait for a program")?;
    loop {
        kill_descendants(std::process::id());
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => thread::sleep(END_INTERVAL),
            Err(Errno::CHILD) => break,
            Err(err) => return Err(err).context("cannot wait for the processes of a sandbox"),
        }
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Starts the subcommand with the same confinement and this process as the parent.
fn start(confinement: Confinement) -> anyhow::Result<Child> {
    let confinement = Confinement { parent: std::process::id(), is_supervised: true, ..confinement };
    let json = serde_json::to_string(&confinement).context("cannot encode a confinement")?;
    Command::new("/proc/self/exe").args([SUBCOMMAND, &json]).spawn().context("cannot start a program")
}

/// Waits until the server ends, then kills the processes of the sandbox, and ends this process.
fn end_with(server: &OwnedFd) {
    // An interruption by a signal is the only possible error.
    while poll(&mut [PollFd::new(server, PollFlags::IN)], None).is_err() {}
    kill_descendants(std::process::id());
    std::process::exit(SERVER_ENDED);
}
