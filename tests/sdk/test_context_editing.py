"""Edit strategies, which shorten a conversation when it is read: each alone, all together, and up to a pin."""

import itertools
import json
from urllib.parse import urlencode

import pytest

from acontext.event import TextEvent
from raw_http import exchange
from support import raises_error, run_async, store_text

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
RESULTS = {
    "a": "The 21:04 from platform nine, with a sleeping car, every day but Sunday.",
    "b": "full",
    "c": "The 20:39 from platform two; change in Salzburg, arrive at seven in the morning.",
    "d": "Two berths are free in wagon 257, one above the other, by the door.",
    "e": "Booked: wagon 257, berths 15 and 16, paid with the card that ends in 42.",
}
ARGUMENTS = {
    "a": {"to": "Vienna", "day": "Friday", "by": "night"},
    "b": {"n": 1},
    "c": {"to": "Vienna", "day": "Saturday", "by": "night", "with": "one change at most"},
    "d": {"train": "20:39", "class": "sleeping car", "persons": 2},
    "e": {"train": "20:39", "wagon": 257, "berths": [15, 16], "card": "ends in 42"},
}
TOOLS = {"a": "timetable", "b": "seats", "c": "timetable", "d": "seats", "e": "book"}
# Indexes of the messages of the journey that belong together: calls and their results.
GROUPS = [[0], [1, 2], [3, 4], [5, 6, 7], [8, 9], [10]]
# More tokens than any message has.
MANY_TOKENS = 1_000_000


def calls_message(*ids):
    function = {id: {"name": TOOLS[id], "arguments": json.dumps(ARGUMENTS[id])} for id in ids}
    return {"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function[id]} for id in ids]}


def result_message(id):
    return {"role": "tool", "tool_call_id": id, "content": RESULTS[id]}


JOURNEY = [
    {"role": "user", "content": "Which night train goes to Vienna, and are there berths for two of us?"},
    calls_message("a"),
    result_message("a"),
    calls_message("b"),
    result_message("b"),
    # Two parallel calls.
    calls_message("c", "d"),
    result_message("c"),
    result_message("d"),
    calls_message("e"),
    result_message("e"),
    {"role": "assistant", "content": "You leave on Saturday at 20:39, in wagon 257, berths 15 and 16."},
]


def store_all(client, session, blobs, format="openai"):
    return [client.sessions.store_message(session.id, blob=blob, format=format).id for blob in blobs]


@pytest.fixture(scope="module")
def journeys(client):
    """The journey in each format: a dictionary of sessions by the format in which they were stored."""
    sessions = {format: client.sessions.create() for format in FORMATS}
    store_all(client, sessions["openai"], JOURNEY)
    for format in FORMATS[1:]:
        items = client.sessions.get_messages(sessions["openai"].id, format=format).items
        if format == "acontext":
            items = [{key: item[key] for key in ("role", "parts")} for item in items]
        store_all(client, sessions[format], items, format)
    return sessions


@pytest.fixture(scope="module")
def journey(journeys):
    return journeys["openai"]


def one_strategy(name, **params):
    return [{"type": name, "params": params}]


def read_edited(client, session, strategies, format="openai", **options):
    """Reads a page with edit strategies, and checks that its lists have the same length."""
    page = client.sessions.get_messages(session.id, format=format, edit_strategies=strategies, **options)
    assert len(page.items) == len(page.ids) == len(page.metas)
    return page


def response_body(server, session, strategies=None, format="openai", **query):
    """Returns the bytes of a response."""
    query |= {"format": format} | ({} if strategies is None else {"edit_strategies": json.dumps(strategies)})
    response = exchange(server, "GET", f"/api/v1/session/{session.id}/messages?{urlencode(query)}")
    assert response.status == 200, response.body
    return response.body


def item_bytes(body):
    """Returns the bytes of the items of a response body, without the enclosing brackets."""
    text = body.decode()
    start = text.index('"items":') + len('"items":')
    items, end = json.JSONDecoder().raw_decode(text, start)
    assert len(items) > 0
    return text[start + 1 : end - 1].encode()


def tool_results(items, format="openai"):
    """Returns the texts of the tool results in a page, in order."""
    outputs = []
    for item in items:
        if format == "openai" and item["role"] == "tool":
            outputs.append(item["content"])
        elif format == "anthropic":
            contents = [block["content"] for block in item["content"] if block["type"] == "tool_result"]
            # Each content is a string or a list of text blocks.
            outputs += [
                content if isinstance(content, str) else "".join(block["text"] for block in content)
                for content in contents
            ]
        elif format == "gemini":
            outputs += [part["functionResponse"]["response"] for part in item["parts"] if "functionResponse" in part]
        elif format == "acontext":
            outputs += [part["text"] for part in item["parts"] if part["type"] == "tool-result"]
    return [result_text(content) for content in outputs]


def result_text(content):
    """Returns the text of a tool result. In Gemini's format it is inside an object."""
    if isinstance(content, str) and content.startswith("{"):
        content = json.loads(content)
    return content if isinstance(content, str) else content["output"]


def tool_arguments(items, format="openai"):
    """Returns the arguments of the tool calls in a page, in order."""
    inputs = []
    for item in items:
        if format == "openai":
            inputs += [json.loads(call["function"]["arguments"]) for call in item.get("tool_calls", [])]
        elif format == "anthropic":
            inputs += [block["input"] for block in item["content"] if block["type"] == "tool_use"]
        elif format == "gemini":
            calls = [part["functionCall"] for part in item["parts"] if "functionCall" in part]
            inputs += [call.get("args", {}) for call in calls]
        elif format == "acontext":
            inputs += [json.loads(part["meta"]["arguments"]) for part in item["parts"] if part["type"] == "tool-call"]
    return inputs


def message_tokens(client, session, strategies=None):
    """Returns the number of tokens of each message, in order."""
    counts, cursor = [], None
    while True:
        page = client.sessions.get_messages(session.id, limit=1, cursor=cursor, edit_strategies=strategies)
        counts.append(page.this_time_tokens)
        if not page.has_more:
            return counts
        cursor = page.next_cursor


def apply_token_limit(tokens, indexes, limit):
    """Returns the indexes of the messages that `token_limit` keeps. The oldest group is removed first."""
    remaining = list(indexes)
    while sum(tokens[number] for number in remaining) > limit:
        group = next(group for group in GROUPS if remaining[0] in group)
        remaining = [number for number in remaining if number not in group]
    return remaining


def apply_middle_out(tokens, indexes, target):
    """Returns the indexes of the messages that `middle_out` keeps. The group of the middle message is removed first."""
    remaining = list(indexes)
    while sum(tokens[number] for number in remaining) > target:
        middle = remaining[0 if len(remaining) <= 2 else len(remaining) // 2]
        group = next(group for group in GROUPS if middle in group)
        remaining = [number for number in remaining if number not in group]
    return remaining


ALL = (
    one_strategy("token_limit", limit_tokens=150)
    + one_strategy("middle_out", token_reduce_to=200)
    + one_strategy("remove_tool_result", keep_recent_n_tool_results=1)
    + one_strategy("remove_tool_call_params", keep_recent_n_tool_calls=1)
)


# ----- tool results -----


@pytest.mark.parametrize(
    "params, replaced",
    [
        # The default is to keep the three most recent results.
        ({}, "ab"),
        ({"keep_recent_n_tool_results": 0}, "abcde"),
        ({"keep_recent_n_tool_results": 1}, "abcd"),
        ({"keep_recent_n_tool_results": 4}, "a"),
        ({"keep_recent_n_tool_results": 5}, ""),
        ({"keep_recent_n_tool_results": 1000}, ""),
        # Results of `keep_tools` do not count as recent ones.
        ({"keep_tools": ["seats"], "keep_recent_n_tool_results": 1}, "ac"),
        ({"keep_tools": ["seats", "book", "timetable"], "keep_recent_n_tool_results": 0}, ""),
        ({"keep_tools": ["unknown"], "keep_recent_n_tool_results": 4}, "a"),
        ({"keep_tools": [], "keep_recent_n_tool_results": 4}, "a"),
        # Short results are kept, and count as recent ones.
        ({"gt_token": 1, "keep_recent_n_tool_results": 0}, "acde"),
        ({"gt_token": 1, "keep_recent_n_tool_results": 3}, "a"),
        ({"gt_token": MANY_TOKENS, "keep_recent_n_tool_results": 0}, ""),
        ({"gt_token": 1, "keep_tools": ["timetable"], "keep_recent_n_tool_results": 1}, "d"),
    ],
)
def test_older_results_are_replaced_by_a_placeholder(client, journey, params, replaced):
    expected = ["Done" if id in replaced else text for id, text in RESULTS.items()]
    page = read_edited(client, journey, one_strategy("remove_tool_result", **params))
    assert tool_results(page.items) == expected
    # Nothing else is changed.
    plain = client.sessions.get_messages(journey.id)
    assert page.ids == plain.ids
    assert [item for item in page.items if item["role"] != "tool"] == [
        item for item in plain.items if item["role"] != "tool"
    ]
    assert (page.this_time_tokens < plain.this_time_tokens) == (replaced != "")


@pytest.mark.parametrize(
    "placeholder, expected",
    [("Cleared", "Cleared"), ("  ü \n", "ü"), ("", "Done"), (" \t", "Done"), ("x" * 1024, "x" * 1024)],
)
def test_the_placeholder_is_configurable(client, journey, placeholder, expected):
    params = {"tool_result_placeholder": placeholder, "keep_recent_n_tool_results": 4}
    page = read_edited(client, journey, one_strategy("remove_tool_result", **params))
    assert tool_results(page.items) == [expected, *list(RESULTS.values())[1:]]


@pytest.mark.parametrize("read_format", FORMATS)
@pytest.mark.parametrize("stored_format", FORMATS)
def test_results_are_replaced_in_every_pair_of_formats(client, journeys, stored_format, read_format):
    strategies = one_strategy("remove_tool_result", keep_recent_n_tool_results=2)
    page = read_edited(client, journeys[stored_format], strategies, read_format)
    assert tool_results(page.items, read_format) == ["Done", "Done", "Done", RESULTS["d"], RESULTS["e"]]


@pytest.mark.parametrize("format", FORMATS)
def test_a_replaced_result_keeps_the_id_of_its_call(client, journey, format):
    page = read_edited(client, journey, one_strategy("remove_tool_result", keep_recent_n_tool_results=0), format)
    if format == "openai":
        call_ids = [item["tool_call_id"] for item in page.items if item["role"] == "tool"]
    elif format == "anthropic":
        call_ids = [block.get("tool_use_id") for item in page.items for block in item["content"]]
    elif format == "gemini":
        call_ids = [part.get("functionResponse", {}).get("id") for item in page.items for part in item["parts"]]
    else:
        parts = [part for item in page.items for part in item["parts"] if part["type"] == "tool-result"]
        call_ids = [part["meta"]["tool_call_id"] for part in parts]
    assert [id for id in call_ids if id] == list("abcde")


def test_an_image_in_a_replaced_result_is_removed(client):
    session = client.sessions.create()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    tool_use = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    content = [{"type": "text", "text": "Here it is."}, picture]
    tool_result = {"type": "tool_result", "tool_use_id": "a", "content": content}
    blobs = [{"role": "assistant", "content": [tool_use]}, {"role": "user", "content": [tool_result]}]
    store_all(client, session, blobs, "anthropic")
    plain = client.sessions.get_messages(session.id, format="anthropic").items
    assert picture in plain[1]["content"][0]["content"]
    page = read_edited(client, session, one_strategy("remove_tool_result", keep_recent_n_tool_results=0), "anthropic")
    assert tool_results(page.items, "anthropic") == ["Done"]
    assert "iVBORw0KGgo=" not in json.dumps(page.items)


def test_results_in_one_message_are_replaced_one_by_one(client):
    session = client.sessions.create()
    uses = [{"type": "tool_use", "id": id, "name": "look", "input": {}} for id in "xyz"]
    responses = [{"type": "tool_result", "tool_use_id": id, "content": f"seen {id}"} for id in "xyz"]
    blobs = [{"role": "assistant", "content": uses}, {"role": "user", "content": responses}]
    stored_ids = store_all(client, session, blobs, "anthropic")
    strategies = one_strategy("remove_tool_result", keep_recent_n_tool_results=1)
    items = read_edited(client, session, strategies, "anthropic").items
    assert tool_results(items, "anthropic") == ["Done", "Done", "seen z"]
    # In the OpenAI format each result is a separate item; its id is the one of the stored message.
    page = read_edited(client, session, strategies)
    assert tool_results(page.items) == ["Done", "Done", "seen z"]
    assert page.ids == [stored_ids[0]] + [stored_ids[1]] * 3


# ----- tool call arguments -----


@pytest.mark.parametrize(
    "params, emptied",
    [
        ({}, "ab"),
        ({"keep_recent_n_tool_calls": 0}, "abcde"),
        ({"keep_recent_n_tool_calls": 1}, "abcd"),
        ({"keep_recent_n_tool_calls": 5}, ""),
        ({"keep_tools": ["timetable"], "keep_recent_n_tool_calls": 1}, "bd"),
        ({"keep_tools": ["timetable", "seats", "book"], "keep_recent_n_tool_calls": 0}, ""),
        ({"gt_token": 8, "keep_recent_n_tool_calls": 0}, "acde"),
        ({"gt_token": 8, "keep_recent_n_tool_calls": 3}, "a"),
        ({"gt_token": MANY_TOKENS, "keep_recent_n_tool_calls": 0}, ""),
    ],
)
def test_arguments_of_older_calls_are_removed(client, journey, params, emptied):
    page = read_edited(client, journey, one_strategy("remove_tool_call_params", **params))
    assert tool_arguments(page.items) == [{} if id in emptied else value for id, value in ARGUMENTS.items()]
    plain = client.sessions.get_messages(journey.id)
    assert page.ids == plain.ids
    assert tool_results(page.items) == tool_results(plain.items)
    calls = [call for item in page.items for call in item.get("tool_calls", [])]
    assert [(call["id"], call["function"]["name"]) for call in calls] == list(TOOLS.items())
    assert (page.this_time_tokens < plain.this_time_tokens) == (emptied != "")


@pytest.mark.parametrize("read_format", FORMATS)
@pytest.mark.parametrize("stored_format", FORMATS)
def test_arguments_are_removed_in_every_pair_of_formats(client, journeys, stored_format, read_format):
    strategies = one_strategy("remove_tool_call_params", keep_recent_n_tool_calls=2)
    page = read_edited(client, journeys[stored_format], strategies, read_format)
    assert tool_arguments(page.items, read_format) == [{}, {}, {}, ARGUMENTS["d"], ARGUMENTS["e"]]
    assert tool_results(page.items, read_format) == list(RESULTS.values())


def test_removed_arguments_are_an_empty_json_object(client, journey):
    page = read_edited(client, journey, one_strategy("remove_tool_call_params", keep_recent_n_tool_calls=4))
    assert page.items[1]["tool_calls"][0]["function"]["arguments"] == "{}"


# ----- limits -----


def test_token_limit_removes_the_oldest_messages(client, journey):
    tokens = message_tokens(client, journey)
    plain = client.sessions.get_messages(journey.id)
    assert len(tokens) == len(JOURNEY) and sum(tokens) == plain.this_time_tokens
    lengths = set()
    for limit in range(1, sum(tokens) + 2):
        page = read_edited(client, journey, one_strategy("token_limit", limit_tokens=limit))
        remaining = apply_token_limit(tokens, range(len(tokens)), limit)
        assert page.ids == [plain.ids[number] for number in remaining], limit
        assert page.items == [plain.items[number] for number in remaining]
        assert page.this_time_tokens == sum(tokens[number] for number in remaining) <= limit
        lengths.add(len(remaining))
    # A call is never kept without its results, nor a result without its call.
    assert lengths == {0, 1, 3, 6, 8, 10, 11}


def test_middle_out_removes_messages_from_the_middle(client, journey):
    tokens = message_tokens(client, journey)
    plain = client.sessions.get_messages(journey.id)
    outcomes = set()
    for target in range(1, sum(tokens) + 2):
        page = read_edited(client, journey, one_strategy("middle_out", token_reduce_to=target))
        remaining = apply_middle_out(tokens, range(len(tokens)), target)
        assert page.ids == [plain.ids[number] for number in remaining], target
        assert page.items == [plain.items[number] for number in remaining]
        assert page.this_time_tokens == sum(tokens[number] for number in remaining) <= target
        outcomes.add(tuple(remaining))
    # The first and the last message are removed last.
    assert (0, 10) in outcomes and (10,) in outcomes and () in outcomes


@pytest.mark.parametrize("read_format", FORMATS)
@pytest.mark.parametrize("stored_format", FORMATS)
@pytest.mark.parametrize("name, param", [("token_limit", "limit_tokens"), ("middle_out", "token_reduce_to")])
def test_limits_hold_in_every_format(client, journeys, stored_format, read_format, name, param):
    session = journeys[stored_format]
    plain = client.sessions.get_messages(session.id, format=read_format)
    page = read_edited(client, session, one_strategy(name, **{param: plain.this_time_tokens // 2}), read_format)
    assert 0 < page.this_time_tokens <= plain.this_time_tokens // 2
    plain_items = dict(zip(plain.ids, plain.items))
    assert page.items == [plain_items[id] for id in page.ids]
    assert 0 < len(page.ids) < len(plain.ids)
    assert len(tool_results(page.items, read_format)) == len(tool_arguments(page.items, read_format))


@pytest.mark.parametrize("name, param", [("token_limit", "limit_tokens"), ("middle_out", "token_reduce_to")])
def test_legacy_function_call_and_its_result_stay_together(client, name, param):
    session = client.sessions.create()
    function_call = {"name": "look", "arguments": '{"at": "the sea"}'}
    call = {"role": "assistant", "content": None, "function_call": function_call}
    result = {"role": "function", "name": "look", "content": "It is blue, with white where the wind goes over it."}
    store_all(client, session, [call, result, {"role": "user", "content": "Thank you."}])
    ids = client.sessions.get_messages(session.id).ids
    too_few = sum(message_tokens(client, session)) - 1
    assert read_edited(client, session, one_strategy(name, **{param: too_few})).ids == ids[2:]


@pytest.fixture(scope="module")
def long_session(client):
    """A session without tool calls: the session, the ids of its messages, and the tokens of each message."""
    session = client.sessions.create()
    for number in range(120):
        store_text(client, session, f"{number} " + "word " * (number % 7))
    return session, client.sessions.get_messages(session.id).ids, message_tokens(client, session)


@pytest.mark.parametrize("share", [0, 0.01, 0.02, 0.1, 0.5, 0.9, 0.999, 1, 1e6])
def test_token_limit_removes_the_start_of_a_long_session(client, long_session, share):
    session, ids, tokens = long_session
    limit = max(1, int(sum(tokens) * share))
    page = read_edited(client, session, one_strategy("token_limit", limit_tokens=limit))
    first = next(index for index in range(121) if sum(tokens[index:]) <= limit)
    assert page.ids == ids[first:]
    assert page.this_time_tokens == sum(tokens[first:])


@pytest.mark.parametrize("share", [0, 0.01, 0.02, 0.1, 0.5, 0.9, 0.999, 1, 1e6])
def test_middle_out_removes_the_middle_of_a_long_session(client, long_session, share):
    session, ids, tokens = long_session
    target = max(1, int(sum(tokens) * share))
    page = read_edited(client, session, one_strategy("middle_out", token_reduce_to=target))
    remaining = list(range(120))
    while sum(tokens[number] for number in remaining) > target:
        # Of the last two messages the newer one is kept.
        remaining.pop(0 if len(remaining) <= 2 else len(remaining) // 2)
    assert page.ids == [ids[number] for number in remaining]


def test_middle_out_of_three_messages_ends_with_the_newest(client):
    session = client.sessions.create()
    ids = [store_text(client, session, "as long as the others").id for _ in range(3)]
    each = message_tokens(client, session)[0]
    for count, expected in ((3, ids), (2, [ids[0], ids[2]]), (1, ids[2:])):
        assert read_edited(client, session, one_strategy("middle_out", token_reduce_to=count * each)).ids == expected


# ----- several strategies -----


def test_strategies_run_in_a_fixed_order(server, client, journey):
    shorter = one_strategy("remove_tool_result", keep_recent_n_tool_results=1)
    shorter += one_strategy("remove_tool_call_params", keep_recent_n_tool_calls=1)
    plain = read_edited(client, journey, shorter)
    assert tool_results(plain.items) == ["Done"] * 4 + [RESULTS["e"]]
    # On a page of one message nothing is old, so the strategies here keep no recent results and calls.
    tokens = message_tokens(
        client,
        journey,
        one_strategy("remove_tool_result", keep_recent_n_tool_results=0)
        + one_strategy("remove_tool_call_params", keep_recent_n_tool_calls=0),
    )
    unedited = message_tokens(client, journey)
    tokens[8:10] = unedited[8:10]
    assert sum(tokens) == plain.this_time_tokens
    middle = sum(tokens) - 1
    remaining = apply_middle_out(tokens, range(11), middle)
    limit = sum(tokens[number] for number in remaining) - 1
    strategies = shorter + one_strategy("middle_out", token_reduce_to=middle)
    strategies += one_strategy("token_limit", limit_tokens=limit)
    remaining = apply_token_limit(tokens, remaining, limit)
    assert remaining == [1, 2, 3, 4, 8, 9, 10]
    bodies = {response_body(server, journey, order) for order in map(list, itertools.permutations(strategies))}
    assert len(bodies) == 1
    page = read_edited(client, journey, strategies)
    assert page.ids == [plain.ids[number] for number in remaining]
    assert page.items == [plain.items[number] for number in remaining]
    assert page.this_time_tokens == sum(tokens[number] for number in remaining)


def test_two_strategies_of_one_type_run_in_their_order(client, journey):
    first = one_strategy("remove_tool_result", keep_recent_n_tool_results=3, tool_result_placeholder="A")
    second = one_strategy("remove_tool_result", keep_recent_n_tool_results=4, tool_result_placeholder="B")
    assert tool_results(read_edited(client, journey, first + second).items)[:3] == ["B", "A", RESULTS["c"]]
    assert tool_results(read_edited(client, journey, second + first).items)[:3] == ["A", "A", RESULTS["c"]]


@pytest.mark.parametrize("format", FORMATS)
def test_equal_requests_return_equal_bytes(server, journey, format):
    assert len({response_body(server, journey, ALL, format) for _ in range(5)}) == 1


@pytest.mark.parametrize("strategies", [None, []])
def test_without_strategies_nothing_is_edited(client, journey, strategies):
    plain = client.sessions.get_messages(journey.id)
    assert read_edited(client, journey, strategies) == plain
    assert read_edited(client, journey, strategies, pin_editing_strategies_at_message=plain.ids[3]) == plain
    assert plain.edit_at_message_id == plain.ids[-1]


def test_edit_strategies_do_not_change_stored_messages(server, client, journeys):
    for session in journeys.values():
        before = [response_body(server, session, format=format) for format in FORMATS]
        count = client.sessions.get_token_counts(session.id)
        for strategies in (ALL, one_strategy("token_limit", limit_tokens=1)):
            assert read_edited(client, session, strategies).this_time_tokens < count.total_tokens
        assert [response_body(server, session, format=format) for format in FORMATS] == before
        assert client.sessions.get_token_counts(session.id) == count


def test_meta_is_returned_for_the_remaining_messages(client):
    session = client.sessions.create()
    for number in range(4):
        client.sessions.store_message(session.id, blob=JOURNEY[number], meta={"n": number})
    tokens = message_tokens(client, session)
    page = read_edited(client, session, one_strategy("token_limit", limit_tokens=sum(tokens[1:])))
    assert page.metas == [{"n": 1}, {"n": 2}, {"n": 3}]
    page = read_edited(client, session, one_strategy("remove_tool_result", keep_recent_n_tool_results=0))
    assert page.metas == [{"n": number} for number in range(4)]


# ----- pages -----


def test_each_page_is_edited_separately(client, journey):
    ids = client.sessions.get_messages(journey.id).ids
    strategies = one_strategy("remove_tool_result", keep_recent_n_tool_results=1)
    first = read_edited(client, journey, strategies, limit=5)
    assert (first.ids, tool_results(first.items)) == (ids[:5], ["Done", RESULTS["b"]])
    second = read_edited(client, journey, strategies, limit=5, cursor=first.next_cursor)
    assert (second.ids, tool_results(second.items)) == (ids[5:10], ["Done", "Done", RESULTS["e"]])
    newest = read_edited(client, journey, strategies, limit=5, time_desc=True)
    assert (newest.ids, tool_results(newest.items)) == (ids[6:], ["Done", "Done", RESULTS["e"]])
    # The cursor is also correct if no message of the page is left.
    remove_all = one_strategy("token_limit", limit_tokens=1)
    empty = read_edited(client, journey, remove_all, limit=5)
    assert (empty.items, empty.this_time_tokens, empty.has_more) == ([], 0, True)
    assert empty.next_cursor == first.next_cursor


def test_an_edited_page_of_an_empty_session_is_empty(client):
    page = read_edited(client, client.sessions.create(), ALL)
    assert (page.items, page.this_time_tokens, page.edit_at_message_id) == ([], 0, None)


# ----- the pin -----


@pytest.mark.parametrize(
    "strategies", [ALL, one_strategy("token_limit", limit_tokens=1), one_strategy("remove_tool_result")]
)
def test_a_response_contains_the_pin(client, journey, strategies):
    ids = client.sessions.get_messages(journey.id).ids
    # It is the last message of the page, even if that message was removed.
    assert read_edited(client, journey, strategies).edit_at_message_id == ids[-1]
    assert read_edited(client, journey, strategies, limit=3).edit_at_message_id == ids[2]
    for pin in (ids[0], ids[4], ids[-1]):
        page = read_edited(client, journey, strategies, pin_editing_strategies_at_message=pin)
        assert page.edit_at_message_id == pin


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "strategies",
    [*([strategy] for strategy in ALL), ALL],
    ids=[*(strategy["type"] for strategy in ALL), "all"],
)
def test_items_before_a_pin_stay_identical_after_new_messages(server, client, strategies, format):
    session = client.sessions.create()
    store_all(client, session, JOURNEY)
    before = response_body(server, session, strategies, format)
    assert before != response_body(server, session, format=format)
    edited = json.loads(before)["data"]
    pin = edited["edit_at_message_id"]
    pinned = {"pin_editing_strategies_at_message": pin}
    assert response_body(server, session, strategies, format, **pinned) == before
    later_ids = []
    # In each round recent results become older ones, and the conversation becomes longer.
    for number in range(4):
        question = {"role": "user", "content": f"And in week {number}?"}
        more = [question, calls_message("a"), result_message("a"), calls_message("c", "d")]
        later_ids += store_all(client, session, [*more, result_message("c"), result_message("d"), JOURNEY[-1]])
        current = response_body(server, session, strategies, format, **pinned)
        data = json.loads(current)["data"]
        assert item_bytes(current).startswith(item_bytes(before) + b",")
        assert data["edit_at_message_id"] == pin
        # Messages after the pin are returned unedited. The results of a turn are one item in other formats.
        plain = client.sessions.get_messages(session.id, format=format)
        later_items = [(id, item) for id, item in zip(plain.ids, plain.items, strict=True) if id in later_ids]
        assert data["ids"] == edited["ids"] + [id for id, _ in later_items]
        assert data["items"][len(edited["items"]) :] == [item for _, item in later_items]
        counts = message_tokens(client, session)[-len(later_ids) :]
        assert data["this_time_tokens"] == edited["this_time_tokens"] + sum(counts)
    # Without the pin the items at the beginning are different.
    assert not item_bytes(response_body(server, session, strategies, format)).startswith(item_bytes(before))


def test_a_pin_can_be_moved_to_a_later_message(server, client):
    session = client.sessions.create()
    store_all(client, session, JOURNEY)
    first = json.loads(response_body(server, session, ALL))["data"]["edit_at_message_id"]
    store_all(client, session, [calls_message("a"), result_message("a")])
    second = json.loads(response_body(server, session, ALL))["data"]["edit_at_message_id"]
    assert first != second
    moved = response_body(server, session, ALL, pin_editing_strategies_at_message=second)
    assert moved == response_body(server, session, ALL)
    store_all(client, session, [calls_message("b"), result_message("b")])
    current = response_body(server, session, ALL, pin_editing_strategies_at_message=second)
    assert item_bytes(current).startswith(item_bytes(moved) + b",")


def test_only_messages_up_to_the_pin_are_counted(client, journey):
    ids, tokens = client.sessions.get_messages(journey.id).ids, message_tokens(client, journey)

    def read_pinned(index, strategies):
        return read_edited(client, journey, strategies, pin_editing_strategies_at_message=ids[index])

    recent = read_pinned(6, one_strategy("remove_tool_result", keep_recent_n_tool_results=1))
    assert tool_results(recent.items) == ["Done", "Done", RESULTS["c"], RESULTS["d"], RESULTS["e"]]
    calls = read_pinned(5, one_strategy("remove_tool_call_params", keep_recent_n_tool_calls=1))
    assert tool_arguments(calls.items) == [{}, {}, {}, ARGUMENTS["d"], ARGUMENTS["e"]]
    # The limit applies only to the messages up to the pin; the later ones may exceed it.
    limit = sum(tokens[:5])
    assert read_pinned(4, one_strategy("token_limit", limit_tokens=limit)).ids == ids
    assert read_pinned(4, one_strategy("token_limit", limit_tokens=limit - 1)).ids == ids[1:]
    assert read_pinned(4, one_strategy("middle_out", token_reduce_to=limit)).ids == ids
    assert read_pinned(4, one_strategy("middle_out", token_reduce_to=limit - 1)).ids == ids[:1] + ids[3:]


@pytest.mark.parametrize("name, param", [("token_limit", "limit_tokens"), ("middle_out", "token_reduce_to")])
def test_results_after_the_pin_stay_if_their_call_is_removed(client, journey, name, param):
    ids = client.sessions.get_messages(journey.id).ids
    page = read_edited(client, journey, one_strategy(name, **{param: 1}), pin_editing_strategies_at_message=ids[5])
    assert (page.ids, page.edit_at_message_id) == (ids[6:], ids[5])


@pytest.mark.parametrize("pin", [UNKNOWN_ID, "not-an-id", ""])
def test_a_pin_that_is_not_on_the_page_has_no_effect(client, journey, pin):
    assert read_edited(client, journey, ALL, pin_editing_strategies_at_message=pin) == read_edited(client, journey, ALL)
    ids = client.sessions.get_messages(journey.id).ids
    page = {"limit": 3, "edit_strategies": ALL}
    elsewhere = client.sessions.get_messages(journey.id, **page, pin_editing_strategies_at_message=ids[7])
    assert elsewhere == client.sessions.get_messages(journey.id, **page)


# ----- errors -----


@pytest.mark.parametrize(
    "strategy, field",
    [
        ({"type": "unknown"}, "edit_strategies[1].type"),
        ({"type": ""}, "edit_strategies[1].type"),
        ({"params": {}}, "edit_strategies[1].type"),
        ({}, "edit_strategies[1].type"),
        ({"type": "token_limit"}, "limit_tokens"),
        ({"type": "token_limit", "params": {}}, "limit_tokens"),
        ({"type": "token_limit", "params": {"limit_tokens": 0}}, "limit_tokens"),
        ({"type": "token_limit", "params": {"limit_tokens": -1}}, "limit_tokens"),
        ({"type": "token_limit", "params": {"limit_tokens": "5"}}, "limit_tokens"),
        ({"type": "token_limit", "params": {"limit_tokens": None}}, "limit_tokens"),
        ({"type": "token_limit", "params": {"limit_tokens": True}}, "limit_tokens"),
        ({"type": "token_limit", "params": {"limit_tokens": 10**30}}, "limit_tokens"),
        ({"type": "middle_out"}, "token_reduce_to"),
        ({"type": "middle_out", "params": {"token_reduce_to": 0}}, "token_reduce_to"),
        ({"type": "middle_out", "params": {"token_reduce_to": 1.5}}, "token_reduce_to"),
        ({"type": "remove_tool_result", "params": {"keep_recent_n_tool_results": -1}}, "keep_recent_n_tool_results"),
        ({"type": "remove_tool_result", "params": {"keep_recent_n_tool_results": "3"}}, "keep_recent_n_tool_results"),
        ({"type": "remove_tool_result", "params": {"tool_result_placeholder": None}}, "tool_result_placeholder"),
        ({"type": "remove_tool_result", "params": {"tool_result_placeholder": 5}}, "tool_result_placeholder"),
        ({"type": "remove_tool_result", "params": {"tool_result_placeholder": "x" * 1025}}, "tool_result_placeholder"),
        ({"type": "remove_tool_result", "params": {"keep_tools": "seats"}}, "keep_tools"),
        ({"type": "remove_tool_result", "params": {"keep_tools": [1]}}, "keep_tools"),
        ({"type": "remove_tool_call_params", "params": {"keep_recent_n_tool_calls": -1}}, "keep_recent_n_tool_calls"),
        ({"type": "remove_tool_call_params", "params": {"keep_tools": None}}, "keep_tools"),
    ],
)
def test_an_invalid_strategy_is_an_error_that_names_the_field(client, journey, strategy, field):
    with raises_error(400, field):
        read_edited(client, journey, one_strategy("remove_tool_result") + [strategy])


@pytest.mark.parametrize("name", ["remove_tool_result", "remove_tool_call_params"])
@pytest.mark.parametrize("value", ["0", "-1", '"5"', "true", "null"])
def test_gt_token_below_one_is_an_error(server, client, journey, name, value):
    # The SDK rejects it before it sends a request.
    with pytest.raises(ValueError, match="gt_token"):
        read_edited(client, journey, one_strategy(name, gt_token=json.loads(value)))
    text = f'[{{"type": "{name}", "params": {{"gt_token": {value}}}}}]'
    response = exchange(server, "GET", f"/api/v1/session/{journey.id}/messages?{urlencode({'edit_strategies': text})}")
    assert response.status == 400
    assert "gt_token" in response.error_message()


def test_more_than_sixteen_strategies_are_an_error(client, journey):
    strategies = one_strategy("remove_tool_result") * 16
    assert read_edited(client, journey, strategies) == read_edited(client, journey, strategies[:1])
    with raises_error(400, "edit_strategies"):
        read_edited(client, journey, strategies + strategies[:1])


@pytest.mark.parametrize("text", ["{", "{}", "5", '"a"', "[1]", '["token_limit"]', '[{"type": 5}]', "[] []"])
def test_edit_strategies_are_parsed_before_the_session_is_read(server, journey, text):
    for session in (journey.id, UNKNOWN_ID):
        response = exchange(server, "GET", f"/api/v1/session/{session}/messages?{urlencode({'edit_strategies': text})}")
        assert response.status == 400
        assert "invalid edit_strategies JSON" in response.error_message()


def test_unknown_keys_in_strategies_are_ignored(client, journey):
    strategy = {"type": "remove_tool_result", "params": {"unknown": 1}, "note": "mine"}
    assert read_edited(client, journey, [strategy]) == read_edited(client, journey, one_strategy("remove_tool_result"))
    assert read_edited(client, journey, [{"type": "remove_tool_result", "params": None}]) == read_edited(
        client, journey, [{"type": "remove_tool_result"}]
    )


# ----- tokens -----


def test_tokens_are_the_same_in_every_format(client, journeys):
    for stored_format, session in journeys.items():
        total = client.sessions.get_token_counts(session.id).total_tokens
        assert total == sum(message_tokens(client, session)) > 0
        for read_format in FORMATS:
            page = client.sessions.get_messages(session.id, format=read_format)
            assert page.this_time_tokens == total, (stored_format, read_format)
            assert len({read_edited(client, session, ALL, format).this_time_tokens for format in FORMATS}) == 1


# ----- the asynchronous client -----


def test_async_editing(server, client):
    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        for blob in JOURNEY:
            await sessions.store_message(session.id, blob=blob)
        await sessions.add_event(session.id, TextEvent(text="left"))
        strategies = one_strategy("remove_tool_result", keep_recent_n_tool_results=1)
        first = await sessions.get_messages(session.id, edit_strategies=strategies)
        assert tool_results(first.items) == ["Done"] * 4 + [RESULTS["e"]]
        await sessions.store_message(session.id, blob=calls_message("a"))
        await sessions.store_message(session.id, blob=result_message("a"))
        pin = first.edit_at_message_id
        second = await sessions.get_messages(
            session.id, edit_strategies=strategies, pin_editing_strategies_at_message=pin
        )
        assert (second.items[:-2], second.edit_at_message_id) == (first.items, pin)
        assert tool_results(second.items) == tool_results(first.items) + [RESULTS["a"]]
        with pytest.raises(ValueError, match="gt_token"):
            await sessions.get_messages(session.id, edit_strategies=one_strategy("remove_tool_result", gt_token=0))
        with raises_error(400, "limit_tokens"):
            await sessions.get_messages(session.id, edit_strategies=one_strategy("token_limit"))

    run_async(server, steps)
