"""The objects of locks that controllers share.

A controller's lock is two of the OSD's on one object: who holds it, for good, and its lease, which runs out. Both go
when the lock is given back. What is left is from a controller that died, and is broken by the next one that wants the
same name or handle; here it is broken for those that nobody ever wants again.
"""

from csi_host_rbd.ceph.lock_class import read_lock
from csi_host_rbd.ceph.lock_objects import lock_names
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding
from csi_host_rbd.fsck.look import Look

_LEASE_SUFFIX = ".lease"


def examine_lock(look: Look, object_name: str) -> list[Finding]:
    """Look whether anybody alive holds a lock."""
    since = look.modified_at(object_name)
    if since is None:
        return []
    owners = {name: read_lock(look.pool, object_name, name).owners for name in lock_names(look.pool, object_name)}
    leases = [name for name in owners if name.endswith(_LEASE_SUFFIX)]
    if any(owners[name] for name in leases):
        return []
    dead = sorted({str(owner) for held in owners.values() for owner in held})
    cause = f"{', '.join(dead)} had it, and its lease has run out" if dead else "no client has it"
    mend = (steps.free_lock(look.pool, object_name),)
    return [Finding(kind=CLASSES["abandoned-lock"], cause=cause, objects=(object_name,), steps=mend, since=since)]
