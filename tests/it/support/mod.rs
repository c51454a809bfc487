//! What the tests stand on.

pub mod client;
pub mod llm;
pub mod memory;
pub mod pgbouncer;
pub mod postgres;
pub mod program;
pub mod s3;
pub mod samples;
pub mod service;
pub mod zip;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use acontextd::blob::BlobStore;
use acontextd::blob::spool::SpoolDir;
use acontextd::config::Config;
use acontextd::crypto::ProjectKey;
use acontextd::db::notify::{self, NotificationHandler};
use acontextd::db::pooler::PoolerCheck;
use acontextd::features::{self, App};
use acontextd::jobs::{JobRegistry, runner};
use acontextd::llm::Llm;
use acontextd::platform::{Platform, PlatformDependencies};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::task::JoinSet;
use utoipa::openapi::OpenApi;
use uuid::Uuid;

pub use client::Client;
use memory::MemoryBlobs;

pub const PEPPER: &str = "a pepper for tests";
pub const ADMIN: &str = "an admin token for tests";

/// Runs a test on an app of its own.
pub async fn run<F: Future<Output = ()>>(test: impl FnOnce(TestApp) -> F) {
    run_with(Setup::default(), test).await;
}

/// Runs a test on an app of its own that is set up otherwise.
pub async fn run_with<F: Future<Output = ()>>(setup: Setup, test: impl FnOnce(TestApp) -> F) {
    let app = TestApp::new(setup).await;
    let (kept, stop) = (app.app.clone(), app.app.process.shutdown.clone());
    // Boxed: the futures of whole tests are large.
    Box::pin(test(app)).await;
    stop.cancel();
    kept.process.background_tasks.close();
    kept.process.background_tasks.wait().await;
    kept.db.close().await;
}

/// How a test wants its app.
pub struct Setup {
    /// Environment names and values, besides those that all tests have.
    pub settings: Vec<(&'static str, String)>,
    /// The jobs that its runner knows.
    pub registry: fn(&App) -> JobRegistry,
    /// The model, if it is not the one that the settings name.
    pub llm: Option<Arc<dyn Llm>>,
    /// Another app's database, to be a second process on it.
    pub database: Option<PgConnectOptions>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { settings: Vec::new(), registry: features::job_registry, llm: None, database: None }
    }
}

impl Setup {
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }
}

/// An app with a database of its own and objects in memory.
pub struct TestApp {
    pub app: App,
    pub blobs: Arc<MemoryBlobs>,
    pub database: PgConnectOptions,
    registry: fn(&App) -> JobRegistry,
    folder: Arc<TempDir>,
    _writer: JoinSet<anyhow::Result<()>>,
}

impl TestApp {
    pub async fn new(setup: Setup) -> Self {
        let blobs = Arc::new(MemoryBlobs::default());
        Self::with_blobs(setup, Arc::clone(&blobs) as Arc<dyn BlobStore>, blobs).await
    }

    async fn with_blobs(setup: Setup, store: Arc<dyn BlobStore>, blobs: Arc<MemoryBlobs>) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let database = match setup.database {
            Some(database) => database,
            None => postgres::new_database().await,
        };
        let app = build_app(config(&setup.settings), database.clone(), store, folder.path(), setup.llm);
        let mut writer = JoinSet::new();
        writer.spawn(acontextd::messages::writer::run(app.messages.clone()));
        Self { app, blobs, database, registry: setup.registry, folder, _writer: writer }
    }

    /// A second app on the same database and objects, as another process would be.
    pub async fn twin(&self, setup: Setup) -> Self {
        let setup = Setup { database: Some(self.database.clone()), ..setup };
        Self::with_blobs(setup, Arc::clone(&self.blobs) as Arc<dyn BlobStore>, Arc::clone(&self.blobs)).await
    }

    /// A client without a key.
    pub fn client(&self) -> Client {
        Client::new(features::router(&self.app).unwrap(), None)
    }

    /// A client of a new project.
    pub async fn project(&self) -> Client {
        let (key, text) = ProjectKey::generate(PEPPER).unwrap();
        let project = self.insert_project(&key, "not checked").await;
        Client::new(features::router(&self.app).unwrap(), Some((project, format!("sk-ac-{}", *text))))
    }

    /// A client of a new project, with an old-style key.
    pub async fn old_style_project(&self) -> Client {
        let secret = Uuid::new_v4().to_string();
        let project = self.insert_project(&ProjectKey::parse(&secret), "not checked").await;
        Client::new(features::router(&self.app).unwrap(), Some((project, format!("sk-ac-{secret}"))))
    }

    /// Puts a project into the database, as operators and other programs do.
    pub async fn insert_project(&self, key: &ProjectKey, phc: &str) -> Uuid {
        sqlx::query_scalar(
            "insert into projects (secret_key_hmac, secret_key_hash_phc, configs) values ($1, $2, $3) returning id",
        )
        .bind(key.lookup(PEPPER))
        .bind(phc)
        .bind(json!({}))
        .fetch_one(&*self.app.db)
        .await
        .unwrap()
    }

    /// A client with the operator's token.
    pub fn admin(&self) -> Client {
        Client::new(features::router(&self.app).unwrap(), Some((Uuid::nil(), ADMIN.to_owned())))
    }

    /// How many uploads lie in files now.
    pub fn spooled(&self) -> usize {
        let folders = std::fs::read_dir(self.folder.path().join("tmp")).unwrap().flatten();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten());
        files.filter(|file| file.file_name() != "lock").count()
    }

    /// What one value in the database is now.
    pub async fn value<T>(&self, sql: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(sql).fetch_one(&*self.app.db).await.unwrap()
    }

    pub async fn execute(&self, sql: &'static str) {
        sqlx::query(sql).execute(&*self.app.db).await.unwrap();
    }

    /// The tables that contain a text somewhere, as it is or in hex.
    pub async fn find(&self, text: &str) -> Vec<String> {
        let forms = [text.to_owned(), hex::encode(text)];
        let mut found = Vec::new();
        for table in self.tables().await {
            let rows = format!("select count(*) from \"{table}\" t where t::text like any($1)");
            let patterns: Vec<String> = forms.iter().map(|form| format!("%{form}%")).collect();
            let count: i64 = sqlx::query_scalar(&rows).bind(patterns).fetch_one(&*self.app.db).await.unwrap();
            if count > 0 {
                found.push(table);
            }
        }
        found
    }

    async fn tables(&self) -> Vec<String> {
        let tables =
            "select tablename::text from pg_tables where schemaname = 'public' and tablename <> '_sqlx_migrations'";
        sqlx::query_scalar(tables).fetch_all(&*self.app.db).await.unwrap()
    }

    /// What is in every table but that of the keys, hashed. Waits until no job runs.
    pub async fn state(&self) -> BTreeMap<String, String> {
        eventually("no job runs", async || {
            self.value::<i64>("select count(*) from jobs where state = 'running' or run_at <= now()").await == 0
        })
        .await;
        let mut state = BTreeMap::new();
        for table in self.tables().await.into_iter().filter(|table| table != "idempotency_records") {
            let rows =
                format!("select coalesce(md5(string_agg(t::text, ',' order by t::text)), '') from \"{table}\" t");
            let rows: String = sqlx::query_scalar(&rows).fetch_one(&*self.app.db).await.unwrap();
            state.insert(table, rows);
        }
        state
    }

    /// The runner of this app.
    pub fn runner(&self) -> Arc<runner::Runner> {
        features::runner(&self.app, (self.registry)(&self.app))
    }

    /// Runs jobs until the app stops.
    pub async fn run_jobs(&self) -> anyhow::Result<()> {
        runner::run(self.runner()).await
    }

    /// Receives notifications until the app stops.
    pub async fn listen(&self) -> anyhow::Result<()> {
        notify::listen(self.app.db.clone(), features::notification_handlers(&self.app)).await
    }

    /// Removes every key from the cache.
    pub fn forget_keys(&self) {
        self.app.authenticator.on_reconnect();
    }

    /// Runs the queue of this app until nothing is due.
    pub async fn drain_jobs(&self) {
        tokio::select! {
            ended = self.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = self.until_idle() => {}
        }
    }

    /// Waits until no job is due, and none runs.
    pub async fn until_idle(&self) {
        eventually("the queue is empty", async || {
            self.value::<i64>("select count(*) from jobs where state <> 'failed' and run_at <= now()").await == 0
        })
        .await;
    }
}

fn build_app(
    config: Config,
    database: PgConnectOptions,
    blob_store: Arc<dyn BlobStore>,
    dir: &Path,
    llm: Option<Arc<dyn Llm>>,
) -> App {
    let (pooler, spool) = (PoolerCheck::default(), SpoolDir::open(dir).unwrap());
    let dependencies = PlatformDependencies { config, database, pooler, blob_store, spool, port: 8029 };
    let platform = Platform::new(dependencies).unwrap();
    match llm {
        Some(llm) => App::with_llm(platform, llm),
        None => App::new(platform),
    }
}

/// The API's description.
pub fn document() -> OpenApi {
    let build = async {
        let dir = tempfile::tempdir().unwrap();
        // The pools of this app connect to nothing, but want a runtime.
        let database = PgConnectOptions::new_without_pgpass();
        features::document(&build_app(config(&[]), database, Arc::new(MemoryBlobs::default()), dir.path(), None))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // A test may have a runtime of its own, and one must not wait inside another.
    std::thread::spawn(move || runtime.block_on(build)).join().unwrap()
}

/// The settings of a test's app.
pub fn config(settings: &[(&'static str, String)]) -> Config {
    let mut environment = HashMap::from([
        ("ROOT_SECRET_PEPPER".into(), PEPPER.into()),
        ("ADMIN_API_TOKEN".into(), ADMIN.into()),
        ("ENABLE_ARGON2_VERIFICATION".into(), "false".into()),
        // Few tests have a runner.
        ("ACONTEXTD_CONVERSION_WAIT".into(), "1ms".into()),
        ("ACONTEXTD_DATABASE_CONNECTIONS".into(), "20".into()),
    ]);
    environment.extend(settings.iter().map(|(name, value)| ((*name).into(), value.into())));
    Config::from_parts(["acontextd"], &environment).unwrap_or_else(|_| panic!("{settings:?} are no settings"))
}

/// Waits until something is so; fails after a while that is long for a machine at work.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "it never came about that {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
