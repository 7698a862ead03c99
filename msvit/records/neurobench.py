"""NeuroBench's measures (arXiv 2304.04640) of counted operations."""

from __future__ import annotations

from math import isnan, nan

from msvit.records.operation_rows import Rows, deployed, is_classifier, neurons_of
from msvit.records.schema import Operations


def neurobench(operations: Rows) -> dict[str, float] | None:
    """NeuroBench's numbers (arXiv 2304.04640), which are no joules, of the folded network.

    ``effective_macs`` and ``effective_acs``: operations of which neither side is zero, accumulates
    where all input is -1, 0 or 1, which a classifier's mean over pixels is not; ``dense``: all of
    them. Rows of an earlier version do not tell the MACs on such a mean, nor the sum of
    ``effective_macs``, which is left out then. Products of activations, which its hooks do not
    see, are told apart: ``product_acs`` and ``product_macs``. ``footprint_bytes``: weights and
    biases in 32 bits. ``connection_sparsity`` and ``activation_sparsity``: shares of zeros among
    weights and outputs of neurons. ``membrane_updates``: all neurons in all steps; NeuroBench
    counts those whose potential has changed.
    """
    layers = deployed(operations)
    if layers is None:
        return None
    found = dict.fromkeys(
        ("effective_macs", "effective_acs", "dense", "product_macs", "product_acs"), 0.0
    )
    for row in layers:
        if row["kind"] == "mask":
            continue
        which = "acs" if _accumulates(row) else "macs"
        if row["kind"] == "product":
            found[f"product_{which}"] += row["joint_synops"]
        elif is_classifier(row) and row["averaged"] > 1:
            known = row["active_synops"] if row["input"] == "analog" else nan
            found["effective_macs"] += row.get("mean_macs", known)
            found["dense"] += row["dense_macs"]
        else:
            found[f"effective_{which}"] += row["active_synops"]
            found["dense"] += row["synapses"]
    if isnan(found["effective_macs"]):
        del found["effective_macs"]
    neurons = neurons_of(operations)
    weights = sum(row["weights"] for row in layers)
    outputs = sum(row["outputs"] for row in neurons)
    zeros = sum(row["zero_weights"] for row in layers)
    return found | {
        "footprint_bytes": 4.0 * (weights + sum(row["biases"] for row in layers)),
        "connection_sparsity": zeros / weights if weights else 0.0,
        "activation_sparsity": (
            1 - sum(row["active_outputs"] for row in neurons) / outputs if outputs else 0.0
        ),
        "membrane_updates": sum(row["updates"] for row in neurons),
    }


def _accumulates(row: Operations) -> bool:
    """Whether all of its input is -1, 0 or 1."""
    return row["input"] != "analog" and (row["input_peak"] or 0.0) <= 1
