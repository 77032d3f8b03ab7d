"""No key and no passphrase leaves the memory of those who need it: not for a log, a command line or a file."""

import logging
import time
from pathlib import Path

import pytest

from csi_host.process import run
from csi_host_rbd.testing import secret_watch
from csi_host_rbd.testing.node_kit import GIB, Node
from csi_host_rbd.testing.rig import block, mounted
from csi_host_rbd.testing.secret_watch import Watch, Written, holds, live_unseen

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
    assert {"qemu-storage-daemon", *(["cryptsetup"] if is_encrypted else [])} <= seen.programs
    assert {"image-meta.json", "ceph.conf", "node.json"} <= seen.files
    assert "NodeStageVolume" in seen.log
    assert not holds(caplog.text.encode(), [passphrase.encode(), node.rig.secrets["userKey"].encode()])


@pytest.mark.parametrize("place", ["given", "habitual"])
def test_the_search_sees_a_file_that_was_written_and_none_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(secret_watch, "_HABITUAL", (str(tmp_path / "habitual"),))
    file = tmp_path / place / "below/key"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"a-secret-word")
    (tmp_path / "given/other").parent.mkdir(exist_ok=True)
    (tmp_path / "given/other").write_bytes(b"harmless")
    assert Written(places=[tmp_path], since=time.time() + 60).search([b"a-secret-word"]) == set()
    written = Written.since_now(tmp_path / "given")
    assert written.search([b"no-such-word"]) == {"key", "other"}
    with pytest.raises(AssertionError, match="below/key"):
        written.search([b"a-secret-word"])
