//! Objects in memory, with a switch that makes the store fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use acontextd::blob::spool::Spool;
use acontextd::blob::{BlobError, Blobs, ByteStream, Result, Visit};
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
}

impl Default for MemoryBlobs {
    fn default() -> Self {
        Self {
            objects: Mutex::default(),
            down: AtomicBool::new(false),
            stuck: Mutex::default(),
            puts: Semaphore::new(Self::PUTS as usize),
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

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    fn up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(BlobError::Unavailable(anyhow::anyhow!("switched off")));
        }
        Ok(())
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, key: &str, content: &Spool) -> Result<()> {
        self.up()?;
        let _permit = self.puts.acquire().await.unwrap();
        let bytes = content.bytes().await.map_err(|fault| BlobError::Unavailable(fault.into()))?;
        let former = self.objects.lock().unwrap().insert(key.to_owned(), bytes);
        assert!(former.is_none(), "the key {key} was used twice");
        Ok(())
    }

    async fn open(&self, key: &str, range: Range<u64>) -> Result<ByteStream> {
        let bytes = self.read(key).await?;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let part = bytes.slice(range);
        Ok(futures_util::stream::once(async { Ok(part) }).boxed())
    }

    async fn read(&self, key: &str) -> Result<Bytes> {
        self.up()?;
        self.objects.lock().unwrap().get(key).cloned().ok_or_else(|| BlobError::Missing(key.to_owned()))
    }

    async fn scan(&self, keys: Vec<String>, visit: Visit) -> Result<()> {
        for (at, key) in keys.iter().enumerate() {
            if visit(at, &self.read(key).await?).is_break() {
                break;
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.up()?;
        if self.stuck.lock().unwrap().as_deref() == Some(key) {
            return Err(BlobError::Unavailable(anyhow::anyhow!("stuck")));
        }
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        self.up()
    }
}
