"""The memory driver as its wheel is installed, on real loop devices, filesystems and mounts."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest

from csi_host.node.mounts import is_mount_point, mount_at, mounts_below
from csi_host.process import run
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host_common_node.block import LoopDevices, size_bytes
from csi_host_common_node.mounter import Mounter

pytestmark = pytest.mark.root

MIB = 1 << 20
MODES = csi_pb2.VolumeCapability.AccessMode
MOUNT = csi_pb2.VolumeCapability(
    mount=csi_pb2.VolumeCapability.MountVolume(), access_mode=MODES(mode=MODES.SINGLE_NODE_WRITER)
)
BLOCK = csi_pb2.VolumeCapability(
    block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=MODES(mode=MODES.SINGLE_NODE_WRITER)
)


class MemoryHost(Protocol):
    controller: csi_pb2_grpc.ControllerStub
    node: csi_pb2_grpc.NodeStub
    identity: csi_pb2_grpc.IdentityStub


Serve = Callable[..., AbstractContextManager[MemoryHost]]


@pytest.fixture
def host(serve_memory: Serve) -> Iterator[MemoryHost]:
    with serve_memory("--memory-filesystem=xfs") as host:
        yield host


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = [mount.mount_point for mount in mounts_below(tmp_path)]
    for mount_point in reversed(left):
        Mounter(run).unmount(mount_point)
    loops = LoopDevices(run)
    attached = [device for file in (tmp_path / "volumes").glob("*") for device in loops.find(file)]
    for device in attached:
        loops.detach(device)
    assert (left, attached) == ([], [])


def _create(
    host: MemoryHost,
    name: str = "v1",
    *,
    size: int = 320 * MIB,
    limit: int = 0,
    capability: csi_pb2.VolumeCapability = MOUNT,
    source: Mapping[str, Any] | None = None,
) -> csi_pb2.Volume:
    request = csi_pb2.CreateVolumeRequest(
        name=name,
        capacity_range=csi_pb2.CapacityRange(required_bytes=size, limit_bytes=limit),
        volume_capabilities=[capability],
        volume_content_source=csi_pb2.VolumeContentSource(**source) if source else None,
    )
    return host.controller.CreateVolume(request, timeout=60).volume


class OnNode:
    """One volume on the node: where it is staged and published."""

    def __init__(self, host: MemoryHost, tmp_path: Path, volume_id: str, capability: Any = MOUNT) -> None:
        self._host, self._id, self._capability = host, volume_id, capability
        self.staging = tmp_path / f"staging-{volume_id}"
        self.target = tmp_path / f"target-{volume_id}"
        self.staging.mkdir(exist_ok=True)

    def stage(self) -> None:
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=self._id, staging_target_path=str(self.staging), volume_capability=self._capability
        )
        self._host.node.NodeStageVolume(request, timeout=60)

    def publish(self, *, readonly: bool = False) -> None:
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=self._id,
            staging_target_path=str(self.staging),
            target_path=str(self.target),
            volume_capability=self._capability,
            readonly=readonly,
        )
        self._host.node.NodePublishVolume(request, timeout=60)

    def stats(self) -> csi_pb2.NodeGetVolumeStatsResponse:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=self._id, volume_path=str(self.target))
        return self._host.node.NodeGetVolumeStats(request, timeout=60)

    def expand(self, size: int) -> int:
        capacity = csi_pb2.CapacityRange(required_bytes=size)
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=self._id, capacity_range=capacity)
        grown = self._host.controller.ControllerExpandVolume(request, timeout=60)
        assert grown.node_expansion_required
        return grown.capacity_bytes

    def expand_on_node(self) -> int:
        request = csi_pb2.NodeExpandVolumeRequest(volume_id=self._id, volume_path=str(self.target))
        return self._host.node.NodeExpandVolume(request, timeout=60).capacity_bytes

    def unpublish(self) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=self._id, target_path=str(self.target))
        self._host.node.NodeUnpublishVolume(request, timeout=60)

    def unstage(self) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=self._id, staging_target_path=str(self.staging))
        self._host.node.NodeUnstageVolume(request, timeout=60)

    def up(self) -> "OnNode":
        self.stage()
        self.publish()
        return self

    def down(self) -> None:
        self.unpublish()
        self.unstage()


def _delete(host: MemoryHost, volume_id: str) -> None:
    host.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id), timeout=60)


def _snapshot(host: MemoryHost, volume_id: str, name: str = "s1") -> csi_pb2.Snapshot:
    request = csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
    return host.controller.CreateSnapshot(request, timeout=60).snapshot


def _refused(code: grpc.StatusCode, call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details() or ""


@pytest.mark.parametrize("fs_type", ["ext4", "ext3", "xfs"])
def test_what_is_written_is_still_there_when_the_volume_comes_back(
    serve_memory: Serve, tmp_path: Path, fs_type: str
) -> None:
    with serve_memory(f"--memory-filesystem={fs_type}") as host:
        volume = OnNode(host, tmp_path, _create(host).volume_id).up()
        mount = mount_at(volume.target)
        assert mount is not None
        assert mount.fs_type == fs_type
        (volume.target / "letter").write_text("dear reader")
        usage = {unit.unit: unit for unit in volume.stats().usage}
        assert 0 < usage[csi_pb2.VolumeUsage.BYTES].total <= 320 * MIB
        volume.down()
        assert not volume.target.exists()
        volume.up()
        assert (volume.target / "letter").read_text() == "dear reader"
        volume.down()


def test_a_mounted_volume_grows_and_keeps_its_content(host: MemoryHost, tmp_path: Path) -> None:
    volume = OnNode(host, tmp_path, _create(host).volume_id).up()
    (volume.target / "letter").write_text("dear reader")
    before = os.statvfs(volume.target)
    assert volume.expand(640 * MIB) == 640 * MIB
    assert volume.expand_on_node() == 640 * MIB
    after = os.statvfs(volume.target)
    assert after.f_blocks * after.f_frsize > before.f_blocks * before.f_frsize + 300 * MIB
    assert (volume.target / "letter").read_text() == "dear reader"
    volume.down()


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_volume_that_grew_while_it_was_away_has_its_size_when_it_comes_back(
    serve_memory: Serve, tmp_path: Path, fs_type: str
) -> None:
    with serve_memory(f"--memory-filesystem={fs_type}") as host:
        volume = OnNode(host, tmp_path, _create(host).volume_id).up()
        volume.down()
        volume.expand(640 * MIB)
        volume.up()
        about = os.statvfs(volume.target)
        assert about.f_blocks * about.f_frsize > 550 * MIB
        volume.down()


def test_a_block_volume_is_a_device_that_grows(host: MemoryHost, tmp_path: Path) -> None:
    volume = OnNode(host, tmp_path, _create(host, size=16 * MIB, capability=BLOCK).volume_id, BLOCK).up()
    assert stat.S_ISBLK(volume.target.stat().st_mode)
    with volume.target.open("r+b") as device:
        device.write(b"raw")
    volume.expand(32 * MIB)
    volume.expand_on_node()
    assert size_bytes(volume.target) == 32 * MIB
    assert volume.stats().usage[0].total == 32 * MIB
    volume.down()
    volume.up()
    with volume.target.open("rb") as device:
        assert device.read(3) == b"raw"
    volume.down()


def test_staging_and_publishing_twice_is_the_same_as_once(host: MemoryHost, tmp_path: Path) -> None:
    volume = OnNode(host, tmp_path, _create(host).volume_id).up().up()
    assert len(mounts_below(tmp_path)) == 2
    volume.down()
    volume.down()


def test_a_volume_published_read_only_takes_no_writes(host: MemoryHost, tmp_path: Path) -> None:
    volume = OnNode(host, tmp_path, _create(host).volume_id)
    volume.stage()
    volume.publish(readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (volume.target / "letter").write_text("dear reader")
    volume.down()


def test_a_staging_that_fails_leaves_no_mount_and_no_device(host: MemoryHost, tmp_path: Path) -> None:
    # Too small for an xfs, so mkfs fails after the file was attached; _nothing_is_left looks for what it left.
    volume = OnNode(host, tmp_path, _create(host, size=16 * MIB).volume_id)
    assert "mkfs.xfs" in _refused(grpc.StatusCode.INTERNAL, volume.stage)
    assert not is_mount_point(volume.staging)


def test_data_that_is_not_a_filesystem_is_never_formatted(host: MemoryHost, tmp_path: Path) -> None:
    volume_id = _create(host, capability=BLOCK).volume_id
    raw = OnNode(host, tmp_path, volume_id, BLOCK).up()
    with raw.target.open("r+b") as device:
        device.seek(100 * MIB)
        device.write(b"somebody's data")
    raw.down()
    mounted = OnNode(host, tmp_path, volume_id)
    _refused(grpc.StatusCode.FAILED_PRECONDITION, mounted.stage)
    raw.up()
    with raw.target.open("rb") as device:
        device.seek(100 * MIB)
        assert device.read(15) == b"somebody's data"
    raw.down()


def test_snapshot_and_clone_have_what_the_volume_had_and_then_go_their_own_way(
    host: MemoryHost, tmp_path: Path
) -> None:
    first = _create(host)
    original = OnNode(host, tmp_path, first.volume_id).up()
    (original.target / "letter").write_text("dear reader")
    original.down()
    snapshot = _snapshot(host, first.volume_id)
    assert snapshot.ready_to_use
    assert (snapshot.size_bytes, snapshot.source_volume_id) == (first.capacity_bytes, first.volume_id)
    original.up()
    (original.target / "letter").write_text("changed")
    from_snapshot = {"snapshot": csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)}
    restored = _create(host, "restored", size=640 * MIB, source=from_snapshot)
    assert restored.content_source.snapshot.snapshot_id == snapshot.snapshot_id
    # Beside the original, whose filesystem has the same UUID, and larger.
    copy = OnNode(host, tmp_path, restored.volume_id).up()
    assert (copy.target / "letter").read_text() == "dear reader"
    about = os.statvfs(copy.target)
    assert about.f_blocks * about.f_frsize > 550 * MIB
    copy.down()
    original.down()
    from_volume = {"volume": csi_pb2.VolumeContentSource.VolumeSource(volume_id=first.volume_id)}
    clone = OnNode(host, tmp_path, _create(host, "clone", source=from_volume).volume_id).up()
    assert (clone.target / "letter").read_text() == "changed"
    clone.down()


def test_a_volume_in_use_is_neither_copied_nor_deleted(host: MemoryHost, tmp_path: Path) -> None:
    volume_id = _create(host).volume_id
    volume = OnNode(host, tmp_path, volume_id).up()
    source = {"volume": csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume_id)}
    for call in (
        lambda: _delete(host, volume_id),
        lambda: _snapshot(host, volume_id),
        lambda: _create(host, "clone", source=source),
    ):
        assert "in use" in _refused(grpc.StatusCode.FAILED_PRECONDITION, call)
    volume.down()
    _delete(host, volume_id)
    assert list((tmp_path / "volumes").iterdir()) == []


def test_a_create_that_is_repeated_finds_the_volume_also_after_a_restart(serve_memory: Serve, tmp_path: Path) -> None:
    with serve_memory() as host:
        first = _create(host)
        # As if the process had been killed in the middle of another volume.
        (tmp_path / "volumes" / f"{first.volume_id[:-1]}x.unfinished").touch()
    with serve_memory() as host:
        assert _create(host) == first
        listed = host.controller.ListVolumes(csi_pb2.ListVolumesRequest()).entries
        assert [entry.volume for entry in listed] == [first]
        _delete(host, first.volume_id)
        _delete(host, first.volume_id)


def test_a_name_that_is_taken_by_another_size_or_content_is_refused(host: MemoryHost) -> None:
    volume = _create(host)
    already = grpc.StatusCode.ALREADY_EXISTS
    assert "bytes" in _refused(already, lambda: _create(host, size=321 * MIB))
    assert "bytes" in _refused(already, lambda: _create(host, size=1, limit=319 * MIB))
    snapshot = _snapshot(host, volume.volume_id)
    source = {"snapshot": csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot_id)}
    assert "content" in _refused(already, lambda: _create(host, source=source))
    other = _create(host, "v2")
    assert "snapshot of" in _refused(already, lambda: _snapshot(host, other.volume_id))


def test_sizes_that_cannot_be_had_are_out_of_range(host: MemoryHost) -> None:
    out_of_range = grpc.StatusCode.OUT_OF_RANGE
    assert "limit_bytes" in _refused(out_of_range, lambda: _create(host, size=MIB + 1, limit=MIB + 2))
    assert "required_bytes" in _refused(out_of_range, lambda: _create(host, size=(1 << 63) - 1))
    assert _create(host, size=0, limit=3 * MIB).capacity_bytes == 3 * MIB


@pytest.mark.parametrize(
    "capability",
    [
        csi_pb2.VolumeCapability(mount=MOUNT.mount, access_mode=MODES(mode=MODES.MULTI_NODE_MULTI_WRITER)),
        csi_pb2.VolumeCapability(block=BLOCK.block, access_mode=MODES(mode=MODES.SINGLE_NODE_READER_ONLY)),
        csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(fs_type="btrfs"), access_mode=MOUNT.access_mode
        ),
    ],
)
def test_a_use_it_cannot_serve_is_refused_and_not_confirmed(
    host: MemoryHost, capability: csi_pb2.VolumeCapability
) -> None:
    assert "volume_capability" in _refused(
        grpc.StatusCode.INVALID_ARGUMENT, lambda: _create(host, capability=capability)
    )
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=_create(host).volume_id, volume_capabilities=[MOUNT, capability]
    )
    answer = host.controller.ValidateVolumeCapabilities(request)
    assert not answer.HasField("confirmed")
    assert "volume_capability" in answer.message


def test_lists_come_in_pages_that_a_deletion_does_not_upset(host: MemoryHost) -> None:
    made = {_create(host, f"v{number}", size=MIB).volume_id for number in range(5)}
    first = host.controller.ListVolumes(csi_pb2.ListVolumesRequest(max_entries=2))
    _delete(host, first.entries[1].volume.volume_id)
    seen = [entry.volume.volume_id for entry in first.entries]
    token = first.next_token
    while token:
        page = host.controller.ListVolumes(csi_pb2.ListVolumesRequest(max_entries=2, starting_token=token))
        seen += [entry.volume.volume_id for entry in page.entries]
        token = page.next_token
    assert sorted(seen) == sorted(made)
    wrong = csi_pb2.ListVolumesRequest(starting_token="page 2")
    assert "starting_token" in _refused(grpc.StatusCode.ABORTED, lambda: host.controller.ListVolumes(wrong))


def test_many_callers_with_one_name_get_one_volume_or_are_told_to_ask_again(host: MemoryHost, tmp_path: Path) -> None:
    def create(_: int) -> str | grpc.StatusCode:
        try:
            return _create(host).volume_id
        except grpc.RpcError as error:
            return error.code()

    with ThreadPoolExecutor(16) as callers:
        outcomes = set(callers.map(create, range(16)))
    (identifier,) = outcomes - {grpc.StatusCode.ABORTED}
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [f"{identifier}.new"]


def test_ids_that_are_paths_or_patterns_find_nothing(host: MemoryHost, tmp_path: Path) -> None:
    _create(host, size=MIB)
    for junk in ("../../etc/passwd", "vol-*", "*", "..", "vol-x/../y"):
        _delete(host, junk)
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=junk, volume_capabilities=[MOUNT])
        _refused(grpc.StatusCode.NOT_FOUND, lambda: host.controller.ValidateVolumeCapabilities(request))  # noqa: B023 - called within the loop's turn
    assert len(list((tmp_path / "volumes").iterdir())) == 1


def test_it_advertises_what_it_does_and_nothing_else(host: MemoryHost) -> None:
    controller = host.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
    kind = csi_pb2.ControllerServiceCapability.RPC
    assert {kind.Type.Name(each.rpc.type) for each in controller.capabilities} == {
        "CREATE_DELETE_VOLUME",
        "CREATE_DELETE_SNAPSHOT",
        "LIST_VOLUMES",
        "LIST_SNAPSHOTS",
        "CLONE_VOLUME",
        "EXPAND_VOLUME",
    }
    node = host.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    of_node = csi_pb2.NodeServiceCapability.RPC
    assert {of_node.Type.Name(each.rpc.type) for each in node.capabilities} == {
        "STAGE_UNSTAGE_VOLUME",
        "GET_VOLUME_STATS",
        "VOLUME_CONDITION",
        "EXPAND_VOLUME",
    }
