"""The configuration of the one-node Ceph (devcluster), its daemons' and its clients'."""

from pathlib import Path

# An OSD that was suspended for longer than 0.8 of this has lost its read lease, and alone it never gets it back: its
# placement groups stay laggy and every operation on them hangs.
_GRACE_SECONDS = 3600
_MEMSTORE_BYTES = 4 * 1024**3
_BLUESTORE_BYTES = 20 * 1024**3


# Everything on 127.0.0.1 and below the directory; one copy of each object; no daemon of the host's is read or written.
# The OSD goes to / as systemd would have it: Debian's Ceph 20 looks for its object classes at a relative path.
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = {monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
ms bind ipv6 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon allow pool delete = true
mon data avail warn = 1
mon data avail crit = 1
osd crush chooseleaf type = 0
osd heartbeat grace = {grace_seconds}
osd objectstore = {objectstore}
memstore device bytes = {memstore_bytes}
bluestore block create = true
bluestore block size = {bluestore_bytes}
osd class load list = *
osd class default list = *
run dir = {directory}/run
crash dir = {directory}/run
admin socket = {directory}/run/$name.$pid.asok
pid file = {directory}/run/$name.pid
log file = {directory}/log/$name.log
keyring = {directory}/keyring
mon data = {directory}/mon
osd data = {directory}/osd
mgr data = {directory}/mgr
[mgr]
keyring = {directory}/mgr/keyring
[osd]
keyring = {directory}/osd/keyring
chdir = /
[client]
admin socket =
log file =
"""


def configuration(directory: Path, fsid: str, monitor: str, *, is_persistent: bool) -> str:
    """Return ``ceph.conf`` for a cluster below ``directory`` whose monitor listens at the addresses ``monitor``."""
    return _CONFIGURATION.format(
        fsid=fsid,
        monitor=monitor,
        directory=directory,
        objectstore="bluestore" if is_persistent else "memstore",
        grace_seconds=_GRACE_SECONDS,
        memstore_bytes=_MEMSTORE_BYTES,
        bluestore_bytes=_BLUESTORE_BYTES,
    )
