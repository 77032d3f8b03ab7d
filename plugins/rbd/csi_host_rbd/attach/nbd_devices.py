"""Which image a network block device shows and whether its rbd-nbd lives, as sysfs and /proc say.

The kernel keeps a device whose daemon has died, with the cookie it was mapped with: that is the volume's id (kernels
since 5.14; older ones have no cookie, and then only a living daemon's command line says which image it serves). Which
daemon serves a device is on the daemons' command lines: the cookie of one that mapped it, the device of one that was
attached to it later. ``pid`` names the first one for ever, and is another process' after a while: it counts only where
there is no cookie. In a container it is a number of another namespace, that of any process here: it does not count.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csi_host_rbd.attach.attacher import ImageSpec
from csi_host_rbd.attach.nbd_daemons import Daemon, daemons_in, sees_machines_pids

_SECTOR_BYTES = 512


@dataclass(frozen=True, kw_only=True)
class NbdDevice:
    """A connected network block device; ``image`` is "" where no living rbd-nbd serves it, ``cookie`` where unknown."""

    device: str
    cookie: str
    size: int
    read_only: bool
    daemon: Daemon | None

    @property
    def index(self) -> int:
        """Its number."""
        return int(self.device.removeprefix("/dev/nbd"))

    @property
    def spec(self) -> ImageSpec:
        """The image as far as it is known from the device itself: not of which cluster, and none without a daemon."""
        pool, _, place = (self.daemon.image if self.daemon else "").partition("/")
        namespace, _, image = place.rpartition("/")
        return ImageSpec(cluster_id="", pool=pool, namespace=namespace, image=image, volume_id=self.cookie)

    def shows(self, spec: ImageSpec) -> bool:
        """Whether this is the image's device: by its cookie where both are known, else by its daemon's command line."""
        if self.cookie and spec.volume_id:
            return self.cookie == spec.volume_id
        return self.daemon is not None and self.daemon.image == str(spec)


def connected_devices(sysfs: Path, proc: Path) -> Iterator[NbdDevice]:
    """Yield the connected devices that an rbd-nbd serves or may have served."""
    pids = {block: pid for block in (sysfs / "block").glob("nbd*") if (pid := _read(block / "pid")) is not None}
    # Looking at every process of the machine is for nodes that have such devices.
    has_pids = sees_machines_pids(proc)
    daemons = list(daemons_in(proc)) if pids else []
    for block, pid in sorted(pids.items(), key=lambda item: int(item[0].name.removeprefix("nbd"))):
        device, cookie = f"/dev/{block.name}", _read(block / "backend") or ""
        number = int(pid) if has_pids else None
        yield NbdDevice(
            device=device,
            cookie=cookie,
            size=_SECTOR_BYTES * int(_read(block / "size") or 0),
            read_only=_read(block / "ro") == "1",
            daemon=next((daemon for daemon in daemons if daemon.serves(device, number, cookie)), None),
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return None
