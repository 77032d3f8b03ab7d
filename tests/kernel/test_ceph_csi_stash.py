"""A volume that ceph-csi has staged, by its rules and with its stash, is taken over while it is mounted."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from csi_host.node.devices import size_bytes
from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.testing.machine import left_of_image
from csi_host_rbd.testing.node_kit import GIB, Kit, Node
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MODE = "ms_mode=prefer-crc"
SECONDS = 300.0
# A key derived with the least effort: nobody guesses here.
LUKS_FORMAT = ("--type", "luks2", "--hash", "sha256", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4")
STATE_KEY = "rbd.csi.ceph.com/encrypted"


@dataclass(frozen=True, kw_only=True)
class CephCsi:
    """ceph-csi's node plugin, as far as it goes: what it runs and what it leaves in the staging directory."""

    kit: Kit
    ceph: DevCluster
    mounter: str = "rbd"
    is_encrypted: bool = False
    version: int = 3

    def stage(self) -> None:
        """Map, open, format and mount as it does, with the target below the staging path, and leave its stash."""
        kit = self.kit
        mapped = self._map()
        device = self._open(mapped) if self.is_encrypted else mapped
        kit.staging.mkdir(parents=True)
        if kit.capability.HasField("block"):
            kit.staged.touch(0o600)
            run(["mount", "--bind", device, str(kit.staged)], timeout=60)
        else:
            run(["mkfs.ext4", "-m0", "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1", device], timeout=SECONDS)
            kit.staged.mkdir(0o750)
            run(["mount", "-t", "ext4", "-o", "_netdev,defaults", device, str(kit.staged)], timeout=60)
        (kit.staging / STASH_NAME).write_text(json.dumps(self._stash(mapped)))

    def _map(self) -> str:
        conf, spec = str(self.ceph.ceph_conf), f"{self.kit.rig.pool.name}/{self.kit.image}"
        if self.mounter == "rbd":
            options = ["--device-type", "krbd", "--options", "noudev", "--options", MODE]
            return run(["rbd", "--conf", conf, "map", spec, *options], timeout=SECONDS).stdout.strip()
        options = ["--try-netlink", "--reattach-timeout=300", "--io-timeout=0"]
        argv = ["rbd-nbd", "--conf", conf, "--log-file=", "map", spec, *options]
        return run([*argv, f"--cookie={self.kit.volume.volume_id}"], timeout=SECONDS).stdout.strip()

    def _open(self, device: str) -> str:
        passphrase, name = self.kit.rig.secrets["encryptionPassphrase"], f"luks-rbd-{self.kit.volume.volume_id}"
        key = ["-d", "/dev/stdin"]
        run(["cryptsetup", "-q", "luksFormat", *LUKS_FORMAT, device, *key], timeout=SECONDS, stdin=passphrase)
        run(["cryptsetup", "luksOpen", device, name, "--disable-keyring", *key], timeout=SECONDS, stdin=passphrase)
        self.kit.rig.pool.rbd("image-meta", "set", self.kit.image, STATE_KEY, "encrypted")
        return f"/dev/mapper/{name}"

    def _stash(self, device: str) -> dict[str, Any]:
        """Return the stash: version 2 until ceph-csi 3.0, version 3 since."""
        oldest = {
            "Version": self.version,
            "pool": self.kit.rig.pool.name,
            "image": self.kit.image,
            "accessType": self.mounter == "rbd-nbd",
            "encrypted": self.is_encrypted,
        }
        if self.version == 2:
            return oldest
        newer = {"radosNamespace": "", "unmapOptions": "", "logDir": "/var/log/ceph", "logFileStrategy": "remove"}
        return {**oldest, **newer, "device": device if self.mounter == "rbd-nbd" else ""}


def left(kit: Kit) -> list[str]:
    return left_of_image(kit.image, kit.volume.volume_id)


@pytest.mark.parametrize(
    ("mounter", "kind", "version"),
    [
        ("rbd", "ext4", 2),
        ("rbd", "ext4", 3),
        ("rbd", "block", 2),
        ("rbd", "block", 3),
        ("rbd", "ext4 on luks", 2),
        ("rbd", "block on luks", 3),
        ("rbd-nbd", "ext4", 3),
    ],
)
def test_a_volume_that_ceph_csi_staged_is_published_grown_and_unstaged(
    node: Node, ceph: DevCluster, mounter: str, kind: str, version: int
) -> None:
    is_block, is_encrypted = kind.startswith("block"), kind.endswith("luks")
    capability, encrypted = block() if is_block else mounted(fs_type="ext4"), str(is_encrypted).lower()
    kit = node.make_volume(capability, mounter=mounter, mapOptions=f"krbd:{MODE}", encrypted=encrypted)
    CephCsi(kit=kit, ceph=ceph, mounter=mounter, is_encrypted=is_encrypted, version=version).stage()
    before = left(kit)
    kit.stage(timeout=SECONDS)
    target = kit.publish()
    assert left(kit) == before
    if not is_block:
        (target / "file").write_text("data")
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB) == 2 * GIB
    if is_block:
        assert size_bytes(target) == 2 * GIB - (16 * 1024**2 if is_encrypted else 0)
    else:
        assert volume_stats(target).bytes is not None
        assert (target / "file").read_text() == "data"
    kit.unpublish()
    assert not target.exists()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    assert left(kit) == []
    kit.stage(timeout=SECONDS)
    if not is_block:
        assert (kit.staged / "file").read_text() == "data"
    assert left(kit) != []
    kit.unstage()
    assert left(kit) == []
