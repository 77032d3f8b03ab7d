"""Kernel modules that an attacher needs: loaded once if they can be, and named with what to do if not."""

from pathlib import Path

from csi_host.errors import FailedPrecondition
from csi_host.process import ProcessError, Runner

_SECONDS = 30.0


class ModuleMissing(FailedPrecondition):
    """The kernel has no such module; the message names it and what it comes from."""


class KernelModule:
    """A module by name, and the path below /sys that is there when it is loaded or built in."""

    def __init__(self, name: str, path: Path, *, run: Runner) -> None:
        self._name = name
        self._path = path
        self._run = run
        self._failure: str | None = None

    def require(self) -> None:
        """Load the module unless it is there; tried once, as a kernel does not get one later. Raises ModuleMissing."""
        if self._path.exists():
            return
        if self._failure is None:
            self._failure = self._load()
            if self._path.exists():
                return
        raise ModuleMissing(
            f"{self._path} is missing: this node's kernel has not loaded the module {self._name} "
            f"({self._failure}); load it with modprobe {self._name}, or install a kernel that has it "
            "(Debian package linux-image-amd64), or name a mounter that does without (mounter: qemu)"
        )

    def _load(self) -> str:
        try:
            self._run(["modprobe", self._name], timeout=_SECONDS)
        except ProcessError as error:
            return str(error)
        return "modprobe says it did"
