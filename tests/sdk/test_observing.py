"""Observation: a model looks at stored messages, by itself or when it is told to, and their state says so."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from acontext.errors import APIError
from support import Server, asynchronously, eventually, refused, say, temporary_home

NOBODYS = "00000000-0000-4000-8000-000000000000"
# A model that needs no network and finds nothing.
MODEL = {"LLM_SDK": "mock"}
# Messages wait so long that in a test only a flush, or enough of them, begins.
PATIENT = MODEL | {"SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "1h"}
# They do not wait at all.
AT_ONCE = MODEL | {"SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "0"}


@pytest.fixture(scope="module")
def observer():
    """A server with a model, whose messages wait for a flush."""
    with temporary_home() as home:
        server = Server(home, **PATIENT)
        try:
            yield server.wait_until_ready()
            server.stop()
        finally:
            server.close()


@pytest.fixture(scope="module")
def watched(observer):
    with observer.client() as client:
        yield client


@pytest.fixture
def session(watched):
    return watched.sessions.create()


def talk(client, session, count):
    return [say(client, session, f"m{number}") for number in range(count)]


def status(client, session):
    """How many messages are observed, being observed, and waiting."""
    now = client.sessions.messages_observing_status(session.id)
    return now.observed, now.in_process, now.pending


def states(client, session):
    items = client.sessions.get_messages(session.id, format="acontext").items
    return [item["session_task_process_status"] for item in items]


def flush(client, session):
    done = client.sessions.flush(session.id)
    return done.status, done.errmsg


def settle(server, session):
    """Waits until nobody looks for more messages of a session: one that comes while somebody does need not wait."""
    jobs = f"select count(*) from jobs where dedupe_key = '{session.id}'"
    eventually(lambda: server.psql(jobs) == "0", "the session's job ends")


# ----- flush -----


def test_a_flush_observes_what_waits(observer, watched, session):
    talk(watched, session, 5)
    assert (status(watched, session), states(watched, session)) == ((0, 0, 5), ["pending"] * 5)
    assert flush(watched, session) == (200, "")
    assert (status(watched, session), states(watched, session)) == ((5, 0, 0), ["success"] * 5)
    # What comes later waits again.
    settle(observer, session)
    say(watched, session)
    assert (status(watched, session), states(watched, session)) == ((5, 0, 1), ["success"] * 5 + ["pending"])
    assert flush(watched, session) == (200, "")
    assert status(watched, session) == (6, 0, 0)


def test_a_flush_observes_more_than_one_batch(observer, watched, session):
    # Put in at once, or they would be observed because there are enough of them.
    first = say(watched, session)
    observer.psql(
        "insert into messages (id, session_id, role, format, content, tokens, meta, user_meta, created_at, updated_at)"
        " select gen_random_uuid(), session_id, role, format, content, tokens, meta, user_meta,"
        " created_at + n * interval '1 microsecond', updated_at"
        f" from messages, generate_series(1, 99) n where id = '{first.id}'"
    )
    observer.psql(
        "update sessions set last_message_at = last_message_at + interval '99 microseconds', pending_messages = 100"
        f" where id = '{session.id}'"
    )
    assert status(watched, session) == (0, 0, 100)
    assert flush(watched, session) == (200, "")
    assert status(watched, session) == (100, 0, 0)


def test_a_flush_of_nothing_is_done_at_once(watched, session):
    assert flush(watched, session) == (200, "")
    talk(watched, session, 1)
    assert flush(watched, session) == flush(watched, session) == (200, "")
    assert status(watched, session) == (1, 0, 0)


def test_a_flush_is_about_one_session(watched, session):
    other = watched.sessions.create()
    talk(watched, session, 2)
    talk(watched, other, 3)
    assert flush(watched, session) == (200, "")
    assert (status(watched, session), status(watched, other)) == ((2, 0, 0), (0, 0, 3))


def test_a_flush_takes_up_what_has_failed(observer, watched, session):
    talk(watched, session, 3)
    assert flush(watched, session) == (200, "")
    observer.psql(f"update messages set session_task_process_status = 'failed' where session_id = '{session.id}'")
    assert (status(watched, session), states(watched, session)) == ((0, 0, 0), ["failed"] * 3)
    assert flush(watched, session) == (200, "")
    assert (status(watched, session), states(watched, session)) == ((3, 0, 0), ["success"] * 3)


def test_a_flush_takes_up_what_a_lost_process_has_left_behind(observer, watched, session):
    talk(watched, session, 3)
    observer.psql(f"update messages set session_task_process_status = 'running' where session_id = '{session.id}'")
    assert status(watched, session) == (0, 3, 0)
    assert flush(watched, session) == (200, "")
    assert status(watched, session) == (3, 0, 0)


def test_untracked_messages_are_not_observed(watched):
    session = watched.sessions.create(disable_task_tracking=True)
    talk(watched, session, 20)
    assert flush(watched, session) == (200, "")
    assert (status(watched, session), set(states(watched, session))) == ((0, 0, 0), {"disable_tracking"})


def test_observing_changes_nothing_that_was_said(watched, session):
    for text in ("one", "two"):
        say(watched, session, text, meta={"said": text})
    before = watched.sessions.get_messages(session.id)
    assert flush(watched, session) == (200, "")
    assert watched.sessions.get_messages(session.id) == before
    assert watched.sessions.get_token_counts(session.id).total_tokens == before.this_time_tokens
    # This model finds no tasks.
    assert watched.sessions.get_tasks(session.id).items == []
    assert watched.sessions.get_session_summary(session.id) == ""


def test_messages_of_every_kind_are_observed(watched, session):
    store = watched.sessions.store_message
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    store(session.id, blob={"role": "assistant", "content": None, "tool_calls": [call]})
    store(session.id, blob={"role": "tool", "tool_call_id": "a", "content": "seen"})
    store(session.id, blob={"role": "user", "content": [{"type": "text", "text": "a\0b"}]}, format="anthropic")
    store(session.id, blob={"role": "model", "parts": []}, format="gemini")
    file = {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}
    store(session.id, blob=file, format="acontext", file_field="f", file=("bytes.bin", bytes(range(256))))
    say(watched, session, "a long story " * 50_000)
    assert flush(watched, session) == (200, "")
    assert status(watched, session) == (6, 0, 0)


# ----- by itself -----


def test_enough_messages_are_observed_without_being_asked_for(watched, session):
    talk(watched, session, 15)
    assert status(watched, session) == (0, 0, 15)
    say(watched, session)
    eventually(lambda: status(watched, session) == (16, 0, 0), "sixteen messages are observed")


def test_messages_that_need_not_wait_are_observed_by_themselves(start):
    server = start(**AT_ONCE)
    with server.client() as client:
        sessions = [client.sessions.create() for _ in range(3)]
        for session in sessions:
            talk(client, session, 3)
        for session in sessions:
            eventually(lambda: status(client, session) == (3, 0, 0), "messages are observed")
            assert states(client, session) == ["success"] * 3
        # Also those that come when all is done.
        say(client, sessions[0])
        eventually(lambda: status(client, sessions[0]) == (4, 0, 0), "a later message is observed")
        eventually(lambda: server.psql("select count(*) from jobs where kind = 'observe'") == "0", "no job is left")


def test_how_many_are_enough_is_a_setting(start):
    server = start(**PATIENT, PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS="2")
    with server.client() as client:
        session = client.sessions.create()
        say(client, session)
        assert status(client, session) == (0, 0, 1)
        say(client, session)
        eventually(lambda: status(client, session) == (2, 0, 0), "two messages are observed")


# ----- without a model -----


def test_without_a_model_messages_wait_and_a_flush_says_why(client):
    session = client.sessions.create()
    talk(client, session, 2)
    code, reason = flush(client, session)
    assert code == 503
    assert "no model is configured" in reason and "2 messages wait" in reason
    assert (status(client, session), states(client, session)) == ((0, 0, 2), ["pending"] * 2)


def test_without_a_model_a_flush_of_nothing_is_done(client):
    session = client.sessions.create()
    assert flush(client, session) == (200, "")
    untracked = client.sessions.create(disable_task_tracking=True)
    say(client, untracked)
    assert flush(client, untracked) == (200, "")


def test_what_waited_without_a_model_is_observed_when_there_is_one(start):
    server = start(SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS="0")
    with server.client() as client:
        session = client.sessions.create()
        talk(client, session, 3)
        # Somebody has looked for a model in vain.
        reason = f"select last_error from jobs where kind = 'observe' and dedupe_key = '{session.id}'"
        eventually(lambda: "no model is configured" in server.psql(reason), "the reason can be read")
        assert status(client, session) == (0, 0, 3)
    server.stop()
    with start(**AT_ONCE).client() as client:
        eventually(lambda: status(client, session) == (3, 0, 0), "the messages are observed")


# ----- status -----


def test_a_status_counts_each_state(server, client):
    session = client.sessions.create()
    assert status(client, session) == (0, 0, 0)
    said = iter(talk(client, session, 14))
    # The last two are counted nowhere.
    for state, count in {"success": 3, "running": 2, "pending": 4, "failed": 1, "limit_exceed": 4}.items():
        for _ in range(count):
            server.psql(f"update messages set session_task_process_status = '{state}' where id = '{next(said).id}'")
    assert status(client, session) == (3, 2, 4)


def test_a_status_says_when_it_was_true(client):
    session = client.sessions.create()
    before = datetime.now(UTC)
    told = datetime.fromisoformat(client.sessions.messages_observing_status(session.id).updated_at)
    assert before <= told <= datetime.now(UTC)


# ----- copies -----


def test_what_was_observed_is_not_observed_again_in_a_copy(observer, watched, session):
    talk(watched, session, 3)
    assert flush(watched, session) == (200, "")
    copied = watched.sessions.get_configs(watched.sessions.copy(session.id).new_session_id)
    assert (status(watched, copied), states(watched, copied)) == ((3, 0, 0), ["success"] * 3)
    assert observer.psql(f"select count(*) from jobs where dedupe_key = '{copied.id}'") == "0"
    say(watched, copied)
    assert (status(watched, copied), status(watched, session)) == ((3, 0, 1), (3, 0, 0))
    assert flush(watched, copied) == (200, "")
    assert status(watched, copied) == (4, 0, 0)


def test_what_waits_in_a_session_waits_in_its_copy(watched, session):
    talk(watched, session, 3)
    copied = watched.sessions.get_configs(watched.sessions.copy(session.id).new_session_id)
    assert status(watched, copied) == (0, 0, 3)
    # Each has a life of its own.
    assert flush(watched, copied) == (200, "")
    assert (status(watched, copied), status(watched, session)) == ((3, 0, 0), (0, 0, 3))
    # As many as are enough, counting those that were copied.
    third = watched.sessions.get_configs(watched.sessions.copy(session.id).new_session_id)
    talk(watched, third, 13)
    eventually(lambda: status(watched, third) == (16, 0, 0), "sixteen messages are observed")


# ----- stops and kills -----


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_waits_outlives_the_server(start, end):
    server = start(**PATIENT)
    with server.client() as client:
        session = client.sessions.create()
        talk(client, session, 3)
        assert flush(client, session) == (200, "")
        settle(server, session)
        talk(client, session, 4)
    getattr(server, end)()
    with start(**PATIENT).client() as client:
        assert status(client, session) == (3, 0, 4)
        assert flush(client, session) == (200, "")
        assert status(client, session) == (7, 0, 0)


def test_a_kill_in_the_middle_of_observing_leaves_nothing_behind(start):
    # The work of a process that has gone is taken over when its lease is over.
    settings = AT_ONCE | {"ACONTEXTD_JOB_LEASE": "1s"}
    server = start(**settings)
    with server.client() as client:
        sessions = [client.sessions.create() for _ in range(10)]
        for session in sessions:
            talk(client, session, 10)
    server.kill()
    with start(**settings).client() as client:
        for session in sessions:
            eventually(lambda: status(client, session) == (10, 0, 0), "all messages are observed")
            assert states(client, session) == ["success"] * 10


# ----- what is refused -----


def test_a_session_that_is_not_there_is_neither_flushed_nor_counted(watched):
    gone = watched.sessions.create()
    watched.sessions.delete(gone.id)
    for session_id in (NOBODYS, gone.id):
        for call in (watched.sessions.flush, watched.sessions.messages_observing_status):
            with refused(404, "session not found"):
                call(session_id)


def test_a_session_of_another_project_is_not_flushed(server, client, stranger):
    session = client.sessions.create()
    talk(client, session, 1)
    for call in (stranger.sessions.flush, stranger.sessions.messages_observing_status):
        with refused(403, "does not belong to this project"):
            call(session.id)
    assert status(client, session) == (0, 0, 1)


# ----- many at once -----


def test_flushes_and_messages_at_once_lose_nothing(observer, watched, session):
    def stores(thread):
        with observer.client() as mine:
            for number in range(15):
                say(mine, session, f"{thread} {number}")

    def flushes(_):
        with observer.client() as mine:
            return [flush(mine, session) for _ in range(10)]

    with ThreadPoolExecutor() as threads:
        storing = [threads.submit(stores, thread) for thread in range(4)]
        flushed = sum(threads.map(flushes, range(3)), [])
        for thread in storing:
            thread.result()
    assert set(flushed) == {(200, "")}
    assert flush(watched, session) == (200, "")
    assert status(watched, session) == (60, 0, 0)


def test_a_session_that_is_deleted_while_it_is_flushed_is_gone(observer):
    async def steps(client):
        session = await client.sessions.create()
        for number in range(10):
            await client.sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
        flushes = [client.sessions.flush(session.id) for _ in range(6)]
        done = await asyncio.gather(
            *flushes[:3], client.sessions.delete(session.id), *flushes[3:], return_exceptions=True
        )
        assert done.pop(3) is None
        for each in done:
            if isinstance(each, APIError):
                assert (each.status_code, each.message) == (404, "session not found")
            else:
                assert (each.status, each.errmsg) == (200, "")
        return session

    settle(observer, asynchronously(observer, steps))


# ----- the asynchronous client -----


def test_async_observing(observer):
    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        for number in range(3):
            await sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
        before = await sessions.messages_observing_status(session.id)
        assert (before.observed, before.in_process, before.pending) == (0, 0, 3)
        flushed = await sessions.flush(session.id)
        assert (flushed.status, flushed.errmsg) == (200, "")
        after = await sessions.messages_observing_status(session.id)
        assert (after.observed, after.in_process, after.pending) == (3, 0, 0)
        assert datetime.fromisoformat(after.updated_at) > datetime.fromisoformat(before.updated_at)
        assert (await sessions.get_tasks(session.id)).items == []
        with refused(404, "session not found"):
            await sessions.flush(NOBODYS)

    asynchronously(observer, steps)
