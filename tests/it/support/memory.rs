//! Objects in memory, with a switch that makes the store fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use acontextd::blob::spool::Spool;
use acontextd::blob::{BlobError, BlobStore, ByteStream, Result, ScanCallback};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;

pub struct MemoryBlobs {
    objects: Mutex<BTreeMap<String, Bytes>>,
    down: AtomicBool,
    /// An object that cannot be deleted.
    stuck: Mutex<Option<String>>,
    /// A permit is wanted for each put; tests take them away to hold puts up.
    pub puts: Semaphore,
    /// How many steps there are before the one that is held up; below zero for none.
    steps: AtomicIsize,
    held: AtomicBool,
    /// Opened when what is held up may go on.
    gate: Semaphore,
}

impl Default for MemoryBlobs {
    fn default() -> Self {
        Self {
            objects: Mutex::default(),
            down: AtomicBool::new(false),
            stuck: Mutex::default(),
            puts: Semaphore::new(Self::PUTS as usize),
            steps: AtomicIsize::new(-1),
            held: AtomicBool::new(false),
            gate: Semaphore::new(0),
        }
    }
}

impl MemoryBlobs {
    /// How many puts there can be at once.
    pub const PUTS: u32 = 1000;

    /// Makes every call fail, or work again.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub fn set_stuck(&self, key: &str) {
        *self.stuck.lock().unwrap() = Some(key.to_owned());
    }

    /// Holds the caller up before or after a put or a delete: at the step of this number, counted from 0.
    pub fn hold_at(&self, step: usize) {
        self.steps.store(isize::try_from(step).unwrap(), Ordering::SeqCst);
    }

    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    pub fn let_go(&self) {
        self.gate.add_permits(1);
    }

    async fn step(&self) {
        if self.steps.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.held.store(true, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
        }
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Changes an object behind everyone's back.
    pub fn change(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.objects.lock().unwrap();
        let object = objects.get_mut(key).expect("an object of that key");
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
    }

    pub fn read_object(&self, key: &str) -> Vec<u8> {
        self.objects.lock().unwrap()[key].to_vec()
    }

    /// The objects that contain these bytes.
    pub fn find(&self, bytes: &[u8]) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        let contains = |object: &Bytes| object.windows(bytes.len()).any(|window| window == bytes);
        objects.iter().filter(|(_, object)| contains(object)).map(|(key, _)| key.clone()).collect()
    }

    fn up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(BlobError::Unavailable(anyhow::anyhow!("switched off")));
        }
        Ok(())
    }
}

#[async_trait]
impl BlobStore for MemoryBlobs {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        self.up()?;
        let _permit = self.puts.acquire().await.unwrap();
        self.step().await;
        let bytes = content.bytes().await.map_err(|err| BlobError::Unavailable(err.into()))?;
        let former = self.objects.lock().unwrap().insert(key.to_owned(), bytes);
        assert!(former.is_none(), "the key {key} was used twice");
        self.step().await;
        Ok(())
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        let bytes = self.read(key).await?;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        if range.end > bytes.len() {
            return Err(BlobError::Short(key.to_owned()));
        }
        let part = bytes.slice(range);
        Ok(futures_util::stream::once(async { Ok(part) }).boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        self.up()?;
        self.objects.lock().unwrap().get(key).cloned().ok_or_else(|| BlobError::Missing(key.to_owned()))
    }

    async fn scan(&self, keys: Vec<String>, visit: ScanCallback) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            match self.read(key).await {
                Ok(bytes) if visit(at, &mut bytes.to_vec()).is_break() => break,
                Ok(_) => {}
                Err(BlobError::Missing(_)) => missing.push(at),
                Err(err) => return Err(err),
            }
        }
        Ok(missing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.up()?;
        if self.stuck.lock().unwrap().as_deref() == Some(key) {
            return Err(BlobError::Unavailable(anyhow::anyhow!("stuck")));
        }
        self.step().await;
        self.objects.lock().unwrap().remove(key);
        self.step().await;
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        self.up()
    }
}
