"""An rbd-nbd that dies below a mounted volume that is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.machine import kill_rbd_nbd
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import mounted
from csi_host_rbd.testing.writers import Writer

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MORE_SECONDS = 90.0
SIZE = 320 * 1024**2


@contextmanager
def written(kit: Kit) -> Iterator[Writer]:
    """Write to a volume all the while; afterwards all that was safe is there, also when it is staged anew."""
    kit.stage()
    writer = Writer(kit.publish() / "log", patience=MORE_SECONDS)
    writer.start()
    try:
        writer.wait_for_more()
        yield writer
        writer.wait_for_more()
    finally:
        writer.end()
    kit.unpublish()
    kit.unstage()
    kit.stage()
    writer.check(kit.publish() / "log")


def test_a_killed_rbd_nbd_is_replaced_below_a_mounted_volume_that_is_written(node: Node, directory: Path) -> None:
    # The program itself, which looks for dead daemons: the one that staged the volume and one that was restarted.
    kit = node.make_volume(mounted(fs_type="ext4"), size_bytes=SIZE, mounter="rbd-nbd")
    with hosted(node, directory) as host:
        ours = host.kit(kit)
        process = host.start()
        try:
            with written(ours) as writer:
                kill_rbd_nbd()
                writer.wait_for_more()
                process.process.kill()
                process.process.wait()
                kill_rbd_nbd()
                process = host.start()
                writer.wait_for_more()
        finally:
            process.process.kill()
            process.process.wait()
