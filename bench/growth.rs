//! Storing a message and reading messages in a table of a thousand messages compared with a table of a million, and in
//! a short session compared with a long one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::conversation::page_request;
use crate::corpus::prose;
use crate::embedded_postgres::EmbeddedPostgres;
use crate::http::{Client, Request};
use crate::load::Times;
use crate::messages::store_numbered;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

/// The number of messages in each table, in sessions of [`MESSAGES_PER_SESSION`].
const SMALL_TABLE: usize = 1_000;
const LARGE_TABLE: usize = 1_000_000;
const MESSAGES_PER_SESSION: usize = 100;
/// The number of messages in the two sessions that are compared.
const SHORT_SESSION: usize = 1_000;
const LONG_SESSION: usize = 100_000;
/// The number of messages that a request reads.
const PAGE_SIZE: usize = 20;
/// The number of requests of each kind that are counted, and of those before that are not counted.
const REQUESTS: usize = 400;
const WARM_UP_REQUESTS: usize = 40;
/// The number of sessions of a table to which requests are sent in turn.
const SESSIONS_SAMPLED: usize = 10;
const MAX_RATIO: f64 = 1.2;

/// The size of a text, in bytes.
const SIZE: usize = 400;
const SESSIONS_SQL: &str = "insert into sessions (id, project_id, last_message_id, last_message_at)
    select id, (select id from projects), gen_random_uuid(), now() from unnest($1::uuid[]) id";
/// Inserts `$2` messages into each session, in the order in which concurrent conversations would store them. Their ids
/// increase with time, as those of the server do.
pub const MESSAGES_SQL: &str =
    "insert into messages (id, session_id, parent_id, role, format, content, tokens, meta, user_meta,
                                              created_at, updated_at)
    select overlay(gen_random_uuid()::text placing
                   overlay(lpad(to_hex((extract(epoch from time) * 1000)::bigint), 12, '0') placing '-' from 9 for 0)
                   from 1 for 13)::uuid,
           session, gen_random_uuid(), 'user', 'openai', convert_to(content, 'UTF8'), 90, '{}', '{}', time, time
    from (select session, now() - interval '2 days' + n * interval '1 second' as time,
                 json_build_object('role', 'user', 'content', n || ' ' || $3)::text as content
          from unnest($1::uuid[]) session, generate_series(1, $2) n order by n) new";

/// Selects the position of the message in the middle of a session, in the format of a cursor: its time in nanoseconds,
/// and its id.
const MIDDLE_SQL: &str = "select (extract(epoch from created_at) * 1000000)::bigint || '000|' || id
    from messages where session_id = $1 order by created_at offset $2 limit 1";

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let headings = ["request", "small", "p50 ms", "p99 ms", "large", "p50 ms", "p99 ms", "ratio of p50"];
    let mut table = Table::new(&headings);
    let (large_table, long_session) =
        (bench.full_or_quick(LARGE_TABLE, 10_000), bench.full_or_quick(LONG_SESSION, 5_000));
    block_on(async {
        let (small_server, large_server) =
            (Server::start(bench, "small-table").await?, Server::start(bench, "large-table").await?);
        let mut small = Dataset::fill(
            &small_server,
            &format!("table of {SMALL_TABLE}"),
            SMALL_TABLE / MESSAGES_PER_SESSION,
            MESSAGES_PER_SESSION,
        )
        .await?;
        let mut large = Dataset::fill(
            &large_server,
            &format!("table of {large_table}"),
            large_table / MESSAGES_PER_SESSION,
            MESSAGES_PER_SESSION,
        )
        .await?;
        compare(bench, report, &mut table, [&mut small, &mut large]).await?;
        small_server.stop()?;
        let mut short = Dataset::fill(&large_server, &format!("session of {SHORT_SESSION}"), 1, SHORT_SESSION).await?;
        let mut large = Dataset::fill(&large_server, &format!("session of {long_session}"), 1, long_session).await?;
        compare(bench, report, &mut table, [&mut short, &mut large]).await?;
        large_server.stop()
    })?;
    report.add_text(&format!(
        "One client stores a message of 1 KiB of text, reads the newest {PAGE_SIZE} messages and reads {PAGE_SIZE} \
         messages in the middle, {REQUESTS} times each, alternately in the small and in the large table or session. \
         The tables consist of sessions of {MESSAGES_PER_SESSION} messages; requests are sent to {SESSIONS_SAMPLED} of \
         them in turn. The short and the long session are in the large table. The messages were inserted by SQL, and \
         the tables were vacuumed and analyzed."
    ));
    report.add_table("Growth", &table);
    Ok(())
}

/// A table or a session that is compared with a larger or smaller one.
struct Dataset {
    name: String,
    client: Client,
    /// The sessions to which requests are sent, each with a cursor to its middle.
    sessions: Vec<(String, String)>,
}

impl Dataset {
    /// Creates `sessions` sessions with `messages_per_session` messages each.
    async fn fill(server: &Server, name: &str, sessions: usize, messages_per_session: usize) -> anyhow::Result<Self> {
        let ids: Vec<Uuid> = (0..sessions).map(|_| Uuid::now_v7()).collect();
        let mut connection = EmbeddedPostgres::find(server)?.options().connect().await?;
        // Without these settings, the checks of foreign keys would take most of the time.
        sqlx::raw_sql("set session_replication_role = replica; set synchronous_commit = off")
            .execute(&mut connection)
            .await?;
        sqlx::query(SESSIONS_SQL).bind(&ids).execute(&mut connection).await?;
        let messages = sqlx::query(MESSAGES_SQL)
            .bind(&ids)
            .bind(i32::try_from(messages_per_session)?)
            .bind(prose(0, SIZE)[..SIZE].to_owned());
        messages.execute(&mut connection).await?;
        for command in ["vacuum (analyze) sessions", "vacuum (analyze) messages", "checkpoint"] {
            sqlx::query(command).execute(&mut connection).await?;
        }
        let mut sampled = Vec::new();
        for session in ids.iter().step_by(sessions.div_ceil(SESSIONS_SAMPLED)) {
            sampled
                .push((session.to_string(), middle_cursor(&mut connection, *session, messages_per_session / 2).await?));
        }
        connection.close().await?;
        Ok(Self { name: name.to_owned(), client: server.client().await?, sessions: sampled })
    }

    /// Returns the requests of one round.
    fn requests(&self, number: usize, text: &str) -> [Request; 3] {
        let (session, cursor) = &self.sessions[number % self.sessions.len()];
        let path = format!(
            "/api/v1/session/{session}/messages?limit={PAGE_SIZE}&time_desc=true&format=openai&cursor={cursor}"
        );
        [store_numbered(session, number, text), page_request(session, PAGE_SIZE, "openai"), Request::get("GET", &path)]
    }
}

/// Returns the cursor of the message after the first `before` messages of a session.
async fn middle_cursor(connection: &mut PgConnection, session: Uuid, before: usize) -> anyhow::Result<String> {
    let position = sqlx::query_scalar::<_, String>(MIDDLE_SQL).bind(session).bind(i64::try_from(before)?);
    Ok(URL_SAFE_NO_PAD.encode(position.fetch_one(connection).await?))
}

/// Sends the requests alternately to both datasets and compares the times.
async fn compare(
    bench: &Bench,
    report: &mut Report,
    table: &mut Table,
    datasets: [&mut Dataset; 2],
) -> anyhow::Result<()> {
    let text = prose(1, 2 << 10);
    let names = [datasets[0].name.clone(), datasets[1].name.clone()];
    let mut times = [[const { Vec::new() }; 3], [const { Vec::new() }; 3]];
    let [first, second] = datasets;
    let (count, warm_up) = (bench.full_or_quick(REQUESTS, 20), bench.full_or_quick(WARM_UP_REQUESTS, 2));
    for number in 0..warm_up + count {
        for (dataset, times) in [&mut *first, &mut *second].into_iter().zip(&mut times) {
            for (request, times) in dataset.requests(number, &text).iter().zip(times) {
                let (_, time) = dataset.client.timed(request).await?;
                if number >= warm_up {
                    times.push(time);
                }
            }
        }
    }
    let [first, second] = times.map(|dataset| dataset.map(Times::from_iter));
    for ((request, first), second) in
        ["store a message", "read the newest", "read a page in the middle"].into_iter().zip(first).zip(second)
    {
        let ratio = second.p50() / first.p50();
        let cells = [(&names[0], &first), (&names[1], &second)];
        let cells = cells.map(|(name, times)| [name.clone(), number(times.p50()), number(times.p99())]);
        table.add_row([request.to_owned()].into_iter().chain(cells.concat()).chain([number(ratio)]));
        let what = format!("{request}: {} / {}", names[1], names[0]);
        report.add_target(&what, &format!("{} times", number(ratio)), "<= 1.2 times", ratio <= MAX_RATIO);
    }
    Ok(())
}
