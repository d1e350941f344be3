"""Storage: names, URIs, atomic writes, readable errors. Run: pytest tests/storage/test_file_system.py"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from infogan_ray.storage.errors import retry, translate_errors
from infogan_ray.storage.file_system import StorageError, open_storage
from tests.servers import Proxy

ODD_NAMES = ["a b", "größe", "100%", "a;b", "a#b", "a?b", "run-1", "run-10", "%20"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_names_round_trip_in_a_folder(tmp_path: Path, name: str) -> None:
    storage = open_storage(tmp_path) / name
    storage.write("x", b"one")
    storage.write("x", b"two")
    assert (tmp_path / name / "x").read_bytes() == b"two" and open_storage(storage.uri).read("x") == b"two"
    assert [entry.name for entry in storage.entries()] == ["x"], "no temporary file is left"
    storage.delete("x")
    storage.delete("x")
    assert not storage.exists("x")
    storage.delete_all()
    storage.delete_all()
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_names_round_trip_in_an_object_store_uri(name: str) -> None:
    storage = open_storage("s3://bucket/runs?region=eu-west-1") / name
    assert open_storage(storage.uri).path == storage.path == f"bucket/runs/{name}"


@pytest.mark.parametrize("name", [*ODD_NAMES, "a+b", "a&b=c"])
def test_unusual_names_round_trip_in_a_real_object_store(proxy: Proxy, name: str) -> None:
    storage = open_storage(proxy.uri("odd")) / name
    storage.write("x y", b"one")
    storage.write("x y", b"two")
    assert open_storage(storage.uri).read("x y") == b"two"
    assert [entry.name for entry in storage.entries()] == ["x y"] and storage.is_file("x y")
    assert name in [entry.name for entry in storage.parent.entries()]
    storage.delete("x y")
    storage.delete("x y")
    storage.delete_all()
    assert not storage.exists("x y") and storage.entries() == []


def test_deleting_a_name_keeps_names_with_the_same_prefix_in_an_object_store(proxy: Proxy) -> None:
    runs = open_storage(proxy.uri("alike"))
    for name in ("run-1", "run-10"):
        (runs / name).write("x", name.encode())
    (runs / "run-1").delete_all()
    assert [entry.name for entry in runs.entries()] == ["run-10"] and (runs / "run-10").read("x") == b"run-10"
    assert open_storage(proxy.uri("//alike//run-10/")).read("x") == b"run-10"


def test_object_store_errors_are_reported_in_one_line(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = proxy.uri("refused")
    with pytest.raises(FileNotFoundError):
        open_storage(uri).read("absent")
    assert not open_storage(uri).parent.path_is_file, "the parent is a bucket"
    open_storage(uri).write("file", b"x")
    assert (open_storage(uri) / "file").path_is_file
    stream = open_storage(uri).read_chunks("file")
    open_storage(uri).delete("file")
    with pytest.raises(FileNotFoundError):
        list(stream)
    proxy.become("reset")
    with pytest.raises(StorageError, match="HeadObject failed, network connection") as outage:
        open_storage(uri).with_retry_timeout(1).read("absent")
    assert outage.value.transient and "\n" not in str(outage.value)
    proxy.become("well")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="refuses the credentials of the environment") as refused:
        open_storage(uri).write("x", b"")
    assert not refused.value.transient


def test_endpoints_come_from_the_uri_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://a:1")
    assert "endpoint_override=a%3A1" in open_storage("s3://bucket").uri
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://b:2/")
    uri = open_storage("s3://bucket").uri
    assert "endpoint_override=b%3A2" in uri and "scheme=http&" in f"{uri}&"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert open_storage(uri).uri == uri, "the URI is enough on another machine"


def test_repeated_slashes_are_merged_and_file_uris_are_folders(tmp_path: Path) -> None:
    assert open_storage("s3://bucket//a///b/?region=x").path == "bucket/a/b"
    assert open_storage(f"file://{tmp_path}/a%20b/").path == f"{tmp_path}/a b"
    assert open_storage(f"{tmp_path}//a/").path == f"{tmp_path}/a"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "storage is empty"),
        ("ftp://host/x", "valid are a folder, file://, s3://"),
        ("s3://", "name a bucket"),
        ("s3://key:secret@bucket/x", "they belong in the environment"),
        ("s3://key:sec/secret@bucket/x", "they belong in the environment"),
        ("s3://key:100%secret@bucket/x", "they belong in the environment"),
        ("ftp://key:secret@host/x", "they belong in the environment"),
        ("s3://bucket/x?endpoint_override=http://key:secret@host", "endpoint has credentials"),
        ("s3://bucket/x?access_key=a", "credentials belong in the environment"),
        ("s3://bucket/x?access_key=secret@#b", "credentials belong in the environment"),
        ("s3://bucket/x?secret_key=secret@%zz", "credentials belong in the environment"),
        ("ftp://bucket/x?password=secret@", "valid are a folder"),
        ("s3://key%3Asecret%40bucket/x", "they belong in the environment"),
        ("s3://bucket/x?endpoint=a", "valid are endpoint_override, region, scheme"),
        ("s3://bucket/a#b", "write %23"),
        ("s3://bucket/100%", "write %25"),
        ("s3://bucket/../other?region=x", "'..' is not a plain name"),
        ("s3://bucket/a%2F..?region=x", "is not a plain name"),
        ("file://host/x", "three slashes"),
    ],
)
def test_bad_uris_are_refused_with_the_reason(uri: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        open_storage(uri)
    assert message in str(refusal.value) and "\n" not in str(refusal.value) and "secret@" not in str(refusal.value)


@pytest.mark.parametrize("name", ["..", ".", "", "/etc", "a/b", "a\\b", "a\0b"])
def test_names_outside_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a plain name"):
        open_storage(tmp_path).write(name, b"")


def test_links_are_neither_listed_nor_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    store = tmp_path / "store"
    store.mkdir()
    (store / "link").symlink_to(tmp_path / "outside")
    storage = open_storage(store)
    assert storage.entries() == []
    with pytest.raises(ValueError, match="symbolic link"):
        (storage / "link").write("x", b"")


def test_only_transient_errors_are_retried(tmp_path: Path) -> None:
    calls: list[int] = []

    def fail(number: int, times: int) -> str:
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, "no")
        return "done"

    assert retry(lambda: translate_errors("x", lambda: fail(errno.EIO, 1)), 5) == "done" and len(calls) == 2
    calls.clear()
    with pytest.raises(StorageError, match="x: no space is left"):
        retry(lambda: translate_errors("x", lambda: fail(errno.ENOSPC, 9)), 5)
    assert len(calls) == 1
    with pytest.raises(FileNotFoundError):
        open_storage(tmp_path).read("absent")
    assert open_storage(tmp_path / "absent").entries() == []


def test_a_folder_may_have_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    storage = open_storage(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\nx"))
    assert not storage.path_is_file and storage.entries() == []
    storage.write("a", b"1")
    storage.append("a", b"2")
    assert open_storage(storage.uri).read("a") == b"12" and [entry.name for entry in storage.entries()] == ["a"]
    with pytest.raises(FileNotFoundError):
        storage.read("b")
    with pytest.raises(ValueError, match="object stores have no other names"):
        open_storage("s3://bucket/caf%E9")
    storage.delete("a")
    storage.delete_all()
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf8_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff d.png")).write_bytes(b"")
    assert [entry.name for entry in open_storage(tmp_path).entries()] == ["run"]
