"""Single keys of an image's metadata, written into its header by the OSD's class as librbd does it.

librbd wants the image's exclusive lock for it, or a holder of the lock that writes the key in its place. The kernel's
client does not do that: it loses the lock, and one that mapped the image with the option ``exclusive`` gives it up to
nobody, so that nothing is written. The lock guards nothing here: librbd's write is the same one operation on the
header, and it tells nobody of it. librbd has more to do than that, and does it, where

* the key is a setting of librbd's own (``conf_…``), which it checks first;
* the image has a journal, which brings the key to the other site;
* the image is a mirror's copy, which nobody may write.
"""

import struct
import time
from contextlib import suppress
from typing import Any

from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.ceph.class_calls import HEADER_PREFIX
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import packed
from csi_host_rbd.ceph.omap import expect_object

_SETTING_PREFIX = "conf_"
_LIBRBDS = rbd.RBD_FEATURE_JOURNALING | rbd.RBD_FEATURE_NON_PRIMARY
_ONE_ENTRY = struct.pack("<I", 1)


def set_key(pool: Pool, handle: Any, name: str, value: str) -> None:
    """Write one key of the image that librbd's ``handle`` has open for writing; raises what the bindings raise."""
    if _is_librbds(handle, name):
        handle.metadata_set(name, value)
    else:
        _execute(pool, handle, "metadata_set", _ONE_ENTRY + packed(name) + packed(value))


def remove_key(pool: Pool, handle: Any, name: str) -> None:
    """Remove one key; fine when there is none. Otherwise as ``set_key``."""
    if _is_librbds(handle, name):
        # The binding says that there is none with the builtin KeyError.
        with suppress(KeyError):
            handle.metadata_remove(name)
    else:
        _execute(pool, handle, "metadata_remove", packed(name))


def _is_librbds(handle: Any, name: str) -> bool:
    return name.startswith(_SETTING_PREFIX) or bool(handle.features() & _LIBRBDS)


def _execute(pool: Pool, handle: Any, method: str, question: bytes) -> None:
    image_id = handle.id()
    with rados.WriteOpCtx() as operation:
        # The header of an image that was removed meanwhile must not come back with this key alone.
        expect_object(operation)
        operation.execute("rbd", method, question)
        try:
            pool.ioctx.operate_write_op(operation, HEADER_PREFIX + image_id, int(time.time()))
        except rados.ObjectNotFound as error:
            raise rbd.ImageNotFound(f"the header of image id {image_id} has gone", errno=error.errno) from error
