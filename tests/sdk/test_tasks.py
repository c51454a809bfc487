"""Tasks of a session: list and summary. Most tests insert rows into the database; the last ones extract tasks with a model."""

import json

import pytest

from library_support import checker, provider, provider_process  # noqa: F401
from provider_server import Answer
from support import run_async, raises_error, store_text


@pytest.fixture
def session(client):
    return client.sessions.create()


def insert_tasks(server, session, *tasks):
    """Inserts tasks in the order of their creation times."""
    for order, (description, status, planning, extra) in tasks:
        data = json.dumps({"task_description": description} | extra)
        server.psql(
            'insert into tasks (session_id, project_id, "order", data, status, is_planning, created_at) values'
            f" ('{session.id}', '{session.project_id}', {order}, $json${data}$json$, '{status}', {planning},"
            " clock_timestamp())"
        )


def task(description, status="pending", planning=False, **extra):
    return description, status, planning, extra


def descriptions(page):
    return [each.data.task_description for each in page.items]


def test_a_session_without_tasks_has_an_empty_list_and_no_summary(client, session):
    store_text(client, session, "Please find me a train.")
    page = client.sessions.get_tasks(session.id)
    assert (page.items, page.has_more, page.next_cursor) == ([], False, None)
    assert client.sessions.get_session_summary(session.id) == ""


def test_a_task_is_returned_with_all_details(server, client, session):
    details = {"progresses": ["asked", "waited"], "user_preferences": ["by night"]}
    insert_tasks(server, session, (1, task("find a train", "running", **details)), (2, task("pay", "failed")))
    first, second = client.sessions.get_tasks(session.id).items
    assert (first.session_id, first.project_id, first.order) == (session.id, session.project_id, 1)
    assert (first.status, first.is_planning) == ("running", False)
    assert first.data.model_dump() == {"task_description": "find a train", **details}
    assert (second.order, second.status) == (2, "failed")
    # Details that are not known are absent.
    assert not second.data.progresses and not second.data.user_preferences
    assert first.id != second.id


def test_the_planning_task_is_hidden(server, client, session):
    insert_tasks(server, session, (1, task("plan", planning=True)), (2, task("work")))
    assert descriptions(client.sessions.get_tasks(session.id)) == ["work"]
    assert "plan" not in client.sessions.get_session_summary(session.id)


def test_tasks_are_listed_in_the_order_of_their_creation(server, client, session):
    insert_tasks(server, session, (3, task("a")), (1, task("b")), (2, task("c")))
    assert descriptions(client.sessions.get_tasks(session.id)) == ["a", "b", "c"]
    assert descriptions(client.sessions.get_tasks(session.id, time_desc=True)) == ["c", "b", "a"]


def test_paging_returns_every_task_once_in_both_directions(server, client, session):
    insert_tasks(server, session, *((order, task(f"t{order}", planning=order == 3)) for order in range(1, 7)))

    def read_pages(**order):
        pages, cursor = [], None
        while True:
            page = client.sessions.get_tasks(session.id, limit=2, cursor=cursor, **order)
            pages.append(descriptions(page))
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert read_pages() == [["t1", "t2"], ["t4", "t5"], ["t6"]]
    assert read_pages(time_desc=True) == [["t6", "t5"], ["t4", "t2"], ["t1"]]


def test_a_page_has_twenty_tasks_by_default(server, client, session):
    server.psql(
        'insert into tasks (session_id, project_id, "order", data, created_at)'
        f" select '{session.id}', '{session.project_id}', n, json_build_object('task_description', 't' || n),"
        " now() + n * interval '1 ms' from generate_series(1, 21) n"
    )
    page = client.sessions.get_tasks(session.id)
    assert (len(page.items), page.has_more) == (20, True)
    assert descriptions(client.sessions.get_tasks(session.id, cursor=page.next_cursor)) == ["t21"]
    assert len(client.sessions.get_tasks(session.id, limit=200).items) == 21


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")],
)
def test_the_error_names_an_invalid_paging_parameter(client, session, name, value):
    with raises_error(400, name):
        client.sessions.get_tasks(session.id, **{name: value})


def test_a_summary_contains_the_oldest_tasks(server, client, session):
    details = {"progresses": ["asked", "waited"], "user_preferences": ["by night"]}
    insert_tasks(server, session, (1, task("find a train", **details)), (2, task("pay")))
    first = (
        '<task id="1" description="find a train">\n<progress>\n1. asked\n2. waited\n</progress>\n'
        "<user_preference>\n1. by night\n</user_preference>\n</task>"
    )
    assert client.sessions.get_session_summary(session.id) == first + '\n<task id="2" description="pay">\n</task>'
    assert client.sessions.get_session_summary(session.id, limit=1) == first


def test_a_message_contains_the_id_of_its_task(server, client, session):
    message = store_text(client, session)
    store_text(client, session)
    insert_tasks(server, session, (1, task("work")))
    (work,) = client.sessions.get_tasks(session.id).items
    server.psql(f"update messages set task_id = '{work.id}' where id = '{message.id}'")
    items = client.sessions.get_messages(session.id, format="acontext").items
    assert [item["task_id"] for item in items] == [work.id, None]


def test_tasks_belong_to_one_session_and_are_deleted_with_it(server, client, session):
    other = client.sessions.create()
    insert_tasks(server, session, (1, task("here")))
    insert_tasks(server, other, (1, task("there")))
    assert descriptions(client.sessions.get_tasks(session.id)) == ["here"]
    client.sessions.delete(session.id)
    with raises_error(404, "session not found"):
        client.sessions.get_tasks(session.id)
    assert server.psql(f"select count(*) from tasks where session_id = '{session.id}'") == "0"
    assert descriptions(client.sessions.get_tasks(other.id)) == ["there"]


def test_async_tasks(server):
    async def steps(client):
        session = await client.sessions.create()
        assert (await client.sessions.get_tasks(session.id)).items == []
        insert_tasks(server, session, (1, task("a", progresses=["begun"])), (2, task("b", "success")))
        page = await client.sessions.get_tasks(session.id, limit=1)
        assert (descriptions(page), page.has_more) == (["a"], True)
        page = await client.sessions.get_tasks(session.id, limit=1, cursor=page.next_cursor)
        assert (descriptions(page), page.has_more, page.items[0].status) == (["b"], False, "success")
        assert descriptions(await client.sessions.get_tasks(session.id, time_desc=True)) == ["b", "a"]
        assert "1. begun" in await client.sessions.get_session_summary(session.id)

    run_async(server, steps)


# ----- tasks that a model extracts -----


MESSAGES = ["Please write a report in metric units.", "I have written two pages.", "Thanks, that is all I need."]
SCRIPT = [
    Answer(
        "I add the task.",
        calls=[
            ("insert_task", {"after_task_order": 0, "task_description": "Write a report"}),
            ("append_messages_to_task", {"task_order": 1, "message_id_range": [0, 1]}),
        ],
    ),
    Answer(
        calls=[
            ("append_task_progress", {"task_order": 1, "progress": "Wrote two pages"}),
            ("submit_user_preference", {"preference": "The user prefers metric units."}),
            ("update_task", {"task_order": 1, "task_status": "success"}),
        ]
    ),
    Answer(calls=[("finish", {})]),
]


def model_settings(provider, format):  # noqa: F811
    """Returns the settings of a server that calls the provider. Only a flush makes it observe messages."""
    return {
        "LLM_SDK": format,
        "LLM_BASE_URL": f"{provider.url}/v1" if format == "openai" else provider.url,
        "LLM_API_KEY": "the-key-of-the-provider",
        "LLM_SIMPLE_MODEL": "model-of-the-script",
        "SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "1h",
    }


def count_by_state(client, session):
    status = client.sessions.messages_observing_status(session.id)
    return status.observed, status.in_process, status.pending


@pytest.mark.parametrize("format", ["openai", "anthropic"])
def test_a_flush_extracts_tasks_from_messages(start_server, provider, format):  # noqa: F811
    provider.reset(*SCRIPT)
    server = start_server(**model_settings(provider, format))
    with server.client() as client:
        session = client.sessions.create()
        user, assistant, last = MESSAGES
        client.sessions.store_message(session.id, blob={"role": "user", "content": user})
        client.sessions.store_message(session.id, blob={"role": "assistant", "content": assistant})
        client.sessions.store_message(session.id, blob={"role": "user", "content": last})
        assert count_by_state(client, session) == (0, 0, 3)
        assert (client.sessions.get_tasks(session.id).items, provider.histories) == ([], [])

        flushed = client.sessions.flush(session.id)
        assert (flushed.status, flushed.errmsg) == (200, "")
        assert count_by_state(client, session) == (3, 0, 0)
        (task,) = client.sessions.get_tasks(session.id).items
        assert (task.order, task.status, task.is_planning) == (1, "success", False)
        assert (task.session_id, task.project_id) == (session.id, session.project_id)
        assert task.data.task_description == "Write a report"
        assert task.data.progresses == ["Wrote two pages"]
        items = client.sessions.get_messages(session.id, format="acontext").items
        assert [item["task_id"] for item in items] == [task.id, task.id, None]
        assert [item["session_task_process_status"] for item in items] == ["success"] * 3
        assert client.sessions.get_session_summary(session.id) == (
            '<task id="1" description="Write a report">\n<progress>\n1. Wrote two pages\n</progress>\n</task>'
        )

        # The model got the messages once, in their order, and an answer to each of its calls.
        assert [used for used, _ in provider.histories] == [format] * 3
        first = json.dumps(provider.histories[0][1])
        assert [first.count(text) for text in MESSAGES] == [1, 1, 1]
        assert sorted(MESSAGES, key=first.index) == MESSAGES
        # With the API of OpenAI, the instructions and each result are messages.
        lengths = [2, 5, 9] if format == "openai" else [1, 3, 5]
        assert [len(history) for _, history in provider.histories] == lengths
        # Nothing is left to observe.
        flushed = client.sessions.flush(session.id)
        assert (flushed.status, flushed.errmsg, len(provider.histories)) == (200, "", 3)
    server.stop()


def test_a_later_flush_continues_the_tasks(start_server, provider):  # noqa: F811
    server = start_server(**model_settings(provider, "openai"))
    with server.client() as client:
        session = client.sessions.create()
        provider.reset(Answer(calls=[SCRIPT[0].calls[0], ("finish", {})]))
        store_text(client, session, MESSAGES[0])
        assert client.sessions.flush(session.id).status == 200
        (task,) = client.sessions.get_tasks(session.id).items
        assert (task.status, task.data.progresses) == ("pending", None)

        provider.reset(*SCRIPT[1:])
        store_text(client, session, MESSAGES[2])
        assert client.sessions.flush(session.id).status == 200
        (later,) = client.sessions.get_tasks(session.id).items
        assert (later.id, later.status, later.data.progresses) == (task.id, "success", ["Wrote two pages"])
        assert "Write a report" in json.dumps(provider.histories[0][1])
    server.stop()


def test_a_flush_returns_why_the_model_failed(start_server, provider):  # noqa: F811
    server = start_server(**model_settings(provider, "openai"))
    with server.client() as client:
        session = client.sessions.create()
        store_text(client, session, MESSAGES[0])
        # A script without answers makes the provider reject the request.
        flushed = client.sessions.flush(session.id)
        assert (flushed.status, flushed.errmsg.startswith("LLM complete failed")) == (502, True), flushed.errmsg
        assert client.sessions.get_tasks(session.id).items == []
        (message,) = client.sessions.get_messages(session.id, format="acontext").items
        assert message["session_task_process_status"] == "failed"
        assert provider.errors == ["openai: the script has no answer left"]

        # The next flush takes the failed message up again.
        provider.reset(Answer(calls=[SCRIPT[0].calls[0], ("finish", {})]))
        flushed = client.sessions.flush(session.id)
        assert (flushed.status, flushed.errmsg) == (200, "")
        assert descriptions(client.sessions.get_tasks(session.id)) == ["Write a report"]
        assert count_by_state(client, session) == (1, 0, 0)
    server.stop()
