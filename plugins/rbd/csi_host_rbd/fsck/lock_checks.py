"""The objects of locks that controllers share.

A controller's lock is two of the OSD's on one object: who holds it, for good, and its lease, which runs out. One whose
holder has died is broken by the next controller that wants it, which has the cluster shut the dead one out first; that
is left to the controllers. What is taken away here are objects that nobody ever wants again.
"""

from csi_host_rbd.ceph.lock_objects import lock_names, owner_count
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding
from csi_host_rbd.fsck.look import Look

_LEASE_SUFFIX = ".lease"


def examine_lock(look: Look, object_name: str) -> list[Finding]:
    """Look whether anybody holds a lock."""
    since = look.modified_at(object_name)
    if since is None:
        return []
    names = lock_names(look.pool, object_name)
    owned = [name for name in names if owner_count(look.pool, object_name, name)]
    leases = [name for name in names if name.endswith(_LEASE_SUFFIX)]
    if any(name in owned for name in leases or names):
        return []
    if owned:
        cause = "its holder has died, as its lease has run out; the next controller that wants it breaks it"
        return [Finding(kind=CLASSES["abandoned-lock"], cause=cause, objects=(object_name,), since=since)]
    mend = (steps.remove_lock(look.pool, object_name, names[0] if names else object_name),)
    cause = "no client has it"
    return [Finding(kind=CLASSES["abandoned-lock"], cause=cause, objects=(object_name,), steps=mend, since=since)]
