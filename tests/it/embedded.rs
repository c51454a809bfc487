//! The private Postgres: made once, kept, and never left to chance.

use std::time::{Duration, Instant};

use acontextd::embedded::postgres::{Postgres, Tuning};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{ConnectOptions, Connection};

use crate::support::program::data_folder;

const QUICK: Tuning = Tuning { max_connections: 20, fsync: false, patience: Duration::from_millis(500) };

async fn number(postgres: &Postgres, sql: &'static str) -> i64 {
    let mut conn = postgres.options().connect().await.unwrap();
    let number = sqlx::query_scalar(sql).fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    number
}

async fn execute(postgres: &Postgres, sql: &'static str) {
    let mut conn = postgres.options().connect().await.unwrap();
    sqlx::query(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn it_is_made_once_kept_and_listens_on_no_port() {
    let folder = data_folder();
    let first = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    execute(&first, "create table kept as select 7::bigint as n").await;
    assert_eq!(
        number(&first, "select count(*) from pg_settings where name = 'listen_addresses' and setting = ''").await,
        1
    );
    first.stop().await.unwrap();
    let second = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    assert_eq!(number(&second, "select n from kept").await, 7);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn one_that_was_left_behind_is_stopped_even_if_it_does_not_react() {
    let folder = data_folder();
    let left = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    execute(&left, "create table kept as select 7::bigint as n").await;
    let pid: i32 = std::fs::read_to_string(folder.path().join("postgres/data/postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // It hears no signal but the last one.
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let next = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    assert_eq!(number(&next, "select n from kept").await, 7);
    assert!(left.exited().await.to_string().contains("signal: 9"));
    next.stop().await.unwrap();
}

#[tokio::test]
async fn a_lock_file_that_names_another_process_is_no_reason_to_stop_that_one() {
    let folder = data_folder();
    let first = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    first.stop().await.unwrap();
    let lock = folder.path().join("postgres/data/postmaster.pid");
    let mut bystander = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(&lock, format!("{}\n", bystander.id())).unwrap();
    let began = Instant::now();
    let refused = Postgres::start(folder.path(), None, QUICK).await;
    // Postgres itself may still take the number for its own; what counts is that nobody was hurt and nobody waited.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(bystander.try_wait().unwrap().is_none(), "a bystander was stopped");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    if let Ok(postgres) = refused {
        postgres.stop().await.unwrap();
    }
}

#[tokio::test]
async fn one_that_ends_by_itself_is_noticed_with_its_last_words() {
    let folder = data_folder();
    let postgres = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    let pid = std::fs::read_to_string(folder.path().join("postgres/data/postmaster.pid")).unwrap();
    let pid = Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    kill_process(pid, Signal::QUIT).unwrap();
    let words = postgres.exited().await.to_string();
    assert!(words.contains("ended by itself"), "{words}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let folder = data_folder();
    let refusal = |outcome: anyhow::Result<Postgres>| outcome.err().expect("a refusal").to_string();
    let no_programs = Postgres::start(folder.path(), Some(folder.path()), QUICK).await;
    assert!(refusal(no_programs).contains("ACONTEXTD_POSTGRES_BIN"));
    let first = Postgres::start(folder.path(), None, QUICK).await.unwrap();
    first.stop().await.unwrap();
    std::fs::write(folder.path().join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let other_version = Postgres::start(folder.path(), None, QUICK).await;
    assert!(refusal(other_version).contains("made by Postgres 9"));
}
