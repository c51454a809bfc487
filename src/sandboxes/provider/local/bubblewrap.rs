//! The arguments of bubblewrap: what a program in a sandbox can see and do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::dirs::{HOME, SandboxDir, WORKSPACE};

/// The environment of the programs in a sandbox. They inherit no other variables.
pub(super) const ENVIRONMENT: [(&str, &str); 7] = [
    ("HOME", HOME),
    ("LANG", "C.UTF-8"),
    ("LOGNAME", "user"),
    ("PATH", "/home/user/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("SHELL", "/bin/bash"),
    ("TERM", "dumb"),
    ("USER", "user"),
];

/// Where bubblewrap is looked for.
const PROGRAM_DIRS: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];
/// The user and group id in a sandbox.
const USER: &str = "1000";
/// Directories at the root that are links into `/usr` on most systems.
pub(super) const SYSTEM_DIRS: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libexec"];
/// What programs need from `/etc`. None of it is specific to the machine or secret.
pub(super) const SYSTEM_FILES: [&str; 14] = [
    "/etc/alternatives",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
];
/// What programs also need to reach other machines.
pub(super) const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/gai.conf"];

/// bubblewrap, and what it shows to all sandboxes of this server.
#[derive(Clone, Debug)]
pub(super) struct Bubblewrap {
    pub(super) program: PathBuf,
    /// The directory with the files of [`write_etc_files`].
    pub(super) etc_dir: PathBuf,
    /// `true` if sandboxes share the network of the machine.
    pub(super) allows_network: bool,
}

impl Bubblewrap {
    /// Finds bubblewrap in the directories of the system's programs.
    ///
    /// # Errors
    /// Returns an error with a remedy if it is not installed.
    pub(super) fn new(etc_dir: PathBuf, allows_network: bool) -> anyhow::Result<Self> {
        let mut programs = PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join("bwrap"));
        let program = programs.find(|program| program.exists());
        let program = program.context("bubblewrap is not installed; install the package `bubblewrap`")?;
        Ok(Self { program, etc_dir, allows_network })
    }

    /// Returns the command line that executes `program` in the sandbox, without the arguments that name file descriptors.
    pub(super) fn command_line(&self, dir: &SandboxDir, program: &[String]) -> Vec<String> {
        let mut line = CommandLine(vec![self.program.display().to_string()]);
        line.add(&["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]);
        if !self.allows_network {
            line.add(&["--unshare-net"]);
        }
        // The program is the first process of its namespace. Otherwise that would be a process of bubblewrap without the filter, to
        // whose memory the program could write.
        line.add(&["--as-pid-1", "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
        line.add(&["--uid", USER, "--gid", USER, "--hostname", "sandbox"]);
        line.add(&["--ro-bind", "/usr", "/usr"]);
        for dir in SYSTEM_DIRS {
            match fs::read_link(dir) {
                Ok(target) => line.add(&["--symlink", &target.display().to_string(), dir]),
                Err(_) => line.add(&["--ro-bind-try", dir, dir]),
            }
        }
        let network_files = NETWORK_FILES.into_iter().filter(|_| self.allows_network);
        for file in SYSTEM_FILES.into_iter().chain(network_files) {
            line.add(&["--ro-bind-try", file, file]);
        }
        for (name, _) in ETC_FILES {
            line.add(&["--ro-bind", &self.etc_dir.join(name).display().to_string(), &format!("/etc/{name}")]);
        }
        line.add(&["--proc", "/proc", "--dev", "/dev"]);
        for (source, path) in dir.writable() {
            line.add(&["--bind", &source.display().to_string(), path]);
        }
        // Not a file system in memory, whose files no limit would count.
        line.add(&["--bind", &dir.path_on_machine("/tmp"), "/dev/shm"]);
        line.add(&["--dir", "/var", "--symlink", "../tmp", "/var/tmp"]);
        // These file systems are in memory, and no limit would count what is written to them.
        line.add(&["--remount-ro", "/dev", "--remount-ro", "/"]);
        line.add(&["--chdir", WORKSPACE, "--"]);
        line.0.extend_from_slice(program);
        line.0
    }
}

struct CommandLine(Vec<String>);

impl CommandLine {
    fn add(&mut self, arguments: &[&str]) {
        self.0.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }
}

/// Files in the `/etc` of sandboxes, which name the user.
const ETC_FILES: [(&str, &str); 3] = [
    ("passwd", "root:x:0:0:root:/root:/usr/sbin/nologin\nuser:x:1000:1000:user:/home/user:/bin/bash\n"),
    ("group", "root:x:0:\nuser:x:1000:\n"),
    ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
];

/// Writes the files that all sandboxes have in `/etc`.
///
/// # Errors
/// Returns an error if the directory cannot be written.
pub(super) fn write_etc_files(etc_dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    fs::create_dir_all(etc_dir)?;
    fs::set_permissions(etc_dir, fs::Permissions::from_mode(0o755))?;
    for (name, content) in ETC_FILES {
        let path = etc_dir.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
