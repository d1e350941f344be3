"""Requests to a Ray head's dashboard over HTTP: whether it needs a token, and its versions. No Ray."""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infogan_ray import UserError
from infogan_ray.distributed.submission.backend import Finding, SubmissionFailed
from infogan_ray.storage import proxies

TIMEOUT_S = 10.0
TOKEN, TOKEN_PATH, DEFAULT_TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"
MIN_PYTHON = (3, 11)
TOKEN_REQUIRED, WRONG_TOKEN = 401, 403
TOKEN_ADVICE = (
    f"set {TOKEN_PATH} to a file with the token (or set {TOKEN}); the cluster's owner gets it by 'ray get-auth-token'"
)


def find_token() -> str | None:
    """The token from Ray's sources: $RAY_AUTH_TOKEN, the file $RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; None without.

    Raises UserError if the file $RAY_AUTH_TOKEN_PATH cannot be read.
    """
    if token := os.environ.get(TOKEN, "").strip():
        return token
    named = os.environ.get(TOKEN_PATH)
    try:
        return token_path().read_text().strip() or None
    except OSError as error:
        if named:
            raise UserError(f"{TOKEN_PATH} is '{named}', which cannot be read ({error.strerror})") from None
        return None


def token_path() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or DEFAULT_TOKEN_PATH).expanduser()


def readable_token() -> Finding | None:
    """What ``doctor`` says about a token file that other users of this machine can read."""
    path = token_path()
    if os.environ.get(TOKEN, "").strip() or not path.is_file() or not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return None
    return Finding("bad", "token file", f"other users of this machine can read {path}; run: chmod 600 {path}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, so that a token is sent only to the host that the user named."""

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
        except ValueError:  # an invalid port
            valid = False
        if not valid:
            raise UserError(f"cluster is '{self.url.rpartition('@')[2]}'; give a Ray head's http://HOST:8265")
        if parts.username or parts.password:
            raise UserError("cluster contains a user or password; set a token in the environment, not in the URL")

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        return proxies.is_loopback(self.host)

    @property
    def sends_in_clear(self) -> bool:
        """Whether others on the network can read what is sent."""
        return self.url.startswith("http://") and not self.is_loopback

    @cached_property
    def route(self) -> proxies.Route:
        """Direct or through a proxy. Ray's own client in this process takes the same one."""
        return proxies.settle_route(self.url)

    def request(self, path: str, token: str | None = None) -> tuple[int, dict[str, Any]]:
        """Returns the HTTP status and the JSON, {} for other content. Raises SubmissionFailed if nothing answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url.rstrip("/") + path, headers=headers)
        proxy = urllib.request.ProxyHandler({"https": self.route.proxy} if self.route.proxy else {})
        try:
            with urllib.request.build_opener(_NoRedirect, proxy).open(request, timeout=TIMEOUT_S) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            remark = f"; {self.route.remark}" if self.route.remark else ""
            raise SubmissionFailed(
                f"cluster: nothing answers at {self.url} ({reason}); check that the head runs, and the tunnel or "
                f"port-forward to its port 8265{remark}"
            ) from None

    def versions(self) -> dict[str, str]:
        """{"ray": …, "python": …}. Raises SubmissionFailed without the right token, or if no Ray head answers."""
        token = find_token()
        status, about = self.request("/api/version", token)
        if status == TOKEN_REQUIRED:
            raise SubmissionFailed(f"cluster: {self.url} needs a token, and none is set; {TOKEN_ADVICE}")
        if status == WRONG_TOKEN:
            raise SubmissionFailed(f"cluster: {self.url} refuses the token; {TOKEN_ADVICE}")
        if status != 200 or "ray_version" not in about:
            raise SubmissionFailed(f"cluster: {self.url} is not a Ray head (HTTP {status})")
        _, more = self.request("/api/v0/cluster_metadata", token)
        data = more.get("data", more)
        return {
            "ray": about["ray_version"],
            "python": str(data.get("pythonVersion") or data.get("python_version", "")),
        }


def compare_versions(versions: dict[str, str]) -> list[str]:
    """A line for each difference. Raises SubmissionFailed if the cluster cannot run this code."""
    ours, theirs = version("ray"), versions["ray"]
    if _minor(ours) != _minor(theirs):
        raise SubmissionFailed(
            f"cluster: it runs Ray {theirs}, but this code needs {ours}, because minor releases change Ray's "
            f"interfaces; use a cluster with Ray {_minor(ours)} (the Dockerfile builds an image with it)"
        )
    python = versions["python"]
    if python and tuple(int(part) for part in re.findall(r"\d+", python)[:2]) < MIN_PYTHON:
        raise SubmissionFailed(f"cluster: it runs Python {python}, but this code needs 3.11 or later")
    ours_and_theirs = [("Ray", ours, theirs), ("Python", platform.python_version(), python)]
    return [
        f"the cluster runs {what} {theirs}, this machine {ours}; the job uses the cluster's"
        for what, ours, theirs in ours_and_theirs
        if theirs and ours != theirs
    ]


def examine(dashboard: Dashboard) -> list[Finding]:
    """Check a cluster's access, encryption, token and versions.

    Raises SubmissionFailed if nothing answers.
    """
    status, _ = dashboard.request("/api/version")
    findings = []
    if status == TOKEN_REQUIRED:
        findings.append(Finding("ok", "access", "closed: it refuses requests without the token (HTTP 401)"))
    elif status == 200:
        local = dashboard.is_loopback
        reach = "every user of the head's machine" if local else f"anyone who reaches {dashboard.url}"
        risk = (
            f"OPEN: it needs no token. This port accepts jobs, so {reach} can run any command as Ray's user, with "
            "its files, GPUs and cloud credentials (CVE-2023-48022). Restart Ray with RAY_AUTH_MODE=token; keep the "
            "port inside the cluster (cluster/README.md)"
        )
        findings.append(Finding("bad", "access", risk))
    else:
        findings.append(Finding("bad", "access", f"answers HTTP {status}, which a Ray head does not"))
    if dashboard.route.remark:
        findings.append(Finding("note", "proxy", dashboard.route.remark))
    if dashboard.sends_in_clear:
        risk = (
            "none: others on the network can read tokens and code; use a tunnel "
            "(ssh -L 8265:127.0.0.1:8265 HEAD, kubectl port-forward), or https"
        )
        findings.append(Finding("bad", "encryption", risk))
    if status == TOKEN_REQUIRED and find_token() is None:
        findings.append(Finding("note", "token", f"not set; set {TOKEN_PATH} or {TOKEN}"))
        return findings
    if exposed := readable_token():
        findings.append(exposed)
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
