//! The contract of an object store, which both implementations must fulfill, the local store, and the spool directory.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use acontextd::blob::local::LocalObjectStore;
use acontextd::blob::spool::{Spool, SpoolDir};
use acontextd::blob::{ObjectStore, ObjectStoreError};
use acontextd::error::storage::StorageOutage;
use bytes::Bytes;
use futures_util::TryStreamExt;

pub async fn spool(dir: &SpoolDir, content: &[u8]) -> Spool {
    let mut writer = dir.writer();
    for chunk in content.chunks(50_000) {
        writer.write(chunk).await.unwrap();
    }
    writer.finish().await.unwrap()
}

/// Returns content that is too large for an in-memory spool and has no two equal parts.
pub fn large_content() -> Vec<u8> {
    (0_u32..300_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Checks everything that an object store promises.
pub async fn assert_object_store_contract(store: &dyn ObjectStore, dir: &SpoolDir) {
    store.check().await.unwrap();
    check_whole_objects(store, dir).await;
    check_ranges(store, dir).await;
    check_absent_objects(store, dir).await;
    check_scans(store, dir).await;
}

async fn check_whole_objects(store: &dyn ObjectStore, dir: &SpoolDir) {
    for (key, content) in [("p1/a-empty", vec![]), ("p1/b-small", b"small".to_vec()), ("p2/b-large", large_content())] {
        let spooled = spool(dir, &content).await;
        assert_eq!(spooled.size, content.len() as u64);
        store.put(key, &spooled).await.unwrap();
        assert!(store.read(key).await.unwrap() == content, "{key}");
        let chunks: Vec<Bytes> = store.open(key, 0..spooled.size).await.unwrap().try_collect().await.unwrap();
        assert!(chunks.concat() == content, "{key}");
    }
    // A spool can be put again under another key, which an upload does after a lost race.
    let spooled = spool(dir, &large_content()).await;
    store.put("p3/one", &spooled).await.unwrap();
    store.put("p3/two", &spooled).await.unwrap();
    assert!(store.read("p3/one").await.unwrap() == store.read("p3/two").await.unwrap());
    store.delete("p3/one").await.unwrap();
    assert!(store.read("p3/two").await.unwrap() == large_content());
}

async fn check_ranges(store: &dyn ObjectStore, dir: &SpoolDir) {
    let content = large_content();
    store.put("p1/ranges", &spool(dir, &content).await).await.unwrap();
    let end = content.len() as u64;
    for range in [0..1, 5..10, end - 1..end, 0..end, 100..900_000, 7..7] {
        let chunks: Vec<Bytes> = store.open("p1/ranges", range.clone()).await.unwrap().try_collect().await.unwrap();
        let expected = &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(chunks.concat() == expected, "{range:?}");
    }
}

async fn check_absent_objects(store: &dyn ObjectStore, dir: &SpoolDir) {
    assert!(matches!(store.read("p1/none").await, Err(ObjectStoreError::NotFound(key)) if key == "p1/none"));
    assert!(matches!(store.open("p1/none", 0..5).await, Err(ObjectStoreError::NotFound(_))));
    store.delete("p1/none").await.unwrap();
    store.put("p1/deleted", &spool(dir, b"deleted").await).await.unwrap();
    store.delete("p1/deleted").await.unwrap();
    store.delete("p1/deleted").await.unwrap();
    assert!(matches!(store.read("p1/deleted").await, Err(ObjectStoreError::NotFound(_))));
}

async fn check_scans(store: &dyn ObjectStore, dir: &SpoolDir) {
    let keys: Vec<String> = (0..50).map(|n| format!("scan/{n:02}")).collect();
    for (n, key) in keys.iter().enumerate() {
        store.put(key, &spool(dir, format!("content {n}").as_bytes()).await).await.unwrap();
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let visit = {
        let seen = Arc::clone(&seen);
        move |index: usize, bytes: &mut Vec<u8>| {
            seen.lock().unwrap().push((index, String::from_utf8(std::mem::take(bytes)).unwrap()));
            ControlFlow::Continue(())
        }
    };
    store.scan(keys.clone(), Arc::new(visit)).await.unwrap();
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort();
    let expected: Vec<(usize, String)> = (0..50).map(|n| (n, format!("content {n}"))).collect();
    assert_eq!(seen, expected);

    let count = Arc::new(Mutex::new(0));
    let stop = {
        let count = Arc::clone(&count);
        move |_: usize, _: &mut Vec<u8>| {
            *count.lock().unwrap() += 1;
            ControlFlow::Break(())
        }
    };
    store.scan(keys.clone(), Arc::new(stop)).await.unwrap();
    assert!(*count.lock().unwrap() < 50, "the scan did not stop");

    let with_absent = [keys, vec!["scan/none".into()]].concat();
    let missing = store.scan(with_absent, Arc::new(|_, _| ControlFlow::Continue(()))).await;
    assert_eq!(missing.unwrap(), [50]);
    store.scan(Vec::new(), Arc::new(|_, _| ControlFlow::Continue(()))).await.unwrap();
}

#[tokio::test]
async fn the_local_store_meets_the_contract_and_leaves_no_temp_files() {
    let dir = tempfile::tempdir().unwrap();
    let spool_dir = SpoolDir::open(dir.path()).unwrap();
    let store = LocalObjectStore::open(&dir.path().join("objects"), spool_dir.clone()).unwrap();
    assert_object_store_contract(&store, &spool_dir).await;
    let remaining: Vec<_> =
        list_files(&dir.path().join("tmp")).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert_eq!(remaining, [] as [std::path::PathBuf; 0]);
}

fn list_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { list_files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_put_on_a_full_disk_is_unavailable_and_can_be_retried() {
    // A directory that cannot be written stands in for a full disk, because the same calls fail.
    let dir = tempfile::tempdir().unwrap();
    let spool_dir = SpoolDir::open(dir.path()).unwrap();
    let store = LocalObjectStore::open(&dir.path().join("objects"), spool_dir.clone()).unwrap();
    let content = spool(&spool_dir, b"content").await;
    std::fs::remove_dir_all(dir.path().join("objects")).unwrap();
    std::fs::write(dir.path().join("objects"), "not a directory").unwrap();
    let put = store.put("p1/a", &content).await;
    assert!(matches!(put, Err(ObjectStoreError::Unavailable(StorageOutage::FileMissing, _))), "{put:?}");
    std::fs::remove_file(dir.path().join("objects")).unwrap();
    std::fs::create_dir(dir.path().join("objects")).unwrap();
    store.put("p1/a", &content).await.unwrap();
    assert_eq!(store.read("p1/a").await.unwrap(), "content");
}

/// Also a young spool is removed, because a process that restarts within a second must not leave uploads of encrypted
/// projects as plaintext.
#[test]
fn the_spools_of_a_killed_process_are_removed_immediately() {
    let dir = tempfile::tempdir().unwrap();
    let tmp = dir.path().join("tmp");
    for (name, files) in [
        ("of-a-killed-process", &["lock", "half-an-upload"][..]),
        ("without-its-lock", &["half-an-upload"]),
        ("new-and-unlocked", &["lock"]),
        ("new-and-empty", &[]),
    ] {
        std::fs::create_dir_all(tmp.join(name)).unwrap();
        for file in files {
            std::fs::write(tmp.join(name).join(file), "bytes").unwrap();
        }
    }
    std::fs::write(tmp.join("a-file"), "bytes").unwrap();
    // Another process is starting, and has locked its directory but not renamed it yet.
    let starting = tmp.join("new-and-locked");
    std::fs::create_dir(&starting).unwrap();
    let lock = std::fs::File::create(starting.join("lock")).unwrap();
    lock.try_lock().unwrap();

    let first = SpoolDir::open(dir.path()).unwrap();
    let dirs = || std::fs::read_dir(&tmp).unwrap().count();
    assert!(starting.exists(), "the directory of a starting process was removed");
    assert_eq!(dirs(), 2, "{:?}", list_files(&tmp));
    drop(lock);
    let second = SpoolDir::open(dir.path()).unwrap();
    assert_eq!(dirs(), 2, "a directory in use was removed, or an unused one was not");
    drop((first, second));
}

#[test]
fn processes_that_start_concurrently_keep_each_others_spools() {
    let dir = tempfile::tempdir().unwrap();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| SpoolDir::open(dir.path()).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), opened.len());
}
