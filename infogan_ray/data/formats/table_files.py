"""Opens tables on a disk: Parquet files, and Arrow files, which `datasets` writes by save_to_disk.

A Parquet file has row groups, and an Arrow file has record batches. Both are called groups here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infogan_ray import UserError

PARQUET, ARROW = ".parquet", ".arrow"
STATE = "state.json"  # of save_to_disk: it names a folder's Arrow files
BATCH = 64  # rows of a Parquet file that are in memory at a time
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def table_files(folder: Path) -> list[Path]:
    """The tables in a folder and its subfolders, sorted, without hidden ones.

    Of Arrow files, only those that a state.json names: `datasets` puts intermediate results beside them.
    Raises UserError for a state.json that cannot be used.
    """
    files = [*folder.rglob(f"*{PARQUET}")]
    for state in folder.rglob(STATE):
        files += _named_by(state)
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _named_by(state: Path) -> list[Path]:
    try:
        about = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"data: {state} cannot be read ({error})") from None
    files = about.get("_data_files") if isinstance(about, dict) else None
    if files is None:  # another program's file of this name
        return []
    if about.get("_indices_data_files") or about.get("_indices_files"):
        raise UserError(f"data: {state.parent} is a selection of rows; {export_command(state.parent)}")
    try:
        return [state.parent / Path(file["filename"]).name for file in files]
    except (KeyError, TypeError):
        raise UserError(f"data: '_data_files' in {state} does not name files; save the dataset again") from None


def export_command(folder: Path) -> str:
    """The next step for a dataset of `datasets` that cannot be read as it is."""
    return f"write it as Parquet: datasets.load_from_disk('{folder}').to_parquet('images.parquet')"


def header(file: Path) -> tuple[pa.Schema, tuple[int, ...]]:
    """A table's columns, and the rows of each group. Raises UserError for a damaged file and for equal names."""
    try:
        schema, groups = _parquet_header(file) if is_parquet(file) else _arrow_header(file)
        names = schema.names
    except DAMAGED as error:
        whole = "a whole .parquet file" if is_parquet(file) else "a whole Arrow file"
        raise UserError(f"data: {file} is not {whole} ({one_line(error)})") from None
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise UserError(f"data: {file} has {times} columns with the name '{name}'; give each its own name")
    return schema, groups


def _parquet_header(file: Path) -> tuple[pa.Schema, tuple[int, ...]]:
    with pq.ParquetFile(file) as table:
        metadata = table.metadata
        groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return table.schema_arrow, tuple(groups)


def _arrow_header(file: Path) -> tuple[pa.Schema, tuple[int, ...]]:
    with _arrow(file) as (schema, batches):
        return schema, tuple(batch.num_rows for batch in batches)


def read_groups(file: Path, groups: Sequence[int], column: str) -> Iterator[tuple[int, pa.Array | Exception]]:
    """Yield a column's rows with the number of their group, some at a time, or the error of a damaged group."""
    if is_parquet(file):
        for group in groups:
            try:
                with pq.ParquetFile(file) as table:
                    for batch in table.iter_batches(BATCH, row_groups=[group], columns=[column]):
                        yield group, batch.column(0)
            except DAMAGED as error:
                yield group, error
        return
    with _arrow(file) as (_, batches):
        for group, batch in enumerate(batches):
            if group in groups:
                values = batch.column(column)
                try:
                    values.validate(full=True)  # an Arrow file is mapped into memory without any check
                    yield group, values
                except DAMAGED as error:
                    yield group, error


def read_column(file: Path, column: str) -> list[Any]:
    """All values of a column. Raises UserError for a damaged file."""
    schema, groups = header(file)
    if column not in schema.names:
        raise UserError(f"data: {file} has no column '{column}', which other files have")
    try:
        return [value for rows in _sound(read_groups(file, range(len(groups)), column)) for value in rows.to_pylist()]
    except DAMAGED as error:
        raise UserError(f"data: {file} has no readable column '{column}' ({one_line(error)})") from None


def _sound(groups: Iterable[tuple[int, pa.Array | Exception]]) -> Iterator[pa.Array]:
    for _, rows in groups:
        if isinstance(rows, Exception):
            raise rows
        yield rows


def is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(PARQUET)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextmanager
def _arrow(file: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """An Arrow file, in the stream format or in the file format, which Feather is."""
    with pa.memory_map(str(file)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source)
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)
