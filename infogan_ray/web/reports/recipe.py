"""The report's section about the recipe: rule, space, fixed values, differences between trials, commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from infogan_ray import UserError
from infogan_ray.searches.recipe import DECIDED
from infogan_ray.training.config import RunConfig
from infogan_ray.training.train_command import train_command
from infogan_ray.web.reports.findings import Findings, Trial
from infogan_ray.web.reports.markup import format_value, short_labels
from infogan_ray.web.reports.page import Cell, command, details, paragraph, table

# Fields that do not change how a trial is trained: locations, labels, threads and trackers.
LOCATION_FIELDS = ("name", "storage", "resume", "data_dir", "labels", "threads", "mlflow", "wandb")


def recipe(found: Findings) -> str:
    about = found.about
    rule = {key: value for key, value in about.items() if not isinstance(value, (dict, list)) and key != "version"}
    rule["rungs"] = ", ".join(f"{rung:,}" for rung in found.halving.rungs) + " images"
    parts = [paragraph(f"Made with infogan-ray {about.get('version', 'of an unknown version')}.")]
    parts += [paragraph(f"Changed while it ran: {change}") for change in about.get("changes") or []]
    left, right = ["<h3>Rule</h3>", pairs(rule)], []
    space = about.get("space")
    if isinstance(space, dict):
        right += ["<h3>Space</h3>", pairs({path: _domain(value) for path, value in space.items()})]
    configs = {trial.number: flatten_fields(trial.config) for trial in found.trials if trial.config}
    fields = list(dict.fromkeys(key for config in configs.values() for key in config))
    same = {key: next(iter(configs.values())).get(key) for key in fields if _is_alike(configs, key)}
    differing = [key for key in fields if key not in same and key not in LOCATION_FIELDS]
    fixed = {key: value for key, value in same.items() if key not in LOCATION_FIELDS}
    base = preset_fields(fixed.get("preset"))
    set_here = {
        key: value for key, value in fixed.items() if key not in DECIDED and (key not in base or base[key] != value)
    }
    if set_here:
        right += ["<h3>Fixed by the recipe, the same in all trials</h3>", pairs(set_here)]
    others = {key: value for key, value in fixed.items() if key not in set_here}
    right += ["<h3>Other fields</h3>", details("Fields that are the same in all trials", pairs(others))]
    parts.append(f'<div class="pair"><div>{"".join(left)}</div><div>{"".join(right)}</div></div>')
    if differing:
        rows = [[number, *(configs[number].get(key) for key in differing)] for number in sorted(configs)]
        names = short_labels(differing, ["trial"])
        heads: list[str | Cell] = ["trial", *(Cell(names[key], title=key) for key in differing)]
        parts += ["<h3>Differences between trials</h3>", table(heads, rows)]
    return "".join(parts) + "<h3>How to run it again</h3>" + _commands(found)


def flatten_fields(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted path. ``lambda_code`` stays one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key != "lambda_code":
            found |= flatten_fields(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _commands(found: Findings) -> str:
    folder = found.search.folder
    words = ["infogan", "search", "RECIPE.py", "--storage", folder.parent.uri, "--name", folder.name, "--resume"]
    text = "The search does not contain its recipe file. This command with that file continues an interrupted search. "
    text += "With another --name and without --resume, it starts a new search; the same seed gives the same values:"
    parts = [paragraph(text), command(shlex.join(words))]
    trial = found.best or next((trial for trial in found.trials if trial.config), None)
    if trial and (line := _train_command(trial)):
        trial_name = "the winner" if trial is found.best else f"trial {trial.number}"
        parts += [paragraph(f"This command trains {trial_name} alone:"), command(line)]
    return "".join(parts)


def _train_command(trial: Trial) -> str:
    """The command that trains this trial alone. Empty if this version cannot read its configuration."""
    fields = {key: value for key, value in trial.config.items() if key not in ("name", "storage", "resume")}
    try:
        return train_command(RunConfig.from_dict(fields, trial.label))
    except UserError:
        return ""


def preset_fields(name: Any) -> dict[str, Any]:
    """The fields of a preset. The defaults for a preset that this version does not have."""
    try:
        return flatten_fields(RunConfig(preset=name).to_dict())
    except UserError:
        return flatten_fields(RunConfig().to_dict())


def _is_alike(configs: Mapping[int, Mapping[str, Any]], key: str) -> bool:
    """Whether all trials have the same value of the same type. In Python, 1 equals True."""
    return len({repr(config.get(key)) for config in configs.values()}) == 1


def _domain(value: Any) -> str:
    return (
        ", ".join(f"{key} {format_value(part)}" for key, part in value.items())
        if isinstance(value, dict)
        else format_value(value)
    )


def pairs(fields: Mapping[str, Any]) -> str:
    return table(
        ["field", "value"], [[key, Cell(format_value(value))] for key, value in fields.items()], sortable=False
    )
