"""A filesystem made ready to be mounted for writing: checked, and grown where that has to be done before.

The kernel grows a mounted filesystem in steps of its journal, so that is what is done wherever it may be done: a kill
or a power cut in the middle leaves a sound filesystem. Growing a mounted ext needs CAP_SYS_RESOURCE; a process without
it has resize2fs change the unmounted one, and dying in the middle of that leaves an ext that e2fsck does not repair
unasked. The mark ``growing`` in the image says that it was sound before, so that whatever is wrong is what that growth
left and every repair is right: the next stage, on any node, makes it and grows on.
"""

from csi_host.node.mounts import mounts_of_device
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.resize import Grower
from csi_host_rbd.attach.block_devices import mount_points_anywhere
from csi_host_rbd.node.formatting import Marked, formatted, growing


def make_ready(filesystems: Filesystems, grower: Grower, device: str, kind: str, image: Marked) -> None:
    """Check the filesystem on ``device`` and repair what may be, grow it if it cannot grow mounted.

    Raises FilesystemDamaged, and what checking and growing fail with.
    """
    if mounts_of_device(device) or any(mount_points_anywhere(device)):
        # Pods still have it, after the staging mount was lost, or another container has a copy of that mount: it was
        # checked before, and is changed by the kernel only.
        return
    if image.read_mark() == growing(kind):
        filesystems.repair(device)
        image.write_mark(formatted(kind))
    is_checked = filesystems.check(device, kind)
    if is_checked and not grower.grows_mounted(kind):
        _grow_unmounted(grower, device, kind, image)


def _grow_unmounted(grower: Grower, device: str, kind: str, image: Marked) -> None:
    is_begun = False

    def begin() -> None:
        nonlocal is_begun
        is_begun = True
        image.write_mark(growing(kind))

    grower.grow(device, before_offline=begin)
    if is_begun:
        image.write_mark(formatted(kind))
