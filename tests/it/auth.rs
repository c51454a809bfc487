//! Authentication with project keys.

use std::time::{Duration, Instant};

use acontextd::auth::cache::KeyCacheTimes;
use acontextd::auth::keys::Authenticator;
use acontextd::crypto::{KEY_PREFIX, ProjectKey};
use acontextd::features::ACCESS_RULES;
use acontextd::ids::ProjectId;
use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode};
use futures_util::future::join_all;
use sqlx::{ConnectOptions, Connection};

use crate::support::tcp_proxy::TcpProxy;
use crate::support::{Client, PEPPER, TestApp, TestConfig, document, run, run_with, wait_until};

/// Returns the method and path of every operation of the API description, and its path with a UUID for each parameter.
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
async fn every_route_except_the_public_ones_requires_a_key() {
    run(async |app| {
        let client = app.client();
        let with_unknown_key = client.with_key("sk-ac-unknown");
        let mut protected = 0;
        for (method, path, concrete) in operations() {
            for client in [&client, &with_unknown_key] {
                let response =
                    client.send(client.request(method.clone(), &concrete).body(Body::empty()).unwrap()).await;
                if ACCESS_RULES.public.contains(&path.as_str()) {
                    assert_ne!(response.status, StatusCode::UNAUTHORIZED, "{method} {path}");
                } else {
                    response.assert_error(401, "Unauthorized");
                    protected += 1;
                }
            }
        }
        assert!(protected > 20, "only {protected} protected operations were found");
    })
    .await;
}

#[tokio::test]
async fn only_a_well_formed_header_with_a_known_key_is_accepted() {
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
            let response = app.client().get_with("/api/v1/ping", "authorization", &header).await;
            response.assert_error(401, "Unauthorized");
        }
    })
    .await;
}

#[tokio::test]
async fn a_compact_key_is_accepted_and_a_corrupt_one_is_rejected() {
    run(async |app| {
        let (key, body) = ProjectKey::generate(PEPPER).unwrap();
        app.insert_project(&key, "not checked").await;
        let client = app.client();
        assert_eq!(client.with_key(&format!("sk-ac-{}", *body)).get("/api/v1/ping").await.status, StatusCode::OK);
        let mut corrupt = body.to_string();
        let replacement = if corrupt.ends_with('A') { "B" } else { "A" };
        corrupt.replace_range(70..71, if corrupt[70..71] == *replacement { "C" } else { replacement });
        let response = client.with_key(&format!("sk-ac-{corrupt}")).get("/api/v1/ping").await;
        response.assert_error(401, "invalid API key: failed to unwrap compact token");
    })
    .await;
}

#[tokio::test]
async fn a_cached_key_requires_no_database_query() {
    run(async |app| {
        let client = app.project().await;
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
        app.app.db.close().await;
        assert_eq!(client.get("/api/v1/ping").await.status, StatusCode::OK);
        client.with_key("sk-ac-not-cached").get("/api/v1/ping").await.assert_error(503, "database");
    })
    .await;
}

#[tokio::test]
async fn changed_or_deleted_projects_leave_the_cache_of_all_processes() {
    run(async |app| {
        let second_process = app.second_process(TestConfig::default()).await;
        let [changed, deleted, other] = [app.project().await, app.project().await, app.project().await];
        let in_second_process = |key: &str| second_process.client().with_key(key);
        for client in [&changed, &deleted, &other] {
            // The request puts the key into the cache.
            assert_eq!(in_second_process(client.key()).get("/api/v1/ping").await.status, StatusCode::OK);
        }
        let listener = second_process.listen();
        let test = async {
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
                wait_until("the key is rejected", async || {
                    in_second_process(client.key()).get("/api/v1/ping").await.status == StatusCode::UNAUTHORIZED
                })
                .await;
            }
            assert_eq!(in_second_process(other.key()).get("/api/v1/ping").await.status, StatusCode::OK);
        };
        tokio::select! {
            ended = listener => panic!("the listener ended: {ended:?}"),
            () = test => {}
        }
    })
    .await;
}

/// Waits until `listening` receives notifications, and then until it has cached the key of `client`. While it waits, other
/// processes change projects.
async fn wait_until_cached(listening: &TestApp, client: &Client) {
    let status = async |client: &Client| listening.client().with_key(client.key()).get("/api/v1/ping").await.status;
    let set_lookup_hash = async |client: &Client, lookup_hash: &str| {
        let change = sqlx::query("update projects set secret_key_hmac = $2 where id = $1");
        change.bind(client.project()).bind(lookup_hash).execute(&*listening.app.db).await.unwrap();
    };
    // The listener first clears the cache, and receives notifications of changes only after that.
    let probe = listening.project().await;
    wait_until("the listener has started", async || {
        assert!([200, 401].contains(&status(&probe).await.as_u16()));
        set_lookup_hash(&probe, "changed").await;
        status(&probe).await == StatusCode::UNAUTHORIZED
    })
    .await;
    // Changes without a notification.
    listening.execute("alter table projects disable trigger projects_changed").await;
    let lookup_hash = ProjectKey::parse(client.key().strip_prefix(KEY_PREFIX).unwrap()).lookup_hash(PEPPER);
    // A late notification of the changes above keeps a key that is verified in the meantime out of the cache.
    wait_until("the key is cached", async || {
        set_lookup_hash(client, &lookup_hash).await;
        assert_eq!(status(client).await, StatusCode::OK);
        set_lookup_hash(client, "another").await;
        status(client).await == StatusCode::OK
    })
    .await;
}

/// A firewall that drops a connection sends no TCP reset, so that the process only sees silence.
#[tokio::test]
async fn a_notification_connection_that_is_lost_silently_is_replaced() {
    run(async |app| {
        let proxy = TcpProxy::start(&app.database).await;
        let config = TestConfig { database: Some(proxy.options()), ..TestConfig::default() };
        let second_process = app.second_process(config).await;
        let client = app.project().await;
        let test = async {
            wait_until_cached(&second_process, &client).await;
            proxy.lose_listeners();
            let lost_at = Instant::now();
            wait_until("the key is rejected", async || {
                let status = second_process.client().with_key(client.key()).get("/api/v1/ping").await.status;
                status == StatusCode::UNAUTHORIZED
            })
            .await;
            lost_at.elapsed()
        };
        // The bound is 5 seconds; the rest is for a busy machine. Without it, the cache keeps the key for a minute.
        tokio::select! {
            ended = second_process.listen() => panic!("the listener ended: {ended:?}"),
            elapsed = test => assert!(elapsed < Duration::from_secs(20), "{elapsed:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn the_listener_leaves_the_smallest_number_of_connections_to_requests() {
    run_with(TestConfig::default().with("ACONTEXTD_DATABASE_CONNECTIONS", "2"), async |app| {
        let client = app.project().await;
        let test = async {
            wait_until("the listener listens", async || {
                let listening = "select count(*) from pg_stat_activity
                                 where datname = current_database() and query like 'LISTEN%'";
                app.fetch_scalar::<i64>(listening).await == 1
            })
            .await;
            client.new_disk().await;
        };
        tokio::select! {
            ended = app.listen() => panic!("the listener ended: {ended:?}"),
            () = test => {}
        }
    })
    .await;
}

#[tokio::test]
async fn losing_the_notification_connection_clears_the_key_cache() {
    run(async |app| {
        let client = app.project().await;
        let listener = app.listen();
        let test = async {
            wait_until_cached(&app, &client).await;
            app.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and query ilike 'listen%'",
            )
            .await;
            wait_until("the key is rejected", async || {
                client.get("/api/v1/ping").await.status == StatusCode::UNAUTHORIZED
            })
            .await;
        };
        tokio::select! {
            ended = listener => panic!("the listener ended: {ended:?}"),
            () = test => {}
        }
    })
    .await;
}

#[tokio::test]
async fn the_stored_argon2_hash_is_checked_if_configured() {
    let config = TestConfig::default().with("ENABLE_ARGON2_VERIFICATION", "true");
    run_with(config, async |app| {
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

/// Locks the projects, so that checks of keys wait until the transaction ends.
async fn lock_projects(app: &TestApp) -> sqlx::PgConnection {
    let mut conn = app.database.connect().await.unwrap();
    sqlx::raw_sql("begin; lock table projects in access exclusive mode").execute(&mut conn).await.unwrap();
    conn
}

#[tokio::test]
async fn concurrent_requests_with_a_key_cause_one_check() {
    run(async |app| {
        let client = app.project().await;
        let conn = lock_projects(&app).await;
        let requests = join_all((0..50).map(|_| client.get("/api/v1/ping")));
        let unlock = async {
            let waiting = "select count(*) from pg_locks where relation = 'projects'::regclass and not granted \
                       and database = (select oid from pg_database where datname = current_database())";
            wait_until("a check waits", async || app.fetch_scalar::<i64>(waiting).await > 0).await;
            conn.close().await.unwrap();
        };
        let (responses, ()) = tokio::join!(requests, unlock);
        assert!(responses.iter().all(|response| response.status == StatusCode::OK));
        assert_eq!(app.app.authenticator.started_checks(), 1);
        // An unknown key is checked once by requests at the same time, and again later.
        let unknown = client.with_key("sk-ac-unknown");
        for response in join_all((0..50).map(|_| unknown.get("/api/v1/ping"))).await {
            response.assert_error(401, "Unauthorized");
        }
    })
    .await;
}

#[tokio::test]
async fn a_busy_key_is_checked_again_in_the_background() {
    run(async |app| {
        let client = app.project().await;
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {}", client.key()).parse().unwrap());
        let times = KeyCacheTimes { refresh_after: Duration::ZERO, max_age: Duration::from_hours(1) };
        let authenticator = Authenticator::new((*app.app).clone(), times);
        authenticator.authenticate(&headers).await.unwrap();
        assert_eq!(authenticator.started_checks(), 1);
        // The second check cannot complete, but requests do not wait for it.
        let conn = lock_projects(&app).await;
        for _ in 0..10 {
            authenticator.authenticate(&headers).await.unwrap();
            assert_eq!(authenticator.started_checks(), 2);
        }
        conn.close().await.unwrap();
        // This authenticator gets no notifications, so it learns of the deletion from a check only.
        app.execute("delete from projects").await;
        wait_until("the key is rejected", async || authenticator.authenticate(&headers).await.is_err()).await;
    })
    .await;
}

#[tokio::test]
async fn a_check_that_began_before_a_change_is_not_used_after_it() {
    run(async |app| {
        let client = app.project().await;
        let conn = lock_projects(&app).await;
        let waiting = "select count(*) from pg_locks where relation = 'projects'::regclass and not granted \
                       and database = (select oid from pg_database where datname = current_database())";
        let first = client.get("/api/v1/ping");
        let second = async {
            wait_until("the first check waits", async || app.fetch_scalar::<i64>(waiting).await == 1).await;
            app.app.authenticator.invalidate_project(ProjectId(client.project()));
            let second = client.get("/api/v1/ping");
            // The second request waits for the check of the first one when the check may complete.
            tokio::join!(second, async { conn.close().await.unwrap() }).0
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK));
        assert_eq!(app.app.authenticator.started_checks(), 2);
    })
    .await;
}

#[tokio::test]
async fn changes_of_other_projects_do_not_prevent_caching() {
    run(async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let conn = lock_projects(&app).await;
        let waiting = "select count(*) from pg_locks where relation = 'projects'::regclass and not granted \
                       and database = (select oid from pg_database where datname = current_database())";
        let change = async {
            wait_until("the check waits", async || app.fetch_scalar::<i64>(waiting).await == 1).await;
            app.app.authenticator.invalidate_project(ProjectId(other.project()));
            conn.close().await.unwrap();
        };
        let (response, ()) = tokio::join!(client.get("/api/v1/ping"), change);
        response.assert_status(200);
        app.app.db.close().await;
        client.get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}

#[tokio::test]
async fn a_check_that_waits_for_the_database_does_not_block_its_key() {
    run(async |app| {
        let client = app.project().await;
        let conn = lock_projects(&app).await;
        client.get("/api/v1/ping").await.assert_error(503, "database");
        conn.close().await.unwrap();
        client.get("/api/v1/ping").await.assert_status(200);
    })
    .await;
}
