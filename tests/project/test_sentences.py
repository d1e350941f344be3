"""Sentences of the pages for users are short. Run: pytest tests/project/test_sentences.py"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 25
"""Words of a sentence. A command or a name in backticks is one word."""
NAMES = (
    "concepts tutorial datasets results images search cluster reliability serving tracking faq index speed "
    "architecture research/experiments research/feeds research/scale research/selection research/speed"
)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / f"docs/{name}.md" for name in NAMES.split()),
]


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page's paragraphs and lists, without tables, pictures and code blocks."""
    text = re.sub(r"```.*?```|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=- |\||#)", text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split()))
        if not words.startswith(("|", "!")):
            yield from re.split(r"(?<=[.!?:;])\**\s+(?=[A-Z*`'\"(\d])", re.sub(r"`[^`]*`", "`x`", words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_no_sentence_is_long(page: Path) -> None:
    found = list(sentences(page.read_text()))
    assert found
    assert [sentence for sentence in found if len(sentence.split()) > MOST] == []


def test_a_long_sentence_is_found() -> None:
    long = "Word " + "word " * (MOST - 1) + "word."
    assert list(sentences(f"# Title\n\nShort one. {long}\n\n| {long} |\n")) == ["# Title", "Short one.", long]
