//! The restriction of a process to some files with Landlock, for machines on which bubblewrap does not work.

use std::path::PathBuf;

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    Scope, path_beneath_rules,
};
use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The version of Landlock without which programs are not restricted enough: it is the first one that separates signals. Linux 6.12
/// has it.
const VERSION: ABI = ABI::V6;

/// The files that a program may use, and the system calls that depend on it. Everything else is denied.
#[derive(Debug, Serialize, Deserialize)]
pub struct Restriction {
    /// The directory in which the program starts.
    pub working_dir: PathBuf,
    /// What the program may read and execute. Paths that do not exist are left out.
    pub readable: Vec<PathBuf>,
    pub writable: Vec<PathBuf>,
    /// Devices, which the program may read and write.
    pub devices: Vec<PathBuf>,
    pub allows_network: bool,
}

/// Restricts this process and all that it creates.
///
/// # Errors
/// Returns an error if the kernel does not have Landlock in this version.
pub(super) fn restrict(restriction: &Restriction) -> anyhow::Result<()> {
    let unsupported = "the kernel does not have Landlock in version 6, which requires Linux 6.12 or later with \
                       `landlock` in the list of security modules (the boot parameter `lsm`)";
    // Programs without privileges cannot create other devices than these.
    let writable = AccessFs::from_all(VERSION) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let device: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile;
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(VERSION))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(VERSION)))
        .and_then(Ruleset::create)
        .context(unsupported)?
        .add_rules(path_beneath_rules(&restriction.readable, AccessFs::from_read(VERSION)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(&restriction.writable, writable)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(&restriction.devices, device)))
        .and_then(RulesetCreated::restrict_self)
        .context("cannot restrict a process with Landlock")?;
    std::env::set_current_dir(&restriction.working_dir).context("cannot change to the directory of the sandbox")
}
