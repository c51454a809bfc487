//! Builds the client of the SDK: its credentials, its region and its endpoint.

use anyhow::bail;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::meta::region::ProvideRegion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, StalledStreamProtectionConfig,
};
use secrecy::ExposeSecret;

use crate::config::S3;

/// How long it may take to open a connection.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// Builds the client. Without static keys, it uses the credentials of the first of these sources that has some, and loads them
/// again before they expire: the variables of AWS, the profile, web identity, the container, the instance.
///
/// # Errors
/// Returns an error if the server uses AWS and nothing names the region.
pub(super) async fn build(settings: &S3) -> anyhow::Result<Client> {
    let region = resolve_region(settings).await?;
    let credentials = match settings.static_keys() {
        Some((access_key, secret_key)) => SharedCredentialsProvider::new(Credentials::new(
            access_key,
            secret_key.expose_secret(),
            None,
            None,
            "settings",
        )),
        None => SharedCredentialsProvider::new(DefaultCredentialsChain::builder().region(region.clone()).build().await),
    };
    let mut config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(region)
        .credentials_provider(credentials)
        .force_path_style(settings.use_path_style)
        // Many S3-compatible stores reject checksums that they do not support.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        // Replaced by `S3Timeouts`, which also limits the time until the first byte.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = settings.endpoint() {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// Returns the region of the bucket. Without an endpoint, the server uses AWS, which has no region with the name `auto`.
async fn resolve_region(settings: &S3) -> anyhow::Result<Region> {
    if settings.region != "auto" || settings.endpoint().is_some() {
        return Ok(Region::new(settings.region.clone()));
    }
    match aws_config::default_provider::region::default_provider().region().await {
        Some(region) => Ok(region),
        None => bail!(
            "the region of S3_BUCKET is unknown: set S3_REGION, such as S3_REGION=eu-central-1, or AWS_REGION. If the bucket \
             is not on AWS, set S3_ENDPOINT"
        ),
    }
}
