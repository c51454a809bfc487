"""Skills, spaces, users and settings outlive the server: what was answered is there after a stop and after a kill."""

import os
import threading

import httpx
import pytest

from acontext.errors import AcontextError
from packing import add_skill, pack, send_archive, skill_md, unpack
from support import eventually, open_link, refused


class Kept:
    """One of each, remembered with all that was said about it."""

    def __init__(self, server):
        # No other skill has it.
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
            self.learned = client.learning_spaces.list_sessions(self.space.id)
            assert [each.status for each in self.learned] == ["completed", "pending"]
            client.disks.create(user="bob")
            client.users.delete("bob")
            self.skills = client.learning_spaces.list_skills(self.space.id)
            self.users = client.users.list()
            self.counts = client.users.get_resources("alice")

    def assert_still_there(self, server):
        with server.client() as client:
            assert client.skills.get(self.skill.id) == self.skill
            assert unpack(client.skills.download_zip(self.skill.id))["a/data.bin"] == self.bytes
            opened = open_link(self.link)
            assert (opened.status_code, opened.content) == (200, self.bytes)
            assert client.learning_spaces.list(user="alice", limit=200).items[-1] == self.space
            assert client.learning_spaces.list_skills(self.space.id) == self.skills
            assert client.learning_spaces.list_sessions(self.space.id) == self.learned
            for learned in self.learned:
                with refused(409, "already learned"):
                    client.learning_spaces.learn(self.space.id, session_id=learned.session_id)
            assert client.users.list() == self.users
            assert client.users.get_resources("alice") == self.counts
            found = client.project.get_configs()
            assert found.model_dump() == self.configs.model_dump() | {"encryption_enabled": False}


def same_port(server):
    """Links name it."""
    return {"API_EXPORT_PORT": str(server.port)}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_everything_is_there_after_an_end(start, end):
    first = start()
    kept = Kept(first)
    getattr(first, end)()
    second = start(**same_port(first))
    kept.assert_still_there(second)
    second.stop()


def test_a_skill_is_there_when_its_upload_is_answered(start):
    """The server is killed in the moment of its answer."""
    content = b"\0" + os.urandom(3 << 20)
    for _ in range(3):
        first = start()
        with first.client() as client:
            skill = add_skill(client, ("data.bin", content), *((f"{n}.txt", str(n)) for n in range(50)))
            first.kill()
        second = start()
        with second.client() as client:
            found = client.skills.get(skill.id)
            assert sorted(found.file_index, key=str) == sorted(skill.file_index, key=str)
            files = unpack(client.skills.download_zip(skill.id))
            assert len(files) == 52 and files["data.bin"] == content
        second.stop()


def test_a_kill_amid_uploads_leaves_whole_skills_or_none(start):
    server = start()
    files = [(f"{n}.txt", f"file {n}") for n in range(60)]
    answered = []

    def upload():
        with server.client() as client:
            try:
                for _ in range(1000):
                    archive = pack(("SKILL.md", skill_md()), *files, ("own.bin", os.urandom(10_000)))
                    answered.append(send_archive(client, archive, user="amid").id)
            except (AcontextError, httpx.HTTPError):
                # The end that the test brings about.
                pass

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(answered) >= 8, "some skills")
    finally:
        server.kill()
        for thread in threads:
            thread.join()

    again = start()
    with again.client() as client:
        found = client.request("GET", "/agent_skills", params={"user": "amid", "limit": 200})["items"]
        assert set(answered) <= {skill["id"] for skill in found}
        # Each of the four may have been at one more.
        assert len(found) <= len(answered) + 4
        assert len(client.disks.list(user="amid", limit=200).items) == len(found)
        for skill in found:
            assert len(unpack(client.skills.download_zip(skill["id"]))) == 62
    again.stop()


def test_an_upload_that_is_sent_again_after_a_kill_makes_one_skill(start):
    first = start()
    files = {"file": ("kit.zip", pack(("SKILL.md", skill_md())), "application/zip")}

    def upload(server):
        headers = {"Authorization": f"Bearer {server.key}", "Idempotency-Key": "over-a-kill"}
        url = f"{server.base_url}/agent_skills"
        return httpx.post(url, data={"user": "over a kill"}, files=files, headers=headers, trust_env=False)

    made = upload(first)
    first.kill()
    second = start()
    again = upload(second)
    assert (made.status_code, again.status_code, again.headers["idempotent-replayed"]) == (201, 201, "true")
    assert again.content == made.content
    with second.client() as client:
        assert len(client.skills.list_catalog(user="over a kill").items) == 1
    second.stop()
