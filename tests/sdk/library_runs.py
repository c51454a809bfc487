"""Runs of real libraries against `provider_server`: each continues a history with a question until the model answers.

A run returns the new messages as the library's own objects. `history` is a list of items of `get_messages`.
"""

import json

from library_support import SCHEMA, TOOLS, call_tool

import anthropic
import openai
from google import genai
from google.genai import types
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage, convert_to_messages, convert_to_openai_messages
from langchain_openai import ChatOpenAI

OPENAI_TOOLS = [
    {"type": "function", "function": {"name": name, "description": tool.__doc__, "parameters": SCHEMA}}
    for name, tool in TOOLS.items()
]


class OpenAI:
    format = "openai"
    # How programs turn the message of a response into JSON.
    dumps = {
        "model_dump": lambda message: message.model_dump(),
        "model_dump(exclude_none)": lambda message: message.model_dump(exclude_none=True),
        "to_dict": lambda message: message.to_dict(),
    }

    @staticmethod
    def run(url, history, question):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        messages = [{"role": "user", "content": question}]
        while True:
            completion = client.chat.completions.create(
                model="model", messages=[*history, *messages], tools=OPENAI_TOOLS
            )
            message = completion.choices[0].message
            messages.append(message)
            if not message.tool_calls:
                return messages
            for call in message.tool_calls:
                result, _ = call_tool(call.function.name, json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


class Anthropic:
    format = "anthropic"
    dumps = {
        "model_dump": lambda message: message.model_dump(),
        "role and content": lambda message: {
            "role": message.role,
            "content": [block.model_dump() for block in message.content],
        },
        "to_dict": lambda message: message.to_dict(),
    }

    @staticmethod
    def run(url, history, question):
        client = anthropic.Anthropic(base_url=url, api_key="key", max_retries=0)
        tools = [{"name": name, "description": tool.__doc__, "input_schema": SCHEMA} for name, tool in TOOLS.items()]
        messages = [{"role": "user", "content": question}]
        while True:
            sent = [
                message if isinstance(message, dict) else {"role": message.role, "content": message.content}
                for message in messages
            ]
            message = client.messages.create(
                model="model", max_tokens=1000, messages=[*history, *sent], tools=tools
            )
            messages.append(message)
            calls = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                return messages
            results = []
            for call in calls:
                result, is_error = call_tool(call.name, call.input)
                block = {"type": "tool_result", "tool_use_id": call.id, "content": result}
                results.append(block | ({"is_error": True} if is_error else {}))
            messages.append({"role": "user", "content": results})


class GoogleGenai:
    format = "gemini"
    dumps = {
        "model_dump": lambda content: content.model_dump(mode="json"),
        "model_dump(exclude_none)": lambda content: content.model_dump(mode="json", exclude_none=True),
        "model_dump(by_alias)": lambda content: content.model_dump(mode="json", by_alias=True, exclude_none=True),
        "to_json_dict": lambda content: content.to_json_dict(),
    }

    @staticmethod
    def run(url, history, question):
        client = genai.Client(api_key="key", http_options=types.HttpOptions(base_url=url, api_version="v1beta"))
        declarations = [
            types.FunctionDeclaration(name=name, description=tool.__doc__, parameters_json_schema=SCHEMA)
            for name, tool in TOOLS.items()
        ]
        config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=declarations)])
        contents = [types.Content(role="user", parts=[types.Part(text=question)])]
        history = [types.Content.model_validate(item) for item in history]
        while True:
            response = client.models.generate_content(model="model", contents=[*history, *contents], config=config)
            contents.append(response.candidates[0].content)
            if not response.function_calls:
                return contents
            parts = []
            for call in response.function_calls:
                result, is_error = call_tool(call.name, call.args)
                answer = {"error" if is_error else "output": result}
                part = types.Part.from_function_response(name=call.name, response=answer)
                part.function_response.id = call.id
                parts.append(part)
            contents.append(types.Content(role="user", parts=parts))


class Langchain:
    """LangChain stores its messages in the format of OpenAI, for every model."""

    format = "openai"
    dumps = {
        "convert_to_openai_messages": convert_to_openai_messages,
        "convert_to_openai_messages(block)": lambda message: convert_to_openai_messages(message, text_format="block"),
    }

    @classmethod
    def run(cls, url, history, question):
        model = cls.model(url).bind_tools(OPENAI_TOOLS)
        messages = [HumanMessage(question)]
        while True:
            answer = model.invoke([*convert_to_messages(history), *messages])
            messages.append(answer)
            if not answer.tool_calls:
                return messages
            for call in answer.tool_calls:
                result, is_error = call_tool(call["name"], call["args"])
                status = "error" if is_error else "success"
                messages.append(ToolMessage(result, tool_call_id=call["id"], status=status))


class LangchainOpenAI(Langchain):
    @staticmethod
    def model(url):
        return ChatOpenAI(model="model", base_url=f"{url}/v1", api_key="key", max_retries=0, use_responses_api=False)


class LangchainAnthropic(Langchain):
    @staticmethod
    def model(url):
        return ChatAnthropic(model_name="model", base_url=url, api_key="key", max_retries=0, max_tokens=1000)


LIBRARIES = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "google-genai": GoogleGenai,
    "langchain-openai": LangchainOpenAI,
    "langchain-anthropic": LangchainAnthropic,
}


def is_equal_content(message, item):
    """Compares contents of Gemini, which are returned in camel case, and with ids for function calls and responses."""
    message, item = (types.Content.model_validate_json(json.dumps(value)) for value in (message, item))
    for stored, returned in zip(message.parts, item.parts, strict=True):
        for field in ("function_call", "function_response"):
            if getattr(stored, field) and getattr(stored, field).id is None:
                getattr(returned, field).id = None
    return message == item


def dump(library, message, style=None):
    """Returns a message of a run as JSON. A message that the test has written as JSON itself is returned unchanged."""
    if isinstance(message, dict):
        return message
    return (library.dumps[style] if style else next(iter(library.dumps.values())))(message)
