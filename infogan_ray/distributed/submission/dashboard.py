"""The dashboard of a Ray head over plain HTTP: whether it wants a token, and which versions it runs. No Ray."""

from __future__ import annotations

import http.client
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
from infogan_ray.distributed.submission.backend import Finding, SubmissionFailed

TIMEOUT_S = 10.0
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
OLDEST_PYTHON = (3, 11)
WANTS_A_TOKEN, WRONG_TOKEN = 401, 403
TOKEN_ADVICE = (
    f"set {TOKEN_PATH} to a file that holds it (or {TOKEN}); the cluster's owner has it from 'ray get-auth-token'"
)


def find_token() -> str | None:
    """The token, from where Ray reads it: $RAY_AUTH_TOKEN, the file $RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises UserError for a file that is named there and cannot be read.
    """
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
    """So that a token goes to the host that the user named, and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class Dashboard:
    """``http://HOST:8265``."""

    url: str

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        try:
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port
            valid = False
        if not valid:
            raise UserError(f"cluster is '{self.url.rpartition('@')[2]}'; valid is http://HOST:8265, of a Ray head")
        if parts.username or parts.password:
            raise UserError("cluster holds a user or password; a token goes into the environment, not into the URL")

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(self.host, None)}
        except (OSError, UnicodeError):
            return False
        return all(ipaddress.ip_address(address).is_loopback for address in found)

    def ask(self, path: str, token: str | None = None) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON; an empty dictionary for other content. Raises SubmissionFailed if nothing answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url.rstrip("/") + path, headers=headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise SubmissionFailed(
                f"cluster: nothing answers at {self.url} ({reason}); is the head up, and the tunnel or port-forward to "
                "its port 8265?"
            ) from None

    def versions(self) -> dict[str, str]:
        """{"ray": …, "python": …}. Raises SubmissionFailed without the cluster's token, and where no Ray answers."""
        token = find_token()
        status, about = self.ask("/api/version", token)
        if status == WANTS_A_TOKEN:
            raise SubmissionFailed(f"cluster: {self.url} wants a token, and none is set here; {TOKEN_ADVICE}")
        if status == WRONG_TOKEN:
            raise SubmissionFailed(f"cluster: {self.url} refuses the token that is set here; {TOKEN_ADVICE}")
        if status != 200 or "ray_version" not in about:
            raise SubmissionFailed(f"cluster: what answers at {self.url} is not a Ray head (HTTP {status})")
        _, more = self.ask("/api/v0/cluster_metadata", token)
        data = more.get("data", more)
        return {
            "ray": about["ray_version"],
            "python": str(data.get("pythonVersion") or data.get("python_version", "")),
        }


def compare_versions(versions: dict[str, str]) -> list[str]:
    """A line for each difference that matters. Raises SubmissionFailed if the cluster cannot run this code."""
    ours, theirs = version("ray"), versions["ray"]
    if _minor(ours) != _minor(theirs):
        raise SubmissionFailed(
            f"cluster: it runs Ray {theirs}, and this code needs {ours}, since minor releases change Ray's "
            f"interfaces; take a cluster with Ray {_minor(ours)} (the Dockerfile makes an image with it)"
        )
    python = versions["python"]
    if python and tuple(int(part) for part in re.findall(r"\d+", python)[:2]) < OLDEST_PYTHON:
        raise SubmissionFailed(f"cluster: it runs Python {python}, and this code needs 3.11 or later")
    if python and _minor(python) != _minor(platform.python_version()):
        return [
            f"the cluster runs Python {python}, this machine {platform.python_version()}; the job uses the cluster's"
        ]
    return []


def examine(dashboard: Dashboard) -> list[Finding]:
    """Whether a cluster runs code for everybody, and whether it can run this code.

    Raises SubmissionFailed if nothing answers.
    """
    status, _ = dashboard.ask("/api/version")
    findings = []
    if status == WANTS_A_TOKEN:
        findings.append(Finding("ok", "access", "closed: without the cluster's token it answers 401"))
    elif status == 200:
        local = dashboard.is_loopback
        reach = "all who are on the head's machine" if local else f"everybody who can reach {dashboard.url}"
        risk = (
            f"OPEN: it asks for no token. This port takes jobs, so {reach} can run any command as Ray's user, with "
            "its files, GPUs and cloud credentials (CVE-2023-48022). Restart Ray with RAY_AUTH_MODE=token; keep the "
            "port inside the cluster (cluster/README.md)"
        )
        findings.append(Finding("bad", "access", risk))
    else:
        findings.append(Finding("bad", "access", f"answers HTTP {status}, which is not the answer of a Ray head"))
    if dashboard.url.startswith("http://") and not dashboard.is_loopback:
        risk = (
            "none: others on the network can read tokens and code; go through a tunnel "
            "(ssh -L 8265:127.0.0.1:8265 HEAD, kubectl port-forward), or https"
        )
        findings.append(Finding("bad", "encryption", risk))
    if status == WANTS_A_TOKEN and find_token() is None:
        findings.append(Finding("note", "token", f"none is set here: {TOKEN_PATH} or {TOKEN} is where it is read from"))
        return findings
    try:
        versions = dashboard.versions()
    except SubmissionFailed as error:
        return [*findings, Finding("bad", "token", str(error))]
    try:
        differences = compare_versions(versions)
    except SubmissionFailed as error:
        return [*findings, Finding("bad", "versions", str(error))]
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [*findings, Finding("note" if differences else "ok", "versions", "; ".join([text, *differences]))]


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
