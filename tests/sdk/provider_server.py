"""A local HTTP server in place of OpenAI, Anthropic and Gemini.

It answers from a script. If the acceptors reject the history of a request, the response is a 400 like the provider's.
The acceptors are a Rust program (`examples/check_history.rs`), which the Rust tests use as well.
"""

import base64
import http.server
import json
import os
import re
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

CHECK_HISTORY = Path(
    os.environ.get("ACONTEXTD_CHECK_HISTORY")
    or Path(__file__).parents[2] / "target" / "debug" / "examples" / "check-history"
).resolve()
# Contains the bytes that differ between standard and URL-safe base64.
SIGNATURE = base64.b64encode(b"\xfb\xff signature of the provider").decode()


class HistoryChecker:
    """The program that checks histories. It runs until it is closed, and checks one history per line."""

    def __init__(self):
        assert CHECK_HISTORY.exists(), f"{CHECK_HISTORY} is missing: run 'cargo build --locked --example check-history'"
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", CHECK_HISTORY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"]},
        )

    def error(self, format, messages):
        """Returns why a provider would reject the history, or `None`."""
        with self.lock:
            self.process.stdin.write(json.dumps({"format": format, "messages": messages}).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        assert line, "check-history has exited"
        answer = json.loads(line)
        return None if answer["ok"] else answer["error"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@dataclass
class Answer:
    """An answer of the model, for any provider. `calls` are pairs of a function name and its arguments."""

    text: str | None = None
    thought: str | None = None
    calls: list = field(default_factory=list)


class ProviderServer:
    """The server. `answers` is the script: each request that is accepted takes the first one."""

    def __init__(self, checker):
        self.checker = checker
        self.answers = []
        # The histories of all requests, as pairs of format and messages.
        self.histories = []
        # What the acceptors said about the rejected ones.
        self.errors = []
        # Whether function calls of Gemini have ids. Its models that run on Vertex AI, and older ones, give none.
        self.gemini_has_ids = True
        self.call_count = 0
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = provider.answer(self.path.partition("?")[0], body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def reset(self, *answers, gemini_has_ids=True):
        """Begins a new script."""
        self.answers = list(answers)
        self.gemini_has_ids = gemini_has_ids
        self.histories.clear()
        self.errors.clear()

    def answer(self, path, body):
        """Returns the status and the body of the response to a request."""
        if path == "/v1/chat/completions":
            format, key, render, error = "openai", "messages", self.render_openai, openai_error
        elif path == "/v1/messages":
            format, key, render, error = "anthropic", "messages", self.render_anthropic, anthropic_error
        elif re.fullmatch(r"/v1beta/models/[^/:]+:generateContent", path):
            format, key, render, error = "gemini", "contents", self.render_gemini, gemini_error
        else:
            self.errors.append(f"no such path: {path}")
            return 404, {"error": {"message": f"no such path: {path}"}}
        if body.get("stream"):
            self.errors.append(f"{path}: the server does not stream")
            return 400, error("the server does not stream")
        messages = body[key]
        self.histories.append((format, messages))
        reason = self.checker.error(format, messages)
        if reason is not None:
            self.errors.append(f"{format}: {reason}")
            return 400, error(reason)
        if not self.answers:
            self.errors.append(f"{format}: the script has no answer left")
            return 400, error("the script has no answer left")
        return 200, render(self.answers.pop(0))

    def next_id(self, prefix):
        self.call_count += 1
        return f"{prefix}{self.call_count:024}"

    def render_openai(self, answer):
        calls = [
            {
                "id": self.next_id("call_"),
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for name, arguments in answer.calls
        ]
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thought is not None:
            message["reasoning_content"] = answer.thought
        if calls:
            message["tool_calls"] = calls
        finish_reason = "tool_calls" if calls else "stop"
        return {
            "id": self.next_id("chatcmpl-"),
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": "model-of-the-script",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    def render_anthropic(self, answer):
        content = []
        if answer.thought is not None:
            content.append({"type": "thinking", "thinking": answer.thought, "signature": SIGNATURE})
        if answer.text is not None:
            content.append({"type": "text", "text": answer.text})
        for name, arguments in answer.calls:
            content.append({"type": "tool_use", "id": self.next_id("toolu_"), "name": name, "input": arguments})
        return {
            "id": self.next_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": "model-of-the-script",
            "content": content,
            "stop_reason": "tool_use" if answer.calls else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }

    def render_gemini(self, answer):
        parts = []
        if answer.thought is not None:
            parts.append({"text": answer.thought, "thought": True})
        if answer.text is not None:
            parts.append({"text": answer.text})
        for index, (name, arguments) in enumerate(answer.calls):
            call = {"name": name, "args": arguments}
            if self.gemini_has_ids:
                call["id"] = self.next_id("")
            # Gemini signs the first of parallel calls.
            parts.append({"functionCall": call} | ({"thoughtSignature": SIGNATURE} if index == 0 else {}))
        return {
            "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
            "modelVersion": "model-of-the-script",
            "responseId": self.next_id("response-"),
        }


def openai_error(reason):
    return {"error": {"message": reason, "type": "invalid_request_error", "param": "messages", "code": None}}


def anthropic_error(reason):
    return {"type": "error", "error": {"type": "invalid_request_error", "message": reason}}


def gemini_error(reason):
    return {"error": {"code": 400, "message": reason, "status": "INVALID_ARGUMENT"}}
