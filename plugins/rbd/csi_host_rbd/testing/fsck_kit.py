"""fsck in the test's own process, and a pool with all that is in it."""

import struct
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import packed
from csi_host_rbd.ceph.registries import batches
from csi_host_rbd.fsck.fsck import Fsck, Hold, Report, Wishes, no_locks
from csi_host_rbd.fsck.look import Look

T = TypeVar("T")
# An object's content, keys and attributes.
Dumped = dict[str, tuple[bytes, dict[str, bytes], dict[str, bytes]]]
# Longer than any object of a test.
_KEYS = 100_000


class Silent:
    """Progress that nobody sees."""

    def over(self, label: str, pages: Iterator[T], size: Callable[[T], int], total: int | None) -> Iterator[T]:
        """Pass the pages on."""
        del label, size, total
        return pages


@dataclass(frozen=True, kw_only=True)
class Checker:
    """fsck on one place; ``pause`` is what it does between looking twice, ``hold`` takes the controllers' locks."""

    look: Look
    hold: Hold = no_locks
    pause: Callable[[float], None] = field(default=lambda _: None)

    def run(self, **wishes: Any) -> Report:
        """Check, whatever the age of what is found unless ``min_age`` says otherwise."""
        asked = {"min_age": 0.0, "workers": 4} | wishes
        return Fsck(self.look, Wishes(**asked), progress=Silent(), hold=self.hold, pause=self.pause).run()

    def found(self, **wishes: Any) -> list[str]:
        """Return the classes of what is found, by their names."""
        return sorted(one.finding.kind.name for one in self.run(**wishes).outcomes)

    def dump(self) -> Dumped:
        """Return everything that there is in the place, byte for byte."""
        dumped: Dumped = {}
        for name in _names(self.look.pool):
            # The manager may be removing what was just mended.
            with suppress(rados.ObjectNotFound):
                dumped[name] = _dumped(self.look.pool.ioctx, name)
        return dumped


def _names(pool: Pool) -> Sequence[str]:
    return sorted(one.key for one in pool.ioctx.list_objects())


def _dumped(ioctx: Any, name: str) -> tuple[bytes, dict[str, bytes], dict[str, bytes]]:
    size, _ = ioctx.stat(name)
    with rados.ReadOpCtx() as operation:
        values, _ = ioctx.get_omap_vals(operation, "", "", _KEYS)
        ioctx.operate_read_op(operation, name)
        keys = {key: bytes(value or b"") for key, value in values}
    return bytes(ioctx.read(name, size)), keys, dict(ioctx.get_xattrs(name))


def fabricate(pool: Pool, count: int) -> None:
    """Write the objects of so many whole volumes, as librbd and ceph-csi would, in a fraction of the time."""
    now = struct.pack("<II", int(time.time()), 0)
    for batch in batches(range(count)):
        names: dict[str, bytes] = {}
        listed: dict[str, bytes] = {}
        under_way = []
        for _ in batch:
            uuid, image_id = str(uuids.uuid4()), uuids.uuid4().hex[:12]
            image, name = f"csi-vol-{uuid}", f"pvc-{uuid}"
            values = {"csi.volname": name, "csi.imagename": image, "csi.imageid": image_id}
            header = {"size": struct.pack("<Q", 4 * 1024**2), "features": bytes(8), "create_timestamp": now}
            names[f"csi.volume.{name}"] = uuid.encode()
            listed |= {f"name_{image}": packed(image_id), f"id_{image_id}": packed(image)}
            under_way += [
                _send(pool, f"csi.volume.{uuid}", {key: value.encode() for key, value in values.items()}),
                _send(pool, f"rbd_header.{image_id}", header),
                _send(pool, f"rbd_id.{image}", {}, packed(image_id)),
            ]
        under_way += [_send(pool, "csi.volumes.default", names), _send(pool, "rbd_directory", listed)]
        for completion in under_way:
            completion.wait_for_complete()


def _send(pool: Pool, name: str, keys: Mapping[str, bytes], data: bytes = b"") -> Any:
    with rados.WriteOpCtx() as operation:
        operation.new(0)
        if data:
            operation.write_full(data)
        if keys:
            pool.ioctx.set_omap(operation, tuple(keys), tuple(keys.values()))
        return pool.ioctx.operate_aio_write_op(operation, name, mtime=int(time.time()))
