"""Which image a network block device shows and whether its rbd-nbd lives, as sysfs and /proc say.

The kernel keeps a device whose daemon has died, with the cookie it was mapped with: that is the volume's id (kernels
since 5.14; older ones have no cookie, and then only a living daemon's command line says which image it serves). After
a daemon was replaced ``pid`` still names the first one, so the replacement is found by its command line too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from csi_host_rbd.attach.attacher import ImageSpec

PROGRAM = "rbd-nbd"
_SECTOR_BYTES = 512
_MAP, _ATTACH = "map", "attach"


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A running rbd-nbd: which image, and for one that was attached to a device, which device."""

    pid: int
    image: str
    device: str


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

    def shows(self, spec: ImageSpec) -> bool:
        """Whether this is the image's device: by its cookie where both are known, else by its daemon's command line."""
        if self.cookie and spec.volume_id:
            return self.cookie == spec.volume_id
        return self.daemon is not None and self.daemon.image == str(spec)


def connected_devices(sysfs: Path, proc: Path) -> Iterator[NbdDevice]:
    """Yield the connected devices that an rbd-nbd serves or may have served."""
    daemons = list(_daemons(proc))
    by_pid = {daemon.pid: daemon for daemon in daemons if not daemon.device}
    by_device = {daemon.device: daemon for daemon in daemons if daemon.device}
    for block in sorted((sysfs / "block").glob("nbd*"), key=lambda path: int(path.name.removeprefix("nbd") or 0)):
        pid = _read(block / "pid")
        if pid is None:
            continue
        device = f"/dev/{block.name}"
        yield NbdDevice(
            device=device,
            cookie=_read(block / "backend") or "",
            size=_SECTOR_BYTES * int(_read(block / "size") or 0),
            read_only=_read(block / "ro") == "1",
            daemon=by_device.get(device) or by_pid.get(int(pid)),
        )


def _daemons(proc: Path) -> Iterator[Daemon]:
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        # The command line of one that ended is empty, or gone.
        words = (_read(entry / "cmdline") or "").split("\0")
        if Path(words[0]).name != PROGRAM:
            continue
        for command in (_MAP, _ATTACH):
            if command in words[:-1]:
                image = words[words.index(command) + 1].partition("@")[0]
                yield Daemon(pid=int(entry.name), image=image, device=_device_argument(words))
                break


def _device_argument(words: Sequence[str]) -> str:
    for position, word in enumerate(words):
        if word.startswith("--device="):
            return word.removeprefix("--device=")
        if word == "--device" and position + 1 < len(words):
            return words[position + 1]
    return ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return None
