//! The object store in a bucket: its contract on two independent S3 servers, and its outages.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use acontextd::blob::s3::{S3ObjectStore, S3Timeouts};
use acontextd::blob::spool::SpoolDir;
use acontextd::blob::{ObjectStore, ObjectStoreError};
use acontextd::error::storage::StorageOutage;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::blobs::{assert_object_store_contract, large_content, spool};
use crate::support::app_config;
use crate::support::mock_http::MockServer;
use crate::support::moto::Moto;
use crate::support::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// Settings that replace those of [`open_store`].
type Settings<'a> = [(&'static str, &'a str)];

/// Opens the store at an endpoint.
async fn open_store(endpoint: &str, settings: &Settings<'_>) -> S3ObjectStore {
    open_store_with_timeouts(endpoint, settings, S3Timeouts::default()).await
}

async fn open_store_with_timeouts(endpoint: &str, settings: &Settings<'_>, timeouts: S3Timeouts) -> S3ObjectStore {
    let defaults = [
        ("S3_BUCKET", BUCKET),
        ("S3_ENDPOINT", endpoint),
        ("S3_ACCESS_KEY", ACCESS_KEY),
        ("S3_SECRET_KEY", SECRET_KEY),
    ];
    let settings: Vec<_> =
        [&defaults, settings].concat().into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    S3ObjectStore::new(&app_config(&settings).s3, timeouts).await.unwrap()
}

fn spool_dir() -> (TempDir, SpoolDir) {
    let dir = tempfile::tempdir().unwrap();
    let spool = SpoolDir::open(dir.path()).unwrap();
    (dir, spool)
}

fn outage<T>(result: Result<T, ObjectStoreError>) -> StorageOutage {
    match result {
        Err(ObjectStoreError::Unavailable(outage, _)) => outage,
        Err(err) => panic!("{err:?}"),
        Ok(_) => panic!("the object store is available"),
    }
}

#[tokio::test]
async fn the_s3_store_meets_the_contract_over_http() {
    let (_dir, spool_dir) = spool_dir();
    let server = S3Server::start().await;
    assert_object_store_contract(&open_store(&server.url, &[]).await, &spool_dir).await;
}

#[tokio::test]
async fn the_s3_store_meets_the_contract_on_an_independent_server() {
    let (_dir, spool_dir) = spool_dir();
    let moto = Moto::start().await;
    let store = open_store(&moto.url, &[("S3_REGION", "us-east-1")]).await;
    assert_object_store_contract(&store, &spool_dir).await;
    // Around the sizes at which the store, the spool and the SDK change how they send and read content.
    for size in [1, 65_535, 65_536, 65_537, 1 << 20, (5 << 20) + 1, 15 << 20] {
        let content: Vec<u8> = large_content().into_iter().cycle().take(size).collect();
        let key = format!("sizes/{size}");
        store.put(&key, &spool(&spool_dir, &content).await).await.unwrap();
        assert!(store.read(&key).await.unwrap() == content, "{size}");
        let end = size as u64;
        for range in [0..end, end / 2..end, end - 1..end, 0..1] {
            let chunks: Vec<_> = store.open(&key, range.clone()).await.unwrap().try_collect().await.unwrap();
            let expected = &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            assert!(chunks.concat() == expected, "{size} {range:?}");
        }
    }
    assert_eq!(
        outage(open_store(&moto.url, &[("S3_BUCKET", "no-such-bucket")]).await.check().await),
        StorageOutage::BucketMissing
    );
}

#[tokio::test]
async fn connection_errors_are_named() {
    let (_dir, spool_dir) = spool_dir();
    let content = spool(&spool_dir, b"content").await;
    let server = S3Server::start().await;
    // It responds to HTTP requests with something else.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other_protocol = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let tls = server.url.replace("http:", "https:");
    // Concurrently, because the SDK retries most of these errors.
    let cases = [
        ("http://127.0.0.1:1", StorageOutage::ConnectionRefused),
        ("http://no-such-host.invalid", StorageOutage::HostNotFound),
        (&tls, StorageOutage::TlsFailed),
        (&other_protocol, StorageOutage::InvalidResponse),
    ];
    join_all(cases.map(async |(endpoint, expected)| {
        let store = open_store(endpoint, &[]).await;
        let (put, read) = tokio::join!(store.put("p1/a", &content), store.read("p1/a"));
        let outages = [outage(store.check().await), outage(put), outage(read)];
        assert_eq!(outages, [expected; 3], "{endpoint}");
    }))
    .await;
}

#[tokio::test]
async fn errors_of_the_server_are_named() {
    let (_dir, spool_dir) = spool_dir();
    let content = spool(&spool_dir, b"content").await;
    let server = S3Server::start().await;
    for (settings, expected) in [
        ([("S3_BUCKET", "no-such-bucket")], StorageOutage::BucketMissing),
        ([("S3_ACCESS_KEY", "another-key")], StorageOutage::CredentialsRejected),
        ([("S3_SECRET_KEY", "another-secret")], StorageOutage::CredentialsRejected),
    ] {
        let store = open_store(&server.url, &settings).await;
        assert_eq!(outage(store.check().await), expected, "{settings:?}");
        assert_eq!(outage(store.put("p1/a", &content).await), expected, "{settings:?}");
        assert_eq!(outage(store.read("p1/a").await), expected, "{settings:?}");
    }
    let responses = [
        (403, "AccessDenied", StorageOutage::AccessDenied),
        (403, "RequestTimeTooSkewed", StorageOutage::ClockSkewed),
        (400, "ExpiredToken", StorageOutage::CredentialsRejected),
        (400, "RequestTimeout", StorageOutage::Unresponsive),
        (400, "AuthorizationHeaderMalformed", StorageOutage::WrongRegion),
        (301, "PermanentRedirect", StorageOutage::WrongRegion),
        (503, "SlowDown", StorageOutage::Throttled),
        (507, "XMinioStorageFull", StorageOutage::BucketFull),
        (500, "InternalError", StorageOutage::ServerError),
        (404, "NoSuchBucket", StorageOutage::BucketMissing),
    ];
    // Concurrently, because the SDK retries some of these errors.
    join_all(responses.map(async |(status, code, expected)| {
        let mock = MockServer::start().await;
        mock.set_text_response(status, &format!("<Error><Code>{code}</Code><Message>no</Message></Error>"));
        let store = open_store(&mock.url, &[]).await;
        let (put, read) = tokio::join!(store.put("p1/a", &content), store.read("p1/a"));
        assert_eq!([outage(put), outage(read)], [expected; 2], "{code}");
        let check = outage(store.check().await);
        // The response to a HEAD request has no body, and only a client error is examined with a second request.
        assert!(check == expected || status >= 500 && check == StorageOutage::ServerError, "{code}: {check:?}");
    }))
    .await;
}

const SHORT_TIMEOUTS: S3Timeouts = S3Timeouts { first_byte: Duration::from_secs(1), stall: Duration::from_secs(2) };

/// Accepts connections and never responds.
fn silent_server() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

#[tokio::test]
async fn requests_to_a_silent_server_end() {
    let (_dir, spool_dir) = spool_dir();
    let (endpoint, _listener) = silent_server();
    let store = open_store_with_timeouts(&endpoint, &[], SHORT_TIMEOUTS).await;
    let large = spool(&spool_dir, &vec![1; 20 << 20]).await;
    let small = spool(&spool_dir, b"small").await;
    let outages = async {
        let calls = tokio::join!(
            async { outage(store.check().await) },
            async { outage(store.read("p1/a").await) },
            async { outage(store.open("p1/a", 0..10).await) },
            async { outage(store.delete("p1/a").await) },
            async { outage(store.put("p1/a", &small).await) },
            async { outage(store.put("p1/b", &large).await) },
        );
        [calls.0, calls.1, calls.2, calls.3, calls.4, calls.5]
    };
    // The time limit of a transfer without progress, with a wide margin. Without timeouts, the calls never end.
    let outages = tokio::time::timeout(Duration::from_secs(15), outages).await.expect("the calls end");
    assert_eq!(outages, [StorageOutage::Unresponsive; 6]);
}

#[tokio::test]
async fn a_download_that_stalls_ends_with_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (_keep_open, wait) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 206 Partial Content\r\ncontent-length: 10\r\n\r\nabc");
            let _ = wait.recv();
        }
    });
    let store = open_store_with_timeouts(&endpoint, &[], SHORT_TIMEOUTS).await;
    let mut content = store.open("p1/a", 0..10).await.unwrap();
    assert_eq!(content.try_next().await.unwrap().unwrap(), "abc");
    let stalled = tokio::time::timeout(Duration::from_secs(15), content.try_next()).await.expect("the download ends");
    assert_eq!(outage(Err::<(), _>(stalled.unwrap_err().downcast().unwrap())), StorageOutage::Unresponsive);
}
