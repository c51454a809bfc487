"""Conversations survive a restart: acknowledged messages exist after a crash, in their order and with their files."""

import os
import threading
from datetime import datetime

import pytest

from acontext import FileUpload
from acontext.errors import AcontextError
from support import wait_until, open_link, raises_error

# The server stores long messages and files in other ways than short messages.
LONG_TEXT = "a long story " * 5_000


class StoredConversation:
    """A session with messages of several types, and the responses that the server returned for them."""

    def __init__(self, server):
        # No other session contains this file.
        self.file = os.urandom(1 << 20)
        with server.client() as client:
            self.session = client.sessions.create(user="alice", configs={"agent": "bot"})
            store, session = client.sessions.store_message, self.session.id
            store(session, blob={"role": "system", "content": "Be brief."}, meta={"n": 1})
            store(session, blob={"role": "user", "content": LONG_TEXT})
            store(
                session,
                blob={"role": "user", "parts": [{"type": "file", "file_field": "f"}]},
                format="acontext",
                file_field="f",
                file=FileUpload("bytes.bin", self.file),
            )
            call = {"functionCall": {"name": "look", "args": {"at": "it"}}}
            store(session, blob={"role": "model", "parts": [call]}, format="gemini")
            blob = {"role": "user", "content": [{"type": "text", "text": "a\0b"}]}
            last = store(session, blob=blob, format="anthropic")
            client.sessions.patch_message_meta(session, last.id, meta={"patched": True})
            self.pages = self.read_all(client)
            (self.link,) = [url.url for url in self.pages["acontext"].public_urls.values()]

    def read_all(self, client):
        get = client.sessions.get_messages
        return {format: get(self.session.id, format=format) for format in ("openai", "anthropic", "gemini", "acontext")}

    def assert_unchanged(self, server):
        with server.client() as client:
            listed = client.sessions.list(user="alice", filter_by_configs={"agent": "bot"}, limit=1, time_desc=True)
            assert listed.items == [self.session]
            assert client.sessions.get_configs(self.session.id) == self.session
            for format, before in self.pages.items():
                page = client.sessions.get_messages(self.session.id, format=format)
                assert (page.ids, page.metas) == (before.ids, before.metas)
                assert page.this_time_tokens == before.this_time_tokens
                # Links in openai messages may have changed if an hour has ended.
                if format != "openai":
                    assert page.items == before.items
            download = open_link(self.link)
            assert (download.status_code, download.content) == (200, self.file)

    def answer_pending_call(self, server):
        """Stores the result of the pending call, and checks that it follows the last message."""
        before = self.pages["acontext"].items
        with server.client() as client:
            response = {"functionResponse": {"name": "look", "response": {"seen": True}}}
            blob = {"role": "user", "parts": [response]}
            stored = client.sessions.store_message(self.session.id, blob=blob, format="gemini")
            assert stored.parent_id == before[-1]["id"]
            assert datetime.fromisoformat(stored.created_at) > datetime.fromisoformat(before[-1]["created_at"])
            assert stored.parts[0].meta["tool_call_id"] == before[3]["parts"][0]["meta"]["id"]
            # The call is no longer pending.
            stored = client.sessions.store_message(self.session.id, blob=blob, format="gemini")
            assert "tool_call_id" not in stored.parts[0].meta
            self.pages = self.read_all(client)


def same_port(server):
    """Returns the settings for the port of the server, which signed URLs contain."""
    return {"API_EXPORT_PORT": str(server.port)}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_conversation_survives_the_end_of_the_server(start_server, end):
    first = start_server()
    conversation = StoredConversation(first)
    getattr(first, end)()
    second = start_server(**same_port(first))
    conversation.assert_unchanged(second)
    conversation.answer_pending_call(second)
    getattr(second, end)()
    third = start_server(**same_port(first))
    conversation.assert_unchanged(third)
    third.stop()


def test_a_deleted_session_stays_deleted(start_server):
    first = start_server()
    conversation = StoredConversation(first)
    with first.client() as client:
        client.sessions.delete(conversation.session.id)
    first.kill()
    second = start_server(**same_port(first))
    with second.client() as client:
        with raises_error(404, "session not found"):
            client.sessions.get_messages(conversation.session.id)
    assert open_link(conversation.link).status_code == 404
    second.stop()


def test_every_acknowledged_message_survives_a_crash(start_server):
    """Threads store messages until the server is killed. All acknowledged messages exist, and the chain has no gap."""
    thread_count = 8
    first = start_server()
    with first.client() as client:
        session = client.sessions.create()
    stored_by_thread = [[] for _ in range(thread_count)]

    def store_until_killed(stored):
        with first.client() as client:
            try:
                while True:
                    blob = {"role": "user", "content": f"{len(stored)} " * (5_000 if len(stored) % 5 == 4 else 1)}
                    stored.append(client.sessions.store_message(session.id, blob=blob))
            except AcontextError:
                # The server has been killed.
                pass

    threads = [threading.Thread(target=store_until_killed, args=(stored,)) for stored in stored_by_thread]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(len(stored) >= 10 for stored in stored_by_thread), "each thread has stored ten messages")
    finally:
        first.kill()
        for thread in threads:
            thread.join()

    second = start_server()
    with second.client() as client:
        items = client.sessions.get_messages(session.id, format="acontext").items
        items_by_id = {item["id"]: item for item in items}
        for message in (message for stored in stored_by_thread for message in stored):
            item = items_by_id[message.id]
            assert (item["parent_id"], item["created_at"]) == (message.parent_id, message.created_at)
            assert item["parts"][0]["text"] == message.parts[0].text
        # Each thread may have had one more request in flight.
        assert len(items) - sum(map(len, stored_by_thread)) <= thread_count
        assert [item["parent_id"] for item in items] == [None] + [item["id"] for item in items[:-1]]
        after = client.sessions.store_message(session.id, blob={"role": "user", "content": "after"})
        assert after.parent_id == items[-1]["id"]
    second.stop()


def test_messages_during_a_shutdown_are_stored_or_rejected(start_server):
    """A shutdown waits for requests that have started, so exactly the acknowledged messages are stored."""
    thread_count = 8
    first = start_server()
    with first.client() as client:
        session = client.sessions.create()
    stored_by_thread = [[] for _ in range(thread_count)]

    def store_until_shutdown(stored):
        with first.client() as client:
            try:
                while True:
                    blob = {"role": "user", "content": "hello"}
                    stored.append(client.sessions.store_message(session.id, blob=blob).id)
            except AcontextError:
                pass

    threads = [threading.Thread(target=store_until_shutdown, args=(stored,)) for stored in stored_by_thread]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(len(stored) >= 5 for stored in stored_by_thread), "each thread has stored five messages")
    finally:
        first.stop()
        for thread in threads:
            thread.join()
    second = start_server()
    with second.client() as client:
        ids = client.sessions.get_messages(session.id).ids
    assert sorted(ids) == sorted(sum(stored_by_thread, []))
    second.stop()
