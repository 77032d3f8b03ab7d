"""A process that makes the calls it is told to, so that its Python shares no interpreter with the server's.

The conductor writes one JSON object a line to its standard input and reads one from its standard output.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from .callers import Called, call_all

Functions = Mapping[str, Callable[[Any], Any]]
_STOP_SECONDS = 30.0


class WorkerFailedError(Exception):
    """The worker ended or could not do what it was told; its own words are on standard error."""


class Worker:
    """The conductor's side: a worker process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def process_id(self) -> int:
        """The process's id."""
        return self._process.pid

    def call_all(self, action: str, items: Sequence[Any], *, callers: int) -> Called:
        """Have ``action`` done for every item by so many callers; raises WorkerFailedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([action, list(items), callers]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise WorkerFailedError(f"the process that was to do {action} has ended")
        return Called(**json.loads(answer))


@contextmanager
def working(module: str, *arguments: str) -> Iterator[Worker]:
    """Run a module of this package as a worker for the length of the ``with``."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_STOP_SECONDS)
    finally:
        process.kill()
        process.wait()


def work(functions: Functions) -> None:
    """Do what comes in on standard input until it ends: the worker's side."""
    for line in sys.stdin:
        action, items, callers = json.loads(line)
        called = call_all(functions[action], items, callers)
        sys.stdout.write(json.dumps(asdict(called)) + "\n")
        sys.stdout.flush()
