//! One private Postgres for the whole run, started by the program's own module, and a database for each test from a template.

use std::path::PathBuf;

use acontextd::db::Db;
use acontextd::db::pooler::PoolerCheck;
use acontextd::embedded::postgres::{Postgres, Tuning};
use acontextd::process::Process;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::OnceCell;
use uuid::Uuid;

static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
const TEMPLATE: &str = "template_of_tests";

async fn start() -> Postgres {
    let folder = folder();
    let tuning = Tuning { max_connections: 500, fsync: false, ..Tuning::default() };
    let postgres = Postgres::start(&folder, None, tuning).await.unwrap();
    let mut conn = postgres.options().connect().await.unwrap();
    sqlx::query(&format!("create database {TEMPLATE}")).execute(&mut conn).await.unwrap();
    let (options, process) = (postgres.options().database(TEMPLATE), Process::default());
    let db = Db::new(options, 2, PoolerCheck::default(), process);
    acontextd::db::migrations::migrate(&db).await.unwrap();
    db.close().await;
    conn.close().await.unwrap();
    postgres
}

/// A folder that the user postgres can get to, wherever the project lies. It ends with the process that is named in it;
/// those of former runs are removed.
fn folder() -> PathBuf {
    const PREFIX: &str = "acontextd-tests-";
    let root = std::env::temp_dir();
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(PREFIX) else { continue };
        if !std::path::Path::new("/proc").join(process).exists() {
            // Beside the tests, as it takes long; and another run may be at it too.
            std::thread::spawn(move || std::fs::remove_dir_all(entry.path()));
        }
    }
    let folder = root.join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A new database with all migrations.
pub async fn new_database() -> PgConnectOptions {
    let postgres = POSTGRES.get_or_init(start).await;
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut conn = postgres.options().database("postgres").connect().await.unwrap();
    let create = format!("create database {name} template {TEMPLATE}");
    // Two of them at once can find the template in use.
    while sqlx::query(&create).execute(&mut conn).await.is_err() {
        tokio::task::yield_now().await;
    }
    conn.close().await.unwrap();
    postgres.options().database(&name)
}

/// How another program connects to one.
pub fn url_of(database: &PgConnectOptions) -> String {
    let socket = database.get_socket().expect("a database of this Postgres").display().to_string();
    let name = database.get_database().expect("a database of this Postgres");
    format!("postgres://{}@localhost/{name}?host={socket}", database.get_username())
}
