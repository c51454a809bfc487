//! The sources of the credentials and of the region of a bucket. A local server stands in for each service of AWS.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::mock_http::MockServer;
use crate::support::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::{postgres, wait_until};

/// Starts the server with a bucket, without static keys, and with variables that AWS defines. Startup accesses the bucket, so
/// the server must have found credentials.
async fn start_server(dir: &TempDir, s3: &S3Server, variables: &[(&str, &str)]) -> ServerProcess {
    let database = postgres::database_url(&postgres::new_database().await);
    let settings = [
        ("ROOT_SECRET_PEPPER", "a pepper for tests"),
        ("DATABASE_URL", &database),
        ("S3_BUCKET", BUCKET),
        ("S3_ENDPOINT", &s3.url),
        // Empty means unset.
        ("S3_ACCESS_KEY", ""),
    ];
    ServerProcess::start(dir.path(), &[&settings, variables].concat())
}

/// Starts the server with the variables, and asserts that its requests to S3 contain the session token.
async fn assert_server_finds_credentials(variables: &[(&str, &str)], session_token: &str) {
    let (s3, dir) = (S3Server::start().await, data_dir());
    let server = start_server(&dir, &s3, variables).await;
    assert_eq!(s3.session_tokens(), [session_token]);
    assert!(server.stop().success());
}

/// Returns credentials in the format of container and instance credentials, see
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>.
fn credentials(access_key: &str, secret_key: &str, token: &str, expiration: &str) -> Value {
    json!({"AccessKeyId": access_key, "SecretAccessKey": secret_key, "Token": token, "Expiration": expiration})
}

const NEVER: &str = "2099-01-01T00:00:00Z";

fn write_file(content: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_environment_with_their_session_token() {
    let variables = [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_SESSION_TOKEN", "environment-token"),
    ];
    assert_server_finds_credentials(&variables, "environment-token").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_a_profile() {
    let (_dir, path) = write_file(&format!(
        "[a-profile]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n\
         aws_session_token = profile-token\n"
    ));
    let variables = [("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap()), ("AWS_PROFILE", "a-profile")];
    assert_server_finds_credentials(&variables, "profile-token").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_container() {
    let container = MockServer::start().await;
    container.set_response(200, &credentials(ACCESS_KEY, SECRET_KEY, "container-token", NEVER));
    let uri = format!("{}/credentials", container.url);
    let variables =
        [("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a-task")];
    assert_server_finds_credentials(&variables, "container-token").await;
    assert_eq!(container.take_requests()[0].headers["authorization"], "a-task");
}

/// EKS Pod Identity: the token is in a file, which Kubernetes replaces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_pod_identity_agent() {
    let agent = MockServer::start().await;
    agent.set_response(200, &credentials(ACCESS_KEY, SECRET_KEY, "pod-token", NEVER));
    let uri = format!("{}/v1/credentials", agent.url);
    let (_dir, token) = write_file("pod-identity");
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ];
    assert_server_finds_credentials(&variables, "pod-token").await;
    assert_eq!(agent.take_requests()[0].headers["authorization"], "pod-identity");
}

/// IRSA: the token of the service account is exchanged for credentials.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_web_identity() {
    let sts = MockServer::start().await;
    sts.set_text_response(
        200,
        &format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{ACCESS_KEY}</AccessKeyId>\
             <SecretAccessKey>{SECRET_KEY}</SecretAccessKey><SessionToken>web-identity-token</SessionToken>\
             <Expiration>{NEVER}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             </AssumeRoleWithWebIdentityResponse>"
        ),
    );
    let (_dir, token) = write_file("service-account");
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/a-role"),
        ("AWS_ENDPOINT_URL_STS", &sts.url),
    ];
    assert_server_finds_credentials(&variables, "web-identity-token").await;
    let form = String::from_utf8(sts.take_requests()[0].body.to_vec()).unwrap();
    assert!(form.contains("WebIdentityToken=service-account"), "{form}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_instance_with_a_session() {
    let imds = MockServer::start().await;
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    let role = "/latest/meta-data/iam/security-credentials/";
    let mut response = credentials(ACCESS_KEY, SECRET_KEY, "instance-token", NEVER);
    response["Code"] = "Success".into();
    response["Type"] = "AWS-HMAC".into();
    response["LastUpdated"] = "2026-01-01T00:00:00Z".into();
    imds.set_path_response("/latest/api/token", ttl, "imds-session");
    imds.set_path_response(role, ttl, "a-role");
    imds.set_path_response(&format!("{role}a-role"), ttl, &response.to_string());
    assert_server_finds_credentials(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds.url)], "instance-token").await;
    let requests = imds.take_requests();
    let request = requests.iter().find(|request| request.uri.path().ends_with("/a-role")).unwrap();
    assert_eq!(request.headers["x-aws-ec2-metadata-token"], "imds-session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_loaded_again_before_they_expire() {
    let s3 = S3Server::start().await;
    let container = MockServer::start().await;
    let uri = format!("{}/credentials", container.url);
    // They have already expired when they are loaded, so each request loads them again.
    let expired = "2026-01-01T00:00:00Z";
    container.set_response(200, &credentials(ACCESS_KEY, SECRET_KEY, "first-token", expired));
    let dir = data_dir();
    let server = start_server(&dir, &s3, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)]).await;
    container.set_response(200, &credentials("second-key", "second-secret", "second-token", expired));
    s3.set_keys([("second-key", "second-secret")]);
    let ready = format!("{}/ready", server.url);
    wait_until("the second key is used", async || {
        reqwest::get(&ready).await.unwrap().status().as_u16() == 200
            && s3.session_tokens().contains(&"second-token".to_owned())
    })
    .await;
    // The credentials are gone.
    container.set_response(500, &json!({}));
    wait_until("the missing credentials are named", async || {
        let response = reqwest::get(&ready).await.unwrap();
        response.status().as_u16() == 503
            && response.text().await.unwrap().contains("object store: no credentials for S3")
    })
    .await;
    assert!(server.log().contains("no credentials for S3"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_region_of_a_bucket_on_aws_comes_from_the_environment() {
    let dir = data_dir();
    let database = postgres::database_url(&postgres::new_database().await);
    let settings = [
        ("ROOT_SECRET_PEPPER", "a pepper for tests"),
        ("DATABASE_URL", &*database),
        ("S3_BUCKET", BUCKET),
        ("S3_ACCESS_KEY", ACCESS_KEY),
        ("S3_SECRET_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let error = ServerProcess::startup_error(dir.path(), &settings);
    assert!(error.contains("the region of S3_BUCKET is unknown: set S3_REGION"), "{error}");
    // The region is part of the host name, which does not exist here.
    let settings = [&settings[..], &[("AWS_REGION", "no-such-region")]].concat();
    let error = ServerProcess::startup_error(dir.path(), &settings);
    assert!(!error.contains("the region of S3_BUCKET") && error.contains("cannot access the object store"), "{error}");
}
