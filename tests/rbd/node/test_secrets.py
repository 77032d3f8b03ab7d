"""No key of Ceph leaves the memory of those who need it: not for a log, a command line, an environment or a file."""

import base64
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import grpc
import pytest

from csi_host.process import run
from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.node_kit import GIB, Kit, Node
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]


_LOOKS = 10


class Watch(threading.Thread):
    """Looks at every process' command line and environment, over and over, for texts that must not be there."""

    def __init__(self, secrets: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._secrets = secrets
        self._ended = threading.Event()
        self.programs: set[str] = set()
        self.found: set[str] = set()

    def run(self) -> None:
        looks: Counter[str] = Counter()
        while not self._ended.wait(0.005):
            running = {entry.name for entry in os.scandir("/proc") if entry.name.isdigit()}
            # A process is another one after exec, which comes soon if at all: not all are looked at for ever.
            for name in running:
                if looks[name] < _LOOKS:
                    looks[name] += 1
                    self._look(Path("/proc", name))
            looks = Counter({name: count for name, count in looks.items() if name in running})

    def _look(self, process: Path) -> None:
        for name in ("cmdline", "environ"):
            try:
                text = (process / name).read_bytes()
            except OSError:
                continue
            if name == "cmdline":
                self.programs.add(text.split(b"\0")[0].decode(errors="replace").rpartition("/")[2])
            if holds(text, self._secrets):
                self.found.add(f"{process.name}/{name}: {text[:60]!r}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(30)


def holds(text: bytes, secrets: list[bytes]) -> bool:
    return any(secret in text for secret in secrets)


def files_of(node: Node) -> Iterator[Path]:
    """Yield the files that csi-host and its daemons have written: what is mounted is the volumes' content."""
    mounts = {Path(place) for place in node.machine.mounts()}
    for path in node.directory.rglob("*"):
        if path.is_file() and not mounts.intersection([path, *path.parents]):
            yield path


def forms(key: str) -> list[bytes]:
    """Return how a key may look: as it is given, as its bytes, and encoded once more."""
    return [key.encode(), base64.b64decode(key), base64.b64encode(key.encode())]


def live(kit: Kit) -> None:
    """Go through a volume's life with a wrong key, a daemon that dies and a retry in it."""
    kit.stage()
    kit.publish()
    kit.stats()
    kit.grow_image(2 * GIB)
    # A mounted ext4 needs a capability to grow.
    with suppress(grpc.RpcError):
        kit.expand(2 * GIB)
    kit.unpublish()
    kit.stage()


def test_the_watch_sees_what_it_is_looking_for() -> None:
    with Watch([b"a-secret-word"]) as watch:
        run(["sh", "-c", "sleep 0.5; : a-secret-word"], timeout=20)
        run(["sh", "-c", "sleep 0.5"], timeout=20, environment={"WORD": "another-a-secret-word"})
    assert {entry.partition("/")[2].partition(":")[0] for entry in watch.found} >= {"cmdline", "environ"}


@pytest.mark.parametrize("kind", ["ext4", "block"])
def test_no_key_is_in_a_log_a_command_line_an_environment_or_a_file(
    node: Node, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    key = node.rig.secrets["userKey"]
    wrong = run(["ceph-authtool", "--gen-print-key"], timeout=20).stdout.strip()
    secrets = [*forms(key), *forms(wrong)]
    capability = block() if kind == "block" else mounted(fs_type=kind)
    looked_at: set[str] = set()

    def look_at_files() -> None:
        for path in files_of(node):
            looked_at.add(path.name)
            assert not holds(path.read_bytes(), secrets), path

    with Watch(secrets) as watch, hosted(node, node.directory, "--loglevel=debug", "--v=5") as host:
        process = host.start()
        kit = host.kit(node.make_volume(capability))
        with pytest.raises(grpc.RpcError) as refused:
            kit.stage(secrets={**node.rig.secrets, "userKey": wrong})
        assert wrong not in str(refused.value)
        live(kit)
        look_at_files()
        node.machine.kill_daemon()
        kit.stage()
        look_at_files()
        kit.unstage()
        log = process.log()
        process.stop()
    look_at_files()
    assert watch.found == set()
    assert "qemu-storage-daemon" in watch.programs
    assert {"image-meta.json", "ceph.conf", "node.json"} <= looked_at
    assert "NodeStageVolume" in log
    assert not holds(log.encode(), secrets)
    assert not holds(caplog.text.encode(), secrets)
