"""A model and how it is served, in each peer's own words: batchd's settings, vLLM's flags, Ray's keywords.

All peers get the very same engine arguments, those included that vLLM would choose by who starts it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config import settings
from config.load import load

ROOT = Path(__file__).resolve().parent.parent

# vLLM's own defaults for these differ between run-batch, a server and the LLM class (0.32, arg_utils.py).
_SAME_FOR_ALL = {"max_num_seqs": 256, "max_num_batched_tokens": 4096}

# What the answers of a model have to be: sums; the prompt; or anything of the right length.
Answers = Literal["sums", "echo", "any"]


@dataclass(frozen=True)
class Served:
    """A model with its engine arguments.

    Attributes:
        name: what requests call it.
        source: folder or hub name; "" for the echo engine, which has none.
        engine_args: vLLM's, in snake_case.
        answers: what its answers have to be.
        variant: what is special about these arguments; "" for a model as all workloads but one use it.
    """

    name: str
    source: str
    engine_args: dict[str, Any]
    answers: Answers
    variant: str = ""

    def settings(self) -> dict[str, Any]:
        """An entry of batchd's `models`."""
        if self.answers == "echo":
            return {"name": self.name, "kind": "echo"}
        return {
            "name": self.name,
            "kind": "vllm",
            "source": self.source,
            "engine_args": self.engine_args,
        }

    def flags(self) -> list[str]:
        """The command line of vLLM's own programs."""
        words = ["--model", self.source, "--served-model-name", self.name]
        for key, value in self.engine_args.items():
            option = key.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
        return words

    def with_args(self, variant: str, **changes: Any) -> Served:
        """The same model with some engine arguments changed."""
        return Served(self.name, self.source, {**self.engine_args, **changes}, self.answers, variant)


ECHO = Served("echo", "", {}, "echo")


def tiny_adder() -> Served:
    """The model of this repository. Without compilation, an engine on a CPU starts in half the time."""
    arguments = {"max_model_len": 1024, "enforce_eager": True, **_SAME_FOR_ALL}
    return Served("tiny-adder", str(ROOT / "examples" / "tiny-adder"), arguments, "sums")


def from_config(path: Path) -> Served:
    """The first vLLM model of a settings file.

    Raises:
        SettingsError: the file cannot be used.
        ValueError: it has no such model.
    """
    for model in load(path).models:
        if isinstance(model, settings.VllmModel):
            return Served(model.name, model.source, {**_SAME_FOR_ALL, **model.engine_args}, "any")
    raise ValueError(f"{path} has no model of kind vllm")
