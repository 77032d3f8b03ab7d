"""Whether a secret shows: on a command line, in an environment, in a log or in a file."""

import base64
import itertools
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from csi_host.node.mounts import read_mounts
from csi_host.process import run
from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.node_kit import Kit, Node

_LOOKS = 10
_PAUSE_SECONDS = 0.005
_END_SECONDS = 30.0
_HABITUAL = ("/run", "/var/log", "/var/tmp", "/var/lib/ceph", "/etc/ceph", "/dev/shm")  # noqa: S108 (only looked at)


class Watch(threading.Thread):
    """Looks at every process' command line and environment, over and over, for texts that must not be there.

    ``programs`` are the names of those it has seen, ``found`` where there was one of the texts.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        super().__init__(daemon=True)
        self._secrets = secrets
        self._ended = threading.Event()
        self.programs: set[str] = set()
        self.found: set[str] = set()

    def run(self) -> None:
        """Look until told to end."""
        looks: Counter[str] = Counter()
        for turn in itertools.count():
            if self._ended.wait(_PAUSE_SECONDS):
                return
            running = {entry.name for entry in os.scandir("/proc") if entry.name.isdigit()}
            # A process is another one after exec, which comes soon if at all: later it is looked at now and then.
            for name in running:
                if looks[name] < _LOOKS or (turn + int(name)) % _LOOKS == 0:
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
        self.join(_END_SECONDS)


def holds(text: bytes, secrets: Sequence[bytes]) -> bool:
    """Tell whether any of the secrets is in ``text``."""
    return any(secret in text for secret in secrets)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was searched while a volume lived: programs' names, files' names and csi-host's log."""

    programs: set[str]
    files: set[str]
    log: str


def live_unseen(
    node: Node, kit: Kit, directory: Path, *, secrets: Sequence[str], grown_bytes: int, disturb: Callable[[], None]
) -> Seen:
    """Go through a volume's life on a node with full debug logging, and raise AssertionError where a secret shows.

    There are a wrong key, a retry and ``disturb``, after which it is staged again, in it. ``secrets`` are those of the
    calls besides Ceph's key, ``grown_bytes`` the size it is grown to.
    """
    usual = node.rig.secrets
    wrong = run(["ceph-authtool", "--gen-print-key"], timeout=60).stdout.strip()
    texts = [*_forms(usual["userKey"]), *_forms(wrong), *(text.encode() for text in secrets)]
    files, written = set[str](), Written.since_now(node.directory, directory)
    with Watch(texts) as watch, hosted(node, directory, "--loglevel=debug", "--v=5") as host:
        with host.served() as process:
            ours = host.kit(kit)
            assert wrong not in _refusal_of_key(ours, {**usual, "userKey": wrong})
            _use(ours, grown_bytes)
            files |= written.search(texts)
            disturb()
            ours.stage()
            files |= written.search(texts)
            ours.unpublish()
            ours.unstage()
        log = process.log()
    files |= written.search(texts)
    assert watch.found == set()
    assert not holds(log.encode(), texts)
    return Seen(programs=watch.programs, files=files, log=log)


def _refusal_of_key(kit: Kit, secrets: dict[str, str]) -> str:
    try:
        kit.stage(secrets=secrets)
    except grpc.RpcError as error:
        return str(error)
    raise AssertionError("staged with a key that the cluster does not know")


def _forms(key: str) -> list[bytes]:
    """Return how a key of Ceph may look: as it is given, as its bytes, and encoded once more."""
    return [key.encode(), base64.b64decode(key), base64.b64encode(key.encode())]


def _use(kit: Kit, grown_bytes: int) -> None:
    kit.stage()
    kit.publish()
    kit.stats()
    kit.grow_image(grown_bytes)
    # A mounted ext4 needs a capability to grow.
    with suppress(grpc.RpcError):
        kit.expand(grown_bytes)
    kit.unpublish()
    kit.stage()


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files that csi-host and what it starts may have written ``since`` a time, in seconds since the epoch.

    ``places`` are those that the test gave them, where programs keep temporary files and their home included; others
    are where daemons and tools write by habit.
    """

    places: Sequence[Path]
    since: float

    @classmethod
    def since_now(cls, *places: Path) -> Self:
        """Begin."""
        # A file's times are those of the kernel's last tick.
        return cls(places=[*places, *map(Path, _HABITUAL)], since=time.time() - 1)

    def search(self, secrets: Sequence[bytes]) -> set[str]:
        """Return the names of the files; raises AssertionError naming one that holds a secret."""
        names = set()
        for path in self._files():
            with suppress(FileNotFoundError):
                assert not holds(path.read_bytes(), secrets), path
                names.add(path.name)
        return names

    def _files(self) -> Iterator[Path]:
        # What is mounted is the volumes' content, or another test's.
        mounts = {Path(mount.mount_point) for mount in read_mounts()}
        for place in self.places:
            for directory, below, names in os.walk(place):
                below[:] = [name for name in below if Path(directory, name) not in mounts]
                yield from (path for name in names if self._is_new(path := Path(directory, name), mounts))

    def _is_new(self, path: Path, mounts: set[Path]) -> bool:
        if path in mounts:
            return False
        try:
            found = path.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_ctime >= self.since
