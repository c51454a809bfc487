"""Learning: a session is stored, its task is learned, and the skill is read."""

import httpx
import pytest

from library_support import checker, provider, provider_process  # noqa: F401
from provider_server import Answer
from support import store_text
from test_tasks import model_settings

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
SKILL_MD = "---\nname: deployment\ndescription: How the shop is deployed.\n---\n# Deployment\n"
PROCEDURE = "# Staging\n\n1. Run the smoke tests.\n2. `make deploy ENV=staging`\n3. Run the smoke tests again.\n"
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
        assert (skill.description, skill.user_id) == ("How the shop is deployed.", space.user_id)
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
