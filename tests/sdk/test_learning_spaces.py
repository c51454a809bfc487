"""Learning spaces, as an application uses them with the SDK: their skills, and the learning of sessions."""

import asyncio
import json
from datetime import datetime

import pytest

from acontext.errors import APIError, TimeoutError
from raw_http import exchange
from support import Server, raises_error, run_async, store_text, temporary_home, wait_until
from zip_fixtures import add_skill, send_archive, skill_paths, unpack

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
DEFAULTS = ["daily-logs", "user-general-facts"]
JSON = {"Content-Type": "application/json"}
SPACES = "/api/v1/learning_spaces"


@pytest.fixture
def space(client):
    return client.learning_spaces.create()


@pytest.fixture
def session(client):
    return client.sessions.create()


def skill_names(client, space):
    return [skill.name for skill in client.learning_spaces.list_skills(space.id)]


def space_ids(page):
    return [space.id for space in page.items]


def learn_session(client, space, session):
    return client.learning_spaces.learn(space.id, session_id=session.id)


def learning_status(client, space, session):
    return client.learning_spaces.get_session(space.id, session_id=session.id).status


def send_json(server, method, path, body, **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, method, SPACES + path, JSON | headers, body)


def add_task(server, session, order, status):
    """Inserts a task with SQL, because no request can create one."""
    data = json.dumps({"task_description": f"task {order}"})
    server.psql(
        'insert into tasks (session_id, project_id, "order", data, status, is_planning) values'
        f" ('{session.id}', '{session.project_id}', {order}, '{data}', '{status}', false)"
    )


def test_quickstart(client):
    """Creates and uses a space and learns a session, in the order of a quick start guide."""
    space = client.learning_spaces.create(user="space newcomer", meta={"source": "cli"})
    assert space.meta == {"source": "cli"}
    assert client.learning_spaces.get(space.id) == space
    assert client.learning_spaces.list(user="space newcomer", filter_by_meta={"source": "cli"}).items == [space]

    skill = add_skill(client, name="contacts")
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    assert skill_names(client, space) == [*DEFAULTS, "contacts"]
    client.learning_spaces.exclude_skill(space.id, skill_id=skill.id)
    assert skill_names(client, space) == DEFAULTS

    session = client.sessions.create(user="space newcomer")
    assert learn_session(client, space, session).status == "pending"
    learned = client.learning_spaces.wait_for_learning(space.id, session_id=session.id)
    assert (learned.session_id, learned.status) == (session.id, "completed")
    assert client.learning_spaces.list_sessions(space.id) == [learned]

    updated = client.learning_spaces.update(space.id, meta={"seen": True})
    assert updated.meta == {"source": "cli", "seen": True}
    client.learning_spaces.delete(space.id)
    with raises_error(404, "learning space not found"):
        client.learning_spaces.get(space.id)


# ----- creating -----


def test_a_space_without_a_user_has_null_as_user_id(client, space):
    response = client.request("GET", f"/learning_spaces/{space.id}")
    times = {"created_at": space.created_at, "updated_at": space.created_at}
    assert response == {"id": space.id, "user_id": None, "meta": None} | times


def test_a_body_of_null_is_an_empty_object(server):
    for body in (b"null", b"{}", b'{"user": null, "meta": null}', b'{"user": ""}'):
        response = send_json(server, "POST", "", body)
        assert response.status == 201
        assert (response.json()["data"]["user_id"], response.json()["data"]["meta"]) == (None, None)


@pytest.mark.parametrize(
    "body, field",
    [
        ({"user": 5}, "user"),
        ({"user": "u" * 1025}, "user"),
        ({"user": "a\0b"}, "user"),
        ({"meta": [1]}, "meta"),
        ({"meta": "text"}, "meta"),
        ({"meta": {"a": "\0"}}, "meta"),
        ({"user": "never created", "meta": 5}, "meta"),
        ([1], "body"),
        (b"{broken", "body"),
        (b"", "body"),
    ],
)
def test_an_invalid_space_is_not_created(server, client, body, field):
    newest = client.learning_spaces.list(time_desc=True, limit=1)
    response = send_json(server, "POST", "", body)
    assert response.status == 400 and field in response.error_message()
    assert client.learning_spaces.list(time_desc=True, limit=1) == newest
    with raises_error(404, "user not found"):
        client.users.get_resources("never created")


def test_meta_over_1_mib_is_413(client):
    with raises_error(413, "meta"):
        client.learning_spaces.create(meta={"a": "x" * (1 << 20)})


def test_numbers_in_meta_keep_all_digits(server):
    digits = (b"12345678901234567890.123456789012345", b"1.10")
    created = send_json(server, "POST", "", b'{"meta":{"long":%b,"money":%b}}' % digits)
    path = "/" + created.json()["data"]["id"]
    for response in (
        created,
        exchange(server, "GET", SPACES + path),
        send_json(server, "PATCH", path, {"meta": {"other": 1}}),
    ):
        assert all(number in response.body for number in digits)


# ----- default skills -----


def test_a_new_space_has_two_default_skills(client):
    space = client.learning_spaces.create(user="space beginner")
    skills = client.learning_spaces.list_skills(space.id)
    assert [skill.name for skill in skills] == DEFAULTS
    assert {skill.user_id for skill in skills} == {space.user_id} != {None}
    assert {skill.disk_id for skill in skills} == {disk.id for disk in client.disks.list(user="space beginner").items}
    assert [item.name for item in client.skills.list_catalog(user="space beginner").items] == DEFAULTS
    for skill in skills:
        assert (skill_paths(skill), skill.meta) == (["SKILL.md"], None)
        assert client.skills.get(skill.id) == skill


def test_default_skills_can_be_uploaded_as_archives(client, space):
    """The skill that is created from a downloaded default skill has the same name, description and files."""
    for skill in client.learning_spaces.list_skills(space.id):
        text = client.skills.get_file(skill_id=skill.id, file_path="SKILL.md").content.raw
        assert text.startswith("---\nname: ") and len(text) > 500
        archive = client.skills.download_zip(skill.id)
        assert unpack(archive) == {"SKILL.md": text.encode()}
        uploaded = send_archive(client, archive)
        assert (uploaded.name, uploaded.description) == (skill.name, skill.description)
        assert uploaded.file_index == skill.file_index


def test_each_space_has_its_own_default_skills(client):
    first, second = client.learning_spaces.create(), client.learning_spaces.create()
    (skill, _), (other, _) = (client.learning_spaces.list_skills(each.id) for each in (first, second))
    client.artifacts.upsert(skill.disk_id, file=("2026-03-14.md", b"# 2026-03-14\n"), file_path="/")
    assert skill.id != other.id
    assert skill_paths(client.learning_spaces.list_skills(first.id)[0]) == ["2026-03-14.md", "SKILL.md"]
    assert client.learning_spaces.list_skills(second.id)[0] == other


# ----- listing -----


@pytest.fixture(scope="module")
def listed(client):
    create = client.learning_spaces.create
    return [
        create(user="space lister", meta={"source": "cli", "n": 1, "deep": {"a": 1, "b": 2}}),
        create(user="space lister", meta={"source": "cli", "n": "1", "tags": ["x", "y"]}),
        create(user="space lister", meta={"source": "ui"}),
        create(user="space lister"),
        create(user="space other lister", meta={"source": "cli"}),
    ]


def test_paging_returns_every_space_once_in_both_orders(client, listed):
    all_ids = [space.id for space in listed[:4]]

    def read_pages(limit, **order):
        pages, cursor = [], None
        while True:
            page = client.learning_spaces.list(user="space lister", limit=limit, cursor=cursor, **order)
            pages.append(space_ids(page))
            assert bool(page.next_cursor) == page.has_more
            if not page.has_more:
                return pages
            cursor = page.next_cursor

    assert read_pages(3) == [all_ids[:3], all_ids[3:]]
    assert read_pages(3, time_desc=True) == [all_ids[:0:-1], all_ids[:1]]
    assert read_pages(4) == [all_ids]


@pytest.mark.parametrize(
    "filter, expected",
    [
        ({"source": "cli"}, [0, 1]),
        ({"n": 1}, [0]),
        ({"n": "1"}, [1]),
        ({"deep": {"a": 1}}, [0]),
        ({"deep": {"a": 2}}, []),
        ({"tags": ["y"]}, [1]),
        ({"source": "cli", "n": 1}, [0]),
        ({"none": None}, []),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_a_filter_finds_spaces_by_contained_meta(client, listed, filter, expected):
    page = client.learning_spaces.list(user="space lister", filter_by_meta=filter)
    assert space_ids(page) == [listed[index].id for index in expected]


def test_an_empty_filter_matches_all_spaces(client, listed):
    for text in ("", "null", "{}"):
        page = client.request("GET", "/learning_spaces", params={"user": "space lister", "filter_by_meta": text})
        assert len(page["items"]) == 4


def test_a_filter_can_be_combined_with_paging(client, listed):
    params = {"user": "space lister", "filter_by_meta": {"source": "cli"}, "limit": 1}
    first = client.learning_spaces.list(**params)
    second = client.learning_spaces.list(**params, cursor=first.next_cursor)
    assert (space_ids(first), space_ids(second)) == ([listed[0].id], [listed[1].id])
    assert first.has_more and not second.has_more


def test_the_list_of_an_unknown_user_is_empty(fresh_client):
    fresh_client.learning_spaces.create(user="alice")
    page = fresh_client.request("GET", "/learning_spaces", params={"user": "unknown"})
    assert page == {"items": [], "has_more": False}


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("limit", 0, "limit"),
        ("limit", 201, "limit"),
        ("limit", -1, "limit"),
        ("limit", "x", "limit"),
        ("cursor", "garbage", "cursor"),
        ("time_desc", "maybe", "time_desc"),
        ("user", "a\0b", "user"),
        ("filter_by_meta", "[1]", "invalid filter_by_meta JSON"),
        ("filter_by_meta", '"x"', "invalid filter_by_meta JSON"),
        ("filter_by_meta", "{broken", "invalid filter_by_meta JSON"),
    ],
)
def test_an_invalid_list_parameter_is_an_error_that_names_it(client, name, value, words):
    with raises_error(400, words):
        client.request("GET", "/learning_spaces", params={name: value})


# ----- meta -----


def test_an_update_merges_top_level_keys(client):
    space = client.learning_spaces.create(meta={"a": 1, "deep": {"x": 1}})
    update = client.learning_spaces.update
    merged = update(space.id, meta={"b": 2, "deep": {"y": 2}})
    assert merged.meta == {"a": 1, "b": 2, "deep": {"y": 2}}
    assert datetime.fromisoformat(merged.updated_at) > datetime.fromisoformat(space.updated_at)
    assert merged.created_at == space.created_at
    # Null is a value.
    assert update(space.id, meta={"a": None}).meta == {"a": None, "b": 2, "deep": {"y": 2}}
    last = update(space.id, meta={})
    assert last.meta == {"a": None, "b": 2, "deep": {"y": 2}}
    assert client.learning_spaces.get(space.id) == last
    response = client.request("GET", f"/learning_spaces/{space.id}")
    assert "a" in response["meta"]


def test_a_space_without_meta_can_be_updated(client, space):
    assert client.learning_spaces.update(space.id, meta={"a": 1}).meta == {"a": 1}


@pytest.mark.parametrize(
    "body, words",
    [
        ({}, "meta"),
        ({"meta": None}, "meta"),
        ({"meta": [1]}, "meta"),
        ({"meta": "x"}, "meta"),
        ({"meta": {"a": "\0"}}, "meta"),
        ([], "body"),
        (b"{", "body"),
        (b"", "body"),
    ],
)
def test_an_update_without_a_valid_object_is_400(server, client, body, words):
    space = client.learning_spaces.create(meta={"a": 1})
    response = send_json(server, "PATCH", f"/{space.id}", body)
    assert response.status == 400 and words in response.error_message()
    assert client.learning_spaces.get(space.id) == space


def test_an_update_to_meta_over_1_mib_is_413(client, space):
    updated = client.learning_spaces.update(space.id, meta={"a": "x" * (1 << 19)})
    with raises_error(413, "meta"):
        client.learning_spaces.update(space.id, meta={"b": "x" * (1 << 19)})
    assert client.learning_spaces.get(space.id) == updated


# ----- skills in a space -----


def test_a_skill_can_be_in_several_spaces(client, space):
    other, skill = client.learning_spaces.create(), add_skill(client, name="shared")
    link = client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    assert (link.learning_space_id, link.skill_id) == (space.id, skill.id)
    client.learning_spaces.include_skill(other.id, skill_id=skill.id)
    for each in (space, other):
        assert client.learning_spaces.list_skills(each.id)[-1] == skill
    client.skills.delete(skill.id)
    assert skill_names(client, space) == skill_names(client, other) == DEFAULTS


def test_a_space_lists_the_current_state_of_its_skills(client, space):
    """Plugins download a skill again when its time of update has changed."""
    skill = add_skill(client)
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    client.artifacts.upsert(skill.disk_id, file=("b.txt", b"b"), file_path="/a/")
    listed = client.learning_spaces.list_skills(space.id)[-1]
    assert listed == client.skills.get(skill.id)
    assert skill_paths(listed) == ["SKILL.md", "a/b.txt"] and listed.updated_at != skill.updated_at
    assert client.learning_spaces.list_skills(space.id)[-1] == listed


def test_a_space_has_one_skill_of_each_name(client, space):
    skill, duplicate = add_skill(client, name="contacts"), add_skill(client, name="contacts")
    include = client.learning_spaces.include_skill
    include(space.id, skill_id=skill.id)
    with raises_error(409, "skill already included in this space"):
        include(space.id, skill_id=skill.id)
    with raises_error(409, "skill with name 'contacts' already exists in this space"):
        include(space.id, skill_id=duplicate.id)
    assert client.learning_spaces.list_skills(space.id)[2:] == [skill]
    # After one skill is excluded, the other one can be included.
    client.learning_spaces.exclude_skill(space.id, skill_id=skill.id)
    include(space.id, skill_id=duplicate.id)
    assert client.learning_spaces.list_skills(space.id)[2:] == [duplicate]


def test_an_excluded_skill_is_not_deleted(client, space):
    skill = add_skill(client, name="excluded")
    exclude = client.learning_spaces.exclude_skill
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    for _ in range(2):
        exclude(space.id, skill_id=skill.id)
    exclude(space.id, skill_id=UNKNOWN_ID)
    assert skill_names(client, space) == DEFAULTS
    assert client.skills.get(skill.id) == skill
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    assert skill_names(client, space) == [*DEFAULTS, "excluded"]
    # The default skills can be excluded as well.
    for each in client.learning_spaces.list_skills(space.id):
        exclude(space.id, skill_id=each.id)
    assert client.learning_spaces.list_skills(space.id) == []


@pytest.mark.parametrize("body", [{}, {"skill_id": ""}, {"skill_id": "nope"}, {"skill_id": 5}])
def test_an_invalid_skill_id_is_an_error(server, client, space, body):
    response = send_json(server, "POST", f"/{space.id}/skills", body)
    assert response.status == 400 and "skill_id" in response.error_message()
    with raises_error(400, "skill_id"):
        client.learning_spaces.exclude_skill(space.id, skill_id="nope")
    assert skill_names(client, space) == DEFAULTS


# ----- deleting -----


def test_deleting_a_space_keeps_its_skills_and_sessions(client, space, session):
    store_text(client, session, "kept")
    skills = client.learning_spaces.list_skills(space.id)
    learn_session(client, space, session)
    client.learning_spaces.delete(space.id)
    spaces = client.learning_spaces
    for call in (
        lambda: spaces.get(space.id),
        lambda: spaces.delete(space.id),
        lambda: spaces.list_skills(space.id),
        lambda: spaces.list_sessions(space.id),
        lambda: spaces.get_session(space.id, session_id=session.id),
        lambda: spaces.update(space.id, meta={"a": 1}),
    ):
        with raises_error(404, "learning space not found"):
            call()
    assert space.id not in space_ids(spaces.list(limit=200, time_desc=True))
    assert [client.skills.get(skill.id) for skill in skills] == skills
    assert client.sessions.get_messages(session.id).items[0]["content"] == "kept"
    # Another space can learn the session now.
    assert learn_session(client, spaces.create(), session).status == "pending"


# ----- learning -----


def test_a_session_can_be_learned_only_once(client, space, session):
    other = client.learning_spaces.create()
    learned = learn_session(client, space, session)
    assert (learned.learning_space_id, learned.session_id, learned.status) == (space.id, session.id, "pending")
    for each in (space, other):
        with raises_error(409, "already learned"):
            learn_session(client, each, session)
    assert client.learning_spaces.list_sessions(other.id) == []
    with raises_error(404, "learning space session not found"):
        client.learning_spaces.get_session(other.id, session_id=session.id)


def test_the_session_id_can_be_in_the_query(server, client, space, session):
    response = exchange(server, "POST", f"{SPACES}/{space.id}/learn?session_id={session.id}")
    assert response.status == 201
    assert (response.json()["data"]["session_id"], response.json()["data"]["status"]) == (session.id, "pending")
    assert [each.session_id for each in client.learning_spaces.list_sessions(space.id)] == [session.id]


@pytest.mark.parametrize("body", [{}, {"session_id": ""}, {"session_id": "nope"}, {"session_id": 7}, b"{"])
def test_an_invalid_session_id_is_an_error(server, client, space, body):
    response = send_json(server, "POST", f"/{space.id}/learn", body)
    assert response.status == 400 and ("session_id" in response.error_message() or body == b"{")
    with raises_error(400, "session_id"):
        client.learning_spaces.get_session(space.id, session_id="nope")
    assert client.learning_spaces.list_sessions(space.id) == []


def test_a_session_without_messages_is_completed_when_read(client, space, session):
    learned = learn_session(client, space, session)
    first = client.learning_spaces.get_session(space.id, session_id=session.id)
    assert first.status == "completed"
    # Only the status and the time of update change.
    original = {"status": "pending", "updated_at": learned.updated_at}
    assert first.model_copy(update=original) == learned
    assert client.learning_spaces.get_session(space.id, session_id=session.id) == first
    # The status is final: later messages do not change it.
    store_text(client, session)
    assert learning_status(client, space, session) == "completed"


def test_the_list_completes_sessions_without_messages(client, space):
    sessions = [client.sessions.create() for _ in range(3)]
    for session in sessions:
        learn_session(client, space, session)
    store_text(client, sessions[1])
    listed = client.learning_spaces.list_sessions(space.id)
    assert [each.session_id for each in listed] == [session.id for session in sessions]
    assert [each.status for each in listed] == ["completed", "pending", "completed"]


def test_a_session_with_pending_messages_is_pending(client, space, session):
    """This server has no model, so messages stay pending."""
    store_text(client, session)
    learn_session(client, space, session)
    with pytest.raises(TimeoutError, match="pending"):
        client.learning_spaces.wait_for_learning(space.id, session_id=session.id, timeout=0)


def test_learning_fails_if_the_observation_failed(server, client, space, session):
    store_text(client, session)
    learn_session(client, space, session)
    server.psql(f"update messages set session_task_process_status = 'failed' where session_id = '{session.id}'")
    assert client.learning_spaces.wait_for_learning(space.id, session_id=session.id).status == "failed"


def test_finalization_closes_open_tasks_and_keeps_failed_ones(server, client, space, session):
    for order, status in enumerate(["pending", "running", "failed", "success"], 1):
        add_task(server, session, order, status)
    learn_session(client, space, session)
    for _ in range(3):
        assert learning_status(client, space, session) == "pending"

    def task_statuses():
        return [task.status for task in client.sessions.get_tasks(session.id).items]

    final_statuses = ["success", "success", "failed", "success"]
    wait_until(lambda: task_statuses() == final_statuses, "the open tasks are closed")
    # The tasks must still be distilled, so the learning has not ended.
    assert learning_status(client, space, session) not in ("completed", "failed")


def test_tasks_of_a_session_with_pending_messages_stay_open(server, client, space, session):
    observed = client.sessions.create()
    store_text(client, session)
    for each in (session, observed):
        add_task(server, each, 1, "running")
        learn_session(client, space, each)

    def task_status(session):
        (task,) = client.sessions.get_tasks(session.id).items
        return task.status

    assert [each.status for each in client.learning_spaces.list_sessions(space.id)] == ["pending"] * 2
    wait_until(lambda: task_status(observed) == "success", "the task of the other session is closed")
    assert task_status(session) == "running"


def test_tasks_that_finished_before_learning_are_distilled(server, client, space, session):
    for order, status in enumerate(["success", "failed", "running"], 1):
        add_task(server, session, order, status)
    learn_session(client, space, session)
    task_ids = f"select id::text from tasks where session_id = '{session.id}'"
    assert server.psql(f"select count(*) from jobs where kind = 'distill' and payload ->> 'task' in ({task_ids})") == "2"


def test_a_deleted_session_is_removed_from_its_space(client, space, session):
    learn_session(client, space, session)
    client.sessions.delete(session.id)
    assert client.learning_spaces.list_sessions(space.id) == []
    with raises_error(404, "learning space session not found"):
        client.learning_spaces.wait_for_learning(space.id, session_id=session.id)


def test_waiting_for_a_session_that_is_not_learned_is_404(client, space, session):
    for session_id in (session.id, UNKNOWN_ID):
        with raises_error(404, "learning space session not found"):
            client.learning_spaces.wait_for_learning(space.id, session_id=session_id)


@pytest.fixture(scope="module")
def observer():
    """A server with a model that extracts no tasks, on which messages stay pending until a flush."""
    with temporary_home() as home:
        server = Server(home, LLM_SDK="mock", SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS="1h")
        try:
            yield server.wait_until_ready()
            server.stop()
        finally:
            server.close()


def test_an_observed_session_without_tasks_is_completed(observer):
    with observer.client() as client:
        space, session = client.learning_spaces.create(), client.sessions.create()
        before = client.learning_spaces.list_skills(space.id)
        learn_session(client, space, session)
        store_text(client, session, "Simple Hello")
        assert learning_status(client, space, session) == "pending"
        assert client.sessions.flush(session.id).status == 200
        assert client.learning_spaces.wait_for_learning(space.id, session_id=session.id).status == "completed"
        assert client.learning_spaces.list_skills(space.id) == before


def test_a_session_can_be_learned_after_its_observation(observer):
    with observer.client() as client:
        space, session = client.learning_spaces.create(), client.sessions.create()
        store_text(client, session)
        assert client.sessions.flush(session.id).status == 200
        assert learn_session(client, space, session).status == "pending"
        assert client.learning_spaces.wait_for_learning(space.id, session_id=session.id).status == "completed"


# ----- other projects -----


@pytest.mark.parametrize("owner", ["another project", "none"])
def test_a_space_of_another_project_is_404(client, other_client, space, session, owner):
    space_id = space.id if owner == "another project" else UNKNOWN_ID
    spaces, skill, other_session = other_client.learning_spaces, add_skill(other_client), other_client.sessions.create()
    for call in (
        lambda: spaces.get(space_id),
        lambda: spaces.update(space_id, meta={"a": 1}),
        lambda: spaces.delete(space_id),
        lambda: spaces.list_skills(space_id),
        lambda: spaces.include_skill(space_id, skill_id=skill.id),
        lambda: spaces.exclude_skill(space_id, skill_id=skill.id),
        lambda: spaces.learn(space_id, session_id=other_session.id),
        lambda: spaces.list_sessions(space_id),
        lambda: spaces.get_session(space_id, session_id=other_session.id),
    ):
        with raises_error(404, "learning space not found"):
            call()
    assert space.id not in space_ids(spaces.list(limit=200))
    assert client.learning_spaces.get(space.id) == space
    assert skill_names(client, space) == DEFAULTS


def test_contents_of_another_project_cannot_be_in_a_space(client, other_client, space):
    skill, session = add_skill(other_client), other_client.sessions.create()
    for skill_id in (skill.id, UNKNOWN_ID):
        with raises_error(404, "skill not found"):
            client.learning_spaces.include_skill(space.id, skill_id=skill_id)
    for session_id in (session.id, UNKNOWN_ID):
        with raises_error(404, "session not found"):
            client.learning_spaces.learn(space.id, session_id=session_id)
    assert skill_names(client, space) == DEFAULTS
    assert client.learning_spaces.list_sessions(space.id) == []


def test_an_invalid_space_id_is_an_error(client, session):
    spaces = client.learning_spaces
    for call in (
        lambda: spaces.get("nope"),
        lambda: spaces.update("nope", meta={}),
        lambda: spaces.delete("nope"),
        lambda: spaces.list_skills("nope"),
        lambda: spaces.include_skill("nope", skill_id=UNKNOWN_ID),
        lambda: spaces.exclude_skill("nope", skill_id=UNKNOWN_ID),
        lambda: spaces.learn("nope", session_id=session.id),
        lambda: spaces.list_sessions("nope"),
        lambda: spaces.get_session("nope", session_id=session.id),
    ):
        with raises_error(400, "space_id"):
            call()


# ----- idempotency -----


def test_a_repeated_request_is_executed_once(server, client, session):
    def send_twice(path, body, key):
        first, again = (send_json(server, "POST", path, body, **{"Idempotency-Key": key}) for _ in range(2))
        assert (first.status, first.headers["Idempotent-Replayed"]) == (201, None)
        assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
        assert again.body == first.body
        return first.json()["data"]

    created = send_twice("", {"user": "space repeated"}, "a-space")
    assert space_ids(client.learning_spaces.list(user="space repeated")) == [created["id"]]
    assert len(client.skills.list_catalog(user="space repeated").items) == 2
    learned = send_twice(f"/{created['id']}/learn", {"session_id": session.id}, "a-session")
    assert [each.id for each in client.learning_spaces.list_sessions(created["id"])] == [learned["id"]]
    skill = add_skill(client)
    send_twice(f"/{created['id']}/skills", {"skill_id": skill.id}, "a-skill")
    assert [each.id for each in client.learning_spaces.list_skills(created["id"])][2:] == [skill.id]


# ----- the asynchronous client -----


def test_async_quickstart(server):
    async def steps(client):
        spaces = client.learning_spaces
        space = await spaces.create(user="space async", meta={"a": 1})
        assert await spaces.get(space.id) == space
        assert (await spaces.list(user="space async", filter_by_meta={"a": 1})).items == [space]
        assert (await spaces.update(space.id, meta={"b": 2})).meta == {"a": 1, "b": 2}
        skill = await add_skill(client)
        await spaces.include_skill(space.id, skill_id=skill.id)
        assert (await spaces.list_skills(space.id))[2:] == [skill]
        await spaces.exclude_skill(space.id, skill_id=skill.id)
        session = await client.sessions.create()
        assert (await spaces.learn(space.id, session_id=session.id)).status == "pending"
        learned = await spaces.wait_for_learning(space.id, session_id=session.id)
        assert learned.status == "completed"
        assert await spaces.get_session(space.id, session_id=session.id) == learned
        assert await spaces.list_sessions(space.id) == [learned]
        await spaces.delete(space.id)
        with raises_error(404, "learning space not found"):
            await spaces.get(space.id)

    run_async(server, steps)


async def status_codes(calls):
    """Returns the sorted status codes of concurrent requests, with 0 for a success."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(not isinstance(each, Exception) or isinstance(each, APIError) for each in results), results
    return sorted(getattr(each, "status_code", 0) for each in results)


def test_one_of_several_concurrent_learn_requests_succeeds(server):
    async def steps(client):
        spaces = await asyncio.gather(*(client.learning_spaces.create() for _ in range(6)))
        session = await client.sessions.create()
        calls = [client.learning_spaces.learn(space.id, session_id=session.id) for space in spaces]
        assert await status_codes(calls) == [0] + [409] * 5
        learned = [await client.learning_spaces.list_sessions(space.id) for space in spaces]
        assert sorted(map(len, learned)) == [0] * 5 + [1]

    run_async(server, steps)


def test_one_of_several_concurrent_equal_skill_names_is_included(server):
    async def steps(client):
        space = await client.learning_spaces.create()
        skills = [await add_skill(client, name="contacts") for _ in range(6)]
        calls = [client.learning_spaces.include_skill(space.id, skill_id=skill.id) for skill in skills]
        assert await status_codes(calls) == [0] + [409] * 5
        assert [skill.name for skill in await client.learning_spaces.list_skills(space.id)] == [*DEFAULTS, "contacts"]

    run_async(server, steps)


def test_concurrent_updates_are_not_lost(server):
    async def steps(client):
        space = await client.learning_spaces.create()
        await asyncio.gather(*(client.learning_spaces.update(space.id, meta={f"k{n}": n}) for n in range(16)))
        assert (await client.learning_spaces.get(space.id)).meta == {f"k{n}": n for n in range(16)}

    run_async(server, steps)


def test_concurrent_spaces_of_a_new_user(server):
    async def steps(client):
        create = client.learning_spaces.create
        spaces = await asyncio.gather(*(create(user="space new to all spaces") for _ in range(8)))
        assert len({space.user_id for space in spaces}) == 1
        for space in spaces:
            skills = await client.learning_spaces.list_skills(space.id)
            assert [skill.name for skill in skills] == DEFAULTS

    run_async(server, steps)
