"""An HTTP server of a test's own on a real socket, which answers as the test says and may misbehave.

It runs on the test's event loop. What it does with a request is a coroutine that gets the request and sends
bytes: whole answers by `reply`, or anything else.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass
class Request:
    """One request, and the way to its sender."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def json(self) -> Any:
        """Its body, read."""
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """Send a whole response; what is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    async def until_gone(self) -> None:
        """Wait until the sender closes the connection, or it breaks."""
        with suppress(ConnectionError):
            await self.reader.read()

    def hang_up(self) -> None:
        """Break the connection, as the kernel does for a process that died."""
        self.writer.transport.abort()


Act = Callable[[Request], Awaitable[None]]


def answer_to(request: Request) -> dict[str, Any]:
    """An answer that says whose it is."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"id": "x", "text": request.json.get("prompt"), "usage": usage}


async def echo(request: Request) -> None:
    """The behaviour of a server that is well."""
    await request.reply(200, answer_to(request))


class HttpServer:
    """One server; start and stop it as often as needed, it keeps its port.

    Attributes:
        act: what it does with a request for an answer.
        models: what it lists; any bytes stand for the whole body.
        asked: all requests for an answer.
        inside: how many of them are being answered now, and were at most.
    """

    def __init__(self, act: Act = echo, models: tuple[str, ...] | bytes = ("m",)) -> None:
        self.act = act
        self.models = models
        self.asked: list[Request] = []
        self.looks: list[Request] = []
        self.inside = self.most_inside = 0
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Its base URL, without /v1."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_up(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def __aenter__(self) -> HttpServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def start(self) -> HttpServer:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening and break all connections, as a process that is killed."""
        if self._server:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await _read(reader, writer)) is not None:
                if request.method == "GET":
                    self.looks.append(request)
                    listed = [{"id": model, "object": "model"} for model in self.models]
                    is_raw = isinstance(self.models, bytes)
                    await request.reply(200, self.models if is_raw else {"object": "list", "data": listed})
                    continue
                self.asked.append(request)
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
                try:
                    await self.act(request)
                finally:
                    self.inside -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body, reader, writer)


class ServerThread:
    """An HttpServer on an event loop of its own, for tests that run none."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-server", daemon=True)
        self._thread.start()
        self.start()

    def start(self) -> None:
        """Listen, again if need be."""
        self._run(self.server.start())

    def stop(self) -> None:
        """Be gone, as a process that is killed."""
        self._run(self.server.stop())

    def close(self) -> None:
        """Stop for good."""
        self._run(self.server.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, wish: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(wish, self._loop).result(10)
