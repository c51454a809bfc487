"""Learning: a session is stored, its task is learned, and the skill is read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from library_support import checker, provider, provider_process  # noqa: F401
from provider_server import Answer
from support import DEFAULT_KEY, TIMEOUT, store_text
from test_tasks import model_settings

README = Path(__file__).parents[2] / "README.md"

TASK = Answer(
    calls=[
        ("insert_task", {"after_task_order": 0, "task_description": "Deploy the shop to staging"}),
        ("append_messages_to_task", {"task_order": 1, "message_id_range": [0, 2]}),
        ("update_task", {"task_order": 1, "task_status": "success"}),
        ("finish", {}),
    ]
)
LESSON = Answer(
    calls=[
        (
            "report_success_analysis",
            {
                "task_goal": "Deploy the shop to staging.",
                "approach": "The agent ran the smoke tests, deployed, and ran them again.",
                "key_decisions": ["The smoke tests run before and after, as the user asked."],
                "generalizable_pattern": "Test, deploy with `make deploy ENV=<name>`, and test again.",
                "applies_when": "The shop is deployed.",
            },
        )
    ]
)
DESCRIPTION = "How services are deployed, and what to check. Read it before each deployment."
SKILL_MD = f"""---
name: deployment
description: {DESCRIPTION}
---
# Deployment

Each environment has a file, such as `staging.md`, with the procedures that have worked. An entry names its date, when the
procedure applies, and its steps.
"""
PROCEDURE = """# Staging

## 2026-03-14: The shop

Applies when the shop is deployed to staging. The user requires the smoke tests before and after each deployment.

1. Run the smoke tests.
2. Run `make deploy ENV=staging`.
3. Run the smoke tests again.
"""
SKILL = [
    Answer(calls=[("get_skill", {"skill_name": "daily-logs"})]),
    Answer(
        calls=[
            ("report_thinking", {"thinking": "No skill is about deployments."}),
            ("create_skill", {"skill_md_content": SKILL_MD}),
            ("create_skill_file", {"skill_name": "deployment", "file_path": "staging.md", "content": PROCEDURE}),
        ]
    ),
    Answer(calls=[("finish", {})]),
]


def store_conversation(client, session):
    store_text(client, session, "Deploy the shop to staging. Always run the smoke tests before and after.")
    blob = {"role": "assistant", "content": "They passed. I deployed build 41. They passed again."}
    client.sessions.store_message(session.id, blob=blob, format="openai")
    store_text(client, session, "Great, thanks.")


@pytest.mark.parametrize("format", ["openai", "anthropic"])
def test_a_finished_task_becomes_a_skill(start_server, provider, format):  # noqa: F811
    provider.reset(TASK, LESSON, *SKILL)
    server = start_server(**model_settings(provider, format))
    with server.client() as client:
        space = client.learning_spaces.create(user="alice")
        session = client.sessions.create(user="alice")
        learning = client.learning_spaces.learn(space.id, session_id=session.id)
        assert learning.status == "pending"
        store_conversation(client, session)
        flushed = client.sessions.flush(session.id)
        assert (flushed.status, flushed.errmsg) == (200, "")

        learned = client.learning_spaces.wait_for_learning(space.id, session_id=session.id, poll_interval=0.1)
        assert learned.status == "completed"
        (task,) = client.sessions.get_tasks(session.id).items
        assert (task.status, task.data.task_description) == ("success", "Deploy the shop to staging")

        skills = {skill.name: skill for skill in client.learning_spaces.list_skills(space.id)}
        assert sorted(skills) == ["daily-logs", "deployment", "user-general-facts"]
        skill = skills["deployment"]
        assert (skill.description, skill.user_id) == (DESCRIPTION, space.user_id)
        assert [file.path for file in skill.file_index] == ["SKILL.md", "staging.md"]
        texts = [client.skills.get_file(skill_id=skill.id, file_path=file.path) for file in skill.file_index]
        assert [text.content.raw for text in texts] == [SKILL_MD, PROCEDURE]
        assert len(provider.histories) == 5
        assert provider.errors == []

        # The evidence of the change. The SDK has no method for this route.
        response = httpx.get(
            f"{server.base_url}/learning_spaces/{space.id}/changes",
            params={"skill_id": skill.id},
            headers={"Authorization": f"Bearer {server.key}"},
            trust_env=False,
        )
        assert response.status_code == 200, response.text
        changes = response.json()["data"]["items"]
        assert [file["path"] for change in changes for file in change["files"]] == ["SKILL.md", "staging.md"]
        (change,) = changes
        assert (change["actor"], change["task_id"], change["session_id"]) == ("learner", task.id, session.id)
        assert change["lesson"]["kind"] == "success" and "smoke tests" in change["lesson"]["text"]
        assert len(change["message_ids"]) == 3
    server.stop()


def test_a_session_can_be_learned_later(start_server, provider):  # noqa: F811
    provider.reset(TASK, LESSON, *SKILL)
    server = start_server(**model_settings(provider, "openai"))
    with server.client() as client:
        session = client.sessions.create()
        store_conversation(client, session)
        assert client.sessions.flush(session.id).status == 200
        space = client.learning_spaces.create()
        client.learning_spaces.learn(space.id, session_id=session.id)
        learned = client.learning_spaces.wait_for_learning(space.id, session_id=session.id, poll_interval=0.1)
        assert learned.status == "completed"
        assert "deployment" in [skill.name for skill in client.learning_spaces.list_skills(space.id)]
    server.stop()


def readme_example():
    """Returns the first example of the README, and the parts of its output that the README shows."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    names = [name for name, _ in blocks]
    first = names.index("python")
    assert names[first + 1] == "text", "the output follows the example"
    output = re.split(r"^\.\.\.$", blocks[first + 1][1], flags=re.MULTILINE)
    return blocks[first][1], [part.strip() for part in output]


def test_the_first_example_of_the_readme_prints_what_the_readme_shows(start_server, provider):  # noqa: F811
    provider.reset(TASK, LESSON, *SKILL)
    server = start_server(**model_settings(provider, "openai"))
    example, parts = readme_example()
    for documented, actual in [("http://127.0.0.1:8029/api/v1", server.base_url), (DEFAULT_KEY, server.key)]:
        assert documented in example
        example = example.replace(documented, actual)
    result = subprocess.run(
        [sys.executable, "-c", example],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    positions = [result.stdout.find(part) for part in parts]
    assert positions[0] == 0 and positions == sorted(positions), f"{positions}\n{result.stdout}"
    assert result.stdout.strip().endswith(parts[-1])
    server.stop()
