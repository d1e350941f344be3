"""Tells Ray Tune which trials continue, by our own successive halving, and keeps its journal on storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from infogan_ray import Recipe
from infogan_ray.distributed.tune.trials import OUT_OF_MEMORY, TAKEN_OVER, out_of_memory
from infogan_ray.evaluation.metrics import HEADLINES
from infogan_ray.searches.asha import Halving, Verdict
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.training.checkpoint_uploader import LAST_PATIENCE_S
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import last_line, set_last_status

SearchEvent = dict[str, Any]
"""Of one trial: ``trial``, ``event`` (progress, score, stopped, restarted or the state that it ended in), ``images``,
metrics as far as they are known, and ``say``: a line for people, or nothing. Of the search: ``event`` data, ``say``."""
SearchListener = Callable[[SearchEvent], None]


class AshaScheduler(FIFOScheduler):
    """Passes each score to ``Halving``, and its verdict to Tune."""

    def __init__(self, directory: SearchDirectory, halving: Halving, recipe: Recipe, listen: SearchListener) -> None:
        super().__init__()
        self.directory, self.halving, self.recipe, self.listen = directory, halving, recipe, listen
        self.is_closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler into a file that nobody reads. A listener may hold what cannot be pickled."""
        return {**self.__dict__, "listen": None}

    def close(self) -> None:
        """Ignore all results from now on: a trial that is interrupted has not failed."""
        self.is_closed = True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["trial"]
        if result.get(TAKEN_OVER):
            self.close()
        if self.is_closed:
            return TrialScheduler.STOP
        event = {name: result[name] for name in ("images", *HEADLINES) if name in result}
        known = len(self.halving.events)
        if "score" in result:
            self.halving.report(number, result["images"], result["score"])
        is_new = len(self.halving.events) > known
        if is_new:
            self._save_journal()
        verdict = self.halving.verdict(number)
        stops = verdict is Verdict.STOP
        kind = "stopped" if stops else "score" if "score" in result else "progress"
        say = self._text(number, result, verdict) if stops or is_new else ""
        self.listen({**event, "trial": number, "event": kind, "say": say})
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._end(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        number = trial.config["trial"]
        if trial.should_recover():  # Tune calls this before each restart as well
            say = f"trial {number}: its process died; it is started again"
            self.listen({"trial": number, "event": "restarted", "say": say})
            return
        error = trial.get_error()
        why = last_line(error) if error is not None else "its process died"
        if OUT_OF_MEMORY.search(why):
            config = RunConfig().override(self.directory.description()["trials"][number], "the search")
            why = f"{out_of_memory(config)} ({why})"
        run = self.directory.trial(number)
        if not self.is_closed:
            set_last_status(run, "failed", run.get_status()["step"], message=why)
        self._end(number, "failed")

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._end(trial.config["trial"], "failed")

    def _end(self, number: int, state: str | None = None) -> None:
        """By default in the state that the trial's own status names."""
        if self.is_closed or self.halving.verdict(number) is Verdict.STOP:
            return
        self.halving.end(number)
        self._save_journal()
        status = self.directory.trial(number).get_status()
        state = state or status["state"]
        why = f": {status['message']}" if status.get("message") else ""
        self.listen({"trial": number, "event": state, "say": f"trial {number}: {state}{why}"})

    def _save_journal(self) -> None:
        """Before any decision follows from it. Through an outage of storage it waits, and trials wait for it."""
        SearchDirectory(self.directory.folder.with_retry_timeout(LAST_PATIENCE_S)).save_events(self.halving)

    def _text(self, number: int, result: dict[str, Any], verdict: Verdict) -> str:
        reached = max((rung for rung in self.halving.rungs if rung <= result["images"]), default=0)
        rung = self.halving.stopped_at(number) or reached
        place = self.halving.place(number, rung) if rung else None
        where = f", place {place[0]} of {place[1]}" if place else ""
        words = {
            Verdict.CONTINUE: "continues", Verdict.STOP: "is stopped", Verdict.WAIT: "continues until others report"
        }  # fmt: skip
        score = f", {self.recipe.metric} {result['score']:.3f}" if "score" in result else ""
        return f"trial {number}: {result['images']:,} images{score}{where}: {words[verdict]}"


class StopIfTakenOver(tune.Stopper):
    """Ends a search that another attempt has taken over: Tune would still start the trials that wait."""

    def __init__(self, scheduler: AshaScheduler) -> None:
        self.scheduler = scheduler

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.scheduler.is_closed
