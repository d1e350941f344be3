"""Of several processes that take one name at the same time, one gets it. Run: pytest tests/storage/test_claim.py"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infogan_ray import UserError
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.claim import CLAIM, take_folder
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, RunExists
from tests.servers import Proxy

NAMES = [f"name-{number}" for number in range(40)]


def take_all(uri: str, kind: str, names: list[str], barrier: Any, won: Any) -> None:
    """Take each name at the same time as the other processes."""
    storage = open_storage(uri)
    taken = []
    for name in names:
        barrier.wait(60)
        try:
            if kind == "run":
                RunDirectory.claim(storage, name, resume=False)
            else:
                SearchDirectory.claim(storage, name, {"trials": []}, resume=False)
            taken.append(name)
        except RunExists as error:
            assert "take another --name" in str(error)
    won.put((kind, taken))


def winners(uri: str, kinds: list[str], names: list[str]) -> Counter[str]:
    """How many processes got each name."""
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(len(kinds)), context.Queue()
    processes = [context.Process(target=take_all, args=(uri, kind, names, barrier, won)) for kind in kinds]
    for process in processes:
        process.start()
    found: Counter[str] = Counter()
    for _ in processes:
        found.update(won.get(timeout=120)[1])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return found


def test_one_of_three_processes_gets_a_name_on_a_disk(tmp_path: Path) -> None:
    """Two runs and a search want each name."""
    found = winners(str(tmp_path), ["run", "run", "search"], NAMES)
    assert max(found.values()) == 1, "no name has two owners"
    assert len(found) >= len(NAMES) - 5, "a run and a search may both give a name up; two runs never do"
    for name in NAMES:
        assert len(list((tmp_path / name).iterdir())) <= 1


def test_one_of_two_processes_gets_a_name_in_an_object_store(proxy: Proxy) -> None:
    found = winners(proxy.uri("names"), ["run", "run"], NAMES[:10])
    assert found == Counter(dict.fromkeys(NAMES[:10], 1))
    entries = open_storage(proxy.uri("names")).entries()
    assert {entry.name for entry in entries} == set(NAMES[:10])
    for name in NAMES[:10]:
        left = [entry.name for entry in (open_storage(proxy.uri("names")) / name).entries()]
        assert left == [RunDirectory.STATUS], "claims are withdrawn"


def test_a_claim_of_a_killed_process_is_named(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infogan_ray.storage.claim.ATTEMPTS", 2)
    folder = open_storage(proxy.uri("left")) / "run"
    folder.write(f"0123{CLAIM}", b"claim")
    with pytest.raises(RunExists, match=r"its claim is 0123\.claim; if it was killed, delete that object"):
        RunDirectory.claim(folder.parent, "run", resume=False)
    assert [entry.name for entry in folder.entries()] == [f"0123{CLAIM}"]


def test_what_a_killed_writer_left_does_not_take_a_name(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".status.json.12.tmp").write_text("{")
    run = RunDirectory.claim(open_storage(tmp_path), "run", resume=False)
    assert run.get_status()["state"] == "starting"
    with pytest.raises(FileExistsError):
        take_folder(run.folder, "other.json", b"{}")
    assert not run.folder.exists("other.json")


def test_a_run_that_ended_before_it_had_a_configuration_is_started_by_resume(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    run = RunDirectory.claim(storage, "run", resume=False)
    assert run.can_resume and not run.exists
    with pytest.raises(RunExists, match="or continue it with --resume if it has ended"):
        RunDirectory.claim(storage, "run", resume=False)
    assert RunDirectory.claim(storage, "run", resume=True) == run
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="that name is not a run; take another"):
        RunDirectory.claim(storage, "photos", resume=True)
