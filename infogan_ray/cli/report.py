"""infogan report: writes report.html of a run or a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_result
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory


@dataclass
class Report:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORAGE/NAME")]
    """STORAGE/NAME of a run, which may still be training, or of a search."""


def report(arguments: list[str]) -> int:
    given = parse(
        Report,
        "report",
        arguments,
        "Write report.html into the folder of a run or search.",
        [
            "report runs/first",
            "report s3://bucket/runs/search",
        ],
    )
    folder = open_storage(given.run)
    if SearchDirectory(folder).exists:
        from infogan_ray.web.reports.search import write_search_report

        write_search_report(SearchDirectory(folder))
    else:
        from infogan_ray.web.reports.run import write_run_report

        write_run_report(RunDirectory(folder))
    print_result(f"{folder}/{RunDirectory.REPORT}")
    return DONE
