"""Configs of a session, which clients replace, patch key by key, and use as a filter."""

import asyncio
import json
import uuid
from datetime import datetime

import pytest

from support import run_async, raises_error, store_text
from raw_http import exchange

JSON = {"Content-Type": "application/json"}
HALF_MIB = "x" * (1 << 19)


@pytest.fixture
def session(client):
    return client.sessions.create(configs={"agent": "bot", "n": 1, "deep": {"a": 1, "b": 2}})


def read_configs(client, session):
    return client.sessions.get_configs(session.id).configs


def send_configs(server, method, session, body):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, method, f"/api/v1/session/{session.id}/configs", JSON, body)


# ----- replacement -----


@pytest.mark.parametrize(
    "configs",
    [
        {},
        {"agent": "other"},
        {"null": None},
        {"big": 2**53 + 1, "huge": 10**30, "text": "1.0"},
        {"deep": [[{"a": []}]]},
    ],
)
def test_a_put_replaces_all_configs(client, session, configs):
    assert client.sessions.update_configs(session.id, configs=configs) is None
    assert read_configs(client, session) == configs


def test_a_put_without_configs_changes_nothing(server, client, session):
    for body in ({"configs": None}, {}, {"unknown": 1}):
        response = send_configs(server, "PUT", session, body)
        assert (response.status, response.json()) == (200, {"code": 0, "msg": ""})
    assert read_configs(client, session) == session.configs


def test_a_put_changes_only_the_configs(client, session):
    message = store_text(client, session)
    client.sessions.update_configs(session.id, configs={"new": True})
    updated = client.sessions.get_configs(session.id)
    assert updated.model_copy(update={"configs": session.configs, "updated_at": session.updated_at}) == session
    assert datetime.fromisoformat(updated.updated_at) > datetime.fromisoformat(session.updated_at)
    assert client.sessions.get_messages(session.id).ids == [message.id]


# ----- patches -----


@pytest.mark.parametrize(
    "patch, result",
    [
        ({}, {"agent": "bot", "n": 1, "deep": {"a": 1, "b": 2}}),
        ({"agent": "new"}, {"agent": "new", "n": 1, "deep": {"a": 1, "b": 2}}),
        ({"added": [1, {"x": None}]}, {"agent": "bot", "n": 1, "deep": {"a": 1, "b": 2}, "added": [1, {"x": None}]}),
        # null removes a key, whether it exists or not.
        ({"n": None, "missing": None}, {"agent": "bot", "deep": {"a": 1, "b": 2}}),
        ({"agent": None, "n": None, "deep": None}, {}),
        # Only the first level is patched: deeper levels are replaced, and null is a value there.
        ({"deep": {"c": None}}, {"agent": "bot", "n": 1, "deep": {"c": None}}),
        ({"deep": {}}, {"agent": "bot", "n": 1, "deep": {}}),
        ({"n": False, "": 2**53 + 1}, {"agent": "bot", "n": False, "deep": {"a": 1, "b": 2}, "": 2**53 + 1}),
    ],
)
def test_a_patch_sets_and_removes_keys(client, session, patch, result):
    assert client.sessions.patch_configs(session.id, configs=patch) == result
    assert read_configs(client, session) == result


def test_a_session_without_configs_may_be_patched(client):
    session = client.sessions.create()
    assert read_configs(client, session) is None
    assert client.sessions.patch_configs(session.id, configs={"missing": None}) == {}
    assert read_configs(client, session) == {}
    assert client.sessions.patch_configs(session.id, configs={"added": 1}) == {"added": 1}


def test_concurrent_patches_are_all_applied(server, session):
    async def steps(client):
        patches = [client.sessions.patch_configs(session.id, configs={f"k{number}": number}) for number in range(20)]
        for number, patched in enumerate(await asyncio.gather(*patches)):
            assert patched[f"k{number}"] == number
        expected = session.configs | {f"k{number}": number for number in range(20)}
        assert (await client.sessions.get_configs(session.id)).configs == expected

    run_async(server, steps)


# ----- errors -----


@pytest.mark.parametrize(
    "body, field",
    [
        ({"configs": "text"}, "configs"),
        ({"configs": [1]}, "configs"),
        ({"configs": 5}, "configs"),
        ({"configs": {"a": "\0"}}, "configs"),
        ({"configs": {"a\0": 1}}, "configs"),
        ("text", "body"),
        (b"{broken", "body"),
        (b"", "body"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_the_error_names_an_invalid_field(server, client, session, method, body, field):
    response = send_configs(server, method, session, body)
    assert response.status == 400
    assert field in response.error_message()
    assert client.sessions.get_configs(session.id) == session


@pytest.mark.parametrize("body", [{}, {"configs": None}])
def test_a_patch_requires_configs(server, client, session, body):
    response = send_configs(server, "PATCH", session, body)
    assert response.status == 400
    assert "configs" in response.error_message()
    assert client.sessions.get_configs(session.id) == session


def test_a_patch_has_a_size_limit(client, session):
    largest = {"a": "x" * (65_536 - len('{"a":""}'))}
    assert client.sessions.patch_configs(session.id, configs=largest) == session.configs | largest
    with raises_error(400, "configs size exceeds 64KB limit"):
        client.sessions.patch_configs(session.id, configs={"a": largest["a"] + "x"})
    assert read_configs(client, session) == session.configs | largest


def test_configs_over_1_mib_are_413_after_a_put_or_patch(client, session):
    with raises_error(413, "configs"):
        client.sessions.update_configs(session.id, configs={"a": HALF_MIB, "b": HALF_MIB})
    assert read_configs(client, session) == session.configs
    client.sessions.update_configs(session.id, configs={"a": HALF_MIB})
    # No single patch is too large, but the result of the ninth one is.
    for number in range(8):
        client.sessions.patch_configs(session.id, configs={f"x{number}": "x" * 65_000})
    before = read_configs(client, session)
    with raises_error(413, "configs"):
        client.sessions.patch_configs(session.id, configs={"x8": "x" * 65_000})
    assert read_configs(client, session) == before


# ----- filter -----


def test_the_filter_uses_the_current_configs(client):
    mark = str(uuid.uuid4())
    sessions = [client.sessions.create(configs={"mark": mark, "state": "new"}) for _ in range(3)]

    def find_indexes(**configs):
        listed = client.sessions.list(filter_by_configs={"mark": mark, **configs}).items
        return [sessions.index(next(one for one in sessions if one.id == session.id)) for session in listed]

    assert (find_indexes(), find_indexes(state="new")) == ([0, 1, 2], [0, 1, 2])
    client.sessions.patch_configs(sessions[0].id, configs={"state": "done"})
    client.sessions.update_configs(sessions[1].id, configs={"mark": mark, "state": "new", "deep": {"a": [1, 2]}})
    client.sessions.patch_configs(sessions[2].id, configs={"state": None})
    assert find_indexes(state="new") == [1]
    assert find_indexes(state="done") == [0]
    assert find_indexes(deep={"a": [2]}) == [1]
    assert find_indexes() == [0, 1, 2]
    client.sessions.update_configs(sessions[1].id, configs={})
    client.sessions.patch_configs(sessions[2].id, configs={"mark": None})
    assert find_indexes() == [0]


# ----- the asynchronous client -----


def test_async_configs(server):
    mark = str(uuid.uuid4())

    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        assert await sessions.update_configs(session.id, configs={"mark": mark, "n": 1, "deep": {"a": 1}}) is None
        patched = await sessions.patch_configs(session.id, configs={"n": None, "deep": {"b": None}})
        assert patched == {"mark": mark, "deep": {"b": None}}
        stored = await sessions.get_configs(session.id)
        assert (stored.id, stored.configs) == (session.id, patched)
        assert (await sessions.list(filter_by_configs={"mark": mark, "deep": {}})).items == [stored]
        assert (await sessions.list(filter_by_configs={"mark": mark, "n": 1})).items == []

    run_async(server, steps)
