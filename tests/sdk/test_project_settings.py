"""Settings of a project, which it changes key by key."""

import asyncio
import json

import httpx
import pytest

from support import run_async, wait_until, new_project, raises_error, store_text
from raw_http import exchange

JSON = {"Content-Type": "application/json"}
PATH = "/api/v1/project/configs"
NUMBERS = [
    "project_session_message_use_previous_messages_turns",
    "project_session_message_buffer_max_turns",
    "project_session_message_buffer_max_overflow",
    "default_task_agent_max_iterations",
    "default_task_agent_previous_progress_num",
]
TEXTS = ["task_success_criteria", "task_failure_criteria"]
INVALID_BODY = "invalid or too-large JSON body (max 64KB)"


@pytest.fixture(scope="module")
def client_without_settings(server):
    _, key = new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture
def empty_client(client_without_settings):
    """A client of a project without settings. What a test sets is removed after it."""
    client = client_without_settings
    yield client
    remaining = read_settings(client)
    if remaining:
        update_settings(client, dict.fromkeys(remaining))


def read_settings(client):
    """Returns all settings, and checks that the project is not encrypted."""
    configs = client.request("GET", "/project/configs")
    assert configs.pop("encryption_enabled") is False
    return configs


def update_settings(client, configs):
    return client.request("PATCH", "/project/configs", json_data=configs)


def send_patch(server, body):
    return exchange(server, "PATCH", PATH, JSON, body)


def patch_of_size(size):
    """Returns a patch of exactly this size."""
    overhead = len(b'{"big": ""}')
    return b'{"big": "%b"}' % (b"x" * (size - overhead))


def test_a_new_project_has_no_settings(empty_client):
    assert empty_client.request("GET", "/project/configs", unwrap=False) == {
        "code": 0,
        "data": {"encryption_enabled": False},
        "msg": "ok",
    }
    configs = empty_client.project.get_configs()
    assert (configs.task_success_criteria, configs.task_failure_criteria) == (None, None)


def test_settings_are_merged_and_null_removes_one(fresh_client):
    first = fresh_client.project.update_configs({"task_success_criteria": "Green", NUMBERS[1]: 4})
    assert (first.task_success_criteria, first.model_extra) == ("Green", {NUMBERS[1]: 4})
    assert read_settings(fresh_client) == {"task_success_criteria": "Green", NUMBERS[1]: 4}
    merged = update_settings(fresh_client, {"task_failure_criteria": "Red", "task_success_criteria": "All green"})
    assert merged == {"task_failure_criteria": "Red", "task_success_criteria": "All green", NUMBERS[1]: 4}
    assert read_settings(fresh_client) == merged
    reduced = fresh_client.project.update_configs({"task_success_criteria": None})
    assert (reduced.task_success_criteria, reduced.task_failure_criteria) == (None, "Red")
    assert read_settings(fresh_client) == {"task_failure_criteria": "Red", NUMBERS[1]: 4}
    # The removal of an unknown setting changes nothing.
    unchanged = {"task_failure_criteria": "Red", NUMBERS[1]: 4}
    assert update_settings(fresh_client, {"never_set": None}) == read_settings(fresh_client) == unchanged


def test_unknown_settings_are_preserved(fresh_client):
    update_settings(fresh_client, {"color": "blue", "nested": {"a": [1, None]}, "flag": False, "": ""})
    # Only the first level is merged.
    update_settings(fresh_client, {"nested": {"b": 2}})
    assert read_settings(fresh_client) == {"color": "blue", "nested": {"b": 2}, "flag": False, "": ""}
    configs = fresh_client.project.get_configs()
    assert (configs.color, configs.nested, configs.encryption_enabled) == ("blue", {"b": 2}, False)


def test_numbers_are_stored_with_all_digits(server):
    digits = (b"12345678901234567890.123456789012345", b"1.10")
    patched = send_patch(server, b'{"long":%b,"money":%b}' % digits)
    current = exchange(server, "GET", PATH)
    assert (patched.status, current.status) == (200, 200)
    for response in (patched, current):
        assert all(number in response.body for number in digits)
    send_patch(server, b'{"long":null,"money":null}')


def test_a_project_starts_with_the_settings_of_the_operator(server):
    """The settings are one part of the configs with which the operator creates a project."""
    _, key = new_project(server, project_config={"task_success_criteria": "Green"}, operator_value=1)
    with server.client(key) as client:
        assert read_settings(client) == {"task_success_criteria": "Green"}
        assert update_settings(client, {"a": 1}) == {"task_success_criteria": "Green", "a": 1}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [5, True, ["a"], {"a": 1}])
def test_criteria_must_be_strings(empty_client, name, value):
    with raises_error(400, f"{name} must be a string"):
        empty_client.project.update_configs({name: value, "fine": 1})
    assert read_settings(empty_client) == {}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["x" * 2001, "ü" * 1001])
def test_criteria_have_a_maximum_length(empty_client, name, text):
    with raises_error(400, f"{name} exceeds max length (2000 chars)"):
        empty_client.project.update_configs({name: text, "fine": 1})
    assert read_settings(empty_client) == {}


@pytest.mark.parametrize("text", ["", "x" * 2000, "ü" * 1000, "two\nlines \" \\ 寿司"])
def test_criteria_may_be_any_text_up_to_2000_bytes(fresh_client, text):
    fresh_client.project.update_configs({name: text for name in TEXTS})
    configs = fresh_client.project.get_configs()
    assert (configs.task_success_criteria, configs.task_failure_criteria) == (text, text)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_must_be_integers_and_not_negative(fresh_client, name):
    assert update_settings(fresh_client, {name: 4}) == {name: 4}
    for value in ("many", "4", 1.5, -1, True, [4], {}):
        with raises_error(400, name):
            update_settings(fresh_client, {name: value, "fine": 1})
    assert read_settings(fresh_client) == {name: 4}
    assert update_settings(fresh_client, {name: None}) == {}


def test_an_invalid_key_invalidates_the_whole_patch(fresh_client):
    update_settings(fresh_client, {"task_success_criteria": "Green", "a": 1})
    with raises_error(400):
        update_settings(fresh_client, {"a": 2, "task_success_criteria": None, NUMBERS[0]: "many"})
    assert read_settings(fresh_client) == {"task_success_criteria": "Green", "a": 1}


@pytest.mark.parametrize(
    "body, words",
    [
        (b"{}", "empty body"),
        (b"null", "empty body"),
        (b"[1]", INVALID_BODY),
        (b'"text"', INVALID_BODY),
        (b"{broken", INVALID_BODY),
        (b"", INVALID_BODY),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'{"a": 1e100000}', "configs"),
    ],
)
def test_an_invalid_patch_is_rejected(server, client, body, words):
    before = read_settings(client)
    response = send_patch(server, body)
    assert response.status == 400 and words in response.error_message()
    assert read_settings(client) == before


def test_a_patch_may_have_up_to_64_kib(server, client):
    before = read_settings(client)
    response = send_patch(server, patch_of_size(65_537))
    assert response.status == 413 and INVALID_BODY in response.error_message()
    assert read_settings(client) == before
    assert send_patch(server, patch_of_size(65_536)).status == 200
    assert len(read_settings(client)["big"]) > 65_000
    update_settings(client, {"big": None})


def test_all_settings_together_may_have_up_to_1_mib(fresh_client):
    for number in range(17):
        update_settings(fresh_client, {f"k{number}": "x" * 61_000})
    with raises_error(413, "configs"):
        update_settings(fresh_client, {"last": "x" * 61_000})
    assert sorted(read_settings(fresh_client)) == sorted(f"k{number}" for number in range(17))
    # A setting that is removed in the same patch makes room.
    assert "last" in update_settings(fresh_client, {"k0": None, "last": "x" * 61_000})


def test_a_setting_does_not_encrypt_a_project(fresh_client):
    assert update_settings(fresh_client, {"encryption_enabled": True}) == {"encryption_enabled": True}
    assert fresh_client.project.get_configs().encryption_enabled is False
    assert fresh_client.disks.create().id


def test_settings_apply_to_one_project(fresh_client, empty_client):
    update_settings(fresh_client, {"task_success_criteria": "Green"})
    assert read_settings(empty_client) == {}


def test_an_update_is_visible_immediately(fresh_client):
    for number in range(5):
        update_settings(fresh_client, {"n": number})
        assert read_settings(fresh_client) == {"n": number}


def test_settings_take_effect_immediately(start_server):
    """The setting is the number of pending messages that are observed without a further delay."""
    server = start_server(LLM_SDK="mock", SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS="1h")
    with server.client() as client:
        session = client.sessions.create()
        client.project.update_configs({"project_session_message_buffer_max_turns": 3})
        for _ in range(2):
            store_text(client, session)
        assert client.sessions.messages_observing_status(session.id).pending == 2
        store_text(client, session)
        wait_until(lambda: client.sessions.messages_observing_status(session.id).observed == 3, "messages are observed")
        client.project.update_configs({"project_session_message_buffer_max_turns": None})
        jobs = f"select count(*) from jobs where dedupe_key = '{session.id}'"
        wait_until(lambda: server.psql(jobs) == "0", "the session's job ends")
        for _ in range(3):
            store_text(client, session)
        assert client.sessions.messages_observing_status(session.id).pending == 3
    server.stop()


def test_a_repeated_patch_is_applied_once(server):
    _, key = new_project(server)
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "a-patch"}

    def patch(configs, **other_headers):
        return httpx.patch(server.origin + PATH, json=configs, headers=headers | other_headers, trust_env=False)

    first = patch({"a": 1})
    assert patch({"a": 2}, **{"Idempotency-Key": "another"}).json()["data"] == {"a": 2}
    replayed = patch({"a": 1})
    assert (replayed.status_code, replayed.headers["idempotent-replayed"]) == (200, "true")
    assert json.loads(replayed.content) == first.json()
    with server.client(key) as client:
        assert read_settings(client) == {"a": 2}


def test_settings_require_an_api_key(server):
    for method, body in (("GET", b""), ("PATCH", b'{"a": 1}')):
        for key in (None, "Bearer sk-ac-wrong"):
            assert exchange(server, method, PATH, JSON | {"Authorization": key}, body).status == 401


def test_concurrent_patches_are_all_applied(server):
    async def steps(client):
        await asyncio.gather(*(client.project.update_configs({f"concurrent-{n}": n}) for n in range(8)))
        configs = (await client.project.get_configs()).model_extra
        assert {key: value for key, value in configs.items() if key.startswith("concurrent-")} == {
            f"concurrent-{n}": n for n in range(8)
        }
        await client.project.update_configs({f"concurrent-{n}": None for n in range(8)})
        assert not any(key.startswith("concurrent-") for key in (await client.project.get_configs()).model_extra)

    run_async(server, steps)
