"""Tasks of a session, as they are listed and summed up. Nothing finds any yet: the rows are put into the database."""

import json

import pytest

from support import asynchronously, refused, say


@pytest.fixture
def session(client):
    return client.sessions.create()


def add(server, session, *tasks):
    """Puts in tasks, in order of time."""
    for order, (description, status, planning, more) in tasks:
        data = json.dumps({"task_description": description} | more)
        server.psql(
            'insert into tasks (session_id, project_id, "order", data, status, is_planning, created_at) values'
            f" ('{session.id}', '{session.project_id}', {order}, $json${data}$json$, '{status}', {planning},"
            " clock_timestamp())"
        )


def task(description, status="pending", planning=False, **more):
    return description, status, planning, more


def described(page):
    return [each.data.task_description for each in page.items]


def test_a_session_without_tasks_has_an_empty_list_and_no_summary(client, session):
    say(client, session, "Please find me a train.")
    page = client.sessions.get_tasks(session.id)
    assert (page.items, page.has_more, page.next_cursor) == ([], False, None)
    assert client.sessions.get_session_summary(session.id) == ""


def test_a_task_is_shown_with_all_that_is_known_of_it(server, client, session):
    known = {"progresses": ["asked", "waited"], "user_preferences": ["by night"]}
    add(server, session, (1, task("find a train", "running", **known)), (2, task("pay", "failed")))
    first, second = client.sessions.get_tasks(session.id).items
    assert (first.session_id, first.project_id, first.order) == (session.id, session.project_id, 1)
    assert (first.status, first.is_planning) == ("running", False)
    assert first.data.model_dump() == {"task_description": "find a train", **known}
    assert (second.order, second.status) == (2, "failed")
    # Nothing known is nothing said.
    assert not second.data.progresses and not second.data.user_preferences
    assert first.id != second.id


def test_the_task_that_only_plans_is_not_shown(server, client, session):
    add(server, session, (1, task("plan", planning=True)), (2, task("work")))
    assert described(client.sessions.get_tasks(session.id)) == ["work"]
    assert "plan" not in client.sessions.get_session_summary(session.id)


def test_tasks_are_listed_in_the_order_they_were_made(server, client, session):
    add(server, session, (3, task("a")), (1, task("b")), (2, task("c")))
    assert described(client.sessions.get_tasks(session.id)) == ["a", "b", "c"]
    assert described(client.sessions.get_tasks(session.id, time_desc=True)) == ["c", "b", "a"]


def test_paging_shows_every_task_once_in_both_directions(server, client, session):
    add(server, session, *((order, task(f"t{order}", planning=order == 3)) for order in range(1, 7)))

    def walk(**order):
        pages, cursor = [], None
        while True:
            page = client.sessions.get_tasks(session.id, limit=2, cursor=cursor, **order)
            pages.append(described(page))
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert walk() == [["t1", "t2"], ["t4", "t5"], ["t6"]]
    assert walk(time_desc=True) == [["t6", "t5"], ["t4", "t2"], ["t1"]]


def test_a_page_is_twenty_tasks_unless_told_otherwise(server, client, session):
    server.psql(
        'insert into tasks (session_id, project_id, "order", data, created_at)'
        f" select '{session.id}', '{session.project_id}', n, json_build_object('task_description', 't' || n),"
        " now() + n * interval '1 ms' from generate_series(1, 21) n"
    )
    page = client.sessions.get_tasks(session.id)
    assert (len(page.items), page.has_more) == (20, True)
    assert described(client.sessions.get_tasks(session.id, cursor=page.next_cursor)) == ["t21"]
    assert len(client.sessions.get_tasks(session.id, limit=200).items) == 21


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")],
)
def test_paging_that_makes_no_sense_is_refused_by_name(client, session, name, value):
    with refused(400, name):
        client.sessions.get_tasks(session.id, **{name: value})


def test_a_summary_tells_the_oldest_tasks(server, client, session):
    known = {"progresses": ["asked", "waited"], "user_preferences": ["by night"]}
    add(server, session, (1, task("find a train", **known)), (2, task("pay")))
    first = (
        '<task id="1" description="find a train">\n<progress>\n1. asked\n2. waited\n</progress>\n'
        "<user_preference>\n1. by night\n</user_preference>\n</task>"
    )
    assert client.sessions.get_session_summary(session.id) == first + '\n<task id="2" description="pay">\n</task>'
    assert client.sessions.get_session_summary(session.id, limit=1) == first


def test_a_message_names_its_task(server, client, session):
    message = say(client, session)
    say(client, session)
    add(server, session, (1, task("work")))
    (found,) = client.sessions.get_tasks(session.id).items
    server.psql(f"update messages set task_id = '{found.id}' where id = '{message.id}'")
    shown = client.sessions.get_messages(session.id, format="acontext").items
    assert [item["task_id"] for item in shown] == [found.id, None]


def test_tasks_are_of_one_session_and_go_with_it(server, client, session):
    other = client.sessions.create()
    add(server, session, (1, task("here")))
    add(server, other, (1, task("there")))
    assert described(client.sessions.get_tasks(session.id)) == ["here"]
    client.sessions.delete(session.id)
    with refused(404, "session not found"):
        client.sessions.get_tasks(session.id)
    assert server.psql(f"select count(*) from tasks where session_id = '{session.id}'") == "0"
    assert described(client.sessions.get_tasks(other.id)) == ["there"]


def test_async_tasks(server):
    async def steps(client):
        session = await client.sessions.create()
        assert (await client.sessions.get_tasks(session.id)).items == []
        add(server, session, (1, task("a", progresses=["begun"])), (2, task("b", "success")))
        page = await client.sessions.get_tasks(session.id, limit=1)
        assert (described(page), page.has_more) == (["a"], True)
        page = await client.sessions.get_tasks(session.id, limit=1, cursor=page.next_cursor)
        assert (described(page), page.has_more, page.items[0].status) == (["b"], False, "success")
        assert described(await client.sessions.get_tasks(session.id, time_desc=True)) == ["b", "a"]
        assert "1. begun" in await client.sessions.get_session_summary(session.id)

    asynchronously(server, steps)
