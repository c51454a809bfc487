//! What remote providers have no request for, done with shell commands in the sandbox.

use std::time::Duration;

use uuid::Uuid;

use super::{CommandOutput, FileToWrite, ProviderError, SandboxProvider};

/// The exit code of [`write_dir`]'s first command if the directory exists.
const EXISTS: i32 = 73;
/// The exit code of [`inspect_file`]'s command if there is no such file.
const NO_INPUT: i32 = 66;
/// The exit code of that command if there is something else than a file, such as a directory.
const NO_FILE: i32 = 67;

/// Quotes a text for a shell.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs a command that must succeed.
///
/// # Errors
/// Returns [`ProviderError::FileRejected`] with the standard error if it fails.
pub(super) async fn run(provider: &dyn SandboxProvider, id: &str, command: &str) -> Result<(), ProviderError> {
    match provider.run_command(id, command, Duration::ZERO).await? {
        CommandOutput { exit_code: 0, .. } => Ok(()),
        output => Err(ProviderError::FileRejected(output.stderr.text.trim().to_owned())),
    }
}

/// Checks that a file exists and is not larger than `max_bytes`. Returns whether its owner may execute it.
///
/// # Errors
/// Returns [`ProviderError::FileNotFound`] or [`ProviderError::FileTooLarge`] if it does not.
pub(super) async fn inspect_file(
    provider: &dyn SandboxProvider,
    id: &str,
    path: &str,
    max_bytes: u64,
) -> Result<bool, ProviderError> {
    let path_word = quote(path);
    let command = format!(
        "[ -e {path_word} ] || exit {NO_INPUT}; [ -f {path_word} ] || exit {NO_FILE}; stat -Lc '%a %s' -- {path_word}"
    );
    let output = provider.run_command(id, &command, Duration::ZERO).await?;
    let parsed = output.stdout.text.trim().split_once(' ');
    let parsed = parsed.and_then(|(mode, size)| Some((u32::from_str_radix(mode, 8).ok()?, size.parse::<u64>().ok()?)));
    match (output.exit_code, parsed) {
        (NO_INPUT, _) => Err(ProviderError::FileNotFound(path.to_owned())),
        (NO_FILE, _) => Err(ProviderError::FileRejected(format!("{path} is not a regular file"))),
        (0, Some((_, size))) if size > max_bytes => Err(ProviderError::FileTooLarge(max_bytes)),
        (0, Some((mode, _))) => Ok(mode & 0o100 != 0),
        _ => Err(ProviderError::FileRejected(output.stderr.text.trim().to_owned())),
    }
}

/// Creates an empty file and the directories above it, or empties an existing one.
pub(super) async fn create_empty_file(
    provider: &dyn SandboxProvider,
    id: &str,
    path: &str,
) -> Result<(), ProviderError> {
    let dir = path.rsplit_once('/').map_or(".", |(dir, _)| if dir.is_empty() { "/" } else { dir });
    run(provider, id, &format!("mkdir -p -- {} && : > {}", quote(dir), quote(path))).await
}

/// Implements [`SandboxProvider::write_dir`]: writes the files, at least one, to a temporary directory, which is then renamed.
pub(super) async fn write_dir(
    provider: &dyn SandboxProvider,
    id: &str,
    dir: &str,
    name: &str,
    files: Vec<FileToWrite>,
) -> Result<String, ProviderError> {
    let dir = dir.strip_suffix('/').unwrap_or(dir);
    let (target, incoming) = (format!("{dir}/{name}"), format!("{dir}/.incoming-{}", Uuid::new_v4().simple()));
    let (target_word, incoming_word) = (quote(&target), quote(&incoming));
    // `write_file` creates the temporary directory. Providers can do that where the user of commands must not.
    let begin = format!("if [ -e {target_word} ]; then exit {EXISTS}; fi");
    let output = provider.run_command(id, &begin, Duration::ZERO).await?;
    match output.exit_code {
        0 => {}
        EXISTS => return Err(ProviderError::AlreadyExists),
        _ => return Err(ProviderError::FileRejected(output.stderr.text.trim().to_owned())),
    }
    let written = async {
        for file in files {
            let (parent, path) = match file.path.rsplit_once('/') {
                Some((parent, path)) => (format!("{incoming}/{parent}"), path.to_owned()),
                None => (incoming.clone(), file.path.clone()),
            };
            provider.write_file(id, &parent, FileToWrite { path, ..file }).await?;
        }
        run(provider, id, &format!("mv -T -- {incoming_word} {target_word}")).await
    };
    let written = written.await;
    if written.is_err() {
        // If this fails, too, a hidden directory is left in a sandbox that does not work.
        let _ = run(provider, id, &format!("rm -rf -- {incoming_word}")).await;
    }
    written.map(|()| target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_word() {
        for (text, quoted) in [("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$(x)\n*", "'$(x)\n*'"), ("", "''")] {
            assert_eq!(quote(text), quoted);
        }
    }
}
