from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import ClassVar, Protocol

from csi_host.errors import OperationPending
from csi_host.locks.holders import Holder, current_holder


class LockBackend(Protocol):
    """Where locks live: this process's memory, or a place that several controllers share."""

    def try_acquire(self, keys: Sequence[str], holder: Holder) -> tuple[str, Holder] | None:
        """Take all ``keys`` for ``holder`` or none: the first taken key and who holds it, None on success."""
        ...

    def release(self, keys: Sequence[str]) -> None:
        """Give all ``keys`` back."""
        ...

    def holders(self) -> Mapping[str, Holder]:
        """Return who holds what now."""
        ...


def pending(noun: str, key: str, holder: Holder) -> OperationPending:
    """Return the refusal of a lock that ``holder`` has."""
    # Log analysers match on ceph-csi's wording, which is the first half of the sentence.
    return OperationPending(f"an operation with the given {noun} {key} already exists: it has been held by {holder}")


class MemoryLocks:
    """Locks in this process's memory: right for one active controller, and for a node."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._held: dict[str, Holder] = {}

    def try_acquire(self, keys: Sequence[str], holder: Holder) -> tuple[str, Holder] | None:
        """Take all ``keys`` for ``holder`` or none: the first taken key and who holds it, None on success."""
        with self._guard:
            for key in keys:
                if key in self._held:
                    return key, self._held[key]
            self._held.update(dict.fromkeys(keys, holder))
            return None

    def release(self, keys: Sequence[str]) -> None:
        """Give all ``keys`` back."""
        with self._guard:
            for key in keys:
                del self._held[key]

    def holders(self) -> Mapping[str, Holder]:
        """Return who holds what now."""
        with self._guard:
            return dict(self._held)


class VolumeLocks:
    """One operation at a time per volume: keys are volume ids and the CO's volume names."""

    noun: ClassVar[str] = "Volume ID"

    def __init__(self, backend: LockBackend | None = None) -> None:
        self._backend = backend or MemoryLocks()

    @contextmanager
    def hold(self, *keys: str) -> Iterator[None]:
        """Hold all ``keys`` for the length of the ``with``; raises OperationPending naming the holder of one."""
        wanted = sorted(set(keys))
        taken = self._backend.try_acquire(wanted, current_holder())
        if taken is not None:
            key, holder = taken
            raise pending(self.noun, key, holder)
        try:
            yield
        finally:
            self._backend.release(wanted)

    def holders(self) -> Mapping[str, Holder]:
        """Return who holds what now."""
        return self._backend.holders()


class SnapshotLocks(VolumeLocks):
    """One operation at a time per snapshot: keys are snapshot ids and the CO's snapshot names."""

    noun = "Snapshot ID"
