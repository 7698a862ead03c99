"""How the time of a step splits over kinds of operation, from torch's profiler."""

from __future__ import annotations

from collections.abc import Iterable

#: Kind → beginnings of operator names without their namespace; the first that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("Optimizer", "_fused_adam"),
    "convolutions": (
        "convolution",
        "_convolution",
        "conv",
        "mkldnn_conv",
        "cudnn_conv",
        "thnn_conv",
        "slow_conv",
    ),
    "products": ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mkldnn_linear", "_addmm"),
    "pooling": ("max_pool", "avg_pool", "_adaptive_avg", "mean"),
    "copies, casts": ("copy", "_to_copy", "to", "clone", "contiguous", "cat", "fill", "zero"),
    "additions": ("add", "sub"),
    "attention elementwise": ("mul", "sum", "div"),
    "sums of spikes": (),
    "norm + neuron": ("native_batch_norm", "batch_norm", "cudnn_batch_norm", "norm_", "sigmoid"),
}
OTHER = "other"
NAMES = (*(kind for kind in KINDS), OTHER)


def kind_of(operator: str) -> str:
    """The kind of a profiled operator such as ``aten::mm`` or ``_NormNeuronBackward``."""
    namespace, _, name = operator.rpartition("::")
    if namespace == "autograd::engine":  # what autograd itself does around a function
        namespace, name = "", name.removeprefix("evaluate_function: ")
    if namespace == "" and name in ("pack spikes", "unpack spikes"):
        return "copies, casts"
    if namespace == "" and name.startswith("_SpikeConvolution"):
        return "sums of spikes"
    if namespace.startswith("sj_") or name.startswith("GeneratedBackwardFor_sj_"):
        return "norm + neuron"
    if namespace == "" and name.startswith("_"):
        # Our autograd functions: their passes run outside of torch's operators.
        return "norm + neuron"
    if namespace in ("", "aten", "mkldnn", "onednn"):
        for kind, beginnings in KINDS.items():
            if name.startswith(beginnings) and (namespace or kind == "optimizer"):
                return kind
    return OTHER


def split(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums ``(operator, seconds of its own)`` into seconds per kind, in the order of NAMES."""
    totals = dict.fromkeys(NAMES, 0.0)
    for operator, seconds in events:
        totals[kind_of(operator)] += seconds
    return totals
