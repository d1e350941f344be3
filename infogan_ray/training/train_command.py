"""The command that repeats a run."""

from __future__ import annotations

import shlex
from typing import Any

from infogan_ray.training.config import RunConfig


def train_command(config: RunConfig) -> str:
    """The command that repeats this run, with a flag for every field that differs from its preset or default."""
    base = RunConfig(preset=config.preset)
    words = ["infogan", "train", *(["--preset", config.preset] if config.preset else [])]
    words += _flags(config.to_dict(), base.to_dict(), "--")
    return " ".join(shlex.quote(word) for word in words)


def _flags(values: dict[str, Any], base: dict[str, Any], prefix: str) -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        flag = prefix + key.replace("_", "-")
        if key in ("preset", "resume", "accept_changes") or value == base.get(key) or value is None:
            continue
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "lambda_code":
            words += _flags(value, base[key], f"{flag}.")
        elif isinstance(value, dict):
            words += [flag, *(str(item) for pair in value.items() for item in pair)]
        elif isinstance(value, bool):
            words.append(flag if value else f"{prefix}no-{key.replace('_', '-')}")
        else:
            words += [flag, str(value)]
    return words
