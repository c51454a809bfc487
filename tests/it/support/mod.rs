//! Helpers that the integration tests share.

pub mod captured_log;
pub mod client;
pub mod fake_postgres;
pub mod fake_sandboxes;
pub mod llm;
pub mod memory;
pub mod mock_e2b;
pub mod mock_http;
pub mod model_server;
pub mod moto;
pub mod pgbouncer;
pub mod postgres;
pub mod s3;
pub mod samples;
pub mod server_process;
pub mod statements;
pub mod tcp_proxy;
pub mod zip;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use acontextd::blob::ObjectStore;
use acontextd::blob::spool::SpoolDir;
use acontextd::config::Config;
use acontextd::crypto::ProjectKey;
use acontextd::db::notify::{self, NotificationHandler};
use acontextd::db::pooler::PoolerCheck;
use acontextd::features::{self, App, ExternalServices};
use acontextd::jobs::{JobRegistry, runner};
use acontextd::llm::Llm;
use acontextd::platform::{Platform, PlatformDependencies};
use acontextd::sandboxes::provider::SandboxProvider;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::task::JoinSet;
use utoipa::openapi::OpenApi;
use uuid::Uuid;

pub use client::Client;
use fake_sandboxes::FakeSandboxes;
use memory::MemoryObjectStore;

pub const PEPPER: &str = "a pepper for tests";
pub const ADMIN: &str = "an admin token for tests";

/// Runs a test with its own app.
pub async fn run<F: Future<Output = ()>>(test: impl FnOnce(TestApp) -> F) {
    run_with(TestConfig::default(), test).await;
}

/// Runs a test with its own app and configuration.
pub async fn run_with<F: Future<Output = ()>>(config: TestConfig, test: impl FnOnce(TestApp) -> F) {
    let app = TestApp::new(config).await;
    let (app_handle, shutdown) = (app.app.clone(), app.app.process.shutdown.clone());
    // Boxed: the futures of whole tests are large.
    Box::pin(test(app)).await;
    shutdown.cancel();
    app_handle.process.background_tasks.close();
    app_handle.process.background_tasks.wait().await;
    app_handle.db.close().await;
}

/// The configuration of a test's app.
pub struct TestConfig {
    /// Environment variables in addition to those that all tests have.
    pub settings: Vec<(&'static str, String)>,
    /// The job registry of its runner.
    pub registry: fn(&App) -> JobRegistry,
    /// The model, if it differs from the one in the settings.
    pub llm: Option<Arc<dyn Llm>>,
    /// The provider of sandboxes. None of them runs commands by default.
    pub sandbox_provider: Arc<dyn SandboxProvider>,
    /// The database of another app, for a second process on it.
    pub database: Option<PgConnectOptions>,
}

impl Default for TestConfig {
    fn default() -> Self {
        let sandbox_provider = Arc::<FakeSandboxes>::default();
        Self { settings: Vec::new(), registry: features::job_registry, llm: None, sandbox_provider, database: None }
    }
}

impl TestConfig {
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }
}

/// An app with its own database and objects in memory.
pub struct TestApp {
    pub app: App,
    pub blobs: Arc<MemoryObjectStore>,
    pub database: PgConnectOptions,
    registry: fn(&App) -> JobRegistry,
    dir: Arc<TempDir>,
    _writer: JoinSet<anyhow::Result<()>>,
}

impl TestApp {
    pub async fn new(config: TestConfig) -> Self {
        let blobs = Arc::new(MemoryObjectStore::default());
        Self::with_blobs(config, Arc::clone(&blobs) as Arc<dyn ObjectStore>, blobs).await
    }

    async fn with_blobs(config: TestConfig, store: Arc<dyn ObjectStore>, blobs: Arc<MemoryObjectStore>) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let database = match config.database {
            Some(database) => database,
            None => postgres::new_database().await,
        };
        let app = build_app(
            app_config(&config.settings),
            database.clone(),
            store,
            dir.path(),
            config.llm,
            config.sandbox_provider,
        );
        let mut writer = JoinSet::new();
        writer.spawn(acontextd::messages::writer::run(app.messages.clone()));
        Self { app, blobs, database, registry: config.registry, dir, _writer: writer }
    }

    /// Starts a second app on the same database and objects, which stands in for another process.
    pub async fn second_process(&self, config: TestConfig) -> Self {
        let database = config.database.clone().or_else(|| Some(self.database.clone()));
        let config = TestConfig { database, ..config };
        Self::with_blobs(config, Arc::clone(&self.blobs) as Arc<dyn ObjectStore>, Arc::clone(&self.blobs)).await
    }

    /// Returns a client without a key.
    pub fn client(&self) -> Client {
        Client::new(features::router(&self.app).unwrap(), None)
    }

    /// Creates a project and returns a client for it.
    pub async fn project(&self) -> Client {
        let (key, text) = ProjectKey::generate(PEPPER).unwrap();
        let project = self.insert_project(&key, "not checked").await;
        Client::new(features::router(&self.app).unwrap(), Some((project, format!("sk-ac-{}", *text))))
    }

    /// Creates a project with a legacy key and returns a client for it.
    pub async fn legacy_key_project(&self) -> Client {
        let secret = Uuid::new_v4().to_string();
        let project = self.insert_project(&ProjectKey::parse(&secret), "not checked").await;
        Client::new(features::router(&self.app).unwrap(), Some((project, format!("sk-ac-{secret}"))))
    }

    /// Inserts a project into the database directly, as other programs do.
    pub async fn insert_project(&self, key: &ProjectKey, phc: &str) -> Uuid {
        sqlx::query_scalar(
            "insert into projects (secret_key_hmac, secret_key_hash_phc, configs) values ($1, $2, $3) returning id",
        )
        .bind(key.lookup_hash(PEPPER))
        .bind(phc)
        .bind(json!({}))
        .fetch_one(&*self.app.db)
        .await
        .unwrap()
    }

    /// Returns a client with the admin token.
    pub fn admin(&self) -> Client {
        Client::new(features::router(&self.app).unwrap(), Some((Uuid::nil(), ADMIN.to_owned())))
    }

    /// Returns the number of uploads that are spooled to files.
    pub fn spooled_files(&self) -> usize {
        let dirs = std::fs::read_dir(self.dir.path().join("tmp")).unwrap().flatten();
        let files = dirs.flat_map(|dir| std::fs::read_dir(dir.path()).unwrap().flatten());
        files.filter(|file| file.file_name() != "lock").count()
    }

    /// Returns the value of a query with one row and one column.
    pub async fn fetch_scalar<T>(&self, sql: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(sql).fetch_one(&*self.app.db).await.unwrap()
    }

    pub async fn execute(&self, sql: &'static str) {
        sqlx::query(sql).execute(&*self.app.db).await.unwrap();
    }

    /// Returns the tables that contain a text in any column, literally or in hex.
    pub async fn tables_containing(&self, text: &str) -> Vec<String> {
        let encodings = [text.to_owned(), hex::encode(text)];
        let mut tables = Vec::new();
        for table in self.tables().await {
            let rows = format!("select count(*) from \"{table}\" t where t::text like any($1)");
            let patterns: Vec<String> = encodings.iter().map(|encoding| format!("%{encoding}%")).collect();
            let count: i64 = sqlx::query_scalar(&rows).bind(patterns).fetch_one(&*self.app.db).await.unwrap();
            if count > 0 {
                tables.push(table);
            }
        }
        tables
    }

    async fn tables(&self) -> Vec<String> {
        let tables =
            "select tablename::text from pg_tables where schemaname = 'public' and tablename <> '_sqlx_migrations'";
        sqlx::query_scalar(tables).fetch_all(&*self.app.db).await.unwrap()
    }

    /// Returns a hash of the rows of every table except `idempotency_records`. Waits until no job is due or running.
    pub async fn state(&self) -> BTreeMap<String, String> {
        wait_until("no job is due or running", async || {
            let unfinished = "select count(*) from jobs where state = 'running' or state = 'ready' and run_at <= now()";
            self.fetch_scalar::<i64>(unfinished).await == 0
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

    /// Returns the job runner of this app.
    pub fn runner(&self) -> Arc<runner::Runner> {
        features::runner(&self.app, (self.registry)(&self.app))
    }

    /// Runs jobs until the app shuts down.
    pub async fn run_jobs(&self) -> anyhow::Result<()> {
        runner::run(self.runner()).await
    }

    /// Receives notifications until the app shuts down.
    pub async fn listen(&self) -> anyhow::Result<()> {
        notify::listen(self.app.db.clone(), features::notification_handlers(&self.app)).await
    }

    /// Replaces the key of a client's project with one that contains no master key, and returns a client with it.
    pub async fn replace_with_keyless(&self, client: &Client) -> Client {
        let secret = Uuid::new_v4().to_string();
        sqlx::query("update projects set secret_key_hmac = $1 where id = $2")
            .bind(ProjectKey::parse(&secret).lookup_hash(PEPPER))
            .bind(client.project())
            .execute(&*self.app.db)
            .await
            .unwrap();
        self.clear_key_cache();
        client.with_key(&format!("sk-ac-{secret}"))
    }

    /// Removes every key from the cache.
    pub fn clear_key_cache(&self) {
        self.app.authenticator.on_connection_change();
    }

    /// Runs the jobs of this app until none is due.
    pub async fn drain_jobs(&self) {
        tokio::select! {
            result = self.run_jobs() => panic!("the job runner ended: {result:?}"),
            () = self.until_idle() => {}
        }
    }

    /// Waits until no job is due or running.
    pub async fn until_idle(&self) {
        wait_until("no job is due or running", async || {
            self.fetch_scalar::<i64>("select count(*) from jobs where state <> 'failed' and run_at <= now()").await == 0
        })
        .await;
    }
}

fn build_app(
    config: Config,
    database_options: PgConnectOptions,
    object_store: Arc<dyn ObjectStore>,
    dir: &Path,
    llm: Option<Arc<dyn Llm>>,
    sandbox_provider: Arc<dyn SandboxProvider>,
) -> App {
    let (pooler_check, spool) = (PoolerCheck::default(), SpoolDir::open(dir).unwrap());
    let dependencies = PlatformDependencies { config, database_options, pooler_check, object_store, spool, port: 8029 };
    let platform = Platform::new(dependencies).unwrap();
    let mut services = ExternalServices::from_config(&platform).unwrap();
    services.sandbox_provider = Some(sandbox_provider);
    if let Some(llm) = llm {
        services.llm = llm;
    }
    App::with_services(platform, services)
}

/// Returns the API description.
pub fn document() -> OpenApi {
    let build = async {
        let dir = tempfile::tempdir().unwrap();
        // The pools of this app never connect, but require a runtime.
        let database = PgConnectOptions::new_without_pgpass();
        let object_store = Arc::new(MemoryObjectStore::default());
        features::openapi_document(&build_app(
            app_config(&[]),
            database,
            object_store,
            dir.path(),
            None,
            Arc::<FakeSandboxes>::default(),
        ))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // This is another thread, because a runtime cannot block inside another runtime.
    std::thread::spawn(move || runtime.block_on(build)).join().unwrap()
}

/// Returns the settings of a test's app.
pub fn app_config(settings: &[(&'static str, String)]) -> Config {
    let mut environment = HashMap::from([
        ("ROOT_SECRET_PEPPER".into(), PEPPER.into()),
        ("ADMIN_API_TOKEN".into(), ADMIN.into()),
        ("ENABLE_ARGON2_VERIFICATION".into(), "false".into()),
        // The wait is short, because few tests have a job runner.
        ("ACONTEXTD_CONVERSION_WAIT".into(), "1ms".into()),
        ("ACONTEXTD_DATABASE_CONNECTIONS".into(), "20".into()),
    ]);
    environment.extend(settings.iter().map(|(name, value)| ((*name).into(), value.into())));
    Config::from_args_and_env(["acontextd"], &environment)
        .unwrap_or_else(|_| panic!("{settings:?} are not valid settings"))
}

/// Polls a condition until it is true. Panics after 30 seconds, which is long even on a busy machine.
pub async fn wait_until(description: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "timed out waiting until {description}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
