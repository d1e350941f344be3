"""The command line: finds the command, runs it, and turns its errors into one line and an exit code.

Nothing heavy is imported here, so that ``infogan --help`` answers at once.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence

from infogan_ray import UserError

COMMANDS = {
    "train": "train an InfoGAN: in this process, or with many workers on a cluster",
    "search": "search λ and the priors under Ray Tune",
    "submit": "hand a run or a search to a cluster, and close the lid",
    "jobs": "what was submitted: list, status, logs, stop",
    "runs": "list the runs of a storage folder, or one run's checkpoints",
    "report": "write report.html of a run or search: curves, pictures, how to run it again",
    "pull": "fetch the best checkpoint of a run as a model folder, verified",
    "evaluate": "bound per code and agreement with labels",
    "compare": "of several models the one that the others agree with most, without labels",
    "traverse": "one picture per code: what it does",
    "sample": "images with chosen codes",
    "encode": "what the recognition network says of real images",
    "name": "give codes names: slant for uniform0",
    "explore": "a local page with a slider per code; of a storage folder, all its runs",
    "serve": "a model as a web service: /sample, /traverse, /encode, with a token",
    "export": "a model as ONNX or torch graphs, for use without this package",
    "data": "fetch a named dataset; inspect images; prepare them as shards, and verify those",
    "doctor": "what this machine can do, and what is wrong",
}
HOMES = {  # modules of more than one command
    "runs": "storage", "report": "storage", "pull": "storage", "jobs": "submit", "data": "data_and_doctor",
    "doctor": "data_and_doctor", "evaluate": "model", "traverse": "model", "sample": "model", "encode": "model",
    "name": "model", "export": "model",
}  # fmt: skip
OF_DATA = ("fetch", "inspect", "prepare", "verify")  # which need the word data before them
DONE, FAILED, USAGE, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


def help_text() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"""usage: infogan COMMAND [...]

InfoGAN on Ray: interpretable factors out of images without labels.

commands:
{commands}

example:
  infogan train --preset mnist --steps 5000 --name first
  infogan pull runs/first first-model
  infogan sample first-model --set cat0=3 -o threes.png

'infogan COMMAND --help' explains one command.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 diverged, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    _write_what_the_terminal_can()
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # also while torch is imported
        return _error("interrupted", INTERRUPTED)


def _write_what_the_terminal_can() -> None:
    """Where the output is not UTF-8 what it lacks becomes a question mark, and not the end of the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return DONE if arguments else USAGE
    if arguments[0] == "--version":
        from infogan_ray import __version__

        print(f"infogan-ray {__version__}")
        return DONE
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, [*COMMANDS, *OF_DATA], n=1)
        meant = f"data {close[0]}" if close and close[0] in OF_DATA else "".join(close)
        hint = f"did you mean '{meant}'?" if meant else f"valid are {', '.join(COMMANDS)}"
        return _error(f"unknown command '{name}'; {hint}", USAGE)
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    from importlib import import_module

    from infogan_ray.cli.flags import Failed
    from infogan_ray.storage.checkpoints import BadCheckpoint
    from infogan_ray.storage.file_system import StorageError

    try:
        command: int = getattr(import_module(f"infogan_ray.cli.{HOMES.get(name, name)}"), name)(arguments)
        return command
    except Failed as error:
        return _error(str(error), error.code)
    except (BadCheckpoint, StorageError) as error:
        return _error(str(error), FAILED)
    except UserError as error:
        return _error(str(error), USAGE)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:  # a full disk, a folder that may not be read or written
        if error.strerror is None:
            raise
        about = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _error(about + error.strerror, FAILED)


def _error(message: str, code: int) -> int:
    print(f"infogan: {message}", file=sys.stderr)
    return code
