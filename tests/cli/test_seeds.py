"""The table of the runs of a search over seeds. Run: pytest tests/cli/test_seeds.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import main
from tests.web.test_search_report import make_search, run_trial


def test_seeds_of_a_search_are_grouped_by_their_other_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [{"seed": seed, "optimizer.lr_decay": decay} for decay in (0.0, 0.5) for seed in (0, 1, 2)]
    search = make_search(tmp_path, values)
    for number, (error, score) in enumerate([(0.2, 0.6), (0.4, 0.5), (0.1, 0.9), (0.05, 0.8)]):
        run_trial(search, number, "finished", {90: 0.9}, clustering_error=error, q_score=score, swd=20.0, nmi=0.5)
    run_trial(search, 4, "diverged", {10: 0.9})
    assert main(["--search", str(search.folder)]) == 0
    output = capsys.readouterr()
    first, second = (line for line in output.out.splitlines() if line.startswith("| optimizer"))
    assert first.startswith("| optimizer.lr_decay 0.0 | 3 | 23.33% | 40.00% | 10.00% | 0.500 |"), "mean, worst and best"
    assert second.startswith("| optimizer.lr_decay 0.5 | 2, 1 diverged | 5.00% |")
    assert "lr_decay 0.0: without labels (q_score) seed 2 is picked, 10.00%; the best is seed 2" in output.out
    assert output.err.count("left out") == 1 and "trial 5 (optimizer.lr_decay 0.5, seed 5)" in output.err


@pytest.mark.parametrize(
    "arguments, message", [(["--search", "nowhere/at-all"], "does not exist"), ([], "presets are not given")]
)
def test_missing_results_are_reported_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)
