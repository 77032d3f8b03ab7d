"""A volume that ceph-csi made, with a filesystem and a file on it, used by this node and deleted."""

from csi_host.proto import csi_pb2
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.rig import GIB, mounted


def test_a_volume_of_ceph_csi_is_found_staged_written_grown_and_deleted(node: Node) -> None:
    theirs = ceph_csi.make_volume(node.rig.pool, "pvc-of-ceph-csi")
    # The context that ceph-csi answered long ago, and the mounter by which this node attaches.
    volume = csi_pb2.Volume(
        volume_id=theirs.volume_id,
        volume_context={
            "clusterID": node.rig.pool.cluster.cluster_id,
            "pool": node.rig.pool.name,
            "journalPool": node.rig.pool.name,
            "imageName": theirs.image,
            "mounter": "qemu",
        },
    )
    kit = node.kit_for(volume, mounted(fs_type="xfs"))
    assert node.rig.create("pvc-of-ceph-csi").volume_id == theirs.volume_id
    kit.stage()
    file = kit.publish() / "file"
    file.write_text("kept", encoding="utf-8")
    node.rig.expand(theirs.volume_id, 2 * GIB)
    assert kit.expand(2 * GIB) == 2 * GIB
    assert file.read_text(encoding="utf-8") == "kept"
    kit.unpublish()
    kit.unstage()
    node.rig.delete(theirs.volume_id)
    assert theirs.image not in node.rig.pool.images()
    assert f"csi.volume.{theirs.uuid}" not in node.rig.pool.objects()
    assert "csi.volume.pvc-of-ceph-csi" not in node.rig.pool.key_names("csi.volumes.default")
