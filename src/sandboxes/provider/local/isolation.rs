//! How programs are separated from this machine: by bubblewrap, or by Landlock where bubblewrap does not work.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::bubblewrap::{Bubblewrap, NETWORK_FILES, SYSTEM_DIRS, SYSTEM_FILES};
use super::dirs::{SandboxDir, WORKSPACE};
use crate::config::SandboxIsolation;
use crate::confine::landlock::Restriction;

/// What enforces the limits that do not depend on the isolation.
const LIMITS: [(&str, &str); 7] = [
    ("command_timeout", "the server"),
    ("cpu_time", "the kernel, for each process"),
    ("disk", "the server, which measures the files of a sandbox while and after commands run"),
    ("file_size", "the kernel"),
    ("files", "the server, which counts the files of a sandbox while and after commands run"),
    ("memory", "the kernel for each process, and the server for all processes of a sandbox"),
    ("open_files", "the kernel, for each process"),
];
/// Files that do not exist for programs in a namespace, and without which programs fail if the files exist, but cannot be read.
const CONFIGURATION_FILES: [&str; 1] = ["/etc/ssl/openssl.cnf"];
/// Devices that programs use and that belong to no hardware.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// How programs are separated from this machine.
#[derive(Clone, Debug)]
pub(super) enum Isolation {
    Bubblewrap(Bubblewrap),
    Landlock(Landlock),
}

/// Programs see the files of the machine at their paths, and may use few of them.
#[derive(Clone, Debug)]
pub(super) struct Landlock {
    pub(super) allows_network: bool,
    /// Why bubblewrap is not used.
    pub(super) reason: String,
}

/// A program to execute, and what it may use.
pub(super) struct IsolatedProgram {
    pub(super) command_line: Vec<String>,
    pub(super) restriction: Option<Restriction>,
    pub(super) environment: Vec<(&'static str, String)>,
}

impl Isolation {
    pub(super) fn kind(&self) -> SandboxIsolation {
        match self {
            Self::Bubblewrap(_) => SandboxIsolation::Bubblewrap,
            Self::Landlock(_) => SandboxIsolation::Landlock,
        }
    }

    /// Returns what separates a sandbox from the machine.
    pub(super) fn description(&self) -> &'static str {
        match self {
            Self::Bubblewrap(_) => {
                "bubblewrap: namespaces for files, processes, users, IPC, host name and, unless it is allowed, the network; no \
                 capabilities, no new privileges, and a filter of system calls"
            }
            Self::Landlock(_) => {
                "Landlock for files and signals, and a filter of system calls without sockets, unless the network is allowed; no new \
                 privileges. There are no namespaces: the directories of a sandbox have other paths, which the variables HOME, TMPDIR, \
                 SANDBOX_WORKSPACE and SANDBOX_SKILLS contain, and the existence of other files can be seen"
            }
        }
    }

    /// Returns why a weaker isolation is used than the best one.
    pub(super) fn warning(&self) -> Option<String> {
        match self {
            Self::Bubblewrap(_) => None,
            Self::Landlock(Landlock { reason, .. }) => Some(format!("sandboxes use Landlock, because {reason}")),
        }
    }

    /// Returns what enforces each limit. `has_own_users` is `true` if each sandbox has a user of its own.
    pub(super) fn limits(&self, has_own_users: bool) -> BTreeMap<&'static str, &'static str> {
        let processes = match self {
            _ if has_own_users => "the kernel, for all processes of a sandbox",
            Self::Bubblewrap(_) => "the kernel, for all processes of a command",
            Self::Landlock(_) => "the kernel, for all processes of the server's user, of which it has others",
        };
        LIMITS.into_iter().chain([("processes", processes)]).collect()
    }

    /// Returns how to execute a program in a sandbox.
    pub(super) fn isolate(&self, dir: &SandboxDir, program: &[String]) -> IsolatedProgram {
        match self {
            Self::Bubblewrap(bubblewrap) => IsolatedProgram {
                command_line: bubblewrap.command_line(dir, program),
                restriction: None,
                environment: super::bubblewrap::ENVIRONMENT.map(|(name, value)| (name, value.to_owned())).to_vec(),
            },
            Self::Landlock(landlock) => IsolatedProgram {
                command_line: program.to_vec(),
                restriction: Some(landlock.restriction(dir)),
                environment: Landlock::environment(dir),
            },
        }
    }

    /// Returns the path of a file for the programs of a sandbox. `path` is its path in a sandbox with namespaces.
    pub(super) fn path_in(&self, dir: &SandboxDir, path: &str) -> String {
        match self {
            Self::Bubblewrap(_) => path.to_owned(),
            Self::Landlock(_) => dir.path_on_machine(path),
        }
    }
}

impl Landlock {
    fn restriction(&self, dir: &SandboxDir) -> Restriction {
        let network_files = NETWORK_FILES.iter().filter(|_| self.allows_network);
        let readable = ["/usr"].iter().chain(&SYSTEM_DIRS).chain(&SYSTEM_FILES).chain(&CONFIGURATION_FILES);
        Restriction {
            working_dir: dir.path_on_machine(WORKSPACE).into(),
            readable: readable.chain(network_files).map(PathBuf::from).collect(),
            writable: dir.writable().map(|(path, _)| path).collect(),
            devices: DEVICES.map(PathBuf::from).to_vec(),
            allows_network: self.allows_network,
        }
    }

    fn environment(dir: &SandboxDir) -> Vec<(&'static str, String)> {
        let home = dir.path_on_machine(super::dirs::HOME);
        let set = |(name, value): (&'static str, &str)| {
            let value = value.replace(super::dirs::HOME, &home);
            (name, value)
        };
        let mut environment: Vec<_> = super::bubblewrap::ENVIRONMENT.into_iter().map(set).collect();
        // Git fails if the configuration of the system exists, but cannot be read.
        environment.push(("GIT_CONFIG_NOSYSTEM", "1".to_owned()));
        for (name, path) in [("TMPDIR", "/tmp"), ("SANDBOX_WORKSPACE", WORKSPACE), ("SANDBOX_SKILLS", "/skills")] {
            environment.push((name, dir.path_on_machine(path)));
        }
        environment
    }
}
