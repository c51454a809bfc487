//! What a command finds in a local sandbox, and what remains of it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use acontextd::ids::SandboxId;
use acontextd::sandboxes::provider::{CommandEnd, ProviderError, SandboxProvider};

use super::{KEEPALIVE, Local};
use crate::support::wait_until;

#[tokio::test]
async fn a_command_returns_its_output_and_exit_code() {
    let local = Local::new();
    let sandbox = local.create().await;
    let output = sandbox.run("echo out; echo err >&2; exit 3").await;
    assert_eq!((output.stdout.text.as_str(), output.stderr.text.as_str()), ("out\n", "err\n"));
    assert_eq!((output.exit_code, output.end), (3, CommandEnd::Exited));
    assert_eq!(sandbox.run("no-such-program").await.exit_code, 127);
    assert_eq!(sandbox.run("kill -9 $$").await.exit_code, 137);
    let output = sandbox.run("kill -TERM $$").await;
    assert_eq!((output.exit_code, output.stderr.text.as_str()), (143, ""));
    assert_eq!(sandbox.run("echo 'unterminated").await.exit_code, 2);
    assert_eq!(sandbox.output("printf 'a\\nb'").await, "a\nb");
}

#[tokio::test]
async fn a_command_starts_in_the_workspace_with_an_environment_of_its_own() {
    let local = Local::new();
    let sandbox = local.create().await;
    assert_eq!(
        sandbox.output("pwd; id -u; id -un; hostname; echo $HOME").await,
        "/workspace\n1000\nuser\nsandbox\n/home/user\n"
    );
    let environment = sandbox.output("env -u _ -u PWD -u SHLVL -u OLDPWD | cut -d= -f1 | sort").await;
    assert_eq!(environment, "HOME\nLANG\nLOGNAME\nPATH\nSHELL\nTERM\nUSER\n");
    // The input of a command is empty, and not the rest of the script.
    assert_eq!(sandbox.output("wc -c; echo next").await, "0\nnext\n");
}

#[tokio::test]
async fn files_remain_until_the_sandbox_ends() {
    let local = Local::new();
    let sandbox = local.create().await;
    sandbox
        .output("for dir in /workspace /skills /tmp $HOME; do echo $dir > $dir/file; done; umask; stat -c %a file")
        .await;
    let files = sandbox.output("cat /workspace/file /skills/file /tmp/file $HOME/file; stat -c %a file").await;
    assert_eq!(files, "/workspace\n/skills\n/tmp\n/home/user\n644\n");
    let dir = local.dir_of(&sandbox);
    assert!(dir.join("workspace/file").exists());
    local.provider.end(&sandbox.id).await.unwrap();
    assert!(!dir.exists());
    assert!(local.provider.run_command(&sandbox.id, "true", KEEPALIVE).await.is_err());
    // A repetition has no effect.
    local.provider.end(&sandbox.id).await.unwrap();
}

#[tokio::test]
async fn sandboxes_do_not_see_each_other() {
    let local = Local::new();
    let (one, other) = (local.create().await, local.create().await);
    one.output("echo secret > /workspace/file; echo secret > /tmp/file").await;
    assert_eq!(
        other.output("ls /workspace /skills /home/user; ls -A /tmp").await,
        "/home/user:\n\n/skills:\n\n/workspace:\n"
    );
    let found = other.run(&format!("ls {}", local.settings.dir.display())).await;
    assert_ne!(found.exit_code, 0, "{}", found.stdout.text);
}

#[tokio::test]
async fn a_long_command_runs() {
    let local = Local::new();
    let sandbox = local.create().await;
    let text = "0123456789abcdef".repeat(50_000);
    sandbox.output(&format!("cat > file <<'END'\n{text}\nEND")).await;
    assert_eq!(sandbox.output("wc -c < file").await, "800001\n");
}

#[tokio::test]
async fn a_sandbox_survives_a_restart() {
    let local = Local::new();
    let (kept, ended) = (local.create().await, local.create().await);
    kept.output("echo kept > file").await;
    // The deletion of the other one was interrupted, and so was the creation of a third one.
    let (dir, trash) = (local.dir_of(&ended), local.settings.dir.join(format!("ended-{}", ended.id)));
    fs::rename(dir, &trash).unwrap();
    let incomplete = local.settings.dir.join(SandboxId::new().to_string());
    fs::create_dir(&incomplete).unwrap();
    let restarted = local.restart();
    assert_eq!(restarted.host().await.unwrap(), local.provider.host().await.unwrap());
    let output = restarted.run_command(&kept.id, "cat file", KEEPALIVE).await.unwrap();
    assert_eq!(output.stdout.text, "kept\n");
    assert_eq!(restarted.sweep().await.unwrap().len(), 1);
    assert!(!trash.exists() && !incomplete.exists());
}

/// A backup that was restored without owners, for example. Commands must not run as the owner, and no process of the owner ends.
#[tokio::test]
async fn a_sandbox_whose_files_belong_to_another_user_is_ended() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let local = Local::new();
    let sandbox = local.create().await;
    let dir = local.dir_of(&sandbox);
    for owner in [0, 54_321] {
        let mut process = Command::new("/usr/bin/sleep").arg("100").uid(54_321).spawn().unwrap();
        for path in ["home", "workspace", "skills", "tmp"] {
            std::os::unix::fs::chown(dir.join(path), Some(owner), Some(owner)).unwrap();
        }
        let restarted = local.restart();
        let output = restarted.run_command(&sandbox.id, "true", KEEPALIVE).await;
        assert!(matches!(output, Err(ProviderError::Ended)), "{output:?}");
        assert!(process.try_wait().unwrap().is_none());
        process.kill().unwrap();
        process.wait().unwrap();
        // The next round finds it again.
        fs::rename(local.settings.dir.join(format!("ended-{}", sandbox.id)), &dir).unwrap();
    }
}

#[tokio::test]
async fn a_machine_that_cannot_isolate_programs_has_no_sandboxes() {
    let local = Local::with(|settings| settings.executable = "/usr/bin/false".into());
    let created = local.provider.create(SandboxId::new(), KEEPALIVE).await;
    let Err(ProviderError::Unavailable { msg, .. }) = created else { panic!("{created:?}") };
    let expected = "this machine cannot run sandboxes: bubblewrap does not work: the sandbox could not start a program: exit code 1; \
                    Landlock does not work: the sandbox could not start a program: exit code 1";
    assert_eq!(msg, expected);
    let status = local.provider.status().await;
    assert_eq!((status.problem.as_ref(), status.isolation), (Some(&msg), "none works, so no command runs"));
    let status = Local::new().provider.status().await;
    assert!(status.problem.is_none() && status.warning.is_none());
    assert!(status.limits["memory"].contains("kernel") && status.isolation.contains("bubblewrap"));
    let left = fs::read_dir(&local.settings.dir).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(left.filter(|name| name != "etc" && name != "host-id").count(), 0);
}

#[tokio::test]
async fn processes_end_with_their_command() {
    let local = Local::new();
    let sandbox = local.create().await;
    sandbox.output("(setsid nohup sleep 1000 > /dev/null 2>&1 &) ; sleep 0").await;
    assert_eq!(sandbox.output("ps -e -o comm= | grep -c sleep || true").await, "0\n");
    wait_until("no process of the sandbox is left", async || count_processes(&sandbox.id) == 0).await;
}

#[tokio::test]
async fn the_end_of_a_sandbox_ends_its_commands() {
    let local = Local::new();
    let sandbox = local.create().await;
    let id = sandbox.id.clone();
    let (output, ()) = tokio::join!(sandbox.run("touch started; sleep 1000"), async {
        let started = local.dir_of(&sandbox).join("workspace/started");
        wait_until("the command has started", async || started.exists()).await;
        local.provider.end(&id).await.unwrap();
    });
    assert_eq!((output.exit_code, output.end), (137, CommandEnd::Killed));
    assert!(output.stderr.text.contains("the sandbox was ended"), "{}", output.stderr.text);
    assert_eq!(count_processes(&id), 0);
}

/// Returns the number of processes whose command line names a sandbox.
fn count_processes(id: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let command_lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    command_lines.filter(|line| line.contains(id) && line.contains("bwrap")).count()
}
