//! Paging: the pages of a list contain every entry once, for any page size, direction and times.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::Client;
use crate::support::{TestApp, run};

/// Returns the disks on all pages of the client's list.
async fn list_all_pages(client: &Client, query: &str) -> Vec<Value> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/api/v1/disk?{query}&cursor={cursor}")).await;
        assert_eq!(page.status, StatusCode::OK, "{}", page.text());
        let page = page.data();
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        let next = page["next_cursor"].as_str();
        assert_eq!(page["has_more"], next.is_some());
        let Some(next) = next else { return items };
        next.clone_into(&mut cursor);
    }
}

/// Inserts disks, of which groups have equal times. A small pseudorandom generator chooses the times.
async fn insert_disks(app: &TestApp, project: Uuid, count: u64, seed: u64) -> Vec<(i64, Uuid)> {
    let mut rows = Vec::new();
    let mut state = seed;
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let micros = i64::try_from(state >> 60).unwrap();
        let id = Uuid::new_v4();
        sqlx::query(
            "insert into disks (id, project_id, created_at)
             values ($1, $2, to_timestamp(1700000000) + $3 * interval '1 microsecond')",
        )
        .bind(id)
        .bind(project)
        .bind(micros)
        .execute(&*app.app.db)
        .await
        .unwrap();
        rows.push((micros, id));
    }
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn pages_have_no_gaps_and_no_duplicates() {
    run(async |app| {
        for (seed, count) in [(1, 0), (2, 1), (3, 7), (4, 40), (5, 40)] {
            let (client, other) = (app.project().await, app.project().await);
            let rows = insert_disks(&app, client.project(), count, seed).await;
            insert_disks(&app, other.project(), 5, seed).await;
            let ids: Vec<String> = rows.iter().map(|(_, id)| id.to_string()).collect();
            for limit in [1, 2, 3, 7, 39, 40, 41, 200] {
                let ids_of = |items: Vec<Value>| {
                    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
                };
                let oldest_first = ids_of(list_all_pages(&client, &format!("limit={limit}")).await);
                assert_eq!(oldest_first, ids, "limit {limit}, seed {seed}");
                let mut newest_first = ids_of(list_all_pages(&client, &format!("limit={limit}&time_desc=true")).await);
                newest_first.reverse();
                assert_eq!(newest_first, ids, "limit {limit}, seed {seed}, newest first");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn entries_created_between_pages_cause_no_gap_or_duplicate() {
    run(async |app| {
        let client = app.project().await;
        let before = insert_disks(&app, client.project(), 20, 9).await;
        let first = client.get("/api/v1/disk?limit=10").await.data();
        client.new_disk().await;
        let cursor = first["next_cursor"].as_str().unwrap();
        let mut seen = BTreeSet::new();
        for item in first["items"].as_array().unwrap() {
            assert!(seen.insert(item["id"].to_string()));
        }
        let mut cursor = cursor.to_owned();
        loop {
            let page = client.get(&format!("/api/v1/disk?limit=4&cursor={cursor}")).await.data();
            for item in page["items"].as_array().unwrap() {
                assert!(seen.insert(item["id"].to_string()), "{item} is on two pages");
            }
            let Some(next) = page["next_cursor"].as_str() else { break };
            next.clone_into(&mut cursor);
        }
        assert_eq!(seen.len(), before.len() + 1);
    })
    .await;
}

#[tokio::test]
async fn a_cursor_is_a_position_and_not_bound_to_a_list() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        insert_disks(&app, client.project(), 5, 11).await;
        let cursor = client.get("/api/v1/disk?limit=2").await.data()["next_cursor"].clone();
        let elsewhere = other.get(&format!("/api/v1/disk?cursor={}", cursor.as_str().unwrap())).await;
        assert_eq!(elsewhere.data(), json!({"items": [], "has_more": false}));
    })
    .await;
}

#[tokio::test]
async fn invalid_paging_parameters_are_rejected_by_name() {
    run(async |app| {
        let client = app.project().await;
        for (query, name) in [
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit=201", "limit"),
            ("limit=abc", "limit"),
            ("limit=1.5", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("time_desc=maybe", "time_desc"),
            ("cursor=garbage", "cursor"),
            ("id=garbage", "id"),
            ("user=%00", "user"),
            ("user=%zz", "user"),
        ] {
            client.get(&format!("/api/v1/disk?{query}")).await.assert_error(400, name);
        }
    })
    .await;
}
