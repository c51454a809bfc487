//! Attempts of a command to reach what its sandbox does not give it, each with what must happen instead.

use std::io::Read;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use super::{Local, Sandbox};

/// An attempt that must fail. Its output, with the standard error, must contain the text.
struct Attempt {
    command: &'static str,
    output: &'static str,
}

const fn attempt(command: &'static str, output: &'static str) -> Attempt {
    Attempt { command, output }
}

const READ_SHADOW: &str = "cat /etc/shadow";
const MOUNT: &str = "unshare --user --map-root-user --mount mount -t tmpfs none /tmp";

/// Attempts on the files of the machine.
const FILES: &[Attempt] = &[
    attempt(READ_SHADOW, "No such file"),
    attempt("cat /proc/1/root/etc/shadow", "No such file"),
    attempt("cat /etc/hostname", "No such file"),
    attempt("ls /root", "No such file"),
    attempt("ls /var/lib", "No such file"),
    attempt("ls /sys/kernel", "No such file"),
    attempt("ls /run/user /run/dbus /run/systemd", "No such file"),
    attempt("echo x > /usr/bin/true", "Read-only file system"),
    attempt("echo x >> /etc/passwd", "Read-only file system|Permission denied"),
    attempt("rm -f /etc/hosts && rm /etc/hosts", "Read-only file system"),
    attempt("touch /x", "Read-only file system"),
    attempt("echo 1 > /proc/sys/kernel/core_pattern", "Read-only file system|Permission denied"),
    attempt("echo b > /proc/sysrq-trigger", "No such file|Read-only file system|Permission denied"),
    attempt("echo -1000 > /proc/self/oom_score_adj", "Permission denied"),
    attempt("mknod disk b 254 0", "Operation not permitted"),
    attempt("mknod memory c 1 1", "Operation not permitted"),
    attempt("ls /dev/vda /dev/sda /dev/mem /dev/kmsg /dev/fuse", "No such file"),
    attempt("chroot /tmp true", "Operation not permitted|Function not implemented"),
    attempt("ln /usr/bin/python3 /workspace/link", "Invalid cross-device link|Operation not permitted"),
];

/// Attempts to get privileges.
const PRIVILEGES: &[Attempt] = &[
    attempt("cp /bin/bash shell && chmod u+s shell && ./shell -p -c 'id -u' | grep -x 0", ""),
    attempt("su -c id || false", ""),
    attempt("python3 -c 'import os; os.setuid(0)'", "Operation not permitted|Invalid argument"),
    attempt("python3 -c 'import os; os.setgroups([0])'", "Operation not permitted"),
    attempt("grep '^Cap' /proc/self/status | grep -v 0000000000000000", ""),
    attempt(
        "grep -x 'NoNewPrivs:\t1' /proc/self/status && grep -x 'Seccomp:\t2' /proc/self/status && false",
        "Seccomp",
    ),
    attempt(MOUNT, "Function not implemented|Operation not permitted"),
    attempt("unshare --user true", "Function not implemented|Operation not permitted"),
    attempt("unshare --net true", "Function not implemented|Operation not permitted"),
    attempt("umount /usr", "umount"),
    attempt("nsenter --target 1 --mount true", "not permitted|not implemented|Permission denied|No such file"),
    attempt("ulimit -u unlimited", "cannot modify limit"),
    attempt("ulimit -v unlimited; ulimit -n 100000", "cannot modify limit"),
    attempt("kill -9 1; kill -0 1 && false", ""),
    attempt("renice -n -10 $$", "Permission denied"),
];

/// System calls with their numbers on `x86_64` and `aarch64`, and their arguments.
const SYSTEM_CALLS: &[(&str, [u32; 2], &str)] = &[
    ("ptrace", [101, 117], "16, 1, 0, 0"),
    ("process_vm_readv", [310, 270], "1, 0, 0, 0, 0, 0"),
    ("mount", [165, 40], "b'none', b'/tmp', b'tmpfs', 0, 0"),
    ("pivot_root", [155, 41], "b'/', b'/tmp'"),
    ("unshare", [272, 97], "0x10000000"),
    ("setns", [308, 268], "0, 0"),
    ("clone3", [435, 435], "0, 0"),
    ("keyctl", [250, 219], "0, -3, 0, 0, 0"),
    ("add_key", [248, 217], "b'user', b'k', b'v', 1, -3"),
    ("request_key", [249, 218], "b'user', b'k', 0, -3"),
    ("bpf", [321, 280], "0, 0, 0"),
    ("io_uring_setup", [425, 425], "1, 0"),
    ("userfaultfd", [323, 282], "0"),
    ("perf_event_open", [298, 241], "0, 0, -1, -1, 0"),
    ("init_module", [175, 105], "0, 0, b''"),
    ("finit_module", [313, 273], "0, b'', 0"),
    ("delete_module", [176, 106], "b'x', 0"),
    ("kexec_load", [246, 104], "0, 0, 0, 0"),
    ("reboot", [169, 142], "0, 0, 0, 0"),
    ("swapon", [167, 224], "b'/tmp/x', 0"),
    ("open_by_handle_at", [304, 265], "0, 0, 0"),
    ("name_to_handle_at", [303, 264], "-100, b'/', 0, 0, 0"),
    ("memfd_create", [319, 279], "b'x', 0"),
    ("shmget", [29, 194], "0, 4096, 0o1600"),
    // Without this signal, a program would not end with the server.
    ("prctl", [157, 167], "1, 0, 0, 0, 0"),
    ("semget", [64, 190], "0, 1, 0o1600"),
    ("msgget", [68, 186], "0, 0o1600"),
    ("quotactl", [179, 60], "0, 0, 0, 0"),
    ("settimeofday", [164, 170], "0, 0"),
    ("clock_settime", [227, 112], "0, 0"),
    ("sethostname", [170, 161], "b'x', 1"),
    ("syslog", [103, 116], "3, 0, 0"),
    ("fanotify_init", [300, 262], "0, 0"),
    ("pidfd_getfd", [438, 438], "0, 0, 0"),
    ("fsopen", [430, 430], "b'tmpfs', 0"),
    ("move_mount", [429, 429], "0, b'', 0, b'', 0"),
];

impl Sandbox<'_> {
    /// Checks that each attempt fails with its output.
    async fn check(&self, attempts: &[Attempt]) {
        for Attempt { command, output } in attempts {
            let result = self.run(command).await;
            let text = result.stdout.text + &result.stderr.text;
            assert_ne!(result.exit_code, 0, "{command}: {text}");
            assert!(output.split('|').any(|expected| text.contains(expected)), "{command}: {text}");
        }
    }

    /// Runs a Python program, and returns its output.
    async fn python(&self, program: &str) -> String {
        self.output(&format!("python3 - <<'END'\n{program}\nEND")).await
    }
}

#[tokio::test]
async fn the_files_of_the_machine_are_out_of_reach() {
    let local = Local::new();
    local.create().await.check(FILES).await;
}

#[tokio::test]
async fn the_data_of_the_server_is_out_of_reach() {
    let local = Local::new();
    let (sandbox, other) = (local.create().await, local.create().await);
    other.output("echo secret > file").await;
    let secret = local.dir_of(&other).join("workspace/file");
    let commands = [
        format!("cat {}", secret.display()),
        format!("cat /proc/1/cwd{}", secret.display()),
        format!("ln -s {} link; cat link", secret.display()),
        format!("cat /workspace/../../../../../..{}", secret.display()),
        format!("ls {}", local.settings.dir.display()),
    ];
    for command in commands {
        let output = sandbox.run(&command).await;
        assert_ne!(output.exit_code, 0, "{command}: {}", output.stdout.text);
    }
    // The environment of the first process is that of bubblewrap, which must not contain anything of the server.
    let environment = sandbox.output("tr '\\0' '\\n' < /proc/1/environ | cut -d= -f1 | grep -vx PWD | sort").await;
    assert_eq!(environment, "HOME\nLANG\nLOGNAME\nPATH\nSHELL\nTERM\nUSER\n");
    let processes: u32 = sandbox.output("ls /proc | grep -c '^[0-9]*$'").await.trim().parse().unwrap();
    assert!(processes < 8, "{processes}");
}

#[tokio::test]
async fn files_that_the_server_has_open_are_closed() {
    let local = Local::new();
    let sandbox = local.create().await;
    // Without the flag that closes it when a program is executed, as a file that the server has inherited.
    let leaked = rustix::fs::memfd_create("leaked", rustix::fs::MemfdFlags::empty()).unwrap();
    let open = sandbox.output("readlink /proc/$$/fd/* || true").await;
    assert!(!open.contains("leaked"), "{open}");
    drop(leaked);
}

#[tokio::test]
async fn privileges_cannot_be_gained() {
    let local = Local::new();
    local.create().await.check(PRIVILEGES).await;
}

#[tokio::test]
async fn dangerous_system_calls_do_not_exist() {
    let local = Local::new();
    let sandbox = local.create().await;
    let column = usize::from(cfg!(target_arch = "aarch64"));
    let calls = SYSTEM_CALLS
        .iter()
        .map(|(name, numbers, arguments)| format!("('{name}', {}, ({arguments},)),", numbers[column]));
    let program = format!(
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nfor name, number, arguments in [{}]:\n    \
         result = libc.syscall(number, *arguments)\n    print(name, result, errno.errorcode.get(ctypes.get_errno()))",
        calls.collect::<String>()
    );
    let results = sandbox.python(&program).await;
    let expected: Vec<_> = SYSTEM_CALLS.iter().map(|(name, ..)| format!("{name} -1 ENOSYS")).collect();
    assert_eq!(results.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn sockets_reach_nothing() {
    let local = Local::new();
    let sandbox = local.create().await;
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let name = format!("acontextd-test-{port}");
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let path = local.settings.dir.join("socket");
    sandbox.output("true").await;
    let _unix = UnixListener::bind(&path).unwrap();
    let program = format!(
        "import socket as s
def attempt(name, action):
    try:
        action()
        print(name, 'succeeded')
    except OSError as err:
        print(name, type(err).__name__ if err.errno != 38 else 'not implemented')
attempt('loopback', lambda: s.create_connection(('127.0.0.1', {port}), 3))
attempt('elsewhere', lambda: s.create_connection(('192.0.2.1', 80), 3))
attempt('datagram', lambda: s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53)))
attempt('abstract', lambda: s.socket(s.AF_UNIX).connect('\\0{name}'))
attempt('path', lambda: s.socket(s.AF_UNIX).connect('{}'))
attempt('raw', lambda: s.socket(s.AF_INET, s.SOCK_RAW, 1))
attempt('packet', lambda: s.socket(s.AF_PACKET, s.SOCK_RAW))
attempt('vsock', lambda: s.socket(s.AF_VSOCK))
attempt('crypto', lambda: s.socket(s.AF_ALG))
attempt('audit', lambda: s.socket(s.AF_NETLINK, s.SOCK_RAW, 9))
listener = s.create_server(('127.0.0.1', 0))
attempt('own', lambda: s.create_connection(listener.getsockname(), 3))",
        path.display()
    );
    assert_eq!(
        sandbox.python(&program).await,
        "loopback ConnectionRefusedError\nelsewhere OSError\ndatagram OSError\nabstract ConnectionRefusedError\n\
         path FileNotFoundError\nraw not implemented\npacket not implemented\nvsock not implemented\n\
         crypto not implemented\naudit not implemented\nown succeeded\n"
    );
}

#[tokio::test]
async fn nothing_can_be_typed_into_a_terminal() {
    let local = Local::new();
    let program = "import fcntl, os, pty, termios
try:
    fcntl.ioctl(pty.openpty()[1], termios.TIOCSTI, b'x')
    print('typed')
except OSError as err:
    print(os.strerror(err.errno))
print(os.path.exists('/dev/tty') and os.access('/dev/tty', os.R_OK) and 'tty' in os.ttyname(0) if os.isatty(0) else 'no terminal')";
    assert_eq!(local.create().await.python(program).await, "Function not implemented\nno terminal\n");
}

#[tokio::test]
async fn processes_of_the_machine_cannot_be_signaled() {
    let local = Local::new();
    let sandbox = local.create().await;
    let server = std::process::id();
    for command in [format!("kill -0 {server}"), format!("cat /proc/{server}/status")] {
        let output = sandbox.run(&command).await;
        assert_ne!(output.exit_code, 0, "{command}: {}", output.stdout.text);
    }
}

/// The attempts succeed without the sandbox, so it is the sandbox that prevents them.
#[tokio::test]
async fn the_attempts_succeed_without_their_guard() {
    let succeeds = |command: &str| {
        let output = Command::new("bash").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    if rustix::process::geteuid().is_root() {
        succeeds(READ_SHADOW);
    }
    succeeds(MOUNT);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let connect = format!("echo sent > /dev/tcp/127.0.0.1/{port}");
    let isolated = Local::new();
    assert_ne!(isolated.create().await.run(&connect).await.exit_code, 0);
    let connected = Local::with(|settings| settings.allows_network = true);
    connected.create().await.output(&connect).await;
    let mut received = String::new();
    tcp.accept().unwrap().0.read_to_string(&mut received).unwrap();
    assert_eq!(received, "sent\n");
}
