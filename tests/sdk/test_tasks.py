"""Tasks of a session: list and summary. No model extracts tasks here, so the tests insert rows into the database."""

import json

import pytest

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
