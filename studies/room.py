"""Where cells have room: what the machines of Ray have, and what of it is free."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from studies.resources import Resources

Machines = Mapping[str, Mapping[str, float]]
"""Resources by the id of the machine's Ray node."""


class NoRoom(RuntimeError):
    """There was no room for the workers of a cell, which says nothing of the cell."""


@dataclass(frozen=True)
class Group:
    """``count`` workers with ``cpus`` and ``gpus`` each, on ``nodes`` machines (None: any)."""

    count: int
    cpus: float
    gpus: float
    nodes: int | None

    @classmethod
    def of(cls, resources: Resources, cpus: float, gpus: float) -> Group:
        """``cpus`` and ``gpus`` are what a worker gets where ``resources`` do not tell."""
        count = resources.count
        if resources.cpus is not None:
            cpus = resources.cpus / count
        if resources.gpus is not None:
            gpus = resources.gpus / count
        return cls(count, cpus, gpus, resources.nodes)

    def __str__(self) -> str:
        where = f" on {self.nodes} machines" if self.nodes else ""
        return f"{self.count} workers{where} with {self.cpus:g} CPUs and {self.gpus:g} GPUs each"


def machines() -> Machines:
    """What the machines that answer have."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def free_machines() -> Machines:
    """What is free on them, as Ray knows a moment later."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return {node: free.get(node, {}) for node in machines()}


def machines_for(group: Group, machines: Machines) -> list[str]:
    """The machine of each worker, as many on each of ``group.nodes``, where most room is.

    Empty where there is no room for all.
    """
    fit = {
        node: min(group.count, _fit(has, group.cpus, group.gpus)) for node, has in machines.items()
    }
    roomy = sorted(fit, key=lambda node: fit[node], reverse=True)
    if group.nodes is None:
        found = [node for node in roomy for _ in range(fit[node])][: group.count]
    else:
        each = group.count // group.nodes
        chosen = [node for node in roomy if fit[node] >= each][: group.nodes]
        found = [node for node in chosen for _ in range(each)]
    return found if len(found) == group.count else []


def has_room(group: Group) -> bool:
    """Whether the machines have room for all workers of a cell, with nothing beside them."""
    return bool(machines_for(group, machines()))


def is_free(group: Group, started: Iterable[Group]) -> bool:
    """Whether they have it now, beside those ``started`` of which Ray may not know yet."""
    cpus = gpus = 0.0
    for other in (group, *started):
        cpus += other.count * other.cpus
        gpus += other.count * other.gpus
    has = machines().values()
    if cpus > _total(has, "CPU") or gpus > _total(has, "GPU"):
        return False
    return bool(machines_for(group, free_machines()))


def slots(cpus: float, gpus: float) -> int:
    """How many cells of one process fit at once; none stretches over two machines."""
    return sum(_fit(has, cpus, gpus) for has in machines().values())


def described() -> str:
    """What the machines have, in words."""
    each = (
        f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs" for has in machines().values()
    )
    return "; ".join(each) or "no machine"


def remove_abandoned() -> None:
    """Free what groups of workers have left taken whose leader has died under them.

    Ray keeps a placement group for as long as the study's job lives. Ray Train has an actor remove
    it, which asks the dashboard, and a Ray of our own has none.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        is_gone = group.state == PlacementGroupTableData.REMOVED
        if group.creator_job_id.hex() == job and group.creator_actor_dead and not is_gone:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _fit(has: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers a machine has room for."""
    return min(
        int(has.get("CPU", 0) / cpus + 1e-6),  # 1 // 0.1 is 9
        int(has.get("GPU", 0) / gpus + 1e-6) if gpus else sys.maxsize,
    )


def _total(has: Iterable[Mapping[str, float]], kind: str) -> float:
    return sum(resources.get(kind, 0.0) for resources in has) + 1e-6
