//! One embedded Postgres for the whole run, which the module of the server starts, and a database for each test, which
//! is created from a template.

use std::path::PathBuf;

use acontextd::db::Db;
use acontextd::db::pooler::PoolerCheck;
use acontextd::embedded::postgres::{EmbeddedPostgres, PostgresOptions};
use acontextd::process::Process;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::OnceCell;
use uuid::Uuid;

static POSTGRES: OnceCell<EmbeddedPostgres> = OnceCell::const_new();
const TEMPLATE: &str = "template_of_tests";

async fn start_postgres() -> EmbeddedPostgres {
    let dir = create_data_dir();
    let options = PostgresOptions { max_connections: 500, fsync: false, ..PostgresOptions::default() };
    let postgres = EmbeddedPostgres::start(&dir, None, options).await.unwrap();
    let mut conn = postgres.options().connect().await.unwrap();
    sqlx::query(&format!("create database {TEMPLATE}")).execute(&mut conn).await.unwrap();
    let (options, process) = (postgres.options().database(TEMPLATE), Process::default());
    let db = Db::new(options, 2, PoolerCheck::default(), process);
    acontextd::db::migrations::migrate(&db).await.unwrap();
    db.close().await;
    conn.close().await.unwrap();
    postgres
}

/// Creates a data directory that the user `postgres` can access, wherever the project is stored. Its name contains the
/// id of this process. Directories of processes that no longer exist are removed.
fn create_data_dir() -> PathBuf {
    const PREFIX: &str = "acontextd-tests-";
    let root = std::env::temp_dir();
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(PREFIX) else { continue };
        if !std::path::Path::new("/proc").join(process).exists() {
            // A separate thread, because this takes long. Errors are ignored, because another run may remove the same
            // directory.
            std::thread::spawn(move || std::fs::remove_dir_all(entry.path()));
        }
    }
    let dir = root.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Creates a database with all migrations.
pub async fn new_database() -> PgConnectOptions {
    let postgres = POSTGRES.get_or_init(start_postgres).await;
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut conn = postgres.options().database("postgres").connect().await.unwrap();
    let create = format!("create database {name} template {TEMPLATE}");
    // This fails while another test copies the template.
    while sqlx::query(&create).execute(&mut conn).await.is_err() {
        tokio::task::yield_now().await;
    }
    conn.close().await.unwrap();
    postgres.options().database(&name)
}

/// Returns the URL with which another program connects to a database.
pub fn database_url(database: &PgConnectOptions) -> String {
    let socket = database.get_socket().expect("a database of this Postgres").display().to_string();
    let name = database.get_database().expect("a database of this Postgres");
    format!("postgres://{}@localhost/{name}?host={socket}", database.get_username())
}
