"""Storage: names, URIs, atomic writes, readable errors. Run: pytest tests/storage/test_file_system.py"""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest

from infogan_ray.cli.main import FAILED, main
from infogan_ray.storage.errors import DiskFull, Refused, retry, translate_errors
from infogan_ray.storage.file_system import StorageError, open_storage
from tests.conftest import small_disk, write_keys
from tests.servers import (
    CREDENTIALS,
    KEY,
    KEY_WITHOUT_LIST,
    PUBLIC_BUCKET,
    RENEWED_KEY,
    XML,
    Proxy,
    answering,
)

ODD_NAMES = ["a b", "größe", "100%", "a;b", "a#b", "a?b", "run-1", "run-10", "%20"]


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


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
    with pytest.raises(
        Refused, match=r"refuses PutObject \(SignatureDoesNotMatch: .*\); check AWS_ACCESS_KEY_ID"
    ) as error:
        open_storage(uri).write("x", b"")
    assert not error.value.transient and "\n" not in str(error.value)


def test_a_refusal_has_the_reason_of_the_server(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request is a HEAD request, whose answer has no reason."""
    storage = open_storage(proxy.uri("reasons"))
    storage.write("file", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_WITHOUT_LIST)
    assert open_storage(storage.uri).read("file") == b"x"
    with pytest.raises(Refused, match=r"\(AccessDenied: Access Denied\); it needs the permission s3:ListBucket"):
        open_storage(storage.uri).is_file("absent")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    with pytest.raises(Refused, match="InvalidAccessKeyId: The access key ID .*check AWS_ACCESS_KEY_ID"):
        assert open_storage(storage.uri).path_is_file


@pytest.mark.parametrize(
    ("status", "code", "text", "step"),
    [
        (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.",
         "set the clock of this machine"),
        (400, "ExpiredToken", "The provided token has expired.", "renew the credentials in the environment"),
        (403, "AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: s3:ListBucket",
         "it needs the permission s3:ListBucket"),
        (403, "AccountProblem", "There is a problem with your AWS account", "check the account and its permissions"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("aws_keys")
def test_a_refusal_names_the_next_step(status: int, code: str, text: str, step: str) -> None:
    with answering(status, XML.format(code, text)) as port:
        storage = open_storage(f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")
        for action in (storage.entries, lambda: storage.read("x"), lambda: storage.is_file("x")):
            with pytest.raises(Refused) as refusal:
                action()
            assert f"({code}: {text.strip('.')}); {step}" in str(refusal.value) and not refusal.value.transient
        with pytest.raises(Refused) as refusal:
            storage.with_retry_timeout(0).read("x")
        assert refusal.value.transient, "the credentials of a run in progress may be renewed"


@pytest.mark.usefixtures("aws_keys")
def test_a_bucket_in_another_region_is_no_outage() -> None:
    text = "the region 'us-east-1' is wrong; expecting 'eu-west-1'"
    with answering(400, XML.format("AuthorizationHeaderMalformed", text)) as port:
        storage = open_storage(f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http")
        with pytest.raises(StorageError, match=r"expecting 'eu-west-1'\); set AWS_REGION, or add \?region=") as error:
            storage.with_retry_timeout(9).is_file("x")
        assert not error.value.transient


@pytest.mark.parametrize(
    ("status", "reason", "text", "message"),
    [
        (403, "forbidden", "Permission 'storage.objects.list' denied on resource",
         r"PERMISSION_DENIED: Permission 'storage.objects.list' denied on resource\); check the account of GOOGLE_APP"),
        (401, "authError", "Invalid Credentials", r"UNAUTHENTICATED: Invalid Credentials\); check the account"),
        (404, "notFound", "The specified bucket does not exist.", "the bucket b does not exist; create it, or correct"),
    ],
)  # fmt: skip
def test_google_storage_is_refused_with_the_reason_of_the_server(
    status: int, reason: str, text: str, message: str
) -> None:
    error = {"code": status, "message": text, "errors": [{"message": text, "domain": "global", "reason": reason}]}
    with answering(status, json.dumps({"error": error}), "application/json") as port:
        storage = open_storage(f"gs://b/runs?endpoint_override=127.0.0.1:{port}&scheme=http&anonymous=true")
        for action in (storage.entries, lambda: storage.read("x"), lambda: storage.write("x", b"")):
            with pytest.raises(StorageError, match=message):
                action()


def test_a_missing_bucket_is_not_an_empty_folder(
    proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = proxy.uri("runs", "missing")
    for action in (lambda: open_storage(uri).entries(), lambda: open_storage(uri).read("x"),
                   lambda: open_storage(uri).exists("x")):  # fmt: skip
        with pytest.raises(StorageError, match="the bucket missing does not exist; create it, or correct s3://missing"):
            action()
    monkeypatch.chdir(tmp_path)
    for words in (["runs", uri], ["pull", uri], ["report", uri], ["train", "--preset", "mnist", "--storage", uri]):
        assert main(words) == FAILED
        assert "the bucket missing does not exist" in capsys.readouterr().err
    assert open_storage(proxy.uri("nothing yet")).entries() == []


def test_a_public_bucket_is_read_without_credentials(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(proxy.uri("data", PUBLIC_BUCKET)).write("x", b"for all")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    storage = open_storage(proxy.uri("data", PUBLIC_BUCKET) + "&anonymous=true")
    assert open_storage(storage.uri).read("x") == b"for all" and [e.name for e in storage.entries()] == ["x"]
    assert pickle.loads(pickle.dumps(storage)).read("x") == b"for all", "also in another process"
    with pytest.raises(Refused, match="AccessDenied"):
        storage.write("y", b"")


def test_renewed_credentials_are_read_again(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keys(tmp_path / "keys", KEY, monkeypatch)
    storage = open_storage(proxy.uri("renewed"))
    storage.write("x", b"1")
    proxy.become("expired")
    write_keys(tmp_path / "keys", RENEWED_KEY, monkeypatch)
    with pytest.raises(Refused, match=r"ExpiredToken: The provided token has expired\); renew the credentials"):
        storage.read("x")
    assert storage.read("x") == b"1", "the next operation reads the file again"
    write_keys(tmp_path / "keys", KEY, monkeypatch)
    run = open_storage(storage.uri).with_retry_timeout(20)
    with pytest.raises(Refused):
        run.with_retry_timeout(0).read("x")
    write_keys(tmp_path / "keys", RENEWED_KEY, monkeypatch)
    assert run.read("x") == b"1"


def test_a_full_disk_is_named_by_its_reason_and_nothing_partial_is_left(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m,nr_inodes=6") as disk:
        folder = open_storage(disk) / "run"
        with pytest.raises(DiskFull, match=r"big: no space is left \(No space left on device\)"):
            folder.write("big", bytes(2 << 20))
        assert folder.entries() == []
        assert folder.free_bytes() == (folder / "new" / "newer").free_bytes() and folder.free_bytes() == 1 << 20
        folder.write("small", bytes(8192))
        assert folder.total_bytes() == folder.parent.total_bytes() == 8192
        with pytest.raises(DiskFull, match="no space is left .no inode is free: there are too many files"):
            for number in range(9):
                folder.write(f"small{number}", b"x")


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
        ("s3://bucket/x?endpoint=a", "valid are endpoint_override, region, scheme, anonymous"),
        ("s3://bucket/x?region=a&anonymous=yes", "anonymous=yes; valid are true and false"),
        ("gs://bucket/x?anonymous=1", "anonymous=1; valid are true and false"),
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
