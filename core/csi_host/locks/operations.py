from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from threading import Lock

from csi_host.errors import OperationPending
from csi_host.locks.holders import Holder, current_holder


class Operation(StrEnum):
    """What is done with a volume or a snapshot while others may want it as a source."""

    CREATE = "Create"
    CLONE = "Clone"
    DELETE = "Delete"
    RESTORE = "Restore"
    EXPAND = "Expand"


# What cannot begin while something else is going on, for one id: requested -> held. CREATE is a snapshot of the
# volume, CLONE volume to volume, RESTORE snapshot to volume. The table is ceph-csi's.
_CONFLICTS: dict[Operation, frozenset[Operation]] = {
    Operation.CREATE: frozenset(),
    Operation.CLONE: frozenset({Operation.EXPAND}),
    Operation.DELETE: frozenset({Operation.RESTORE, Operation.EXPAND}),
    Operation.RESTORE: frozenset({Operation.DELETE}),
    Operation.EXPAND: frozenset({Operation.CREATE, Operation.CLONE, Operation.DELETE}),
}


def operation_pending(held: str, identifier: str, holder: Holder) -> OperationPending:
    """Return the refusal of an operation that the ``held`` one excludes."""
    article = "an" if held == Operation.EXPAND else "a"
    return OperationPending(
        f"{article} {held} operation with given id {identifier} already exists: it has been held by {holder}"
    )


class OperationLocks:
    """Operations that may share a volume or snapshot with others of their kind, but not with every other kind."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._held: dict[str, list[tuple[Operation, Holder]]] = {}

    @contextmanager
    def hold(self, operation: Operation, identifier: str) -> Iterator[None]:
        """Hold ``operation`` on ``identifier`` for the length of the ``with``; raises OperationPending."""
        entry = (operation, current_holder())
        with self._guard:
            entries = self._held.get(identifier, [])
            for held, holder in entries:
                if held in _CONFLICTS[operation]:
                    raise operation_pending(held, identifier, holder)
            self._held[identifier] = [*entries, entry]
        try:
            yield
        finally:
            self._release(identifier, entry)

    def _release(self, identifier: str, entry: tuple[Operation, Holder]) -> None:
        with self._guard:
            self._held[identifier].remove(entry)
            if not self._held[identifier]:
                del self._held[identifier]

    def holders(self) -> dict[str, list[tuple[Operation, Holder]]]:
        """Return who does what with which id now."""
        with self._guard:
            return {identifier: list(entries) for identifier, entries in self._held.items()}
