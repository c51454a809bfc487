"""Agent frameworks: what they send to a provider or pass to the SDK is stored, and continued with other libraries."""

import asyncio

import pytest

from library_support import (  # noqa: F401
    call_tool,
    checker,
    get_time,
    get_weather,
    loopback_only,
    provider,
    provider_process,
    read,
    store,
)
from library_runs import LIBRARIES, is_equal_content
from provider_server import SIGNATURE, Answer

import agno.agent
import agno.models.anthropic
import agno.models.google
import agno.models.openai
import agents
import openai
from acontext import AcontextAsyncClient
from acontext.integrations import ClaudeAgentStorage
from claude_agent_sdk import AssistantMessage, TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock, UserMessage
from google import genai

QUESTION = "What are the weather and the time in Oslo, and the weather in Rome?"
SCRIPT = [
    Answer(
        calls=[("get_weather", {"city": "Oslo"}), ("get_time", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})],
    ),
    Answer("Oslo has 3 degrees and snow at 12:30, Rome has 17 degrees."),
]
CONTINUATION = [Answer(calls=[("get_weather", {"city": "Rome"}), ("get_weather", {"city": "Oslo"})]), Answer("Rome.")]

continuations = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)


def run_agno(model):
    tools = [get_weather, get_time]
    agno.agent.Agent(model=model, tools=tools, instructions="Answer in short.", telemetry=False).run(QUESTION)


def agno_openai(url):
    run_agno(agno.models.openai.OpenAIChat(id="model", base_url=f"{url}/v1", api_key="key", max_retries=0))


def agno_anthropic(url):
    run_agno(agno.models.anthropic.Claude(id="model", api_key="key", client_params={"base_url": url}))


def agno_gemini(url):
    options = genai.types.HttpOptions(base_url=url, api_version="v1beta")
    run_agno(agno.models.google.Gemini(id="model", client=genai.Client(api_key="key", http_options=options)))


def openai_agents(url):
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
    agent = agents.Agent(
        name="weather",
        instructions="Answer in short.",
        model=agents.OpenAIChatCompletionsModel(model="model", openai_client=client),
        tools=[agents.function_tool(get_weather), agents.function_tool(get_time)],
    )
    agents.Runner.run_sync(agent, QUESTION)


FRAMEWORKS = {
    "agno-openai": agno_openai,
    "agno-anthropic": agno_anthropic,
    "agno-gemini": agno_gemini,
    "openai-agents": openai_agents,
}


def run_framework(provider, framework):
    """Runs an agent, and returns the format and the messages of its last request, and the answer."""
    provider.reset(*SCRIPT)
    framework(provider.url)
    assert provider.answers == []
    format, messages = provider.histories[-1]
    text = SCRIPT[-1].text
    if format == "gemini":
        return format, [*messages, {"role": "model", "parts": [{"text": text}]}]
    return format, [*messages, {"role": "assistant", "content": text}]


def continue_with(provider, library, history):
    provider.reset(*CONTINUATION)
    library.run(provider.url, history, "Which of them is warmer?")
    assert provider.answers == []


@continuations
@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_a_run_of_a_framework_is_continued_with_a_library(client, provider, framework, library):
    session = client.sessions.create()
    format, messages = run_framework(provider, framework)
    store(client, session, format, messages)
    items = read(client, session, format)
    if format == "gemini":
        assert all(map(is_equal_content, messages, items)), f"{messages} became {items}"
    else:
        assert items == messages
    continue_with(provider, library, read(client, session, library.format))


def claude_messages():
    """Returns the messages of a run of the Claude Agent SDK, which sends each block as a message."""
    calls = [
        ToolUseBlock(f"toolu_{number}", name, arguments) for number, (name, arguments) in enumerate(SCRIPT[0].calls)
    ]
    results = [ToolResultBlock(call.id, *call_tool(call.name, call.input)) for call in calls]
    answers = [ThinkingBlock("I need both tools.", SIGNATURE), TextBlock("I look that up."), *calls]
    return [
        UserMessage(QUESTION),
        *(AssistantMessage([block], "model") for block in answers),
        *(UserMessage([result]) for result in results),
        AssistantMessage([TextBlock(SCRIPT[-1].text)], "model"),
    ]


def store_claude_messages(server, session, **options):
    errors = []

    async def run():
        async with AcontextAsyncClient(base_url=server.base_url, api_key=server.key) as client:
            on_error = lambda error, _: errors.append(error)  # noqa: E731
            storage = ClaudeAgentStorage(client, session.id, on_error=on_error, **options)
            for message in claude_messages():
                await storage.save_message(message)

    asyncio.run(run())
    assert errors == []


@pytest.mark.parametrize("include_thinking", [False, True])
@pytest.mark.parametrize("library", [LIBRARIES["openai"], LIBRARIES["google-genai"]], ids=["openai", "google-genai"])
def test_a_run_of_the_claude_agent_sdk_is_continued_with_a_library(client, server, provider, library, include_thinking):
    session = client.sessions.create()
    store_claude_messages(server, session, include_thinking=include_thinking)
    continue_with(provider, library, read(client, session, library.format))


def test_a_run_of_the_claude_agent_sdk_is_returned_block_by_block(client, server, checker):
    session = client.sessions.create()
    store_claude_messages(server, session, include_thinking=True)
    items = read(client, session, "anthropic")
    assert [[block["type"] for block in item["content"]] for item in items] == [
        ["text"],
        ["thinking"],
        ["text"],
        *[["tool_use"]] * 3,
        *[["tool_result"]] * 3,
        ["text"],
    ]
    # Anthropic combines messages of one role before it checks them.
    assert checker.error("anthropic-combined", items) is None
    assert [checker.error(format, read(client, session, format)) for format in ("openai", "gemini")] == [None, None]
