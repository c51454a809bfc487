//! The message writer when statements fail, wait or lose their connection.

use std::time::Duration;

use acontextd::conversation::format::Format;
use acontextd::conversation::parts::Role;
use acontextd::ids::{MessageId, ProjectId, SessionId};
use acontextd::messages::new_message::NewMessage;
use acontextd::messages::store;
use axum::http::StatusCode;
use serde_json::{Map, json};
use uuid::Uuid;

use crate::support::{TestApp, run, wait_until};

fn message(project: Uuid, session: &str, text: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(),
        project: ProjectId(project),
        session: session.parse().unwrap(),
        role: Role::User,
        format: Format::OpenAi,
        content: json!({"role": "user", "content": text}).to_string().into(),
        tokens: 1,
        meta: Map::new(),
        user_meta: Map::new(),
        call_references: None,
        encrypted_kek: None,
        max_buffer_turns: None,
    }
}

/// Returns `true` if a statement that stores messages waits for a lock: the one of the writer, or the one that waits
/// for a single session.
async fn is_waiting_for_lock(app: &TestApp) -> bool {
    app.fetch_scalar::<i64>(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock'
           and (query like 'with locked_projects as%' or query like 'select last_message_at from sessions%')",
    )
    .await
        > 0
}

#[tokio::test]
async fn a_batch_stores_messages_only_in_sessions_of_their_project() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (one, other) = (client.new_session().await, stranger.new_session().await);
        let own_message = |session: &str, text: &str| message(client.project(), session, text);
        let new = [
            own_message(&one, "first"),
            own_message(&other, "into another project's session"),
            message(stranger.project(), &other, "in its own session"),
            own_message(&SessionId::new().to_string(), "into no session"),
            own_message(&one, "second"),
        ];
        let mut conn = app.app.db.acquire().await.unwrap();
        let stored = store::insert(&mut conn, &new, (&app.app.config.learning).into()).await.unwrap();
        let is_stored: Vec<bool> = stored.iter().map(Option::is_some).collect();
        assert_eq!(is_stored, [true, false, true, false, true]);
        let (first, second) = (stored[0].as_ref().unwrap(), stored[4].as_ref().unwrap());
        assert_eq!((first.parent, second.parent), (None, Some(new[0].id)));
        assert!(second.created_at > first.created_at);
        assert_eq!(stored[2].as_ref().unwrap().parent, None);
        assert_eq!(client.messages(&one, "").await["ids"], json!([new[0].id, new[4].id]));
        assert_eq!(stranger.messages(&other, "").await["ids"], json!([new[2].id]));
        // The times of messages increase even if the clock goes back.
        app.execute("update sessions set last_message_at = now() + interval '1 day'").await;
        client.store_text(&one, "third").await;
        client.store_text(&one, "fourth").await;
        let page = client.messages(&one, "format=acontext").await;
        let increases = "select bool_and(time > before) from (select created_at as time, lag(created_at) over
                     (partition by session_id order by id) as before from messages) t where before is not null";
        assert!(app.fetch_scalar::<bool>(increases).await);
        assert_eq!(page["items"][3]["parent_id"], page["items"][2]["id"]);
    })
    .await;
}

#[tokio::test]
async fn an_invalid_message_fails_alone() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        // While the table is locked, all messages collect in one batch.
        let mut lock = app.app.db.begin().await.unwrap();
        sqlx::query("lock table messages in access exclusive mode").execute(&mut *lock).await.unwrap();
        let store = |n: usize| {
            let mut new = message(client.project(), &session, &format!("m{n}"));
            if n == 7 {
                // Requests cannot contain this character, because it is rejected earlier.
                new.user_meta.insert("nul".into(), "\u{0}".into());
            }
            let writer = &app.app.messages.writer;
            async move { writer.store(new).await.map(|stored| stored.is_some()) }
        };
        let all = futures_util::future::join_all((0..16).map(store));
        let release = async {
            wait_until("the writer waits for the lock", async || is_waiting_for_lock(&app).await).await;
            lock.commit().await.unwrap();
        };
        let (all, ()) = tokio::join!(all, release);
        for (n, outcome) in all.iter().enumerate() {
            assert_eq!(outcome.as_ref().ok(), (n != 7).then_some(&true), "{n}: {outcome:?}");
        }
        assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 15);
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_loses_and_duplicates_nothing() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "before").await;
        let mut lock = app.app.db.begin().await.unwrap();
        sqlx::query("lock table messages in access exclusive mode").execute(&mut *lock).await.unwrap();
        let requests = futures_util::future::join_all((0..5).map(|n| {
            let (client, session) = (client.clone(), session.clone());
            async move { client.store_text(&session, &format!("m{n}")).await }
        }));
        let disconnect = async {
            wait_until("the writer waits for the lock", async || is_waiting_for_lock(&app).await).await;
            app.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'
                   and query like 'with locked_projects as%'",
            )
            .await;
            lock.commit().await.unwrap();
        };
        let (stored, ()) = tokio::join!(requests, disconnect);
        let page = client.messages(&session, "").await;
        let ids = page["ids"].as_array().unwrap();
        assert_eq!(ids.len(), 6);
        assert!(stored.iter().all(|id| ids.contains(&json!(id))));
    })
    .await;
}

#[tokio::test]
async fn committed_messages_are_found_by_their_ids() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let new = [message(client.project(), &session, "a"), message(client.project(), &session, "b")];
        let mut conn = app.app.db.acquire().await.unwrap();
        let ids: Vec<_> = new.iter().map(|message| message.id).collect();
        assert!(store::find_inserted(&mut conn, &ids).await.unwrap().iter().all(Option::is_none));
        let stored = store::insert(&mut conn, &new, (&app.app.config.learning).into()).await.unwrap();
        let found = store::find_inserted(&mut conn, &ids).await.unwrap();
        let again = store::insert_or_find(&mut conn, &new, (&app.app.config.learning).into()).await.unwrap();
        assert!(again.iter().all(Option::is_some), "stored messages are found");
        for (stored, found) in stored.iter().zip(&found) {
            let (stored, found) = (stored.as_ref().unwrap(), found.as_ref().unwrap());
            assert_eq!((stored.parent, stored.created_at), (found.parent, found.created_at));
            assert_eq!(stored.status, found.status);
        }
    })
    .await;
}

#[tokio::test]
async fn a_commit_after_a_lost_connection_is_not_repeated() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let new = message(client.project(), &session, "once");
        let mut conn = app.app.db.acquire().await.unwrap();
        store::insert(&mut conn, std::slice::from_ref(&new), (&app.app.config.learning).into()).await.unwrap();
        // The writer does not know of that commit and stores the same message.
        let again = app.app.messages.writer.store(new).await.unwrap();
        assert!(again.is_some());
        assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_locked_session_does_not_delay_others() {
    run(async |app| {
        let client = app.project().await;
        let (locked, other) = (client.new_session().await, client.new_session().await);
        let mut lock = app.app.db.begin().await.unwrap();
        sqlx::query("select 1 from sessions where id = $1 for update")
            .bind(locked.parse::<Uuid>().unwrap())
            .execute(&mut *lock)
            .await
            .unwrap();
        let waiting = client.store_text(&locked, "waiting");
        let store_others = async {
            wait_until("the message waits for the lock", async || is_waiting_for_lock(&app).await).await;
            for n in 0..20 {
                client.store_text(&other, &format!("m{n}")).await;
            }
            lock.commit().await.unwrap();
        };
        let in_time =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(waiting, store_others) }).await;
        assert!(in_time.is_ok());
        assert_eq!(client.messages(&locked, "").await["ids"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn messages_are_rejected_after_the_writer_has_closed() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "stored").await;
        app.app.messages.writer.close();
        let late = client.store_message(&session, "openai", json!({"role": "user", "content": "late"})).await;
        assert_eq!(late.status, StatusCode::SERVICE_UNAVAILABLE, "{}", late.text());
    })
    .await;
}
