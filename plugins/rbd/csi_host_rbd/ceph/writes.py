"""What is told of every durable step: each write to the cluster passes here, before and after.

A library call such as making an image is one step, though it sends several operations. Whoever is told may refuse a
step by raising, for instance because a lock it needs is lost. The tests that kill the process at every step learn the
steps here, so none can be forgotten in a list.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class WriteObserver(Protocol):
    """Somebody who is told of every durable step."""

    def before(self, step: str) -> None:
        """Hear what is about to be written; raising means that it is not."""
        ...

    def after(self, step: str) -> None:
        """Hear that it has been written."""
        ...


class Writes:
    """The durable steps of one set of connections, and who is told of them."""

    def __init__(self, *observers: WriteObserver) -> None:
        self._observers = observers

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Make the body of the ``with`` a durable step; it is not done when its outcome is unknown or it failed."""
        for observer in self._observers:
            observer.before(what)
        yield
        for observer in self._observers:
            observer.after(what)
