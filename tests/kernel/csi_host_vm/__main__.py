"""A command, or a shell, in a virtual machine with the real modules and a cluster."""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from csi_host_rbd.testing.clusters import own_cluster
from csi_host_vm import machine
from csi_host_vm.hands import Hands


def main() -> int:
    """Run the command of this command line in a machine, or a shell without one, and return its exit code."""
    command = shlex.join(sys.argv[1:]) or "exec setsid --ctty bash -i"
    with (
        own_cluster() as cluster,
        tempfile.TemporaryDirectory(prefix="csi-vm-") as directory,
        Hands(Path(directory)),
    ):
        process = machine.boot(
            f"export CEPH_CONF={shlex.quote(str(cluster.ceph_conf))}\n{command}",
            share=Path(directory),
            has_terminal=sys.stdin.isatty() and sys.stdout.isatty(),
        )
        if process.stdout is not None:
            shutil.copyfileobj(process.stdout, sys.stdout.buffer, 1)
        return process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except machine.CannotBootError as error:
        sys.exit(str(error))
