"""No key and no passphrase leaves the memory of those who need it: not for a log, a command line or a file."""

import logging

import pytest

from csi_host.process import run
from csi_host_rbd.testing.node_kit import GIB, Node
from csi_host_rbd.testing.rig import block, mounted
from csi_host_rbd.testing.secret_watch import Watch, holds, live_unseen

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]


def test_the_watch_sees_what_it_is_looking_for() -> None:
    with Watch([b"a-secret-word"]) as watch:
        run(["sh", "-c", "sleep 0.5; : a-secret-word"], timeout=20)
        run(["sh", "-c", "sleep 0.5"], timeout=20, environment={"WORD": "another-a-secret-word"})
    assert {entry.partition("/")[2].partition(":")[0] for entry in watch.found} >= {"cmdline", "environ"}


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "luks"])
@pytest.mark.parametrize("kind", ["ext4", "block"])
def test_no_secret_is_in_a_log_a_command_line_an_environment_or_a_file(
    node: Node, caplog: pytest.LogCaptureFixture, kind: str, *, is_encrypted: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    passphrase = "a passphrase that is nowhere else"
    node.rig.secrets["encryptionPassphrase"] = passphrase
    capability = block() if kind == "block" else mounted(fs_type=kind)
    kit = node.make_volume(capability, encrypted=str(is_encrypted).lower())
    seen = live_unseen(
        node,
        kit,
        node.directory,
        secrets=[passphrase],
        grown_bytes=2 * GIB,
        disturb=node.machine.kill_daemon,
    )
    assert "qemu-storage-daemon" in seen.programs
    assert ("cryptsetup" in seen.programs) is is_encrypted
    assert {"image-meta.json", "ceph.conf", "node.json"} <= seen.files
    assert "NodeStageVolume" in seen.log
    assert not holds(caplog.text.encode(), [passphrase.encode(), node.rig.secrets["userKey"].encode()])
