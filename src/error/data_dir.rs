//! Describes why this process cannot use a file in the data directory: the directory, its owner, the user of the process, and a
//! remedy.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use rustix::process::geteuid;

/// Returns the error for a failed operation on a file in the data directory. `action` completes the text "cannot …", such as
/// `create`.
pub fn describe_failure(error: &io::Error, action: &str, path: &Path, data_dir: &Path) -> anyhow::Error {
    let (dir, path) = (data_dir.display(), path.to_owned());
    let failure = format!("ACONTEXTD_DATA_DIR is {dir}, but acontextd cannot {action} {}: {error}", path.display());
    match Blocker::find(path, error.kind()) {
        Some(blocker) => {
            let remedy = blocker.remedy(error.kind(), action, data_dir);
            anyhow!("{failure}; {}: {remedy}", blocker.owner_text())
        }
        None => anyhow!("{failure}: check that directory, or set ACONTEXTD_DATA_DIR to another one"),
    }
}

/// Returns the error for a directory that does not belong to the user that Postgres runs as. `uid` is the id of this user.
pub fn describe_wrong_owner(path: &Path, metadata: &Metadata, uid: u32, data_dir: &Path) -> anyhow::Error {
    let (owner, user) = (user_name(metadata.uid()), user_name(uid));
    let dir_text = path.display();
    if !metadata.is_dir() {
        return anyhow!("{dir_text} is not a directory, but Postgres requires one: remove or rename it");
    }
    // If the server runs as root, Postgres runs as another user, to which only its own directories belong.
    let chown_target = if geteuid().is_root() { path } else { data_dir };
    anyhow!(
        "ACONTEXTD_DATA_DIR is {dir}, but {dir_text} belongs to the user {owner}, acontextd runs as the user {current}, \
         and Postgres as the user {user}: start acontextd as the user that created the directory, change the owner as \
         root (chown -R {user} {chown_target}), or set ACONTEXTD_DATA_DIR to another directory",
        dir = data_dir.display(),
        current = user_name(geteuid().as_raw()),
        chown_target = chown_target.display()
    )
}

/// The existing file or directory that prevents an operation.
struct Blocker {
    path: PathBuf,
    metadata: Metadata,
    /// `true` if the process cannot see the entries of this directory.
    is_untraversable: bool,
}

impl Blocker {
    /// Returns the path, or its nearest ancestor that this process can see. If permission was denied, returns instead an entry of
    /// it that belongs to another user, if there is one.
    fn find(mut path: PathBuf, kind: io::ErrorKind) -> Option<Self> {
        let mut is_untraversable = false;
        loop {
            match fs::metadata(&path) {
                Ok(metadata) => {
                    let blocker = Self { path, metadata, is_untraversable };
                    let entry = (kind == io::ErrorKind::PermissionDenied).then(|| blocker.find_entry_of_other_user());
                    return Some(entry.flatten().unwrap_or(blocker));
                }
                Err(error) => is_untraversable = error.kind() == io::ErrorKind::PermissionDenied,
            }
            // The parent of a relative path with one component is empty.
            let parent = path.parent()?;
            path = if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() };
        }
    }

    /// Returns an entry of the directory that belongs to another user, if the directory itself belongs to this user.
    fn find_entry_of_other_user(&self) -> Option<Self> {
        let uid = geteuid().as_raw();
        let entries = fs::read_dir(&self.path).ok().filter(|_| self.metadata.uid() == uid)?;
        let mut entries = entries.flatten().filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)));
        let (path, metadata) = entries.find(|(_, metadata)| metadata.uid() != uid)?;
        Some(Self { path, metadata, is_untraversable: false })
    }

    /// Returns the owner of the blocker and the user of this process, as a sentence.
    fn owner_text(&self) -> String {
        let (owner, user) = (user_name(self.metadata.uid()), user_name(geteuid().as_raw()));
        format!("{} belongs to the user {owner}, and acontextd runs as the user {user}", self.path.display())
    }

    /// Returns what the operator can do.
    fn remedy(&self, kind: io::ErrorKind, action: &str, data_dir: &Path) -> String {
        use io::ErrorKind as K;
        const OTHER_DIR: &str = "set ACONTEXTD_DATA_DIR to another directory, such as ~/acontextd-data";
        let (path, dir) = (self.path.display(), data_dir.display());
        let (owner, uid) = (self.metadata.uid(), geteuid().as_raw());
        let (owner_name, user) = (user_name(owner), user_name(uid));
        match kind {
            K::NotADirectory | K::AlreadyExists if !self.metadata.is_dir() => {
                format!("{path} is not a directory: {OTHER_DIR}")
            }
            K::StorageFull | K::QuotaExceeded => format!("free disk space, or {OTHER_DIR}"),
            K::ReadOnlyFilesystem => format!("mount the file system of {path} as writable, or {OTHER_DIR}"),
            K::PermissionDenied if owner == uid || uid == 0 => {
                let mode = self.metadata.mode() & 0o7777;
                format!("check the permissions of {path} (its mode is {mode:04o}) and its file system, or {OTHER_DIR}")
            }
            K::PermissionDenied if self.path.starts_with(data_dir) => format!(
                "start acontextd as the user {owner_name}, change the owner of the directory as root (chown -R {user} \
                 {dir}), or {OTHER_DIR}"
            ),
            K::PermissionDenied if self.is_untraversable => {
                format!("start acontextd as the user {owner_name}, let the user {user} traverse {path}, or {OTHER_DIR}")
            }
            K::PermissionDenied => format!(
                "as root, create the directory for the user {user} (install -d -o {user} {dir}), or {OTHER_DIR}"
            ),
            _ if action == "lock" => format!("the file system may not support file locks: {OTHER_DIR}"),
            _ => format!("check that directory and its file system, or {OTHER_DIR}"),
        }
    }
}

/// Returns the name of a user, or the id if the user has no name.
fn user_name(uid: u32) -> String {
    let id = uid.to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    name.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn describe(kind: io::ErrorKind, path: &Path) -> String {
        describe_failure(&kind.into(), "create", path, path).to_string()
    }

    #[test]
    fn the_first_existing_ancestor_and_its_owner_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let missing = dir.path().join("a/b/c");
        let text = describe(io::ErrorKind::PermissionDenied, &missing);
        let user = user_name(geteuid().as_raw());
        let owner =
            format!("; {} belongs to the user {user}, and acontextd runs as the user {user}:", dir.path().display());
        assert!(text.contains(&owner) && text.contains("its mode is 0700"), "{text}");
        assert!(text.starts_with(&format!("ACONTEXTD_DATA_DIR is {}", missing.display())), "{text}");
    }

    #[test]
    fn each_kind_of_failure_has_its_own_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for (kind, path, remedy) in [
            (io::ErrorKind::NotADirectory, file.join("data"), format!("{} is not a directory", file.display())),
            (io::ErrorKind::AlreadyExists, file.clone(), format!("{} is not a directory", file.display())),
            (io::ErrorKind::StorageFull, dir.path().join("data"), "free disk space".into()),
            (io::ErrorKind::ReadOnlyFilesystem, dir.path().join("data"), "as writable".into()),
            (io::ErrorKind::Other, dir.path().join("data"), "another directory".into()),
        ] {
            let text = describe(kind, &path);
            assert!(text.contains(&remedy) && text.contains("ACONTEXTD_DATA_DIR to another"), "{text}");
        }
    }

    #[test]
    fn users_without_a_name_are_named_by_their_id() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(3_999_999_999), "3999999999");
    }
}
