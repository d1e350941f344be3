"""Decides for Ray Tune which trials continue, by our own successive halving, and stores its journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from infogan_ray import Recipe
from infogan_ray.distributed.tune.trials import TAKEN_OVER
from infogan_ray.evaluation.metrics import HEADLINES
from infogan_ray.searches.asha import Decision, Halving
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.training.checkpoint_uploader import LAST_TIMEOUT_S
from infogan_ray.training.config import RunConfig
from infogan_ray.training.out_of_memory import FOR_A_TRIAL, is_out_of_memory, out_of_memory
from infogan_ray.training.run_outcome import last_line, set_last_status

SearchEvent = dict[str, Any]
"""An event of a trial has ``trial``, ``event``, ``images``, the known metrics and ``say``.

``event`` is progress, score, stopped, restarted or the final state. ``say`` is a line for the user, or "". An event of
the search has ``event`` data and ``say``.
"""
SearchListener = Callable[[SearchEvent], None]


class AshaScheduler(FIFOScheduler):
    """Sends each score to ``Halving``, and the decision of ``Halving`` to Tune."""

    def __init__(self, directory: SearchDirectory, halving: Halving, recipe: Recipe, listen: SearchListener) -> None:
        super().__init__()
        self.directory, self.halving, self.recipe, self.listen = directory, halving, recipe, listen
        self.is_closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler into a file that is never read. A listener may not be picklable."""
        return {**self.__dict__, "listen": None}

    def close(self) -> None:
        """Ignore all later results: an interrupted trial has not failed."""
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
        decision = self.halving.decision(number)
        stops = decision is Decision.STOP
        kind = "stopped" if stops else "score" if "score" in result else "progress"
        say = self._text(number, result, decision) if stops or is_new else ""
        self.listen({**event, "trial": number, "event": kind, "say": say})
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._end(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        number = trial.config["trial"]
        if trial.should_recover():  # Tune also calls this before each restart
            say = f"trial {number}: its process died; the trial restarts"
            self.listen({"trial": number, "event": "restarted", "say": say})
            return
        error = trial.get_error()
        reason = last_line(error) if error is not None else "its process died"
        if is_out_of_memory(RuntimeError(reason)):
            config = RunConfig.from_dict(self.directory.description()["trials"][number], "the search")
            reason = out_of_memory(config, RuntimeError(reason), FOR_A_TRIAL)
        run = self.directory.trial(number)
        if not self.is_closed:
            set_last_status(run, "failed", run.get_status()["step"], message=reason)
        self._end(number, "failed")

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._end(trial.config["trial"], "failed")

    def _end(self, number: int, state: str | None = None) -> None:
        """Record that a trial has ended, by default in the state of its own status."""
        if self.is_closed or self.halving.decision(number) is Decision.STOP:
            return
        self.halving.end(number)
        self._save_journal()
        status = self.directory.trial(number).get_status()
        state = state or status["state"]
        reason = f": {status['message']}" if status.get("message") else ""
        self.listen({"trial": number, "event": state, "say": f"trial {number}: {state}{reason}"})

    def _save_journal(self) -> None:
        """Store the journal before a decision depends on it. While storage is unavailable, this and all trials wait."""
        SearchDirectory(self.directory.folder.with_retry_timeout(LAST_TIMEOUT_S)).save_events(self.halving)

    def _text(self, number: int, result: dict[str, Any], decision: Decision) -> str:
        reached = max((rung for rung in self.halving.rungs if rung <= result["images"]), default=0)
        rung = self.halving.stopped_at(number) or reached
        rank = self.halving.rank(number, rung) if rung else None
        place = f", place {rank[0]} of {rank[1]}" if rank else ""
        words = {
            Decision.CONTINUE: "continues", Decision.STOP: "is stopped", Decision.WAIT: "continues until others report"
        }  # fmt: skip
        score = f", {self.recipe.metric} {result['score']:.3f}" if "score" in result else ""
        return f"trial {number}: {result['images']:,} images{score}{place}: {words[decision]}"


class StopIfTakenOver(tune.Stopper):
    """Stops a search that another attempt has taken over. Without it, Tune would start the waiting trials."""

    def __init__(self, scheduler: AshaScheduler) -> None:
        self.scheduler = scheduler

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.scheduler.is_closed
