"""Conversations that are made shorter while they are read: each strategy, all together, and up to a pin."""

import itertools
import json
from urllib.parse import urlencode

import pytest

from acontext.event import TextEvent
from support import asynchronously, refused, say
from wire import exchange

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
NOBODYS = "00000000-0000-4000-8000-000000000000"
RESULTS = {
    "a": "The 21:04 from platform nine, with a sleeping car, every day but Sunday.",
    "b": "full",
    "c": "The 20:39 from platform two; change in Salzburg, arrive at seven in the morning.",
    "d": "Two berths are free in wagon 257, one above the other, beside the door.",
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
# Which messages of the journey belong together: a call and its results.
GROUPS = [[0], [1, 2], [3, 4], [5, 6, 7], [8, 9], [10]]
# No message is so long.
ENOUGH = 1_000_000


def call(*ids):
    function = {id: {"name": TOOLS[id], "arguments": json.dumps(ARGUMENTS[id])} for id in ids}
    return {"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function[id]} for id in ids]}


def result(id):
    return {"role": "tool", "tool_call_id": id, "content": RESULTS[id]}


JOURNEY = [
    {"role": "user", "content": "Which night train goes to Vienna, and are there berths for two of us?"},
    call("a"),
    result("a"),
    call("b"),
    result("b"),
    # Two at once.
    call("c", "d"),
    result("c"),
    result("d"),
    call("e"),
    result("e"),
    {"role": "assistant", "content": "You leave on Saturday at 20:39, in wagon 257, berths 15 and 16."},
]


def store(client, session, blobs, format="openai"):
    return [client.sessions.store_message(session.id, blob=blob, format=format).id for blob in blobs]


@pytest.fixture(scope="module")
def journeys(client):
    """The journey as each format has it: sessions by the format that they were stored in."""
    sessions = {format: client.sessions.create() for format in FORMATS}
    store(client, sessions["openai"], JOURNEY)
    for format in FORMATS[1:]:
        items = client.sessions.get_messages(sessions["openai"].id, format=format).items
        if format == "acontext":
            items = [{key: item[key] for key in ("role", "parts")} for item in items]
        store(client, sessions[format], items, format)
    return sessions


@pytest.fixture(scope="module")
def journey(journeys):
    return journeys["openai"]


def edit(name, **params):
    return [{"type": name, "params": params}]


def read(client, session, strategies, format="openai", **how):
    """Reads an edited page and checks what holds for every one."""
    got = client.sessions.get_messages(session.id, format=format, edit_strategies=strategies, **how)
    assert len(got.items) == len(got.ids) == len(got.metas)
    return got


def body(server, session, strategies=None, format="openai", **query):
    """The bytes of an answer."""
    query |= {"format": format} | ({} if strategies is None else {"edit_strategies": json.dumps(strategies)})
    answer = exchange(server, "GET", f"/api/v1/session/{session.id}/messages?{urlencode(query)}")
    assert answer.status == 200, answer.body
    return answer.body


def items_of(body):
    """The bytes of the items of an answer, without the brackets around them."""
    text = body.decode()
    start = text.index('"items":') + len('"items":')
    items, end = json.JSONDecoder().raw_decode(text, start)
    assert len(items) > 0
    return text[start + 1 : end - 1].encode()


def results(items, format="openai"):
    """What is left of what tools returned, in order."""
    found = []
    for item in items:
        if format == "openai" and item["role"] == "tool":
            found.append(item["content"])
        elif format == "anthropic":
            contents = [block["content"] for block in item["content"] if block["type"] == "tool_result"]
            # A text, or a list of texts.
            found += [said if isinstance(said, str) else "".join(text["text"] for text in said) for said in contents]
        elif format == "gemini":
            found += [part["functionResponse"]["response"] for part in item["parts"] if "functionResponse" in part]
        elif format == "acontext":
            found += [part["text"] for part in item["parts"] if part["type"] == "tool-result"]
    return [output(said) for said in found]


def output(said):
    """Functions of Gemini return an object, whose text is the result in other formats."""
    if isinstance(said, str) and said.startswith("{"):
        said = json.loads(said)
    return said if isinstance(said, str) else said["output"]


def arguments(items, format="openai"):
    """What is left of what tools were called with, in order."""
    found = []
    for item in items:
        if format == "openai":
            found += [json.loads(call["function"]["arguments"]) for call in item.get("tool_calls", [])]
        elif format == "anthropic":
            found += [block["input"] for block in item["content"] if block["type"] == "tool_use"]
        elif format == "gemini":
            calls = [part["functionCall"] for part in item["parts"] if "functionCall" in part]
            found += [call.get("args", {}) for call in calls]
        elif format == "acontext":
            found += [json.loads(part["meta"]["arguments"]) for part in item["parts"] if part["type"] == "tool-call"]
    return found


def tokens_of_each(client, session, strategies=None):
    """The tokens of each message alone, in order."""
    counts, cursor = [], None
    while True:
        page = client.sessions.get_messages(session.id, limit=1, cursor=cursor, edit_strategies=strategies)
        counts.append(page.this_time_tokens)
        if not page.has_more:
            return counts
        cursor = page.next_cursor


def under_limit(tokens, kept, limit):
    """The numbers of messages that `token_limit` leaves: the oldest group goes first."""
    kept = list(kept)
    while sum(tokens[number] for number in kept) > limit:
        group = next(group for group in GROUPS if kept[0] in group)
        kept = [number for number in kept if number not in group]
    return kept


def without_middle(tokens, kept, target):
    """The numbers of messages that `middle_out` leaves: the group of the one in the middle goes first."""
    kept = list(kept)
    while sum(tokens[number] for number in kept) > target:
        middle = kept[0 if len(kept) <= 2 else len(kept) // 2]
        group = next(group for group in GROUPS if middle in group)
        kept = [number for number in kept if number not in group]
    return kept


ALL = (
    edit("token_limit", limit_tokens=150)
    + edit("middle_out", token_reduce_to=200)
    + edit("remove_tool_result", keep_recent_n_tool_results=1)
    + edit("remove_tool_call_params", keep_recent_n_tool_calls=1)
)


# ----- results of tools -----


@pytest.mark.parametrize(
    "params, replaced",
    [
        # Three recent ones are kept unless somebody says otherwise.
        ({}, "ab"),
        ({"keep_recent_n_tool_results": 0}, "abcde"),
        ({"keep_recent_n_tool_results": 1}, "abcd"),
        ({"keep_recent_n_tool_results": 4}, "a"),
        ({"keep_recent_n_tool_results": 5}, ""),
        ({"keep_recent_n_tool_results": 1000}, ""),
        # A tool that is kept is no recent one.
        ({"keep_tools": ["seats"], "keep_recent_n_tool_results": 1}, "ac"),
        ({"keep_tools": ["seats", "book", "timetable"], "keep_recent_n_tool_results": 0}, ""),
        ({"keep_tools": ["unknown"], "keep_recent_n_tool_results": 4}, "a"),
        ({"keep_tools": [], "keep_recent_n_tool_results": 4}, "a"),
        # Short ones are spared, and count as they would otherwise.
        ({"gt_token": 1, "keep_recent_n_tool_results": 0}, "acde"),
        ({"gt_token": 1, "keep_recent_n_tool_results": 3}, "a"),
        ({"gt_token": ENOUGH, "keep_recent_n_tool_results": 0}, ""),
        ({"gt_token": 1, "keep_tools": ["timetable"], "keep_recent_n_tool_results": 1}, "d"),
    ],
)
def test_a_word_stands_for_older_results(client, journey, params, replaced):
    wanted = ["Done" if id in replaced else text for id, text in RESULTS.items()]
    got = read(client, journey, edit("remove_tool_result", **params))
    assert results(got.items) == wanted
    # Nothing else has changed.
    plain = client.sessions.get_messages(journey.id)
    assert got.ids == plain.ids
    assert [item for item in got.items if item["role"] != "tool"] == [
        item for item in plain.items if item["role"] != "tool"
    ]
    assert (got.this_time_tokens < plain.this_time_tokens) == (replaced != "")


@pytest.mark.parametrize(
    "placeholder, word",
    [("Cleared", "Cleared"), ("  ü \n", "ü"), ("", "Done"), (" \t", "Done"), ("x" * 1024, "x" * 1024)],
)
def test_the_word_may_be_chosen(client, journey, placeholder, word):
    params = {"tool_result_placeholder": placeholder, "keep_recent_n_tool_results": 4}
    got = read(client, journey, edit("remove_tool_result", **params))
    assert results(got.items) == [word, *list(RESULTS.values())[1:]]


@pytest.mark.parametrize("shown", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
def test_results_give_way_whatever_they_were_stored_and_are_read_in(client, journeys, stored, shown):
    got = read(client, journeys[stored], edit("remove_tool_result", keep_recent_n_tool_results=2), shown)
    assert results(got.items, shown) == ["Done", "Done", "Done", RESULTS["d"], RESULTS["e"]]


@pytest.mark.parametrize("format", FORMATS)
def test_a_result_that_gave_way_still_answers_its_call(client, journey, format):
    got = read(client, journey, edit("remove_tool_result", keep_recent_n_tool_results=0), format)
    if format == "openai":
        answered = [item["tool_call_id"] for item in got.items if item["role"] == "tool"]
    elif format == "anthropic":
        answered = [block.get("tool_use_id") for item in got.items for block in item["content"]]
    elif format == "gemini":
        answered = [part.get("functionResponse", {}).get("id") for item in got.items for part in item["parts"]]
    else:
        parts = [part for item in got.items for part in item["parts"] if part["type"] == "tool-result"]
        answered = [part["meta"]["tool_call_id"] for part in parts]
    assert [id for id in answered if id] == list("abcde")


def test_a_picture_in_a_result_goes_with_it(client):
    session = client.sessions.create()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    use = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    seen = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "Here it is."}, picture]}
    blobs = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [seen]}]
    store(client, session, blobs, "anthropic")
    plain = client.sessions.get_messages(session.id, format="anthropic").items
    assert picture in plain[1]["content"][0]["content"]
    got = read(client, session, edit("remove_tool_result", keep_recent_n_tool_results=0), "anthropic")
    assert results(got.items, "anthropic") == ["Done"]
    assert "iVBORw0KGgo=" not in json.dumps(got.items)


def test_results_that_came_in_one_message_give_way_one_by_one(client):
    session = client.sessions.create()
    uses = [{"type": "tool_use", "id": id, "name": "look", "input": {}} for id in "xyz"]
    answers = [{"type": "tool_result", "tool_use_id": id, "content": f"seen {id}"} for id in "xyz"]
    blobs = [{"role": "assistant", "content": uses}, {"role": "user", "content": answers}]
    said = store(client, session, blobs, "anthropic")
    strategies = edit("remove_tool_result", keep_recent_n_tool_results=1)
    assert results(read(client, session, strategies, "anthropic").items, "anthropic") == ["Done", "Done", "seen z"]
    # One format has a message for each result; ids say which one it came in.
    got = read(client, session, strategies)
    assert results(got.items) == ["Done", "Done", "seen z"]
    assert got.ids == [said[0]] + [said[1]] * 3


# ----- arguments of calls -----


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
        ({"gt_token": ENOUGH, "keep_recent_n_tool_calls": 0}, ""),
    ],
)
def test_older_calls_lose_their_arguments(client, journey, params, emptied):
    got = read(client, journey, edit("remove_tool_call_params", **params))
    assert arguments(got.items) == [{} if id in emptied else given for id, given in ARGUMENTS.items()]
    plain = client.sessions.get_messages(journey.id)
    assert got.ids == plain.ids
    assert results(got.items) == results(plain.items)
    calls = [call for item in got.items for call in item.get("tool_calls", [])]
    assert [(call["id"], call["function"]["name"]) for call in calls] == list(TOOLS.items())
    assert (got.this_time_tokens < plain.this_time_tokens) == (emptied != "")


@pytest.mark.parametrize("shown", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
def test_arguments_give_way_whatever_they_were_stored_and_are_read_in(client, journeys, stored, shown):
    got = read(client, journeys[stored], edit("remove_tool_call_params", keep_recent_n_tool_calls=2), shown)
    assert arguments(got.items, shown) == [{}, {}, {}, ARGUMENTS["d"], ARGUMENTS["e"]]
    assert results(got.items, shown) == list(RESULTS.values())


def test_emptied_arguments_are_an_empty_object_as_text(client, journey):
    got = read(client, journey, edit("remove_tool_call_params", keep_recent_n_tool_calls=4))
    assert got.items[1]["tool_calls"][0]["function"]["arguments"] == "{}"


# ----- limits -----


def test_the_oldest_messages_go_until_the_rest_is_short_enough(client, journey):
    tokens = tokens_of_each(client, journey)
    plain = client.sessions.get_messages(journey.id)
    assert len(tokens) == len(JOURNEY) and sum(tokens) == plain.this_time_tokens
    lengths = set()
    for limit in range(1, sum(tokens) + 2):
        got = read(client, journey, edit("token_limit", limit_tokens=limit))
        kept = under_limit(tokens, range(len(tokens)), limit)
        assert got.ids == [plain.ids[number] for number in kept], limit
        assert got.items == [plain.items[number] for number in kept]
        assert got.this_time_tokens == sum(tokens[number] for number in kept) <= limit
        lengths.add(len(kept))
    # A call never stays without its result, nor a result without its call.
    assert lengths == {0, 1, 3, 6, 8, 10, 11}


def test_the_middle_goes_until_the_rest_is_short_enough(client, journey):
    tokens = tokens_of_each(client, journey)
    plain = client.sessions.get_messages(journey.id)
    seen = set()
    for target in range(1, sum(tokens) + 2):
        got = read(client, journey, edit("middle_out", token_reduce_to=target))
        kept = without_middle(tokens, range(len(tokens)), target)
        assert got.ids == [plain.ids[number] for number in kept], target
        assert got.items == [plain.items[number] for number in kept]
        assert got.this_time_tokens == sum(tokens[number] for number in kept) <= target
        seen.add(tuple(kept))
    # The beginning and the end stay longest.
    assert (0, 10) in seen and (10,) in seen and () in seen


@pytest.mark.parametrize("shown", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("name, param", [("token_limit", "limit_tokens"), ("middle_out", "token_reduce_to")])
def test_limits_hold_in_every_format(client, journeys, stored, shown, name, param):
    session = journeys[stored]
    plain = client.sessions.get_messages(session.id, format=shown)
    got = read(client, session, edit(name, **{param: plain.this_time_tokens // 2}), shown)
    assert 0 < got.this_time_tokens <= plain.this_time_tokens // 2
    wanted = dict(zip(plain.ids, plain.items))
    assert got.items == [wanted[id] for id in got.ids]
    assert 0 < len(got.ids) < len(plain.ids)
    assert len(results(got.items, shown)) == len(arguments(got.items, shown))


@pytest.mark.parametrize("name, param", [("token_limit", "limit_tokens"), ("middle_out", "token_reduce_to")])
def test_old_functions_that_have_no_ids_stay_together_too(client, name, param):
    session = client.sessions.create()
    asked = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": "the sea"}'}}
    answered = {"role": "function", "name": "look", "content": "It is blue, with white where the wind goes over it."}
    store(client, session, [asked, answered, {"role": "user", "content": "Thank you."}])
    ids = client.sessions.get_messages(session.id).ids
    most = sum(tokens_of_each(client, session)) - 1
    assert read(client, session, edit(name, **{param: most})).ids == ids[2:]


@pytest.fixture(scope="module")
def long_talk(client):
    """A session in which no message belongs to another: the session, its ids, and the tokens of each message."""
    session = client.sessions.create()
    for number in range(120):
        say(client, session, f"{number} " + "word " * (number % 7))
    return session, client.sessions.get_messages(session.id).ids, tokens_of_each(client, session)


@pytest.mark.parametrize("share", [0, 0.01, 0.02, 0.1, 0.5, 0.9, 0.999, 1, 1e6])
def test_a_long_conversation_loses_its_beginning(client, long_talk, share):
    session, ids, tokens = long_talk
    limit = max(1, int(sum(tokens) * share))
    got = read(client, session, edit("token_limit", limit_tokens=limit))
    first = next(at for at in range(121) if sum(tokens[at:]) <= limit)
    assert got.ids == ids[first:]
    assert got.this_time_tokens == sum(tokens[first:])


@pytest.mark.parametrize("share", [0, 0.01, 0.02, 0.1, 0.5, 0.9, 0.999, 1, 1e6])
def test_a_long_conversation_loses_its_middle(client, long_talk, share):
    session, ids, tokens = long_talk
    target = max(1, int(sum(tokens) * share))
    got = read(client, session, edit("middle_out", token_reduce_to=target))
    left = list(range(120))
    while sum(tokens[number] for number in left) > target:
        # Of the last two the newer one stays.
        left.pop(0 if len(left) <= 2 else len(left) // 2)
    assert got.ids == [ids[number] for number in left]


def test_of_three_messages_the_middle_goes_first_and_then_the_oldest(client):
    session = client.sessions.create()
    ids = [say(client, session, "as long as the others").id for _ in range(3)]
    each = tokens_of_each(client, session)[0]
    for left, wanted in ((3, ids), (2, [ids[0], ids[2]]), (1, ids[2:])):
        assert read(client, session, edit("middle_out", token_reduce_to=left * each)).ids == wanted


# ----- several strategies -----


def test_strategies_work_in_one_order_however_they_are_written(server, client, journey):
    shorter = edit("remove_tool_result", keep_recent_n_tool_results=1)
    shorter += edit("remove_tool_call_params", keep_recent_n_tool_calls=1)
    plain = read(client, journey, shorter)
    assert results(plain.items) == ["Done"] * 4 + [RESULTS["e"]]
    # Message by message nothing is old, so each is shortened as if it were.
    tokens = tokens_of_each(
        client,
        journey,
        edit("remove_tool_result", keep_recent_n_tool_results=0)
        + edit("remove_tool_call_params", keep_recent_n_tool_calls=0),
    )
    unedited = tokens_of_each(client, journey)
    tokens[8:10] = unedited[8:10]
    assert sum(tokens) == plain.this_time_tokens
    middle = sum(tokens) - 1
    kept = without_middle(tokens, range(11), middle)
    limit = sum(tokens[number] for number in kept) - 1
    strategies = shorter + edit("middle_out", token_reduce_to=middle) + edit("token_limit", limit_tokens=limit)
    kept = under_limit(tokens, kept, limit)
    assert kept == [1, 2, 3, 4, 8, 9, 10]
    bodies = {body(server, journey, order) for order in map(list, itertools.permutations(strategies))}
    assert len(bodies) == 1
    got = read(client, journey, strategies)
    assert got.ids == [plain.ids[number] for number in kept]
    assert got.items == [plain.items[number] for number in kept]
    assert got.this_time_tokens == sum(tokens[number] for number in kept)


def test_two_of_a_kind_work_one_after_the_other(client, journey):
    short = edit("remove_tool_result", keep_recent_n_tool_results=3, tool_result_placeholder="A")
    long = edit("remove_tool_result", keep_recent_n_tool_results=4, tool_result_placeholder="B")
    assert results(read(client, journey, short + long).items)[:3] == ["B", "A", RESULTS["c"]]
    assert results(read(client, journey, long + short).items)[:3] == ["A", "A", RESULTS["c"]]


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_question_gets_the_same_bytes(server, journey, format):
    assert len({body(server, journey, ALL, format) for _ in range(5)}) == 1


@pytest.mark.parametrize("strategies", [None, []])
def test_without_strategies_nothing_is_edited(client, journey, strategies):
    plain = client.sessions.get_messages(journey.id)
    assert read(client, journey, strategies) == plain
    assert read(client, journey, strategies, pin_editing_strategies_at_message=plain.ids[3]) == plain
    assert plain.edit_at_message_id == plain.ids[-1]


def test_what_is_stored_never_changes(server, client, journeys):
    for session in journeys.values():
        before = [body(server, session, format=format) for format in FORMATS]
        count = client.sessions.get_token_counts(session.id)
        for strategies in (ALL, edit("token_limit", limit_tokens=1)):
            assert read(client, session, strategies).this_time_tokens < count.total_tokens
        assert [body(server, session, format=format) for format in FORMATS] == before
        assert client.sessions.get_token_counts(session.id) == count


def test_meta_stays_beside_the_messages_that_are_left(client):
    session = client.sessions.create()
    for number in range(4):
        client.sessions.store_message(session.id, blob=JOURNEY[number], meta={"n": number})
    tokens = tokens_of_each(client, session)
    got = read(client, session, edit("token_limit", limit_tokens=sum(tokens[1:])))
    assert got.metas == [{"n": 1}, {"n": 2}, {"n": 3}]
    got = read(client, session, edit("remove_tool_result", keep_recent_n_tool_results=0))
    assert got.metas == [{"n": number} for number in range(4)]


# ----- pages -----


def test_a_page_is_edited_by_itself_and_paging_goes_on(client, journey):
    ids = client.sessions.get_messages(journey.id).ids
    strategies = edit("remove_tool_result", keep_recent_n_tool_results=1)
    first = read(client, journey, strategies, limit=5)
    assert (first.ids, results(first.items)) == (ids[:5], ["Done", RESULTS["b"]])
    second = read(client, journey, strategies, limit=5, cursor=first.next_cursor)
    assert (second.ids, results(second.items)) == (ids[5:10], ["Done", "Done", RESULTS["e"]])
    newest = read(client, journey, strategies, limit=5, time_desc=True)
    assert (newest.ids, results(newest.items)) == (ids[6:], ["Done", "Done", RESULTS["e"]])
    # Also where nothing is left of a page.
    nothing = edit("token_limit", limit_tokens=1)
    empty = read(client, journey, nothing, limit=5)
    assert (empty.items, empty.this_time_tokens, empty.has_more) == ([], 0, True)
    assert empty.next_cursor == first.next_cursor


def test_an_edited_page_of_nothing_is_empty(client):
    got = read(client, client.sessions.create(), ALL)
    assert (got.items, got.this_time_tokens, got.edit_at_message_id) == ([], 0, None)


# ----- the pin -----


@pytest.mark.parametrize("strategies", [ALL, edit("token_limit", limit_tokens=1), edit("remove_tool_result")])
def test_an_answer_says_where_it_was_edited(client, journey, strategies):
    ids = client.sessions.get_messages(journey.id).ids
    # The last message of the page, even if it has gone.
    assert read(client, journey, strategies).edit_at_message_id == ids[-1]
    assert read(client, journey, strategies, limit=3).edit_at_message_id == ids[2]
    for pin in (ids[0], ids[4], ids[-1]):
        got = read(client, journey, strategies, pin_editing_strategies_at_message=pin)
        assert got.edit_at_message_id == pin


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "strategies",
    [*([strategy] for strategy in ALL), ALL],
    ids=[*(strategy["type"] for strategy in ALL), "all"],
)
def test_with_a_pin_the_beginning_stays_byte_for_byte_whatever_is_stored_later(server, client, strategies, format):
    session = client.sessions.create()
    store(client, session, JOURNEY)
    before = body(server, session, strategies, format)
    assert before != body(server, session, format=format)
    edited = json.loads(before)["data"]
    pin = edited["edit_at_message_id"]
    pinned = {"pin_editing_strategies_at_message": pin}
    assert body(server, session, strategies, format, **pinned) == before
    later = []
    # Each round makes older what was recent, and the whole longer.
    for number in range(4):
        more = [{"role": "user", "content": f"And in week {number}?"}, call("a"), result("a"), call("c", "d")]
        later += store(client, session, [*more, result("c"), result("d"), JOURNEY[-1]])
        now = body(server, session, strategies, format, **pinned)
        data = json.loads(now)["data"]
        assert items_of(now).startswith(items_of(before) + b",")
        assert data["edit_at_message_id"] == pin
        assert data["ids"] == edited["ids"] + later
        # What comes after the pin is shown as it was stored.
        plain = client.sessions.get_messages(session.id, format=format)
        assert data["items"][-len(later) :] == plain.items[-len(later) :]
        counts = tokens_of_each(client, session)[-len(later) :]
        assert data["this_time_tokens"] == edited["this_time_tokens"] + sum(counts)
    # Without the pin the beginning is another one.
    assert not items_of(body(server, session, strategies, format)).startswith(items_of(before))


def test_a_pin_may_be_moved_on(server, client):
    session = client.sessions.create()
    store(client, session, JOURNEY)
    first = json.loads(body(server, session, ALL))["data"]["edit_at_message_id"]
    store(client, session, [call("a"), result("a")])
    second = json.loads(body(server, session, ALL))["data"]["edit_at_message_id"]
    assert first != second
    moved = body(server, session, ALL, pin_editing_strategies_at_message=second)
    assert moved == body(server, session, ALL)
    store(client, session, [call("b"), result("b")])
    now = body(server, session, ALL, pin_editing_strategies_at_message=second)
    assert items_of(now).startswith(items_of(moved) + b",")


def test_only_what_stands_before_the_pin_is_counted(client, journey):
    ids, tokens = client.sessions.get_messages(journey.id).ids, tokens_of_each(client, journey)

    def pinned(at, strategies):
        return read(client, journey, strategies, pin_editing_strategies_at_message=ids[at])

    recent = pinned(6, edit("remove_tool_result", keep_recent_n_tool_results=1))
    assert results(recent.items) == ["Done", "Done", RESULTS["c"], RESULTS["d"], RESULTS["e"]]
    calls = pinned(5, edit("remove_tool_call_params", keep_recent_n_tool_calls=1))
    assert arguments(calls.items) == [{}, {}, {}, ARGUMENTS["d"], ARGUMENTS["e"]]
    # The limit is about the beginning alone, so what follows may be longer than it.
    limit = sum(tokens[:5])
    assert pinned(4, edit("token_limit", limit_tokens=limit)).ids == ids
    assert pinned(4, edit("token_limit", limit_tokens=limit - 1)).ids == ids[1:]
    assert pinned(4, edit("middle_out", token_reduce_to=limit)).ids == ids
    assert pinned(4, edit("middle_out", token_reduce_to=limit - 1)).ids == ids[:1] + ids[3:]


@pytest.mark.parametrize("name, param", [("token_limit", "limit_tokens"), ("middle_out", "token_reduce_to")])
def test_nothing_after_the_pin_goes_even_if_its_call_does(client, journey, name, param):
    ids = client.sessions.get_messages(journey.id).ids
    got = read(client, journey, edit(name, **{param: 1}), pin_editing_strategies_at_message=ids[5])
    assert (got.ids, got.edit_at_message_id) == (ids[6:], ids[5])


@pytest.mark.parametrize("pin", [NOBODYS, "not-an-id", ""])
def test_a_pin_that_is_not_on_the_page_pins_nothing(client, journey, pin):
    assert read(client, journey, ALL, pin_editing_strategies_at_message=pin) == read(client, journey, ALL)
    ids = client.sessions.get_messages(journey.id).ids
    page = {"limit": 3, "edit_strategies": ALL}
    elsewhere = client.sessions.get_messages(journey.id, **page, pin_editing_strategies_at_message=ids[7])
    assert elsewhere == client.sessions.get_messages(journey.id, **page)


# ----- what is refused -----


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
def test_a_strategy_that_makes_no_sense_is_refused_by_name(client, journey, strategy, field):
    with refused(400, field):
        read(client, journey, edit("remove_tool_result") + [strategy])


@pytest.mark.parametrize("name", ["remove_tool_result", "remove_tool_call_params"])
@pytest.mark.parametrize("value", ["0", "-1", '"5"', "true", "null"])
def test_a_number_of_tokens_below_one_is_refused(server, client, journey, name, value):
    # The SDK does so before it asks.
    with pytest.raises(ValueError, match="gt_token"):
        read(client, journey, edit(name, gt_token=json.loads(value)))
    text = f'[{{"type": "{name}", "params": {{"gt_token": {value}}}}}]'
    answer = exchange(server, "GET", f"/api/v1/session/{journey.id}/messages?{urlencode({'edit_strategies': text})}")
    assert answer.status == 400
    assert "gt_token" in answer.refusal()


def test_sixteen_strategies_may_be_asked_for_and_one_more_may_not(client, journey):
    strategies = edit("remove_tool_result") * 16
    assert read(client, journey, strategies) == read(client, journey, strategies[:1])
    with refused(400, "edit_strategies"):
        read(client, journey, strategies + strategies[:1])


@pytest.mark.parametrize("text", ["{", "{}", "5", '"a"', "[1]", '["token_limit"]', '[{"type": 5}]', "[] []"])
def test_what_is_no_list_of_strategies_is_refused_before_anything_else(server, journey, text):
    for session in (journey.id, NOBODYS):
        answer = exchange(server, "GET", f"/api/v1/session/{session}/messages?{urlencode({'edit_strategies': text})}")
        assert answer.status == 400
        assert "invalid edit_strategies JSON" in answer.refusal()


def test_keys_that_nobody_knows_are_passed_over(client, journey):
    strange = {"type": "remove_tool_result", "params": {"unknown": 1}, "note": "mine"}
    assert read(client, journey, [strange]) == read(client, journey, edit("remove_tool_result"))
    assert read(client, journey, [{"type": "remove_tool_result", "params": None}]) == read(
        client, journey, [{"type": "remove_tool_result"}]
    )


# ----- tokens -----


def test_tokens_are_the_same_in_every_format(client, journeys):
    for stored, session in journeys.items():
        total = client.sessions.get_token_counts(session.id).total_tokens
        assert total == sum(tokens_of_each(client, session)) > 0
        for shown in FORMATS:
            assert client.sessions.get_messages(session.id, format=shown).this_time_tokens == total, (stored, shown)
            assert len({read(client, session, ALL, shown).this_time_tokens for shown in FORMATS}) == 1


# ----- the asynchronous client -----


def test_async_editing(server, client):
    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        for blob in JOURNEY:
            await sessions.store_message(session.id, blob=blob)
        await sessions.add_event(session.id, TextEvent(text="left"))
        strategies = edit("remove_tool_result", keep_recent_n_tool_results=1)
        first = await sessions.get_messages(session.id, edit_strategies=strategies)
        assert results(first.items) == ["Done"] * 4 + [RESULTS["e"]]
        await sessions.store_message(session.id, blob=call("a"))
        await sessions.store_message(session.id, blob=result("a"))
        pin = first.edit_at_message_id
        second = await sessions.get_messages(
            session.id, edit_strategies=strategies, pin_editing_strategies_at_message=pin
        )
        assert (second.items[:-2], second.edit_at_message_id) == (first.items, pin)
        assert results(second.items) == results(first.items) + [RESULTS["a"]]
        with pytest.raises(ValueError, match="gt_token"):
            await sessions.get_messages(session.id, edit_strategies=edit("remove_tool_result", gt_token=0))
        with refused(400, "limit_tokens"):
            await sessions.get_messages(session.id, edit_strategies=edit("token_limit"))

    asynchronously(server, steps)
