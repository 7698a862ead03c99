"""The cost of a network as a table: a row per layer, and what it all makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch

from msvit.metrics import measure
from msvit.metrics.assumed import assumed_operations
from msvit.metrics.sources import Network, Seen
from msvit.precision import choose_precision
from msvit.records.energy import ENERGY_MODELS
from msvit.records.energy_by_row import energy_by_row
from msvit.records.neurobench import neurobench
from msvit.records.schema import Operations
from msvit.records.twin import Twin, twin

USUAL_RATE = 0.2

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Costs:
    """Rows with full precision, the table as it is shown (first line: its heads), and notes."""

    rows: list[dict[str, Any]]
    table: list[list[str]]
    notes: list[str]


def measured_costs(
    network: Network, images: Seen | None, rate: float | None, models: Sequence[str]
) -> Costs:
    """What ``network`` costs on ``images``, or at an assumed rate where there are none."""
    if images is not None:
        cpu = torch.device("cpu")
        with choose_precision(network.precision, cpu).autocast(cpu):
            operations = measure(network.model, images.batches).operations
        how = f"{network.what}, measured on {images.what}"
    else:
        share = USUAL_RATE if rate is None else rate
        operations = assumed_operations(network.model, share, network.events)
        spiking = any(row["input"] in ("spikes", "integer") for row in operations)
        how = network.what
        if spiking:
            how += (
                f". Rates are assumed, not measured: {share:g} spikes per value and time step "
                "everywhere; --data or --images measures them"
            )
    parts = {model: energy_by_row(operations, model) for model in models}
    rows = [_row(row, {m: parts[m][i] for m in models}) for i, row in enumerate(operations)]
    totals = {m: ENERGY_MODELS[m](operations) for m in models}
    return Costs(rows, _table(rows, totals), [f"{how}.", *_notes(operations, models)])


def _row(row: Operations, energy: dict[str, float | None]) -> dict[str, Any]:
    rate = row["input_rate"]
    if row["kind"] == "neuron":
        rate = row["spikes"] / row["updates"] if row["updates"] else None
    return {
        "layer": row["layer"],
        "kind": row["kind"],
        "shape": _shape(row),
        "input": row["input"],
        "rate": rate,
        "dense_macs": row["dense_macs"],
        "synapses": row.get("synapses", 0.0),
        "synops": row.get("synops"),
        **{f"energy_mj:{model}": value for model, value in energy.items()},
    }


def _shape(row: Operations) -> str:
    outputs = row["outputs"] / row["steps"] if row["steps"] else 0.0
    if row["kind"] == "neuron":
        return f"{outputs:.0f} {row['neuron']}"
    if row["kind"] == "linear":
        return f"{row['weights'] // row['fan_out']}→{row['fan_out']}"
    if "kernel" in row:
        height, width = row["kernel"]
        stride = f"/{row['stride']}" if row["stride"] > 1 else ""
        return f"{height}×{width}{stride}, {_si(row['weights'])} → {outputs:.0f}"
    return f"→ {outputs:.0f}" if outputs else f"in {row.get('folded_into', '')}"


def _table(rows: Sequence[dict[str, Any]], totals: dict[str, float | None]) -> list[list[str]]:
    names = list(totals)
    single = len(names) == 1
    largest = max((value for value in totals.values() if value), default=1.0)
    unit, factor = next(((u, f) for u, f in _UNITS if largest * f >= 1), _UNITS[-1])
    heads = ["layer", "shape", "input", "rate", "dense MACs", "SOPs"]
    heads += [f"{name} ({unit})" for name in names] + (["share"] if single else [])
    shown = [heads]
    for row in rows:
        values = [row[f"energy_mj:{name}"] for name in names]
        if row["kind"] == "neuron" and not any(values):
            continue
        line = [row["layer"], row["shape"], row["input"], _number(row["rate"], ".3f")]
        line += [_si(row["dense_macs"]), "–" if row["synops"] is None else _si(row["synops"])]
        line += [_number(None if v is None else v * factor, ".4g") for v in values]
        if single and totals[names[0]]:
            line.append("–" if values[0] is None else f"{values[0] / totals[names[0]]:.1%}")
        shown.append([*line, *[""] * (len(heads) - len(line))])
    total = ["total", "", "", "", _si(sum(row["dense_macs"] for row in rows))]
    total.append(_si(sum(row["synops"] or 0.0 for row in rows)))
    total += [_number(None if v is None else v * factor, ".4g") for v in totals.values()]
    return [*shown, [*total, *[""] * (len(heads) - len(total))]]


def break_even(pair: Twin) -> str:
    """Where spikes cost as much as the twin, and on which side of it they are.

    Spikes, the cheapest and the dearest twin are compared in accumulates a synapse.
    """
    fewest, most = pair.bits
    bits = f"{most} bit{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} bits"
    steps = "1 time step" if pair.timesteps == 1 else f"{pair.timesteps} time steps"
    equal, (low, high) = pair.zeros_at_break_even(), pair.zeros
    cheapest, dearest = pair.ratio * (1 - high), pair.ratio * (1 - low)
    if pair.spikes < cheapest or isclose(pair.spikes, cheapest):
        verdict = "spikes cost no more, whatever its zeros"
    elif pair.spikes > dearest and not isclose(pair.spikes, dearest):
        verdict = "spikes cost more, whatever its zeros"
    else:
        verdict = "its zeros decide"
    at = (
        f"as much as a twin with {equal:.1%} zeros"
        if equal > 0
        else "more than a twin without zeros"
    )
    return (
        f"Quantised twin: {bits} for {steps}, a MAC as {pair.ratio:.2f} "
        "accumulates (our reading). Without zeros in it spikes cost less below a rate of "
        f"{pair.crossover():.3f}; here it is {pair.rate:.3f}, {pair.spikes:.3f} spikes a synapse, "
        f"which cost {at}. With this activity it has {low:.1%} to {high:.1%} zeros: "
        f"{verdict}. A zero weighs what its MACs cost. Compute alone, by arXiv 2409.08290."
    )


_UNITS = (("mJ", 1.0), ("µJ", 1e3), ("nJ", 1e6))


def _notes(operations: Sequence[Operations], models: Sequence[str]) -> list[str]:
    found = []
    bench = neurobench(operations)
    if bench is not None:
        found.append(
            f"NeuroBench: {_si(bench['effective_acs'])} effective ACs, "
            f"{_si(bench['effective_macs'])} effective MACs, dense {_si(bench['dense'])}; "
            f"products of activations, which it does not see, {_si(bench['product_acs'])} ACs and "
            f"{_si(bench['product_macs'])} MACs; footprint {_si(bench['footprint_bytes'])}B, "
            f"activation sparsity {bench['activation_sparsity']:.3f}, connection sparsity "
            f"{bench['connection_sparsity']:.3f}, membrane updates "
            f"{_si(bench['membrane_updates'])}."
        )
    pair = twin(operations)
    if "quantised_twin" in models and pair is not None:
        found.append(break_even(pair))
    lacking = [m for m in models if ENERGY_MODELS[m](operations) is None]
    if lacking:
        found.append(f"Not defined for this network: {', '.join(lacking)}.")
    return found


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _si(value: float) -> str:
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"
