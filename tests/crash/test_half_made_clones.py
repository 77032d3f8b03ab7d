"""Clones that were cut off inside of librbd, between its own steps, arranged by hand: no byte of a copy is ever wrong.

librbd makes the clone's image, writes its parent, then tells the parent. What is cut off before the second reads as
zeros, and what is cut off before the third loses its content with the snapshot that it was made of.
"""

import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2_grpc
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import packed, packed_u64
from csi_host_rbd.testing import victims
from csi_host_rbd.testing.calls import ASK_AGAIN, IN_USE, Call, Calls
from csi_host_rbd.testing.patterns import Patterns
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.remains import Remains, remains_of, wait_until_clean
from csi_host_rbd.testing.rig import write_clusters_file
from csi_host_rbd.testing.victims import Kill, Moment, Orders

pytestmark = pytest.mark.ceph

_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A namespace with a volume that has content, a process that serves it, and how to start ones that are killed."""

    pool: PoolView
    store: Pool
    calls: Calls
    patterns: Patterns
    orders: Orders
    controller: csi_pb2_grpc.ControllerStub
    volume_id: str
    snapshot_id: str

    def make(self, call: Call) -> Any:
        """Make a call until its outcome is known."""
        again_after = IN_USE if call.rpc.startswith("Delete") else ASK_AGAIN
        return call.until_known(lambda: self.controller, seconds=_SECONDS, again_after=again_after)

    def cut_off_before_cloning(self, call: Call) -> None:
        """Have a process killed in a call just before it clones."""
        orders = Orders(
            socket=self.orders.socket.with_name("dies.sock"),
            clusters_file=self.orders.clusters_file,
            kill=Kill(step=1, moment=Moment.BEFORE, beginning="cloning"),
        )
        with victims.victim(orders) as process, process.controller() as controller:
            with suppress(grpc.RpcError):
                call.on(controller)
            process.wait_until_killed()

    def clone(self, source: str, name: str) -> None:
        """Clone a snapshot as the driver does."""
        place = f"{self.pool.name}/{self.pool.namespace}"
        options = ("--rbd-default-clone-format", "2", "--image-feature", "layering")
        self.pool.cluster.rbd("clone", *options, f"{place}/{source}", f"{place}/{name}")

    def forget_child(self, parent: str, snapshot: str, child: str) -> None:
        """Take a clone off the list that its parent keeps."""
        image_id = self.pool.image(child)["id"]
        spec = struct.pack("<q", self.store.pool_id) + packed(image_id) + packed(self.store.namespace)
        with self.patterns.opened(parent) as image:
            snapshot_id = next(int(one["id"]) for one in image.list_snaps() if one["name"] == snapshot)
            header = f"rbd_header.{image.id()}"
        question = packed_u64(snapshot_id) + struct.pack("<BBI", 2, 1, len(spec)) + spec
        self.store.ioctx.execute(header, "rbd", "child_detach", question)


@pytest.fixture
def bench(pool: PoolView) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="crash-") as sockets, pool.connected() as store:
        orders = Orders(socket=Path(sockets) / "csi.sock", clusters_file=write_clusters_file(pool, Path(sockets)))
        calls, patterns = Calls(pool=pool), Patterns(ioctx=store.ioctx)
        with victims.victim(orders) as process, process.controller() as controller:
            volume_id = calls.create("source").on(controller).volume.volume_id
            patterns.write(f"csi-vol-{volume_id[-36:]}", "first")
            snapshot_id = calls.snapshot(volume_id, "source").on(controller).snapshot.snapshot_id
            yield Bench(
                pool=pool,
                store=store,
                calls=calls,
                patterns=patterns,
                orders=orders,
                controller=controller,
                volume_id=volume_id,
                snapshot_id=snapshot_id,
            )


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A way to copy: the call, and the names of the image and of the snapshot that it clones, once it has begun."""

    call: Callable[[Bench], Call]
    image: Callable[[Bench], str]
    source: Callable[[Bench], str]
    snapshot: Callable[[Bench], str]


def _begun(bench: Bench, kind: str, directory: str) -> str:
    return bench.pool.journal()[directory][f"csi.{kind}.copy"]


def _begun_volume(bench: Bench) -> str:
    return f"csi-vol-{_begun(bench, 'volume', 'csi.volumes.default')}"


def _begun_snapshot(bench: Bench) -> str:
    return f"csi-snap-{_begun(bench, 'snap', 'csi.snaps.default')}"


def _source_volume(bench: Bench) -> str:
    return f"csi-vol-{bench.volume_id[-36:]}"


def _source_snapshot(bench: Bench) -> str:
    return f"csi-snap-{bench.snapshot_id[-36:]}"


COPIES = {
    "restore": Copy(
        call=lambda bench: bench.calls.create("copy", snapshot_id=bench.snapshot_id),
        image=_begun_volume,
        source=_source_snapshot,
        snapshot=_source_snapshot,
    ),
    "clone": Copy(
        call=lambda bench: bench.calls.create("copy", volume_id=bench.volume_id),
        image=_begun_volume,
        source=_source_volume,
        snapshot=_begun_volume,
    ),
    "snapshot": Copy(
        call=lambda bench: bench.calls.snapshot(bench.volume_id, "copy"),
        image=_begun_snapshot,
        source=_source_volume,
        snapshot=_begun_snapshot,
    ),
}


def _without_header(bench: Bench, copy: Copy) -> None:
    """The clone's image has its name, and no more."""
    _without_parent(bench, copy)
    bench.store.ioctx.remove_object(f"rbd_header.{bench.pool.image(copy.image(bench))['id']}")


def _without_parent(bench: Bench, copy: Copy) -> None:
    """The clone's image was made, and no more."""
    bench.pool.rbd("create", copy.image(bench), "--size", "1G", "--image-feature", "layering")


def _unknown_to_parent(bench: Bench, copy: Copy) -> None:
    """The clone has its parent, and the parent does not know."""
    bench.clone(f"{copy.source(bench)}@{copy.snapshot(bench)}", copy.image(bench))
    bench.forget_child(copy.source(bench), copy.snapshot(bench), copy.image(bench))


def _without_snapshot(bench: Bench, copy: Copy) -> None:
    """The same, and the snapshot has gone: the image cannot be opened."""
    _unknown_to_parent(bench, copy)
    if copy.snapshot(bench) != _source_snapshot(bench):
        bench.pool.rbd("snap", "rm", f"{copy.source(bench)}@{copy.snapshot(bench)}")


def _in_trash(bench: Bench, copy: Copy) -> None:
    """A half made one was put into the trash by the next call, which was cut off before it asked the manager."""
    _unknown_to_parent(bench, copy)
    bench.pool.rbd("trash", "mv", copy.image(bench))


STATES = [_without_header, _without_parent, _unknown_to_parent, _without_snapshot, _in_trash]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__.lstrip("_"))
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_that_was_cut_off_inside_of_librbd_is_made_anew_with_the_content_of_its_source(
    bench: Bench, copy: Copy, state: Callable[[Bench, Copy], None]
) -> None:
    before = remains_of(bench.pool)
    call = copy.call(bench)
    bench.cut_off_before_cloning(call)
    state(bench, copy)
    answer = bench.make(call)
    bench.patterns.write(_source_volume(bench), "second")
    deletes = []
    if call.rpc == "CreateSnapshot":
        deletes.append(bench.calls.delete_snapshot(answer.snapshot.snapshot_id))
        answer = bench.make(bench.calls.create("restored", snapshot_id=answer.snapshot.snapshot_id))
    copied = f"csi-vol-{answer.volume.volume_id[-36:]}"
    deletes.append(bench.calls.delete(answer.volume.volume_id))
    assert bench.patterns.differs(copied, "first") == ""
    for delete in reversed(deletes):
        bench.make(delete)
    bench.patterns.write(_source_volume(bench), "first")
    assert wait_until_clean(bench.pool, before) == []


@pytest.mark.parametrize("copy", ["clone", "snapshot"])
def test_a_copy_that_cannot_be_opened_as_its_source_let_go_of_its_parent_is_made_anew(bench: Bench, copy: str) -> None:
    # What librbd leaves when it takes a volume off its parent's list, while a snapshot that still needs it is taken.
    before = remains_of(bench.pool)
    snapshot = bench.make(bench.calls.snapshot(bench.volume_id, "parent")).snapshot.snapshot_id
    restored = bench.make(bench.calls.create("restored", snapshot_id=snapshot)).volume.volume_id
    source, parent = f"csi-vol-{restored[-36:]}", f"csi-snap-{snapshot[-36:]}"
    call = (
        bench.calls.snapshot(restored, "copy") if copy == "snapshot" else bench.calls.create("copy", volume_id=restored)
    )
    bench.cut_off_before_cloning(call)
    begun = COPIES[copy].image(bench)
    bench.clone(f"{source}@{begun}", begun)
    bench.pool.rbd("flatten", source)
    bench.forget_child(parent, parent, source)
    bench.make(bench.calls.delete_snapshot(snapshot))
    bench.pool.wait_until_trash_is_empty()
    answer = bench.make(call)
    deletes = [bench.calls.delete(restored)]
    if copy == "snapshot":
        deletes.append(bench.calls.delete_snapshot(answer.snapshot.snapshot_id))
        answer = bench.make(bench.calls.create("of-copy", snapshot_id=answer.snapshot.snapshot_id))
    deletes.append(bench.calls.delete(answer.volume.volume_id))
    assert bench.patterns.differs(f"csi-vol-{answer.volume.volume_id[-36:]}", "first") == ""
    for delete in reversed(deletes):
        bench.make(delete)
    assert wait_until_clean(bench.pool, before) == []


@pytest.mark.parametrize("state", STATES[:4], ids=lambda state: state.__name__.lstrip("_"))
def test_when_its_source_has_gone_what_was_begun_goes_too(bench: Bench, state: Callable[[Bench, Copy], None]) -> None:
    copy = COPIES["clone"]
    call = copy.call(bench)
    bench.make(bench.calls.delete_snapshot(bench.snapshot_id))
    bench.cut_off_before_cloning(call)
    state(bench, copy)
    bench.make(bench.calls.delete(bench.volume_id))
    with pytest.raises(grpc.RpcError) as refused:
        bench.make(call)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert wait_until_clean(bench.pool, Remains(objects={}, tasks=frozenset())) == []
