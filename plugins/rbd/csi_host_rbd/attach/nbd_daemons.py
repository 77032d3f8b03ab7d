"""The rbd-nbd processes that run here, told by their command lines."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_host_rbd.attach.attacher import ImageSpec
from csi_host_rbd.attach.processes import end_process, processes_of

PROGRAM = "rbd-nbd"
_MAP, _ATTACH = "map", "attach"
# PROC_PID_INIT_INO of include/linux/proc_ns.h: the one of the whole machine has this number on every machine.
_MACHINES_PIDS = "pid:[4026531836]"


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A running rbd-nbd: which image, with which cookie, and for one that was attached to a device, which device.

    ``admin_socket`` is where it is asked what it waits for, "" for nowhere.
    """

    pid: int
    image: str
    cookie: str
    device: str
    admin_socket: str = ""

    def serves(self, device: str, pid: int | None, cookie: str) -> bool:
        """Whether the device, with what sysfs says of it, is this daemon's; ``pid`` None where that means nothing."""
        if self.device:
            return self.device == device
        return self.cookie == cookie if cookie and self.cookie else self.pid == pid

    def was_mapped_for(self, spec: ImageSpec) -> bool:
        """Whether it is what mapping the image, and nothing else, started."""
        return (self.image, self.cookie, self.device) == (str(spec), spec.volume_id, "")


def sees_machines_pids(proc: Path) -> bool:
    """Whether a pid that the kernel's modules name is the same process' here."""
    with suppress(OSError):
        return str((proc / "self/ns/pid").readlink()) == _MACHINES_PIDS
    return False


def daemons_in(proc: Path) -> Iterator[Daemon]:
    """Yield the ones that serve an image."""
    for pid, words in processes_of(PROGRAM, proc):
        for command in (_MAP, _ATTACH):
            if command in words[:-1]:
                image = words[words.index(command) + 1].partition("@")[0]
                yield Daemon(
                    pid=pid,
                    image=image,
                    cookie=_argument(words, "--cookie"),
                    device=_argument(words, "--device"),
                    admin_socket=_argument(words, "--admin-socket"),
                )
                break


def mapped_for(spec: ImageSpec, proc: Path) -> list[int]:
    """Return the pids of the daemons that mapping the image has started."""
    return [daemon.pid for daemon in daemons_in(proc) if daemon.was_mapped_for(spec)]


def end_daemons(spec: ImageSpec, proc: Path, *, but: Collection[int], patience: float) -> None:
    """End the daemons that mapping the image has started, ``but`` for those that ran before; see end_process."""
    for pid in mapped_for(spec, proc):
        if pid not in but:
            end_process(pid, PROGRAM, str(spec), patience=patience)


def _argument(words: Sequence[str], name: str) -> str:
    for position, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and position + 1 < len(words):
            return words[position + 1]
    return ""
