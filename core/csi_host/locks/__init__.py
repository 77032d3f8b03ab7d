"""The lock managers: try, and answer ABORTED naming the holder; nobody ever waits."""

from csi_host.locks.holders import Holder
from csi_host.locks.operations import Operation, OperationLocks
from csi_host.locks.volumes import LockBackend, MemoryLocks, SnapshotLocks, VolumeLocks

__all__ = [
    "Holder",
    "LockBackend",
    "MemoryLocks",
    "Operation",
    "OperationLocks",
    "SnapshotLocks",
    "VolumeLocks",
]
