"""What clients keep with a session: put as a whole, patched key by key, and looked for."""

import asyncio
import json
import uuid
from datetime import datetime

import pytest

from support import asynchronously, refused, say
from wire import exchange

JSON = {"Content-Type": "application/json"}
LARGE = "x" * (1 << 19)


@pytest.fixture
def session(client):
    return client.sessions.create(configs={"agent": "bot", "n": 1, "deep": {"a": 1, "b": 2}})


def kept(client, session):
    return client.sessions.get_configs(session.id).configs


def send(server, method, session, body):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, method, f"/api/v1/session/{session.id}/configs", JSON, body)


# ----- putting -----


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
def test_a_put_replaces_everything(client, session, configs):
    assert client.sessions.update_configs(session.id, configs=configs) is None
    assert kept(client, session) == configs


def test_a_put_of_nothing_changes_nothing(server, client, session):
    for body in ({"configs": None}, {}, {"unknown": 1}):
        answer = send(server, "PUT", session, body)
        assert (answer.status, answer.json()) == (200, {"code": 0, "msg": ""})
    assert kept(client, session) == session.configs


def test_a_put_touches_nothing_but_the_configs(client, session):
    message = say(client, session)
    client.sessions.update_configs(session.id, configs={"new": True})
    now = client.sessions.get_configs(session.id)
    assert now.model_copy(update={"configs": session.configs, "updated_at": session.updated_at}) == session
    assert datetime.fromisoformat(now.updated_at) > datetime.fromisoformat(session.updated_at)
    assert client.sessions.get_messages(session.id).ids == [message.id]


# ----- patching -----


@pytest.mark.parametrize(
    "patch, left",
    [
        ({}, {"agent": "bot", "n": 1, "deep": {"a": 1, "b": 2}}),
        ({"agent": "new"}, {"agent": "new", "n": 1, "deep": {"a": 1, "b": 2}}),
        ({"added": [1, {"x": None}]}, {"agent": "bot", "n": 1, "deep": {"a": 1, "b": 2}, "added": [1, {"x": None}]}),
        # null takes a key away, also one that is not there.
        ({"n": None, "missing": None}, {"agent": "bot", "deep": {"a": 1, "b": 2}}),
        ({"agent": None, "n": None, "deep": None}, {}),
        # Only the first level is patched: what lies below is replaced, and null is a value there.
        ({"deep": {"c": None}}, {"agent": "bot", "n": 1, "deep": {"c": None}}),
        ({"deep": {}}, {"agent": "bot", "n": 1, "deep": {}}),
        ({"n": False, "": 2**53 + 1}, {"agent": "bot", "n": False, "deep": {"a": 1, "b": 2}, "": 2**53 + 1}),
    ],
)
def test_a_patch_sets_keys_and_takes_them_away(client, session, patch, left):
    assert client.sessions.patch_configs(session.id, configs=patch) == left
    assert kept(client, session) == left


def test_a_session_without_configs_may_be_patched(client):
    session = client.sessions.create()
    assert kept(client, session) is None
    assert client.sessions.patch_configs(session.id, configs={"gone": None}) == {}
    assert kept(client, session) == {}
    assert client.sessions.patch_configs(session.id, configs={"here": 1}) == {"here": 1}


def test_patches_at_once_lose_nothing(server, session):
    async def steps(client):
        patches = [client.sessions.patch_configs(session.id, configs={f"k{number}": number}) for number in range(20)]
        for number, patched in enumerate(await asyncio.gather(*patches)):
            assert patched[f"k{number}"] == number
        wanted = session.configs | {f"k{number}": number for number in range(20)}
        assert (await client.sessions.get_configs(session.id)).configs == wanted

    asynchronously(server, steps)


# ----- what is refused -----


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
def test_configs_that_make_no_sense_are_refused_by_name(server, client, session, method, body, field):
    answer = send(server, method, session, body)
    assert answer.status == 400
    assert field in answer.refusal()
    assert client.sessions.get_configs(session.id) == session


@pytest.mark.parametrize("body", [{}, {"configs": None}])
def test_a_patch_needs_something_to_patch(server, client, session, body):
    answer = send(server, "PATCH", session, body)
    assert answer.status == 400
    assert "configs" in answer.refusal()
    assert client.sessions.get_configs(session.id) == session


def test_a_patch_has_a_limit(client, session):
    most = {"a": "x" * (65_536 - len('{"a":""}'))}
    assert client.sessions.patch_configs(session.id, configs=most) == session.configs | most
    with refused(400, "configs size exceeds 64KB limit"):
        client.sessions.patch_configs(session.id, configs={"a": most["a"] + "x"})
    assert kept(client, session) == session.configs | most


def test_configs_over_a_mebibyte_are_413_however_they_come_about(client, session):
    with refused(413, "configs"):
        client.sessions.update_configs(session.id, configs={"a": LARGE, "b": LARGE})
    assert kept(client, session) == session.configs
    client.sessions.update_configs(session.id, configs={"a": LARGE})
    # No patch is too large by itself, but the ninth is one too many.
    for number in range(8):
        client.sessions.patch_configs(session.id, configs={f"x{number}": "x" * 65_000})
    before = kept(client, session)
    with refused(413, "configs"):
        client.sessions.patch_configs(session.id, configs={"x8": "x" * 65_000})
    assert kept(client, session) == before


# ----- finding -----


def test_a_session_is_found_by_its_configs_of_now(client):
    mark = str(uuid.uuid4())
    sessions = [client.sessions.create(configs={"mark": mark, "state": "new"}) for _ in range(3)]

    def found(**configs):
        listed = client.sessions.list(filter_by_configs={"mark": mark, **configs}).items
        return [sessions.index(next(one for one in sessions if one.id == session.id)) for session in listed]

    assert (found(), found(state="new")) == ([0, 1, 2], [0, 1, 2])
    client.sessions.patch_configs(sessions[0].id, configs={"state": "done"})
    client.sessions.update_configs(sessions[1].id, configs={"mark": mark, "state": "new", "deep": {"a": [1, 2]}})
    client.sessions.patch_configs(sessions[2].id, configs={"state": None})
    assert found(state="new") == [1]
    assert found(state="done") == [0]
    assert found(deep={"a": [2]}) == [1]
    assert found() == [0, 1, 2]
    client.sessions.update_configs(sessions[1].id, configs={})
    client.sessions.patch_configs(sessions[2].id, configs={"mark": None})
    assert found() == [0]


# ----- the asynchronous client -----


def test_async_configs(server):
    mark = str(uuid.uuid4())

    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        assert await sessions.update_configs(session.id, configs={"mark": mark, "n": 1, "deep": {"a": 1}}) is None
        patched = await sessions.patch_configs(session.id, configs={"n": None, "deep": {"b": None}})
        assert patched == {"mark": mark, "deep": {"b": None}}
        got = await sessions.get_configs(session.id)
        assert (got.id, got.configs) == (session.id, patched)
        assert (await sessions.list(filter_by_configs={"mark": mark, "deep": {}})).items == [got]
        assert (await sessions.list(filter_by_configs={"mark": mark, "n": 1})).items == []

    asynchronously(server, steps)
