"""Any name can leave the program as text. Run: pytest tests/storage/test_visible_text.py"""

from __future__ import annotations

import os
import subprocess

import pytest

from infogan_ray.storage.visible_text import is_utf8, printable, shell_word, to_utf8

NAMES = [
    b"plain",
    b"two words",
    b"it's",
    b"caf\xe9",
    b"a\nb'\\n",
    b"\x1b[31mred",
    "größe 犬".encode(),
    b"\xe2\x80\xaeright",
]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("größe 犬　猫", "größe 犬　猫"),
        ("two\nlines\t\x1b[31m", r"two\nlines\t\x1b[31m"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800\u2028\u202e", r"\ud800\u2028\u202e"),
    ],
)
def test_unprintable_characters_become_escapes(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(shown) == shown and is_utf8(shown)


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_each_name_as_it_is(name: bytes) -> None:
    word = shell_word(os.fsdecode(name))
    assert printable(word) == word, "one line"
    printed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, timeout=30).stdout
    assert printed == name


def test_a_text_file_keeps_its_lines_and_holds_any_name() -> None:
    assert to_utf8("größe\n") == "größe\n".encode()
    assert to_utf8("caf\udce9\n") == b"caf\\udce9\n"
