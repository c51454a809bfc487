//! Storing a message and reading the newest ones, in a table of a thousand messages and in one of a million, and in a short
//! session and in a long one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::conversation::page;
use crate::corpus::prose;
use crate::http::{Client, Request};
use crate::load::Times;
use crate::messages::message;
use crate::private::Private;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

/// How many messages a table has, in sessions of [`EACH`].
const FEW: usize = 1_000;
const MANY: usize = 1_000_000;
const EACH: usize = 100;
/// How many messages the two sessions have that are compared.
const SHORT: usize = 1_000;
const LONG: usize = 100_000;
/// How many of the newest messages are read.
const PAGE: usize = 20;
/// How often each is asked; the first ones do not count.
const ASKED: usize = 400;
const FIRST: usize = 40;
/// How many sessions of a table are asked by turns.
const BY_TURNS: usize = 10;
const RATIO: f64 = 1.2;

/// Of a text, in bytes.
const SIZE: usize = 400;
/// `$2` messages in each session of the project, in the order that conversations at the same time bring about; their ids rise
/// with the time, as the server's do.
const SESSIONS: &str = "insert into sessions (id, project_id, last_message_id, last_message_at)
    select id, (select id from projects), gen_random_uuid(), now() from unnest($1::uuid[]) id";
pub const MESSAGES: &str =
    "insert into messages (id, session_id, parent_id, role, format, content, tokens, meta, user_meta,
                                              created_at, updated_at)
    select overlay(gen_random_uuid()::text placing
                   overlay(lpad(to_hex((extract(epoch from time) * 1000)::bigint), 12, '0') placing '-' from 9 for 0)
                   from 1 for 13)::uuid,
           session, gen_random_uuid(), 'user', 'openai', convert_to(content, 'UTF8'), 90, '{}', '{}', time, time
    from (select session, now() - interval '2 days' + n * interval '1 second' as time,
                 json_build_object('role', 'user', 'content', n || ' ' || $3)::text as content
          from unnest($1::uuid[]) session, generate_series(1, $2) n order by n) new";

/// The message in the middle of a session: the nanoseconds of its time, and its id, as a cursor names it.
const MIDDLE: &str = "select (extract(epoch from created_at) * 1000000)::bigint || '000|' || id
    from messages where session_id = $1 order by created_at offset $2 limit 1";

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let heads = ["request", "where", "p50 ms", "p99 ms", "and where", "p50 ms", "p99 ms", "ratio of p50"];
    let mut table = Table::new(&heads);
    let (many, long) = (bench.pick(MANY, 10_000), bench.pick(LONG, 5_000));
    block_on(async {
        let (small, large) = (Server::start(bench, "few").await?, Server::start(bench, "many").await?);
        let mut few = Side::fill(&small, &format!("table of {FEW}"), FEW / EACH, EACH).await?;
        let mut rest = Side::fill(&large, &format!("table of {many}"), many / EACH, EACH).await?;
        compare(bench, report, &mut table, [&mut few, &mut rest]).await?;
        small.stop()?;
        let mut short = Side::fill(&large, &format!("session of {SHORT}"), 1, SHORT).await?;
        let mut rest = Side::fill(&large, &format!("session of {long}"), 1, long).await?;
        compare(bench, report, &mut table, [&mut short, &mut rest]).await?;
        large.stop()
    })?;
    report.text(&format!(
        "One client stores a message of 1 KiB of text, and reads the newest {PAGE} and {PAGE} in the middle, {ASKED} times in each of two places by \
         turns. A table has sessions of {EACH} messages, of which {BY_TURNS} are asked by turns; the two sessions lie in the \
         large table. The messages were written by SQL, and the tables vacuumed and analysed."
    ));
    report.table("Growth", &table);
    Ok(())
}

/// A place with few or with many messages.
struct Side {
    name: String,
    client: Client,
    /// Those that are asked, each with a cursor to its middle.
    sessions: Vec<(String, String)>,
}

impl Side {
    /// Makes so many sessions with so many messages each.
    async fn fill(server: &Server, name: &str, sessions: usize, each: usize) -> anyhow::Result<Self> {
        let ids: Vec<Uuid> = (0..sessions).map(|_| Uuid::now_v7()).collect();
        let mut connection = Private::of(server)?.options().connect().await?;
        // Checks of foreign keys would take most of the time.
        sqlx::raw_sql("set session_replication_role = replica; set synchronous_commit = off")
            .execute(&mut connection)
            .await?;
        sqlx::query(SESSIONS).bind(&ids).execute(&mut connection).await?;
        let messages =
            sqlx::query(MESSAGES).bind(&ids).bind(i32::try_from(each)?).bind(prose(0, SIZE)[..SIZE].to_owned());
        messages.execute(&mut connection).await?;
        for command in ["vacuum (analyze) sessions", "vacuum (analyze) messages", "checkpoint"] {
            sqlx::query(command).execute(&mut connection).await?;
        }
        let mut asked = Vec::new();
        for session in ids.iter().step_by(sessions.div_ceil(BY_TURNS)) {
            asked.push((session.to_string(), middle(&mut connection, *session, each / 2).await?));
        }
        connection.close().await?;
        Ok(Self { name: name.to_owned(), client: server.client().await?, sessions: asked })
    }

    /// What is asked in that round.
    fn requests(&self, number: usize, text: &str) -> [Request; 3] {
        let (session, cursor) = &self.sessions[number % self.sessions.len()];
        let path =
            format!("/api/v1/session/{session}/messages?limit={PAGE}&time_desc=true&format=openai&cursor={cursor}");
        [message(session, number, text), page(session, PAGE, "openai"), Request::get("GET", &path)]
    }
}

async fn middle(connection: &mut PgConnection, session: Uuid, before: usize) -> anyhow::Result<String> {
    let position = sqlx::query_scalar::<_, String>(MIDDLE).bind(session).bind(i64::try_from(before)?);
    Ok(URL_SAFE_NO_PAD.encode(position.fetch_one(connection).await?))
}

/// Asks both by turns.
async fn compare(bench: &Bench, report: &mut Report, table: &mut Table, sides: [&mut Side; 2]) -> anyhow::Result<()> {
    let text = prose(1, 2 << 10);
    let names = [sides[0].name.clone(), sides[1].name.clone()];
    let mut times = [[const { Vec::new() }; 3], [const { Vec::new() }; 3]];
    let [one, other] = sides;
    let (asked, first) = (bench.pick(ASKED, 20), bench.pick(FIRST, 2));
    for number in 0..first + asked {
        for (side, times) in [&mut *one, &mut *other].into_iter().zip(&mut times) {
            for (request, times) in side.requests(number, &text).iter().zip(times) {
                let (_, time) = side.client.timed(request).await?;
                if number >= first {
                    times.push(time);
                }
            }
        }
    }
    let [one, other] = times.map(|side| side.map(Times::from_iter));
    for ((request, one), other) in
        ["store a message", "read the newest", "read a page in the middle"].into_iter().zip(one).zip(other)
    {
        let ratio = other.p50() / one.p50();
        let cells = [(&names[0], &one), (&names[1], &other)];
        let cells = cells.map(|(name, times)| [name.clone(), number(times.p50()), number(times.p99())]);
        table.row([request.to_owned()].into_iter().chain(cells.concat()).chain([number(ratio)]));
        let what = format!("{request}: {} / {}", names[1], names[0]);
        report.target(&what, &format!("{} times", number(ratio)), "<= 1.2 times", ratio <= RATIO);
    }
    Ok(())
}
