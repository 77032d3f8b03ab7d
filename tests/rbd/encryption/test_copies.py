"""Clones, snapshots and restores of encrypted volumes on a real Ceph: librbd copies metadata, and we set it right."""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from csi_host.errors import Unavailable
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import SECONDS, RbdRig, rbd_rig
from csi_host_rbd.testing.vault import VaultServer, serving_vault

pytestmark = pytest.mark.ceph

_STATE, _DEK = "rbd.csi.ceph.com/encrypted", "rbd.csi.ceph.com/dek"
_SECRET = "the class's own passphrase"
_EMPTY: dict[str, dict[str, str]] = {"csi.volumes.default": {}, "csi.snaps.default": {}}


@dataclass
class Outage:
    """The cluster fails at the step number ``at``, counted from 1, when it is done or before; 0 is never."""

    at: int = 0
    is_done: bool = False
    steps: list[str] = field(default_factory=list)

    def begin(self, *, at: int, is_done: bool = False) -> None:
        self.at, self.is_done = at, is_done
        self.steps.clear()

    def before(self, step: str) -> None:
        self.steps.append(step)
        self._fail(is_done=False)

    def after(self, step: str) -> None:  # noqa: ARG002 - the protocol's
        self._fail(is_done=True)

    def _fail(self, *, is_done: bool) -> None:
        if len(self.steps) == self.at and is_done == self.is_done:
            # From here on as well: nothing can be undone, as after a crash.
            self.at += 1
            raise Unavailable("the cluster is gone")


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    with serving_vault() as server:
        yield server


@pytest.fixture
def outage() -> Outage:
    return Outage()


@pytest.fixture
def rig(pool: PoolView, tmp_path: Path, vault: VaultServer, outage: Outage) -> Iterator[RbdRig]:
    """The rbd driver with a KMS of each type; every call's secret has what they need."""
    sections = {
        "wrapping": {"encryptionKMSType": "metadata"},
        "vault-1": {"encryptionKMSType": "vault", "vaultAddress": vault.address},
    }
    (tmp_path / "kms.json").write_text(json.dumps(sections))
    with rbd_rig(pool, tmp_path, observers=[outage]) as one:
        one.secrets.update({"encryptionPassphrase": _SECRET, "vaultToken": vault.root_token})
        yield one


@pytest.fixture
def passphrase_of(rig: RbdRig, vault: VaultServer) -> Callable[[str, str], str]:
    """Find the passphrase as ceph-csi would, with nobody's code but Python's own and cryptography's."""

    def find(handle: str, kms_id: str) -> str:
        if kms_id == "default":
            return _SECRET
        if kms_id == "vault-1":
            content = vault.secrets["", f"secret/{handle}"].versions[-1]
            assert content is not None
            return str(content["data"]["passphrase"])
        members = json.loads(rig.pool.metadata(_image(rig, handle))[_DEK])
        sealed, nonce = (base64.b64decode(members[name]) for name in ("dek", "nonce"))
        return AESGCM(_key(handle)).decrypt(nonce, sealed, None).decode()

    return find


def _key(handle: str) -> bytes:
    return hashlib.scrypt(_SECRET.encode(), salt=handle.encode(), n=32768, r=8, p=1, maxmem=2**26, dklen=32)


def _image(rig: RbdRig, handle: str) -> str:
    return next(name for name in rig.pool.images() if name.endswith(handle[-36:]))


def _class(rig: RbdRig, kms_id: str) -> dict[str, str]:
    return rig.parameters(encrypted="true", encryptionKMSID=kms_id)


def _encrypted(rig: RbdRig, name: str, kms_id: str) -> str:
    """Make a volume and have it used: its header is written."""
    handle = rig.create(name, parameters=_class(rig, kms_id)).volume_id
    rig.pool.rbd("image-meta", "set", _image(rig, handle), _STATE, "encrypted")
    return handle


def _delete(rig: RbdRig, *handles: str) -> None:
    """Delete volumes, as a CO does: asking again while the manager, which removes a clone, has its parent open."""
    deadline = time.monotonic() + SECONDS
    for handle in handles:
        while True:
            try:
                rig.delete(handle)
            except grpc.RpcError as error:
                if "still being used" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                break


def _assert_nothing_is_left(rig: RbdRig, vault: VaultServer) -> None:
    assert rig.pool.journal() == _EMPTY
    assert rig.pool.images() == []
    assert vault.secrets == {}


@pytest.mark.parametrize("kms_id", ["default", "wrapping", "vault-1"])
def test_snapshot_restore_and_clone_open_with_the_passphrase_of_their_source(
    rig: RbdRig, vault: VaultServer, passphrase_of: Callable[[str, str], str], kms_id: str
) -> None:
    source = _encrypted(rig, "pvc-1", kms_id)
    snapshot = rig.snapshot(source, "snap-1").snapshot_id
    restored = rig.restore(snapshot, "pvc-2", parameters=_class(rig, kms_id)).volume_id
    clone = rig.clone(source, "pvc-3", parameters=_class(rig, kms_id)).volume_id
    assert {passphrase_of(handle, kms_id) for handle in (snapshot, restored, clone)} == {passphrase_of(source, kms_id)}
    for handle, kind in ((snapshot, "snap"), (restored, "volume"), (clone, "volume")):
        entry = rig.pool.journal()[f"csi.{kind}.{handle[-36:]}"]
        assert (entry["csi.volume.encryptKMS"], entry["csi.volume.encryptionType"]) == (kms_id, "block")
        metadata = rig.pool.metadata(_image(rig, handle))
        assert {name for name in metadata if "rbd.csi" in name} == (
            {_STATE, _DEK} if kms_id == "wrapping" else {_STATE}
        )
        assert metadata[_STATE] == "encrypted"
    assert rig.snapshot(source, "snap-1").snapshot_id == snapshot
    assert rig.clone(source, "pvc-3", parameters=_class(rig, kms_id)).volume_id == clone
    _delete(rig, source)
    assert passphrase_of(restored, kms_id) == passphrase_of(clone, kms_id)
    _delete(rig, restored, clone)
    rig.delete_snapshot(snapshot)
    _assert_nothing_is_left(rig, vault)


@pytest.mark.parametrize(("first", "then"), [("wrapping", "vault-1"), ("vault-1", "wrapping"), ("default", "vault-1")])
def test_a_copy_may_live_in_another_kms(
    rig: RbdRig, passphrase_of: Callable[[str, str], str], first: str, then: str
) -> None:
    source = _encrypted(rig, "pvc-1", first)
    clone = rig.clone(source, "pvc-2", parameters=_class(rig, then)).volume_id
    assert passphrase_of(clone, then) == passphrase_of(source, first)
    assert (_DEK in rig.pool.metadata(_image(rig, clone))) == (then == "wrapping")


def test_the_one_passphrase_of_a_class_opens_no_copy_of_a_volume_that_has_its_own(
    rig: RbdRig, vault: VaultServer
) -> None:
    source = _encrypted(rig, "pvc-1", "wrapping")
    with pytest.raises(grpc.RpcError, match="another passphrase") as caught:
        rig.clone(source, "pvc-2", parameters=_class(rig, "default"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    _delete(rig, source)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert rig.pool.images() == []
    assert vault.secrets == {}


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_a_source_and_its_copy_are_encrypted_both_or_neither(rig: RbdRig, is_encrypted: bool) -> None:
    source = _encrypted(rig, "pvc-1", "wrapping") if is_encrypted else rig.create("pvc-1").volume_id
    snapshot = rig.snapshot(source, "snap-1").snapshot_id
    wanted = rig.parameters() if is_encrypted else _class(rig, "wrapping")
    before = rig.pool.journal()
    copies: list[Callable[[], object]] = [
        lambda: rig.clone(source, "pvc-2", parameters=wanted),
        lambda: rig.restore(snapshot, "pvc-2", parameters=wanted),
    ]
    for copy in copies:
        with pytest.raises(grpc.RpcError, match=r"parameters\[encrypted\]") as caught:
            copy()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert rig.pool.journal() == before


@pytest.mark.parametrize("kms_id", ["wrapping", "vault-1"])
def test_a_source_whose_passphrase_is_lost_is_not_copied_and_nothing_is_left(
    rig: RbdRig, vault: VaultServer, kms_id: str
) -> None:
    source = _encrypted(rig, "pvc-1", kms_id)
    vault.secrets.clear()
    if kms_id == "wrapping":
        rig.pool.rbd("image-meta", "remove", _image(rig, source), _DEK)
    before, images = rig.pool.journal(), rig.pool.images()
    for copy in (lambda: rig.clone(source, "pvc-2", parameters=_class(rig, kms_id)), lambda: rig.snapshot(source, "s")):
        with pytest.raises(grpc.RpcError, match=f"passphrase .*{source}") as caught:
            copy()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    left = rig.pool.journal()
    left.pop("csi.snaps.default", None)
    assert (left, rig.pool.images()) == (before, images)
    # What the manager has not removed yet keeps its snapshot out of sight.
    assert set(rig.pool.snapshots(_image(rig, source)).values()) <= {"trash"}


def test_while_the_kms_is_down_a_copy_waits_and_goes_on(
    rig: RbdRig, vault: VaultServer, passphrase_of: Callable[[str, str], str]
) -> None:
    source = _encrypted(rig, "pvc-1", "vault-1")
    vault.is_sealed = True
    for copy in (
        lambda: rig.clone(source, "pvc-2", parameters=_class(rig, "vault-1")),
        lambda: rig.snapshot(source, "s"),
    ):
        with pytest.raises(grpc.RpcError, match="status 503") as caught:
            copy()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    vault.is_sealed = False
    clone = rig.clone(source, "pvc-2", parameters=_class(rig, "vault-1")).volume_id
    snapshot = rig.snapshot(source, "s").snapshot_id
    assert {passphrase_of(handle, "vault-1") for handle in (clone, snapshot)} == {passphrase_of(source, "vault-1")}
    _delete(rig, clone, source)
    rig.delete_snapshot(snapshot)
    _assert_nothing_is_left(rig, vault)


@pytest.mark.parametrize("kms_id", ["default", "wrapping", "vault-1"])
def test_a_clone_in_use_whose_image_id_the_journal_lost_is_taken_as_it_is(
    rig: RbdRig, passphrase_of: Callable[[str, str], str], kms_id: str
) -> None:
    source = rig.create("pvc-1", parameters=_class(rig, kms_id)).volume_id
    clone = rig.clone(source, "pvc-2", parameters=_class(rig, kms_id)).volume_id
    image = _image(rig, clone)
    rig.pool.rbd("image-meta", "set", image, _STATE, "encrypted")
    entry, image_id = f"csi.volume.{clone[-36:]}", rig.pool.image(image)["id"]
    place = ("--pool", rig.pool.name, "--namespace", rig.pool.namespace)
    rig.pool.cluster.rados(*place, "rmomapkey", entry, "csi.imageid")
    before, passphrase = rig.pool.metadata(image), passphrase_of(clone, kms_id)
    assert rig.clone(source, "pvc-2", parameters=_class(rig, kms_id)).volume_id == clone
    assert rig.pool.image(image)["id"] == image_id == rig.pool.journal()[entry]["csi.imageid"]
    assert rig.pool.metadata(image) == before
    assert passphrase_of(clone, kms_id) == passphrase


def _encrypt_as_ceph_csi(made: ceph_csi.CephCsiVolume | ceph_csi.CephCsiSnapshot, *, is_old: bool = False) -> None:
    """Write the keys of an encrypted volume: by the first releases, with their names and values, or by a later one."""
    is_volume = isinstance(made, ceph_csi.CephCsiVolume)
    handle = made.volume_id if isinstance(made, ceph_csi.CephCsiVolume) else made.snapshot_id
    entry = f"csi.{'volume' if is_volume else 'snap'}.{made.uuid}"
    made.pool.set_key(entry, "csi.volume.encryptKMS", "wrapping")
    nonce = b"\x01" * 12
    sealed = AESGCM(_key(handle)).encrypt(nonce, b"their passphrase", None)
    dek = json.dumps({"dek": base64.b64encode(sealed).decode(), "nonce": base64.b64encode(nonce).decode()})
    dot = "." if is_old else ""
    made.pool.rbd("image-meta", "set", made.image, f"{dot}{_DEK}", dek)
    made.pool.rbd("image-meta", "set", made.image, f"{dot}{_STATE}", "requiresEncryption" if is_old else "encrypted")
    if not is_old:
        made.pool.set_key(entry, "csi.volume.encryptionType", "block")


@pytest.mark.parametrize("is_old", [False, True])
def test_17_13_encrypted_volumes_and_snapshots_of_ceph_csi_are_copied_and_deleted(
    rig: RbdRig, vault: VaultServer, passphrase_of: Callable[[str, str], str], is_old: bool
) -> None:
    volume = ceph_csi.make_volume(rig.pool, "pvc-1")
    _encrypt_as_ceph_csi(volume, is_old=is_old)
    before = rig.pool.metadata(volume.image)
    theirs = ceph_csi.make_snapshot(volume, "snap-1")
    _encrypt_as_ceph_csi(theirs)
    ours = rig.snapshot(volume.volume_id, "snap-2").snapshot_id
    copies = [
        rig.clone(volume.volume_id, "pvc-2", parameters=_class(rig, "wrapping")).volume_id,
        rig.restore(theirs.snapshot_id, "pvc-3", parameters=_class(rig, "wrapping")).volume_id,
        rig.restore(ours, "pvc-4", parameters=_class(rig, "wrapping")).volume_id,
    ]
    assert {passphrase_of(handle, "wrapping") for handle in (*copies, ours)} == {"their passphrase"}
    assert rig.pool.metadata(volume.image) == before
    _delete(rig, *copies, volume.volume_id)
    for handle in (ours, theirs.snapshot_id):
        rig.delete_snapshot(handle)
    _assert_nothing_is_left(rig, vault)


@pytest.fixture
def maker(rig: RbdRig, what: str, kms_id: str) -> "Maker":
    return Maker(rig=rig, what=what, kms_id=kms_id, source=_encrypted(rig, "pvc-1", kms_id))


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes and removes one kind of thing, out of nothing or of ``source``."""

    rig: RbdRig
    what: str
    kms_id: str
    source: str

    def make(self, name: str) -> str:
        if self.what == "snapshot":
            return self.rig.snapshot(self.source, name).snapshot_id
        parameters = _class(self.rig, self.kms_id)
        if self.what == "clone":
            return self.rig.clone(self.source, name, parameters=parameters).volume_id
        return self.rig.create(name, parameters=parameters).volume_id

    def remove(self, handle: str) -> None:
        if self.what == "snapshot":
            self.rig.delete_snapshot(handle)
        else:
            self.rig.delete(handle)


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("what", "kms_id"), [("create", "wrapping"), ("create", "vault-1"), ("clone", "wrapping"), ("snapshot", "vault-1")]
)
def test_cut_off_at_any_step_from_the_image_on_the_retry_ends_with_the_right_passphrase(
    maker: Maker, vault: VaultServer, outage: Outage, passphrase_of: Callable[[str, str], str], is_done: bool
) -> None:
    rig, kms_id = maker.rig, maker.kms_id
    outage.begin(at=0)
    whole = maker.make("whole")
    number = len(outage.steps)
    assert kms_id == "vault-1" or [step for step in outage.steps[-5:] if f"writing metadata {_DEK}" in step]
    maker.remove(whole)
    images, stored = rig.pool.images(), set(vault.secrets)
    # From the image on: what comes before is the same for what is not encrypted.
    for at in range(number - 4, number + 1):
        outage.begin(at=at, is_done=is_done)
        with pytest.raises(grpc.RpcError) as caught:
            maker.make(f"name-{at}")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        outage.begin(at=0)
        handle = maker.make(f"name-{at}")
        found, state = passphrase_of(handle, kms_id), rig.pool.metadata(_image(rig, handle))[_STATE]
        assert maker.what == "create" or found == passphrase_of(maker.source, kms_id)
        assert state == ("encryptionPrepared" if maker.what == "create" else "encrypted")
        maker.remove(handle)
        assert (rig.pool.images(), set(vault.secrets)) == (images, stored)
    _delete(rig, maker.source)
    assert not [name for name, keys in rig.pool.journal().items() if keys]
    assert vault.secrets == {}
