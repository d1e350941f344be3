"""JSON without NaN. Run: pytest tests/storage/test_json_text.py"""

from __future__ import annotations

import json

from infogan_ray.storage.json_text import is_defined, to_json


def strict(text: str) -> object:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_undefined_numbers_become_null_at_any_depth() -> None:
    value = {"a": float("nan"), "b": [1.5, -float("inf"), (float("inf"),)], "c": {"d": True, "e": "NaN", "f": None}}
    assert strict(to_json(value)) == {"a": None, "b": [1.5, None, [None]], "c": {"d": True, "e": "NaN", "f": None}}
    assert to_json({"a": [0.1]}, indent=1) == json.dumps({"a": [0.1]}, indent=1)
    assert [is_defined(v) for v in (0.0, "", False, None, float("nan"))] == [True, True, True, False, False]
