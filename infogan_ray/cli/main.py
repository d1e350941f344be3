"""The command line: finds the command, runs it, and turns its errors into one line and an exit code.

A command is a function in the module with the same name: ``infogan_ray.cli.pull.pull``. It is imported when it is
called, so that ``infogan --help`` is fast.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files

from infogan_ray import UserError
from infogan_ray.cli import train_help
from infogan_ray.cli.exit_codes import DONE, FAILED, INTERRUPTED, USAGE, Failed
from infogan_ray.cli.output import print_result, results_alone_on_stdout, warn

COMMANDS = {
    "train": "train an InfoGAN in this process, or with many workers on a cluster",
    "search": "search hyperparameters (λ, priors, ...) with Ray Tune",
    "submit": "start a run or a search as a job, on this machine or a cluster",
    "jobs": "show and stop submitted jobs: list, status, logs, stop",
    "runs": "list the runs of a storage folder, or one run's checkpoints",
    "report": "write report.html of a run or search: curves, pictures, the command to repeat it",
    "pull": "copy the best checkpoint of a run or search into a model folder, verified",
    "evaluate": "measure a model: bound per code, agreement with labels, image quality",
    "compare": "find the model that agrees most with the other models, without labels",
    "traverse": "make one picture per code that shows its effect",
    "sample": "make images with chosen codes",
    "encode": "predict the codes of real images",
    "name": "give codes names, such as slant for uniform0",
    "explore": "show a local web page with a slider per code, for a model or all runs of a storage folder",
    "serve": "run a model as a web service: /sample, /traverse, /encode, with a token",
    "export": "write a model as ONNX or torch graphs, for use without this package",
    "data": "fetch a dataset; inspect images; prepare them as shards; verify shards",
    "doctor": "check this machine or a cluster",
}
HELP_FLAGS = {"-h": "", "--help": "", "--help-all": "-all"}  # with the end of the file's name
DATA_ACTIONS = ("fetch", "inspect", "prepare", "verify")


def help_text() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"""usage: infogan COMMAND [...]

InfoGAN on Ray: learns interpretable factors of images without labels.

commands:
{commands}

example:
  infogan train --preset mnist_robust --name first
  infogan pull runs/first first-model
  infogan traverse first-model

'infogan COMMAND --help' explains one command.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 diverged, 130 interrupted."""


def stored_help(arguments: Sequence[str]) -> str:
    """The help of a command without other flags, from a file of ``help/``. Empty if there is none.

    The parser writes these files (``python -m tests.project.reference_pages``), and a test compares them. Each time
    would take seconds: a command's parser needs PyTorch and Ray.
    """
    *words, flag = arguments
    if flag not in HELP_FLAGS or not all(word.isalpha() for word in words):
        return ""
    file = files("infogan_ray.cli") / "help" / f"{'-'.join(words)}{HELP_FLAGS[flag]}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def main(argv: Sequence[str] | None = None) -> int:
    code = _main_code(list(sys.argv[1:] if argv is None else argv))
    from infogan_ray.distributed.cluster.ray_thread import waits_for_ray

    if waits_for_ray():  # a normal exit would crash
        with contextlib.suppress(OSError):  # stdout or stderr is closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def _main_code(arguments: list[str]) -> int:
    try:
        with results_alone_on_stdout():
            try:
                return _main(arguments)
            except KeyboardInterrupt:  # also while torch is imported
                return _error("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of the results has closed the pipe, as `| head` does
        return DONE
    except OSError as error:  # the last results cannot be written, for example to a full disk
        if error.strerror is None:
            raise
        return _error(f"stdout: {error.strerror}", FAILED)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_result(*help_text().splitlines())
        return DONE if arguments else USAGE
    if arguments[0] == "--version":
        from infogan_ray import __version__

        print_result(f"infogan-ray {__version__}")
        return DONE
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, [*COMMANDS, *DATA_ACTIONS], n=1)
        meant = f"data {close[0]}" if close and close[0] in DATA_ACTIONS else "".join(close)
        hint = f"did you mean '{meant}'?" if meant else f"valid are {', '.join(COMMANDS)}"
        return _error(f"unknown command '{name}'; {hint}", USAGE)
    if name == "train" and {"-h", "--help"} & {*arguments}:
        print_result(*train_help.SHORT.splitlines())
        return DONE
    if name == "train" and "--help-all" in arguments:
        arguments = ["train", "--help-all"]
    if text := stored_help(arguments):
        print_result(*text.splitlines())
        return DONE
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    """Run a command. User errors and known failures become one line. Other exceptions show their trace."""
    from infogan_ray.distributed.submission.backend import SubmissionFailed
    from infogan_ray.storage.file_system import StorageError
    from infogan_ray.storage.manifests import BadCheckpoint
    from infogan_ray.training.run_outcome import TrainingFailed

    try:
        command: int = getattr(import_module(f"infogan_ray.cli.{name}"), name)(arguments)
        return command
    except Failed as error:
        return _error(str(error), error.code)
    except (BadCheckpoint, StorageError, SubmissionFailed, TrainingFailed) as error:
        return _error(str(error), FAILED)
    except UserError as error:
        return _error(str(error), USAGE)
    except (MemoryError, RuntimeError) as error:
        from infogan_ray.training.out_of_memory import is_out_of_memory, request

        if not is_out_of_memory(error):
            raise
        return _error(f"out of memory: {request(error)}", FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:  # for example a full disk or a folder without permission
        if error.strerror is None:
            raise
        about = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _error(about + error.strerror, FAILED)


def _error(message: str, code: int) -> int:
    warn(message)
    return code
