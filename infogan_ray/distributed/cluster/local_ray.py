"""What a Ray on this machine needs: short paths of sockets, a token, and workers that import this program."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path

import ray
import ray.exceptions

import infogan_ray
from infogan_ray import UserError
from infogan_ray.distributed.cluster.auth_check import AUTH_MODE
from infogan_ray.distributed.submission.dashboard import DEFAULT_TOKEN_PATH, TOKEN, TOKEN_PATH
from infogan_ray.storage.visible_text import is_utf8

# The longest path of a socket that Ray makes in its temporary folder, and what the system allows for a whole path.
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
PATH_BYTES = 103 if sys.platform == "darwin" else 107
PROBE_TIMEOUT_S = 60.0

START_FOLDER = Path(infogan_ray.__file__).parents[1]
"""Ray puts the current folder first on its workers' search path for modules. With this folder, the workers import the
driver's own package, and no file of the user that has the name of a module."""


def check_temporary_folder() -> None:
    """Raises UserError if Ray's temporary folder has a path that is too long for its sockets, or is another user's."""
    variables = ("RAY_TMPDIR",) if sys.platform == "darwin" else ("RAY_TMPDIR", "TMPDIR")
    variable = next((name for name in variables if name in os.environ), None)
    folder, most = os.environ.get(variable or "", "/tmp"), PATH_BYTES - len(SOCKET)
    if (length := len(os.fsencode(folder))) > most:
        raise UserError(
            f"{variable} is '{folder}', which has {length} bytes; Ray's sockets leave room for {most}; "
            "set RAY_TMPDIR to a shorter folder, for example RAY_TMPDIR=/tmp"
        )
    wanted = Path(folder).absolute() / "ray"
    used = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not os.access(used, os.W_OK | os.X_OK) or not used.is_dir():
        raise UserError(
            f"Ray cannot write to its temporary folder {used}; another user may have made it; "
            "set RAY_TMPDIR to a folder of your own with a short path, for example RAY_TMPDIR=~/t"
        )


def check_command_line() -> None:
    """Raises UserError if an argument is not UTF-8: Ray records the command line, and reads it as UTF-8."""
    if bad := next((word for word in sys.orig_argv if not is_utf8(word)), None):
        raise UserError(
            f"'{bad}' is not UTF-8, and with several workers or a cluster Ray reads the command line; name a symbolic "
            "link to it, or use one worker"
        )


def home_problem() -> str | None:
    """Why nothing can be written to the home folder; None if it can."""
    try:
        home = Path.home()
    except RuntimeError:
        return "HOME is not set"
    if not home.is_dir():
        return f"HOME is {home}, which is not a folder"
    return None if os.access(home, os.W_OK) else f"HOME is {home}, where nothing can be written"


def create_token() -> None:
    """Create the token of this machine's clusters if there is none. Other users could read a file that Ray creates.

    It is set in the environment if nothing can be written to the home folder.
    """
    disabled = os.environ.get(AUTH_MODE, "token").lower() != "token"
    if disabled or os.environ.get(TOKEN, "").strip() or os.environ.get(TOKEN_PATH):
        return
    if home_problem() is not None:
        os.environ[TOKEN] = secrets.token_hex(32)
        return
    path = Path(DEFAULT_TOKEN_PATH).expanduser()
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):  # there is one, or another process was faster
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(file, secrets.token_hex(32).encode())
        os.close(file)


def check_workers() -> None:
    """Check that a local Ray's processes start and import this program. Raises UserError, in one line.

    ``machines.check_files`` checks the machines of a cluster.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    probe = ray.remote(num_cpus=0, max_retries=0)(package_folder)
    try:
        found = ray.get(probe.remote(), timeout=PROBE_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"Ray's processes cannot run infogan_ray: {last}; see 'infogan doctor'") from None
    if found != package_folder():
        raise UserError(f"Ray's processes import another infogan_ray: {found}, and this is {package_folder()}")


def package_folder() -> str:
    """The folder of the package in the calling process."""
    return str(Path(infogan_ray.__file__).resolve().parent)
