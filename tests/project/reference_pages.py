"""Write the pages of docs/reference/ from the code: settings, commands and the Python API. Also each command's help.

Run: python -m tests.project.reference_pages. A test compares the files with the code.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import infogan_ray
from infogan_ray.cli.main import COMMANDS, DATA_ACTIONS, help_text
from infogan_ray.training.config import RunConfig

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
HELP_FOLDER = Path(__file__).parents[2] / "infogan_ray" / "cli" / "help"
MADE = "<!-- Made by python -m tests.project.reference_pages from the code. -->\n"


GROUPS = {
    "data": "preset data data_dir image_size channels labels max_bad pixel_range fit hold_out feed",
    "model": "codes",
    "run": "steps epochs batch_size seed resume accept_changes log_every profile",
    "resources": "workers threads device gpus_per_worker placement wait resize_every precision cuda_graph",
    "storage": "storage name checkpoint_every keep max_missed_checkpoints metric",
    "tracking": "mlflow wandb",
}
"""The groups of RunConfig's own settings. Its sections, such as network, are groups too."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its flag, the words for its type, its default as text (empty for none), and its docstring."""

    flag: str
    kind: str
    default: str
    text: str


def settings() -> Iterator[tuple[str, str, list[Setting]]]:
    """Title, first lines and settings of each group. Raises KeyError for a setting without docstring or group."""
    (_, _, own), *others = ((prefix, about, _settings(kind, prefix)) for prefix, kind, about in sections(RunConfig))
    by_name = {setting.flag.removeprefix("--").replace("-", "_"): setting for setting in own}
    if {*by_name} != {name for names in GROUPS.values() for name in names.split()}:
        raise KeyError(f"GROUPS differs from the settings of a run: {', '.join(by_name)}")
    for title, names in GROUPS.items():
        yield title, "", [by_name[name] for name in names.split()]
    for prefix, about, found in others:
        yield prefix.rstrip("."), about, found


def _settings(kind: type, prefix: str) -> list[Setting]:
    hints, docs, found = typing.get_type_hints(kind, include_extras=True), field_docs(kind), []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        value, text = hints[field.name], docs.get(field.name, "")
        if typing.get_origin(value) is typing.Annotated:
            value, *notes = typing.get_args(value)
            text = text or next(note.documentation for note in notes if hasattr(note, "documentation"))
        if not text:
            raise KeyError(f"{prefix}{field.name} has no docstring")
        default = field.default_factory() if callable(field.default_factory) else field.default
        shown = "" if default is None or default == {} else str(default)
        found.append(Setting(f"--{prefix}{field.name}".replace("_", "-"), kind_text(value), shown, line(text)))
    return found


def configuration() -> str:
    """A table for each group of settings."""
    tables = [
        f"{MADE}# Settings of a run\n\nFlags of `infogan train`, and fields of a CONFIG.yaml. "
        "Flags override CONFIG.yaml, which overrides the preset."
    ]
    for title, about, found in settings():
        rows = [
            f"| `{s.flag}` | {s.kind} | {f'`{s.default}`' if s.default else ''} | {escaped(s.text)} |" for s in found
        ]
        head = f"\n## {title}\n" + (f"\n{escaped(about)}\n" if about else "")
        tables.append("\n".join([head, "| flag | value | default | meaning |\n|---|---|---|---|", *rows]))
    return "\n".join(tables) + "\n"


def all_settings() -> str:
    """The text of ``infogan train --help-all``."""
    lines = [
        "usage: infogan train [CONFIG.yaml] [OPTIONS]", "",
        "Every setting, by group. Flags override CONFIG.yaml, which overrides the preset.",
        "Also --dry-run, --measure, --json and --start-or-resume: see 'infogan train --help'.",
        "What is on or off is written as --profile or --no-profile.", "",
        "examples:", "  infogan train --preset mnist_robust --name first", "  infogan train CONFIG.yaml --steps 10_000",
    ]  # fmt: skip
    for title, about, found in settings():
        lines += ["", title, *([wrapped(about, 2)] if about else [])]
        for setting in found:
            default = f" (default: {setting.default})" if setting.default else ""
            lines += [f"  {setting.flag}  {setting.kind}", wrapped(f"{setting.text}{default}", 6)]
    return "\n".join(lines)


def wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, 80, initial_indent=" " * indent, subsequent_indent=" " * indent)


def sections(kind: type, prefix: str = "") -> Iterator[tuple[str, type, str]]:
    """Prefix, dataclass and first lines of documentation of a configuration and its sections."""
    yield prefix, kind, line(inspect.getdoc(kind) or "")
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from sections(typing.cast(type, hint), f"{prefix}{name}.")


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                found[field.target.id] = ast.literal_eval(doc.value)
    return found


def kind_text(hint: Any) -> str:
    """A type in words: choices, "on or off", a number, text, or pairs. Raises KeyError for a type without words."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(kind_text(option) for option in typing.get_args(hint) if option is not types.NoneType)
    words = {bool: "on or off", int: "whole number", float: "number", str: "text", dict: "names and numbers"}
    return words[typing.get_origin(hint) or hint]


def line(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


def commands() -> str:
    """What ``--help`` prints, for every command. ``infogan train`` has its settings in configuration()."""
    parts = [f"{MADE}# Commands\n\n`infogan train` has one flag per setting: [Settings of a run](configuration.md)."]
    for name in ["", *(name for name in HELP if name != "train-all")]:
        shown = help_of(name) if name else help_text()
        parts.append(f"\n## infogan {name.replace('-', ' ')}\n\n```\n{shown}\n```".replace("infogan \n", "infogan\n"))
    return "\n".join(parts) + "\n"


HELP = {
    name.replace(" ", "-"): [*name.split(), "--help"]
    for name in (*(n for n in COMMANDS if n not in ("train", "data")), *(f"data {action}" for action in DATA_ACTIONS))
} | {"train-all": ["train", "--help-all"], "data": ["data", "--help"]}
"""The arguments for each file of infogan_ray/cli/help/, by the file's name."""


def help_of(name: str) -> str:
    """The help that a command's parser prints, for a width of 80 characters. Every setting of a run by group."""
    if name == "train-all":
        return all_settings()
    command, *words = HELP[name]
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "80"
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            getattr(import_module(f"infogan_ray.cli.{command}"), command)(words)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(text.rstrip() for text in shown.getvalue().splitlines())


def python() -> str:
    """Signature and docstring of each public name, and of the public methods of InfoGAN."""
    parts = [f"{MADE}# Python\n\n`import infogan_ray` loads neither torch nor Ray until one of these names is used."]
    for name in infogan_ray.__all__:
        found = getattr(infogan_ray, name)
        if name.startswith("_"):
            continue
        parts.append(entry(f"infogan_ray.{name}", found, "##"))
        if name == "InfoGAN":
            methods = [method for method in vars(found) if not method.startswith("_")]
            parts += [entry(f"InfoGAN.{method}", vars(found)[method], "###") for method in methods]
    return "\n".join(parts) + "\n"


def entry(name: str, found: Any, level: str) -> str:
    settings = dataclasses.is_dataclass(found) or (inspect.isclass(found) and issubclass(found, Exception))
    signature = ""
    if not settings and not isinstance(found, property):
        signature = str(inspect.signature(getattr(found, "__func__", found)))
        signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)  # annotations
        signature = re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", signature)  # defaults
    return f"\n{level} {name}\n\n```python\n{name.rpartition('.')[2]}{signature}\n```\n\n{inspect.getdoc(found) or ''}"


PAGES = {"configuration.md": configuration, "commands.md": commands, "python.md": python}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    HELP_FOLDER.mkdir(exist_ok=True)
    for page, make in PAGES.items():
        (FOLDER / page).write_text(make(), encoding="utf-8")
    for name in HELP:
        (HELP_FOLDER / f"{name}.txt").write_text(help_of(name) + "\n", encoding="utf-8")
