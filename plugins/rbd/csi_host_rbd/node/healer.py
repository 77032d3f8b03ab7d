"""Gives the devices of staged volumes new daemons when theirs have died, without asking Kubernetes.

rbd-nbd's daemons die with the container of a node plugin, or of a lack of memory. The kernel holds such a device's I/O
for some minutes and knows which volume it is, as that is its cookie; mountinfo knows where it is staged, the stash
there which image it is, and kept_requests how it was attached, key included. A qemu export that died cannot be healed
below a mount: that volume is staged anew when its pods are gone.

What can happen, and what comes of it:

* a call works on the volume: it is left to that call, and looked at again in the next round;
* the key is not known, since the machine's kernel refuses keyrings and csi-host was restarted: said once in the log,
  and healed by the next NodeStageVolume of that volume;
* a cluster does not answer: the attempt ends with its timeout and is repeated. Each cluster's devices are healed apart
  from the others', and half of what may be mapped of it at once is left for calls;
* the volume is unstaged meanwhile: nothing is done, as the device is looked for again within the volume's lock;
* this process dies while it heals: the new daemon goes on by itself, and is found.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread

from csi_host.driver import Driver
from csi_host.errors import CsiError, OperationPending
from csi_host.locks import VolumeLocks
from csi_host.node.mounts import read_mounts
from csi_host.request import Request, serving
from csi_host_rbd.attach.client import MAPS_AT_ONCE
from csi_host_rbd.attach.nbd import NbdAttacher
from csi_host_rbd.node.stash import StashUnreadable, read_stash
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 10.0
# Of one cluster.
_AT_ONCE = MAPS_AT_ONCE // 2


@dataclass(frozen=True, kw_only=True)
class RbdDriver(Driver):
    """The rbd driver, with what it does in the background on a node."""

    healer: "Healer"


class Healer:
    """Looks every ``period`` seconds for devices without a daemon, the first time at once, in a thread of its own."""

    def __init__(self, nbd: NbdAttacher, volume_locks: VolumeLocks, *, period: float = _PERIOD_SECONDS) -> None:
        self._nbd = nbd
        self._volume_locks = volume_locks
        self._period = period
        self._stopped = Event()
        self._said: dict[str, str] = {}
        self._at_work: dict[str, Thread] = {}

    def start(self) -> None:
        """Begin; returns at once."""
        Thread(target=self._work, name="csi-host-healer", daemon=True).start()

    def stop(self) -> None:
        """Begin nothing more; returns at once."""
        self._stopped.set()

    def heal_all(self) -> None:
        """Re-attach every device without a daemon of a volume that is staged; returns when all were tried."""
        for thread in self._begin():
            thread.join()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self._begin()
            except Exception:
                # Whatever it is, devices that die later are to be healed all the same.
                log.exception("looking for devices without a daemon failed")
            self._stopped.wait(self._period)

    def _begin(self) -> list[Thread]:
        """Begin for each cluster whose devices are not being healed still, and return the threads that do it."""
        dead = self._nbd.dead_cookies()
        for volume_id in set(self._said) - set(dead):
            self._said.pop(volume_id, None)
        clusters: dict[str, list[str]] = {}
        for volume_id in dead:
            clusters.setdefault(_cluster_of(volume_id), []).append(volume_id)
        self._at_work = {cluster: thread for cluster, thread in self._at_work.items() if thread.is_alive()}
        begun = {
            cluster: Thread(target=self._heal_cluster, args=(volumes,), name="csi-host-heal", daemon=True)
            for cluster, volumes in clusters.items()
            if cluster not in self._at_work
        }
        self._at_work |= begun
        for thread in begun.values():
            thread.start()
        return list(begun.values())

    def _heal_cluster(self, volume_ids: Sequence[str]) -> None:
        try:
            with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(volume_ids))) as threads:
                list(threads.map(self._heal, volume_ids))
        except Exception:
            log.exception("healing devices without a daemon failed")

    def _heal(self, volume_id: str) -> None:
        if self._stopped.is_set():
            return
        try:
            with serving(Request(rpc="healing", request_id="-")), self._volume_locks.hold(volume_id):
                self._heal_staged(volume_id)
        except OperationPending:
            log.debug("volume %s: another call is at it; its device is looked at again later", volume_id)
        except CsiError as error:
            self._say(volume_id, f"its rbd-nbd has died, and starting another one failed: {error}")

    def _heal_staged(self, volume_id: str) -> None:
        for directory in _staging_directories(volume_id):
            try:
                stash = read_stash(directory)
            except StashUnreadable as error:
                self._say(volume_id, f"its rbd-nbd has died, and {error}")
                continue
            if stash is None or stash.mounter != self._nbd.name or stash.volume_id not in {"", volume_id}:
                continue
            if self._nbd.heal(replace(stash.spec, volume_id=volume_id)):
                log.warning("volume %s: its rbd-nbd had died; another one serves its device now", volume_id)
                return
            self._say(
                volume_id,
                "its rbd-nbd has died, and the key to start another one is not known any more; it is healed when the "
                "volume is staged again, or detached with what was not yet written when it is unstaged",
            )

    def _say(self, volume_id: str, what: str) -> None:
        if self._said.get(volume_id) != what:
            self._said[volume_id] = what
            log.error("volume %s: %s", volume_id, what)


def _cluster_of(volume_id: str) -> str:
    """Return the id of the volume's cluster, "" when nothing here says it."""
    with suppress(InvalidVolumeId):
        return VolumeId.parse(volume_id).cluster_id
    # An administrator's volume has an id of any form.
    with suppress(StashUnreadable):
        for directory in _staging_directories(volume_id):
            if stash := read_stash(directory):
                return stash.cluster_id
    return ""


def _staging_directories(volume_id: str) -> Sequence[Path]:
    # A volume is staged at <directory>/<volume id>; a pod's mount has another name.
    mounts = (Path(mount.mount_point) for mount in read_mounts())
    return [path.parent for path in mounts if path.name == volume_id]
