"""Reads all images of a source into one array, in threads. Broken files are reported and skipped, or refused."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.conversion import CROP, DEFAULT, Conversion
from infogan_ray.data.decoding import decode, wide_values
from infogan_ray.data.image_files import Broken, Files, Say, describe, read_file
from infogan_ray.data.pixel_range import Values, range_line
from infogan_ray.data.progress import Pace, counted
from infogan_ray.storage.visible_text import printable, shell_word

NAMED = 5  # broken files in a message; `infogan data inspect` lists all
SAY_EVERY_S = 5.0
MOST_THREADS = 32
SAMPLE = 10_000  # files from which the pixel range of a dataset is found that is not loaded
T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 (N, C, S, S), their rows and names in the source, and the broken files with reasons."""

    images: Tensor
    rows: list[int]
    names: list[str]
    broken: dict[str, str]
    conversions: Counter[str]
    how: Conversion = DEFAULT
    """The settings of the conversion, with the pixel range that was set or found. None if all images have 8 bits."""


def map_files(
    source: Files, work: Callable[[bytes], T], say: Say, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, T | Broken]]:
    """Yield each file's row with ``work(bytes)``, or with Broken, in the order of ``Files.contents``.

    Pillow releases the interpreter's lock while it decodes, so threads decode in parallel. Only a few files are in
    memory at a time.
    """
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)

    def process(content: bytes | Path | Broken) -> T | Broken:
        if isinstance(content, Broken):
            return content
        try:
            return work(read_file(content) if isinstance(content, Path) else content)
        except Broken as reason:
            return reason

    total = len(source.names) if rows is None else len(rows)
    waiting: deque[tuple[int, Future[T | Broken]]] = deque()
    reported, pace, done = time.monotonic(), Pace(), 0
    pace.report(done)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's warnings about single files; conversions are counted instead
        contents = source.contents(rows)
        has_more = True
        while has_more or waiting:
            while has_more and len(waiting) < 2 * threads:
                item = next(contents, None)
                if item is None:
                    has_more = False
                else:
                    waiting.append((item[0], pool.submit(process, item[1])))
            if not waiting:
                break
            row, future = waiting.popleft()
            yield row, future.result()
            done += 1
            now = time.monotonic()
            if now - reported >= SAY_EVERY_S:
                pace.report(done)
                say(f"data: {done:,} of {total:,} images read, {pace.speed:,.0f}/s, {pace.left(total)}")
                reported = now


def read_pictures(
    source: Files, size: int, channels: int, say: Say, max_bad: float = 0.0, how: Conversion = DEFAULT
) -> Pictures:
    """Read every image of a source, make it square and resize it.

    Images of more than eight bits are read twice if ``how`` has no pixel range: first to find the range of all of them.
    Raises UserError, in one line, if all images or a larger share than ``max_bad`` are broken.
    """
    images = np.empty((len(source.names), channels, size, size), np.uint8)
    broken: dict[int, str] = {}
    conversions: Counter[str] = Counter()
    values: dict[int, Values] = {}

    def read_all(how: Conversion, rows: Sequence[int] | None = None) -> None:
        for row, read in map_files(
            source, lambda content: decode(content, size, channels, crop=source.crop, how=how), say, rows
        ):
            if isinstance(read, Broken):
                broken[row] = str(read)
                continue
            images[row], facts = read
            if facts.values is not None:
                values[row] = facts.values
                if how.pixel_range is None:
                    continue  # it is read again
            conversions.update(facts.conversions(size, channels))

    read_all(how)
    found = union(values.values())
    if found is not None:
        fixed = how.pixel_range is not None
        if not fixed:
            how = how.with_range_of(found)
            read_all(how, sorted(values))
        assert how.pixel_range is not None
        say(f"data: {range_line(how.pixel_range, found, fixed)}")
    kept = [row for row in range(len(source.names)) if row not in broken]
    reasons = {source.names[row]: broken[row] for row in sorted(broken)}
    if len(broken) > max_bad * len(source.names) or not kept:
        raise UserError(_too_many(source, reasons, max_bad))
    for place, row in enumerate(kept):  # in place: a copy would need twice the memory
        if place != row:
            images[place] = images[row]
    names = [source.names[row] for row in kept]
    used = how if found is not None else replace(how, pixel_range=None)
    return Pictures(torch.from_numpy(images[: len(kept)]), kept, names, reasons, conversions, used)


def union(values: Iterable[Values]) -> Values | None:
    """The values of all images; None if there are none."""
    return reduce(Values.__or__, values) if (values := list(values)) else None


def sample_values(source: Files, say: Say, fit: str = CROP, most: int = SAMPLE) -> Values | None:
    """The values of images of more than eight bits: of all files, or of ``most`` files at equal distances.

    None if there is no such image. Broken files are left out. Images of eight bits are not decoded.
    """
    count = len(source.names)
    rows = None if count <= most else [count * place // most for place in range(most)]
    read = map_files(source, lambda content: wide_values(content, source.crop, fit), say, rows)
    return union(values for _, values in read if isinstance(values, Values))


def summary(source: Files, pictures: Pictures) -> list[str]:
    """One line for the images, one for skipped files if there are any, and one for broken files if there are any."""
    done = describe(pictures.conversions) or "unchanged"
    lines = [f"data: {counted(len(pictures.names), 'image')} of {source.path}: {done}"]
    if source.skipped:
        lines.append(f"data: skipped, because they cannot be read as images: {describe(source.skipped)}")
    if pictures.broken:
        share = len(pictures.broken) / len(source.names)
        lines.append(
            f"data: {_count(pictures.broken)} ({share:.2%}) skipped: {name_some(pictures.broken)}; "
            f"to list all: {_inspect(source)}"
        )
    return lines


def name_some(broken: dict[str, str]) -> str:
    """The first few broken files with their reasons."""
    some = [f"{printable(name)} {reason}" for name, reason in list(broken.items())[:NAMED]]
    more = len(broken) - len(some)
    return "; ".join(some) + (f"; and {more:,} more" if more else "")


def _count(broken: dict[str, str]) -> str:
    return counted(len(broken), "broken file")


def _too_many(source: Files, broken: dict[str, str], max_bad: float) -> str:
    share = f"{_count(broken)} of {len(source.names):,} in {source.path} ({len(broken) / len(source.names):.2%})"
    if len(broken) == len(source.names):
        return f"data: {share}, so no image is left: {name_some(broken)}"
    return (
        f"data: {share}, more than max_bad {max_bad:.2%} allows: {name_some(broken)}. To list all: "
        f"{_inspect(source)}; remove or repair them, or allow more with --max-bad {_round_up(len(broken), source)}"
    )


def _inspect(source: Files) -> str:
    return f"infogan data inspect {shell_word(str(source.path))}"


def _round_up(broken: int, source: Files) -> str:
    """The smallest max_bad, in thousandths, that allows this many broken files."""
    return f"{-(-broken * 1000 // len(source.names)) / 1000:g}"
