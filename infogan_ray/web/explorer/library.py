"""The page's cards for the runs, searches and models in a storage folder, or for the trials of a search."""

from __future__ import annotations

from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.texts import headline_texts
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, winner
from infogan_ray.storage import manifests
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.publish import METRICS
from infogan_ray.training.run_listing import run_row
from infogan_ray.web.explorer.model_catalog import PLAIN_NAME, ModelCatalog, folder_kind, picture_steps

LISTED = 200  # entries of a storage folder on one page


class Library:
    """The cards. Cards of runs are cached, because the page reloads them every few seconds."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self.catalog = catalog
        self._rows: dict[str, tuple[Any, dict[str, Any]]] = {}

    def rows(self, id: str = "") -> dict[str, Any]:
        """The runs, searches and models of the root, or the trials of one search, as rows for cards."""
        folder = self.catalog.folder(id)
        if folder_kind(folder) == "search":
            return self._search(id, SearchDirectory(folder))
        rows = []
        names = sorted((entry.name for entry in folder.entries() if entry.is_folder), reverse=True)
        for name in names[:LISTED]:
            child = f"{id}/{name}" if id else name
            kind = folder_kind(folder / name) if PLAIN_NAME.fullmatch(name) else None
            if kind == "run":
                rows.append(self._run_card(child, RunDirectory(folder / name)))
            elif kind == "search":
                rows.append(self._search_card(child, SearchDirectory(folder / name)))
            elif kind == "model":
                rows.append({"id": child, "kind": "model", "name": name, **self._metrics_of_model(folder / name)})
        return {"title": str(folder), "rows": rows, "left_out": max(0, len(names) - LISTED)}

    def _run_card(self, id: str, run: RunDirectory) -> dict[str, Any]:
        status = run.get_status()
        version = (status["state"], status["step"], status.get("stored"), status.get("time"))
        if id not in self._rows or self._rows[id][0] != version:
            row = run_row(run)
            shown = {"state": row["state"], "step": row["step"], "measured": headline_texts(row)}
            steps = picture_steps(run)
            card = {"id": id, "kind": "run", "name": run.name, **shown, "picture": steps[-1] if steps else None}
            self._rows[id] = (version, card)
        return self._rows[id][1]

    def _search_card(self, id: str, search: SearchDirectory) -> dict[str, Any]:
        try:
            count = len(search.description()["trials"])
            best = self._board_best(search)
        except (UserError, KeyError, StorageError) as error:
            return {"id": id, "kind": "search", "name": search.name, "state": str(error)}
        state = "finished" if search.folder.is_file(search.BOARD) else "running or interrupted"
        card = {"id": id, "kind": "search", "name": search.name, "trials": count, "state": state, "best": best}
        return {**card, "report": search.folder.is_file(search.REPORT)}

    def _board_best(self, search: SearchDirectory) -> int | None:
        if not search.folder.is_file(search.BOARD):
            return None
        picks = manifests.parse_json(search.name, search.folder.read(search.BOARD)).get("picks", {})
        return picks.get(DEFAULT)

    def _search(self, id: str, search: SearchDirectory) -> dict[str, Any]:
        board = leaderboard(search)
        best = winner(board, search.description()["metric"], DEFAULT)
        rows = []
        for row in board:
            run = search.trial(row["trial"])
            child = f"{id}/trials/{run.name}" if id else f"trials/{run.name}"
            steps = picture_steps(run)
            shown = {"state": row["state"], "step": row["step"], "measured": headline_texts(row)}
            rows.append(
                {"id": child, "kind": "run", "name": f"trial {row['trial']}", **shown, "values": row["values"],
                 "picture": steps[-1] if steps else None, "best": best is not None and best["trial"] == row["trial"]}
            )  # fmt: skip
        report = search.folder.is_file(search.REPORT)
        return {"title": str(search.folder), "rows": rows, "left_out": 0, "search": id, "report": report}

    def _metrics_of_model(self, folder: Storage) -> dict[str, Any]:
        try:
            metrics = manifests.parse_json(f"{folder}/{METRICS}", folder.read(METRICS))
            return {"state": "model", "step": metrics.get("step"), "measured": headline_texts(metrics)}
        except (FileNotFoundError, UserError, StorageError) as error:
            return {"state": str(error)}
