//! Who is let in.

use acontextd::crypto::{KEY_PREFIX, ProjectKey};
use acontextd::features::ACCESS_RULES;
use axum::body::Body;
use axum::http::{Method, StatusCode};

use crate::support::{Client, PEPPER, Setup, document, eventually, run, run_with};

/// Every operation of the document, with something in place of its parameters.
fn operations() -> Vec<(Method, String, String)> {
    let document = serde_json::to_value(document()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let concrete = path
                .split('/')
                .map(|part| if part.starts_with('{') { "00000000-0000-4000-8000-000000000000" } else { part })
                .collect::<Vec<_>>()
                .join("/");
            operations.push((method.to_uppercase().parse().unwrap(), path.clone(), concrete));
        }
    }
    operations
}

#[tokio::test]
async fn every_route_but_the_open_ones_wants_a_key() {
    run(async |app| {
        let client = app.client();
        let wrong = client.with_key("sk-ac-of-nobody");
        let mut closed = 0;
        for (method, path, concrete) in operations() {
            for client in [&client, &wrong] {
                let answer = client.send(client.request(method.clone(), &concrete).body(Body::empty()).unwrap()).await;
                if ACCESS_RULES.public.contains(&path.as_str()) {
                    assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
                } else {
                    answer.assert_refused(401, "Unauthorized");
                    closed += 1;
                }
            }
        }
        assert!(closed > 20, "only {closed} closed operations were found");
    })
    .await;
}

#[tokio::test]
async fn only_a_well_formed_header_with_a_known_key_opens() {
    run(async |app| {
        let client = app.project().await;
        let key = client.key().to_owned();
        let secret = key.strip_prefix("sk-ac-").unwrap();
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
        for header in [
            String::new(),
            key.clone(),
            format!("bearer {key}"),
            format!("Bearer  {key}"),
            format!("Bearer {key} "),
            format!("Bearer {secret}"),
            "Bearer sk-ac-".into(),
            format!("Basic {key}"),
            format!("Bearer {key}x"),
        ] {
            let answer = app.client().get_with("/api/v1/ping", "authorization", &header).await;
            answer.assert_refused(401, "Unauthorized");
        }
    })
    .await;
}

#[tokio::test]
async fn a_compact_key_opens_and_a_damaged_one_does_not() {
    run(async |app| {
        let (key, body) = ProjectKey::generate(PEPPER).unwrap();
        app.insert_project(&key, "not checked").await;
        let client = app.client();
        assert_eq!(client.with_key(&format!("sk-ac-{}", *body)).get("/api/v1/ping").await.status, StatusCode::OK);
        let mut damaged = body.to_string();
        let other = if damaged.ends_with('A') { "B" } else { "A" };
        damaged.replace_range(70..71, if damaged[70..71] == *other { "C" } else { other });
        let answer = client.with_key(&format!("sk-ac-{damaged}")).get("/api/v1/ping").await;
        answer.assert_refused(401, "invalid API key: failed to unwrap compact token");
    })
    .await;
}

#[tokio::test]
async fn a_warm_key_asks_the_database_nothing() {
    run(async |app| {
        let client = app.project().await;
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
        app.app.db.close().await;
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
        client.with_key("sk-ac-cold").get("/api/v1/ping").await.assert_refused(503, "database");
    })
    .await;
}

#[tokio::test]
async fn a_changed_or_deleted_project_is_forgotten_by_every_process() {
    run(async |app| {
        let twin = app.twin(Setup::default()).await;
        let [changed, deleted, other] = [app.project().await, app.project().await, app.project().await];
        let at_twin = |key: &str| twin.client().with_key(key);
        for client in [&changed, &deleted, &other] {
            // Once to be remembered, once from memory.
            assert_eq!(at_twin(client.key()).get("/api/v1/ping").await.status, StatusCode::OK);
        }
        let listening = twin.listen();
        let told = async {
            sqlx::query("update projects set secret_key_hmac = 'another' where id = $1")
                .bind(changed.project())
                .execute(&*app.app.db)
                .await
                .unwrap();
            sqlx::query("delete from projects where id = $1")
                .bind(deleted.project())
                .execute(&*app.app.db)
                .await
                .unwrap();
            for client in [&changed, &deleted] {
                eventually("the key is refused", async || {
                    at_twin(client.key()).get("/api/v1/ping").await.status == StatusCode::UNAUTHORIZED
                })
                .await;
            }
            assert_eq!(at_twin(other.key()).get("/api/v1/ping").await.status, StatusCode::OK);
        };
        tokio::select! {
            ended = listening => panic!("it stopped listening: {ended:?}"),
            () = told => {}
        }
    })
    .await;
}

#[tokio::test]
async fn losing_the_connection_that_changes_are_heard_on_forgets_every_key() {
    run(async |app| {
        let [client, told] = [app.project().await, app.project().await];
        let listening = app.listen();
        let lost = async {
            let status = async |client: &Client| client.get("/api/v1/ping").await.status;
            // It begins with forgetting all; word of a change is heard after that.
            eventually("it listens", async || {
                assert!([200, 401].contains(&status(&told).await.as_u16()));
                let change = sqlx::query("update projects set secret_key_hmac = 'told' where id = $1");
                change.bind(told.project()).execute(&*app.app.db).await.unwrap();
                status(&told).await == StatusCode::UNAUTHORIZED
            })
            .await;
            // Changes that no process is notified of.
            app.execute("alter table projects disable trigger projects_changed").await;
            let set_lookup = async |lookup: &str| {
                let change = sqlx::query("update projects set secret_key_hmac = $2 where id = $1");
                change.bind(client.project()).bind(lookup).execute(&*app.app.db).await.unwrap();
            };
            let lookup = ProjectKey::parse(client.key().strip_prefix(KEY_PREFIX).unwrap()).lookup(PEPPER);
            // A late notification of the changes above keeps a key that is verified meanwhile out of the cache.
            eventually("the key is cached", async || {
                set_lookup(&lookup).await;
                assert_eq!(status(&client).await, StatusCode::OK);
                set_lookup("another").await;
                status(&client).await == StatusCode::OK
            })
            .await;
            app.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query ilike 'listen%'").await;
            eventually("the key is refused", async || status(&client).await == StatusCode::UNAUTHORIZED).await;
        };
        tokio::select! {
            ended = listening => panic!("it stopped listening: {ended:?}"),
            () = lost => {}
        }
    })
    .await;
}

#[tokio::test]
async fn the_stored_hash_is_checked_where_that_is_wanted() {
    let setup = Setup::default().with("ENABLE_ARGON2_VERIFICATION", "true");
    run_with(setup, async |app| {
        let good = ProjectKey::parse("good");
        app.insert_project(&good, &good.hash(PEPPER).unwrap()).await;
        app.insert_project(&ProjectKey::parse("bad"), &good.hash(PEPPER).unwrap()).await;
        app.insert_project(&ProjectKey::parse("none"), "not checked").await;
        let status = async |key: &str| app.client().with_key(key).get("/api/v1/ping").await.status.as_u16();
        assert_eq!(status("sk-ac-good").await, 200);
        assert_eq!(status("sk-ac-bad").await, 401);
        assert_eq!(status("sk-ac-none").await, 401);
    })
    .await;
}
