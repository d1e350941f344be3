"""A Ray head's HTTP door: where it is, whether it opens without a token, and which versions stand behind it. No Ray."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infogan_ray import UserError
from infogan_ray.distributed.submission.submitter import SubmissionFailed

ANSWERS_WITHIN_S = 10.0
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
LEAST_PYTHON = (3, 11)
WANTS_A_TOKEN, WRONG_TOKEN = 401, 403
HOW = f"set {TOKEN_PATH} to a file that holds it (or {TOKEN}); the cluster's owner has it from 'ray get-auth-token'"


def find_token() -> str | None:
    """The token as Ray itself looks for it: environment, file named there, ~/.ray/auth_token. Raises UserError."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    named = os.environ.get(TOKEN_PATH)
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None
    except OSError as error:
        if named:
            raise UserError(f"{TOKEN_PATH} is '{named}', which cannot be read ({error.strerror})") from None
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to the host that the user named and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class Dashboard:
    """``http://HOST:8265``."""

    url: str

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"cluster is '{self.url}'; valid are http://HOST:8265 (a Ray head), kuberay and local")
        if parts.username or parts.password:
            raise UserError("cluster holds a user or password; a token goes into the environment, not into the URL")

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(self.host, None)}
        except OSError:
            return False
        return all(ipaddress.ip_address(address).is_loopback for address in found)

    def ask(self, path: str, token: str | None = None) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON (empty if it is none). Raises SubmissionFailed if nobody answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url.rstrip("/") + path, headers=headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=ANSWERS_WITHIN_S) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise SubmissionFailed(
                f"cluster: nothing answers at {self.url} ({reason}); is the head up, and the tunnel or port-forward to "
                "its port 8265?"
            ) from None

    def versions(self) -> dict[str, str]:
        """{"ray": …, "python": …} of the cluster. Raises SubmissionFailed for a closed door, and where no Ray is."""
        token = find_token()
        status, about = self.ask("/api/version", token)
        if status == WANTS_A_TOKEN:
            raise SubmissionFailed(f"cluster: {self.url} wants a token, and there is none here; {HOW}")
        if status == WRONG_TOKEN:
            raise SubmissionFailed(f"cluster: {self.url} does not take the token that is set here; {HOW}")
        if status != 200 or "ray_version" not in about:
            raise SubmissionFailed(f"cluster: what answers at {self.url} is no Ray head (HTTP {status})")
        _, more = self.ask("/api/v0/cluster_metadata", token)
        data = more.get("data", more)
        return {
            "ray": about["ray_version"],
            "python": str(data.get("pythonVersion") or data.get("python_version", "")),
        }


def compare(versions: dict[str, str]) -> list[str]:
    """Lines about versions that differ. Raises SubmissionFailed where the cluster's cannot run this code."""
    ours, theirs = version("ray"), versions["ray"]
    if _minor(ours) != _minor(theirs):
        raise SubmissionFailed(
            f"cluster: it runs Ray {theirs}, and this code is made for {ours}; each minor release has moved Ray's "
            f"interfaces: take a cluster with Ray {_minor(ours)} (the Dockerfile makes an image with it)"
        )
    python = versions["python"]
    if python and tuple(int(part) for part in re.findall(r"\d+", python)[:2]) < LEAST_PYTHON:
        raise SubmissionFailed(f"cluster: it runs Python {python}, and this code needs 3.11 or later")
    if python and _minor(python) != _minor(platform.python_version()):
        return [
            f"the cluster runs Python {python}, this machine {platform.python_version()}; the job uses the cluster's"
        ]
    return []


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
