"""The pictures of a model folder as HTML figures. The page contains their bytes."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from infogan_ray import UserError
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.training.publish import SAMPLES, check_content
from infogan_ray.web.reports.markup import escape

TRAVERSAL = re.compile(r"traversal_(.+)\.png")  # as training/publish.py names them


@dataclass
class PictureBudget:
    """The remaining bytes for pictures in a page, so that the page is small enough for an e-mail."""

    left: int = 6_000_000


def model_pictures(model: Storage, owner: str, notes: Mapping[str, str], budget: PictureBudget) -> str:
    """The samples and each code's traversal as HTML. ``notes``: additions to captions, by code.

    ``owner``: the name of the run or trial. A picture that cannot be read or exceeds the budget becomes a line of text.
    """
    try:
        names = [entry.name for entry in model.entries() if not entry.is_folder and entry.name.endswith(".png")]
    except (UserError, StorageError) as error:
        return f'<p class="soft">{escape(f"the pictures of {owner} cannot be read: {error}")}</p>'
    if not names:
        return f'<p class="soft">{escape(f"{owner} has no model folder with pictures.")}</p>'
    figures, missing = [], []
    for name in sorted(names, key=_order):
        try:
            content = model.read(name)
            check_content(name, content)
        except (UserError, FileNotFoundError, StorageError) as error:
            missing.append(str(error))
            continue
        if len(content) > budget.left:
            missing.append(f"{name} is too large for this page; it is in {model}")
            continue
        budget.left -= len(content)
        figures.append(_figure(name, content, owner, notes))
    lines = "".join(f'<p class="soft">{escape(line)}</p>' for line in missing)
    return f'<div class="pictures">{"".join(figures)}</div>{lines}'


def _figure(name: str, content: bytes, owner: str, notes: Mapping[str, str]) -> str:
    found = TRAVERSAL.fullmatch(name)
    if found:
        code = found[1]
        title, note = f"code {code}", notes.get(code, "")
        alt = f"Traversal of code {code} of {owner}: a grid of images in which this code changes step by step"
    else:
        title, note = ("samples", "from random noise and codes") if name == SAMPLES else (name, "")
        alt = f"Samples of {owner}: a grid of images from random noise and codes"
        alt = alt if name == SAMPLES else f"{name} of {owner}"
    return picture(content, title, note, alt)


def picture(content: bytes, title: str, note: str, alt: str) -> str:
    """A PNG file as a figure with a caption. The HTML contains its bytes."""
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    caption = f"<figcaption><strong>{escape(title)}</strong><br/>{escape(note)}</figcaption>"
    return f'<figure>{caption}<img src="{source}" alt="{escape(alt)}" loading="lazy"/></figure>'


def _order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """The sort key of pictures: samples first, and uniform10 after uniform9."""
    return name != SAMPLES, [(int(part or 0), word) for word, part in re.findall(r"(\D+)(\d*)", name)]
