//! The filter of system calls for programs in a local sandbox: a list of those that are allowed. All others fail with `ENOSYS`, as
//! if the kernel did not have them, so that programs use what they use on older kernels.
//!
//! The list consists of what unprivileged programs need. It leaves out the system calls that
//! - change the machine, or that only privileged programs use (`mount`, `init_module`, `reboot`, `bpf`, `perf_event_open`, …);
//! - create namespaces or enter those of others (`unshare`, `setns`, `clone3`, whose flags a filter cannot read, and the flags of
//!   `clone`);
//! - inspect or change other processes (`ptrace`, `process_vm_readv`, `pidfd_getfd`, …);
//! - prevent that the program ends with the server, or that the server measures it (`prctl` with `PR_SET_PDEATHSIG` and
//!   `PR_SET_DUMPABLE`);
//! - have had many vulnerabilities in the kernel and are rarely used (`io_uring_setup`, `userfaultfd`, `keyctl`, …);
//! - allocate memory that belongs to no process, so that the limits of processes do not count it (`memfd_create`, `shmget`,
//!   `semget`, `msgget`, `io_setup`).
//!
//! Without namespaces, it also leaves out what Landlock does not restrict: see [`Separation::Landlock`].

use std::collections::BTreeMap;

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What separates a program from the machine in addition to the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separation {
    /// Namespaces of its own.
    Namespaces,
    /// Landlock. It restricts which files are opened and which processes get signals, but not connections, not the priorities and
    /// limits of other processes, and not the modes, owners, times and extended attributes of files.
    Landlock { has_own_user: bool, allows_network: bool },
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Returns the numbers of system calls that exist on all architectures.
macro_rules! numbers {
    ($($name:ident)*) => { [$(libc::$name),*] };
}

/// System calls that are allowed with all arguments.
const ALLOWED: &[i64] = &numbers! {
    // Files.
    SYS_read SYS_write SYS_close SYS_fstat SYS_lseek SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_preadv SYS_pwritev SYS_preadv2
    SYS_pwritev2 SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_copy_file_range SYS_fcntl SYS_flock SYS_fsync SYS_fdatasync SYS_sync
    SYS_syncfs SYS_sync_file_range SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_dup SYS_dup3 SYS_pipe2
    SYS_openat SYS_openat2 SYS_close_range SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat SYS_symlinkat
    SYS_readlinkat SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_newfstatat SYS_statx SYS_faccessat SYS_faccessat2
    SYS_utimensat SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask SYS_statfs SYS_fstatfs SYS_setxattr SYS_lsetxattr
    SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr
    SYS_lremovexattr SYS_fremovexattr SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    // Waiting.
    SYS_pselect6 SYS_ppoll SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_signalfd4
    SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
    // Memory.
    SYS_mmap SYS_mprotect SYS_munmap SYS_brk SYS_mremap SYS_msync SYS_mincore SYS_madvise SYS_mlock SYS_mlock2 SYS_munlock
    SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    // Sockets. `socket` and `socketpair` have conditions.
    SYS_connect SYS_accept SYS_accept4 SYS_bind SYS_listen SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg
    SYS_shutdown SYS_getsockname SYS_getpeername SYS_setsockopt SYS_getsockopt
    // Processes and threads. `clone` has conditions.
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid SYS_setpgid SYS_getpgid
    SYS_setsid SYS_getsid SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list SYS_futex SYS_rseq SYS_prlimit64
    SYS_getrlimit SYS_setrlimit SYS_getrusage SYS_times SYS_getpriority SYS_setpriority SYS_sched_yield SYS_sched_setparam
    SYS_sched_getparam SYS_sched_setscheduler SYS_sched_getscheduler SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_getaffinity SYS_sched_setattr SYS_sched_getattr SYS_ioprio_get
    SYS_ioprio_set SYS_getcpu SYS_pidfd_open SYS_pidfd_send_signal SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_add_rule
    SYS_landlock_restrict_self
    // Users. Without privileges, a process can only switch between its own ids.
    SYS_getuid SYS_getgid SYS_geteuid SYS_getegid SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_getgroups SYS_setgroups
    SYS_setresuid SYS_getresuid SYS_setresgid SYS_getresgid SYS_setfsuid SYS_setfsgid SYS_capget SYS_capset
    // Signals.
    SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigtimedwait
    SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack SYS_restart_syscall
    // Time.
    SYS_nanosleep SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_gettimeofday SYS_getitimer SYS_setitimer SYS_timer_create
    SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
    // Information about the system.
    SYS_uname SYS_sysinfo SYS_getrandom
};

/// System calls that newer ones have replaced, and those that only this architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_ON_ARCHITECTURE: &[i64] = &numbers! {
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_mkdir SYS_rmdir SYS_mknod SYS_link SYS_unlink SYS_rename SYS_symlink
    SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_dup2 SYS_pipe SYS_select SYS_poll
    SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_inotify_init SYS_fork SYS_vfork SYS_pause SYS_alarm SYS_getpgrp
    SYS_time SYS_arch_prctl
};
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_ON_ARCHITECTURE: &[i64] = &[];

/// System calls that observe all files that exist. Landlock does not restrict them.
const OBSERVING: &[i64] = &numbers! { SYS_inotify_add_watch };

/// System calls that change a file by its path. A program with the server's user could change files of the server with them.
const CHANGING_BY_PATH: &[i64] = &numbers! {
    SYS_fchmodat SYS_fchownat SYS_setxattr SYS_lsetxattr SYS_removexattr SYS_lremovexattr SYS_getxattr SYS_lgetxattr SYS_listxattr
    SYS_llistxattr
};
#[cfg(target_arch = "x86_64")]
const CHANGING_BY_PATH_ON_ARCHITECTURE: &[i64] =
    &numbers! { SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat };
#[cfg(not(target_arch = "x86_64"))]
const CHANGING_BY_PATH_ON_ARCHITECTURE: &[i64] = &[];

/// System calls that change a process, with the arguments that select the calling one.
const CHANGING_PROCESSES: &[(i64, &[(u8, u64)])] = &[
    (libc::SYS_prlimit64, &[(0, 0)]),
    (libc::SYS_sched_setaffinity, &[(0, 0)]),
    (libc::SYS_sched_setattr, &[(0, 0)]),
    (libc::SYS_sched_setparam, &[(0, 0)]),
    (libc::SYS_sched_setscheduler, &[(0, 0)]),
    // `PRIO_PROCESS` and `IOPRIO_WHO_PROCESS`: others select all processes of the user.
    (libc::SYS_setpriority, &[(0, 0), (1, 0)]),
    (libc::SYS_ioprio_set, &[(0, 1), (1, 0)]),
];

// The following constants are those of `linux/sched.h`, `linux/socket.h`, `asm-generic/ioctls.h` and `linux/personality.h`.

/// The flags of `clone` that create namespaces.
const NAMESPACE_FLAGS: u64 =
    0x0000_0080 | 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;
/// The operations that write characters into the input of a terminal (`TIOCSTI`), and that do so through its selection (`TIOCLINUX`).
const TERMINAL_INPUT_OPERATIONS: [u64; 2] = [0x5412, 0x541C];
/// The part of a socket's type that is not a flag.
const SOCKET_TYPE_MASK: u64 = 0xF;
/// The personalities that programs use: the default one, and the one without address space randomization.
const PERSONALITIES: [u64; 3] = [0, 0x0004_0000, 0xFFFF_FFFF];

/// Returns the filter as the program that the kernel executes for each system call.
///
/// # Errors
/// Returns an error if the architecture is not supported.
pub fn filter_bytes(separation: Separation) -> anyhow::Result<Vec<u8>> {
    let encode = |instruction: &seccompiler::sock_filter| {
        let [code_low, code_high] = instruction.code.to_ne_bytes();
        let [k0, k1, k2, k3] = instruction.k.to_ne_bytes();
        [code_low, code_high, instruction.jt, instruction.jf, k0, k1, k2, k3]
    };
    Ok(filter(separation)?.iter().flat_map(encode).collect())
}

/// Installs the filter for this process and all that it creates.
pub(super) fn install(separation: Separation) -> anyhow::Result<()> {
    seccompiler::apply_filter(&filter(separation)?).context("cannot install the filter of system calls")
}

fn filter(separation: Separation) -> anyhow::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)
        .with_context(|| format!("sandboxes do not support the architecture {}", std::env::consts::ARCH))?;
    let not_implemented = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let filter = SeccompFilter::new(rules(separation)?, not_implemented, SeccompAction::Allow, architecture)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// Returns the conditions under which each system call is allowed. A system call without conditions is always allowed.
fn rules(separation: Separation) -> anyhow::Result<Rules> {
    let mut rules: Rules = ALLOWED.iter().chain(ALLOWED_ON_ARCHITECTURE).map(|number| (*number, Vec::new())).collect();
    let [insert_input, select_input] = TERMINAL_INPUT_OPERATIONS;
    let (input, selection) = (differs(1, insert_input)?, differs(1, select_input)?);
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![input, selection])?]);
    let (death_signal, dumpable) = (constant(libc::PR_SET_PDEATHSIG), constant(libc::PR_SET_DUMPABLE));
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![differs(0, death_signal)?, differs(0, dumpable)?])?]);
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(NAMESPACE_FLAGS), 0)?]);
    let unix = || condition(0, SeccompCmpOp::Eq, constant(libc::AF_UNIX));
    let personalities = PERSONALITIES.map(|personality| rule(0, SeccompCmpOp::Eq, personality));
    rules.insert(libc::SYS_personality, personalities.into_iter().collect::<anyhow::Result<_>>()?);
    match separation {
        Separation::Namespaces => {
            let unix = SeccompRule::new(vec![unix()?])?;
            rules.insert(libc::SYS_socketpair, vec![unix.clone()]);
            rules.insert(libc::SYS_socket, [vec![unix], internet_socket_rules()?].concat());
        }
        Separation::Landlock { has_own_user, allows_network } => {
            restrict_to_landlock(&mut rules, has_own_user)?;
            // A datagram of a pair could be sent to any socket with a path.
            let kinds = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].map(|kind| {
                let kind = condition(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), constant(kind))?;
                anyhow::Ok(SeccompRule::new(vec![unix()?, kind])?)
            });
            rules.insert(libc::SYS_socketpair, kinds.into_iter().collect::<anyhow::Result<_>>()?);
            if allows_network {
                rules.insert(libc::SYS_socket, internet_socket_rules()?);
            }
        }
    }
    Ok(rules)
}

/// Removes what Landlock does not restrict.
fn restrict_to_landlock(rules: &mut Rules, has_own_user: bool) -> anyhow::Result<()> {
    for number in OBSERVING {
        rules.remove(number);
    }
    for (number, arguments) in CHANGING_PROCESSES {
        let conditions = arguments.iter().map(|(argument, value)| condition(*argument, SeccompCmpOp::Eq, *value));
        rules.insert(*number, vec![SeccompRule::new(conditions.collect::<anyhow::Result<_>>()?)?]);
    }
    if !has_own_user {
        for number in CHANGING_BY_PATH.iter().chain(CHANGING_BY_PATH_ON_ARCHITECTURE) {
            rules.remove(number);
        }
        // Without a path, it changes a file that is open.
        let no_path = SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
        rules.insert(libc::SYS_utimensat, vec![SeccompRule::new(vec![no_path])?]);
    }
    Ok(())
}

/// Allows TCP, UDP, and the netlink protocol with which programs list network interfaces. Other families, such as `AF_VSOCK`, may
/// not be separated by network namespaces.
fn internet_socket_rules() -> anyhow::Result<Vec<SeccompRule>> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let family = condition(0, SeccompCmpOp::Eq, constant(family))?;
            let kind = condition(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), constant(kind))?;
            rules.push(SeccompRule::new(vec![family, kind])?);
        }
    }
    let family = condition(0, SeccompCmpOp::Eq, constant(libc::AF_NETLINK))?;
    let protocol = condition(2, SeccompCmpOp::Eq, constant(libc::NETLINK_ROUTE))?;
    rules.push(SeccompRule::new(vec![family, protocol])?);
    Ok(rules)
}

fn constant(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

fn differs(argument: u8, value: u64) -> anyhow::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Ne, value)
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompRule> {
    Ok(SeccompRule::new(vec![condition(argument, operator, value)?])?)
}

/// Compares the lower 32 bits of an argument, because the kernel ignores the others.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompCondition> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?)
}
