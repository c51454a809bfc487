"""What a project sets for itself, key by key."""

import asyncio
import json

import httpx
import pytest

from support import asynchronously, eventually, new_project, refused, say
from wire import exchange

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
BAD_BODY = "invalid or too-large JSON body (max 64KB)"


@pytest.fixture(scope="module")
def setting_nothing(server):
    _, key = new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture
def unset(setting_nothing):
    """A client of a project in which nothing is set; what a test sets all the same does not trouble the next."""
    client = setting_nothing
    yield client
    left = settings(client)
    if left:
        update(client, dict.fromkeys(left))


def settings(client):
    """All that is set, and that the project is not encrypted."""
    shown = client.request("GET", "/project/configs")
    assert shown.pop("encryption_enabled") is False
    return shown


def update(client, configs):
    return client.request("PATCH", "/project/configs", json_data=configs)


def send(server, body):
    return exchange(server, "PATCH", PATH, JSON, body)


def body_of(size):
    """A patch of just this size."""
    frame = len(b'{"big": ""}')
    return b'{"big": "%b"}' % (b"x" * (size - frame))


def test_settings_begin_empty(unset):
    assert unset.request("GET", "/project/configs", unwrap=False) == {
        "code": 0,
        "data": {"encryption_enabled": False},
        "msg": "ok",
    }
    found = unset.project.get_configs()
    assert (found.task_success_criteria, found.task_failure_criteria) == (None, None)


def test_settings_are_merged_and_null_takes_one_away(fresh):
    first = fresh.project.update_configs({"task_success_criteria": "Green", NUMBERS[1]: 4})
    assert (first.task_success_criteria, first.model_extra) == ("Green", {NUMBERS[1]: 4})
    assert settings(fresh) == {"task_success_criteria": "Green", NUMBERS[1]: 4}
    merged = update(fresh, {"task_failure_criteria": "Red", "task_success_criteria": "All green"})
    assert merged == {"task_failure_criteria": "Red", "task_success_criteria": "All green", NUMBERS[1]: 4}
    assert settings(fresh) == merged
    less = fresh.project.update_configs({"task_success_criteria": None})
    assert (less.task_success_criteria, less.task_failure_criteria) == (None, "Red")
    assert settings(fresh) == {"task_failure_criteria": "Red", NUMBERS[1]: 4}
    # Taking away what is not there changes nothing.
    assert update(fresh, {"never_set": None}) == settings(fresh) == {"task_failure_criteria": "Red", NUMBERS[1]: 4}


def test_settings_that_the_server_does_not_know_are_kept(fresh):
    update(fresh, {"colour": "blue", "nested": {"a": [1, None]}, "flag": False, "": ""})
    # Only the first level is merged.
    update(fresh, {"nested": {"b": 2}})
    assert settings(fresh) == {"colour": "blue", "nested": {"b": 2}, "flag": False, "": ""}
    found = fresh.project.get_configs()
    assert (found.colour, found.nested, found.encryption_enabled) == ("blue", {"b": 2}, False)


def test_numbers_keep_all_their_digits(server):
    digits = (b"12345678901234567890.123456789012345", b"1.10")
    written = send(server, b'{"long":%b,"money":%b}' % digits)
    read = exchange(server, "GET", PATH)
    assert (written.status, read.status) == (200, 200)
    for answer in (written, read):
        assert all(number in answer.body for number in digits)
    send(server, b'{"long":null,"money":null}')


def test_what_operators_set_at_the_beginning_is_theirs(server):
    """A new project's configs are a whole, of which the settings are a part."""
    _, key = new_project(server, project_config={"task_success_criteria": "Green"}, of_the_operator=1)
    with server.client(key) as client:
        assert settings(client) == {"task_success_criteria": "Green"}
        assert update(client, {"a": 1}) == {"task_success_criteria": "Green", "a": 1}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [5, True, ["a"], {"a": 1}])
def test_criteria_are_texts(unset, name, value):
    with refused(400, f"{name} must be a string"):
        unset.project.update_configs({name: value, "fine": 1})
    assert settings(unset) == {}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["x" * 2001, "ü" * 1001])
def test_criteria_are_short(unset, name, text):
    with refused(400, f"{name} exceeds max length (2000 chars)"):
        unset.project.update_configs({name: text, "fine": 1})
    assert settings(unset) == {}


@pytest.mark.parametrize("text", ["", "x" * 2000, "ü" * 1000, "two\nlines \" \\ 寿司"])
def test_criteria_may_be_any_text_up_to_2000_bytes(fresh, text):
    fresh.project.update_configs({name: text for name in TEXTS})
    found = fresh.project.get_configs()
    assert (found.task_success_criteria, found.task_failure_criteria) == (text, text)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_whole_and_not_negative(fresh, name):
    assert update(fresh, {name: 4}) == {name: 4}
    for value in ("many", "4", 1.5, -1, True, [4], {}):
        with refused(400, name):
            update(fresh, {name: value, "fine": 1})
    assert settings(fresh) == {name: 4}
    assert update(fresh, {name: None}) == {}


def test_a_refused_key_refuses_the_whole_patch(fresh):
    update(fresh, {"task_success_criteria": "Green", "a": 1})
    with refused(400):
        update(fresh, {"a": 2, "task_success_criteria": None, NUMBERS[0]: "many"})
    assert settings(fresh) == {"task_success_criteria": "Green", "a": 1}


@pytest.mark.parametrize(
    "body, words",
    [
        (b"{}", "empty body"),
        (b"null", "empty body"),
        (b"[1]", BAD_BODY),
        (b'"text"', BAD_BODY),
        (b"{broken", BAD_BODY),
        (b"", BAD_BODY),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'{"a": 1e100000}', "configs"),
    ],
)
def test_a_patch_that_is_no_object_or_cannot_be_kept_is_refused(server, client, body, words):
    before = settings(client)
    answer = send(server, body)
    assert answer.status == 400 and words in answer.refusal()
    assert settings(client) == before


def test_a_patch_has_up_to_64_kib(server, client):
    before = settings(client)
    answer = send(server, body_of(65_537))
    assert answer.status == 413 and BAD_BODY in answer.refusal()
    assert settings(client) == before
    assert send(server, body_of(65_536)).status == 200
    assert len(settings(client)["big"]) > 65_000
    update(client, {"big": None})


def test_all_settings_together_have_up_to_1_mib(fresh):
    for number in range(17):
        update(fresh, {f"k{number}": "x" * 61_000})
    with refused(413, "configs"):
        update(fresh, {"last": "x" * 61_000})
    assert sorted(settings(fresh)) == sorted(f"k{number}" for number in range(17))
    # Room can be made.
    assert "last" in update(fresh, {"k0": None, "last": "x" * 61_000})


def test_nobody_encrypts_a_project_by_a_setting(fresh):
    assert update(fresh, {"encryption_enabled": True}) == {"encryption_enabled": True}
    assert fresh.project.get_configs().encryption_enabled is False
    assert fresh.disks.create().id


def test_settings_are_of_one_project(fresh, unset):
    update(fresh, {"task_success_criteria": "Green"})
    assert settings(unset) == {}


def test_settings_are_read_as_they_were_written(fresh):
    for number in range(5):
        update(fresh, {"n": number})
        assert settings(fresh) == {"n": number}


def test_settings_act_at_once(start):
    """So many messages are observed without waiting longer."""
    server = start(LLM_SDK="mock", SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS="1h")
    with server.client() as client:
        session = client.sessions.create()
        client.project.update_configs({"project_session_message_buffer_max_turns": 3})
        for _ in range(2):
            say(client, session)
        assert client.sessions.messages_observing_status(session.id).pending == 2
        say(client, session)
        eventually(lambda: client.sessions.messages_observing_status(session.id).observed == 3, "they are observed")
        client.project.update_configs({"project_session_message_buffer_max_turns": None})
        jobs = f"select count(*) from jobs where dedupe_key = '{session.id}'"
        eventually(lambda: server.psql(jobs) == "0", "the session's job ends")
        for _ in range(3):
            say(client, session)
        assert client.sessions.messages_observing_status(session.id).pending == 3
    server.stop()


def test_a_patch_that_is_sent_again_is_done_once(server):
    _, key = new_project(server)
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "a-patch"}

    def patch(configs, **more):
        return httpx.patch(server.origin + PATH, json=configs, headers=headers | more, trust_env=False)

    first = patch({"a": 1})
    assert patch({"a": 2}, **{"Idempotency-Key": "another"}).json()["data"] == {"a": 2}
    again = patch({"a": 1})
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert json.loads(again.content) == first.json()
    with server.client(key) as client:
        assert settings(client) == {"a": 2}


def test_settings_want_a_key(server):
    for method, body in (("GET", b""), ("PATCH", b'{"a": 1}')):
        for key in (None, "Bearer sk-ac-wrong"):
            assert exchange(server, method, PATH, JSON | {"Authorization": key}, body).status == 401


def test_many_patches_at_once_are_all_there(server):
    async def steps(client):
        await asyncio.gather(*(client.project.update_configs({f"at-once-{n}": n}) for n in range(8)))
        found = (await client.project.get_configs()).model_extra
        assert {key: value for key, value in found.items() if key.startswith("at-once-")} == {
            f"at-once-{n}": n for n in range(8)
        }
        await client.project.update_configs({f"at-once-{n}": None for n in range(8)})
        assert not any(key.startswith("at-once-") for key in (await client.project.get_configs()).model_extra)

    asynchronously(server, steps)
