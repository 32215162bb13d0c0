"""Checks one request of a batch file, parsed: the envelope, the model and what its endpoint needs.

Finds the first problem of a request and raises nothing. Keeps what one file must agree on, its endpoint and
its model, which the file's first requests decide. Of keys that repeat in an object the last one wins, as in
orjson, so here and in the engine alike. What a body may not ask for is in request_guards.py; custom_ids
that repeat are validate_ids.py's.
"""

from __future__ import annotations

from typing import Any

from config.settings import LimitSettings
from pipeline import request_guards
from pipeline.engine import SUPPORTED_URLS
from pipeline.request_guards import Guard, Problem, shown
from spool.codes import Refusal

_ENVELOPE = ("custom_id", "method", "url", "body")
_CONTENT = (str, list)
_SCORE_CONTENT = (str, list, dict)
_SCORE_PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


class Checker:
    """Checks the requests of one file, in their order.

    Attributes:
        endpoint: what all requests must name; "" until known.
        model: likewise.
    """

    def __init__(
        self,
        models: frozenset[str],
        limits: LimitSettings,
        allowed_media_domains: tuple[str, ...],
        endpoint: str = "",
        *,
        is_skipping: bool = False,
    ) -> None:
        """Start a file.

        Args:
            models: names of the configured models.
            limits: bounds on one request.
            allowed_media_domains: hosts that media URLs may name.
            endpoint: what the sidecar asks for, "" if nothing.
            is_skipping: refused requests decide nothing for the others.
        """
        self.endpoint = endpoint
        self.model = ""
        self._models = models
        self._max_custom_id_bytes = limits.max_custom_id_bytes
        self._guard = Guard(limits, frozenset(domain.lower() for domain in allowed_media_domains))
        self._is_skipping = is_skipping
        self._is_settled = False
        self._seen_endpoint = ""
        self._seen_model = ""

    @property
    def best_endpoint(self) -> str:
        """The file's endpoint; where no request was valid, the first usable one that was named, or ""."""
        return self.endpoint or self._seen_endpoint

    @property
    def best_model(self) -> str:
        """The file's model, likewise."""
        return self.model or self._seen_model

    def find_problem(self, request: Any) -> Problem | None:
        """The first problem of a request, None if it may run."""
        problem = self._check_envelope(request) or self._check_body(request["url"], request["body"])
        if not self._is_settled:
            self._settle(request, problem)
        return problem

    def read_custom_id(self, request: Any) -> str | None:
        """The request's custom_id if it is one; also of a request that has a problem."""
        custom_id = request.get("custom_id") if type(request) is dict else None
        if type(custom_id) is not str or not custom_id or self._is_too_long(custom_id):
            return None
        return custom_id

    def _is_too_long(self, custom_id: str) -> bool:
        most = self._max_custom_id_bytes
        return len(custom_id) * 4 > most and len(custom_id.encode()) > most  # UTF-8: 4 bytes at most

    def _settle(self, request: Any, problem: Problem | None) -> None:
        fields = request if type(request) is dict else {}
        body = fields.get("body")
        url = fields.get("url")
        model = body.get("model") if type(body) is dict else None
        endpoint = url if type(url) is str and url in SUPPORTED_URLS else ""
        model = model if type(model) is str and model in self._models else ""
        self._seen_endpoint = self._seen_endpoint or endpoint
        self._seen_model = self._seen_model or model
        if problem is None or not self._is_skipping:
            self.endpoint = self.endpoint or endpoint
            self.model = self.model or model
            self._is_settled = bool(self.endpoint and self.model)

    def _check_envelope(self, request: Any) -> Problem | None:
        if type(request) is not dict:
            return _invalid(f"The line is {shown(request)}; it must be an object.", None)
        custom_id, method, url = request.get("custom_id"), request.get("method"), request.get("url")
        if not (custom_id and method and url and request.get("body")) and (problem := _find_absent(request)):
            return problem
        if type(custom_id) is not str:
            return _wrong_type("custom_id", custom_id, "a string")
        if self._is_too_long(custom_id):
            return _invalid(
                f"custom_id has {len(custom_id.encode())} bytes; at most {self._max_custom_id_bytes} are"
                " allowed here (limits.max_custom_id_bytes).",
                "custom_id",
            )
        if type(method) is not str:
            return _wrong_type("method", method, "a string")
        if method != "POST":
            return Problem(
                Refusal.INVALID_METHOD, f"method is {shown(method)}; only 'POST' is allowed.", "method"
            )
        return self._check_url(url) if url != self.endpoint else None

    def _check_url(self, url: Any) -> Problem | None:
        if type(url) is not str:
            return _wrong_type("url", url, "a string")
        if url not in SUPPORTED_URLS:
            supported = ", ".join(sorted(SUPPORTED_URLS))
            return Problem(Refusal.INVALID_URL, f"url is {shown(url)}; supported are {supported}.", "url")
        if self.endpoint:
            message = f"url is {shown(url)}, but this batch is for {self.endpoint}: one file, one endpoint."
            return Problem(Refusal.INVALID_URL, message, "url")
        return None

    def _check_body(self, url: str, body: Any) -> Problem | None:
        if type(body) is not dict:
            return _wrong_type("body", body, "an object")
        model = body.get("model")
        if (not model or model != self.model) and (problem := self._check_model(model)):
            return problem
        return _check_needs(url, body) or request_guards.find_problem(body, self._guard)

    def _check_model(self, model: Any) -> Problem | None:
        if model is None or model == "":
            return _invalid("body.model is missing; every request must name its model.", "body.model")
        if type(model) is not str:
            return _wrong_type("body.model", model, "a string")
        if model not in self._models:
            known = ", ".join(sorted(self._models)[:10]) or "none"
            message = f"The model {shown(model)} is not configured here; known: {known}."
            return Problem(Refusal.MODEL_NOT_FOUND, message, "body.model")
        if self.model:
            message = (
                f"body.model is {shown(model)}, but the file is for {shown(self.model)}: one file, one model."
            )
            return Problem(Refusal.MISMATCHED_MODEL, message, "body.model")
        return None


def _find_absent(request: dict[str, Any]) -> Problem | None:
    for field in _ENVELOPE:
        value = request.get(field)
        if value is None or value in ("", {}):
            state = "empty" if field in request and value is not None else "missing"
            return Problem(Refusal.MISSING_PARAMETER, f"{field} is {state}; it is required.", field)
    return None


def _check_needs(url: str, body: dict[str, Any]) -> Problem | None:
    """Whether the fields are there that the endpoint cannot do without."""
    match url:
        case "/v1/chat/completions":
            return _check_messages(body.get("messages"))
        case "/v1/completions":
            return _check_field(body, "prompt", _CONTENT, "a string or an array")
        case "/v1/embeddings" | "/v1/responses":
            return _check_field(body, "input", _CONTENT, "a string or an array")
        case "/v1/score" | "/score":
            return _check_pair(body)
        case _:
            kinds = "a string, an object or an array"
            return _check_field(body, "query", _SCORE_CONTENT, kinds) or _check_field(
                body, "documents", _SCORE_CONTENT, kinds
            )


def _check_messages(messages: Any) -> Problem | None:
    if messages is None:
        return _invalid("body.messages is missing; it is required.", "body.messages")
    if type(messages) is not list or not messages:
        return _wrong_type("body.messages", messages, "an array with at least one message")
    for number, message in enumerate(messages):
        if type(message) is not dict:
            return _invalid(
                f"body.messages[{number}] is {shown(message)}; it must be an object.", "body.messages"
            )
        if type(message.get("role")) is not str:
            return _invalid(f"body.messages[{number}].role must be a string.", "body.messages")
    return None


def _check_field(body: dict[str, Any], field: str, kinds: tuple[type, ...], described: str) -> Problem | None:
    value = body.get(field)
    if value is None:
        return _invalid(f"body.{field} is missing; it is required.", f"body.{field}")
    if type(value) not in kinds:
        return _wrong_type(f"body.{field}", value, described)
    if value == []:
        return _invalid(f"body.{field} is an empty array; it must hold something.", f"body.{field}")
    return None


def _check_pair(body: dict[str, Any]) -> Problem | None:
    kinds = "a string, an object or an array"
    for first, second in _SCORE_PAIRS:
        if body.get(first) is not None and body.get(second) is not None:
            return _check_field(body, first, _SCORE_CONTENT, kinds) or _check_field(
                body, second, _SCORE_CONTENT, kinds
            )
    pairs = " or ".join(f"{first} and {second}" for first, second in _SCORE_PAIRS)
    missing = next((second for first, second in _SCORE_PAIRS if body.get(first) is not None), "text_1")
    return _invalid(f"body.{missing} is missing; a score needs {pairs}.", f"body.{missing}")


def _invalid(message: str, param: str | None) -> Problem:
    return Problem(Refusal.INVALID_REQUEST, message, param)


def _wrong_type(param: str, value: object, wanted: str) -> Problem:
    found = "an empty array" if value == [] else shown(value)
    return _invalid(f"{param} is {found}; it must be {wanted}.", param)
