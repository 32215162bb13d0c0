"""HTTP to OpenAI-compatible servers: one request, and what came of it. The one file that connects to them.

Whatever goes wrong is told as a Verdict, in words that hold nothing of the request or the key, which is cut
out of all that is no answer, should a server quote it. Redirects are not followed, proxies of the environment
not used, and an answer has at most MAX_ANSWER_BYTES. Imported only inside functions, as it loads aiohttp.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import SecretStr

from pipeline import http_answers
from pipeline.http_answers import Meaning, Verdict

# Bytes of one answer; 2,048 embeddings of 4,096 numbers have 90 MB.
MAX_ANSWER_BYTES = 128 << 20
# For a connection, and for the list of models.
CONNECT_S = 10.0
LOOK_S = 10.0
# For idle connections. uvicorn closes them after 5 s, and what is sent in that moment breaks.
_IDLE_S = 2.0
# Files of the process that are no connections to servers, such as Ray's, and some to spare.
_OTHER_FILES = 512
# A host that is gone without a word is noticed after 35 s.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))


class Client:
    """A pool of connections to all servers of a model. Made on the event loop that uses it."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key.get_secret_value().encode() if key else None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "batchd"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key.decode()}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, socket_factory=_make_socket),
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._session.closed

    async def close(self) -> None:
        """Break all connections."""
        await self._session.close()

    async def ask(self, root: str, path: str, data: bytes) -> Verdict:
        """Send a request and say what the response means.

        Args:
            root: URL of the server.
            path: of the endpoint.
            data: the request's body.
        """
        # No X-Request-Id, from which vLLM makes its ids: llama-cpp-python answers 400 to any that is no UUID.
        try:
            async with self._session.post(root + path, data=data, allow_redirects=False) as response:
                body = await _read(response)
                verdict = http_answers.judge(response.status, body, path)
                if verdict.answer is None or response.status != HTTPStatus.OK:
                    verdict = http_answers.judge(response.status, self._without_key(body), path)
                wait = response.headers.get("Retry-After")
                return verdict._replace(retry_after_s=http_answers.retry_after_s(wait, datetime.now(UTC)))
        except (aiohttp.ClientError, OSError, _TooLargeError) as error:
            return _judge_error(error)

    async def find_problem(self, root: str, model: str) -> str | None:
        """Ask a server for its models, and say what speaks against it; None if it has this one."""
        try:
            async with (
                asyncio.timeout(LOOK_S),
                self._session.get(f"{root}/v1/models", allow_redirects=False) as response,
            ):
                body = self._without_key(await _read(response))
                return http_answers.model_problem(response.status, body, model)
        except (aiohttp.ClientError, _TooLargeError) as error:
            return _judge_error(error).reason
        except TimeoutError:
            return f"GET /v1/models: no answer within {LOOK_S:g} s"
        except OSError as error:
            return _judge_error(error).reason

    def _without_key(self, body: bytes) -> bytes:
        return body.replace(self._key, b"***") if self._key else body


def make_room(connections: int) -> bool:
    """Raise this process's limit of open files for so many connections; False if it may not have them.

    Else each one too many would look like a server that does not connect.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True


class _TooLargeError(Exception):
    """A server sends more than any answer has."""


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, as long as it is of a size that an answer may have.

    Raises:
        _TooLargeError: it is not.
    """
    if (response.content_length or 0) > MAX_ANSWER_BYTES:
        raise _TooLargeError
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _TooLargeError
        chunks.append(chunk)
    return b"".join(chunks)


def _judge_error(error: Exception) -> Verdict:
    """What went wrong on the way, without what the error may know of the request."""
    name = type(error).__name__
    match error:
        case _TooLargeError():
            return Verdict(Meaning.USELESS, reason=f"sent an answer of more than {MAX_ANSWER_BYTES} bytes")
        case aiohttp.ClientPayloadError() | aiohttp.ClientResponseError():
            return Verdict(Meaning.USELESS, reason=f"sent a broken answer: {name}")
        case aiohttp.ClientConnectorCertificateError():
            return Verdict(Meaning.UNREACHABLE, reason=f"has a bad certificate: {error.certificate_error}")
        case aiohttp.ClientConnectorError():
            return Verdict(Meaning.UNREACHABLE, reason=f"does not connect: {error.os_error.strerror or name}")
        case aiohttp.ServerTimeoutError():
            return Verdict(Meaning.UNREACHABLE, reason=f"does not connect within {CONNECT_S:g} s")
    cause = (error.strerror if isinstance(error, OSError) else None) or name
    return Verdict(Meaning.BROKE, reason=f"broke the connection: {cause}")


def _make_socket(address: Any) -> socket.socket:
    """A socket that notices when the other host is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
