import logging

import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.encryption.parameters import EncryptionParameters
from csi_host_rbd.features import Feature
from csi_host_rbd.parameters import parse_parameters

_CLASS = {"clusterID": "ceph-a", "pool": "rbd"}


def test_a_class_needs_a_cluster_and_a_pool_and_has_defaults_for_the_rest() -> None:
    parameters = parse_parameters(_CLASS)
    assert (parameters.cluster_id, parameters.pool, parameters.name_prefix) == ("ceph-a", "rbd", "csi-vol-")
    assert parameters.features is None
    assert parameters.striping.order is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"clusterID": ""}, "clusterID"),
        ({"pool": ""}, "pool"),
        ({"dataPool": ""}, "dataPool"),
        ({"radosNamespace": ""}, "radosNamespace"),
        ({"volumeNamePrefix": ""}, "volumeNamePrefix"),
        ({"volumeNamePrefix": "a/b"}, "volumeNamePrefix"),
        ({"volumeNamePrefix": "a" * 129}, "volumeNamePrefix"),
        ({"stripeUnit": "65536", "stripeCount": "4294967296"}, "stripeCount"),
        ({"stripeUnit": "65536", "stripeCount": "9" * 5000}, "stripeCount"),
        ({"imageFeatures": ""}, "imageFeatures"),
        ({"imageFeatures": "layering, object-map"}, "imageFeatures"),
        ({"imageFeatures": "object-map"}, "exclusive-lock"),
        ({"imageFeatures": "exclusive-lock,fast-diff"}, "object-map"),
        ({"imageFeatures": "exclusive-lock,journaling"}, "mounter"),
        ({"imageFeatures": "exclusive-lock,journaling", "mounter": "rbd"}, "mounter"),
        ({"mounter": "fuse"}, "mounter"),
        ({"stripeUnit": "4096"}, "stripeCount"),
        ({"stripeCount": "4"}, "stripeUnit"),
        ({"stripeUnit": "3000000", "stripeCount": "4"}, "stripeUnit"),
        ({"stripeUnit": "-4096", "stripeCount": "4"}, "stripeUnit"),
        ({"stripeUnit": "4k", "stripeCount": "4"}, "stripeUnit"),
        ({"objectSize": "0"}, "objectSize"),
        ({"objectSize": "3000000"}, "objectSize"),
        ({"objectSize": "2048"}, "objectSize"),
        ({"objectSize": "67108864"}, "objectSize"),
        ({"encrypted": "true", "encryptionType": "file"}, "encryptionType"),
        ({"encrypted": "true", "encryptionType": ""}, "encryptionType"),
        ({"encrypted": "true", "encryptionType": "Block"}, "encryptionType"),
        ({"encrypted": "yes"}, "encrypted"),
        ({"tryOtherMounters": "yes"}, "tryOtherMounters"),
        ({"mapOptions": "nbd:keyfile=/etc/shadow"}, "mapOptions"),
        ({"unmapOptions": "nbd:exclusive"}, "unmapOptions"),
        ({"mkfsOptions": "-L 'open"}, "mkfsOptions"),
        ({"mkfsOptions": "-J device=/dev/vda"}, "mkfsOptions"),
        ({"cephLogDir": "logs"}, "cephLogDir"),
        ({"cephLogDir": ""}, "cephLogDir"),
        ({"cephLogDir": "/var/../etc"}, "cephLogDir"),
        ({"cephLogStrategy": "shred"}, "cephLogStrategy"),
        ({"topologyConstrainedPools": "[]"}, "topologyConstrainedPools"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(change: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"parameters\[.*{named}"):
        parse_parameters({**_CLASS, **change})


def test_an_encrypted_journal_is_for_clients_that_leave_luks_to_the_kernel() -> None:
    encrypted = {**_CLASS, "imageFeatures": "exclusive-lock,journaling", "encrypted": "true"}
    with pytest.raises(InvalidArgument, match=r"parameters\[imageFeatures\].*encrypted"):
        parse_parameters({**encrypted, "mounter": "qemu"})
    for takes_it in ({"mounter": "rbd-nbd"}, {"mounter": "qemu", "tryOtherMounters": "true"}):
        assert parse_parameters({**encrypted, **takes_it}).encryption is not None


@pytest.mark.parametrize("missing", ["clusterID", "pool"])
def test_a_missing_parameter_is_required(missing: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"parameters\[{missing}\]: required"):
        parse_parameters({name: value for name, value in _CLASS.items() if name != missing})


def test_features_are_passed_as_a_whole() -> None:
    parameters = parse_parameters({**_CLASS, "imageFeatures": "layering,exclusive-lock,object-map,fast-diff"})
    assert parameters.features == (Feature.LAYERING | Feature.EXCLUSIVE_LOCK | Feature.OBJECT_MAP | Feature.FAST_DIFF)


@pytest.mark.parametrize("mounter", ["rbd-nbd", "qemu"])
def test_journaling_is_for_the_clients_built_on_librbd(mounter: str) -> None:
    parameters = parse_parameters({**_CLASS, "imageFeatures": "exclusive-lock,journaling", "mounter": mounter})
    assert parameters.features == Feature.EXCLUSIVE_LOCK | Feature.JOURNALING


def test_a_volume_is_encrypted_when_the_class_says_so_and_the_kms_is_the_default_one_unless_named() -> None:
    assert parse_parameters(_CLASS).encryption is None
    assert parse_parameters({**_CLASS, "encrypted": "false", "encryptionType": "file"}).encryption is None
    for named, kms_id in [({}, "default"), ({"encryptionKMSID": ""}, "default"), ({"encryptionKMSID": "v"}, "v")]:
        parameters = parse_parameters({**_CLASS, "encrypted": "true", **named})
        assert parameters.encryption == EncryptionParameters(kms_id=kms_id, encryption_type="block")
        assert parameters.passed_on == {**_CLASS, "encrypted": "true", **named}


def test_striping_is_read_in_bytes_and_an_object_size_becomes_an_order() -> None:
    striping = parse_parameters({**_CLASS, "stripeUnit": "65536", "stripeCount": "8", "objectSize": "8388608"}).striping
    assert (striping.unit_bytes, striping.count, striping.order) == (65536, 8, 23)


def test_the_provisioners_own_keys_give_owner_and_metadata_and_are_not_passed_on() -> None:
    parameters = parse_parameters(
        {
            **_CLASS,
            "csi.storage.k8s.io/pvc/name": "data",
            "csi.storage.k8s.io/pvc/namespace": "shop",
            "csi.storage.k8s.io/pv/name": "pvc-1",
            "csi.storage.k8s.io/fstype": "xfs",
        }
    )
    assert parameters.owner == "shop"
    assert parameters.metadata == {
        "csi.storage.k8s.io/pvc/name": "data",
        "csi.storage.k8s.io/pvc/namespace": "shop",
        "csi.storage.k8s.io/pv/name": "pvc-1",
    }
    assert parameters.passed_on == _CLASS


def test_an_unknown_parameter_is_only_warned_of_with_the_name_that_was_meant(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        parameters = parse_parameters({**_CLASS, "imageFeature": "layering"})
    assert "did you mean imageFeatures?" in caplog.text
    assert parameters.passed_on["imageFeature"] == "layering"
