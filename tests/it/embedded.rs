//! The embedded Postgres: creation, restart, unexpected exits and errors at startup.

use std::time::{Duration, Instant};

use acontextd::embedded::postgres::{EmbeddedPostgres, PostgresOptions};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{ConnectOptions, Connection};

use crate::support::server_process::data_dir;

const FAST_OPTIONS: PostgresOptions =
    PostgresOptions { max_connections: 20, fsync: false, stop_timeout: Duration::from_millis(500) };

async fn fetch_number(postgres: &EmbeddedPostgres, sql: &'static str) -> i64 {
    let mut conn = postgres.options().connect().await.unwrap();
    let number = sqlx::query_scalar(sql).fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    number
}

async fn execute(postgres: &EmbeddedPostgres, sql: &'static str) {
    let mut conn = postgres.options().connect().await.unwrap();
    sqlx::query(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn the_cluster_is_created_once_and_listens_on_no_port() {
    let dir = data_dir();
    let first = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    execute(&first, "create table numbers as select 7::bigint as n").await;
    assert_eq!(
        fetch_number(&first, "select count(*) from pg_settings where name = 'listen_addresses' and setting = ''").await,
        1
    );
    first.stop().await.unwrap();
    let second = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    assert_eq!(fetch_number(&second, "select n from numbers").await, 7);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn an_orphaned_postgres_is_killed_even_if_it_does_not_react() {
    let dir = data_dir();
    let orphaned = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    execute(&orphaned, "create table numbers as select 7::bigint as n").await;
    let pid: i32 = std::fs::read_to_string(dir.path().join("postgres/data/postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // A suspended process reacts to no signal except SIGKILL.
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let second = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    assert_eq!(fetch_number(&second, "select n from numbers").await, 7);
    assert!(orphaned.wait_for_exit().await.to_string().contains("signal: 9"));
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_lock_file_does_not_stop_an_unrelated_process() {
    let dir = data_dir();
    let first = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    first.stop().await.unwrap();
    let lock = dir.path().join("postgres/data/postmaster.pid");
    let mut bystander = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(&lock, format!("{}\n", bystander.id())).unwrap();
    let started = Instant::now();
    let result = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await;
    // Postgres itself may still treat the process as its own. The test requires only that the process was not stopped,
    // and that the start did not wait for it.
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(bystander.try_wait().unwrap().is_none(), "an unrelated process was stopped");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    if let Ok(postgres) = result {
        postgres.stop().await.unwrap();
    }
}

#[tokio::test]
async fn an_unexpected_exit_is_reported() {
    let dir = data_dir();
    let postgres = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    let pid = std::fs::read_to_string(dir.path().join("postgres/data/postmaster.pid")).unwrap();
    let pid = Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    kill_process(pid, Signal::QUIT).unwrap();
    let message = postgres.wait_for_exit().await.to_string();
    assert!(message.contains("exited unexpectedly"), "{message}");
}

#[tokio::test]
async fn startup_errors_name_their_cause() {
    let dir = data_dir();
    let error = |result: anyhow::Result<EmbeddedPostgres>| result.err().expect("an error").to_string();
    let without_binaries = EmbeddedPostgres::start(dir.path(), Some(dir.path()), FAST_OPTIONS).await;
    assert!(error(without_binaries).contains("ACONTEXTD_POSTGRES_BIN"));
    let first = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await.unwrap();
    first.stop().await.unwrap();
    std::fs::write(dir.path().join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let other_version = EmbeddedPostgres::start(dir.path(), None, FAST_OPTIONS).await;
    assert!(error(other_version).contains("created by Postgres 9"));
}
