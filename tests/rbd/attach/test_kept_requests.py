import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.process import run
from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.keyring import Keyring

SPEC = ImageSpec(cluster_id="ceph-a", pool="rbd", image=f"image-{os.getpid()}", namespace="tenant")
VOLUME = replace(SPEC, volume_id="0001-x")
REQUEST = AttachRequest(
    spec=SPEC,
    mon_host="10.0.0.1:6789",
    user="csi",
    key="AQA6fAFrwncNExAAd7IMxMF/byzrFzmGtkQFIw==",
    map_options="io-timeout=30",
    network_namespace=Path("/run/netns/ceph"),
)


class Refusing:
    """A kernel that has no keyrings, or a sandbox that keeps them from us."""

    def add(self, name: str, payload: bytes) -> None:
        raise PermissionError(1, "Operation not permitted", name, payload)

    def read(self, name: str) -> bytes | None:
        raise PermissionError(1, "Operation not permitted", name)

    def remove(self, name: str) -> None:
        raise PermissionError(1, "Operation not permitted", name)


class Remembering:
    """A kernel's keyring."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes] = {}

    def add(self, name: str, payload: bytes) -> None:
        self.payloads[name] = payload

    def read(self, name: str) -> bytes | None:
        return self.payloads.get(name)

    def remove(self, name: str) -> None:
        self.payloads.pop(name, None)


class Junk:
    """A store that somebody else has written to."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def add(self, name: str, payload: bytes) -> None: ...

    def read(self, name: str) -> bytes | None:
        assert name.startswith("csi-host:")
        return self.payload

    def remove(self, name: str) -> None: ...


@pytest.mark.root
def test_what_was_kept_is_found_after_a_restart_until_it_is_forgotten() -> None:
    KeptRequests(Keyring()).keep(REQUEST)
    restarted = KeptRequests(Keyring())
    try:
        assert restarted.find(SPEC) == REQUEST
        assert restarted.find(ImageSpec(cluster_id="ceph-b", pool="rbd", image=SPEC.image, namespace="tenant")) is None
    finally:
        restarted.forget(SPEC)
    assert restarted.find(SPEC) is None
    assert KeptRequests(Keyring()).find(SPEC) is None
    restarted.forget(SPEC)


@pytest.mark.root
def test_the_keyring_is_another_processs_too_that_has_a_session_of_its_own() -> None:
    name = f"csi-host:test-{os.getpid()}"
    code = f"from csi_host_rbd.attach.keyring import Keyring; Keyring().add({name!r}, b'from there')"
    run(["python3", "-c", code], timeout=30, environment={"PYTHONPATH": os.pathsep.join(_import_paths())})
    assert Keyring().read(name) == b"from there"
    Keyring().add(name, b"replaced")
    assert Keyring().read(name) == b"replaced"
    Keyring().remove(name)
    assert Keyring().read(name) is None


def test_without_a_keyring_it_is_kept_in_memory_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    kept = KeptRequests(Refusing())
    with caplog.at_level(logging.WARNING):
        kept.keep(REQUEST)
        assert kept.find(SPEC) == REQUEST
        kept.forget(SPEC)
        assert kept.find(SPEC) is None
    assert [record.getMessage()[:30] for record in caplog.records] == ["the kernel keeps no keys for t"]
    assert REQUEST.key not in caplog.text


def test_the_image_is_asked_for_as_it_is_known_now() -> None:
    kept = KeptRequests()
    # A stash of ceph-csi does not say of which cluster the volume is.
    kept.keep(replace(REQUEST, spec=replace(VOLUME, cluster_id="")))
    for now in (VOLUME, replace(VOLUME, fsid="a"), replace(VOLUME, cluster_id="")):
        found = kept.find(now)
        assert found is not None
        assert (found.spec.cluster_id, found.spec.fsid) == (now.cluster_id, now.fsid)


@pytest.mark.parametrize("change", [{"image": "two"}, {"pool": "ssd"}, {"namespace": ""}, {"cluster_id": "ceph-b"}])
def test_what_another_image_of_the_volumes_id_was_attached_with_is_not_it(change: dict[str, str]) -> None:
    kept = KeptRequests()
    kept.keep(replace(REQUEST, spec=replace(VOLUME, **change)))
    assert kept.find(VOLUME) is None


def test_a_volume_is_found_by_its_id_alone_after_a_restart() -> None:
    store = Remembering()
    request = replace(REQUEST, spec=VOLUME)
    KeptRequests(store).keep(request)
    found = KeptRequests(store).find_volume("0001-x")
    assert found == request
    assert found.spec.volume_id == "0001-x"
    assert KeptRequests(store).find_volume("") is None
    KeptRequests(store).forget(VOLUME)
    assert store.payloads == {}


def test_a_daemons_log_and_network_are_kept_and_an_older_csi_hosts_request_has_no_log() -> None:
    store = Remembering()
    request = replace(REQUEST, log_file=Path("/var/log/ceph/one.log"))
    KeptRequests(store).keep(request)
    assert KeptRequests(store).find(SPEC) == request
    (name,) = store.payloads
    older = json.loads(store.payloads[name])
    del older["log_file"]
    store.payloads[name] = json.dumps({**older, "network_namespace": None}).encode()
    assert KeptRequests(store).find(SPEC) == replace(request, network_namespace=None, log_file=None)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"{}", b'{"user": 1}', b"\xff"])
def test_what_cannot_be_read_counts_as_nothing(payload: bytes) -> None:
    assert KeptRequests(Junk(payload)).find(SPEC) is None


def _import_paths() -> list[str]:
    root = Path(__file__).parents[3]
    return [str(root / part) for part in ("core", "plugins/rbd", "plugins/common_node")]
