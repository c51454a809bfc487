//! The process that keeps the processes of a program together where bubblewrap does not work. Without a process namespace, a process
//! can detach from its parent. The supervisor adopts such processes. When the program ends, when the supervisor gets SIGTERM, or when
//! the server ends, it kills all of them, and does not end before. SIGKILL would set them free.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, getpid, pidfd_open, set_child_subreaper, wait};

use super::process_tree::kill_descendants;
use super::{Confinement, SUBCOMMAND, ensure_parent};

/// How long to wait between two attempts to kill all processes.
const KILL_INTERVAL: Duration = Duration::from_millis(1);

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
    let (signaled, signal) = UnixStream::pair().context("cannot create a pair of sockets")?;
    signal_hook::low_level::pipe::register(libc::SIGTERM, signal).context("cannot handle SIGTERM")?;
    let program = start(confinement)?;
    thread::Builder::new().spawn(move || kill_on_request(&server, &signaled)).context("cannot start a thread")?;
    let status = wait_for(program)?;
    loop {
        kill_descendants(std::process::id());
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => thread::sleep(KILL_INTERVAL),
            Err(Errno::CHILD) => break,
            Err(err) => return Err(err).context("cannot wait for the processes of a sandbox"),
        }
    }
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Starts the subcommand with the same confinement and this process as the parent. Returns its process id.
fn start(confinement: Confinement) -> anyhow::Result<u32> {
    let confinement = Confinement { parent: std::process::id(), is_supervised: true, ..confinement };
    let json = serde_json::to_string(&confinement).context("cannot encode a confinement")?;
    let child = Command::new("/proc/self/exe").args([SUBCOMMAND, &json]).spawn().context("cannot start a program")?;
    Ok(child.id())
}

/// Waits until the program ends. Until then, removes the adopted processes that have ended, which count for the limit of processes.
fn wait_for(program: u32) -> anyhow::Result<WaitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == program => return Ok(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err).context("cannot wait for a program"),
        }
    }
}

/// Waits until the server ends or asks for the end with a signal. Then kills all processes until this process ends.
fn kill_on_request(server: &OwnedFd, signaled: &UnixStream) {
    let mut events = [PollFd::new(server, PollFlags::IN), PollFd::new(signaled, PollFlags::IN)];
    // An interruption by a signal is the only possible error.
    while poll(&mut events, None).is_err() {}
    loop {
        kill_descendants(std::process::id());
        thread::sleep(KILL_INTERVAL);
    }
}
