//! The limits of a command in a local sandbox.

use std::time::Duration;

use acontextd::sandboxes::provider::{CommandEnd, ProviderError, SandboxProvider};

use super::{KEEPALIVE, Local};
use crate::support::wait_until;

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let local = Local::with(|settings| settings.command_timeout = Duration::from_secs(1));
    let sandbox = local.create().await;
    let output = sandbox.run("echo begun; (setsid sleep 1000 &); sleep 1000").await;
    assert_eq!((output.exit_code, output.end), (124, CommandEnd::TimedOut));
    assert_eq!(output.stdout.text, "begun\n");
    assert!(output.stderr.text.contains("longer than 1 s"), "{}", output.stderr.text);
}

#[tokio::test]
async fn long_output_is_cut_in_the_middle() {
    let local = Local::with(|settings| settings.max_output_bytes = 100);
    let sandbox = local.create().await;
    let output = sandbox.run("seq -w 1 1000; seq -w 1 1000 >&2").await;
    for stream in [&output.stdout, &output.stderr] {
        assert!(stream.text.starts_with("0001\n0002\n") && stream.text.ends_with("\n0999\n1000\n"), "{}", stream.text);
        assert!(stream.text.contains("4900 bytes omitted"), "{}", stream.text);
        assert_eq!((stream.total_bytes, stream.omitted_bytes), (5000, 4900));
    }
}

#[tokio::test]
async fn endless_output_ends_with_the_timeout() {
    let local = Local::with(|settings| settings.command_timeout = Duration::from_secs(1));
    let sandbox = local.create().await;
    let output = sandbox.run("yes").await;
    assert_eq!(output.end, CommandEnd::TimedOut);
    assert!(output.stdout.omitted_bytes > 0 && output.stdout.text.len() < 1_100_000);
}

#[tokio::test]
async fn a_fork_bomb_stays_within_the_limit_of_processes() {
    let local = Local::with(|settings| {
        settings.command_timeout = Duration::from_secs(2);
        settings.max_processes = 20;
    });
    let sandbox = local.create().await;
    let output = sandbox.run("for i in $(seq 100); do sleep 100 & done; jobs -r | wc -l").await;
    assert!(output.stderr.text.contains("Resource temporarily unavailable"), "{}", output.stderr.text);
    sandbox.run("bomb() { bomb | bomb & }; bomb; sleep 100").await;
    assert_eq!(sandbox.output("echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_process_cannot_allocate_more_than_the_limit() {
    let local = Local::with(|settings| settings.max_memory_bytes = 100 << 20);
    let sandbox = local.create().await;
    let output = sandbox.run("python3 -c 'x = bytearray(200 << 20)'").await;
    assert!(output.stderr.text.contains("MemoryError"), "{}", output.stderr.text);
    sandbox.output("python3 -c 'x = bytearray(20 << 20)'").await;
}

#[tokio::test]
async fn processes_together_cannot_use_more_memory_than_the_limit() {
    let local = Local::with(|settings| settings.max_memory_bytes = 100 << 20);
    let sandbox = local.create().await;
    let hold = "python3 -c 'x = bytearray(b\"1\") * (60 << 20); import time; time.sleep(100)'";
    let output = sandbox.run(&format!("{hold} & {hold} & wait")).await;
    assert_eq!((output.exit_code, output.end), (137, CommandEnd::OutOfMemory));
    assert!(output.stderr.text.contains("more than 100 MiB of memory"), "{}", output.stderr.text);
    // Mapped memory that is shared does not count for the limit of a process.
    let share = "python3 -c 'import mmap, time; x = mmap.mmap(-1, 200 << 20); [x.write(b\"1\" * (1 << 20)) for _ in range(200)]; time.sleep(100)'";
    assert_eq!(sandbox.run(share).await.end, CommandEnd::OutOfMemory);
}

#[tokio::test]
async fn files_outside_of_the_writable_directories_cannot_be_created() {
    let local = Local::new();
    let sandbox = local.create().await;
    for dir in ["/", "/etc", "/usr", "/dev", "/proc", "/var", "/home", "/run"] {
        let output = sandbox.run(&format!("mkdir -p {dir}/new && echo created")).await;
        assert_ne!(output.exit_code, 0, "{dir}");
    }
}

#[tokio::test]
async fn a_disk_filler_is_killed_and_can_be_cleaned_up() {
    let local = Local::with(|settings| settings.max_disk_bytes = 128 << 20);
    let sandbox = local.create().await;
    // No file may be larger than the limit.
    let output = sandbox.run("head -c 200M /dev/zero > big").await;
    assert!(output.stderr.text.contains("File too large"), "{}", output.stderr.text);
    let fill = "for i in $(seq 20); do head -c 10M /dev/zero > file$i; done; sleep 100";
    sandbox.output("rm big; sleep 3").await;
    let output = sandbox.run(fill).await;
    assert_eq!((output.exit_code, output.end), (137, CommandEnd::OutOfDisk));
    assert!(output.stderr.text.contains("more than 128 MiB"), "{}", output.stderr.text);
    sandbox.output("sleep 3; rm -f big file*").await;
    sandbox.output("head -c 10M /dev/zero > file; sleep 3").await;
}

#[tokio::test]
async fn open_files_without_a_name_count() {
    let local = Local::with(|settings| settings.max_disk_bytes = 128 << 20);
    let sandbox = local.create().await;
    let program = "import os, time\nfiles = [open(str(i), 'w+b') for i in range(4)]\nfor i in range(4): os.unlink(str(i))\n\
                   for file in files: os.posix_fallocate(file.fileno(), 0, 50 << 20)\ntime.sleep(100)";
    let output = sandbox.run(&format!("python3 - <<'END'\n{program}\nEND")).await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
}

#[tokio::test]
async fn an_inode_filler_is_killed() {
    let local = Local::with(|settings| settings.max_files = 5000);
    let sandbox = local.create().await;
    let output = sandbox.run("mkdir d; cd d; for i in $(seq 8000); do : > $i; done; sleep 100").await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
    sandbox.output("rm -rf d; mkdir d").await;
    // A sandbox that uses far too much is ended, here one whose directories are nested too deeply to be counted.
    let program = "import os\nfor _ in range(10_000): os.mkdir('n'); os.chdir('n')\nos.system('sleep 100')";
    let output = sandbox.run(&format!("python3 - <<'END'\n{program}\nEND")).await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
    assert!(!local.dir_of(&sandbox).exists());
}

/// The measurement of a directory that grows all the time would never end.
#[tokio::test]
async fn a_fast_inode_filler_is_killed_in_time() {
    let local = Local::with(|settings| {
        settings.max_files = 5000;
        settings.command_timeout = Duration::from_secs(20);
    });
    let sandbox = local.create().await;
    let program = "import os, itertools\nfor i in itertools.count(): os.makedirs(f'{os.getpid()}/{i % 50}/{i}')";
    let fill = format!("for i in 1 2 3; do python3 - <<'END' &\n{program}\nEND\ndone; wait");
    let output = sandbox.run(&fill).await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
}

#[tokio::test]
async fn shared_memory_counts_for_the_disk() {
    let local = Local::with(|settings| settings.max_disk_bytes = 128 << 20);
    let sandbox = local.create().await;
    let output = sandbox.run("for i in 1 2 3; do head -c 60M /dev/zero > /dev/shm/file$i; done; sleep 100").await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
    assert_eq!(sandbox.output("ls /tmp").await, "file1\nfile2\nfile3\n");
    let output = sandbox.run("python3 -c 'import os; os.memfd_create(\"x\")'").await;
    assert!(output.stderr.text.contains("Function not implemented"), "{}", output.stderr.text);
}

#[tokio::test]
async fn commands_cannot_fill_the_disk_of_the_machine() {
    let free = rustix::fs::statvfs(std::env::temp_dir().as_path()).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
    let local = Local::with(|settings| settings.min_free_bytes = free + free / 2);
    let sandbox = local.create().await;
    // A command that needs no more space is not killed.
    sandbox.output("sleep 0.5").await;
    let output = sandbox.run("head -c 5M /dev/zero > file; sleep 100").await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
    assert!(output.stderr.text.contains("the disk of the server is nearly full"), "{}", output.stderr.text);
    sandbox.output("rm file; sleep 0.5").await;
    // No command runs if even the last part of the reserve is used.
    let local = Local::with(|settings| settings.min_free_bytes = u64::MAX);
    assert_eq!(local.create().await.run("sleep 100").await.end, CommandEnd::OutOfDisk);
}

#[tokio::test]
async fn a_command_that_writes_nothing_runs_over_the_limit() {
    let local = Local::with(|settings| settings.max_disk_bytes = 20 << 20);
    let sandbox = local.create().await;
    // The last block is written by the end of the file system's delay.
    sandbox.run("for i in 1 2 3; do head -c 8M /dev/zero > file$i; done").await;
    sandbox.output("sync; sleep 3").await;
}

#[tokio::test]
async fn files_in_directories_that_cannot_be_read_count() {
    let local = Local::with(|settings| settings.max_disk_bytes = 20 << 20);
    let sandbox = local.create().await;
    let output = sandbox
        .run("mkdir -p a/b; head -c 15M /dev/zero > a/b/file; chmod 0 a/b a; head -c 15M /dev/zero > file; sleep 100")
        .await;
    assert_eq!(output.end, CommandEnd::OutOfDisk);
}

/// The limit applies to all commands of a sandbox together. The one that needs most is killed.
#[tokio::test]
async fn concurrent_commands_share_the_limit_of_memory() {
    let local = Local::with(|settings| settings.max_memory_bytes = 100 << 20);
    let sandbox = local.create().await;
    let hold = |mib: u32| {
        format!(
            "python3 -c 'import os, time; x = bytearray(b\"1\") * ({mib} << 20)\nwhile not os.path.exists(\"stop\"): time.sleep(0.01)'"
        )
    };
    let (small, large) = (hold(30), hold(70));
    let (small, large) = tokio::join!(sandbox.run(&small), async {
        let large = sandbox.run(&large).await;
        sandbox.output("touch stop").await;
        large
    });
    assert_eq!((small.end, large.end), (CommandEnd::Exited, CommandEnd::OutOfMemory));
    assert_eq!(small.exit_code, 0, "{}", small.stderr.text);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_an_error() {
    let local = Local::with(|settings| settings.max_processes = 20);
    let sandbox = local.create().await;
    let program = "import subprocess, time\nwhile True:\n    try: subprocess.Popen(['sleep', '100'])\n    except BlockingIOError: break\n\
                   open('full', 'w'); time.sleep(100)";
    let fill = format!("python3 - <<'END'\n{program}\nEND");
    let id = sandbox.id.clone();
    tokio::join!(sandbox.run(&fill), async {
        let marker = local.dir_of(&sandbox).join("workspace/full");
        wait_until("the sandbox has too many processes", async || marker.exists()).await;
        let result = local.provider.run_command(&id, "true", KEEPALIVE).await;
        // If the server does not run as root, each command has a limit of its own.
        if rustix::process::geteuid().is_root() {
            let Err(ProviderError::Unavailable { msg, .. }) = result else { panic!("{result:?}") };
            assert!(msg.contains("could not start a program"), "{msg}");
        }
        local.provider.end(&id).await.unwrap();
    });
}

#[tokio::test]
async fn a_process_cannot_open_more_files_than_the_limit() {
    let local = Local::new();
    let sandbox = local.create().await;
    let output = sandbox.run("python3 -c 'x = [open(\"/dev/null\") for _ in range(300)]'").await;
    assert!(output.stderr.text.contains("Too many open files"), "{}", output.stderr.text);
}

/// Runs a Python program that must be killed for this reason.
async fn assert_killed(local: &Local, program: &str, end: CommandEnd) {
    let sandbox = local.create().await;
    let output = sandbox.run(&format!("python3 - <<'END'\n{program}\nEND")).await;
    assert_eq!(output.end, end, "{program}: {}{}", output.stdout.text, output.stderr.text);
}

/// Memory that processes share stays allocated when they give it up.
#[tokio::test]
async fn shared_memory_that_is_not_resident_counts() {
    let local = Local::with(|settings| settings.max_memory_bytes = 100 << 20);
    let program = "import mmap, time
maps = [mmap.mmap(-1, 20 << 20) for _ in range(8)]
for map in maps:
    map.write(b'x' * (20 << 20))
    map.madvise(mmap.MADV_DONTNEED)
time.sleep(100)";
    assert_killed(&local, program, CommandEnd::OutOfMemory).await;
}

/// The first thread of a process has ended, and another one uses the resources.
const WITHOUT_FIRST_THREAD: &str = "import ctypes, os, threading, time
def use():
    time.sleep(0.3)
    USE
    time.sleep(100)
threading.Thread(target=use).start()
ctypes.CDLL(None).syscall(EXIT, 0)";

fn without_first_thread(use_resources: &str) -> String {
    let exit = if cfg!(target_arch = "aarch64") { "93" } else { "60" };
    WITHOUT_FIRST_THREAD.replace("USE", use_resources).replace("EXIT", exit)
}

#[tokio::test]
async fn a_process_without_its_first_thread_counts() {
    let local = Local::with(|settings| {
        settings.max_memory_bytes = 100 << 20;
        settings.max_disk_bytes = 100 << 20;
    });
    let pair = "[os.fork() for _ in range(1)]; x = bytearray(b'1') * (80 << 20)";
    assert_killed(&local, &without_first_thread(pair), CommandEnd::OutOfMemory).await;
    let unlinked = "files = [open(str(i), 'w+b') for i in range(3)]; [(os.unlink(str(i)), os.posix_fallocate(file.fileno(), 0, \
                    50 << 20)) for i, file in enumerate(files)]";
    assert_killed(&local, &without_first_thread(unlinked), CommandEnd::OutOfDisk).await;
}

/// A server that does not run as root may not find out the sizes of these files.
#[tokio::test]
async fn files_that_are_only_mapped_count() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let local = Local::with(|settings| settings.max_disk_bytes = 100 << 20);
    let program = "import mmap, os, time
maps = []
for i in range(3):
    file = open(str(i), 'w+b')
    os.posix_fallocate(file.fileno(), 0, 50 << 20)
    maps.append(mmap.mmap(file.fileno(), 4096))
    maps[-1].write(b'x')
    os.unlink(str(i))
    file.close()
    for fd in range(3, 20):
        try: os.close(fd)
        except OSError: pass
time.sleep(100)";
    assert_killed(&local, program, CommandEnd::OutOfDisk).await;
}

#[tokio::test]
async fn a_process_cannot_hide_what_it_uses() {
    let local = Local::with(|settings| settings.command_timeout = Duration::from_secs(10));
    let sandbox = local.create().await;
    let program = "import ctypes; print(ctypes.CDLL(None).prctl(4, 0, 0, 0, 0))";
    assert_eq!(sandbox.output(&format!("python3 -c '{program}'")).await, "-1\n");
    // A program that may not be read. Root can inspect its process.
    let output = sandbox.run("cp /usr/bin/sleep .; chmod 111 sleep; ./sleep 2; echo ended").await;
    let expected = if rustix::process::geteuid().is_root() { CommandEnd::Exited } else { CommandEnd::Killed };
    assert_eq!(output.end, expected, "{}", output.stderr.text);
}
