"""A Ray of several nodes, all of them on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from tests.test_run import ROOT

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

_CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
head, *others = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args=head)
for node in others:
    cluster.add_node(**node)
print("at", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def ray_of(nodes: Sequence[Mapping[str, int]], **environment: str) -> Iterator[str]:
    """The address of a Ray of ``nodes``, such as ``[{"num_cpus": 1}, {"num_cpus": 1}]``."""
    cluster = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER, json.dumps(nodes)],
        # Workers unpickle what tests define; an installed project does not bring its tests.
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield next(line for line in cluster.stdout if line.startswith("at ")).split()[1]
    cluster.communicate()
