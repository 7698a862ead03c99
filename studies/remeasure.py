"""``studies/run.py --remeasure``: counts that a newer version makes, for records that lack them."""

from __future__ import annotations

from pathlib import Path

from msvit.records.schema import RecordError
from msvit.records.store import read_record, write_record
from studies.study import Study


def remeasure(study: Study, results: Path, data_dir: Path | None) -> int:
    """Count again, cell by cell, from the kept weights; the exit code tells whether all could be.

    Cells that are not finished, and records that lack nothing, are left alone.
    """
    from msvit.checkpoints import CheckpointError
    from msvit.options import DataError
    from msvit.training.remeasure import lacks_counts, remeasured

    counted = failed = 0
    for entry in study.cells:
        record = read_record(results, entry.cell.id)
        if record is None or not lacks_counts(record):
            continue
        try:
            write_record(results, remeasured(results, record, data_dir))
        except (CheckpointError, DataError, RecordError) as error:
            failed += 1
            print(f"left as it is: {entry.group} seed {entry.cell.seed}: {error}", flush=True)
            continue
        counted += 1
        print(f"counted again: {entry.group} seed {entry.cell.seed} ({entry.cell.id})", flush=True)
    print(f"{counted} of {len(study.cells)} records counted again, {failed} could not be")
    return 1 if failed else 0
