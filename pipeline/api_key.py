"""The API key of a model of kind openai: read where the daemon runs, and shown nowhere.

It travels to the replicas as a SecretStr, whose text is asterisks, among the arguments of their actors, which
Ray keeps in memory. No message here holds any part of it.

Limits: a key that changes is read at the next start of the daemon.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from config import settings
from pipeline import errors

_MAX_BYTES = 16 << 10


def read(model: settings.ModelSettings) -> SecretStr | None:
    """The key of a model; None where its settings name none.

    Raises:
        EngineStartError: it is not where the settings say, or can be no key.
    """
    if not isinstance(model, settings.OpenAIModel):
        return None
    if model.api_key_env is not None:
        where = f"model {model.name!r}: api_key_env: the environment variable {model.api_key_env}"
        text = os.environ.get(model.api_key_env)
        if text is None:
            raise errors.EngineStartError(f"{where} is not set")
    elif model.api_key_file is not None:
        where = f"model {model.name!r}: api_key_file: {model.api_key_file}"
        try:
            with open(Path(model.api_key_file), "rb") as file:
                text = file.read(_MAX_BYTES).decode("latin-1")
        except OSError as error:
            raise errors.EngineStartError(f"{where} cannot be read: {error.strerror}") from None
    else:
        return None
    key = text.strip()
    if not key:
        raise errors.EngineStartError(f"{where} is empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise errors.EngineStartError(f"{where} holds no key: it must be one word of printable ASCII")
    return SecretStr(key)
