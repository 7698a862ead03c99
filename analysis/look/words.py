"""A look in sentences."""

from __future__ import annotations

from analysis.look.content import Look, branch_words, least_alike
from msvit.inside import LayerSurvey, Pair


def sentences(look: Look) -> list[str]:
    """How often the network is right, then what its votes say, layer by layer."""
    found = [_accuracy(look)]
    if not look.survey.layers:
        found.append("It has no attention whose branches vote for tokens: its spikes are shown.")
    for layer, seen in look.survey.layers.items():
        where = look.words[layer].words
        found.append(f"{where[0].upper()}{where[1:]}: {_weights(seen)}")
        if seen.pairs:
            found.append(_pair(least_alike(seen)))
    return found


def _accuracy(look: Look) -> str:
    right = look.survey.accuracy
    whole = len(look.survey.indices) == look.survey.there
    same = abs(right - look.recorded) * look.survey.there < 0.5
    told = f"Right on {right:.2%} of {look.seen}"
    if whole and same:
        return f"{told}, as the record of the cell says."
    return f"{told}; the record of the cell says {look.recorded:.2%}."


def _weights(seen: LayerSurvey) -> str:
    names = [branch_words(name) for name in seen.branches]
    kept = f"the mask keeps {seen.kept:.1%} of the tokens (of a head, in a time step)"
    if len(names) == 1 or not seen.votes.sum():
        return f"{kept}."
    shares = ", ".join(
        f"{share:.0%} are of {name}"
        for name, share in zip(names, seen.votes / seen.votes.sum(), strict=True)
    )
    order = sorted(zip(seen.changed, names, strict=True), reverse=True)
    changed, most = order[0]
    least_changed, least = order[-1]
    return (
        f"of all votes {shares}; {kept}. {changed:.1%} of these decisions would be others without "
        f"{most}, {least_changed:.1%} without {least}."
    )


def _pair(pair: Pair) -> str:
    first, second = branch_words(pair.first), branch_words(pair.second)
    either = pair.either
    if not either:
        return f"Neither {first} nor {second} would keep anything if it alone voted."
    return (
        f"Least alike are {first} and {second}: of the tokens that either would keep if it alone "
        f"voted, {pair.both / either:.0%} are kept by both, {pair.only_first / either:.0%} only by "
        f"{first}, {pair.only_second / either:.0%} only by {second}."
    )
