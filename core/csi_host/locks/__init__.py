"""The lock managers: try, and answer ABORTED naming the holder; nobody ever waits."""

from csi_host.locks.holders import Holder, current_holder
from csi_host.locks.operations import Operation, OperationLocks, operation_pending
from csi_host.locks.volumes import LockBackend, MemoryLocks, SnapshotLocks, VolumeLocks, pending

__all__ = [
    "Holder",
    "LockBackend",
    "MemoryLocks",
    "Operation",
    "OperationLocks",
    "SnapshotLocks",
    "VolumeLocks",
    "current_holder",
    "operation_pending",
    "pending",
]
