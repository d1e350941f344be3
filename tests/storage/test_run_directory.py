"""Names of runs. Run: pytest tests/storage/test_run_directory.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from infogan_ray import UserError
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, check_new_name, default_name, plain_name
from infogan_ray.training.config import RunConfig, check_name


@pytest.mark.parametrize("name", ["first", "a-b_c.9", "größe", "Δ2", "図形", "हिन्दी", "e\u0301"])
def test_letters_of_any_script_are_valid(name: str, tmp_path: Path) -> None:
    check_new_name(name)
    check_name(name)
    assert RunDirectory.claim(open_storage(tmp_path), name, resume=False).name == name


@pytest.mark.parametrize(
    ("name", "example"),
    [("my run", "my_run"), ("con:", "con_"), ("~", "_"), ("lr=0.1", "lr_0.1"), ("a\u200bb", "a_b"), ("a\u2028", "a_")],
)
def test_what_the_rule_does_not_name_is_refused_for_new_runs(name: str, example: str, tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with pytest.raises(UserError) as refused:
        RunDirectory.check_name(storage, name, resume=False)
    assert "; use letters of any script, digits, '-', '_' and '.', not starting" in str(refused.value)
    assert str(refused.value).endswith(f"for example '{example}'") and plain_name(name) == example
    with pytest.raises(UserError, match="use letters of any script"):
        SearchDirectory.claim(storage, name, {"trials": []}, resume=False)
    assert not list(tmp_path.iterdir())


def test_a_run_of_an_earlier_version_keeps_its_name(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    RunDirectory(storage / "my run~").write_config({"run": RunConfig(name="my run~").to_dict()})
    assert RunDirectory.check_name(storage, "my run~", resume=True).exists
    with pytest.raises(UserError, match="is taken in .* or continue it with --resume"):
        RunDirectory.check_name(storage, "my run~", resume=False)


@pytest.mark.parametrize("data", ["my photos (2).zip", "~/.hidden", "s3://bucket/größe?region=x", "*" * 300, "ü" * 300])
def test_the_default_name_is_valid(data: str) -> None:
    name = default_name(data)
    assert name != default_name(data), "jobs that start in the same second get different names"
    check_new_name(name)
    check_name(name)
