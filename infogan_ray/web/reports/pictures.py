"""The pictures of a model folder, as figures with the bytes in the page itself."""

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
    """How many more bytes of pictures a page may hold, so that it stays small enough to be mailed."""

    left: int = 6_000_000


def model_pictures(model: Storage, whose: str, notes: Mapping[str, str], room: PictureBudget) -> str:
    """HTML of the samples and of each code's traversal; ``notes``: words for a code's caption, by code name.

    A picture that cannot be read, or exceeds the budget, is named in a line instead.
    """
    try:
        names = [entry.name for entry in model.entries() if not entry.is_folder and entry.name.endswith(".png")]
    except (UserError, StorageError) as error:
        return f'<p class="soft">{escape(f"{whose} has no pictures that could be read: {error}")}</p>'
    if not names:
        return f'<p class="soft">{escape(f"{whose} has no model folder with pictures.")}</p>'
    figures, missing = [], []
    for name in sorted(names, key=_order):
        try:
            content = model.read(name)
            check_content(name, content)
        except (UserError, FileNotFoundError, StorageError) as error:
            missing.append(str(error))
            continue
        if len(content) > room.left:
            missing.append(f"{name} has no room in this page; it is in {model}")
            continue
        room.left -= len(content)
        figures.append(_figure(name, content, whose, notes))
    lines = "".join(f'<p class="soft">{escape(line)}</p>' for line in missing)
    return f'<div class="pictures">{"".join(figures)}</div>{lines}'


def _figure(name: str, content: bytes, whose: str, notes: Mapping[str, str]) -> str:
    found = TRAVERSAL.fullmatch(name)
    if found:
        code = found[1]
        title, more = f"code {code}", notes.get(code, "")
        alt = f"Traversal of code {code} of {whose}: a grid of images in which this code changes step by step"
    else:
        title, more = ("samples", "drawn at random") if name == SAMPLES else (name, "")
        alt = f"Samples of {whose}: a grid of images drawn from random noise and codes"
        alt = alt if name == SAMPLES else f"{name} of {whose}"
    return picture(content, title, more, alt)


def picture(content: bytes, title: str, more: str, alt: str) -> str:
    """A PNG with its caption, its bytes in the page."""
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    caption = f"<figcaption><strong>{escape(title)}</strong><br/>{escape(more)}</figcaption>"
    return f'<figure>{caption}<img src="{source}" alt="{escape(alt)}" loading="lazy"/></figure>'


def _order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Samples first; uniform10 after uniform9."""
    return name != SAMPLES, [(int(part or 0), word) for word, part in re.findall(r"(\D+)(\d*)", name)]
