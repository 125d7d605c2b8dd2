"""A server with OpenAI's interface whose answers follow from the request alone, and which fails when it is told to.

An answer is a number, worth more the nearer the temperature is to 0.7, so that a study on it finds something.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, get_args

from tests.synthetic import score_of, temperature_near

Fault = Literal[
    *("429", "429 later", "503", "500", "reset", "half", "no json", "no choices", "unfinished"),
    *("slow", "no usage", "wrong usage", "refusal"),
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
HARMLESS: tuple[Fault, ...] = ("slow", "no usage", "wrong usage", "refusal")
"""The same text, later, or in a shape that has to be understood."""

Schedule = Callable[[int], Fault | None]
"""The number of a request, from 0 -> what goes wrong with it."""


def answer_to(body: Mapping[str, Any]) -> str:
    """The text that this server writes."""
    asked = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    params = {"temperature": body.get("temperature", 1.0), "seed": body.get("seed")}
    return f"{score_of(str(asked), params, temperature_near(0.7)):.6f}"


@dataclass
class StubServer:
    """What the server does, and what it was asked.

    Attributes:
        schedule: Which request fails, and how.
        pages: Path -> JSON, beside the two of OpenAI's interface.
        model: What it calls its model.
        owner: Who owns the model, as it says.
        seconds: How long an answer takes.
        change: Changes an answer before it is sent.
        asked: How often each request was asked (its body as JSON).
        answered: How often each request was answered in full.
        headers: Of every request.
        most_at_once: The most requests that it worked on at the same time.
        url: Where it is.
        redirect: Where it sends clients instead of answering them.
        certificate: A file with the certificate and the key that it shows; None for a server without TLS.
    """

    schedule: Schedule = lambda _: None
    pages: dict[str, Any] = field(default_factory=dict)
    model: str = "stub"
    owner: str = "someone"
    seconds: float = 0.0
    change: Callable[[dict[str, Any], Mapping[str, Any]], Any] = lambda answer, _: answer
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    redirect: str | None = None
    certificate: Path | None = None
    _requests: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def bodies(self) -> list[dict[str, Any]]:
        """Everything that was asked, once each."""
        return [json.loads(body) for body in self.asked]

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[StubServer]:
        """Listen on loopback until the end of the block."""
        stub = self

        class Handler(_Handler):
            server_of = stub

        server = _Server(("127.0.0.1", port), Handler)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        scheme = "http" if self.certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def _begin(self, body: str) -> Fault | None:
        with self._lock:
            number, self._requests = self._requests, self._requests + 1
            self.asked[body] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return self.schedule(number)

    def _end(self, body: str, *, is_answered: bool) -> None:
        with self._lock:
            self._at_once -= 1
            self.answered[body] += is_answered

    def _answer(self, path: str, body: Mapping[str, Any]) -> Any:
        text = answer_to(body)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        tokens = int(float(text) * 10) + 1
        answer = {
            "model": self.model,
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
        }
        return self.change(answer, body)


def _odd(fault: Fault, answer: dict[str, Any]) -> dict[str, Any]:
    """The same text late, or said otherwise."""
    if fault == "slow":
        time.sleep(0.05)
    elif fault == "no usage":
        del answer["usage"]
    elif fault == "wrong usage":
        answer["usage"] = {"prompt_tokens": -3, "completion_tokens": 10**9, "prompt_tokens_details": "many"}
    elif "message" in answer["choices"][0]:
        message = answer["choices"][0]["message"]
        message["content"], message["refusal"] = None, message["content"]
    return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server_of: StubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        stub = self.server_of
        stub.headers.append({name.lower(): value for name, value in self.headers.items()})
        if stub.redirect is not None:
            self._send(307, {}, {"Location": stub.redirect})
            return
        pages = {
            "/v1/models": {"object": "list", "data": [{"id": stub.model, "object": "model", "owned_by": stub.owner}]},
            **stub.pages,
        }
        self._send_page(pages.get(self.path))

    def do_POST(self) -> None:
        stub = self.server_of
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parsed = json.loads(body)
        body = json.dumps(parsed, sort_keys=True)
        stub.headers.append({name.lower(): value for name, value in self.headers.items()})
        if stub.redirect is not None:
            self._send(307, {}, {"Location": stub.redirect})
            return
        if not self.path.endswith("/completions"):
            page = stub.pages.get(self.path)
            self._send(
                200 if page is not None else 404, page if page is not None else {"error": {"message": "no page"}}
            )
            return
        fault = stub._begin(body)
        is_answered = False
        try:
            time.sleep(stub.seconds)
            is_answered = (
                self._fail(fault, parsed) if fault is not None else self._send(200, stub._answer(self.path, parsed))
            )
        finally:
            stub._end(body, is_answered=is_answered)

    def _fail(self, fault: Fault, body: Mapping[str, Any]) -> bool:
        answer = self.server_of._answer(self.path, body)
        if fault in HARMLESS:
            return self._send(200, _odd(fault, answer))
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault == "half":
            data = json.dumps(answer).encode()
            self._head(200, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "no json":
            self._head(200, 6)
            self.wfile.write(b"<html>")
        elif fault == "no choices":
            self._send(200, {**answer, "choices": []})
        elif fault == "unfinished":
            self._send(200, {**answer, "choices": [{**answer["choices"][0], "finish_reason": None}]})
        elif fault == "429 later":
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"})
        else:
            self._send(int(fault), {"error": {"message": f"fault {fault}"}})
        return False

    def _send_page(self, page: Any) -> None:
        self._send(200 if page is not None else 404, page if page is not None else {"error": {"message": "no page"}})

    def _send(self, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> bool:
        data = json.dumps(answer).encode()
        self._head(status, len(data), headers)
        self.wfile.write(data)
        return status == 200

    def _head(self, status: int, length: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
