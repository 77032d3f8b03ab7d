"""Who uses a device, told by /proc: who has its node open, or below /dev something that does not answer."""

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_host_common_node.holders import NOT_ALL_SEEN, users_of
from csi_host_common_node.open_nodes import OpenNodes, processes

pytestmark = pytest.mark.root

# A machine at work: nothing here depends on it.
SECONDS = 60.0
NOBODYS = {os.makedev(4095, 1)}


@contextmanager
def running(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script that says when it is ready, and ends with its input."""
    with subprocess.Popen(["sh", "-c", script, "sh", *arguments], stdin=-1, stdout=-1) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def test_a_file_whose_server_does_not_answer_is_not_waited_for(fuse_file_below_dev: Any) -> None:
    found: list[list[str]] = []
    with running("exec 5<$1; echo ready; exec cat", str(fuse_file_below_dev.path)) as process:
        fuse_file_below_dev.stop()
        try:
            search = threading.Thread(
                target=lambda: found.append(users_of("/dev/absent", numbers=NOBODYS, seconds=SECONDS)), daemon=True
            )
            search.start()
            search.join(SECONDS)
            assert found == [[]]
            # Not asked at all, not even while the kernel remembers the answer.
            assert OpenNodes(lambda: None).number_of(Path(f"/proc/{process.pid}"), "5") is None
            # By its name it is known all the same.
            users = users_of(str(fuse_file_below_dev.path), numbers=NOBODYS, seconds=SECONDS)
            assert [user.rpartition(" ")[0] for user in users] == [f"process {process.pid}"]
        finally:
            fuse_file_below_dev.resume()
            search.join(SECONDS)


def test_a_node_on_a_filesystem_of_a_container_is_known_by_its_number(disk: Any, below_dev: Path) -> None:
    number = Path(disk.device).stat().st_rdev
    script = """
        unshare --mount sh -c 'mount -t tmpfs none "$1"; mknod "$1/node" b $2 $3
            exec 5<$1/node; echo ready; exec cat' sh "$@"
    """
    with running(script, str(below_dev), str(os.major(number)), str(os.minor(number))):
        users = users_of("/dev/absent", numbers={number}, seconds=SECONDS)
    assert any(user.endswith(("(cat)", "(sh)")) for user in users)
    assert not (below_dev / "node").exists()


def test_a_node_that_was_opened_in_another_namespace_is_known_by_its_number(disk: Any, below_dev: Path) -> None:
    """As a container's standard input is, which its runtime opens."""
    number = Path(disk.device).stat().st_rdev
    script = """
        unshare --mount sh -c 'mount -t tmpfs none "$1"; mknod "$1/node" b $2 $3
            nsenter --mount=/proc/$4/ns/mnt sh -c "echo ready; exec cat" 5<$1/node' sh "$@"
    """
    with running(script, str(below_dev), str(os.major(number)), str(os.minor(number)), str(os.getpid())):
        users = users_of("/dev/absent", numbers={number}, seconds=SECONDS)
        pids = [user.split()[1] for user in users if user.startswith("process ")]
        # Whichever process is looked at first.
        assert number in [OpenNodes(lambda: None).number_of(Path(f"/proc/{pid}"), "5") for pid in pids]


def test_a_node_of_this_machine_is_known_by_its_number(disk: Any, below_dev: Path) -> None:
    node = below_dev / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, Path(disk.device).stat().st_rdev)
    with running("exec 5<$1; echo ready; exec cat", str(node)) as process:
        users = users_of("/dev/absent", numbers={node.stat().st_rdev}, seconds=SECONDS)
    # Programs of others that look for a free loop device open all of them for a moment.
    assert any(user.startswith(f"process {process.pid} ") for user in users)


def test_a_process_with_many_open_files_does_not_outlast_the_time() -> None:
    looks = 0

    def a_second_a_look() -> float:
        nonlocal looks
        looks += 1
        return looks

    # More than there are processes, less than there are open files.
    seconds = len(list(processes())) + 400
    with ExitStack() as stack:
        for _ in range(800):
            stack.enter_context(Path(os.devnull).open("rb"))
        assert users_of("/dev/absent", seconds=seconds, clock=a_second_a_look) == [NOT_ALL_SEEN]
