"""The command line: finds the command, runs it, and turns its errors into one line and an exit code.

A command is the function of its name in the module of its name: ``infogan_ray.cli.pull.pull``. It is imported when it
is called, so that ``infogan --help`` answers at once.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE, FAILED, INTERRUPTED, USAGE, Failed

COMMANDS = {
    "train": "train an InfoGAN: one worker here or on a cluster, or many",
    "search": "search λ and the priors under Ray Tune",
    "submit": "hand a run or a search to a cluster, which runs it without this terminal",
    "jobs": "jobs that were submitted: list, status, logs, stop",
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
DATA_ACTIONS = ("fetch", "inspect", "prepare", "verify")


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
    _replace_unencodable()
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # also while torch is imported
        return _error("interrupted", INTERRUPTED)


def _replace_unencodable() -> None:
    """Where the output is not UTF-8, characters that it lacks become question marks instead of an exception."""
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
        close = difflib.get_close_matches(name, [*COMMANDS, *DATA_ACTIONS], n=1)
        meant = f"data {close[0]}" if close and close[0] in DATA_ACTIONS else "".join(close)
        hint = f"did you mean '{meant}'?" if meant else f"valid are {', '.join(COMMANDS)}"
        return _error(f"unknown command '{name}'; {hint}", USAGE)
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    """One line for what the user did wrong and for the failures that have a name. Other exceptions show their trace."""
    from infogan_ray.distributed.submission.backend import SubmissionFailed
    from infogan_ray.storage.file_system import StorageError
    from infogan_ray.storage.manifests import BadCheckpoint

    try:
        command: int = getattr(import_module(f"infogan_ray.cli.{name}"), name)(arguments)
        return command
    except Failed as error:
        return _error(str(error), error.code)
    except (BadCheckpoint, StorageError, SubmissionFailed) as error:
        return _error(str(error), FAILED)
    except UserError as error:
        return _error(str(error), USAGE)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:  # the system refuses: a full disk, a folder without permission
        if error.strerror is None:
            raise
        about = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _error(about + error.strerror, FAILED)


def _error(message: str, code: int) -> int:
    print(f"infogan: {message}", file=sys.stderr)
    return code
