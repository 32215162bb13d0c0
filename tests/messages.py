"""Every text of the five packages that a user can meet, read from the source with `ast`.

A message is a text given to an exception, or to what validation and `doctor` report with; what varies in it
is written as `…`. An event is the name of a log line at warning or above. Nothing is run or imported, so that
a message on a path that no test takes is found as well; a text that cannot be read from the source (passed on
from another error, say) is left out, since the place where it was made is read too.
"""

from __future__ import annotations

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.daemons import REPOSITORY

PACKAGES = ("config", "spool", "scheduler", "pipeline", "daemon")

# What reports a message without being an exception: which argument has it, by place or by name.
REPORTERS: dict[str, int | str] = {
    "Problem": 1,
    "Finding": 2,
    "LineError": "message",
    "error_line": 3,
    "_invalid": 0,
    "_refused": 0,
    "_give_up": 1,
    "_end": 1,
    "_note_in_status": 0,
    "refuse_cancel": 1,
    "__init__": 0,
}
# Functions whose returned texts are messages, or parts of them.
TELLERS = {
    "config/load.py": {"one_line"},
    "daemon/admission.py": {"engine_problem"},
    "daemon/hooks.py": {"_try"},
    "daemon/http.py": {"_explain"},
    "daemon/outbox.py": {"unreadable"},
    "daemon/work.py": {"unanswered"},
    "pipeline/request_guards.py": {"_media_message"},
    "pipeline/validate_size.py": {"find_excess"},
}
# Mistakes of ours, and what only the engine for tests says.
NOT_SHOWN = {"AssertionError", "KeyError", "OutOfStep", "QueueFull", "RuntimeError", "_BadRequest"}

_LEVELS = {"warning", "error", "exception", "critical"}


class Message(NamedTuple):
    """A text, and where it stands.

    Attributes:
        text: with `…` for what varies.
        place: path and line.
    """

    text: str
    place: str


def messages() -> list[Message]:
    """All messages of the packages."""
    return [
        message for file in files() for message in messages_of(file, file.relative_to(REPOSITORY).as_posix())
    ]


def events() -> set[str]:
    """The events of all log lines at warning or above.

    Raises:
        ValueError: an event's name is no constant.
    """
    return {event for file in files() for event in events_of(file)}


def files() -> list[Path]:
    """Every module of the packages."""
    return [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


@functools.cache
def _exceptions() -> set[str]:
    """Names of exceptions: Python's, and each class of ours below one of them."""
    found = {
        name
        for name, each in vars(builtins).items()
        if isinstance(each, type) and issubclass(each, BaseException)
    }
    found.add("YAMLError")
    classes = [node for file in files() for node in ast.walk(_parsed(file)) if isinstance(node, ast.ClassDef)]
    grown = True
    while grown:
        more = {each.name for each in classes if any(_name(base) in found for base in each.bases)}
        grown = not more <= found
        found |= more
    return found


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def messages_of(file: Path, path: str) -> Iterator[Message]:
    """The messages of one file; `path` is how it is named."""
    for scope in _scopes(_parsed(file)):
        for node in _within(scope):
            for text in _told(node, scope, TELLERS.get(path, set())):
                for template in _templates(text, scope, _parsed(file)):
                    said = template.removeprefix("batchd: ")
                    # One word is a field's name, and a text without letters is passed on from elsewhere.
                    if " " in said and re.search(r"[a-z]{2}", said):
                        yield Message(said, f"{path}:{getattr(node, 'lineno', 0)}")


def _scopes(module: ast.Module) -> Iterator[ast.AST]:
    yield module
    yield from (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _within(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the functions in it, which are scopes of their own."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _within(child)


def _told(node: ast.AST, scope: ast.AST, tellers: set[str]) -> list[ast.expr]:
    """The expressions in a node that become a message."""
    if isinstance(node, ast.Return) and node.value and getattr(scope, "name", "") in tellers:
        return [node.value]
    if isinstance(node, ast.Assign) and any(_name(target) == "warning" for target in node.targets):
        return [node.value]
    if not isinstance(node, ast.Call):
        return []
    name = _name(node.func)
    if name in _exceptions() - NOT_SHOWN:
        return node.args
    if name == "print" and any(keyword.arg == "file" for keyword in node.keywords):
        return node.args
    if name == "append" and isinstance(node.func, ast.Attribute) and _name(node.func.value) == "warnings":
        return node.args
    if name == "Finding" and isinstance(node.args[0], ast.Constant) and node.args[0].value == "ok":
        return []
    at = REPORTERS.get(name)
    if isinstance(at, int):
        return node.args[at : at + 1]
    return [keyword.value for keyword in node.keywords if keyword.arg == at]


def _templates(node: ast.expr, scope: ast.AST, module: ast.Module) -> list[str]:
    """What an expression may come to: a variable's texts are those assigned to it in its function."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return ["".join(_piece(value) for value in values)]
        case ast.BinOp(left=left, op=ast.Add()):
            return [f"{text}…" for text in _templates(left, scope, module)]
        case ast.IfExp(body=body, orelse=orelse):
            return _templates(body, scope, module) + _templates(orelse, scope, module)
        case ast.Tuple(elts=elements):
            return [text for each in elements for text in _templates(each, scope, module)]
        case ast.Name(id=name):
            assigned = list(_assigned(name, scope)) or list(_assigned(name, module))
            return [text for each in assigned for text in _templates(each, scope, module)]
    return []


def _piece(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else "…"


def _assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    for node in _within(scope):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if _name(target) == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (value for each, value in pairs if _name(each) == name)


def events_of(file: Path) -> Iterator[str]:
    """The events of one file; see `events`."""
    for node in ast.walk(_parsed(file)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        if _is_log(node.func) or getattr(node.func, "id", "") == "report":
            yield from _event_names(node.args[0], file, node.lineno)


def _is_log(function: ast.expr) -> bool:
    """Whether a call's function is `_log.warning` or above, or a choice among such."""
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
    return any(node.attr in _LEVELS and _name(node.value) == "_log" for node in nodes)


def _event_names(node: ast.expr, file: Path, line: int) -> list[str]:
    match node:
        case ast.Constant(value=str(event)):
            return [event]
        case ast.IfExp(body=body, orelse=orelse):
            return _event_names(body, file, line) + _event_names(orelse, file, line)
        case ast.Name(id="event"):
            return []  # what `report` was called with, which is read where it is called
    raise ValueError(f"{file}:{line}: an event is a constant, not {ast.unparse(node)}")
