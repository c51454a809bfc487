//! Sandboxes with Landlock instead of bubblewrap, as on machines whose kernel does not permit user namespaces.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use acontextd::config::SandboxIsolation;
use acontextd::sandboxes::provider::local::LocalSettings;
use acontextd::sandboxes::provider::{CommandEnd, SandboxProvider};

use super::transfer::file;
use super::{Local, Sandbox};
use crate::support::wait_until;

fn landlock() -> Local {
    landlock_with(|_| {})
}

fn landlock_with(change: impl FnOnce(&mut LocalSettings)) -> Local {
    Local::with(|settings| {
        settings.isolation = Some(SandboxIsolation::Landlock);
        change(settings);
    })
}

impl Sandbox<'_> {
    /// Runs a command that must fail, with one of these texts in its output.
    async fn fails(&self, command: &str, texts: &[&str]) {
        let output = self.run(command).await;
        let text = output.stdout.text + &output.stderr.text;
        assert_ne!(output.exit_code, 0, "{command}: {text}");
        assert!(texts.iter().any(|expected| text.contains(expected)), "{command}: {text}");
    }
}

#[tokio::test]
async fn a_command_runs_in_the_directories_of_its_sandbox() {
    let local = landlock();
    let sandbox = local.create().await;
    let dir = local.dir_of(&sandbox);
    let paths = sandbox.output("pwd; echo $HOME $TMPDIR $SANDBOX_WORKSPACE $SANDBOX_SKILLS").await;
    let path = |name: &str| dir.join(name).display().to_string();
    let [workspace, home, tmp, skills] = ["workspace", "home", "tmp", "skills"].map(path);
    assert_eq!(paths, format!("{workspace}\n{home} {tmp} {workspace} {skills}\n"));
    let output = sandbox.run("echo out; echo err >&2; exit 3").await;
    assert_eq!((output.stdout.text.as_str(), output.stderr.text.as_str()), ("out\n", "err\n"));
    assert_eq!((output.exit_code, output.end), (3, CommandEnd::Exited));
    assert_eq!(sandbox.run("kill -9 $$").await.exit_code, 137);
    for dir in ["$HOME", "$TMPDIR", "$SANDBOX_SKILLS", "."] {
        sandbox.output(&format!("echo {dir} > {dir}/file && cat {dir}/file")).await;
    }
    assert_eq!(sandbox.output("python3 -c 'import json, socket, subprocess, tempfile; print(6 * 7)'").await, "42\n");
    assert_eq!(sandbox.output("cat file").await, ".\n");
    let environment = sandbox.output("env | cut -d= -f1 | grep -vx '_\\|SHLVL\\|OLDPWD' | sort").await;
    let expected = "GIT_CONFIG_NOSYSTEM\nHOME\nLANG\nLOGNAME\nPATH\nPWD\nSANDBOX_SKILLS\nSANDBOX_WORKSPACE\nSHELL\nTERM\nTMPDIR\nUSER\n";
    assert_eq!(environment, expected);
}

#[tokio::test]
async fn the_status_says_that_the_isolation_is_weaker() {
    let status = landlock().provider.status().await;
    assert_eq!(status.problem, None);
    assert!(status.isolation.contains("Landlock"), "{}", status.isolation);
    assert_eq!(status.warning.unwrap(), "sandboxes use Landlock, because ACONTEXTD_SANDBOX_ISOLATION requires it");
}

#[tokio::test]
async fn files_are_copied_to_the_paths_of_a_sandbox() {
    let local = landlock();
    let sandbox = local.create().await;
    let (provider, id) = (&local.provider, &sandbox.id);
    provider.write_file(id, "/workspace/dir", file("run.sh", "echo run", true)).await.unwrap();
    assert_eq!(sandbox.output("cat dir/run.sh; test -x dir/run.sh").await, "echo run");
    let read = provider.read_file(id, "///workspace//dir/run.sh", 100).await.unwrap();
    assert_eq!((read.content.bytes().await.unwrap().as_ref(), read.is_executable), (b"echo run".as_slice(), true));
    let dir = provider.write_dir(id, "/skills", "one", vec![file("SKILL.md", "text", false)]).await.unwrap();
    assert_eq!(sandbox.output(&format!("cat {dir}/SKILL.md")).await, "text");
    assert_eq!(sandbox.output("cat $SANDBOX_SKILLS/one/SKILL.md").await, "text");
    for path in ["/etc/shadow", "/proc/self/status", "/workspace/../../../host-id"] {
        assert!(provider.read_file(id, path, 100).await.is_err(), "{path}");
    }
    for dir in ["/etc", "/var/tmp", "/workspace/../.."] {
        assert!(provider.write_file(id, dir, file("file", "x", false)).await.is_err(), "{dir}");
    }
}

#[tokio::test]
async fn files_outside_of_a_sandbox_are_out_of_reach() {
    let local = landlock();
    let (sandbox, other) = (local.create().await, local.create().await);
    other.output("echo secret > file").await;
    let secret = local.dir_of(&other).join("workspace/file");
    let secret = secret.display();
    let outside = local.settings.dir.join("outside");
    std::fs::write(&outside, "original").unwrap();
    let outside_path = outside.display();
    let denied =
        ["Permission denied", "Operation not permitted", "Function not implemented", "Invalid cross-device link"];
    for command in [
        "cat /etc/shadow",
        "cat /etc/hostname",
        "ls /root /home",
        "ls /var/lib",
        "ls /proc",
        "cat /proc/self/status",
        "cat /proc/1/environ",
        "ls /run /tmp /dev/shm",
        "echo x > /tmp/file",
        "echo x > /dev/shm/file",
        "echo x > /usr/bin/true",
        "mkdir /var/tmp/dir",
        "mknod disk b 254 0",
        "mkfifo /tmp/pipe",
        "ln -s /etc/shadow link; cat link",
        "ln /usr/bin/env link2",
        &format!("cat {secret}"),
        &format!("ln -s {secret} link3; cat link3"),
        &format!("cat ../../{}/workspace/file", other.id),
        &format!("ls {}", local.settings.dir.display()),
        &format!("echo x > {outside_path}"),
        &format!("mv {outside_path} ."),
        &format!("rm -f {outside_path}"),
        &format!("truncate -s 0 {outside_path}"),
        &format!("chmod 777 {outside_path}"),
        &format!("chown $(id -u) {outside_path}"),
        &format!("touch -c {outside_path}"),
        &format!("ln {outside_path} link4"),
    ] {
        sandbox.fails(command, &denied).await;
    }
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "original");
    assert_eq!(other.output("cat file").await, "secret\n");
}

#[tokio::test]
async fn nothing_else_of_the_machine_can_be_reached() {
    let local = landlock();
    let sandbox = local.create().await;
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let name = format!("acontextd-test-{port}");
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let server = std::process::id();
    let program = format!(
        "import ctypes, errno, os, resource, signal, socket as s
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try:
        action()
        print(name, 'succeeded')
    except (OSError, ValueError) as err:
        print(name, errno.errorcode.get(getattr(err, 'errno', None), err))
def call(*arguments):
    if libc.syscall(*arguments) == -1:
        raise OSError(ctypes.get_errno(), '')
attempt('loopback', lambda: s.create_connection(('127.0.0.1', {port}), 3))
attempt('datagram', lambda: s.socket(s.AF_INET, s.SOCK_DGRAM))
attempt('unix', lambda: s.socket(s.AF_UNIX).connect('\\0{name}'))
attempt('netlink', lambda: s.socket(s.AF_NETLINK, s.SOCK_RAW, 0))
attempt('pair', lambda: s.socketpair())
attempt('datagram pair', lambda: s.socketpair(s.AF_UNIX, s.SOCK_DGRAM))
attempt('signal', lambda: os.kill({server}, 0))
attempt('own parent', lambda: os.kill(os.getppid(), 0))
attempt('limits', lambda: resource.prlimit({server}, resource.RLIMIT_NOFILE, (1, 1)))
attempt('own limits', lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, {server}, 19))
attempt('priority of user', lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt('affinity', lambda: os.sched_setaffinity({server}, [0]))
attempt('scheduler', lambda: os.sched_setscheduler({server}, os.SCHED_BATCH, os.sched_param(0)))
attempt('memory', lambda: open('/proc/{server}/mem'))
attempt('trace', lambda: call(101, 16, {server}, 0, 0))
attempt('unshare', lambda: call(272, 0x10000000))
attempt('mount', lambda: call(165, b'none', b'/tmp', b'tmpfs', 0, 0))
attempt('watch', lambda: call(254, 0, b'/root', 0xfff))"
    );
    let output = sandbox.output(&format!("python3 - <<'END'\n{program}\nEND")).await;
    let expected = "loopback ENOSYS\ndatagram ENOSYS\nunix ENOSYS\nnetlink ENOSYS\npair succeeded\ndatagram pair ENOSYS\nsignal EPERM\n\
                    own parent succeeded\nlimits ENOSYS\nown limits succeeded\npriority ENOSYS\n\
                    priority of user ENOSYS\naffinity ENOSYS\nscheduler ENOSYS\nmemory EACCES\ntrace ENOSYS\n\
                    unshare ENOSYS\nmount ENOSYS\nwatch ENOSYS\n";
    assert_eq!(output, expected);
}

#[tokio::test]
async fn the_network_can_be_allowed() {
    let local = landlock_with(|settings| settings.allows_network = true);
    let sandbox = local.create().await;
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    sandbox.output(&format!("echo > /dev/tcp/127.0.0.1/{port}")).await;
    sandbox.fails("python3 -c 'import socket; socket.socket(socket.AF_UNIX)'", &["Function not implemented"]).await;
}

#[tokio::test]
async fn processes_end_with_their_command() {
    let local = landlock();
    let sandbox = local.create().await;
    // Its name contains the id of the sandbox, so that it can be found.
    let detach =
        |name: &str| format!("cp /usr/bin/sleep {name}; (setsid nohup ./{name} 1000 > /dev/null 2>&1 &); sleep 0.05");
    sandbox.output(&detach("detached")).await;
    let path = local.dir_of(&sandbox).join("workspace");
    assert_eq!(count_processes(&path.join("detached")), 0);
    let sandbox_with_timeout = landlock_with(|settings| settings.command_timeout = Duration::from_secs(1));
    let sandbox = sandbox_with_timeout.create().await;
    let output = sandbox.run(&format!("{}; touch started; sleep 1000", detach("slow"))).await;
    assert_eq!((output.exit_code, output.end), (124, CommandEnd::TimedOut));
    let path = sandbox_with_timeout.dir_of(&sandbox).join("workspace");
    assert!(path.join("started").exists());
    wait_until("no process is left", async || count_processes(&path.join("slow")) == 0).await;
}

/// Each process creates another one and ends, so that none lives long enough to be found easily.
#[tokio::test]
async fn chains_of_processes_end_with_their_sandbox() {
    let local = landlock();
    let sandbox = local.create().await;
    let program = "import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        open('started', 'w')
        while True:
            if os.fork() != 0: os._exit(0)
while True: signal.pause()";
    let command = format!("cp $(readlink -f /usr/bin/python3) chain; ./chain - <<'END'\n{program}\nEND");
    let workspace = local.dir_of(&sandbox).join("workspace");
    let id = sandbox.id.clone();
    let (output, ()) = tokio::join!(sandbox.run(&command), async {
        wait_until("the chains have started", async || workspace.join("started").exists()).await;
        local.provider.end(&id).await.unwrap();
    });
    assert_eq!(output.end, CommandEnd::Killed);
    // The file is deleted, and the kernel says so.
    let deleted = format!("{} (deleted)", workspace.join("chain").display());
    wait_until("no process is left", async || count_processes(deleted.as_ref()) == 0).await;
}

#[tokio::test]
async fn processes_that_have_ended_do_not_count() {
    let local = landlock_with(|settings| settings.max_processes = 40);
    let sandbox = local.create().await;
    assert_eq!(sandbox.output("for i in $(seq 200); do (true &); done; echo done").await, "done\n");
}

/// Returns the number of processes that execute a file.
fn count_processes(executable: &std::path::Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("exe")).ok())
        .filter(|exe| exe == executable)
        .count()
}

#[tokio::test]
async fn the_limits_hold() {
    let local = landlock_with(|settings| {
        settings.max_memory_bytes = 100 << 20;
        settings.max_processes = 40;
        settings.max_disk_bytes = 64 << 20;
        settings.command_timeout = Duration::from_secs(20);
    });
    let sandbox = local.create().await;
    sandbox.fails("python3 -c 'x = bytearray(200 << 20)'", &["MemoryError"]).await;
    sandbox.fails("for i in $(seq 100); do sleep 100 & done; exit 1", &["Resource temporarily unavailable"]).await;
    sandbox.fails("head -c 100M /dev/zero > file", &["File too large"]).await;
    sandbox.output("rm file").await;
    let fill = "for i in 1 2 3; do head -c 30M /dev/zero > file$i; done; sleep 100";
    assert_eq!(sandbox.run(fill).await.end, CommandEnd::OutOfDisk);
    sandbox.output("rm file*").await;
    let output = sandbox.run("bomb() { bomb | bomb & }; bomb; sleep 0.5").await;
    assert_eq!(output.end, CommandEnd::Exited);
    assert_eq!(sandbox.output("echo alive").await, "alive\n");
}
