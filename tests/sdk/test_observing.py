"""Observation: a model processes stored messages, automatically or on a flush, and updates their state."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from acontext.errors import APIError
from support import Server, run_async, wait_until, raises_error, store_text, temporary_home

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
# A model that needs no network and extracts no tasks.
MODEL = {"LLM_SDK": "mock"}
# The observation starts only on a flush or when enough messages are pending: the delay is longer than any test.
WAIT_FOR_FLUSH = MODEL | {"SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "1h"}
# The observation starts without a delay.
WITHOUT_DELAY = MODEL | {"SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "0"}


@pytest.fixture(scope="module")
def observer():
    """A server with a model and with messages that wait for a flush."""
    with temporary_home() as home:
        server = Server(home, **WAIT_FOR_FLUSH)
        try:
            yield server.wait_until_ready()
            server.stop()
        finally:
            server.close()


@pytest.fixture(scope="module")
def model_client(observer):
    with observer.client() as client:
        yield client


@pytest.fixture
def session(model_client):
    return model_client.sessions.create()


def store_texts(client, session, count):
    return [store_text(client, session, f"m{number}") for number in range(count)]


def count_by_state(client, session):
    """Returns the numbers of messages that are observed, in process and pending."""
    response = client.sessions.messages_observing_status(session.id)
    return response.observed, response.in_process, response.pending


def read_states(client, session):
    items = client.sessions.get_messages(session.id, format="acontext").items
    return [item["session_task_process_status"] for item in items]


def flush_session(client, session):
    response = client.sessions.flush(session.id)
    return response.status, response.errmsg


def wait_for_job(server, session):
    """Waits until the observe job of a session ends: messages that are stored earlier are observed without a delay."""
    jobs = f"select count(*) from jobs where dedupe_key = '{session.id}'"
    wait_until(lambda: server.psql(jobs) == "0", "the session's job ends")


# ----- flush -----


def test_a_flush_observes_pending_messages(observer, model_client, session):
    store_texts(model_client, session, 5)
    assert (count_by_state(model_client, session), read_states(model_client, session)) == ((0, 0, 5), ["pending"] * 5)
    assert flush_session(model_client, session) == (200, "")
    assert (count_by_state(model_client, session), read_states(model_client, session)) == ((5, 0, 0), ["success"] * 5)
    # A later message is pending again.
    wait_for_job(observer, session)
    store_text(model_client, session)
    assert count_by_state(model_client, session) == (5, 0, 1)
    assert read_states(model_client, session) == ["success"] * 5 + ["pending"]
    assert flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (6, 0, 0)


def test_a_flush_observes_more_than_one_batch(observer, model_client, session):
    # One statement inserts all messages; stored one by one, they would be observed as soon as enough are pending.
    first = store_text(model_client, session)
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
    assert count_by_state(model_client, session) == (0, 0, 100)
    assert flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (100, 0, 0)


def test_a_flush_without_pending_messages_succeeds(model_client, session):
    assert flush_session(model_client, session) == (200, "")
    store_texts(model_client, session, 1)
    assert flush_session(model_client, session) == flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (1, 0, 0)


def test_a_flush_affects_one_session(model_client, session):
    other = model_client.sessions.create()
    store_texts(model_client, session, 2)
    store_texts(model_client, other, 3)
    assert flush_session(model_client, session) == (200, "")
    assert (count_by_state(model_client, session), count_by_state(model_client, other)) == ((2, 0, 0), (0, 0, 3))


def test_a_flush_retries_failed_messages(observer, model_client, session):
    store_texts(model_client, session, 3)
    assert flush_session(model_client, session) == (200, "")
    observer.psql(f"update messages set session_task_process_status = 'failed' where session_id = '{session.id}'")
    assert (count_by_state(model_client, session), read_states(model_client, session)) == ((0, 0, 0), ["failed"] * 3)
    assert flush_session(model_client, session) == (200, "")
    assert (count_by_state(model_client, session), read_states(model_client, session)) == ((3, 0, 0), ["success"] * 3)


def test_a_flush_observes_messages_of_a_lost_process(observer, model_client, session):
    store_texts(model_client, session, 3)
    observer.psql(f"update messages set session_task_process_status = 'running' where session_id = '{session.id}'")
    assert count_by_state(model_client, session) == (0, 3, 0)
    assert flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (3, 0, 0)


def test_untracked_messages_are_not_observed(model_client):
    session = model_client.sessions.create(disable_task_tracking=True)
    store_texts(model_client, session, 20)
    assert flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (0, 0, 0)
    assert set(read_states(model_client, session)) == {"disable_tracking"}


def test_observation_does_not_change_messages(model_client, session):
    for text in ("one", "two"):
        store_text(model_client, session, text, meta={"text": text})
    before = model_client.sessions.get_messages(session.id)
    assert flush_session(model_client, session) == (200, "")
    assert model_client.sessions.get_messages(session.id) == before
    assert model_client.sessions.get_token_counts(session.id).total_tokens == before.this_time_tokens
    # This model extracts no tasks.
    assert model_client.sessions.get_tasks(session.id).items == []
    assert model_client.sessions.get_session_summary(session.id) == ""


def test_messages_of_every_type_are_observed(model_client, session):
    store = model_client.sessions.store_message
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    store(session.id, blob={"role": "assistant", "content": None, "tool_calls": [call]})
    store(session.id, blob={"role": "tool", "tool_call_id": "a", "content": "seen"})
    store(session.id, blob={"role": "user", "content": [{"type": "text", "text": "a\0b"}]}, format="anthropic")
    store(session.id, blob={"role": "model", "parts": []}, format="gemini")
    file = {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}
    store(session.id, blob=file, format="acontext", file_field="f", file=("bytes.bin", bytes(range(256))))
    store_text(model_client, session, "a long story " * 50_000)
    assert flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (6, 0, 0)


# ----- automatic observation -----


def test_enough_pending_messages_are_observed_automatically(model_client, session):
    store_texts(model_client, session, 15)
    assert count_by_state(model_client, session) == (0, 0, 15)
    store_text(model_client, session)
    wait_until(lambda: count_by_state(model_client, session) == (16, 0, 0), "sixteen messages are observed")


def test_without_a_delay_messages_are_observed_automatically(start_server):
    server = start_server(**WITHOUT_DELAY)
    with server.client() as client:
        sessions = [client.sessions.create() for _ in range(3)]
        for session in sessions:
            store_texts(client, session, 3)
        for session in sessions:
            wait_until(lambda: count_by_state(client, session) == (3, 0, 0), "three messages are observed")
            assert read_states(client, session) == ["success"] * 3
        # A message that is stored after the observation is observed, too.
        store_text(client, sessions[0])
        wait_until(lambda: count_by_state(client, sessions[0]) == (4, 0, 0), "a later message is observed")
        jobs = "select count(*) from jobs where kind = 'observe'"
        wait_until(lambda: server.psql(jobs) == "0", "all jobs end")


def test_the_maximum_number_of_turns_is_a_setting(start_server):
    server = start_server(**WAIT_FOR_FLUSH, PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS="2")
    with server.client() as client:
        session = client.sessions.create()
        store_text(client, session)
        assert count_by_state(client, session) == (0, 0, 1)
        store_text(client, session)
        wait_until(lambda: count_by_state(client, session) == (2, 0, 0), "two messages are observed")


# ----- without a model -----


def test_without_a_model_a_flush_returns_the_reason(client):
    session = client.sessions.create()
    store_texts(client, session, 2)
    code, reason = flush_session(client, session)
    assert code == 503
    assert "no model is configured" in reason and "2 messages are pending" in reason
    assert (count_by_state(client, session), read_states(client, session)) == ((0, 0, 2), ["pending"] * 2)


def test_without_a_model_an_empty_flush_succeeds(client):
    session = client.sessions.create()
    assert flush_session(client, session) == (200, "")
    untracked = client.sessions.create(disable_task_tracking=True)
    store_text(client, untracked)
    assert flush_session(client, untracked) == (200, "")


def test_pending_messages_are_observed_when_a_model_is_configured(start_server):
    server = start_server(SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS="0")
    with server.client() as client:
        session = client.sessions.create()
        store_texts(client, session, 3)
        # A job has failed because there is no model.
        reason = f"select last_error from jobs where kind = 'observe' and dedupe_key = '{session.id}'"
        wait_until(lambda: "no model is configured" in server.psql(reason), "the job has an error")
        assert count_by_state(client, session) == (0, 0, 3)
    server.stop()
    with start_server(**WITHOUT_DELAY).client() as client:
        wait_until(lambda: count_by_state(client, session) == (3, 0, 0), "the messages are observed")


# ----- status -----


def test_a_status_counts_each_state(server, client):
    session = client.sessions.create()
    assert count_by_state(client, session) == (0, 0, 0)
    sent = iter(store_texts(client, session, 14))
    # The last two states are not counted.
    for state, count in {"success": 3, "running": 2, "pending": 4, "failed": 1, "limit_exceed": 4}.items():
        for _ in range(count):
            server.psql(f"update messages set session_task_process_status = '{state}' where id = '{next(sent).id}'")
    assert count_by_state(client, session) == (3, 2, 4)


def test_a_status_contains_its_time(client):
    session = client.sessions.create()
    before = datetime.now(UTC)
    updated_at = datetime.fromisoformat(client.sessions.messages_observing_status(session.id).updated_at)
    assert before <= updated_at <= datetime.now(UTC)


# ----- copies -----


def test_observed_messages_are_not_observed_again_in_a_copy(observer, model_client, session):
    store_texts(model_client, session, 3)
    assert flush_session(model_client, session) == (200, "")
    copy = model_client.sessions.get_configs(model_client.sessions.copy(session.id).new_session_id)
    assert (count_by_state(model_client, copy), read_states(model_client, copy)) == ((3, 0, 0), ["success"] * 3)
    assert observer.psql(f"select count(*) from jobs where dedupe_key = '{copy.id}'") == "0"
    store_text(model_client, copy)
    assert (count_by_state(model_client, copy), count_by_state(model_client, session)) == ((3, 0, 1), (3, 0, 0))
    assert flush_session(model_client, copy) == (200, "")
    assert count_by_state(model_client, copy) == (4, 0, 0)


def test_pending_messages_are_pending_in_a_copy(model_client, session):
    store_texts(model_client, session, 3)
    copy = model_client.sessions.get_configs(model_client.sessions.copy(session.id).new_session_id)
    assert count_by_state(model_client, copy) == (0, 0, 3)
    # The session and its copy are observed independently.
    assert flush_session(model_client, copy) == (200, "")
    assert (count_by_state(model_client, copy), count_by_state(model_client, session)) == ((3, 0, 0), (0, 0, 3))
    # The copied messages count towards the maximum number of turns.
    third = model_client.sessions.get_configs(model_client.sessions.copy(session.id).new_session_id)
    store_texts(model_client, third, 13)
    wait_until(lambda: count_by_state(model_client, third) == (16, 0, 0), "sixteen messages are observed")


# ----- shutdown and crash -----


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_pending_messages_survive_the_end_of_the_server(start_server, end):
    server = start_server(**WAIT_FOR_FLUSH)
    with server.client() as client:
        session = client.sessions.create()
        store_texts(client, session, 3)
        assert flush_session(client, session) == (200, "")
        wait_for_job(server, session)
        store_texts(client, session, 4)
    getattr(server, end)()
    with start_server(**WAIT_FOR_FLUSH).client() as client:
        assert count_by_state(client, session) == (3, 0, 4)
        assert flush_session(client, session) == (200, "")
        assert count_by_state(client, session) == (7, 0, 0)


def test_observation_continues_after_the_server_was_killed(start_server):
    # Another process reclaims the jobs of the killed one when their lease has expired.
    settings = WITHOUT_DELAY | {"ACONTEXTD_JOB_LEASE": "1s"}
    server = start_server(**settings)
    with server.client() as client:
        sessions = [client.sessions.create() for _ in range(10)]
        for session in sessions:
            store_texts(client, session, 10)
    server.kill()
    with start_server(**settings).client() as client:
        for session in sessions:
            wait_until(lambda: count_by_state(client, session) == (10, 0, 0), "all messages are observed")
            assert read_states(client, session) == ["success"] * 10


# ----- errors -----


def test_an_unknown_session_is_neither_flushed_nor_counted(model_client):
    deleted = model_client.sessions.create()
    model_client.sessions.delete(deleted.id)
    for session_id in (UNKNOWN_ID, deleted.id):
        for call in (model_client.sessions.flush, model_client.sessions.messages_observing_status):
            with raises_error(404, "session not found"):
                call(session_id)


def test_a_session_of_another_project_is_not_flushed(server, client, other_client):
    session = client.sessions.create()
    store_texts(client, session, 1)
    for call in (other_client.sessions.flush, other_client.sessions.messages_observing_status):
        with raises_error(403, "does not belong to this project"):
            call(session.id)
    assert count_by_state(client, session) == (0, 0, 1)


# ----- concurrent requests -----


def test_concurrent_flushes_observe_every_message(observer, model_client, session):
    def store_messages(thread):
        with observer.client() as thread_client:
            for number in range(15):
                store_text(thread_client, session, f"{thread} {number}")

    def flush_repeatedly(_):
        with observer.client() as thread_client:
            return [flush_session(thread_client, session) for _ in range(10)]

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(store_messages, thread) for thread in range(4)]
        flushed = sum(pool.map(flush_repeatedly, range(3)), [])
        for future in futures:
            future.result()
    assert set(flushed) == {(200, "")}
    assert flush_session(model_client, session) == (200, "")
    assert count_by_state(model_client, session) == (60, 0, 0)


def test_a_session_can_be_deleted_while_it_is_flushed(observer):
    async def steps(client):
        session = await client.sessions.create()
        for number in range(10):
            await client.sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
        flushes = [client.sessions.flush(session.id) for _ in range(6)]
        results = await asyncio.gather(
            *flushes[:3], client.sessions.delete(session.id), *flushes[3:], return_exceptions=True
        )
        assert results.pop(3) is None
        for result in results:
            if isinstance(result, APIError):
                assert (result.status_code, result.message) == (404, "session not found")
            else:
                assert (result.status, result.errmsg) == (200, "")
        return session

    wait_for_job(observer, run_async(observer, steps))


# ----- the asynchronous client -----


def test_async_observation(observer):
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
        with raises_error(404, "session not found"):
            await sessions.flush(UNKNOWN_ID)

    run_async(observer, steps)
