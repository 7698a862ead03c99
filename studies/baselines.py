"""What simple classifiers reach on the images of a data set: the least that a network has to beat.

python studies/baselines.py --data digits --set data.image_size=8

Nearest neighbours and a linear classifier (logistic regression) on raw pixels, by scikit-learn,
trained on the training images of the same division that networks get; what they can be tuned by is
chosen on the validation images. Exit code: 0, or 2 where an argument or the data is wrong.
"""

from __future__ import annotations

import os
import signal
import sys

if not __package__:
    # As a script: this folder's modules are found as studies.*, wherever it is started.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Ctrl-C while modules load: there is nothing to save, and nothing to say.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msvit.commands import Parser, command
from msvit.data import data_options, list_datasets
from msvit.options import ConfigError, DataError
from msvit.yaml_files import parse_yaml

if TYPE_CHECKING:
    import numpy as np

    from msvit.data.splits import Samples

NEIGHBOURS = (1, 3, 5)
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # sklearn's C: the inverse of the regularisation


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        print(table(options.data, _settings(options.set), options.data_dir))
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def table(name: str, settings: dict[str, Any], data_dir: Path | None) -> str:
    """Accuracy of each kind of classifier on the test images, as Markdown.

    Raises:
        ConfigError, DataError: for a wrong option, and for files that are missing or broken.
    """
    from analysis.statistics import image_error
    from msvit.data import load_splits

    options = data_options(name, settings, "--set data")
    splits = load_splits(options, data_dir)
    train, validation, test = (
        _pixels(part) for part in (splits.train, splits.validation, splits.test)
    )
    lines = [
        f"| on {name}, raw pixels | test accuracy (%) | ± of {len(splits.test)} images | chosen |",
        "|---|--:|--:|---|",
    ]
    for kind, candidates in (("nearest neighbours", _neighbours()), ("linear", _linear())):
        fitted = ((text, model.fit(*train)) for text, model in candidates)
        text, best = max(fitted, key=lambda candidate: candidate[1].score(*validation))
        accuracy = float(best.score(*test))
        error = image_error(accuracy, len(splits.test))
        lines.append(f"| {kind} | {100 * accuracy:.2f} | {100 * error:.2f} | {text} |")
    if splits.fingerprint and (note := options.unlike_published(splits.fingerprint["counts"])):
        lines += ["", f"Note: {note}."]
    return "\n".join(lines)


def _neighbours() -> Iterator[tuple[str, Any]]:
    from sklearn.neighbors import KNeighborsClassifier

    return ((f"k = {k}", KNeighborsClassifier(k)) for k in NEIGHBOURS)


def _linear() -> Iterator[tuple[str, Any]]:
    from sklearn.linear_model import LogisticRegression

    return ((f"C = {c:g}", LogisticRegression(C=c, max_iter=1000)) for c in PENALTIES)


def _pixels(images: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1], ``[N, C·H·W]``, and labels.

    Raises:
        DataError: for images that are not kept in memory.
    """
    from msvit.data.splits import Images

    if not isinstance(images, Images):
        raise DataError(
            "these classifiers need all images in memory, and so many are not kept there"
        )
    return images.images.flatten(1).float().div(255).numpy(), images.labels.numpy()


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key.removeprefix("data.") in settings:
            raise ConfigError(f"--set {key}", "", "given twice")
        if not equals or not key.startswith("data."):
            raise ConfigError(f"--set {text}", "", "write it as data.OPTION=VALUE")
        settings[key.removeprefix("data.")] = parse_yaml(value, f"--set {text}")
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", default="digits", metavar="NAME", help=", ".join(list_datasets()))
    add("--data-dir", type=Path, metavar="DIR", help="where data sets are, or are downloaded to")
    add("--set", action="append", default=[], metavar="data.OPTION=VALUE", help="repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
