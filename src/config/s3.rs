//! The settings of the S3 bucket.

use clap::Args;
use secrecy::SecretString;

use super::values::{self, parse_bool};

#[derive(Args, Clone, Debug)]
pub struct S3 {
    /// S3 bucket for objects; must exist. The credentials need the permissions s3:ListBucket, s3:GetObject, s3:PutObject and
    /// s3:DeleteObject
    #[arg(long = "s3-bucket", env = "S3_BUCKET", value_name = "NAME")]
    pub bucket: Option<String>,
    /// URL of the S3 endpoint [default: AWS]
    #[arg(long = "s3-endpoint", env = "S3_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// URL of the S3 endpoint that this server uses instead of S3_ENDPOINT
    #[arg(long = "s3-internal-endpoint", env = "S3_INTERNAL_ENDPOINT", value_name = "URL")]
    internal_endpoint: Option<String>,
    /// S3 region. Without S3_ENDPOINT, auto takes the region from AWS_REGION, the AWS profile or the instance
    #[arg(long = "s3-region", env = "S3_REGION", value_name = "NAME", default_value = "auto")]
    pub region: String,
    /// S3 access key. Without it and S3_SECRET_KEY, the credentials come from the first of these sources that has some: the
    /// variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, the AWS profile, web identity (IRSA),
    /// container credentials (ECS, EKS Pod Identity), instance metadata (IMDSv2)
    #[arg(long = "s3-access-key", env = "S3_ACCESS_KEY", value_name = "KEY")]
    pub access_key: Option<String>,
    /// S3 secret key
    #[arg(long = "s3-secret-key", env = "S3_SECRET_KEY", value_name = "KEY", hide_env_values = true)]
    pub secret_key: Option<SecretString>,
    /// Use path-style instead of virtual-hosted-style requests to S3
    #[arg(
        long = "s3-use-path-style",
        env = "S3_USE_PATH_STYLE",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = parse_bool
    )]
    pub use_path_style: bool,
    /// Server-side encryption that S3 applies to new objects: AES256, aws:kms or aws:kms:dsse
    #[arg(
        long = "s3-sse",
        env = "S3_SSE",
        value_name = "NAME",
        value_parser = values::choice(&["AES256", "aws:kms", "aws:kms:dsse"])
    )]
    pub sse: Option<String>,
}

impl S3 {
    /// Returns `true` if a bucket is configured.
    pub fn is_configured(&self) -> bool {
        self.bucket.is_some()
    }

    /// Returns the configured access key and secret key, or `None` if the credentials come from the default sources of AWS.
    pub fn static_keys(&self) -> Option<(&str, &SecretString)> {
        Some((self.access_key.as_deref()?, self.secret_key.as_ref()?))
    }

    /// Returns the URL of the endpoint that this server uses, or `None` for AWS. Adds `https://` if the setting has no scheme.
    pub fn endpoint(&self) -> Option<String> {
        let endpoint = self.internal_endpoint.as_ref().or(self.endpoint.as_ref())?;
        Some(if endpoint.contains("://") { endpoint.clone() } else { format!("https://{endpoint}") })
    }
}
