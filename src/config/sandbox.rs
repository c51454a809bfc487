//! The settings of sandboxes.

use std::time::Duration;

use clap::Args;
use secrecy::SecretString;

use super::values::{parse_bool, parse_bytes, parse_count, parse_nonzero_duration, parse_url};

/// The default domain of E2B.
const DEFAULT_E2B_DOMAIN: &str = "e2b.app";

/// Where sandboxes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxType {
    /// On this machine.
    Local,
    /// In containers of Cloudflare, through a worker.
    Cloudflare,
    /// In virtual machines of E2B.
    E2b,
    /// Nowhere: requests for a sandbox fail.
    Disabled,
}

/// What separates a local sandbox from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxIsolation {
    Bubblewrap,
    Landlock,
}

#[derive(Args, Clone, Debug)]
pub struct Sandbox {
    /// Where sandboxes run: local (on this machine, isolated by bubblewrap or Landlock), cloudflare (see CLOUDFLARE_WORKER_URL), e2b (see
    /// E2B_API_KEY), or disabled
    /// [default: local if the server listens on loopback, otherwise disabled]
    #[arg(long = "sandbox-type", env = "SANDBOX_TYPE", value_name = "TYPE", value_parser = parse_sandbox_type)]
    pub kind: Option<SandboxType>,
    /// URL of the Cloudflare worker of Acontext that runs sandboxes; required with SANDBOX_TYPE=cloudflare
    #[arg(long, env = "CLOUDFLARE_WORKER_URL", value_name = "URL", value_parser = parse_url)]
    pub cloudflare_worker_url: Option<String>,
    /// Bearer token for the Cloudflare worker
    #[arg(long, env = "CLOUDFLARE_WORKER_AUTH_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub cloudflare_auth_token: Option<SecretString>,
    /// API key of E2B; required with SANDBOX_TYPE=e2b
    #[arg(long, env = "E2B_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub e2b_api_key: Option<SecretString>,
    /// Name or id of the template of which E2B creates sandboxes; required with SANDBOX_TYPE=e2b
    #[arg(long = "sandbox-template", env = "SANDBOX_DEFAULT_TEMPLATE", value_name = "TEMPLATE")]
    pub template: Option<String>,
    /// Domain of E2B. The host of the API has the name api below it, and each sandbox has a host below it, too
    #[arg(
        long,
        env = "E2B_DOMAIN_BASE_URL",
        value_name = "DOMAIN",
        default_value = DEFAULT_E2B_DOMAIN,
        value_parser = parse_domain
    )]
    pub e2b_domain: String,
    /// URL of the API of E2B, if its host is not below E2B_DOMAIN_BASE_URL
    #[arg(long, env = "E2B_API_URL", value_name = "URL", value_parser = parse_url)]
    pub e2b_api_url: Option<String>,
    /// URL for the requests to all sandboxes of E2B, if they have no hosts of their own. The header E2b-Sandbox-Id names the
    /// sandbox
    #[arg(long, env = "E2B_SANDBOX_URL", value_name = "URL", value_parser = parse_url)]
    pub e2b_sandbox_url: Option<String>,
    /// The only isolation of local sandboxes to use: bubblewrap, or landlock, which is weaker [default: bubblewrap if it works,
    /// otherwise landlock]
    #[arg(long = "sandbox-isolation", env = "ACONTEXTD_SANDBOX_ISOLATION", value_name = "ISOLATION", value_parser = parse_isolation)]
    pub isolation: Option<SandboxIsolation>,
    /// Let commands in local sandboxes use the network of this machine, with everything that it can reach, including services
    /// on loopback and abstract Unix sockets
    #[arg(
        long = "sandbox-network",
        env = "ACONTEXTD_SANDBOX_NETWORK",
        value_name = "BOOL",
        default_value = "false",
        action = clap::ArgAction::Set,
        value_parser = parse_bool
    )]
    pub allows_network: bool,
    /// How long a sandbox lives after its last call
    #[arg(
        long = "sandbox-keepalive",
        env = "SANDBOX_DEFAULT_KEEPALIVE_SECONDS",
        value_name = "SECONDS",
        default_value = "600",
        value_parser = parse_nonzero_duration
    )]
    pub keepalive: Duration,
    /// Maximum number of sandboxes of a project that live at the same time
    #[arg(
        long = "sandboxes",
        env = "ACONTEXTD_SANDBOXES",
        value_name = "N",
        default_value = "200",
        value_parser = parse_count
    )]
    pub max_live: usize,
    /// Timeout of a command in a sandbox
    #[arg(
        long = "sandbox-command-timeout",
        env = "ACONTEXTD_SANDBOX_COMMAND_TIMEOUT",
        value_name = "DURATION",
        default_value = "120s",
        value_parser = parse_nonzero_duration
    )]
    pub command_timeout: Duration,
    /// Maximum size of the standard output of a command, and of its standard error. Of a longer output, the first and the last
    /// half of this size are returned
    #[arg(
        long = "sandbox-output",
        env = "ACONTEXTD_SANDBOX_OUTPUT",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes
    )]
    pub max_output_bytes: u64,
    /// Maximum memory of the processes of a local sandbox
    #[arg(
        long = "sandbox-memory",
        env = "ACONTEXTD_SANDBOX_MEMORY",
        value_name = "BYTES",
        default_value = "1GiB",
        value_parser = parse_bytes
    )]
    pub max_memory_bytes: u64,
    /// Maximum size of the files of a local sandbox
    #[arg(
        long = "sandbox-disk",
        env = "ACONTEXTD_SANDBOX_DISK",
        value_name = "BYTES",
        default_value = "1GiB",
        value_parser = parse_bytes
    )]
    pub max_disk_bytes: u64,
    /// Maximum number of files and directories of a local sandbox
    #[arg(
        long = "sandbox-files",
        env = "ACONTEXTD_SANDBOX_FILES",
        value_name = "N",
        default_value = "100000",
        value_parser = parse_count
    )]
    pub max_files: usize,
    /// Maximum number of processes and threads of a command in a local sandbox
    #[arg(
        long = "sandbox-processes",
        env = "ACONTEXTD_SANDBOX_PROCESSES",
        value_name = "N",
        default_value = "128",
        value_parser = parse_count
    )]
    pub max_processes: usize,
    /// Maximum number of open files of a process in a local sandbox
    #[arg(
        long = "sandbox-open-files",
        env = "ACONTEXTD_SANDBOX_OPEN_FILES",
        value_name = "N",
        default_value = "256",
        value_parser = parse_count
    )]
    pub max_open_files: usize,
}

impl Sandbox {
    /// Returns where sandboxes run. `is_exposed` is `true` if other machines can reach the server: then commands run only if the
    /// operator has decided so, because everyone with a project key can send them.
    pub fn kind(&self, is_exposed: bool) -> SandboxType {
        self.kind.unwrap_or(if is_exposed { SandboxType::Disabled } else { SandboxType::Local })
    }

    /// Checks that the settings of a provider are set if it is used, and only then.
    pub(super) fn validate(&self) -> Result<(), String> {
        let is_cloudflare = self.kind == Some(SandboxType::Cloudflare);
        match (&self.cloudflare_worker_url, &self.cloudflare_auth_token) {
            (None, _) if is_cloudflare => {
                Err("CLOUDFLARE_WORKER_URL is not set, but SANDBOX_TYPE is cloudflare: set it to the URL of the worker".into())
            }
            (Some(_), _) if !is_cloudflare => {
                Err("CLOUDFLARE_WORKER_URL is set, but SANDBOX_TYPE is not cloudflare: set SANDBOX_TYPE=cloudflare, or remove it".into())
            }
            (None, Some(_)) => Err(
                "CLOUDFLARE_WORKER_AUTH_TOKEN is set, but CLOUDFLARE_WORKER_URL is not: set both, or remove the token".into(),
            ),
            _ => self.validate_e2b(),
        }
    }

    fn validate_e2b(&self) -> Result<(), String> {
        let required = [
            ("E2B_API_KEY", self.e2b_api_key.is_some(), "an API key of E2B"),
            ("SANDBOX_DEFAULT_TEMPLATE", self.template.is_some(), "a template of E2B"),
        ];
        if self.kind == Some(SandboxType::E2b) {
            let missing = required.into_iter().find(|(_, is_set, _)| !is_set);
            return missing.map_or(Ok(()), |(setting, _, value)| {
                Err(format!("{setting} is not set, but SANDBOX_TYPE is e2b: set it to {value}"))
            });
        }
        let required = required.map(|(setting, is_set, _)| (setting, is_set));
        let optional = [
            ("E2B_DOMAIN_BASE_URL", self.e2b_domain != DEFAULT_E2B_DOMAIN),
            ("E2B_API_URL", self.e2b_api_url.is_some()),
            ("E2B_SANDBOX_URL", self.e2b_sandbox_url.is_some()),
        ];
        match required.into_iter().chain(optional).find(|(_, is_set)| *is_set) {
            Some((setting, _)) => {
                Err(format!("{setting} is set, but SANDBOX_TYPE is not e2b: set SANDBOX_TYPE=e2b, or remove it"))
            }
            None => Ok(()),
        }
    }
}

/// Parses a domain.
fn parse_domain(text: &str) -> Result<String, String> {
    let domain = text.trim();
    let is_valid = !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    if is_valid {
        Ok(domain.to_owned())
    } else {
        Err(format!("must be a domain without https:// and without a path, such as {DEFAULT_E2B_DOMAIN}"))
    }
}

fn parse_sandbox_type(text: &str) -> Result<SandboxType, String> {
    match text.to_ascii_lowercase().as_str() {
        "local" => Ok(SandboxType::Local),
        "cloudflare" => Ok(SandboxType::Cloudflare),
        "e2b" => Ok(SandboxType::E2b),
        "disabled" => Ok(SandboxType::Disabled),
        "novita" | "aws_agentcore" => {
            Err(format!("this server does not support the sandboxes of {text}; use local, cloudflare, e2b or disabled"))
        }
        _ => Err("must be local, cloudflare, e2b or disabled".into()),
    }
}

fn parse_isolation(text: &str) -> Result<SandboxIsolation, String> {
    match text.to_ascii_lowercase().as_str() {
        "bubblewrap" => Ok(SandboxIsolation::Bubblewrap),
        "landlock" => Ok(SandboxIsolation::Landlock),
        _ => Err("must be bubblewrap or landlock".into()),
    }
}
