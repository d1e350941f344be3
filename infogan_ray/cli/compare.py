"""infogan compare: finds the most typical of several models, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.evaluation.model_centrality import centralities, cross_scores
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.training.load_model import load


@dataclass
class Compare:
    models: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Three or more models (folders, runs STORAGE/NAME or checkpoints), or one search (its finished trials)."""
    json: bool = False
    """Print one JSON object on stdout."""


def compare(arguments: list[str]) -> int:
    given = parse(
        Compare,
        "compare",
        arguments,
        "Measure how much the codes of each model agree with those of the others (ModelCentrality), without labels.",
        [
            "compare runs/seed0 runs/seed1 runs/seed2",
            "compare runs/factors-search",
        ],
    )
    search = SearchDirectory(open_storage(given.models[0])) if len(given.models) == 1 else None
    paths = {path: path for path in given.models}
    if search is not None and search.exists:
        finished = sorted(row["trial"] for row in leaderboard(search) if row["state"] == "finished")
        paths = {f"trial {number}": search.trial(number).model.uri for number in finished}
    if len(paths) < 3:
        what = f"finished trials of {search.folder}" if search is not None and search.exists else "models"
        raise UserError(f"{what}: {len(paths)}; compare needs three or more different ones")
    found = compare_models({name: load(path, warn) for name, path in paths.items()})
    if given.json:
        print_json(found)
        return DONE
    central, scores = found["centrality"], np.array(found["scores"])
    order = sorted(enumerate(central), key=lambda item: (-central[item[1]], item[0]))
    rows = [
        [name, f"{central[name]:.3f}", f"{np.nanmean(scores[:, number]):.3f}", f"{np.nanmean(scores[number]):.3f}"]
        for number, name in order
    ]
    display.table("ModelCentrality", ["model", "centrality", "its Q on others", "others' Q on it"], rows)
    if search is not None and search.exists:
        number = found["pick"].removeprefix("trial ")
        print_result(f"next: infogan pull {shell_word(search.folder.uri)} --trial {number}")
    else:
        print_result(f"most central: {found['pick']}")
    return DONE


def compare_models(opened: dict[str, InfoGAN]) -> dict[str, Any]:
    """ModelCentrality of models by name: ``centrality``, ``pick`` (the most central one) and ``scores``.

    Copies of a model are left out. Raises UserError for fewer than three different models.
    """
    models: dict[str, InfoGAN] = {}
    for name, model in opened.items():
        for other, earlier in models.items():
            if str(model.source) == str(earlier.source):
                raise UserError(f"{name} is given twice; name each model once, because a model agrees with itself")
            if _same(model, earlier):
                warn(f"{name} is a copy of {other} and is ignored, because copies agree with each other")
                break
        else:
            models[name] = model
    if len(models) < 3:
        raise UserError(f"different models: {len(models)}; compare needs three or more")
    count = len(models)
    print_progress(f"{count * (count - 1)} comparisons of {count} models")
    scores = cross_scores(list(models.values()))
    central = centralities(scores)
    found = dict(zip(models, central.tolist(), strict=True))
    return {"centrality": found, "pick": list(models)[int(central.argmax())], "scores": scores.tolist()}


def _same(first: InfoGAN, second: InfoGAN) -> bool:
    return first.spec == second.spec and all(
        torch.equal(a.cpu(), b.cpu())
        for a, b in zip(first.discriminator.parameters(), second.discriminator.parameters(), strict=True)
    )
