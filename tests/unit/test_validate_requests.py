"""What one request must have for its endpoint, and what its body may not ask for."""

from __future__ import annotations

from typing import Any

import pytest

from config.settings import LimitSettings
from pipeline import engine, requests
from pipeline.request_guards import Problem, shown

MESSAGES: list[Any] = [{"role": "user", "content": "1+1"}]
NO_MESSAGES: list[Any] = [
    None,
    [],
    "x",
    {},
    5,
    ["x"],
    [[]],
    [{}],
    [{"role": 1}],
    [*MESSAGES, {"content": ""}],
]
NO_CONTENT: list[Any] = [None, [], 5, {}, True]
CHAT = "/v1/chat/completions"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/responses": {"input": "a"},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
    "/score": {"queries": "a", "documents": ["b"]},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/rerank": {"query": {"content": []}, "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": "b"},
}


def problem_of(
    body: dict[str, Any], url: str = CHAT, domains: tuple[str, ...] = (), **limits: Any
) -> Problem | None:
    checker = requests.Checker(frozenset({"m"}), LimitSettings(**limits), domains)
    full = {"model": "m"} | GOOD[url] | body
    return checker.find_problem({"custom_id": "a", "method": "POST", "url": url, "body": full})


def refused(body: dict[str, Any], url: str = CHAT, **fields: Any) -> tuple[str, str | None]:
    problem = problem_of(body, url, **fields)
    assert problem is not None
    return problem.code, problem.param


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, fields]}]}


@pytest.mark.parametrize("url", sorted(engine.SUPPORTED_URLS))
def test_a_plain_request_is_accepted(url: str) -> None:
    """Each supported endpoint has a request that passes."""
    assert problem_of({}, url) is None


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        *[(CHAT, {"messages": value}, "messages") for value in NO_MESSAGES],
        *[("/v1/completions", {"prompt": value}, "prompt") for value in NO_CONTENT],
        *[("/v1/embeddings", {"input": value}, "input") for value in NO_CONTENT],
        *[("/v1/responses", {"input": value}, "input") for value in NO_CONTENT],
        ("/v1/score", {"text_1": None}, "text_1"),
        ("/v1/score", {"text_2": None}, "text_2"),
        ("/v1/score", {"text_1": 5}, "text_1"),
        ("/score", {"documents": []}, "documents"),
        ("/rerank", {"query": None}, "query"),
        ("/v1/rerank", {"documents": None}, "documents"),
        ("/v2/rerank", {"documents": 5}, "documents"),
    ],
)  # fmt: skip
def test_each_endpoint_needs_its_fields(url: str, body: dict[str, Any], param: str) -> None:
    """A field that is missing, empty or of the wrong type is named."""
    assert refused(body, url) == ("invalid_request", f"body.{param}")


@pytest.mark.parametrize("pair", [("data_1", "data_2"), ("queries", "items"), ("queries", "documents")])
def test_scores_take_any_of_vllms_pairs(pair: tuple[str, str]) -> None:
    """vLLM's ScoreRequest knows four pairs of names."""
    body = {"text_1": None, "text_2": None} | dict.fromkeys(pair, "x")
    assert problem_of(body, "/v1/score") is None


@pytest.mark.parametrize("value", [True, "yes", 1])
def test_streaming_is_refused(value: Any) -> None:
    """A batch has no stream."""
    assert refused({"stream": value}) == ("streaming_unsupported", "body.stream")


@pytest.mark.parametrize("value", [False, None])
def test_no_streaming_may_be_said(value: Any) -> None:
    """What OpenAI's client writes by default passes."""
    assert problem_of({"stream": value}) is None


@pytest.mark.parametrize(
    "field", ["chat_template", "prompt_embeds", "media_io_kwargs", "mm_processor_kwargs"]
)
def test_dangerous_parameters_are_refused(field: str) -> None:
    """They run or load what the user sends; null is as good as absent."""
    assert refused({field: "x"}) == ("unsupported_parameter", f"body.{field}")
    assert refused({field: {}}) == ("unsupported_parameter", f"body.{field}")
    assert problem_of({field: None}) is None


@pytest.mark.parametrize("key", ["chat_template", "tokenize"])
def test_template_kwargs_cannot_bring_a_template(key: str) -> None:
    """The way round the check above, CVE-2026-115918."""
    param = f"body.chat_template_kwargs.{key}"
    assert refused({"chat_template_kwargs": {key: None}}) == ("unsupported_parameter", param)
    assert problem_of({"chat_template_kwargs": {"enable_thinking": False}}) is None
    assert refused({"chat_template_kwargs": [key]}) == ("invalid_request", "body.chat_template_kwargs")


@pytest.mark.parametrize("fields", [{"type": "prompt_embeds", "data": "x"}, {"prompt_embeds": "x"}])
def test_parts_cannot_bring_prompt_embeds(fields: dict[str, Any]) -> None:
    """Neither by type nor by key."""
    assert refused(part(**fields)) == ("unsupported_parameter", "body.messages")


MEDIA = [
    {"type": "image_url", "image_url": {"url": "URL"}},
    {"type": "image_url", "image_url": {"url": "URL"}, "uuid": "x"},
    {"image_url": "URL"},
    {"type": "input_image", "image_url": "URL"},
    {"type": "audio_url", "audio_url": {"url": "URL"}},
    {"type": "video_url", "video_url": {"url": "URL"}},
    {"type": "input_audio", "input_audio": {"url": "URL"}},
    {"type": "input_file", "file_url": "URL"},
    {"type": "tool_result", "content": [[{"deeper": {"image_url": {"url": "URL"}}}]]},
]


def with_url(value: Any, url: str) -> Any:
    if isinstance(value, dict):
        return {key: with_url(item, url) for key, item in value.items()}
    if isinstance(value, list):
        return [with_url(item, url) for item in value]
    return url if value == "URL" else value


@pytest.mark.parametrize("shape", MEDIA)
@pytest.mark.parametrize("field", ["messages", "input", "documents"])
def test_media_come_from_allowed_places_only(shape: dict[str, Any], field: str) -> None:
    """Whatever the form, the depth and the field: data: and the allowed domains, nothing else."""
    place = {"messages": CHAT, "input": "/v1/responses", "documents": "/rerank"}

    def body(url: str) -> dict[str, Any]:
        return {field: [{"role": "user", "content": [with_url(shape, url)]}]}

    refusal = ("unsupported_parameter", f"body.{field}")
    assert refused(body("https://example.com/x.png"), place[field]) == refusal
    assert refused(body("file:///etc/passwd"), place[field], domains=("example.com",)) == refusal
    assert problem_of(body("data:image/png;base64,AAAA"), place[field]) is None
    assert problem_of(body("https://example.com/x.png"), place[field], domains=("example.com",)) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com.evil.org/x",
        "http://sub.example.com/x",
        "http://evil.org/example.com",
        "http://example.com@evil.org/x",
        "http://evil.org\\@example.com/x",
        "http://evil.org\\.example.com/x",
        " http://example.com/x",
        "http://example.com/\tx",
        "http://ex\nample.com/x",
        "http://example\uff0ecom/x",
        "http://[::1/x",
        "http:///x",
        "ftp://example.com/x",
        "//example.com/x",
        "/etc/passwd",
        "FILE:///etc/passwd",
        "file://example.com/etc/passwd",
        "javascript:x",
        "",
    ],
)
def test_urls_cannot_trick_the_list_of_domains(url: str) -> None:
    """Hosts are exact, and what parsers may read in two ways is refused."""
    body = part(type="image_url", image_url={"url": url})
    assert refused(body, domains=("example.com",)) == ("unsupported_parameter", "body.messages")


@pytest.mark.parametrize("media", [["file:///x"], [{"url": "file:///x"}], {"url": ["file:///x"]}, 5])
def test_media_urls_are_strings(media: Any) -> None:
    """Nothing hides in another type."""
    assert refused(part(image_url=media)) == ("unsupported_parameter", "body.messages")


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_url", "image_url": None, "uuid": "x"},
        {"type": "url_citation", "url": "https://example.com/"},
    ],
)
def test_parts_without_media_urls_are_fine(fields: dict[str, Any]) -> None:
    """What is sent along, known by its uuid, or only quoted, is not fetched."""
    assert problem_of(part(**fields)) is None


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "HTTPS://Example.COM:8443/x?y#z", "Data:text/plain,x"]
)
def test_schemes_and_hosts_have_no_case(url: str) -> None:
    """As in RFC 3986."""
    assert problem_of(part(type="image_url", image_url={"url": url}), domains=("EXAMPLE.com",)) is None


def test_very_deep_content_is_walked() -> None:
    """No recursion limit is met."""
    content: Any = {"image_url": "file:///x"}
    for _ in range(5000):
        content = [content]
    assert refused({"messages": [{"role": "user", "content": content}]}) == (
        "unsupported_parameter",
        "body.messages",
    )


@pytest.mark.parametrize(
    ("field", "limit", "most"),
    [
        ("n", "max_n", 8),
        ("best_of", "max_n", 8),
        ("logprobs", "max_logprobs", 20),
        ("top_logprobs", "max_logprobs", 20),
        ("prompt_logprobs", "max_logprobs", 20),
    ],
)
def test_counts_are_capped(field: str, limit: str, most: int) -> None:
    """The message names the setting; numbers that vLLM would coerce, and -1 for all, do not slip through."""
    assert problem_of({field: most}) is None
    assert problem_of({field: None}) is None
    values: list[Any] = [most + 1, -1, "1", 1.0, 1e9, [1], {}]
    for value in values:
        assert refused({field: value}) == ("invalid_request", f"body.{field}")
    problem = problem_of({field: most + 1})
    assert problem is not None
    assert f"limits.{limit}" in problem.message
    unlimited: dict[str, Any] = {limit: 0}
    assert problem_of({field: most + 1}, **unlimited) is None


def test_logprobs_may_be_a_flag() -> None:
    """In chat requests `logprobs` says whether, `top_logprobs` how many."""
    assert problem_of({"logprobs": True, "top_logprobs": 5}) is None
    assert refused({"n": True}) == ("invalid_request", "body.n")


@pytest.mark.parametrize("prompt", ["x", ["x"], [1, 2, 3], [[1, 2, 3]]])
def test_one_prompt_is_one_prompt(prompt: Any) -> None:
    """A list of integers is one prompt of tokens."""
    assert problem_of({"prompt": prompt}, "/v1/completions") is None


@pytest.mark.parametrize("prompt", [["x", "y"], [[1], [2]], [1, "y"]])
def test_prompts_are_capped(prompt: Any) -> None:
    """A list of prompts multiplies the work of a line, CVE-2026-73559."""
    assert refused({"prompt": prompt}, "/v1/completions") == ("invalid_request", "body.prompt")
    assert problem_of({"prompt": prompt}, "/v1/completions", max_prompts=2) is None
    assert problem_of({"prompt": prompt}, "/v1/completions", max_prompts=0) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": "y" * 100}}}},
            "response_format",
        ),
        ({"structured_outputs": {"regex": "a" * 100}}, "structured_outputs"),
        ({"guided_regex": "a" * 101}, "guided_regex"),
        ({"guided_json": {"x": "y" * 100}}, "guided_json"),
        ({"guided_choice": ["yes"] * 30}, "guided_choice"),
        ({"tools": [{}, {"type": "function", "function": {"name": "f" * 100}}]}, "tools[1]"),
    ],
)
def test_grammars_are_capped(body: dict[str, Any], param: str) -> None:
    """What is compiled into a grammar has a size limit, each tool by itself."""
    assert problem_of(body) is None
    assert refused(body, max_grammar_bytes=100) == ("invalid_request", f"body.{param}")
    assert problem_of(body, max_grammar_bytes=0) is None


def test_a_grammar_that_nests_too_deep_is_refused() -> None:
    """Deep schemas overflow whoever compiles them."""
    schema: Any = {}
    for _ in range(300):
        schema = {"items": schema}
    assert refused({"response_format": schema}) == ("invalid_request", "body.response_format")


def test_values_are_shown_briefly() -> None:
    """Values of any type, on one line."""
    values = [None, True, 1.5, "it's", [1], {"a": 1}]
    assert [shown(value) for value in values] == ["null", "true", "1.5", '"it\'s"', "an array", "an object"]
    assert shown("x" * 81) == "'" + "x" * 79 + "..."
    assert len(shown("\U0010ffff" * 1000)) == 83
