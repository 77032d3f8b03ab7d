"""Volumes of a site that was lost, on the nodes of the other one: the cluster mapping says where they are."""

import json

import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.node.stash import read_stash
from csi_host_rbd.testing.node_kit import Kit, Node, Refused
from csi_host_rbd.testing.rig import mounted
from csi_host_rbd.testing.rotating import rotate

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2


def serve_as(node: Node, *cluster_ids: str) -> None:
    """Have the test's cluster configured under these ids alone."""
    monitors = list(node.rig.pool.cluster.monitors)
    clusters = [{"clusterID": one, "monitors": monitors} for one in cluster_ids]
    (node.directory / "config.json").write_text(json.dumps(clusters), encoding="utf-8")


def pair(node: Node, clusters: dict[str, str]) -> None:
    """Write the mapping: these clusters, and the pool by the id that it has at either site."""
    number = str(node.rig.pool.id())
    mapping = [{"clusterIDMapping": clusters, "RBDPoolIDMapping": [{number: number}]}]
    (node.directory / "mapping.json").write_text(json.dumps(mapping), encoding="utf-8")


def write_file(kit: Kit) -> None:
    kit.stage()
    (kit.publish() / "file").write_text("from the first site")
    kit.unpublish()
    kit.unstage()


def static_kit(node: Node, image: str, cluster_id: str) -> Kit:
    context = {"staticVolume": "true", "clusterID": cluster_id, "pool": node.rig.pool.name, "mounter": "qemu"}
    volume = csi_pb2.Volume(volume_id=image, volume_context=context)
    return node.kit_for(volume, mounted(fs_type="ext4"))


def test_a_volume_of_the_lost_site_is_staged_under_the_handle_that_the_co_knows(node: Node, refused: Refused) -> None:
    serve_as(node, "site1")
    kit = node.make_volume(clusterID="site1")
    write_file(kit)
    serve_as(node, "site2")
    with refused("FAILED_PRECONDITION", "site1"):
        kit.stage()
    pair(node, {"site1": "site2"})
    kit.stage()
    assert (kit.publish() / "file").read_text() == "from the first site"
    stash = read_stash(kit.staging)
    assert stash is not None
    assert (stash.volume_id, stash.cluster_id) == (kit.volume.volume_id, "site2")
    kit.stage()
    kit.unpublish()
    kit.unstage()
    node.machine.assert_clean()


def test_a_static_volume_of_the_lost_site_is_staged_from_its_partner(node: Node, refused: Refused) -> None:
    made = node.make_volume()
    write_file(made)
    serve_as(node, "site2")
    kit = static_kit(node, made.image, "site1")
    with refused("FAILED_PRECONDITION", "site1"):
        kit.stage()
    pair(node, {"site2": "site1"})
    kit.stage()
    assert (kit.publish() / "file").read_text() == "from the first site"
    stash = read_stash(kit.staging)
    assert stash is not None
    assert (stash.volume_id, stash.cluster_id) == (made.image, "site2")


def test_a_static_volume_whose_partner_is_not_configured_stays_where_it_is(node: Node) -> None:
    made = node.make_volume()
    write_file(made)
    serve_as(node, "site1")
    pair(node, {"site1": "site2"})
    kit = static_kit(node, made.image, "site1")
    kit.stage()
    assert (kit.publish() / "file").read_text() == "from the first site"


def test_a_volume_of_kubernetes_own_driver_is_never_formatted_though_its_context_does_not_say_what_it_is(
    node: Node, refused: Refused
) -> None:
    pool = node.rig.pool
    pool.rbd("create", "kubernetes-dynamic-pvc-1", "--size", "64M", "--image-feature", "layering")
    volume = node.make_volume().volume
    volume.volume_id = f"mig_mons-{pool.cluster.cluster_id}_image-1_{pool.name.encode().hex()}"
    kit = node.kit_for(volume, mounted(fs_type="ext4"))
    with refused("FAILED_PRECONDITION", "no filesystem"):
        kit.stage()


def test_the_passphrase_of_a_volume_of_the_lost_site_opens_it_and_is_changed(encrypting_node: Node) -> None:
    node = encrypting_node
    serve_as(node, "site1")
    kit = node.make_volume(size_bytes=64 * MIB, clusterID="site1", encrypted="true", encryptionKMSID="vault-1")
    write_file(kit)
    serve_as(node, "site2")
    pair(node, {"site1": "site2"})
    kit.stage()
    assert (kit.publish() / "file").read_text() == "from the first site"
    done = rotate(kit, node.directory)
    assert (done.exit_code, done.stderr) == (0, "")
    kit.unpublish()
    kit.unstage()
    kit.stage()
    assert (kit.publish() / "file").read_text() == "from the first site"
