//! The hidden subcommand `confine`, which the local sandbox provider starts for each command. It limits its own resources, gives
//! up its privileges, and then executes bubblewrap with a filter of system calls. Where bubblewrap does not work, it restricts itself
//! with [Landlock](landlock) and the filter instead, below a supervisor.
//!
//! It is a process of its own, because these steps must happen between `fork` and `exec`, where safe Rust cannot run code. It has
//! a single thread, inherits no environment of the server, and does not return if it succeeds.

pub mod landlock;
pub mod process_tree;
mod supervisor;
pub mod syscalls;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::fs::{MemfdFlags, Mode};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, getppid, set_parent_process_death_signal, setrlimit};
use serde::{Deserialize, Serialize};

use self::landlock::Restriction;
use self::syscalls::Separation;

/// The first argument of the process.
pub const SUBCOMMAND: &str = "confine";

/// The users of sandboxes, if each has one of its own. systemd lists this range as unused.
pub const SANDBOX_USERS: std::ops::Range<u32> = 2_000_000_000..2_001_000_000;

/// What to execute, and with which limits. Passed as JSON in the second argument.
#[derive(Debug, Serialize, Deserialize)]
pub struct Confinement {
    /// The user and group id to switch to. `None` keeps those of the server.
    pub user: Option<u32>,
    pub limits: ResourceLimits,
    /// The process that has started this one. Without it, the program must not run.
    pub parent: u32,
    /// The files that the program may use. `None` if the program is bubblewrap.
    pub restriction: Option<Restriction>,
    /// `true` if the parent is a supervisor.
    pub is_supervised: bool,
    /// The program with its arguments. For bubblewrap, without those that name file descriptors.
    pub program: Vec<String>,
}

/// Limits that the kernel enforces for each process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ResourceLimits {
    pub cpu_seconds: u64,
    /// The size of private writable memory in bytes.
    pub memory_bytes: u64,
    pub file_bytes: u64,
    pub open_files: u64,
    /// `None` if a later step sets this limit.
    pub processes: Option<ProcessLimit>,
}

/// The maximum number of processes and threads.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum ProcessLimit {
    /// Of the user, who has no other processes.
    Total(u64),
    /// In addition to those that the user has now.
    Additional(u64),
}

/// Executes the confinement if the process was started with the subcommand. Returns `None` if it was not. Otherwise, returns only
/// if the process is a supervisor whose program has ended, with the exit code, or if the program could not be executed.
pub fn run_if_requested(mut args: impl Iterator<Item = OsString>) -> Option<anyhow::Result<u8>> {
    let _program = args.next();
    if args.next()? != SUBCOMMAND {
        return None;
    }
    let parsed = args.next().context("confine: the argument is missing").and_then(|json| {
        serde_json::from_slice::<Confinement>(json.as_encoded_bytes()).context("confine: invalid argument")
    });
    Some(parsed.and_then(|confinement| match confinement.restriction {
        Some(_) if !confinement.is_supervised => supervisor::run(confinement),
        _ => match execute(&confinement)? {},
    }))
}

/// Executes the program. Returns only if that fails.
fn execute(confinement: &Confinement) -> anyhow::Result<std::convert::Infallible> {
    // If memory runs out, the kernel ends a sandbox before the server. A process may always raise its own score.
    fs::write("/proc/self/oom_score_adj", "1000").context("cannot set the OOM score")?;
    // Files that a command creates have the usual modes. The server's own umask is stricter.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let [program, arguments @ ..] = confinement.program.as_slice() else { bail!("confine: no program") };
    let mut command = Command::new(program);
    let filter = if confinement.restriction.is_none() {
        // Before the resources are limited, because they include the size of a file.
        let filter = create_filter_file()?;
        command.args(["--seccomp", &filter.as_raw_fd().to_string()]);
        Some(filter)
    } else {
        None
    };
    let kept: Vec<_> = filter.iter().map(AsRawFd::as_raw_fd).collect();
    // Files that the server has inherited and does not know may be open.
    close_fds::set_fds_cloexec(3, &kept);
    limit_resources(&confinement.limits)?;
    if let Some(user) = confinement.user {
        drop_privileges(user)?;
    }
    end_with_parent(confinement.parent)?;
    if let Some(restriction) = &confinement.restriction {
        // Without a controlling terminal.
        rustix::process::setsid().context("cannot create a session")?;
        landlock::restrict(restriction)?;
        let has_own_user = confinement.user.is_some();
        syscalls::install(Separation::Landlock { has_own_user, allows_network: restriction.allows_network })?;
    }
    let error = command.args(arguments).exec();
    drop(filter);
    Err(error).with_context(|| format!("cannot execute {program}"))
}

fn limit_resources(limits: &ResourceLimits) -> anyhow::Result<()> {
    let values = [
        (Resource::Core, 0),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Data, limits.memory_bytes),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nofile, limits.open_files),
    ];
    let processes = limits.processes.map(|limit| match limit {
        ProcessLimit::Total(processes) => processes,
        ProcessLimit::Additional(processes) => processes + count_threads(rustix::process::getuid().as_raw()),
    });
    let processes = processes.map(|processes| (Resource::Nproc, processes));
    for (resource, limit) in values.into_iter().chain(processes) {
        // A hard limit that is lower already stays in effect.
        let maximum = rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
        setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })
            .with_context(|| format!("cannot set the limit {resource:?}"))?;
    }
    Ok(())
}

/// Returns the number of threads of a user, which the kernel counts as processes.
fn count_threads(user: u32) -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let of_user = processes.flatten().filter(|process| process.metadata().is_ok_and(|metadata| metadata.uid() == user));
    let threads = of_user.filter_map(|process| Some(fs::read_dir(process.path().join("task")).ok()?.count() as u64));
    threads.sum()
}

/// Lets the kernel kill this process when its parent ends. bubblewrap does the same, but only after a while.
fn end_with_parent(parent: u32) -> anyhow::Result<()> {
    // A change of the user would clear the signal, so it must precede.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot set the signal for the end of the parent")?;
    ensure_parent(parent)
}

/// # Errors
/// Returns an error if the process with this id is not the parent any more.
fn ensure_parent(parent: u32) -> anyhow::Result<()> {
    let current = getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if current != Some(parent) {
        bail!("the server has ended");
    }
    Ok(())
}

/// Switches to an unprivileged user and gives up all supplementary groups.
fn drop_privileges(user: u32) -> anyhow::Result<()> {
    if !SANDBOX_USERS.contains(&user) {
        bail!("confine: {user} is not the id of a sandbox's user");
    }
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[]).context("cannot give up the supplementary groups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).context("cannot switch the group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context("cannot switch the user")
}

/// Writes the filter of system calls to a file that the executed program inherits.
fn create_filter_file() -> anyhow::Result<OwnedFd> {
    // Without `CLOEXEC`, so that the file stays open.
    let descriptor =
        rustix::fs::memfd_create("seccomp", MemfdFlags::empty()).context("cannot create a file in memory")?;
    let mut file = File::from(descriptor);
    file.write_all(&syscalls::filter_bytes(Separation::Namespaces)?)?;
    file.rewind()?;
    Ok(file.into())
}
