"""Validation of a whole file: every code, the order and the numbers of lines, the caps, bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import tracemalloc
from typing import Any, BinaryIO, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import LimitSettings
from pipeline import engine, validate

URL = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "1+1"}]}


def line(custom_id: Any = "a", body: Any = BODY, **fields: Any) -> bytes:
    """A request; a field that is `...` is left out."""
    made = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body} | fields
    return orjson.dumps({key: value for key, value in made.items() if value is not ...})


def rules(**fields: Any) -> validate.Rules:
    limits = {name: fields.pop(name) for name in list(fields) if name in LimitSettings.model_fields}
    given: dict[str, Any] = {"models": frozenset({"m", "m2"}), "limits": LimitSettings(**limits)}
    return validate.Rules(**(given | fields))


def check(content: bytes, **fields: Any) -> validate.Verdict:
    return validate.check(io.BytesIO(content), rules(**fields))


def found(verdict: validate.Verdict) -> list[tuple[int | None, str, str | None]]:
    return [(error.line, error.code, error.param) for error in verdict.errors]


def found_in_line(content: bytes, **fields: Any) -> tuple[str, str | None]:
    """The one error of a line that stands between two good ones."""
    content = line("first") + b"\n" + content + b"\n" + line("last")
    [(number, code, param)] = found(check(content, **fields))
    assert number == 2
    return code, param


def test_a_good_file_is_valid_and_described() -> None:
    """A verdict says what is in the file."""
    content = line("a") + b"\n" + line("b") + b"\n"
    verdict = check(content)
    assert verdict.is_valid
    assert verdict == validate.Verdict(
        errors=(),
        total_errors=0,
        codes={},
        requests=2,
        rejected=0,
        endpoint=URL,
        model="m",
        shards=0,
        input_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_a_file_without_requests_is_empty(content: bytes, on_invalid: str) -> None:
    """No request is an error in both modes."""
    verdict = check(content, on_invalid=on_invalid)
    assert found(verdict) == [(None, "empty_file", None)]
    assert verdict.codes == {"empty_file": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"a":1} {"b":2}',
        b"NaN",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'"\\ud800"',
        b'{"a":"\x00"}',
        b"\x00",
        b"[" * 2000 + b"]" * 2000,
        b"\xff{}",
        b'{"a":"\xff"}',
        b"\x0b",
    ],
)
def test_what_is_no_json_is_invalid_json(content: bytes) -> None:
    """Strict JSON in UTF-8, of bounded depth, and nothing else."""
    assert found_in_line(content) == ("invalid_json_line", None)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(line()), "gzip"),
        (line().decode().encode("utf-16"), "UTF-16"),
        (line().decode().encode("utf-16-le"), "UTF-16"),
        (line().decode().encode("utf-16-be"), "UTF-16"),
        (b"\x28\xb5\x2f\xfd" + b"x\n" * 9, "zstd"),
    ],
)
@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_what_is_no_text_is_named_once(content: bytes, name: str, on_invalid: str) -> None:
    """A compressed or UTF-16 file gets one error that says so, and fails in both modes."""
    verdict = check(content, on_invalid=on_invalid)
    assert found(verdict) == [(1, "invalid_json_line", None)]
    assert name in verdict.errors[0].message
    assert verdict.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        *[({name: value}, "missing_required_parameter", name)
          for name in ("custom_id", "method", "url", "body") for value in (..., None, "")],
        ({"body": {}}, "missing_required_parameter", "body"),
        *[({name: value}, "invalid_request", name) for name in ("custom_id", "method", "url", "body")
          for value in (0, 1, True, [], ["POST"])],
        ({"custom_id": {"a": 1}}, "invalid_request", "custom_id"),
        ({"custom_id": "x" * 1025}, "invalid_request", "custom_id"),
        ({"custom_id": "é" * 513}, "invalid_request", "custom_id"),
        ({"body": "text"}, "invalid_request", "body"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"method": "post"}, "invalid_method", "method"),
        ({"url": "/v1/audio/speech"}, "invalid_url", "url"),
        ({"url": "https://api.openai.com/v1/chat/completions"}, "invalid_url", "url"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
    ],
)  # fmt: skip
def test_the_envelope_is_checked(fields: dict[str, Any], code: str, param: str) -> None:
    """Absent or empty is missing, another type is invalid, and the rest must be what is supported."""
    assert found_in_line(line(**({"custom_id": "x"} | fields))) == (code, param)


@pytest.mark.parametrize("content", [b"1", b"null", b'"text"', b"[]", b"true", b"[{}]"])
def test_a_line_that_is_no_object_is_invalid(content: bytes) -> None:
    """JSON alone is not enough."""
    assert found_in_line(content) == ("invalid_request", None)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (None, "invalid_request"),
        ("", "invalid_request"),
        (5, "invalid_request"),
        (["m"], "invalid_request"),
        ("other", "model_not_found"),
        ("m2", "mismatched_model"),
    ],
)
def test_the_model_is_checked(model: Any, code: str) -> None:
    """Every request names a configured model, the same one."""
    assert found_in_line(line("x", BODY | {"model": model})) == (code, "body.model")


def test_custom_ids_of_the_longest_length_are_fine() -> None:
    """The limit counts bytes of UTF-8."""
    assert check(line("x" * 1024) + b"\n" + line("é" * 512)).is_valid


def test_the_sidecar_decides_the_endpoint() -> None:
    """Lines for another endpoint than the sidecar's are wrong, the first line included."""
    verdict = check(line(), endpoint="/v1/embeddings")
    assert found(verdict) == [(1, "invalid_url", "url")]
    assert verdict.endpoint == "/v1/embeddings"


@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_a_sidecar_with_an_unknown_endpoint_fails_the_file(on_invalid: str) -> None:
    """The sidecar is to blame, not each line."""
    verdict = check(line(), endpoint="/v1/videos", on_invalid=on_invalid)
    assert found(verdict) == [(None, "invalid_request", "endpoint")]


def test_the_first_usable_line_decides_for_the_others() -> None:
    """A first line whose url is wrong may still decide the model."""
    content = [line("a", BODY | {"model": "m2"}, url="/nope"), line("b", BODY | {"model": "m2"}), line("c")]
    verdict = check(b"\n".join(content))
    assert found(verdict) == [(1, "invalid_url", "url"), (3, "mismatched_model", "body.model")]
    assert (verdict.endpoint, verdict.model) == (URL, "m2")


def test_under_skip_only_a_valid_line_decides() -> None:
    """A bad first line of another model does not refuse all the others."""
    bad = line("a", {"model": "m2", "messages": []})
    verdict = check(b"\n".join([bad, line("b"), line("c", BODY | {"model": "m2"})]), on_invalid="skip")
    assert verdict.is_valid
    assert (verdict.requests, verdict.rejected, verdict.model) == (3, 2, "m")
    assert verdict.codes == {"invalid_request": 1, "mismatched_model": 1}


def test_under_skip_a_file_of_bad_lines_is_valid() -> None:
    """All lines are refused; endpoint and model are those that a line named, as far as one did."""
    verdict = check(b"{\n" + line(method="GET") + b"\n[]", on_invalid="skip")
    assert verdict.is_valid
    assert (verdict.requests, verdict.rejected, verdict.endpoint, verdict.model) == (3, 3, URL, "m")
    verdict = check(b"{\n", on_invalid="skip")
    assert verdict.is_valid
    assert (verdict.endpoint, verdict.model) == ("", "")


def test_duplicates_are_reported_on_the_later_line() -> None:
    """Each repetition counts, in line order with the other errors, and a refused line's id is used too."""
    content = [line("a"), b"{", line("a"), line("b", method="GET"), line("b"), line("a"), line("c")]
    assert found(check(b"\n".join(content))) == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (5, "duplicate_custom_id", "custom_id"),
        (6, "duplicate_custom_id", "custom_id"),
    ]


def test_colliding_hashes_refuse_nothing() -> None:
    """With one hash for all ids, only true repetitions are found, with BOM, CRLF and blank lines too."""
    content = b"\xef\xbb\xbf" + b"\r\n\r\n".join(
        [line("first"), *[line(f"id-{number}") for number in range(50)], line("id-7"), line("first")]
    )
    verdict = validate.check(io.BytesIO(content), rules(), hash_id=lambda _: -1)
    assert found(verdict) == [
        (103, "duplicate_custom_id", "custom_id"),
        (105, "duplicate_custom_id", "custom_id"),
    ]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \t\r\n"])
@pytest.mark.parametrize("has_last_end", [True, False])
def test_physical_lines_are_counted(bom: bytes, end: bytes, has_last_end: bool) -> None:
    """Blank lines count; BOM, CRLF and a missing last line end do not matter."""
    lines = [b"", line("a"), b"", b"  ", b"  {", line("b"), b"", b"}"]
    verdict = check(bom + end.join(lines) + (end if has_last_end else b""))
    assert [error.line for error in verdict.errors] == [5, 8]
    assert verdict.requests == 4


def test_only_newlines_end_lines() -> None:
    """CR, U+2028, U+0085, VT and FF are content, or blanks between tokens."""
    text = "a\u2028b\u0085c"
    body = BODY | {"messages": [{"role": "user", "content": text}]}
    content = line("a", body).replace(b',"method"', b',\r"method"') + b"\n{"
    assert found(check(content)) == [(2, "invalid_json_line", None)]


def test_a_bom_inside_a_file_is_no_bom() -> None:
    """Files with BOMs that were put together by `cat` are told so."""
    assert found_in_line(b"\xef\xbb\xbf" + line("x")) == ("invalid_json_line", None)


def test_of_keys_that_repeat_the_last_wins() -> None:
    """What the engine will see is what is checked."""
    content = line("x").replace(b'"body":{', b'"body":{"model":"unknown","stream":true,"stream":false,')
    assert check(content).is_valid
    content = line("x")[:-1] + b',"method":"GET"}'
    assert found_in_line(content) == ("invalid_method", "method")


def test_reported_errors_are_capped_and_the_last_names_the_total() -> None:
    """All errors are counted, the first ones listed."""
    verdict = check(b"{\n" * 250, max_reported_errors=100)
    assert [error.line for error in verdict.errors] == list(range(1, 101))
    assert verdict.total_errors == 250
    assert verdict.codes == {"invalid_json_line": 250}
    assert "250 errors in total" in verdict.errors[-1].message
    assert all("total" not in error.message for error in verdict.errors[:-1])


def test_as_many_errors_as_may_be_listed_are_not_summed_up() -> None:
    """A message names the total only where some are not listed."""
    verdict = check(b"{\n" * 100, max_reported_errors=100)
    assert len(verdict.errors) == verdict.total_errors == 100
    assert "total" not in verdict.errors[-1].message


@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_too_many_requests_fail_the_file(on_invalid: str) -> None:
    """The limit counts requests, not blank lines; it fails the file in both modes."""
    content = b"\n\n".join([line("a"), line("b"), line("c")])
    assert check(content, max_requests=3, on_invalid=on_invalid).is_valid
    verdict = check(content, max_requests=2, on_invalid=on_invalid)
    assert found(verdict) == [(None, "too_many_tasks", None)]
    assert "limits.max_requests" in verdict.errors[0].message


@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_a_file_that_is_too_large_fails_and_is_not_read_to_its_end(on_invalid: str) -> None:
    """A file over the limit costs no more than one of the limit."""
    content = b"\n".join(line(str(number)) for number in range(10_000))
    assert check(content, max_bytes=len(content), on_invalid=on_invalid).is_valid
    verdict = check(content, max_bytes=1000, on_invalid=on_invalid)
    assert found(verdict) == [(None, "file_too_large", None)]
    assert verdict.input_bytes < len(content)


def test_a_line_that_is_too_long_is_refused_and_the_next_is_read() -> None:
    """The limit counts the bytes before the line end."""
    size = len(line("x"))
    assert check(b"\n".join([line("a"), line("x"), line("b")]), max_line_bytes=size).is_valid
    long = line("x" * 2)
    verdict = check(b"\n".join([line("a"), long, b"", line("b"), b"{"]), max_line_bytes=size)
    assert found(verdict) == [(2, "line_too_long", None), (5, "invalid_json_line", None)]


class Synthetic(io.RawIOBase):
    """A file of one good line, one of many MiB and one more, none of which is held."""

    def __init__(self, long_bytes: int) -> None:
        self._pieces = [line("a") + b"\n", *[b"x" * (1 << 20)] * (long_bytes >> 20), b"\n", line("b"), b"\n{"]

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces[0]
        self._pieces[0] = piece[size:]
        if not self._pieces[0]:
            self._pieces.pop(0)
        return piece[:size]


def test_a_huge_line_is_never_held() -> None:
    """64 MiB in one line take a few MiB of memory with a limit of 1 MiB."""
    source = Synthetic(64 << 20)
    tracemalloc.start()
    verdict = validate.check(cast(BinaryIO, source), rules(max_line_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found(verdict) == [(2, "line_too_long", None), (4, "invalid_json_line", None)]
    assert verdict.input_bytes > 64 << 20
    assert peak < 8 << 20


def test_a_pipe_can_be_checked_too() -> None:
    """A source that cannot seek gets the same verdict."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        tell = seek

    content = b"\n".join([line("a"), line("b"), line("a")])
    verdict = validate.check(Pipe(content), rules())
    assert verdict == check(content)
    assert found(verdict) == [(3, "duplicate_custom_id", "custom_id")]


def test_stopping_is_polled_and_raises() -> None:
    """A stop ends validation in the middle of a file."""
    calls = 0

    def stopped() -> bool:
        nonlocal calls
        calls += 1
        return calls > 2

    source = io.BytesIO(b"\n".join(line(str(number)) for number in range(20_000)))
    with pytest.raises(validate.ValidationStopped):
        validate.check(source, rules(), stopped)
    assert source.tell() < len(source.getvalue())


def test_messages_are_short_and_printable() -> None:
    """What a user sent is cut and escaped before it is shown."""
    nasty = "\x1b[31m\u202e" + "x" * 100_000
    contents = [
        line("a", url=nasty),
        line("b", method=nasty),
        line("c", BODY | {"model": nasty}),
        line("d", BODY | {"stream": nasty}),
        line("e", BODY | {"messages": nasty}),
        line(
            "f", BODY | {"messages": [{"role": "u", "content": [{"type": "image_url", "image_url": nasty}]}]}
        ),
        orjson.dumps(nasty),
        line(nasty),
    ]
    verdict = check(b"\n".join(contents))
    assert len(verdict.errors) == len(contents)
    for error in verdict.errors:
        assert len(error.message) < 400
        assert error.message.isprintable()
        assert "x" * 100 not in error.message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["m", "POST", URL, "file:///x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(
        ["model", "messages", "role", "content", "type", "image_url", "url", "stream", "n", "tools", "prompt",
         "text", "response_format", "chat_template_kwargs", "logprobs", "input_audio", "a"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.sampled_from(["a", "b"]) | _JSON,
        "method": st.just("POST") | _JSON,
        "url": st.sampled_from(sorted(engine.SUPPORTED_URLS)) | _JSON,
        "body": st.fixed_dictionaries({"model": st.just("m")}, optional={"messages": _JSON, "input": _JSON})
        | _JSON,
    },
)
_LINE = st.binary(max_size=60) | _REQUEST.map(orjson.dumps) | _JSON.map(orjson.dumps) | st.just(line())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(_LINE, max_size=6).map(b"\n".join),
    st.sampled_from(["fail", "skip"]),
    st.sampled_from([20, 1 << 20]),
)
def test_whatever_the_bytes_a_verdict_comes(content: bytes, on_invalid: str, max_line_bytes: int) -> None:
    """No file raises; each line is refused or has all that a request needs, and errors are in line order."""
    verdict = check(content, on_invalid=on_invalid, max_line_bytes=max_line_bytes)
    assert verdict.is_valid == (verdict.total_errors == 0)
    assert verdict.sha256 == hashlib.sha256(content).hexdigest()
    numbers = [error.line or 0 for error in verdict.errors]
    assert numbers == sorted(numbers)
    assert all(len(error.message) < 600 and error.message.isprintable() for error in verdict.errors)
    if verdict.is_valid and not verdict.rejected:
        for raw in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            if raw.strip(b" \t\r"):
                accepted = orjson.loads(raw)
                assert isinstance(accepted["custom_id"], str)
                assert accepted["method"] == "POST"
                assert accepted["url"] == verdict.endpoint
                assert accepted["body"]["model"] == verdict.model == "m"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8).map(b"".join), st.integers(1, 40))
def test_odd_bytes_and_odd_reads_give_the_same_verdict(content: bytes, step: int) -> None:
    """How the source cuts its reads changes nothing."""

    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(step)

    whole = check(content, max_line_bytes=50)
    assert validate.check(Dribble(content), rules(max_line_bytes=50)) == whole
