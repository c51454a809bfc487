//! An object store in memory that can fail or pause.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use acontextd::blob::spool::Spool;
use acontextd::blob::{ByteStream, ObjectStore, ObjectStoreError, Result, ScanCallback};
use acontextd::error::storage::StorageOutage;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;

pub struct MemoryObjectStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
    down: AtomicBool,
    /// The number of calls of `check`.
    pub checks: AtomicUsize,
    /// An object whose deletion fails.
    undeletable: Mutex<Option<String>>,
    /// Each put requires a permit; tests acquire them to block puts.
    pub puts: Semaphore,
    /// The number of steps before the step that pauses. Negative if no later step pauses.
    steps: AtomicIsize,
    paused: AtomicBool,
    /// Gets a permit when the paused step may continue.
    gate: Semaphore,
}

impl Default for MemoryObjectStore {
    fn default() -> Self {
        Self {
            objects: Mutex::default(),
            down: AtomicBool::new(false),
            checks: AtomicUsize::new(0),
            undeletable: Mutex::default(),
            puts: Semaphore::new(Self::PUTS as usize),
            steps: AtomicIsize::new(-1),
            paused: AtomicBool::new(false),
            gate: Semaphore::new(0),
        }
    }
}

impl MemoryObjectStore {
    /// The maximum number of concurrent puts.
    pub const PUTS: u32 = 1000;

    /// Makes every call fail, or succeed again.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub fn fail_deletes_of(&self, key: &str) {
        *self.undeletable.lock().unwrap() = Some(key.to_owned());
    }

    /// Pauses the caller at this step, counted from 0. Each put and delete has a step before and after it.
    pub fn pause_at_step(&self, step: usize) {
        self.steps.store(isize::try_from(step).unwrap(), Ordering::SeqCst);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    pub fn resume(&self) {
        self.gate.add_permits(1);
    }

    async fn step(&self) {
        if self.steps.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.paused.store(true, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
        }
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Modifies a stored object.
    pub fn tamper(&self, key: &str, modify: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.objects.lock().unwrap();
        let object = objects.get_mut(key).expect("an object with this key");
        let mut bytes = object.to_vec();
        modify(&mut bytes);
        *object = bytes.into();
    }

    pub fn read_object(&self, key: &str) -> Vec<u8> {
        self.objects.lock().unwrap()[key].to_vec()
    }

    /// Returns the keys of the objects that contain these bytes.
    pub fn keys_containing(&self, bytes: &[u8]) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        let contains = |object: &Bytes| object.windows(bytes.len()).any(|window| window == bytes);
        objects.iter().filter(|(_, object)| contains(object)).map(|(key, _)| key.clone()).collect()
    }

    fn ensure_up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(ObjectStoreError::Unavailable(StorageOutage::ServerError, anyhow::anyhow!("switched off")));
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for MemoryObjectStore {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        self.ensure_up()?;
        let _permit = self.puts.acquire().await.unwrap();
        self.step().await;
        let bytes =
            content.bytes().await.map_err(|err| ObjectStoreError::Unavailable(StorageOutage::DiskError, err.into()))?;
        let previous = self.objects.lock().unwrap().insert(key.to_owned(), bytes);
        assert!(previous.is_none(), "the key {key} was used twice");
        self.step().await;
        Ok(())
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        let bytes = self.read(key).await?;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        if range.end > bytes.len() {
            return Err(ObjectStoreError::Truncated(key.to_owned()));
        }
        let part = bytes.slice(range);
        Ok(futures_util::stream::once(async { Ok(part) }).boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        self.ensure_up()?;
        self.objects.lock().unwrap().get(key).cloned().ok_or_else(|| ObjectStoreError::NotFound(key.to_owned()))
    }

    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            match self.read(key).await {
                Ok(bytes) if visit(index, &mut bytes.to_vec()).is_break() => break,
                Ok(_) => {}
                Err(ObjectStoreError::NotFound(_)) => missing.push(index),
                Err(err) => return Err(err),
            }
        }
        Ok(missing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.ensure_up()?;
        if self.undeletable.lock().unwrap().as_deref() == Some(key) {
            return Err(ObjectStoreError::Unavailable(
                StorageOutage::ServerError,
                anyhow::anyhow!("cannot be deleted"),
            ));
        }
        self.step().await;
        self.objects.lock().unwrap().remove(key);
        self.step().await;
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        self.checks.fetch_add(1, Ordering::SeqCst);
        self.ensure_up()
    }
}
