"""Storage URIs: checks the user's text and opens the pyarrow file system for it.

Credentials come only from the environment (for example AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS). A URI with
credentials is refused, so they cannot reach a configuration, a log or a checkpoint.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import pyarrow.fs as pafs

from infogan_ray import UserError
from infogan_ray.storage import proxies
from infogan_ray.storage.errors import retry, translate_errors
from infogan_ray.storage.visible_text import is_utf8

SETTINGS = {
    "s3": ("endpoint_override", "region", "scheme", "anonymous"), "gs": ("endpoint_override", "scheme", "anonymous")
}  # fmt: skip
REGION_TIMEOUT_S = 20.0  # how long requests for a bucket's region are retried


class Connection:
    """A file system, which ``renew`` opens anew: an open one reads files of credentials only once."""

    def __init__(self, open_file_system: Callable[[], pafs.FileSystem]) -> None:
        self._open = open_file_system
        self._filesystem: pafs.FileSystem | None = open_file_system()
        self.has_bucket = False
        """Whether the bucket is known to exist."""

    @property
    def filesystem(self) -> pafs.FileSystem:
        filesystem = self._filesystem
        if filesystem is None:
            filesystem = self._filesystem = self._open()
        return filesystem

    def renew(self) -> None:
        """Let the next use open the file system anew."""
        self._filesystem = None


class Location(NamedTuple):
    """The location of a storage folder. ``scheme``: empty for a local folder. ``settings``: the URI's query."""

    connection: Connection
    path: str
    scheme: str = ""
    settings: str = ""


def parse_uri(text: str) -> Location:
    """Parse a path, ``file://``, ``s3://bucket/prefix?region=…`` or ``gs://…``. Creates nothing.

    Requests a bucket's region from AWS if neither the URI nor the environment has it. Makes no other request.
    Raises UserError for another scheme, credentials in the URI, unknown settings and names that are not plain.
    """
    if not text:
        raise UserError("storage is empty; name a folder, or a URI such as s3://bucket/prefix")
    scheme, divider, rest = text.partition("://")
    if not divider:
        return _local(text)
    if scheme != "file" and not is_utf8(urllib.parse.unquote(text, errors="surrogateescape")):
        raise UserError("storage is a URI that is not UTF-8; object stores have no other names")
    address, _, query = rest.partition("?")
    text = f"{scheme}://{address}"  # messages repeat only this part of the input
    # Checked first. A secret may hold a slash, so looking for '@' alone would miss it.
    if re.search("[:@]", urllib.parse.unquote(re.split("[/#]", address)[0])):
        raise UserError("storage has credentials in its URI; they belong in the environment (AWS_ACCESS_KEY_ID …)")
    if scheme not in ("file", *SETTINGS):
        raise UserError(f"storage is '{text}'; valid are a folder, file://, s3://bucket/… and gs://bucket/…")
    given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    for key in given:
        if key not in SETTINGS.get(scheme, ()):
            credentials = "; credentials belong in the environment" if re.search("key|secret|token", key) else ""
            valid = ", ".join(SETTINGS.get(scheme, ())) or "none"
            raise UserError(f"storage has the setting '{key}'; valid are {valid}{credentials}")
    if given.get("anonymous", "true") not in ("true", "false"):
        raise UserError(f"storage has anonymous={given['anonymous']}; valid are true and false")
    if "#" in rest:
        raise UserError(f"storage is '{text}'; in a URI '#' starts a fragment: write %23")
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise UserError(f"storage is '{text}'; in a URI '%' starts an escape: write %25")
    parts = [urllib.parse.unquote(part, errors="surrogateescape") for part in address.split("/") if part]
    if bad := next((part for part in parts if part in (".", "..") or "/" in part or "\0" in part), None):
        raise UserError(f"storage is '{text}'; '{bad}' is not a plain name")
    if scheme == "file":
        if not address.startswith("/"):
            raise UserError(f"storage is '{text}'; a file URI has three slashes: file:///folder")
        return _local("/" + "/".join(parts))
    if not parts:
        raise UserError(f"storage is '{text}'; name a bucket: {scheme}://bucket/prefix")
    settings = _s3_settings(given, parts[0]) if scheme == "s3" else given
    connection = Connection(partial(_open_s3 if scheme == "s3" else _open_gs, settings))
    return Location(connection, "/".join(parts), scheme, urllib.parse.urlencode(settings))


def _local(text: str) -> Location:
    return Location(Connection(pafs.LocalFileSystem), os.path.abspath(os.path.expanduser(text)))


def _s3_settings(given: dict[str, str], bucket: str) -> dict[str, str]:
    """``given`` with the endpoint and region that the environment or AWS adds."""
    endpoint = given.get("endpoint_override")
    if endpoint is None:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    settings = dict(given)
    if endpoint and "@" in endpoint:
        raise UserError("storage endpoint has credentials; they belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if endpoint:
        scheme, divider, host = endpoint.partition("://")
        if divider:
            settings["scheme"], endpoint = scheme, host
        if settings.get("scheme", "https") not in ("http", "https"):
            raise UserError(f"storage endpoint has the scheme '{settings['scheme']}'; valid are http and https")
        settings["endpoint_override"] = endpoint.rstrip("/")
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint:
        region = "us-east-1"  # only AWS has regions, but every signature needs a name
    if region is None:
        region = retry(
            lambda: translate_errors(f"s3://{bucket}", lambda: pafs.resolve_s3_region(bucket)), REGION_TIMEOUT_S
        )
    settings["region"] = region
    return settings


def _open_s3(settings: dict[str, str]) -> pafs.FileSystem:
    options = {name: value for name, value in settings.items() if value and name != "anonymous"}
    return pafs.S3FileSystem(
        connect_timeout=5, request_timeout=20, background_writes=False, allow_delayed_open=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=2), anonymous=_is_anonymous(settings), **options,
    )  # fmt: skip


def _open_gs(settings: dict[str, str]) -> pafs.FileSystem:
    options = {name: value for name, value in settings.items() if name != "anonymous"}
    if settings.get("scheme") == "http" and "endpoint_override" in settings:
        proxies.settle_route(f"http://{settings['endpoint_override']}")
    return pafs.GcsFileSystem(
        anonymous=_is_anonymous(settings), retry_time_limit=timedelta(seconds=10), **options
    )  # fmt: skip


def _is_anonymous(settings: dict[str, str]) -> bool:
    """Whether requests have no credentials, as public buckets allow."""
    return settings.get("anonymous") == "true"
