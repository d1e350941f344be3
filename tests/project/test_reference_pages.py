"""The pages of docs/reference/ say what the code says. Run: pytest tests/project/test_reference_pages.py"""

from __future__ import annotations

import pytest

from tests.project.reference_pages import FOLDER, PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_reference_page_is_up_to_date(page: str) -> None:
    assert (FOLDER / page).read_text() == PAGES[page](), "run: python -m tests.project.reference_pages"
