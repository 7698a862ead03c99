"""Cells that wait for their turn, and for room.

Cells start in their order. One on many workers needs room for all of them at once: while others
run, whose ends make room for it, no further one starts, or small ones would take every place that
comes free. Where room is not theirs to make (machines are gone, or others use them), the next
ones go ahead, and it waits for a time that is bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from studies.progress import QUIET_SECONDS, clock
from studies.room import Group, described, has_room, is_free, slots
from studies.study import StudyCell

BACKLOG = 1  # tasks that wait in Ray, so that their processes start ahead of time
ROOM_SECONDS = 3600.0
"""How long cells wait for room while nothing of their study runs: for a machine to come back."""


@dataclass(frozen=True)
class Task:
    """A cell that is to be run for the ``attempt``-th time."""

    entry: StudyCell
    attempt: int = 1
    losses: int = 0  # of its processes, without a new checkpoint between


class Waiting:
    """Tasks in their order; ``group_of`` tells what a cell gets, where it is asked."""

    def __init__(self, tasks: Sequence[Task], group_of: Callable[[StudyCell], Group]) -> None:
        self._tasks, self._group_of = deque(tasks), group_of
        self._idle_since: float | None = None
        self._has_told = False

    def __len__(self) -> int:
        return len(self._tasks)

    def put(self, task: Task) -> None:
        """Its turn is next."""
        self._tasks.appendleft(task)

    def take(self, started: Sequence[Group]) -> tuple[Task, Group] | None:
        """The first that can start beside those ``started``, and what it gets; None: not now."""
        for place, task in enumerate(self._tasks):
            # Asked each time: nodes of a cluster come and go, and shares are learned.
            group = self._group_of(task.entry)
            if group.count == 1:
                if _is_full(group, started):
                    return None
            elif not is_free(group, started):
                if started and has_room(group):  # when these have ended
                    return None
                continue
            del self._tasks[place]
            return task, group
        return None

    def look(self, is_idle: bool) -> None:
        """Take the time since when tasks have waited and nothing of the study has run."""
        if not is_idle:
            self._idle_since, self._has_told = None, False
        elif self._idle_since is None:
            self._idle_since = time.monotonic()

    def told(self) -> tuple[Task, str] | None:
        """The first task, and for what it waits, once when it has waited so for a while."""
        if self._has_told or not self._tasks or self._idle_seconds() < QUIET_SECONDS:
            return None
        self._has_told = True
        return self._tasks[0], f"waits for {self._room(self._tasks[0])}"

    def overdue(self) -> Iterator[tuple[Task, str]]:
        """Take those that have waited so for too long, each with what it has waited for."""
        while self._tasks and self._idle_seconds() >= ROOM_SECONDS:
            task = self._tasks.popleft()
            yield task, f"waited {clock(ROOM_SECONDS)} for {self._room(task)}"

    def _idle_seconds(self) -> float:
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since

    def _room(self, task: Task) -> str:
        return f"room for {self._group_of(task.entry)}; Ray sees {described()}"


def _is_full(group: Group, started: Sequence[Group]) -> bool:
    """Whether one more cell of one process would only wait."""
    taken = sum(_places(other, group) for other in started)
    return taken >= max(1, slots(group.cpus, group.gpus)) + BACKLOG


def _places(taken: Group, wanted: Group) -> float:
    """For how many of the cells that are ``wanted`` a running one takes the place, about."""
    if taken.count == 1:
        return 1.0
    gpus = taken.gpus / wanted.gpus if wanted.gpus else 0.0
    return taken.count * max(taken.cpus / wanted.cpus, gpus)
