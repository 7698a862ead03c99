"""What the files of a results folder hold: records, failures, manifests; and trial attributes.

:func:`check` refuses whatever is not of this shape, naming the first field that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, NotRequired, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict, get_type_hints

from msvit.cells import SCHEMA, Cell
from msvit.data.fingerprint import Fingerprint


class RecordError(RuntimeError):
    """A results folder or file that cannot be read or written; the message says what to do."""


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class CellFields(TypedDict):
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    seed: int


class Epoch(TypedDict):
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: Share | None
    val_loss: float
    val_accuracy: Share
    raw_val_loss: NotRequired[float]  # where weights are averaged: of those that are not
    raw_val_accuracy: NotRequired[Share]
    seconds: Amount


class Score(TypedDict):
    images: int
    loss: float
    accuracy: Share


class Firing(TypedDict):
    layer: str
    timestep: int  # from 0
    rate: Amount  # spikes per neuron in this time step
    neurons: int  # per image


@dataclass(frozen=True)
class On:
    """Which rows of operations have a count, in the annotation of its field.

    Attributes:
        kinds: of rows that all have it.
        beside: a field that it always stands beside, where not all of them have it.
    """

    kinds: tuple[str, ...]
    beside: str | None = None


_WEIGHTS = On(("conv", "linear"))
_PAIRS = On(("product", "mask"))
_LAYERS = On(_WEIGHTS.kinds + _PAIRS.kinds)
_NEURONS = On(("neuron",))
_ALL = On(_LAYERS.kinds + _NEURONS.kinds)
_CLASSIFIERS = On(("linear",), beside="averaged")


class Operations(TypedDict):
    """Per image, summed over all time steps."""

    layer: str
    kind: str  # conv, linear, product, mask; neuron, of later versions
    input: str  # analog, spikes, integer, levels (of quantised twins); of neurons: current
    dense_macs: Amount
    input_rate: Amount | None
    macs: Amount
    acs: Amount

    # Not of earlier versions. The rules of counting: msvit.metrics.operations.
    # What says `On` is missed where it should be (`lacking`); the rest depends on the layer.
    steps: NotRequired[Annotated[int, _ALL]]  # time steps that it is computed for
    synapses: NotRequired[Annotated[Amount, _LAYERS]]
    synops: NotRequired[Annotated[Amount | None, _LAYERS]]
    active_synops: NotRequired[Annotated[Amount, _LAYERS]]
    inputs: NotRequired[Annotated[Amount, _LAYERS]]
    active_inputs: NotRequired[Annotated[Amount, _LAYERS]]
    input_peak: NotRequired[Annotated[Amount | None, _LAYERS]]
    input_bits: NotRequired[int]  # of levels
    outputs: NotRequired[Annotated[Amount, _ALL]]
    additions: NotRequired[Annotated[Amount, _ALL]]
    bias_additions: NotRequired[Annotated[Amount, _WEIGHTS]]  # those of them that read a bias
    weights: NotRequired[Annotated[int, _LAYERS]]
    zero_weights: NotRequired[Annotated[int, _LAYERS]]
    biases: NotRequired[Annotated[int, _LAYERS]]
    kernel: NotRequired[list[int]]  # of convolutions: height, width
    stride: NotRequired[int]
    fan_out: NotRequired[int]  # outputs that an input reaches at one place of the kernel
    averaged: NotRequired[int]  # pixels of whose mean a classifier makes its logits
    mean_macs: NotRequired[Annotated[Amount, _CLASSIFIERS]]  # on means, neither side being zero
    folded_into: NotRequired[str]
    other_input: NotRequired[Annotated[str, _PAIRS]]  # the other operand of products and masks
    other_rate: NotRequired[Annotated[Amount | None, _PAIRS]]
    other_synops: NotRequired[Annotated[Amount | None, _PAIRS]]
    other_inputs: NotRequired[Annotated[Amount, _PAIRS]]
    other_active_inputs: NotRequired[Annotated[Amount, _PAIRS]]
    other_bits: NotRequired[int]
    joint_synops: NotRequired[Annotated[Amount, _PAIRS]]
    votes: NotRequired[Annotated[Amount, _PAIRS]]  # values that are summed up to make its mask
    neuron: NotRequired[Annotated[str, _NEURONS]]  # its kind; of twins: relu, quantised
    updates: NotRequired[Annotated[Amount, _NEURONS]]
    spikes: NotRequired[Annotated[Amount, _NEURONS]]
    active_outputs: NotRequired[Annotated[Amount, _NEURONS]]
    output_peak: NotRequired[Amount]  # of what has no largest value, none
    multiplies: NotRequired[Annotated[Amount, _NEURONS]]
    states: NotRequired[Annotated[Amount, _NEURONS]]  # values that are kept between time steps


def lacking(row: Operations) -> list[str]:
    """Counts that this version makes of such a row, and that one of an earlier version lacks."""
    return [
        name
        for name, on in _counts().items()
        if name not in row and row["kind"] in on.kinds and (on.beside is None or on.beside in row)
    ]


@cache
def _counts() -> dict[str, On]:
    found: dict[str, On] = {}
    for name, hint in get_type_hints(Operations, include_extras=True).items():
        inner = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        for part in getattr(inner, "__metadata__", ()):
            if isinstance(part, On):
                found[name] = part
    return found


class Workers(TypedDict):
    count: int
    machines: int
    joined_by: str  # torch's name of what carries their sums: nccl, gloo; none: of one
    before: NotRequired[list[int]]  # that had trained it, in turn, before these went on


class Record(TypedDict):
    schema: int
    id: str
    cell: CellFields
    data: NotRequired[Fingerprint]  # the images that were found; not of earlier versions
    parameters: int
    history: list[Epoch]
    selected_epoch: int
    test: Score
    firing: list[Firing]
    firing_rate: Amount
    operations: list[Operations]
    energy_mj: NotRequired[dict[str, Amount]]  # of earlier versions; now computed when it is read
    training_seconds: Amount
    images_per_second: Amount
    data_wait: NotRequired[Share]  # of the time of training steps; not of earlier versions
    peak_memory_gb: Amount
    precision: str
    kernels: str
    step: NotRequired[str]  # how it was run: graph, graph without optimizer, eager (: why)
    workers: NotRequired[Workers]  # where several have shared every batch
    environment: dict[str, Any]


class Failure(TypedDict):
    schema: int
    id: str
    cell: CellFields
    error: str
    message: str
    traceback: str
    attempts: int
    failed_at: str


class ManifestCell(TypedDict):
    id: str
    label: str
    group: str
    seed: int


class Manifest(TypedDict):
    schema: int
    name: str
    question: str
    grid_file: str
    axes: list[str]
    overrides: NotRequired[list[str]]  # command-line settings, as they were given
    cells: list[ManifestCell]


class SearchManifest(TypedDict):
    schema: int
    name: str  # of the Optuna study too
    question: str
    space_file: str
    storage: str  # of the Optuna study: a URL, or a journal file (relative: to this folder)
    data: str
    trials: int
    sampler: str
    pruner: dict[str, Any]
    base: dict[str, Any]
    parameters: dict[str, dict[str, Any]]  # as written in the space
    objectives: list[list[str]]  # measure, direction; the first one decides early stopping
    constraints: list[str]
    seeds: list[int]


class TrialAttributes(TypedDict, total=False):
    """User attributes of a trial of a search's Optuna study."""

    cells: list[str]  # ids, one per seed
    measures: dict[str, float]  # of a complete trial: means over its records
    figures: dict[str, float]  # the same, as earlier versions called it
    epochs: dict[str, float]  # epoch → primary objective
    given: bool  # asked for by start_with
    problem: str  # why it failed


RECORD: Final = TypeAdapter(Record)
FAILURE: Final = TypeAdapter(Failure)
MANIFEST: Final = TypeAdapter(Manifest)
SEARCH_MANIFEST: Final = TypeAdapter(SearchManifest)


def check(content: Any, shape: TypeAdapter[Any], where: object, remedy: str) -> None:
    """Refuse what is not of this ``shape`` and schema; ``where`` is the file, for the message.

    Raises:
        RecordError: naming the first field that is wrong, and the ``remedy``.
    """
    if not isinstance(content, Mapping):
        raise RecordError(f"{where}: a JSON object is needed. {remedy}")
    schema = content.get("schema")
    if not isinstance(schema, int):
        raise RecordError(f"{where}: not a file of this program (no schema number). {remedy}")
    if schema != SCHEMA:
        raise RecordError(
            f"{where}: schema {schema} is not the one that this version reads ({SCHEMA}). "
            "Use the version that wrote it, or another --results folder."
        )
    try:
        shape.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{where}: {field}: {first['msg'].lower()}. {remedy}") from None
    if "cell" in content and Cell.from_dict(content["cell"]).id != content["id"]:
        raise RecordError(f"{where}: its configuration does not have the id it claims. {remedy}")
