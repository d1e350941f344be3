"""Do the scores of a search agree with labels that it does not use? What would early stopping have missed?

    infogan search tuning/mnist.py --trials 12 --name full --no-early-stopping     # 40 minutes on two cores
    python -m benchmarks.selection runs/full

It prints Spearman's rank correlations over the finished trials. For a search without early stopping it also simulates
early stopping, which depends only on the scores at the rungs. Those are in events.json.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from infogan_ray.evaluation.metrics import SORTING, lower_is_better, of_group
from infogan_ray.evaluation.unsupervised_metrics import rank_correlation
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import RULES, finite, winner
from infogan_ray.storage.file_system import open_storage
from infogan_ray.web.reports.decisions import replay_with_stopping


@dataclass
class Selection:
    """Compare scores and rules with the clustering error."""

    search: tyro.conf.Positional[str]
    """STORAGE/SEARCH."""


def main() -> int:
    search = SearchDirectory(open_storage(tyro.cli(Selection).search))
    about, board = search.description(), leaderboard(search)
    rows = [row for row in board if row["state"] == "finished" and finite(row["clustering_error"])]
    print(f"{len(rows)} finished trials\n\n| score | with the clustering error | with NMI |\n|---|---|---|")
    for score in ("mi_fraction", "mi_bound", "swd", *(m.name for m in of_group(SORTING)), "agreement"):
        scored = [row for row in rows if finite(row[score])]
        mine = [-row[score] if lower_is_better(score) else row[score] for row in scored]
        by = [
            rank_correlation(mine, [sign * row[name] for row in scored])
            for name, sign in (("clustering_error", -1), ("nmi", 1))
        ]
        print(f"| {score} | {by[0]:.2f} | {by[1]:.2f} |")
    errors = {row["trial"]: row["clustering_error"] for row in rows}
    best = min(errors, key=lambda trial: errors[trial])
    print(f"\nlowest clustering error: trial {best}, {errors[best]:.1%}\n")
    print("| rule | without early stopping | with early stopping |\n|---|---|---|")
    halving = replay_with_stopping(search.halving(), about["reduction"])
    left = [row for row in rows if halving.stopped_at(row["trial"]) is None]
    for rule in RULES:
        picks = [winner(candidates, about["metric"], rule) for candidates in (rows, left)]
        cells = [f"trial {row['trial']}, {row['clustering_error']:.1%}" if row else "none" for row in picks]
        print(f"| {rule} | {' | '.join(cells)} |")
    count = len(about["trials"])
    seen = sum(halving.stopped_at(trial) or about["budget"] for trial in range(count))
    print(
        f"\nby {about['metric']}, early stopping lets {len(left)} of {count} trials finish and uses "
        f"{seen:,} of {count * about['budget']:,} images, {1 - seen / (count * about['budget']):.0%} fewer"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
