"""What all command lines share: wrong input ends in one line, Ctrl-C in silence, output never."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from msvit.printing import readable, safe_output

DEFAULT_RESULTS = Path("results")
"""Where records, tables and figures are kept unless ``--results`` says otherwise."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count."""


class Main(Protocol):
    """A command line: of the arguments (None: those of the process) it returns the exit code."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int: ...


def command(main: Main) -> Main:
    """``main`` that Ctrl-C ends in silence and its output not at all."""

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            with safe_output():
                if arguments is None and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                    # While modules were loading, scripts have had it end the process at once.
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                return main(arguments)
        except KeyboardInterrupt:
            return INTERRUPTED

    return guarded


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no option twice or with an empty value."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        for before, given in zip(["", *args], args, strict=False):
            if not given.strip():
                self.error(f"{before}: an empty value" if before else "an empty argument")
            if given.startswith("--") and given.endswith("="):
                self.error(f"{given[:-1]}: an empty value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {readable(message)} (--help lists the options)\n")


class _StoreOnce(argparse.Action):
    """Argparse would take the last value of several."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._seen = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if self._seen:
            raise argparse.ArgumentError(self, "given twice")
        self._seen = True
        setattr(namespace, self.dest, values)
