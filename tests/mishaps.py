"""A cell on two workers to which everything happens once, for the processes of a test.

They import this file, and before they train nothing that takes long.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any


def leading(group: Any, cell: Any, results: str, *rest: Any) -> Any:
    """:func:`studies.together.run_together`, by a leader who tells whom to kill."""
    from studies.together import run_together

    Path(results, "leader").write_text(str(os.getpid()))
    return run_together(group, cell, results, *rest)


def ill_fated(cell: Any, folder: Path, *, data_dir: Path | None, report: Any) -> Any:
    """``train_cell``, but after an epoch who leads it dies; the next time a worker; then one hangs.

    Each time there is a new checkpoint, so that no loss is more than the first.
    """
    import torch

    from msvit import workers
    from msvit.training import cell as cell_module

    make, passes = cell_module.create_model, []

    def mishap(*_: object) -> None:
        passes.append(1)
        if len(passes) != 14 or workers.count() == 1:
            return
        left = (name for name in ("leader", "died", "hung") if not (folder / name).exists())
        now = workers.from_first(next(left, None))
        if now is not None:
            (folder / now).touch()
        if workers.rank() == 0 and now == "leader":
            os.kill(int((folder.parents[1] / "leader").read_text()), signal.SIGKILL)
        if workers.rank() == 0 and now == "hung":  # no slow start is taken for it
            torch.distributed.set_timeout(timedelta(seconds=3))
        if workers.rank() == 1 and now == "died":
            os.kill(os.getpid(), signal.SIGKILL)
        if workers.rank() == 1 and now == "hung":
            time.sleep(1000)

    def create(**options: Any) -> Any:
        model = make(**options)
        model.register_forward_pre_hook(mishap)
        return model

    cell_module.create_model = create  # type: ignore[assignment]
    return cell_module.train_cell(cell, folder, data_dir=data_dir, report=report)
