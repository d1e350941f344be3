"""Containers of the project's image, run by runc as Kubernetes' ``restricted`` profile runs them.

The root is read-only, the user is the image's, and no capability is left. Only /tmp and the given folder can be
written.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINE = ("runc",)
FOLDERS = (("/proc", "proc", []), ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=64k"]))
SHARED_MEMORY = ["nosuid", "noexec", "nodev", "mode=1777", "size=1g"]
TEMPORARY = ["nosuid", "nodev", "mode=1777", "size=4g"]


def buildah(*words: str) -> str:
    return subprocess.run(["buildah", *words], check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Image:
    """An image that is mounted as a folder. ``user``: user and group of its processes."""

    root: str
    user: tuple[int, int]
    environment: tuple[str, ...]
    folder: str
    """Where its processes start."""


@contextlib.contextmanager
def mounted(name: str) -> Iterator[Image]:
    """Mount an image of buildah."""
    container = buildah("from", "--pull-never", name)
    try:
        config = json.loads(buildah("inspect", container))["OCIv1"]["config"]
        root = buildah("mount", container)
        user = int(config["User"])
        passwd = (line.split(":") for line in Path(root, "etc/passwd").read_text().splitlines())
        group = next(int(words[3]) for words in passwd if int(words[2]) == user)
        yield Image(root, (user, group), tuple(config["Env"]), config["WorkingDir"])
    finally:
        buildah("rm", container)


class Container:
    """A running container. ``network``: the name of a network namespace."""

    def __init__(
        self, image: Image, folder: Path, words: list[str], network: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """``folder``: both this machine and the container see it, under the same path. It also gets the log."""
        self.name = f"infogan-{os.getpid()}-{network or 'alone'}"
        self.variables = [*image.environment, *(f"{name}={value}" for name, value in (variables or {}).items())]
        self.log = folder / f"{self.name}.log"
        (bundle := folder / self.name).mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self._config(image, folder, words, network)))
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*ENGINE, "run", "--bundle", str(bundle), self.name], stdout=out, stderr=out
            )

    def _config(self, image: Image, folder: Path, words: list[str], network: str | None) -> dict[str, Any]:
        spaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        if network is not None:
            spaces.append({"type": "network", "path": f"/var/run/netns/{network}"})
        mounts = [
            *({"destination": at, "type": kind, "source": kind, "options": options} for at, kind, options in FOLDERS),
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": SHARED_MEMORY},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": TEMPORARY},
            {"destination": str(folder), "type": "bind", "source": str(folder), "options": ["rbind", "rw"]},
        ]
        user, group = image.user
        return {
            "ociVersion": "1.0.2",
            "hostname": network or "infogan",
            "process": {
                "user": {"uid": user, "gid": group}, "args": words, "env": self.variables, "cwd": image.folder,
                "noNewPrivileges": True, "capabilities": {},
            },
            "root": {"path": image.root, "readonly": True},
            "mounts": mounts,
            "linux": {"namespaces": spaces},
        }  # fmt: skip

    def run(self, *words: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """Run another command in the container."""
        command = [*ENGINE, "exec", *(f"--env={pair}" for pair in self.variables), self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)

    def kill(self, signal: str) -> None:
        """Send a signal to the container's first process."""
        subprocess.run([*ENGINE, "kill", self.name, signal], check=False, capture_output=True)

    def close(self) -> None:
        subprocess.run([*ENGINE, "delete", "--force", self.name], check=False, capture_output=True)
        self.process.wait(timeout=30)
