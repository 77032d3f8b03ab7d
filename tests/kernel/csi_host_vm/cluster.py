"""The Ceph cluster outside, as those inside the virtual machine have it."""

import sys
from pathlib import Path

from csi_host_rbd.devcluster import DevCluster
from csi_host_vm.hands import RunOutside
from csi_host_vm.machine import MODULES_DIRECTORY

_SECONDS = 60.0


class ClusterOutside(DevCluster):
    """A cluster whose daemons and command line tools run outside."""

    def __init__(self, directory: Path, share: Path) -> None:
        self._outside = RunOutside(share)
        super().__init__(directory, run_program=self._outside)

    def stop_osd(self) -> None:
        """Suspend the OSD."""
        self._tell("stop_osd")

    def resume_osd(self) -> None:
        """Let the OSD go on."""
        self._tell("resume_osd")

    def _tell(self, what: str) -> None:
        self._outside(
            [sys.executable, "-m", "csi_host_vm.cluster", str(self.directory), what],
            timeout=_SECONDS,
            environment={"PYTHONPATH": MODULES_DIRECTORY},
        )


if __name__ == "__main__":
    getattr(DevCluster(Path(sys.argv[1])), sys.argv[2])()
