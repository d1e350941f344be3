"""The training step, the loop, the feed and one complete run, without Ray. Run: pytest tests/training/test_step.py"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_ray.data.feeds.memory import InMemoryFeed, share, to_unit_range
from infogan_ray.data.image_set import ImageSet
from infogan_ray.distributed.cluster.resources import fit
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.precision import resolve_precision, set_matrix_products
from infogan_ray.models.traversal import to_bytes
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.load_model import load
from infogan_ray.training.loop import Diverged, train
from infogan_ray.training.run_evaluation import evaluate_checkpoint, evaluate_state
from infogan_ray.training.step import gradient_norm
from infogan_ray.training.train_state import TrainState
from infogan_ray.training.worker import Report, run_worker
from tests.conftest import tiny_config
from tests.training.steps import step_on


def make_state(config: RunConfig | None = None, seed: int = 0) -> TrainState:
    config = config or tiny_config()
    return TrainState(dataclasses.replace(config, seed=seed), 16, 1)


def step_once(state: TrainState, images: ImageSet) -> dict[str, torch.Tensor]:
    return step_on(state, images.images[:16], state.latents(16))


def test_the_bound_changes_the_gradients_of_trunk_and_generator(image_set: ImageSet) -> None:
    """Known mistake: Q's trunk does not get the gradient of L_I, or the term is detached from the graph."""
    gradients = []
    for weight in (0.0, 5.0):
        config = tiny_config()
        config = config.override({"objective": {"lambda_categorical": weight, "lambda_continuous": weight}}, "test")
        state = make_state(config)
        step_once(state, image_set)
        gradients.append(
            (state.discriminator.trunk[0].weight.grad.clone(), state.generator.layers[0].weight.grad.clone())
        )
    for without, with_information in zip(*gradients, strict=True):
        assert not torch.allclose(without, with_information)


def test_g_step_computes_no_gradient_for_d(image_set: ImageSet) -> None:
    state = make_state()
    step_once(state, image_set)
    after_d = {name: p.grad.clone() for name, p in state.discriminator.named_parameters()}
    # The same step without G's update gives the same gradients, so G's update adds nothing to them.
    again = make_state()
    latents = again.latents(16)
    both = torch.cat([to_unit_range(image_set.images[:16]), again.generator(latents).detach()])
    logits, q = again.discriminator(both, groups=2, q_from=16)
    from infogan_ray.models.losses import information_bound, weighted_bound

    bounds = information_bound(again.spec.latents, latents, q)
    (again.game.discriminator_loss(*logits.chunk(2)) - weighted_bound(bounds, again.lambdas)).backward()
    for name, parameter in again.discriminator.named_parameters():
        assert torch.allclose(parameter.grad, after_d[name], atol=1e-7), name
    assert all(p.requires_grad for p in state.discriminator.parameters())


def test_accuracy_counts_images_that_d_classifies_correctly(image_set: ImageSet) -> None:
    for seed in range(3):
        measured = step_once(make_state(seed=seed), image_set)["d_accuracy"].item()
        state = make_state(seed=seed)
        both = torch.cat([to_unit_range(image_set.images[:16]), state.generator(state.latents(16))])
        logits = state.discriminator(both, groups=2, q_from=16)[0].tolist()
        right = [logit > 0 for logit in logits[:16]] + [logit < 0 for logit in logits[16:]]
        assert measured == pytest.approx(sum(right) / 32) and 0 < measured < 1


def test_value_ranges_of_data_and_generator_match() -> None:
    """Known mistake: real data in [0, 1] with a tanh generator."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_unit_range(levels).aminmax() == (-1.0, 1.0)
    assert torch.equal(to_bytes(to_unit_range(levels)), levels)


def test_ranks_have_different_latents_whose_union_is_the_global_batch() -> None:
    """Known mistake: every rank samples the same z."""
    state = make_state()
    whole = state.latents(16)
    halves = [state.latents(16, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), whole) and not torch.equal(*halves)
    state.step += 1
    assert not torch.equal(state.latents(16), whole)


def test_the_feed_returns_each_image_once_per_epoch_and_ranks_are_disjoint() -> None:
    numbers = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    whole = InMemoryFeed(numbers, 16, seed=3)
    parts = [InMemoryFeed(numbers, 16, 3, rank, 2) for rank in (0, 1)]
    assert whole.steps_per_epoch == 3
    epoch = torch.cat([whole.batch(step) for step in range(3)]).flatten().tolist()
    assert len(set(epoch)) == 48
    for step in (0, 2, 4):
        assert torch.equal(torch.cat([part.batch(step) for part in parts]), whole.batch(step))
    again = torch.cat([whole.batch(step) for step in range(3, 6)]).flatten().tolist()
    assert again != epoch and set(again) != set(epoch), "the next epoch contains images that this one left out"


def test_the_same_seed_gives_the_same_bits(image_set: ImageSet) -> None:
    finals = []
    for seed in (0, 0, 1):
        state = make_state(seed=seed)
        feed = InMemoryFeed(image_set.images, 16, seed)
        list(train(state, feed, steps=4, log_every=2, checkpoint_every=4))
        finals.append(torch.cat([p.flatten() for p in state.generator.parameters()]))
    assert torch.equal(finals[0], finals[1]) and not torch.equal(finals[0], finals[2])


def test_divergence_names_step_and_quantity(image_set: ImageSet) -> None:
    state = make_state()
    with torch.no_grad():
        state.generator.layers[0].weight.fill_(float("nan"))
    feed = InMemoryFeed(image_set.images, 16, 0)
    with pytest.raises(Diverged, match="d_loss is nan at step 1"):  # not step 2, when it is detected
        list(train(state, feed, steps=4, log_every=2, checkpoint_every=4))


def test_a_non_finite_gradient_is_a_divergence(image_set: ImageSet) -> None:
    state = make_state()
    state.generator.layers[0].weight.register_hook(lambda grad: grad * float("inf"))
    feed = InMemoryFeed(image_set.images, 16, 0)
    with pytest.raises(Diverged, match="g_grad_norm is (nan|inf) at step 1"):
        list(train(state, feed, steps=4, log_every=1, checkpoint_every=4))


def test_a_halt_ends_training_at_the_next_step(image_set: ImageSet) -> None:
    state = make_state()
    feed = InMemoryFeed(image_set.images, 16, 0)
    list(train(state, feed, steps=100, log_every=50, checkpoint_every=100, halt=lambda: state.step == 3))
    assert state.step == 3


def test_unequal_shares_cover_the_batch_and_are_weighted(image_set: ImageSet) -> None:
    """Three ranks share a batch of 16: the weighted mean of their means is the mean over all rows."""
    shares = [share(16, rank, 3) for rank in range(3)]
    assert [row for part in shares for row in range(16)[part]] == list(range(16))
    weights = [len(range(16)[part]) * 3 / 16 for part in shares]
    values = torch.arange(16.0)
    means = [weight * values[part].mean() for weight, part in zip(weights, shares, strict=True)]
    assert sum(means) / 3 == pytest.approx(values.mean().item())


def test_the_average_forgets_its_start_and_has_its_own_statistics(image_set: ImageSet) -> None:
    state = make_state()
    for _ in range(3):
        step_once(state, image_set)
    generator = state.averaged_generator()
    latents = state.spec.latents.sample(500, torch.Generator().manual_seed(9))
    with torch.no_grad():
        still = generator(latents)
        generator.train()
        live = generator(latents)
    assert (still - live).abs().mean() < 0.05, "evaluation mode and training mode give similar images"


def test_statistics_of_the_average_are_computed_once_per_weights(
    image_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infogan_ray.training import train_state as module

    calls = []
    calibrate = module.calibrate
    monkeypatch.setattr(module, "calibrate", lambda *given: (calls.append(1), calibrate(*given)))
    state = make_state()
    step_once(state, image_set)
    model, training = ({k: v.clone() for k, v in t.items()} for t in (state.model_tensors(), state.training_tensors()))
    state.averaged_generator()
    assert len(calls) == 1
    step_once(state, image_set)
    name = "layers.1.running_mean"
    assert not torch.equal(state.averaged_generator().state_dict()[name], model[f"generator.{name}"])
    assert len(calls) == 2
    state.restore(1, model, training)
    assert torch.equal(state.averaged_generator().state_dict()[name], model[f"generator.{name}"]) and len(calls) == 3


def test_precision_is_resolved_for_the_machine() -> None:
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")


def test_checkpoints_are_measured_in_the_precision_of_training(image_set: ImageSet) -> None:
    """fp32 takes twice as long and gives almost the same metrics. The evaluation does not change D."""
    config, measured = tiny_config(), []
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        state = TrainState(dataclasses.replace(config, precision=precision), 16, 1)
        for _ in range(10):
            step_once(state, image_set)
        kinds, before = set(), {name: tensor.clone() for name, tensor in state.discriminator.state_dict().items()}
        state.discriminator.trunk[0].register_forward_hook(lambda *call, seen=kinds: seen.add(call[2].dtype))
        measured.append(evaluate_state(state, image_set, config, lambda: None))
        assert kinds == {kind}
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.discriminator.state_dict().items())
    assert measured[0].keys() == measured[1].keys() and "clustering_error" in measured[0]
    assert measured[0]["mi_bound"] == pytest.approx(measured[1]["mi_bound"], abs=1e-2)


def test_the_best_checkpoint_is_measured_in_fp32_except_for_training_images(
    image_set: ImageSet, tmp_path: Path
) -> None:
    """Test images and generated images are evaluated in fp32, training images in the precision of training."""
    outcomes = []
    for precision in ("fp32", "bf16"):
        config = tiny_config(steps=10, checkpoint_every=10, precision=precision)
        run_alone(config, image_set, tmp_path / precision)
        chosen = checkpoints.choose(
            RunDirectory(open_storage(tmp_path / precision)).checkpoints, "best", "step", lower_is_better=False
        )
        seen: list[tuple[int, torch.dtype]] = []
        with record_outputs(seen):
            model = InfoGAN.from_tensors(config.model_spec(16, 1), chosen.model_tensors(), chosen.folder)
            outcomes.append(evaluate_checkpoint(model, image_set, config, torch.device("cpu"), lambda: None))
        by_kind = {kind: sum(count for count, dtype in seen if dtype == kind) for _, kind in seen}
        quick = by_kind.pop(torch.bfloat16, 0)
        assert quick == (len(image_set.images) if precision == "bf16" else 0) and by_kind.keys() == {torch.float32}
    assert outcomes[0].keys() == outcomes[1].keys() and "clustering_error" in outcomes[0]


@contextlib.contextmanager
def record_outputs(seen: list[tuple[int, torch.dtype]]) -> Iterator[None]:
    """Record the rows and the dtype of the output of each first convolution of D."""

    def record(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Conv2d) and layer.in_channels == 1:
            seen.append((len(output), output.dtype))

    handle = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        yield
    finally:
        handle.remove()


def test_training_works_in_bf16(image_set: ImageSet) -> None:
    config = tiny_config()
    state = TrainState(dataclasses.replace(config, precision="bf16"), 16, 1)
    metrics = step_once(state, image_set)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert next(state.generator.parameters()).dtype == torch.float32


def run_alone(config: RunConfig, images: ImageSet, path: Path, **more: Any) -> tuple[RunDirectory, list[Report]]:
    run = RunDirectory(open_storage(path))
    run.write_config({"model": config.model_spec(16, 1).to_dict(), "run": config.to_dict()})
    return run, list(run_worker(config, images, run, device=torch.device("cpu"), **more))


def test_a_run_without_ray_stores_all_files(image_set: ImageSet, tmp_path: Path) -> None:
    run, reports = run_alone(tiny_config(), image_set, tmp_path / "run")
    assert run.get_status()["state"] == "finished"
    assert [row["step"] for row in run.read_metrics()] == [2, 3, 4, 6]
    assert {p.name for p in run.checkpoints.entries()} == {"step_00000003", "step_00000006"}
    assert run.samples.is_file("step_00000006.png") and run.traversals.is_file("step_00000006_cat0.png")
    assert {p.name for p in run.model.entries()} >= {"config.json", "model.safetensors", "README.md", "samples.png"}
    final = reports[-1].metrics
    assert 0 <= final["clustering_error"] <= 1 and final["mi_bound"] == pytest.approx(
        final["mi/cat0"] + final["mi/uniform0"]
    )
    assert load(run.model.uri).sample(3, {"cat0": 1}).shape == (3, 1, 16, 16)


def test_a_resumed_run_equals_an_uninterrupted_one(image_set: ImageSet, tmp_path: Path) -> None:
    whole, _ = run_alone(tiny_config(), image_set, tmp_path / "whole")
    half, _ = run_alone(tiny_config(steps=3), image_set, tmp_path / "half")
    run_alone(tiny_config(steps=6), image_set, tmp_path / "half")
    wanted = checkpoints.open_checkpoint(whole.checkpoints / "step_00000006")
    found = checkpoints.open_checkpoint(half.checkpoints / "step_00000006")
    for mine, theirs in (
        (wanted.model_tensors(), found.model_tensors()),
        (wanted.training_tensors(), found.training_tensors()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_older_run_continues_with_its_own_model_and_options(image_set: ImageSet, tmp_path: Path) -> None:
    from infogan_ray.training.resume import own_settings
    from infogan_ray.training.run_setup import check_same_model, write_config

    run, config = RunDirectory(open_storage(tmp_path / "run")), tiny_config()
    write_config(run, config, image_set)
    saved = run.read_config()
    assert saved["model"]["network"].pop("spectral_norm") is False
    del saved["run"]["stability"]["mean_bias"]
    run.write_config(saved)
    check_same_model(run, config, image_set)
    assert own_settings(run).stability.mean_bias is False, "the run started without mean bias, and keeps that"
    with pytest.raises(ValueError, match=r"differs from this one \(network.width .*; its config is .*config.json"):
        check_same_model(run, config.override({"network": {"width": 12}}, "test"), image_set)


def test_microbatches_are_computed_one_after_another(image_set: ImageSet) -> None:
    """No layer gets more than one microbatch of real and generated images. The metrics are for all of them."""
    config = tiny_config().override({"optimizer": {"accumulate": 3}}, "test")
    state = TrainState(config, 16, 1)
    seen = set()
    for module in (state.generator, state.discriminator):
        module.register_forward_pre_hook(lambda module, given: seen.add((type(module).__name__, len(given[0]))))
    metrics = step_once(state, image_set)
    assert seen == {
        ("Generator", 5), ("Generator", 6), ("Discriminator", 10), ("Discriminator", 12), ("Discriminator", 5),
        ("Discriminator", 6),
    }  # fmt: skip
    whole = step_once(make_state(), image_set)
    assert list(metrics) == list(whole) and state.step == 1
    assert 0 < (metrics["d_loss"] - whole["d_loss"]).abs() < 0.1


def test_each_row_has_the_same_weight_in_microbatches_of_any_size(image_set: ImageSet) -> None:
    """16 rows in three microbatches: D's gradient and loss are the means over rows of separate steps."""

    def moments(state: TrainState) -> torch.Tensor:
        tensors = state.training_tensors()
        return torch.cat(
            [tensors[n].flatten() for n in sorted(tensors) if n.startswith("opt_d.") and n.endswith("exp_avg")]
        )

    config = tiny_config().override({"optimizer": {"accumulate": 3}}, "test")
    together, images = TrainState(config, 16, 1), image_set.images[:16]
    latents = together.latents(16)
    metrics = step_on(together, images, latents)
    gradient, loss = torch.zeros_like(moments(together)), torch.zeros(())
    for rows in (slice(0, 5), slice(5, 10), slice(10, 16)):
        alone = TrainState(tiny_config(), 16, 1)
        found = step_on(alone, images[rows], latents[rows])
        gradient += len(latents[rows]) / 16 * moments(alone)
        loss += len(latents[rows]) / 16 * found["d_loss"]
    assert torch.allclose(moments(together), gradient, atol=1e-5) and gradient.abs().max() > 1e-3
    assert torch.allclose(metrics["d_loss"], loss, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"accumulate": 0}}, "optimizer.accumulate is 0; it must be at least 1"),
        ({"optimizer": {"accumulate": 9}}, "of batch_size 16 a microbatch would have one image.*take 8 or less"),
        ({"optimizer": {"accumulate": 5}, "workers": 2}, "take 4 or less"),
        ({"optimizer": {"accumulate": 2}, "contrastive": {"weight": 1.0}}, "contrastive.weight is on"),
        ({"optimizer": {"accumulate": 2}, "prior": {"learn": True, "method": "gumbel"}}, "prior.method gumbel is on"),
    ],
)  # fmt: skip
def test_impossible_microbatches_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config().override(changes, "test")


def test_tf32_is_set_only_on_request_and_only_for_gpus() -> None:
    """Only the setting is tested; its effect needs a GPU."""
    matmul = torch.backends.cuda.matmul
    for precision, products in (("tf32", "tf32"), ("bf16", "ieee"), ("fp32", "ieee")):
        set_matrix_products(precision)
        assert matmul.fp32_precision == products
    gpu = [{"CPU": 4.0, "GPU": 1.0}]
    assert fit(tiny_config(precision="tf32", device="auto"), gpu).device == "cuda"
    for changes, machine in (({"device": "cpu"}, gpu[0]), ({"device": "auto"}, {"CPU": 4.0})):
        with pytest.raises(ValueError, match="precision is 'tf32', which needs a GPU"):
            fit(tiny_config(precision="tf32", **changes), [machine])


def test_the_gradient_norm_includes_all_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    assert gradient_norm(layer) == 0
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 2.0).T.contiguous().T, torch.tensor([1.0, 0.0])
    assert gradient_norm(layer) == 5
    layer.bias.grad[1] = torch.nan
    assert torch.isnan(gradient_norm(layer))
