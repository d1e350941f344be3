"""Trials of a search packed into one process, for GPUs that one trial leaves idle.

A GPU serves processes in turn, and a small network's step keeps a few of its units busy. Trials of one process have
their steps on streams of their own, and the GPU works on several at once (docs/speed.md has figures). Each trial is a
thread; Tune's process for it only listens, and passes on what it hears as if it trained itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions
import torch

from infogan_ray import UserError
from infogan_ray.data.datasets import ImageSet
from infogan_ray.data.feeds.feed_policy import make_resident
from infogan_ray.distributed.cluster.resources import Resources
from infogan_ray.distributed.tune.turns import Turns
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import Overtaken
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import RunTakenOver, last_line
from infogan_ray.training.step import Diverged
from infogan_ray.training.worker import Report, run_worker

MOST = 31  # streams of a process, one for each trial
HEARS_S = 5.0  # a question waits so long for something to be said
LISTENS_EVERY_S = 5.0
DEAF_S = 60.0  # nobody has listened for so long: the trial's own process has died
TRIES_EVERY_S = 0.5
RESTARTS = 20  # of a process
ENDED, DIVERGED, OVERTAKEN, FAILED = "ended", "diverged", "overtaken", "failed"

Said = tuple[int, int, dict[str, Any]]
"""Its number from 1, the step, the metrics."""


class Lane:
    """One trial in the process: what it has said, and what it has been told."""

    def __init__(self, place: int, metric: str) -> None:
        self.place, self.metric = place, metric
        self.stopped, self.end = False, ("", "")
        self._said, self._count, self._read = deque[Said](), 0, 0
        self._changed, self._listened = threading.Condition(), time.monotonic()

    @property
    def has_ended(self) -> bool:
        return bool(self.end[0])

    def say(self, report: Report) -> bool:
        """Whether to go on. Waits until a score has been read: the trial may be stopped for it."""
        step = report.metrics.get("step", 0)
        with self._changed:
            self._count += 1
            self._said.append((self._count, step, dict(report.metrics)))  # a copy: the run adds to its own
            self._changed.notify_all()
            while self.metric in report.metrics and self._read < self._count and self._goes_on():
                self._changed.wait(LISTENS_EVERY_S)
            return self._goes_on()

    def _goes_on(self) -> bool:
        return not self.stopped and time.monotonic() < self._listened + DEAF_S

    def listens(self) -> None:
        self._listened = time.monotonic()

    def hear(self, seconds: float, read: int) -> tuple[list[Said], tuple[str, str]]:
        """What has been said after what was ``read``, waited for so long; once all has been, how it ended."""
        with self._changed:
            self.listens()
            self._read = read
            while self._said and self._said[0][0] <= read:
                self._said.popleft()
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._said) or self.has_ended, seconds)
            self.listens()
            return list(self._said), ("", "") if self._said else self.end

    def stop(self, seconds: float) -> bool:
        """Have it end at what it says next; whether it has, waited for so long."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.has_ended, seconds)

    def ends(self, how: str, why: str = "") -> None:
        with self._changed:
            self.end = (how, why)
            self._changed.notify_all()


class Pack:
    """An actor: a process with the CPUs and the share of a GPU of one trial, and room for several."""

    def __init__(self, shared: list[Any], device: str, threads: int, most: int) -> None:
        """``shared``: a reference to the images, which Ray is not to look up: it would warn of starting this again."""
        images: ImageSet = ray.get(shared[0])
        self.images, self.device, self.threads, self.most = images, torch.device(device), threads, most
        self.resident = make_resident(images, self.device) if images.shards is None else None
        on_gpu = self.device.type == "cuda"
        self.streams = [torch.cuda.Stream() if on_gpu else None for _ in range(most)]
        if on_gpu:
            torch.cuda.synchronize()  # streams of trials do not wait for that of the images
        self.turns, self._lanes, self._lock = Turns(), dict[int, Lane](), threading.Lock()

    def begin(self, trial: int, config: dict[str, Any], uri: str, metric: str) -> bool:
        """Start a trial's thread, or do not: another has the room."""
        with self._lock:
            taken = {lane.place for lane in self._lanes.values() if not lane.has_ended}
            free = sorted(set(range(self.most)) - taken)
            before = self._lanes.get(trial)
            if not free or (before is not None and not before.has_ended):
                return False
            lane = Lane(free[0], metric)
            threading.Thread(target=self._train, args=(lane, config, uri), name=f"trial-{trial}", daemon=True).start()
            self._lanes[trial] = lane
        return True

    def busy(self) -> int:
        return sum(not lane.has_ended for lane in self._lanes.values())

    def listens(self, trial: int) -> None:
        if trial in self._lanes:
            self._lanes[trial].listens()

    def hear(self, trial: int, seconds: float, read: int) -> tuple[list[Said], tuple[str, str]]:
        """See ``Lane.hear``. Raises KeyError where the trial does not run: the process has been started again."""
        return self._lanes[trial].hear(seconds, read)

    def stop(self, trial: int, seconds: float) -> bool:
        return trial not in self._lanes or self._lanes[trial].stop(seconds)

    def _train(self, lane: Lane, config: dict[str, Any], uri: str) -> None:
        torch.set_num_threads(self.threads)  # of this thread
        stream = self.streams[lane.place]
        try:
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                self._follow(lane, RunConfig().override(config, "the search"), RunDirectory(open_storage(uri)))
            end = (ENDED, "")
        except Diverged as error:
            end = (DIVERGED, str(error))
        except (Overtaken, RunTakenOver) as error:
            end = (OVERTAKEN, str(error))
        except Exception as error:
            end = (FAILED, f"{type(error).__name__}: {error}")
        try:
            self._clear()
        except Exception:  # CUDA's: nothing can be computed in this process any more, and Ray starts another
            os._exit(1)
        lane.ends(*end)

    def _follow(self, lane: Lane, config: RunConfig, run: RunDirectory) -> None:
        worker = run_worker(
            config, self.images, run, device=self.device, turn=self.turns.turn, resident=self.resident
        )  # fmt: skip
        with contextlib.closing(worker) as reports:
            for report in reports:
                if not lane.say(report):
                    if not lane.stopped:
                        raise TimeoutError(f"nobody has listened to the trial for {DEAF_S:.0f} s")
                    return

    def _clear(self) -> None:
        """What a trial has held of the GPU is there for the next one."""
        with self.turns.turn():  # nobody records meanwhile
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()


def close_packs(packs: list[Any]) -> None:
    for pack in packs:
        if ray.is_initialized():
            ray.kill(pack)


def open_packs(shared: Any, wanted: Resources, places: int, most: int) -> list[Any]:
    """So many actors, each with room for so many trials. One whose process dies is started again.

    ``shared``: a reference to the images, to be kept for as long as that may be."""
    takes = wanted.of_a_worker
    # Questions wait inside: one for each trial, and one beside it that is answered at once.
    options = {"num_cpus": takes["CPU"], "num_gpus": takes.get("GPU", 0), "max_restarts": RESTARTS}
    actor = ray.remote(Pack).options(**options, max_concurrency=4 * most)
    return [actor.remote([shared], wanted.device, wanted.threads, most) for _ in range(places)]


def check_packed(configs: list[RunConfig], wanted: Resources, most: int) -> None:
    """Raises UserError for trials that cannot share a process."""
    if not 1 <= most <= MOST:
        raise UserError(f"per_process is {most}; it must lie between 1 and {MOST}")
    if most == 1:
        return
    if wanted.workers != 1:
        raise UserError(
            f"per_process is {most}, and trials have {wanted.workers} workers; drop --per-process, or take workers=1"
        )
    # Both are the whole process's.
    if len(kinds := sorted({config.precision for config in configs})) > 1:
        raise UserError(
            f"per_process is {most}, and trials differ in precision ({', '.join(kinds)}); drop --per-process, or fix it"
        )
    if any(config.profile for config in configs):
        raise UserError(f"per_process is {most}, and a trace is of one trial alone; drop --per-process, or profile")


def follow(
    packs: Sequence[Any], trial: int, config: dict[str, Any], run: RunDirectory, metric: str,
    tell: Callable[[int, dict[str, Any]], None], patience: float,
) -> None:  # fmt: skip
    """Run a trial in one of these processes to its end, and ``tell`` of every report.

    Raises Overtaken, and RuntimeError for whatever else ends it but divergence. What ``tell`` raises stops the trial,
    which gets so many seconds to store its last checkpoint. A process that dies was perhaps another trial's doing: this
    one goes on in a new one, as long as it comes further.
    """
    reached, before = 0, -1

    def heard(step: int, metrics: dict[str, Any]) -> None:
        nonlocal reached
        reached = max(reached, step)
        tell(step, metrics)

    while True:
        pack = _seat(packs, trial, (config, run.folder.uri, metric), patience)
        try:
            return _hear_out(pack, trial, heard, patience)
        except ray.exceptions.RayError as error:  # one that was started again knows of no trial
            if reached <= before:
                raise RuntimeError(f"the process that trials share has died: {last_line(error)}") from None
            before = reached


def _hear_out(pack: Any, trial: int, tell: Callable[[int, dict[str, Any]], None], patience: float) -> None:
    read, end, over = 0, ("", ""), threading.Event()
    threading.Thread(target=_listen, args=(pack, trial, over), name="listens", daemon=True).start()
    try:
        while not end[0]:
            told, end = ray.get(pack.hear.remote(trial, HEARS_S, read))
            for number, step, metrics in told:
                tell(step, metrics)
                read = number
    finally:
        over.set()
        if not end[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(pack.stop.remote(trial, patience), timeout=patience)
    if end[0] == OVERTAKEN:
        raise Overtaken(end[1])
    if end[0] == FAILED:
        raise RuntimeError(end[1])


def _seat(packs: Sequence[Any], trial: int, job: tuple[dict[str, Any], str, str], patience: float) -> Any:
    """The process that has taken the trial, the one with the fewest. Raises RuntimeError if none of them can start."""
    while True:
        asked = {pack.busy.remote(): place for place, pack in enumerate(packs)}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=HEARS_S)
        busy, dead = list[tuple[int, int]](), list[str]()
        for answer in ready:
            try:
                busy.append((ray.get(answer), asked[answer]))
            except ray.exceptions.ActorDiedError as error:  # for good; one that is being started again is unavailable
                dead.append(last_line(error))
            except ray.exceptions.RayError:
                pass
        if len(dead) == len(packs):
            raise RuntimeError(f"no process that trials could share starts: {dead[0]}")
        with contextlib.suppress(ray.exceptions.RayError):
            # What an attempt of this trial has left comes to its end first: of two, the later one has the run.
            stops = [packs[place].stop.remote(trial, patience) for _, place in busy]
            for _, place in sorted(busy) if all(ray.get(stops)) else []:
                if ray.get(packs[place].begin.remote(trial, *job)):
                    return packs[place]
        time.sleep(TRIES_EVERY_S)


def _listen(pack: Any, trial: int, over: threading.Event) -> None:
    """The trial is told that it is still heard, also while a verdict takes minutes."""
    while not over.wait(LISTENS_EVERY_S):
        with contextlib.suppress(ray.exceptions.RayError):
            pack.listens.remote(trial)
