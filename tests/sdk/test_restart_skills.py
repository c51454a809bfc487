"""Skills, spaces, users and settings survive a restart: acknowledged changes exist after a shutdown or a crash."""

import os
import threading

import httpx
import pytest

from acontext.errors import AcontextError
from zip_fixtures import add_skill, pack, send_archive, skill_md, unpack
from support import wait_until, open_link, raises_error


class StoredEntities:
    """One entity of each type, and the responses that the server returned for them."""

    def __init__(self, server):
        # No other skill contains these bytes.
        self.bytes = b"\0" + os.urandom(1 << 20)
        with server.client() as client:
            self.configs = client.project.update_configs({"task_success_criteria": "Green", "n": 1})
            self.skill = add_skill(client, ("a/data.bin", self.bytes), user="alice", meta={"n": 1})
            self.link = client.skills.get_file(skill_id=self.skill.id, file_path="a/data.bin").url
            client.artifacts.upsert(self.skill.disk_id, file=("later.md", b"# later\n"), file_path="/")
            self.skill = client.skills.get(self.skill.id)
            self.space = client.learning_spaces.create(user="alice", meta={"source": "cli"})
            client.learning_spaces.include_skill(self.space.id, skill_id=self.skill.id)
            self.space = client.learning_spaces.update(self.space.id, meta={"null": None})
            ended, waiting = client.sessions.create(user="alice"), client.sessions.create(user="alice")
            client.sessions.store_message(waiting.id, blob={"role": "user", "content": "wait"})
            for session in (ended, waiting):
                client.learning_spaces.learn(self.space.id, session_id=session.id)
            self.learned_sessions = client.learning_spaces.list_sessions(self.space.id)
            assert [learned.status for learned in self.learned_sessions] == ["completed", "pending"]
            client.disks.create(user="bob")
            client.users.delete("bob")
            self.skills = client.learning_spaces.list_skills(self.space.id)
            self.users = client.users.list()
            self.counts = client.users.get_resources("alice")

    def assert_unchanged(self, server):
        with server.client() as client:
            assert client.skills.get(self.skill.id) == self.skill
            assert unpack(client.skills.download_zip(self.skill.id))["a/data.bin"] == self.bytes
            download = open_link(self.link)
            assert (download.status_code, download.content) == (200, self.bytes)
            assert client.learning_spaces.list(user="alice", limit=200).items[-1] == self.space
            assert client.learning_spaces.list_skills(self.space.id) == self.skills
            assert client.learning_spaces.list_sessions(self.space.id) == self.learned_sessions
            for learned in self.learned_sessions:
                with raises_error(409, "already learned"):
                    client.learning_spaces.learn(self.space.id, session_id=learned.session_id)
            assert client.users.list() == self.users
            assert client.users.get_resources("alice") == self.counts
            configs = client.project.get_configs()
            assert configs.model_dump() == self.configs.model_dump() | {"encryption_enabled": False}


def same_port(server):
    """Returns the settings for the port of the server, which signed URLs contain."""
    return {"API_EXPORT_PORT": str(server.port)}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_everything_is_unchanged_after_the_end_of_the_server(start_server, end):
    first = start_server()
    stored = StoredEntities(first)
    getattr(first, end)()
    second = start_server(**same_port(first))
    stored.assert_unchanged(second)
    second.stop()


def test_an_acknowledged_skill_survives_a_crash(start_server):
    """The server is killed immediately after its response."""
    content = b"\0" + os.urandom(3 << 20)
    for _ in range(3):
        first = start_server()
        with first.client() as client:
            skill = add_skill(client, ("data.bin", content), *((f"{n}.txt", str(n)) for n in range(50)))
            first.kill()
        second = start_server()
        with second.client() as client:
            stored = client.skills.get(skill.id)
            assert sorted(stored.file_index, key=str) == sorted(skill.file_index, key=str)
            files = unpack(client.skills.download_zip(skill.id))
            assert len(files) == 52 and files["data.bin"] == content
        second.stop()


def test_a_crash_during_uploads_leaves_complete_skills_only(start_server):
    server = start_server()
    files = [(f"{n}.txt", f"file {n}") for n in range(60)]
    acknowledged = []

    def upload():
        with server.client() as client:
            try:
                for _ in range(1000):
                    archive = pack(("SKILL.md", skill_md()), *files, ("own.bin", os.urandom(10_000)))
                    acknowledged.append(send_archive(client, archive, user="crash").id)
            except (AcontextError, httpx.HTTPError):
                # The test kills the server.
                pass

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(acknowledged) >= 8, "eight skills are stored")
    finally:
        server.kill()
        for thread in threads:
            thread.join()

    second = start_server()
    with second.client() as client:
        skills = client.request("GET", "/agent_skills", params={"user": "crash", "limit": 200})["items"]
        assert set(acknowledged) <= {skill["id"] for skill in skills}
        # Each of the four threads may have had one more request in flight.
        assert len(skills) <= len(acknowledged) + 4
        assert len(client.disks.list(user="crash", limit=200).items) == len(skills)
        for skill in skills:
            assert len(unpack(client.skills.download_zip(skill["id"]))) == 62
    second.stop()


def test_a_repeated_upload_after_a_crash_creates_one_skill(start_server):
    first = start_server()
    files = {"file": ("kit.zip", pack(("SKILL.md", skill_md())), "application/zip")}

    def upload(server):
        headers = {"Authorization": f"Bearer {server.key}", "Idempotency-Key": "over-a-crash"}
        url = f"{server.base_url}/agent_skills"
        return httpx.post(url, data={"user": "over a crash"}, files=files, headers=headers, trust_env=False)

    first_response = upload(first)
    first.kill()
    second = start_server()
    second_response = upload(second)
    assert (first_response.status_code, second_response.status_code) == (201, 201)
    assert second_response.headers["idempotent-replayed"] == "true"
    assert second_response.content == first_response.content
    with second.client() as client:
        assert len(client.skills.list_catalog(user="over a crash").items) == 1
    second.stop()
