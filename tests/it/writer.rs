//! The task that stores messages many at a time, where the database makes trouble.

use std::time::Duration;

use acontextd::conversation::format::Format;
use acontextd::conversation::parts::Role;
use acontextd::ids::{MessageId, ProjectId, SessionId};
use acontextd::messages::new_message::NewMessage;
use acontextd::messages::store;
use axum::http::StatusCode;
use serde_json::{Map, json};
use uuid::Uuid;

use crate::support::{TestApp, eventually, run};

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
        pending_calls: None,
        job_key: None,
        buffer_turns: None,
    }
}

/// Whether a message waits for a lock: with the writer, or alone for its session.
async fn writer_waits(app: &TestApp) -> bool {
    app.value::<i64>(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock'
           and (query like 'with wanted as%' or query like 'select last_message_at from sessions%')",
    )
    .await
        > 0
}

#[tokio::test]
async fn messages_of_many_projects_are_stored_together_and_strangers_left_out() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (one, other) = (client.new_session().await, stranger.new_session().await);
        let mine = |session: &str, text: &str| message(client.project(), session, text);
        let new = [
            mine(&one, "first"),
            mine(&other, "into another project's session"),
            message(stranger.project(), &other, "theirs"),
            mine(&SessionId::new().to_string(), "into no session"),
            mine(&one, "second"),
        ];
        let mut conn = app.app.db.acquire().await.unwrap();
        let stored = store::insert(&mut conn, &new, (&app.app.config.learning).into()).await.unwrap();
        let there: Vec<bool> = stored.iter().map(Option::is_some).collect();
        assert_eq!(there, [true, false, true, false, true]);
        let (first, second) = (stored[0].as_ref().unwrap(), stored[4].as_ref().unwrap());
        assert_eq!((first.parent, second.parent), (None, Some(new[0].id)));
        assert!(second.created_at > first.created_at);
        assert_eq!(stored[2].as_ref().unwrap().parent, None);
        assert_eq!(client.messages(&one, "").await["ids"], json!([new[0].id, new[4].id]));
        assert_eq!(stranger.messages(&other, "").await["ids"], json!([new[2].id]));
        // The clock may go back; times rise nevertheless.
        app.execute("update sessions set last_message_at = now() + interval '1 day'").await;
        client.say_text(&one, "third").await;
        client.say_text(&one, "fourth").await;
        let page = client.messages(&one, "format=acontext").await;
        let rises = "select bool_and(time > before) from (select created_at as time, lag(created_at) over
                     (partition by session_id order by id) as before from messages) t where before is not null";
        assert!(app.value::<bool>(rises).await);
        assert_eq!(page["items"][3]["parent_id"], page["items"][2]["id"]);
    })
    .await;
}

#[tokio::test]
async fn a_bad_message_fails_alone() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        // Everything gathers while the table is locked, so that it comes in one batch.
        let mut lock = app.app.db.begin().await.unwrap();
        sqlx::query("lock table messages in access exclusive mode").execute(&mut *lock).await.unwrap();
        let store = |n: usize| {
            let mut new = message(client.project(), &session, &format!("m{n}"));
            if n == 7 {
                // What no request can bring this far.
                new.user_meta.insert("nul".into(), "\u{0}".into());
            }
            let writer = &app.app.messages.writer;
            async move { writer.store(new).await.map(|stored| stored.is_some()) }
        };
        let all = futures_util::future::join_all((0..16).map(store));
        let release = async {
            eventually("the writer waits", async || writer_waits(&app).await).await;
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
async fn a_lost_connection_loses_and_doubles_nothing() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.say_text(&session, "before").await;
        let mut lock = app.app.db.begin().await.unwrap();
        sqlx::query("lock table messages in access exclusive mode").execute(&mut *lock).await.unwrap();
        let said = futures_util::future::join_all((0..5).map(|n| {
            let (client, session) = (client.clone(), session.clone());
            async move { client.say_text(&session, &format!("m{n}")).await }
        }));
        let cut = async {
            eventually("the writer waits", async || writer_waits(&app).await).await;
            app.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and query like 'with wanted as%' and wait_event_type = 'Lock'",
            )
            .await;
            lock.commit().await.unwrap();
        };
        let (said, ()) = tokio::join!(said, cut);
        let page = client.messages(&session, "").await;
        let ids = page["ids"].as_array().unwrap();
        assert_eq!(ids.len(), 6);
        assert!(said.iter().all(|id| ids.contains(&json!(id))));
    })
    .await;
}

#[tokio::test]
async fn what_was_committed_is_found_again_by_its_id() {
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
        assert!(again.iter().all(Option::is_some), "stored is stored");
        for (stored, found) in stored.iter().zip(&found) {
            let (stored, found) = (stored.as_ref().unwrap(), found.as_ref().unwrap());
            assert_eq!((stored.parent, stored.created_at), (found.parent, found.created_at));
            assert_eq!(stored.status, found.status);
        }
    })
    .await;
}

#[tokio::test]
async fn a_statement_that_outlived_its_connection_counts() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let new = message(client.project(), &session, "once");
        let mut conn = app.app.db.acquire().await.unwrap();
        store::insert(&mut conn, std::slice::from_ref(&new), (&app.app.config.learning).into()).await.unwrap();
        // The writer has not heard of that, and stores the same message.
        let again = app.app.messages.writer.store(new).await.unwrap();
        assert!(again.is_some());
        assert_eq!(client.messages(&session, "").await["ids"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_held_up_holds_up_no_other() {
    run(async |app| {
        let client = app.project().await;
        let (held, free) = (client.new_session().await, client.new_session().await);
        let mut lock = app.app.db.begin().await.unwrap();
        sqlx::query("select 1 from sessions where id = $1 for update")
            .bind(held.parse::<Uuid>().unwrap())
            .execute(&mut *lock)
            .await
            .unwrap();
        let waiting = client.say_text(&held, "waits");
        let going_on = async {
            eventually("one waits", async || writer_waits(&app).await).await;
            for n in 0..20 {
                client.say_text(&free, &format!("m{n}")).await;
            }
            lock.commit().await.unwrap();
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(waiting, going_on) }).await;
        assert!(in_time.is_ok());
        assert_eq!(client.messages(&held, "").await["ids"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn after_its_end_a_store_is_refused_and_not_lost_in_silence() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.say_text(&session, "stored").await;
        app.app.messages.writer.close();
        let late = client.say(&session, "openai", json!({"role": "user", "content": "late"})).await;
        assert_eq!(late.status, StatusCode::SERVICE_UNAVAILABLE, "{}", late.text());
    })
    .await;
}
