"""Text that leaves the program: a name may hold bytes that are not UTF-8, line breaks and commands to a terminal.

Python reads a byte of a path that is not UTF-8 as a lone surrogate, which no encoder accepts. Paths keep it, so that
files open. Text for people and files shows it as an escape.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

# Control characters, line separators, direction overrides, lone surrogates, and what XML forbids.
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    r"""The text in one line that every output can hold: unprintable characters as escapes, such as \n, \x1b, \xe9."""
    return UNPRINTABLE.sub(lambda found: _escape(found[0]), text)


def is_utf8(text: str) -> bool:
    """Whether the text has no lone surrogates."""
    return not re.search("[\ud800-\udfff]", text)


def to_utf8(text: str) -> bytes:
    r"""The bytes of a text file: lone surrogates as escapes, such as \udce9. Line breaks stay."""
    return text.encode("utf-8", "backslashreplace")


def shell_word(text: str) -> str:
    r"""The text as a word of a shell command in one line. Unprintable characters are bytes in $'…', as in $'caf\xe9'.

    Bash, zsh and ksh read both forms.
    """
    if not UNPRINTABLE.search(text):
        return shlex.quote(text)
    quoted = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{UNPRINTABLE.sub(lambda found: _escape_bytes(found[0]), quoted)}'"


def shell_command(words: Iterable[str]) -> str:
    """The words as a shell command in one line."""
    return " ".join(map(shell_word, words))


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # stands for one byte
        return _escape_bytes(character)
    return character.encode("unicode_escape").decode()


def _escape_bytes(character: str) -> str:
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))
