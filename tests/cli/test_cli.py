"""Commands as a user types them; bad input is refused in one line. Run: pytest tests/cli/test_cli.py"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ray import tune

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.exit_codes import DONE, FAILED, USAGE
from infogan_ray.cli.main import COMMANDS, main
from infogan_ray.cli.train import train_config
from infogan_ray.data.datasets import load_images
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation import texts
from infogan_ray.searches.recipe import Recipe
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.load_model import load
from infogan_ray.training.presets import PRESETS
from infogan_ray.web.explorer.real_images import RealImageSource
from infogan_ray.web.inference import read_image
from tests.conftest import tiny_config
from tests.storage.test_json_text import strict
from tests.training.test_step import run_alone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(image_set: ImageSet, tmp_path: Path, npz: Path) -> Path:
    """A finished tiny run, made without Ray."""
    run, _ = run_alone(tiny_config(data=str(npz)), image_set, tmp_path / "tiny")
    return Path(run.folder.path)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--preset mnits", "preset is 'mnits' (did you mean 'mnist'?); valid are mnist"),
        ("--metric mi_fractoin", "metric is 'mi_fractoin' (did you mean 'mi_fraction'?); valid are mi_fraction"),
        ("--codes dog=3", "'dog=3' is not a prior; valid are noise, cat"),
        ("--image-size 30", "image size is 30; valid sizes are the multiples of 4 from 16 to 256"),
        ("--workers 4096 --batch-size 8192", "workers is 4096, more than the"),
        ("--workers 4:1", "workers is '4:1'; it must be at least 1, and LEAST not above MOST"),
        ("--workers two", "workers is 'two'; it must be a number, or LEAST:MOST as in 1:4"),
        (
            "--workers 1:10 --batch-size 16",
            "10 workers would get one image each, and batch norm needs 2; take 20 or more",
        ),
        ("--workers 4096:4097 --batch-size 9000", "workers is 4096, more than the"),
        ("--metric nmi --codes uniform=2 --batch-size 16", "metric is 'nmi', which needs a categorical code"),
        ("--storage ftp://host/x", "valid are a folder, file://, s3://bucket/"),
        ("--storage s3://key:secret@bucket/x", "they belong in the environment"),
        ("--max-missed-checkpoints 0", "max_missed_checkpoints is 0; it must be at least 1"),
        ("--workers 2 --batch-size 15", "batch_size is 15, which is not divisible by 2 workers; take 14 or 16"),
        ("--batch-size 1000", "batch_size is 1000, more than the"),
        ("--data nowhere", "data is 'nowhere': neither a dataset (mnist, fashion_mnist, shapes) nor"),
        ("--data mnist --data-dir nowhere", "data_dir is nowhere, which does not exist"),
        ("--name checkpoints", "name is 'checkpoints', which is the name of a folder in every run"),
        ("--name a/b", "name is 'a/b'; use letters"),
        ("--name con:", "name is 'con:'; use letters of any script, digits, '-', '_' and '.', not starting with"),
        ("--name a~", "for example 'a_'"),
        (f"--name {'a' * 201}", "name has 201 bytes; it must have at most 200"),
        ("--steps 0", "steps is 0; it must be at least 1"),
        ("--steps 5 --epochs 5", "give one of them"),
        ("--precision fp8", "precision is 'fp8'; valid are auto, fp32, tf32, bf16"),
        ("--network.widht 8", "there is no flag --network.widht; did you mean --network.width?; see 'infogan train"),
        ("--batch_siez=8", "there is no flag --batch_siez; did you mean --batch-size?"),
        ("--no-cuda-grpah", "there is no flag --no-cuda-grpah; did you mean --no-cuda-graph?"),
        ("--no-augment.flip", "there is no flag --no-augment.flip; did you mean --augment.no-flip?"),
        ("--no-spectral-norm", "there is no flag --no-spectral-norm; did you mean --network.no-spectral-norm?"),
        ("--optimizer.lr 1", "did you mean --optimizer.lr-discriminator or --optimizer.lr-generator or"),
        ("--dry-run=yes", "--dry-run takes no value"),
        ("--device gpu", "--device is 'gpu'; valid are auto, cpu, cuda; see"),
        ("--placement spred", "(did you mean 'spread'?); valid are pack, spread, strict_pack, strict_spread"),
        ("--steps a'b", "--steps is 'a'b'; it must be a whole number"),
        (f"--codes {'a-long-name/' * 30}=3", f"'{'a-long-name/' * 30}=3' is not a prior"),  # not wrapped
        ("--dry-rnu", "there is no flag --dry-rnu; did you mean --dry-run?"),
        ("--augment 1", "did you mean --augment.flip or --augment.shift or"),
        ("--lr 1", "did you mean --prior.lr or --optimizer.lr-discriminator or --optimizer.lr-generator"),
        ("--objective.lambda-code uniform0 x", "--objective.lambda-code takes pairs of a name and a number"),
        ("--objective.lambda-code uniform0", "--objective.lambda-code takes pairs of a name and a number"),
        ("--steps 5 --amp", "there is no flag --amp; see 'infogan train --help'"),
        ("--steps 5 here.yaml", "unexpected argument 'here.yaml'"),
        ("--steps 1e3", "--steps is '1e3'; it must be a whole number; see"),
        ("--optimizer.lr-generator=slow", "--optimizer.lr-generator is 'slow'; it must be a number; see"),
        ("--steps 5 --batch-size", "--batch-size needs a value; see"),
        ("--batch-size --steps 5", "--batch-size needs a value; see"),
        ("--network.width 2", "network.width is 2"),
        ("--network.width 1000000000000", "network.width is 1000000000000; it must be at least 4"),
        ("--network.leaky-slope nan", "network.leaky_slope is nan; it must lie between 0 and 1"),
        ("--network.sigma-min 1e39", "network.sigma_min is 1e+39; it must be a finite number, at most 3e+38"),
        ("--seed 18446744073709551616", "seed is 18446744073709551616; it must be at most 18446744073709551615"),
        (f"--steps {10**30}", f"steps is {10**30}; it must be at most {10**15}"),
        (f"--stability.r1-every {2**63}", f"stability.r1_every is {2**63}; it must be at most {10**15}"),
        ("--channels 0", "channels is 0; valid are 1 (grey) and 3 (RGB)"),
        ("--optimizer.lr-generator 2", "optimizer.lr_generator is 2.0"),
        ("--objective.lambda-categorical -1", "objective.lambda_categorical is -1.0"),
        ("--resume --name nobody", "has no such run"),
        ("nowhere.yaml", "config file nowhere.yaml does not exist"),
        (str(ROOT / "tests"), "tests is a folder; if it holds images, write --data before it"),
    ],
)
def test_a_bad_run_is_refused_in_one_line_and_leaves_nothing(
    words: str,
    reason: str,
    npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words.split()
    data = [] if "--data" in words else ["--data", str(npz)]
    before = sorted(tmp_path.rglob("*"))
    steps = [] if "--steps" in words else ["--steps", "5"]
    assert main(["train", *given, *data, *steps]) == USAGE
    output = capsys.readouterr()
    assert reason in output.err and output.err.startswith("infogan: ") and output.err.count("\n") == 1, output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_as_storage_and_a_used_name_are_refused(
    npz: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(npz), "--steps", "5", "--name", "tiny"]
    for more in ([], ["--dry-run"]):
        assert main([*words, "--storage", str(npz), *more]) == USAGE
        assert "is a file, not a folder" in capsys.readouterr().err
        assert main([*words, "--storage", str(trained.parent), *more]) == USAGE
        assert "name 'tiny' is taken" in capsys.readouterr().err
    (trained.parent / "other").mkdir()
    (trained.parent / "other" / "search.json").write_text("{}")
    for more, hint in (([], "take another --name\n"), (["--resume"], "that name is not a run; take another\n")):
        assert main([*words, "--storage", str(trained.parent), "--name", "other", *more]) == USAGE
        assert capsys.readouterr().err.endswith(hint)


def test_a_narrow_terminal_truncates_no_number_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, ours = pty.openpty()
    monkeypatch.setenv("COLUMNS", "40")
    with os.fdopen(ours, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        display.table("", ["name", "best", "last"], [["a-run-of-a-long-name", "step_00000011", "step_00000012"]] * 2)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "\u2026" not in shown and shown.count("011 ") == shown.count("012 ") == 2, shown  # folded


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("inspect photos", "unknown command 'inspect'; did you mean 'data inspect'?"),
        ("sample", "'model' is missing; see 'infogan sample --help'"),
        ("sample model more", "unexpected argument 'more'"),
        ("sample model -0.5", "unexpected argument '-0.5'"),
        ("verfy shards", "unknown command 'verfy'; did you mean 'data verify'?"),
        ("data fech mnist", "action is 'fech' (did you mean 'fetch'?); valid are fetch, inspect, prepare, verify; see"),
        ("sample model -n many", "--n is 'many'; it must be a whole number"),
        (f"sample model -n {10**30}", f"n is {10**30}; it must be at most {10**15}"),
        ("encode model photos --max-bad nan", "max_bad is nan; it must be a finite number"),
        ("data prepare", "'source' and 'dest' are missing; see 'infogan data prepare --help'"),
        ("data prepare photos", "'dest' is missing; see"),
        ("data prepare photos shards --encoding png", "--encoding is 'png'; valid are raw, encoded; see"),
        ("search --name first", "'recipe' is missing; see 'infogan search --help'"),
        ("search tuning/quick.py --trails 3", "there is no flag --trails; did you mean --trials?"),
        ("search tuning/quick.py --per-process=8", "--per-process was removed; with --gpus-per-worker 0.1 ten trials"),
        ("search tuning/quick.py --trials 2.5", "--trials is '2.5'; it must be a whole number"),
    ],
)
@pytest.mark.parametrize("columns", ["30", "200"])
def test_a_mistyped_command_is_reported_in_one_line(
    words: str, reason: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(words.split()) == USAGE
    output = capsys.readouterr().err
    assert reason in output and output.startswith("infogan: ") and output.count("\n") == 1, output


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # the parser prints a different box for each
@pytest.mark.parametrize("terminal", [False, True])  # on a terminal it prints colours
def test_a_mistyped_value_is_reported_on_any_terminal(encoding: str, terminal: bool) -> None:
    screen, ours = pty.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "infogan_ray", "sample", "model", "-n", "many"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm-256color", "COLUMNS": "60"},
        stdout=ours if terminal else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(screen)
    os.close(ours)
    assert ended.stderr == "infogan: --n is 'many'; it must be a whole number; see 'infogan sample --help'\n"
    assert ended.returncode == USAGE


def test_table_cells_are_not_parsed_as_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal, ours = pty.openpty()
    row = ["[z] 1%", "cat [/tabby]", ":smile:", "[red]x"]
    with monkeypatch.context() as patch, os.fdopen(ours, "w") as screen:
        patch.setattr(sys, "stdout", screen)
        display.table("[t]", ["[b]", "b", "c", "d"], [row])
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert all(cell in shown for cell in ["[t]", "[b]", *row]), shown
    display.table("", ["a"], [["two\nlines\tand more"]])
    assert capsys.readouterr().out == "a\ntwo lines and more\n"


def test_each_category_lists_its_labels() -> None:
    found = {"clustering_code": "cat0", "confusion": [[0, 900, 50, 50], [0, 0, 0, 0], [39, 0, 961, 0]]}
    assert texts.category_rows(found) == [
        ["cat0=0", "1,000", "1 90.0%, 2 5.0%, 3 5.0%"],
        ["cat0=1", "0", "-"],
        ["cat0=2", "1,000", "2 96.1%"],
    ]
    spread = {"clustering_code": "cat0", "confusion": [[1] * 40], "classes": [f"kind\n{n}" for n in range(40)]}
    assert texts.category_rows(spread) == [["cat0=0", "40", "kind 0 2.5%, kind 1 2.5%, kind 2 2.5%"]]
    assert texts.category_rows(found | {"classes": ["bag", "coat", "a|b", "boot"]})[2][2] == "a|b 96.1%"
    assert texts.category_rows({}) == []


def test_a_preset_is_applied_in_python_in_files_and_in_recipes(tmp_path: Path) -> None:
    robust = RunConfig(preset="mnist_robust")
    assert (robust.data, robust.steps, robust.consistency.weight, robust.metric) == ("mnist", 4000, 1.0, "step")
    assert RunConfig(preset="shapes", batch_size=128).batch_size == 128, "a value that is given, although a default"
    assert RunConfig(preset="mnist", epochs=2).steps is None and RunConfig(preset="mnist", steps=7).steps == 7
    assert dataclasses.replace(robust, steps=9).consistency.weight == 1.0
    with pytest.raises(UserError, match="preset is 'mnits'"):
        RunConfig(preset="mnits")
    with pytest.raises(TypeError, match="RunConfig has no field 'batchsize'; its fields are preset, data"):
        RunConfig(batchsize=3)  # type: ignore[call-arg]
    (file := tmp_path / "config.yaml").write_text("preset: mnist_robust\nsteps: 70\n")
    assert train_config([str(file)]) == dataclasses.replace(robust, steps=70)
    assert train_config([str(file), "--preset", "mnist"]) == RunConfig(preset="mnist", steps=70)
    file.write_text("preset: mnist\nepochs: 3\n")
    assert train_config([str(file)]).epochs == 3
    assert (train_config([str(file), "--steps", "5"]).steps, train_config([str(file), "--steps", "5"]).epochs) == (
        5,
        None,
    )
    space = {"seed": tune.choice([1, 2])}
    recipe = Recipe(space=space, preset="mnist_robust", budget=6400, grace=1280, trials=2)
    assert recipe.config(0).consistency.weight == 1.0


def test_a_saved_configuration_is_a_config_file(tmp_path: Path) -> None:
    """It holds all fields, so its preset is not applied again. The name of its run is left out."""
    config = RunConfig(preset="shapes", batch_size=32, steps=50, name="first", storage="elsewhere")
    run = RunDirectory(open_storage(tmp_path / "first"))
    run.write_config({"model": {}, "run": config.override({"resume": True}, "test").to_dict()})
    found = train_config([str(tmp_path / "first" / "config.json"), "--seed", "4"])
    assert found == dataclasses.replace(config, name=None, seed=4)


def test_a_file_overrides_presets_and_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("steps: 70\nbatch_size: 64\noptimizer:\n  lr_generator: 3e-4\n")
    config = train_config([str(file), "--preset", "mnist", "--batch-size", "32"])
    assert (config.steps, config.batch_size, config.optimizer.lr_generator) == (70, 32, 3e-4)
    assert config.codes == "noise=62 cat=10 uniform=2"
    assert train_config(["--preset", "mnist", "--epochs", "2"]).total_steps(60_000) == 2 * 468
    with pytest.raises(
        ValueError, match=f"epochs is {10**15}, which needs {468 * 10**15} steps; the most are {10**15}"
    ):
        train_config(["--preset", "mnist", "--epochs", str(10**15)]).total_steps(60_000)
    file.write_text("stepz: 70\n")
    with pytest.raises(ValueError, match="unknown field 'stepz'; did you mean 'steps'?"):
        train_config([str(file)])
    file.write_text("device: gpu\n")
    with pytest.raises(ValueError, match="device is 'gpu'; valid are auto, cpu, cuda"):
        train_config([str(file)])
    file.write_text("steps: many\n")
    with pytest.raises(ValueError, match="steps is 'many'; it must be int or nothing"):
        train_config([str(file)])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name: str) -> None:
    config = RunConfig(preset=name)
    spec = config.model_spec(config.image_size or 28, config.channels or 1)
    generator, discriminator = spec.build()
    with torch.no_grad():
        images = generator.eval()(spec.latents.sample(2, torch.Generator().manual_seed(0)))
        assert discriminator.eval()(images)[1].shape == (2, spec.latents.q_dim)


def test_commands_that_use_a_model(
    trained: Path, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    def out(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        return capsys.readouterr().out

    assert "tiny\tfinished\t6" in out("runs", tmp_path)
    rows = json.loads(out("runs", trained, "--json"))["rows"]
    assert [row["checkpoint"] for row in rows] == ["step_00000003", "step_00000006"]
    model = tmp_path / "pulled"
    assert json.loads(out("pull", trained, model, "--json"))["model"] == str(model)
    assert main(["pull", str(trained), str(model)]) == 0, "the same bytes are there already"
    assert main(["pull", str(trained), str(npz.parent)]) == USAGE, "a folder with something else is not overwritten"
    assert npz.is_file() and "exists and is not a whole model folder" in capsys.readouterr().err
    assert 0 <= json.loads(out("evaluate", model, "--json", "--samples", 100))["clustering_error"] <= 1
    shown = out("evaluate", model, "--samples", 100)
    assert "category\ttest images\tlabels\ncat0=0\t" in shown and "\n| cat0=0 | " in (model / "README.md").read_text()
    out("traverse", model, "-o", tmp_path / "t.png")
    assert (tmp_path / "t_cat0.png").is_file() and (tmp_path / "t_uniform0.png").is_file()
    out("sample", model, "-n", 5, "-o", tmp_path / "s.npz", "--set", "cat0=1", "uniform0=0.5")
    assert np.load(tmp_path / "s.npz")["images"].shape == (5, 16, 16, 1)
    out("sample", model, "-o", tmp_path / "s.png")
    out("encode", model, npz, "-o", tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.num_rows == 96
    spread = np.array(table["cat0_probabilities"].to_pylist())
    assert (spread.argmax(1) == table["cat0"].to_numpy()).all() and np.allclose(spread.sum(1), 1, atol=1e-5)
    assert np.allclose(spread.max(1), table["cat0_probability"])
    out("encode", model, tmp_path / "s.png", "-o", tmp_path / "c.parquet")
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 1
    npz.rename(npz.with_name("elsewhere.npz"))
    assert main(["evaluate", str(model)]) == USAGE
    assert "which does not exist; give its new path with --data" in capsys.readouterr().err
    npz.with_name("elsewhere.npz").rename(npz)
    for words in (
        ["sample", model, "--set", "cat0=7"],
        ["sample", model, "--set", "cat0=inf"],
        ["sample", model, "--set", "cat0=nan"],
        ["sample", model, "-o", "x.doc"],
        ["encode", model, npz, "-o", "x.csv"],
        ["encode", model, npz, "-o", tmp_path / "none" / "x.parquet"],
        ["traverse", model, "--code", "q"],
    ):
        assert main([str(word) for word in words]) == USAGE
    (model / "model.safetensors").write_bytes(b"\x80\x04.")
    assert main(["sample", str(model)]) == FAILED
    assert "model.safetensors has 3 bytes; the manifest lists" in capsys.readouterr().err


def test_state_and_cause_of_a_run_are_shown_in_a_pipe_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(open_storage(tmp_path / "run"))
    run.write_config({"run": tiny_config().to_dict()})
    run.folder.write(run.METRICS, b'{"step": 2, "d_loss": 1.5}\n{"step": 4, "d_loss": NaN}\n')  # of an earlier version
    run.set_status("diverged", 5, message="d_loss is nan at step 5")
    assert main(["runs", run.folder.path]) == DONE
    shown = capsys.readouterr()
    assert shown.out == f"{run.folder}: diverged at step 5: d_loss is nan at step 5\n"
    assert shown.err == "checkpoints of run: nothing yet\n"
    assert main(["runs", run.folder.path, "--json"]) == DONE
    assert strict(capsys.readouterr().out) == {
        "run": run.folder.uri, "state": "diverged", "step": 5, "cause": "d_loss is nan at step 5", "last_good": None,
        "metrics": {"step": 4, "d_loss": None}, "rows": [],
    }  # fmt: skip


def test_an_epoch_and_what_it_leaves_out_are_shown(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", str(npz), "--dry-run"]  # 81 training images
    assert main([*words, "--epochs", "3", "--batch-size", "50"]) == DONE
    shown = capsys.readouterr().out
    assert (
        "\nsteps: 3 of 50 images, 3 epochs; an epoch is 1 step and has all but 31 of 81 images; the next epoch leaves "
        "out others\n"
    ) in shown
    assert main([*words, "--steps", "10", "--batch-size", "81"]) == DONE
    assert "\nsteps: 10 of 81 images, 10 epochs; an epoch is 1 step and has all 81 images\n" in capsys.readouterr().out


def test_a_dry_run_of_a_huge_network_needs_no_memory(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", str(npz), "--dry-run", "--steps", "10", "--batch-size", "16", "--threads", "2"]
    words += ["--storage", str(npz.parent), "--name", "huge"]
    assert main([*words, "--network.width", "10000000", "--codes", "noise=4 cat=3"]) == USAGE
    output = capsys.readouterr()
    assert "parameters: generator 54,400,002,260,000,001, disc" in output.out and output.err.count("\n") == 2
    assert re.match(r"infogan: the run takes about \d\d,\d{3}\.\d days; fewer --steps", output.err)
    assert re.search("\ninfogan: storage: .*huge has .* free, and one checkpoint takes 1.6 EB; delete", output.err)


def test_later_commands_convert_images_as_training_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dark image alone is scaled by the range of the training images, and padded as they were."""
    folder = tmp_path / "wide"
    folder.mkdir()
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 100 * (number + 1), (16, 24)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number:02d}.png")
    config = tiny_config(data=str(folder), image_size=16, channels=1, pixel_range="0:4095", fit="pad")
    images = load_images(str(folder), config.data_config, say=lambda line: None)
    run, _ = run_alone(config, images, tmp_path / "tiny")
    model_folder = f"{run.folder}/model"
    for source in (model_folder, str(run.folder), str(run.folder / "checkpoints" / "step_00000006")):
        model = load(source)
        assert (model.pixel_range, model.fit) == ("0:4095", "pad")
    dark = folder / "00.png"
    assert torch.equal(read_image(model, dark.read_bytes()), images.images[:1])
    real = RealImageSource().load(open_storage(model_folder), model)
    assert real is not None and torch.equal(real.images, images.images)
    wanted = model.encode(images.images)
    for path in (folder, dark):
        assert main(["encode", model_folder, str(path), "-o", str(tmp_path / "c.parquet")]) == 0
        found = np.array(pq.read_table(tmp_path / "c.parquet")["cat0_probabilities"].to_pylist())
        assert np.allclose(found, wanted["cat0_probabilities"][: len(found)], atol=1e-6)
    assert main(["encode", model_folder, str(dark), "--pixel-range", "0:99", "-o", str(tmp_path / "c.parquet")]) == 0
    assert "pixel range 0:99, as set, for 1 image of more than 8 bits" in capsys.readouterr().err
    assert not np.allclose(
        np.array(pq.read_table(tmp_path / "c.parquet")["cat0_probabilities"].to_pylist()),
        wanted["cat0_probabilities"][:1], atol=1e-6,
    )  # fmt: skip
    assert main(["evaluate", model_folder, "--samples", "50"]) == 0
    assert "pixel range 0:4095, as set, for 40 images" in capsys.readouterr().err


def test_doctor_reports_findings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    main(["doctor", "--json"])
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["python"]["mark"] == "ok" and "Ray cluster" in findings


def test_a_failed_write_is_one_line_and_keeps_the_old_file(trained: Path, tmp_path: Path) -> None:
    """A file size limit stands for a full disk: both stop a write in the middle."""
    (there := tmp_path / "samples.png").write_bytes(b"mine")
    commands = [
        ["sample", str(trained), "-o", str(there)],
        ["traverse", str(trained), "-o", str(tmp_path / "t.png")],
        ["encode", str(trained), str(tmp_path / "bars.npz"), "-o", str(tmp_path / "codes.parquet")],
        ["data", "inspect", str(tmp_path / "bars.npz"), "-o", str(tmp_path / "contact.png")],
        ["export", str(trained), "--format", "torch", "-o", str(tmp_path / "graphs")],
    ]
    before = sorted(tmp_path.iterdir())
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, -1)); from infogan_ray.cli.main import main; "
    )
    program += f"print([main(words) for words in {commands}])"
    done = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True, timeout=300)
    errors = [line for line in done.stderr.splitlines() if "File too large" in line]
    assert "[1, 1, 1, 1, 1]" in done.stdout and len(errors) == 5 and "Traceback" not in done.stderr, done.stderr
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "graphs"]) and there.read_bytes() == b"mine"
    assert not [*(tmp_path / "graphs").iterdir()]


def test_an_output_that_is_not_utf8_gets_escapes(trained: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    (folder := tmp_path / "größe").mkdir()
    shutil.copy(tmp_path / "bars.npz", folder / "bars.npz")
    for words in (["--help"], ["data", "inspect", str(folder / "bars.npz")], ["runs", str(trained.parent)]):
        program = f"from infogan_ray.cli.main import main; raise SystemExit(main({words}))"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (
        r"hyperparameters (\u03bb, priors"
        in subprocess.run(
            [sys.executable, "-m", "infogan_ray", "--help"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        ).stdout
    )


@pytest.mark.parametrize(
    ("bug", "last_line"),
    [
        ("__import__('numpy').zeros(3).reshape(2, 2)", "ValueError: cannot reshape array of size 3 into shape (2,2)"),
        ("{}['absent']", "KeyError: 'absent'"),
        ("__import__('torch').zeros(2) @ __import__('torch').zeros(3)", "RuntimeError: "),
    ],
)
def test_a_bug_inside_a_command_shows_its_trace(bug: str, last_line: str, tmp_path: Path) -> None:
    program = (
        "from infogan_ray.cli import runs, main\n"
        f"runs.open_storage = lambda text: {bug}\n"
        f"raise SystemExit(main.main(['runs', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == FAILED and lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith(last_line), done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_function_in_the_module_of_the_same_name(name: str) -> None:
    assert callable(getattr(importlib.import_module(f"infogan_ray.cli.{name}"), name))


def test_ctrl_c_during_the_import_of_a_command_prints_one_line() -> None:
    program = "import signal; from infogan_ray.cli import main as cli; signal.setitimer(signal.ITIMER_REAL, 0.3); "
    program += "signal.signal(signal.SIGALRM, signal.default_int_handler); raise SystemExit(cli.main(['runs', '.']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "infogan: interrupted\n")
