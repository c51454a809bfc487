//! A database and a scripted model, which outlive the processes of the server.

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;

use crate::support::model_server::{Latch, ModelServer, Wire};
use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::{ADMIN, PEPPER, postgres, wait_until};

/// A text in each message, which the tasks do not contain.
pub const MARK: &str = "the-marked-words";
/// A marker in each message, which selects the script of the model.
pub const MARKER: &str = "[[S1]]";
/// The number of messages of a session. The last one makes the observation due.
pub const MESSAGES: usize = 3;
const OBSERVE_JOBS: &str = "select count(*) from jobs where kind = 'observe'";

/// A database and a scripted model, which outlive the processes of the server.
pub struct Deployment {
    pub model: ModelServer,
    database: PgConnectOptions,
    settings: Vec<(&'static str, String)>,
    pub dir: TempDir,
    http: reqwest::Client,
}

impl Deployment {
    pub async fn new(wire: Wire, settings: &[(&'static str, &str)]) -> Self {
        let model = ModelServer::start().await;
        let database = postgres::new_database().await;
        let mut all = model.settings(wire);
        all.extend([("DATABASE_URL", postgres::database_url(&database)), ("ROOT_SECRET_PEPPER", PEPPER.into())]);
        let own = [
            ("ADMIN_API_TOKEN", ADMIN),
            ("ENABLE_ARGON2_VERIFICATION", "false"),
            // The lease of a killed process expires soon, but that of a live one not even on a busy machine.
            ("ACONTEXTD_JOB_LEASE", "5s"),
            ("ACONTEXTD_SHUTDOWN_TIMEOUT", "1s"),
            // Only the number of messages makes the observation due.
            ("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h"),
            ("PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS", "3"),
        ];
        all.extend(own.iter().chain(settings).map(|(name, value)| (*name, (*value).to_owned())));
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        Self { model, database, settings: all, dir: data_dir(), http }
    }

    /// Starts a process of the server.
    pub fn start(&self) -> ServerProcess {
        self.start_in(&self.dir, &[])
    }

    /// Starts a process with its own directory and further settings.
    pub fn start_in(&self, dir: &TempDir, settings: &[(&str, &str)]) -> ServerProcess {
        let mut all: Vec<_> = self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all.extend(settings);
        ServerProcess::start(dir.path(), &all)
    }

    pub async fn connect(&self) -> PgConnection {
        self.database.connect().await.unwrap()
    }

    pub async fn fetch_scalar<T>(&self, sql: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut conn = self.connect().await;
        let value = sqlx::query_scalar(sql).fetch_one(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        value
    }

    /// Sends a request with a JSON body, and returns `data` of the response.
    pub async fn post(&self, server: &ServerProcess, key: &str, path: &str, body: &Value) -> Value {
        let request = self.http.post(format!("{}{path}", server.url)).bearer_auth(key).json(body);
        let response = request.send().await.unwrap();
        let (status, body) = (response.status(), response.json::<Value>().await.unwrap());
        assert!(status.is_success(), "{status}: {body}");
        body["data"].clone()
    }

    /// Sends a GET request, and returns `data` of the response.
    pub async fn get(&self, server: &ServerProcess, key: &str, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", server.url)).bearer_auth(key).send().await.unwrap();
        let (status, body) = (response.status(), response.json::<Value>().await.unwrap());
        assert!(status.is_success(), "{status}: {body}");
        body["data"].clone()
    }

    /// Creates a session with [`MESSAGES`] messages, so that its observation is due.
    pub async fn store_messages(&self, server: &ServerProcess, key: &str) {
        let session = self.new_session(server, key).await;
        for number in 0..MESSAGES {
            self.store_text(server, key, &session, &format!("Message {number} with {MARK}. {MARKER}")).await;
        }
    }

    pub async fn new_session(&self, server: &ServerProcess, key: &str) -> String {
        self.post(server, key, "/api/v1/session", &json!({})).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn store_text(&self, server: &ServerProcess, key: &str, session: &str, text: &str) {
        let message = json!({"format": "openai", "blob": {"role": "user", "content": text}});
        self.post(server, key, &format!("/api/v1/session/{session}/messages"), &message).await;
    }

    pub async fn wait_until_observed(&self) {
        wait_until("all sessions are observed", async || self.fetch_scalar::<i64>(OBSERVE_JOBS).await == 0).await;
    }

    /// Returns what an observation leaves in the database: the tasks, including the hidden planning task without its
    /// description, the status and the task of each message, the counted tasks, and the jobs. Ids and times are left out.
    pub async fn outcome(&self) -> Value {
        let outcome = r#"select jsonb_build_object(
            'tasks', (select coalesce(jsonb_agg(jsonb_build_object(
                          'order', "order", 'status', status,
                          'data', case when is_planning then data - 'task_description' else data end) order by "order"), '[]')
                      from tasks),
            'messages', (select jsonb_agg(jsonb_build_array(m.session_task_process_status, t."order") order by m.created_at)
                         from messages m left join tasks t on t.id = m.task_id),
            'tasks_created', (select coalesce(sum(increment), 0) from metrics where tag = 'task.created'),
            'jobs', (select count(*) from jobs where kind = 'observe'),
            'has_observe_job', (select bool_or(has_observe_job) from sessions))"#;
        self.fetch_scalar::<Value>(outcome).await
    }

    /// Returns the outcomes of the recorded model calls, sorted.
    pub async fn call_outcomes(&self) -> String {
        let outcomes = "select coalesce(string_agg(outcome, ' ' order by outcome), '') from model_calls";
        self.fetch_scalar::<String>(outcomes).await
    }

    /// Returns the tables that contain one of these texts in any column, literally or in hex.
    pub async fn tables_containing(&self, texts: &[&str]) -> Vec<String> {
        let patterns: Vec<_> =
            texts.iter().flat_map(|text| [format!("%{text}%"), format!("%{}%", hex::encode(text))]).collect();
        let mut conn = self.connect().await;
        let names =
            "select tablename::text from pg_tables where schemaname = 'public' and tablename <> '_sqlx_migrations'";
        let mut tables: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut conn).await.unwrap();
        for index in (0..tables.len()).rev() {
            let rows = format!("select count(*) from \"{}\" t where t::text like any($1)", tables[index]);
            let count: i64 = sqlx::query_scalar(&rows).bind(&patterns).fetch_one(&mut conn).await.unwrap();
            if count == 0 {
                tables.remove(index);
            }
        }
        tables
    }

    /// Takes a lock in the database, answers the call that waits at the latch, and waits until the server waits for the lock with a
    /// statement that contains `blocked`. Then kills the server and releases the lock.
    pub async fn kill_at_lock(&self, server: ServerProcess, latch: &Latch, lock: &str, blocked: &str) {
        self.kill_at_lock_after(server, lock, blocked, async |_| latch.release()).await;
    }

    /// As [`Self::kill_at_lock`], with another cause of the statement.
    pub async fn kill_at_lock_after(
        &self,
        server: ServerProcess,
        lock: &str,
        blocked: &str,
        cause: impl AsyncFnOnce(&ServerProcess),
    ) {
        let (mut holder, mut observer) = (self.connect().await, self.connect().await);
        let mut tx = holder.begin().await.unwrap();
        sqlx::query(lock).fetch_one(&mut *tx).await.unwrap();
        cause(&server).await;
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock' and strpos(query, $1) > 0";
        wait_until("the server waits for the lock", async || {
            sqlx::query_scalar::<_, i64>(waiting).bind(blocked).fetch_one(&mut observer).await.unwrap() == 1
        })
        .await;
        server.kill();
        tx.rollback().await.unwrap();
    }
}
