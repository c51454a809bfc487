//! Files that are copied into and out of a local sandbox.

use acontextd::sandboxes::provider::{FileToWrite, ProviderError, SandboxProvider};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{Local, Sandbox};

pub(super) fn file(path: &str, content: impl Into<Bytes>, is_executable: bool) -> FileToWrite {
    let content = content.into();
    let size = content.len() as u64;
    let content = stream::once(async { Ok(content) }).boxed();
    FileToWrite { path: path.to_owned(), size, is_executable, content }
}

impl Sandbox<'_> {
    async fn write(&self, dir: &str, file: FileToWrite) -> Result<(), ProviderError> {
        self.local.provider.write_file(&self.id, dir, file).await
    }

    async fn read(&self, path: &str) -> Result<(Bytes, bool), ProviderError> {
        let file = self.local.provider.read_file(&self.id, path, 1 << 20).await?;
        Ok((file.content.bytes().await.unwrap(), file.is_executable))
    }

    /// Returns the names of all files in the sandbox, to find what a failed copy has left behind.
    async fn files(&self) -> String {
        self.output("find /workspace /skills /tmp ! -type d | sort").await
    }
}

#[tokio::test]
async fn a_file_is_copied_in_and_out_with_its_mode() {
    let local = Local::new();
    let sandbox = local.create().await;
    let bytes: Bytes = (0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
    for (name, content, is_executable) in [
        ("plain", bytes.clone(), false),
        ("run.sh", Bytes::from_static(b"#!/bin/sh\n"), true),
        ("empty", Bytes::new(), false),
    ] {
        sandbox.write("/workspace/new/dir", file(name, content.clone(), is_executable)).await.unwrap();
        assert_eq!(sandbox.read(&format!("/workspace/new/dir/{name}")).await.unwrap(), (content, is_executable));
    }
    assert_eq!(sandbox.output("stat -c '%a %U' new/dir/*").await, "644 user\n644 user\n755 user\n");
    assert_eq!(sandbox.output("find new -type f ! -newermt 2020-01-01").await, "");
    sandbox.write("/workspace/new/dir", file("plain", "replaced", false)).await.unwrap();
    assert_eq!(sandbox.read("new/dir/plain").await.unwrap().0, "replaced");
}

#[tokio::test]
async fn unusual_names_are_copied() {
    let local = Local::new();
    let sandbox = local.create().await;
    let long = "n".repeat(200);
    for name in ["two\nlines", "-rf", "a b", "$(touch x)", "'\"`;&|", "*", "Ω", ".hidden", &long] {
        sandbox.write("/tmp/-d d", file(name, name.to_owned(), false)).await.unwrap();
        assert_eq!(sandbox.read(&format!("/tmp/-d d/{name}")).await.unwrap().0, name.as_bytes(), "{name}");
    }
    assert_eq!(sandbox.output("ls -A /tmp/-d\\ d | wc -l; ls /workspace").await, "10\n");
}

#[tokio::test]
async fn programs_of_the_sandbox_do_not_replace_those_that_copy() {
    let local = Local::new();
    let sandbox = local.create().await;
    let fake = "mkdir -p ~/.local/bin; for name in stat cat tar mv mkdir mktemp rm; do printf '#!/bin/sh\\necho fake' > \
                ~/.local/bin/$name; /bin/chmod +x ~/.local/bin/$name; done";
    sandbox.output(fake).await;
    sandbox.write("/workspace", file("file", "content", false)).await.unwrap();
    assert_eq!(sandbox.read("file").await.unwrap().0, "content");
    assert_eq!(sandbox.output("echo command; stat").await, "command\nfake\n");
}

#[tokio::test]
async fn files_that_cannot_be_copied_are_rejected() {
    let local = Local::new();
    let sandbox = local.create().await;
    sandbox
        .output("mkdir dir; mkfifo pipe; ln -s /etc/shadow link; truncate -s 2M big; echo x > secret; chmod 0 secret")
        .await;
    for path in ["none", "link", "/etc/shadow", ""] {
        assert!(matches!(sandbox.read(path).await, Err(ProviderError::FileNotFound(_))), "{path}");
    }
    for path in ["dir", "pipe", "/dev/zero"] {
        let Err(ProviderError::FileRejected(reason)) = sandbox.read(path).await else { panic!("{path}") };
        assert_eq!(reason, format!("{path} is not a regular file"));
    }
    assert!(matches!(sandbox.read("big").await, Err(ProviderError::FileTooLarge(_))));
    assert!(matches!(sandbox.read("secret").await, Err(ProviderError::FileRejected(_))));
    let before = sandbox.files().await;
    for (dir, name) in [("/etc", "file"), ("/proc/self", "file"), ("/workspace", "dir"), ("/workspace/big", "file")] {
        let written = sandbox.write(dir, file(name, "x", false)).await;
        assert!(matches!(written, Err(ProviderError::FileRejected(_))), "{dir}/{name}");
    }
    // Its content breaks off.
    let content = stream::iter([Ok(Bytes::from_static(b"part")), Err(std::io::Error::other("lost"))]).boxed();
    let broken = FileToWrite { path: "broken".into(), size: 100, is_executable: false, content };
    assert!(matches!(sandbox.write("/workspace", broken).await, Err(ProviderError::Content(_))));
    assert_eq!(sandbox.files().await, before);
}

#[tokio::test]
async fn links_lead_nowhere_outside_of_the_sandbox() {
    let local = Local::new();
    let sandbox = local.create().await;
    let outside = local.settings.dir.join("outside");
    std::fs::write(&outside, "original").unwrap();
    let dir = local.settings.dir.display();
    sandbox
        .output(&format!("ln -s {dir} dir; ln -s {dir}/outside file; ln -s /tmp inside; ln -s ../../../../..{dir} up"))
        .await;
    for path in ["file", "dir/outside", "up/outside"] {
        assert!(matches!(sandbox.read(path).await, Err(ProviderError::FileNotFound(_))), "{path}");
    }
    for parent in ["/workspace/dir", "/workspace/up"] {
        assert!(sandbox.write(parent, file("outside", "changed", false)).await.is_err(), "{parent}");
    }
    // A link is replaced, not followed.
    sandbox.write("/workspace", file("file", "new", false)).await.unwrap();
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "original");
    // A link to a directory of the sandbox works as for its programs.
    sandbox.write("/workspace/inside", file("moved", "x", false)).await.unwrap();
    assert_eq!(sandbox.read("/tmp/moved").await.unwrap().0, "x");
}

/// A program exchanges a directory and a link to a directory of the machine as fast as it can.
#[tokio::test]
async fn renaming_during_a_copy_leads_nowhere_outside() {
    let local = Local::new();
    let sandbox = local.create().await;
    let outside = local.settings.dir.join("target");
    std::fs::create_dir(&outside).unwrap();
    let race = format!(
        "mkdir real; ln -s {} link; while [ ! -e /tmp/stop ]; do mv -T real dir; mv -T dir real; mv -T link dir; mv -T dir link; done",
        outside.display()
    );
    let (_, ()) = tokio::join!(sandbox.run(&race), async {
        for _ in 0..50 {
            let _ = sandbox.write("/workspace/dir", file("file", "x", false)).await;
            let _ = sandbox.read("/workspace/dir/file").await;
        }
        sandbox.output("touch /tmp/stop").await;
    });
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_appears_when_it_is_complete() {
    let local = Local::new();
    let sandbox = local.create().await;
    let provider = &local.provider;
    let files = || vec![file("SKILL.md", "text", false), file("scripts/a/run.sh", "run", true)];
    provider.write_dir(&sandbox.id, "/skills", "one", files()).await.unwrap();
    assert_eq!(sandbox.files().await, "/skills/one/SKILL.md\n/skills/one/scripts/a/run.sh\n");
    let again = provider.write_dir(&sandbox.id, "/skills", "one", vec![file("other", "x", false)]).await;
    assert!(matches!(again, Err(ProviderError::AlreadyExists)));
    let broken = stream::once(async { Err(std::io::Error::other("lost")) }).boxed();
    let broken = FileToWrite { path: "b".into(), size: 1, is_executable: false, content: broken };
    let written = provider.write_dir(&sandbox.id, "/skills", "two", vec![file("a", "a", false), broken]).await;
    assert!(matches!(written, Err(ProviderError::Content(_))));
    assert_eq!(sandbox.output("ls -A /skills").await, "one\n");
}
