//! One battery for both object stores.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use acontextd::blob::local::LocalBlobStore;
use acontextd::blob::s3::S3BlobStore;
use acontextd::blob::spool::{Spool, SpoolDir};
use acontextd::blob::{BlobError, BlobStore};
use bytes::Bytes;
use futures_util::TryStreamExt;

use crate::support::{config, s3};

async fn spool(dir: &SpoolDir, content: &[u8]) -> Spool {
    let mut writer = dir.writer();
    for chunk in content.chunks(50_000) {
        writer.write(chunk).await.unwrap();
    }
    writer.finish().await.unwrap()
}

/// Larger than what is kept in memory, and no two parts of it alike.
fn large() -> Vec<u8> {
    (0_u32..300_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

async fn battery(store: &dyn BlobStore, dir: &SpoolDir) {
    store.check().await.unwrap();
    whole_objects(store, dir).await;
    ranges(store, dir).await;
    absent_ones(store, dir).await;
    scans(store, dir).await;
}

async fn whole_objects(store: &dyn BlobStore, dir: &SpoolDir) {
    for (key, content) in [("p1/a-empty", vec![]), ("p1/b-small", b"small".to_vec()), ("p2/b-large", large())] {
        let spooled = spool(dir, &content).await;
        assert_eq!(spooled.size, content.len() as u64);
        store.put(key, &spooled).await.unwrap();
        assert!(store.read(key).await.unwrap() == content, "{key}");
        let chunks: Vec<Bytes> = store.open(key, 0..spooled.size).await.unwrap().try_collect().await.unwrap();
        assert!(chunks.concat() == content, "{key}");
    }
    // What was put once can be put again under another key: an upload that lost a race does.
    let spooled = spool(dir, &large()).await;
    store.put("p3/one", &spooled).await.unwrap();
    store.put("p3/two", &spooled).await.unwrap();
    assert!(store.read("p3/one").await.unwrap() == store.read("p3/two").await.unwrap());
    store.delete("p3/one").await.unwrap();
    assert!(store.read("p3/two").await.unwrap() == large());
}

async fn ranges(store: &dyn BlobStore, dir: &SpoolDir) {
    let content = large();
    store.put("p1/ranges", &spool(dir, &content).await).await.unwrap();
    let end = content.len() as u64;
    for range in [0..1, 5..10, end - 1..end, 0..end, 100..900_000, 7..7] {
        let chunks: Vec<Bytes> = store.open("p1/ranges", range.clone()).await.unwrap().try_collect().await.unwrap();
        let wanted = &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(chunks.concat() == wanted, "{range:?}");
    }
}

async fn absent_ones(store: &dyn BlobStore, dir: &SpoolDir) {
    assert!(matches!(store.read("p1/none").await, Err(BlobError::Missing(key)) if key == "p1/none"));
    assert!(matches!(store.open("p1/none", 0..5).await, Err(BlobError::Missing(_))));
    store.delete("p1/none").await.unwrap();
    store.put("p1/gone", &spool(dir, b"gone").await).await.unwrap();
    store.delete("p1/gone").await.unwrap();
    store.delete("p1/gone").await.unwrap();
    assert!(matches!(store.read("p1/gone").await, Err(BlobError::Missing(_))));
}

async fn scans(store: &dyn BlobStore, dir: &SpoolDir) {
    let keys: Vec<String> = (0..50).map(|n| format!("scan/{n:02}")).collect();
    for (n, key) in keys.iter().enumerate() {
        store.put(key, &spool(dir, format!("content {n}").as_bytes()).await).await.unwrap();
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let visit = {
        let seen = Arc::clone(&seen);
        move |at: usize, bytes: &mut Vec<u8>| {
            seen.lock().unwrap().push((at, String::from_utf8(std::mem::take(bytes)).unwrap()));
            ControlFlow::Continue(())
        }
    };
    store.scan(keys.clone(), Arc::new(visit)).await.unwrap();
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort();
    let wanted: Vec<(usize, String)> = (0..50).map(|n| (n, format!("content {n}"))).collect();
    assert_eq!(seen, wanted);

    let count = Arc::new(Mutex::new(0));
    let stop = {
        let count = Arc::clone(&count);
        move |_: usize, _: &mut Vec<u8>| {
            *count.lock().unwrap() += 1;
            ControlFlow::Break(())
        }
    };
    store.scan(keys.clone(), Arc::new(stop)).await.unwrap();
    assert!(*count.lock().unwrap() < 50, "it did not stop");

    let with_absent = [keys, vec!["scan/none".into()]].concat();
    let missing = store.scan(with_absent, Arc::new(|_, _| ControlFlow::Continue(()))).await;
    assert_eq!(missing.unwrap(), [50]);
    store.scan(Vec::new(), Arc::new(|_, _| ControlFlow::Continue(()))).await.unwrap();
}

#[tokio::test]
async fn the_folder_passes_the_battery_and_leaves_nothing_beside() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SpoolDir::open(folder.path()).unwrap();
    let store = LocalBlobStore::open(&folder.path().join("objects"), dir.clone()).unwrap();
    battery(&store, &dir).await;
    let left: Vec<_> = walk(&folder.path().join("tmp")).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert_eq!(left, [] as [std::path::PathBuf; 0]);
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn the_bucket_passes_the_battery_over_http() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SpoolDir::open(folder.path()).unwrap();
    let endpoint = format!("http://{}", s3::start().await);
    battery(&S3BlobStore::new(&s3_settings(&endpoint, s3::BUCKET)), &dir).await;
}

fn s3_settings(endpoint: &str, bucket: &str) -> acontextd::config::S3 {
    let settings = [
        ("S3_BUCKET", bucket.to_owned()),
        ("S3_ENDPOINT", endpoint.to_owned()),
        ("S3_ACCESS_KEY", s3::ACCESS_KEY.to_owned()),
        ("S3_SECRET_KEY", s3::SECRET_KEY.to_owned()),
    ];
    config(&settings).s3
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_a_server_that_is_not_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let dir = SpoolDir::open(folder.path()).unwrap();
    let endpoint = format!("http://{}", s3::start().await);
    for store in [
        S3BlobStore::new(&s3_settings(&endpoint, "no-such-bucket")),
        S3BlobStore::new(&s3_settings("http://127.0.0.1:1", s3::BUCKET)),
    ] {
        assert!(matches!(store.check().await, Err(BlobError::Unavailable(_))));
        let put = store.put("p1/a", &spool(&dir, b"a").await).await;
        assert!(matches!(put, Err(BlobError::Unavailable(_))), "{put:?}");
    }
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_leaves_nothing() {
    // A folder that cannot be written stands for a full one: the same calls fail.
    let folder = tempfile::tempdir().unwrap();
    let dir = SpoolDir::open(folder.path()).unwrap();
    let store = LocalBlobStore::open(&folder.path().join("objects"), dir.clone()).unwrap();
    let content = spool(&dir, b"content").await;
    std::fs::remove_dir_all(folder.path().join("objects")).unwrap();
    std::fs::write(folder.path().join("objects"), "no folder").unwrap();
    let put = store.put("p1/a", &content).await;
    assert!(matches!(put, Err(BlobError::Unavailable(_))), "{put:?}");
    std::fs::remove_file(folder.path().join("objects")).unwrap();
    std::fs::create_dir(folder.path().join("objects")).unwrap();
    store.put("p1/a", &content).await.unwrap();
    assert_eq!(store.read("p1/a").await.unwrap(), "content");
}

/// However young it is: a process that starts again within a second must not leave uploads of encrypted projects in plaintext.
#[test]
fn what_a_killed_process_left_in_its_spool_is_removed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let tmp = folder.path().join("tmp");
    for (name, files) in [
        ("of-a-killed-process", &["lock", "half-an-upload"][..]),
        ("without-its-lock", &["half-an-upload"]),
        ("new-and-locked-by-nobody", &["lock"]),
        ("new-and-empty", &[]),
    ] {
        std::fs::create_dir_all(tmp.join(name)).unwrap();
        for file in files {
            std::fs::write(tmp.join(name).join(file), "bytes").unwrap();
        }
    }
    std::fs::write(tmp.join("a-file"), "bytes").unwrap();
    // Another process that starts at this moment: it has not yet given its folder its name.
    let starting = tmp.join("new-and-locked");
    std::fs::create_dir(&starting).unwrap();
    let lock = std::fs::File::create(starting.join("lock")).unwrap();
    lock.try_lock().unwrap();

    let living = SpoolDir::open(folder.path()).unwrap();
    let folders = || std::fs::read_dir(&tmp).unwrap().count();
    assert!(starting.exists(), "the folder of a process that starts was removed");
    assert_eq!(folders(), 2, "{:?}", walk(&tmp));
    drop(lock);
    let second = SpoolDir::open(folder.path()).unwrap();
    assert_eq!(folders(), 2, "one that is in use was removed, or another one was not");
    drop((living, second));
}

#[test]
fn processes_that_start_at_the_same_moment_do_not_remove_each_others_folders() {
    let folder = tempfile::tempdir().unwrap();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| SpoolDir::open(folder.path()).unwrap())).collect();
        opening.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), opened.len());
}
