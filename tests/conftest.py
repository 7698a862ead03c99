"""What holds for all tests: which need a GPU, and that Ctrl-C reaches what they start."""

import signal

import pytest
import torch


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch sees no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """A shell without job control starts `pytest &` with SIGINT ignored, for its children too."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)
