"""The table of what a search over seeds has trained. Run: pytest tests/cli/test_seeds.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import main
from tests.web.test_search_report import make_search, run_trial


def test_the_seeds_of_a_search_are_told_by_what_else_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [{"seed": seed, "optimizer.lr_decay": decay} for decay in (0.0, 0.5) for seed in (0, 1, 2)]
    search = make_search(tmp_path, values)
    for number, (error, score) in enumerate([(0.2, 0.6), (0.4, 0.5), (0.1, 0.9), (0.05, 0.8)]):
        run_trial(search, number, "finished", {90: 0.9}, clustering_error=error, q_score=score, swd=20.0, nmi=0.5)
    run_trial(search, 4, "diverged", {10: 0.9})
    assert main(["--search", str(search.folder)]) == 0
    said = capsys.readouterr()
    one, other = (line for line in said.out.splitlines() if line.startswith("| optimizer"))
    assert one.startswith("| optimizer.lr_decay 0.0 | 3 | 23.33% | 40.00% | 10.00% | 0.500 |"), "mean, worst and best"
    assert other.startswith("| optimizer.lr_decay 0.5 | 2, 1 diverged | 5.00% |")
    assert "lr_decay 0.0: without labels (q_score) seed 2 is picked, 10.00%; the best is seed 2" in said.out
    assert said.err.count("left out") == 1 and "trial 5 (optimizer.lr_decay 0.5, seed 5)" in said.err


@pytest.mark.parametrize(
    "arguments, said", [(["--search", "nowhere/at-all"], "does not exist"), ([], "presets are not given")]
)
def test_nothing_to_tell_is_said_in_a_line(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        main(arguments)
