"""Cells on two workers to which something happens, for the processes of a test.

They import this file, and before they train nothing that takes long.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

HANG_SECONDS = 2.0


def leading(group: Any, cell: Any, results: str, *rest: Any) -> Any:
    """:func:`studies.together.run_together`, by a leader who tells whom to kill."""
    from studies.together import run_together

    Path(results, "leader").write_text(str(os.getpid()))
    return run_together(group, cell, results, *rest)


def ill_fated(cell: Any, folder: Path, **given: Any) -> Any:
    """``train_cell``, but after an epoch who leads it dies, and the next time the second worker.

    Each time there is a new checkpoint, so that no loss is more than the first.
    """
    from msvit import workers

    def mishap() -> None:
        left = (name for name in ("leader", "worker") if not (folder / name).exists())
        now = workers.from_first(next(left, None))
        if now is not None:
            (folder / now).touch()
        if workers.rank() == 0 and now == "leader":
            os.kill(int((folder.parents[1] / "leader").read_text()), signal.SIGKILL)
        if workers.rank() == 1 and now == "worker":
            os.kill(os.getpid(), signal.SIGKILL)

    return _interrupted(mishap, cell, folder, **given)


def hanging(cell: Any, folder: Path, **given: Any) -> Any:
    """``train_cell``, but after an epoch the second worker does nothing for longer than it may."""
    import torch

    from msvit import workers

    def mishap() -> None:
        if workers.rank() == 1:
            time.sleep(3 * HANG_SECONDS)
        else:  # from now on, so that no slow start is taken for it
            torch.distributed.set_timeout(timedelta(seconds=HANG_SECONDS))

    return _interrupted(mishap, cell, folder, **given)


def _interrupted(mishap: Callable[[], None], cell: Any, folder: Path, **given: Any) -> Any:
    """``train_cell``, with a ``mishap`` in the second epoch, where two workers train."""
    from msvit import workers
    from msvit.training import cell as cell_module

    make, passes = cell_module.create_model, []

    def count(*_: object) -> None:
        passes.append(1)
        if len(passes) == 14 and workers.count() > 1:
            mishap()

    def create(**options: Any) -> Any:
        model = make(**options)
        model.register_forward_pre_hook(count)
        return model

    cell_module.create_model = create  # type: ignore[assignment]
    return cell_module.train_cell(cell, folder, **given)
