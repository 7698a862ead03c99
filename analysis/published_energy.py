"""Which mean input rate do published energies imply? Table and figure, from our own counts.

python analysis/published_energy.py [--out results/reference/published-energy]

A published energy is a line in the mean rate of the inputs: what analog input costs, and so much
for every spike. Solved for the rate, it can be compared with what such networks do.
"""

from __future__ import annotations

import os
import signal
import sys

if not __package__:
    # As a script, this folder would come first on the path and hide the standard `statistics`.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Ctrl-C while modules load: there is nothing to save, and nothing to say.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.published import read_published
from msvit.commands import Parser, command
from msvit.models import zoo
from msvit.printing import print_error
from msvit.records.energy import ENERGY_MODELS
from msvit.records.schema import Operations, RecordError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("sop_spikformer", "spikingformer_code")
"""Energy models of which the papers say, or their code shows, that they used one."""
FAMILIES = {
    "msvit": "MSVIT",
    "qkformer": "QKFormer",
    "spikformer": "Spikformer",
    "spikingformer": "Spikingformer",
    "sdt": "SDT",
}
OUT = Path("results/reference/published-energy")


def implied_rates() -> pd.DataFrame:
    """One row per published energy of a spiking network whose structure is in the zoo.

    Returns:
        Columns model (registry name), family, dim, energy_mj (published), gmac (dense operations of
        all time steps), and for each of ``MODELS`` the mean rate that it implies, ``rate:<model>``,
        and ``least_mj:<model>``, what no spike at all would cost; ``unpadded_mj``: what the rate by
        ``sop_spikformer`` costs by its formula where taps over zero padding are left out.
    """
    found = []
    for _, row in read_published().dropna(subset="energy_mj").iterrows():
        name = str(row["model"]).replace("-", "_")
        if name not in zoo() or zoo()[name]["architecture"] not in FAMILIES:
            continue
        operations = _operations(name)
        rates = {model: implied_rate(operations, model, row["energy_mj"]) for model in MODELS}
        options = zoo()[name]["options"]
        found.append(
            {
                "model": name,
                "family": FAMILIES[zoo()[name]["architecture"]],
                "dim": int(options.get("dim", 0) or name.rsplit("_", 1)[-1]),
                "energy_mj": row["energy_mj"],
                "gmac": sum(r["dense_macs"] for r in operations) / 1e9,
                **{f"rate:{model}": rate for model, rate in rates.items()},
                **{f"least_mj:{model}": _energy(operations, model, 0.0) for model in MODELS},
                "unpadded_mj": _energy(without_padding(operations), MODELS[0], rates[MODELS[0]]),
            }
        )
    return pd.DataFrame(found)


def implied_rate(operations: Sequence[Operations], model: str, energy_mj: float) -> float:
    """The rate, everywhere the same, at which ``operations`` cost ``energy_mj`` under ``model``."""
    least, most = (_energy(operations, model, rate) for rate in (0.0, 1.0))
    return (energy_mj - least) / (most - least)


def without_padding(operations: Sequence[Operations]) -> list[Operations]:
    """The rows of convolutions without taps over zero padding, and all others as they are."""
    found: list[Operations] = []
    for row in operations:
        seen = row["synapses"] / row["dense_macs"] if row["kind"] == "conv" else 1.0
        left: Operations = {**row, "dense_macs": seen * row["dense_macs"]}
        left["macs"], left["acs"] = seen * row["macs"], seen * row["acs"]
        found.append(left)
    return found


def _energy(operations: Sequence[Operations], model: str, rate: float) -> float:
    value = ENERGY_MODELS[model](_assume(operations, rate))
    assert value is not None
    return value


def _assume(operations: Sequence[Operations], rate: float) -> list[Operations]:
    from msvit.metrics.assumed import assume  # torch takes a second to load

    return assume(operations, rate)


def _operations(name: str) -> list[Operations]:
    """The rows of a network of the zoo, whose rates stand for nothing."""
    from msvit.metrics.assumed import assumed_operations
    from msvit.models import create_model

    return assumed_operations(create_model(name).eval(), 1.0)


def markdown(rates: pd.DataFrame) -> str:
    """The rates as a Markdown table."""
    lines = [
        "| model | published (mJ) | G operations, T = 4 | rate by the formula | rate by the code "
        "| without padding (mJ) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rates.to_dict("records"):
        lines.append(
            f"| `{row['model']}` | {row['energy_mj']:.2f} | {row['gmac']:.1f} "
            f"| {row[f'rate:{MODELS[0]}']:.3f} | {row[f'rate:{MODELS[1]}']:.3f} "
            f"| {row['unpadded_mj']:.2f} |"
        )
    return "\n".join(lines)


def ratios(rates: pd.DataFrame) -> dict[int, float]:
    """The rate of MSVIT over that of QKFormer, by width, as the formula implies them."""
    by = rates.set_index(["family", "dim"])[f"rate:{MODELS[0]}"]
    return {dim: by["MSVIT", dim] / by["QKFormer", dim] for dim in (384, 512, 768)}


def page(rates: pd.DataFrame) -> str:
    """The README of the folder: command, table, and what follows in plain words."""
    shares = ", ".join(f"{share:.2f}" for share in ratios(rates).values())
    return f"""# Which firing rates do published energies imply?

`python analysis/published_energy.py` writes this folder: our counts of the networks (ImageNet,
224 × 224, T = 4) and the energies of `analysis/published.csv`; no network was trained or measured.

An energy that is computed as 4.6 pJ × MACs + 0.9 pJ × rate × operations can be solved for the mean
rate at which inputs of the layers must have been spikes (a 2 behind an added shortcut counts
twice). *By the formula*: `sop_spikformer`, the first convolution charged once. *By the code*:
`spikingformer_code`, charged in every time step, the classifier as MAC. *Without padding*: what
that rate costs, by the formula, where taps over zero padding are left out of all convolutions.

{markdown(rates)}

![Implied rates](implied_rates.png)

## What follows

- **At one width the rates differ {_spread(rates)}.**
  Spikformer and Spikingformer have the same layers: {_pair(rates)}.
- **MSVIT would need about two thirds of QKFormer's rate at every size** ({shares} at
  384, 512 and 768), though it adds branches to the same network. If its rates were QKFormer's, the
  released network would cost {_at_rates_of_qkformer(rates)} mJ.
- Rates near one half and above are hard to believe for inputs that are 0 or 1. They are possible
  for sums of spikes behind added shortcuts, which QKFormer, MSVIT and Spikformer have and
  Spikingformer and SDT have not.
- Whether the first convolution is charged once or T times moves a rate by at most
  {_by_convention(rates):.2f}, and padding an energy by at most {_by_padding(rates):.1%}: neither
  explains this.

## What does not follow

- That any number is wrong. One mean rate stands for all layers here; a network whose large layers
  are busier than its small ones has another mean over neurons. Rates were not published with them.
- Which operations were counted. An energy that leaves out products, a branch or a stem implies a
  lower rate here, one that charges whole numbers as MACs a higher one.
- Anything about hardware: no model here is a measurement.
"""


def _pair(rates: pd.DataFrame) -> str:
    by = rates.set_index(["family", "dim"])[f"rate:{MODELS[0]}"]
    one, other = by["Spikformer", 512], by["Spikingformer", 512]
    return f"at width 512 the one would\n  fire at {one:.2f} and the other at {other:.2f}"


def _spread(rates: pd.DataFrame) -> str:
    by_dim = rates.groupby("dim")[f"rate:{MODELS[0]}"]
    times = by_dim.max() / by_dim.min()
    return f"by factors of {', '.join(f'{x:.1f}' for x in times)} between networks of like size"


def _at_rates_of_qkformer(rates: pd.DataFrame) -> str:
    rows = rates.set_index(["family", "dim"])
    model = MODELS[0]
    found = []
    for dim in (384, 512, 768):
        ours, theirs = rows.loc[("MSVIT", dim)], rows.loc[("QKFormer", dim)]
        least = ours[f"least_mj:{model}"]
        slope = (ours["energy_mj"] - least) / ours[f"rate:{model}"]
        found.append(least + slope * theirs[f"rate:{model}"])
    return ", ".join(f"{value:.1f}" for value in found)


def _by_convention(rates: pd.DataFrame) -> float:
    return float((rates[f"rate:{MODELS[0]}"] - rates[f"rate:{MODELS[1]}"]).abs().max())


def _by_padding(rates: pd.DataFrame) -> float:
    return float((1 - rates["unpadded_mj"] / rates["energy_mj"]).max())


def write(rates: pd.DataFrame, folder: Path) -> None:
    """README, table and figure.

    Raises:
        RecordError: if the folder cannot be written.
    """
    from analysis.canvas import write_figures  # matplotlib takes a second to load

    try:
        write_figures({"implied_rates": figure(rates)}, folder)
        rates.to_csv(folder / "implied_rates.csv", index=False)
        (folder / "README.md").write_text(page(rates), encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{folder}: cannot be written ({error.strerror})") from None


def figure(rates: pd.DataFrame) -> Figure:
    """The implied rates over the width, a line per family; hollow: by the released code."""
    from analysis.canvas import canvas, style
    from analysis.label_placement import Mark, label_right

    with style():
        drawn, axes = canvas()
        dims = sorted(rates["dim"].unique())
        places: Mapping[int, int] = {dim: i for i, dim in enumerate(dims)}
        marks = []
        for number, (family, rows) in enumerate(rates.groupby("family", sort=False)):
            best = rows.sort_values("gmac").drop_duplicates("dim").sort_values("dim")
            xs = [places[dim] for dim in best["dim"]]
            color = f"C{number}"
            axes.plot(xs, best[f"rate:{MODELS[0]}"], "o-", color=color, ms=4)
            axes.plot(xs, best[f"rate:{MODELS[1]}"], "o:", color=color, mfc="white", ms=4, lw=0.8)
            marks.append(Mark(str(family), 1, best[f"rate:{MODELS[0]}"].iloc[-1], color=color))
        axes.set_xticks(range(len(dims)), [str(dim) for dim in dims])
        axes.set_xlabel("width of the network")
        axes.set_ylabel("mean input rate that the energy implies")
        axes.set_ylim(0, 1)
        axes.set_title(
            "published energies on ImageNet, as rates\nfilled: by the papers' formula; hollow: by "
            "the released code"
        )
        label_right(axes, marks)
    return drawn


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    rates = implied_rates()
    try:
        write(rates, options.out)
    except RecordError as error:
        print_error(error)
        return 2
    print(markdown(rates))
    print(f"\n{options.out}: README.md, implied_rates.csv, implied_rates.png, implied_rates.pdf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
