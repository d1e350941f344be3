"""Known factors from the dSprites file, without unpickling. Run: pytest tests/data/test_factors.py"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from infogan_ray.data.factors import DSprites, open_factors
from infogan_ray.data.shapes import Shapes

SIZES = (1, 3, 2, 4, 2, 3)  # color, shape, scale, orientation, x, y


class Trap:
    """Raises an error when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (raise_on_unpickling, ("unpickled",))


def raise_on_unpickling(word: str) -> None:
    raise AssertionError(word)


def arrays() -> dict[str, np.ndarray]:
    """The arrays of the dSprites file, with different images and a pickle for ``metadata``."""
    classes = np.array(list(itertools.product(*(range(size) for size in SIZES))), np.int64)
    rng = np.random.default_rng(0)
    return {
        "metadata": np.array({"latents_sizes": np.array(SIZES), "trap": Trap()}, dtype=object),
        "imgs": (rng.random((len(classes), 6, 6)) < 0.5).astype(np.uint8),
        "latents_classes": classes,
        "latents_values": classes.astype(np.float64),
    }


def write(path: Path, **changes: np.ndarray | None) -> Path:
    kept = {name: array for name, array in {**arrays(), **changes}.items() if array is not None}
    np.savez_compressed(path, **kept)
    return path


def test_dsprites_is_read_without_unpickling(tmp_path: Path) -> None:
    path = write(tmp_path / "dsprites.npz")
    with np.load(path, allow_pickle=True) as file, pytest.raises(AssertionError, match="unpickled"):
        file["metadata"]  # the trap works
    found = open_factors(str(path))
    assert isinstance(found, DSprites)
    assert found.names == ("shape", "scale", "orientation", "x", "y")
    assert found.sizes == SIZES[1:]
    assert found.ordered == (False, True, True, True, True)
    wanted = arrays()
    images = found.images(torch.from_numpy(wanted["latents_classes"][:, 1:]))
    assert images.dtype == torch.uint8 and images.shape == (len(wanted["imgs"]), 1, 6, 6)
    np.testing.assert_array_equal(images[:, 0].numpy(), wanted["imgs"] * 255)


def test_rows_in_another_order_are_found_by_their_classes(tmp_path: Path) -> None:
    wanted = arrays()
    order = np.random.default_rng(1).permutation(len(wanted["imgs"]))
    path = write(tmp_path / "mixed.npz", imgs=wanted["imgs"][order], latents_classes=wanted["latents_classes"][order])
    images = DSprites(path).images(torch.from_numpy(wanted["latents_classes"][:, 1:]))
    np.testing.assert_array_equal(images[:, 0].numpy(), wanted["imgs"] * 255)
    with pytest.raises(ValueError, match="orientation is from 4 to 4; valid are the classes 0 to 3"):
        DSprites(path).images(torch.tensor([[0, 0, 4, 0, 0]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": None}, "has no array 'imgs' .it has metadata, latents_classes, latents_values."),
        ({"latents_classes": None}, "has no array 'latents_classes'"),
        ({"imgs": arrays()["imgs"] * 255}, "imgs has pixels of 255; dSprites' are 0 and 1"),
        ({"imgs": arrays()["imgs"][1:]}, r"imgs is uint8 \(143, 6, 6\); dSprites has uint8 \(144, H, W\)"),
        ({"imgs": arrays()["imgs"].astype(float)}, "imgs is float64"),
        ({"imgs": np.array([{}] * 144, dtype=object)}, "'imgs' holds pickled objects, which are never read"),
        ({"latents_classes": np.array([{}] * 144, dtype=object)}, "'latents_classes' holds pickled objects"),
        ({"latents_classes": arrays()["latents_classes"][:, 1:]}, r"latents_classes is int64 \(144, 5\)"),
        ({"latents_classes": arrays()["latents_classes"] - 1}, "has -1 in it"),
        ({"latents_classes": np.asfortranarray(arrays()["latents_classes"])}, "stored column by column"),
        (
            {"latents_classes": np.concatenate([arrays()["latents_classes"][:1], arrays()["latents_classes"][:-1]])},
            "all 144 combinations of 1 x 3 x 2 x 4 x 2 x 3 values are needed, each once",
        ),
        ({"latents_classes": arrays()["latents_classes"] * 10**9}, "combinations of .* are needed, each once"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        DSprites(write(tmp_path / "wrong.npz", **changes))
    assert "\n" not in str(refused.value)


def test_truncated_files_and_other_npz_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.npz")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="is not a whole .npz file"):
        DSprites(path)
    np.savez(tmp_path / "short.npz", imgs=np.zeros((144, 6, 6), np.uint8))
    with pytest.raises(ValueError, match="give the .npz file of dSprites, or 'shapes'"):
        DSprites(tmp_path / "short.npz")


def test_valid_sources_of_known_factors(tmp_path: Path) -> None:
    assert isinstance(open_factors("shapes"), Shapes)
    (tmp_path / "photos").mkdir()
    for what, message in (("shape", "does not exist"), (str(tmp_path / "photos"), "is not an .npz file")):
        with pytest.raises(ValueError, match=rf"which {message}; valid are shapes and the .npz file of dSprites"):
            open_factors(what)
