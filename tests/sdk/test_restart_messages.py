"""Conversations outlive the server: what was answered is there after a kill, in its order and with its files."""

import os
import threading
from datetime import datetime

import pytest

from acontext import FileUpload
from acontext.errors import AcontextError
from support import eventually, open_link, refused

# Long ones and files go in by other ways than short ones.
LONG = "a long story " * 5_000


class Talk:
    """A session with messages of several kinds, remembered with all that was said about them."""

    def __init__(self, server):
        # No other session has it.
        self.file = os.urandom(1 << 20)
        with server.client() as client:
            self.session = client.sessions.create(user="alice", configs={"agent": "bot"})
            store, session = client.sessions.store_message, self.session.id
            store(session, blob={"role": "system", "content": "Be brief."}, meta={"n": 1})
            store(session, blob={"role": "user", "content": LONG})
            store(
                session,
                blob={"role": "user", "parts": [{"type": "file", "file_field": "f"}]},
                format="acontext",
                file_field="f",
                file=FileUpload("bytes.bin", self.file),
            )
            asked = {"functionCall": {"name": "look", "args": {"at": "it"}}}
            store(session, blob={"role": "model", "parts": [asked]}, format="gemini")
            said = {"role": "user", "content": [{"type": "text", "text": "a\0b"}]}
            last = store(session, blob=said, format="anthropic")
            client.sessions.patch_message_meta(session, last.id, meta={"patched": True})
            self.seen = self.look(client)
            (self.link,) = [url.url for url in self.seen["acontext"].public_urls.values()]

    def look(self, client):
        get = client.sessions.get_messages
        return {format: get(self.session.id, format=format) for format in ("openai", "anthropic", "gemini", "acontext")}

    def assert_still_there(self, server):
        with server.client() as client:
            listed = client.sessions.list(user="alice", filter_by_configs={"agent": "bot"}, limit=1, time_desc=True)
            assert listed.items == [self.session]
            assert client.sessions.get_configs(self.session.id) == self.session
            for format, before in self.seen.items():
                now = client.sessions.get_messages(self.session.id, format=format)
                assert (now.ids, now.metas, now.this_time_tokens) == (before.ids, before.metas, before.this_time_tokens)
                # Links may be others by now, when an hour has ended.
                if format != "openai":
                    assert now.items == before.items
            opened = open_link(self.link)
            assert (opened.status_code, opened.content) == (200, self.file)

    def go_on(self, server):
        """Stores an answer to the call that was waiting, and checks that it follows the last message."""
        before = self.seen["acontext"].items
        with server.client() as client:
            answer = {"functionResponse": {"name": "look", "response": {"seen": True}}}
            blob = {"role": "user", "parts": [answer]}
            stored = client.sessions.store_message(self.session.id, blob=blob, format="gemini")
            assert stored.parent_id == before[-1]["id"]
            assert datetime.fromisoformat(stored.created_at) > datetime.fromisoformat(before[-1]["created_at"])
            assert stored.parts[0].meta["tool_call_id"] == before[3]["parts"][0]["meta"]["id"]
            # It waits no longer.
            with refused(400, "functionResponse"):
                client.sessions.store_message(self.session.id, blob=blob, format="gemini")
            self.seen = self.look(client)


def same_port(server):
    """Links name it."""
    return {"API_EXPORT_PORT": str(server.port)}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_conversation_outlives_its_server(start, end):
    first = start()
    talk = Talk(first)
    getattr(first, end)()
    second = start(**same_port(first))
    talk.assert_still_there(second)
    talk.go_on(second)
    getattr(second, end)()
    third = start(**same_port(first))
    talk.assert_still_there(third)
    third.stop()


def test_a_deleted_session_stays_deleted(start):
    first = start()
    talk = Talk(first)
    with first.client() as client:
        client.sessions.delete(talk.session.id)
    first.kill()
    second = start(**same_port(first))
    with second.client() as client:
        with refused(404, "session not found"):
            client.sessions.get_messages(talk.session.id)
    assert open_link(talk.link).status_code == 404
    second.stop()


def test_every_message_that_was_answered_outlives_a_kill(start):
    """Many store while the server is killed: what they were told is stored is there, and the chain has no gap."""
    threads = 8
    first = start()
    with first.client() as client:
        session = client.sessions.create()
    answered = [[] for _ in range(threads)]

    def work(mine):
        with first.client() as client:
            try:
                while True:
                    blob = {"role": "user", "content": f"{len(mine)} " * (5_000 if len(mine) % 5 == 4 else 1)}
                    mine.append(client.sessions.store_message(session.id, blob=blob))
            except AcontextError:
                # The server is gone.
                pass

    workers = [threading.Thread(target=work, args=(mine,)) for mine in answered]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: all(len(mine) >= 10 for mine in answered), "ten answers for each")
    finally:
        first.kill()
        for worker in workers:
            worker.join()

    second = start()
    with second.client() as client:
        items = client.sessions.get_messages(session.id, format="acontext").items
        shown = {item["id"]: item for item in items}
        for message in (message for mine in answered for message in mine):
            item = shown[message.id]
            assert (item["parent_id"], item["created_at"]) == (message.parent_id, message.created_at)
            assert item["parts"][0]["text"] == message.parts[0].text
        # At most one more for each that was on its way.
        assert len(items) - sum(map(len, answered)) <= threads
        assert [item["parent_id"] for item in items] == [None] + [item["id"] for item in items[:-1]]
        after = client.sessions.store_message(session.id, blob={"role": "user", "content": "after"})
        assert after.parent_id == items[-1]["id"]
    second.stop()


def test_messages_that_come_during_a_stop_are_stored_or_refused(start):
    """A stop lets those finish that have begun: nobody is told of a message that is not there then."""
    threads = 8
    first = start()
    with first.client() as client:
        session = client.sessions.create()
    answered = [[] for _ in range(threads)]

    def work(mine):
        with first.client() as client:
            try:
                while True:
                    mine.append(client.sessions.store_message(session.id, blob={"role": "user", "content": "hello"}).id)
            except AcontextError:
                pass

    workers = [threading.Thread(target=work, args=(mine,)) for mine in answered]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: all(len(mine) >= 5 for mine in answered), "five answers for each")
    finally:
        first.stop()
        for worker in workers:
            worker.join()
    second = start()
    with second.client() as client:
        ids = client.sessions.get_messages(session.id).ids
    assert sorted(ids) == sorted(sum(answered, []))
    second.stop()
