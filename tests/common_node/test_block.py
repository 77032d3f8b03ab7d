import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import FailedPrecondition
from csi_host.process import ProcessError, run
from csi_host_common_node.block import LoopBusy, LoopDevices, backing_file, is_read_only, size_bytes

MIB = 1024**2


@pytest.fixture
def loops() -> LoopDevices:
    return LoopDevices(run)


def _file(path: Path, size: int = MIB) -> Path:
    with path.open("wb") as content:
        content.truncate(size)
    return path


@pytest.mark.parametrize("name", ["plain", "with space", "-dash", "ünï"])
def test_a_file_is_attached_found_and_detached(
    workdir: Path, loops: LoopDevices, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _file(workdir / name)
    monkeypatch.chdir(workdir)
    device = loops.attach(name)
    assert backing_file(device) == str(workdir / name)
    assert loops.find(name) == [device]
    assert size_bytes(device) == MIB
    assert not is_read_only(device)
    loops.detach(device)
    assert loops.find(name) == []
    loops.detach(device)


def test_attaching_twice_gives_one_device(workdir: Path, loops: LoopDevices) -> None:
    file = _file(workdir / "file")
    device = loops.attach(file)
    assert loops.attach(file) == device
    assert loops.find(file) == [device]
    with pytest.raises(FailedPrecondition, match="for writing"):
        loops.attach(file, read_only=True)
    loops.detach(device)


def test_a_device_past_the_page_cache_sees_what_is_written_to_its_file(workdir: Path, loops: LoopDevices) -> None:
    file = _file(workdir / "file")
    device = loops.attach(file, direct=True)
    assert Path("/sys/block", Path(device).name, "loop/dio").read_text().strip() == "1"
    for text in ("one", "two"):
        page = text[0] * 4096
        run(["dd", f"of={file}", "oflag=direct", "conv=notrunc", "bs=4096", "status=none"], timeout=10, stdin=page)
        assert (
            run(["dd", f"if={device}", "iflag=direct", "bs=4096", "count=1", "status=none"], timeout=10).stdout == page
        )
    loops.detach(device)


def test_a_file_that_cannot_be_read_past_the_page_cache_is_refused_and_nothing_stays(
    workdir: Path, loops: LoopDevices
) -> None:
    place = workdir / "ramfs"
    place.mkdir()
    run(["mount", "-t", "ramfs", "none", str(place)], timeout=10)
    file = _file(place / "file")
    with pytest.raises(ProcessError, match="Invalid argument"):
        loops.attach(file, direct=True)
    assert loops.find(file) == []
    run(["umount", str(place)], timeout=10)


def test_a_read_only_device_refuses_writes(workdir: Path, loops: LoopDevices) -> None:
    device = loops.attach(_file(workdir / "file"), read_only=True)
    assert is_read_only(device)
    with pytest.raises(OSError, match=r"not permitted|denied|Read-only"), Path(device).open("r+b", buffering=0) as raw:
        raw.write(b"x" * 512)
    loops.detach(device)


def test_a_device_that_somebody_made_read_only_earlier_is_writable_again(workdir: Path, loops: LoopDevices) -> None:
    device = loops.attach(_file(workdir / "first"))
    run(["blockdev", "--setro", device], timeout=10)
    loops.detach(device)
    again = loops.attach(_file(workdir / "second"))
    assert not is_read_only(again)
    run(["blockdev", "--setrw", device], timeout=10)
    loops.detach(again)


def test_a_deleted_file_is_found(workdir: Path, loops: LoopDevices) -> None:
    file = _file(workdir / "file")
    device = loops.attach(file)
    file.unlink()
    assert loops.find(file) == [device]
    loops.detach(device)


def test_growing_shows_the_files_new_size(workdir: Path, loops: LoopDevices) -> None:
    file = _file(workdir / "file")
    device = loops.attach(file)
    os.truncate(file, 3 * MIB)
    assert size_bytes(device) == MIB
    loops.grow(device)
    assert size_bytes(device) == 3 * MIB
    loops.detach(device)


def test_a_device_in_use_stays_and_the_user_is_named(workdir: Path) -> None:
    file = _file(workdir / "file")
    loops = LoopDevices(run, detach_seconds=0.2)
    device = loops.attach(file)
    with Path(device).open("rb"), pytest.raises(LoopBusy, match=f"process {os.getpid()} "):
        loops.detach(device)
    # The kernel remembers the wish: the last user's close has taken it off.
    loops.detach(device)
    assert loops.find(file) == []


def test_detaching_waits_for_the_last_user(workdir: Path) -> None:
    file = _file(workdir / "file")
    user: list[Any] = []

    def let_go(_: float) -> None:
        while user:
            user.pop().close()

    loops = LoopDevices(run, pause=let_go)
    device = loops.attach(file)
    user.append(Path(device).open("rb"))  # noqa: SIM115 - closed while detach waits
    loops.detach(device)
    assert loops.find(file) == []


def test_attaching_tries_again_when_another_took_the_free_device(workdir: Path, runner: Any) -> None:
    failures = [1, 1]

    def busy_at_first(argv: Any, **how: Any) -> Any:
        if failures:
            raise ProcessError(argv, "exit code 1: busy", exit_code=failures.pop())
        return run(argv, **how)

    runner.instead["losetup"] = busy_at_first
    loops = LoopDevices(runner, pause=lambda _: None)
    loops.detach(loops.attach(_file(workdir / "file")))
    assert failures == []


def test_a_missing_file_is_not_tried_again(workdir: Path, runner: Any) -> None:
    with pytest.raises(ProcessError):
        LoopDevices(runner).attach(workdir / "absent")
    assert len(runner.started) == 1


def test_many_at_once_get_a_device_each(workdir: Path, loops: LoopDevices) -> None:
    files = [_file(workdir / str(number)) for number in range(12)]
    devices: dict[Path, str] = {}
    begin = threading.Barrier(len(files))

    def attach(file: Path) -> None:
        begin.wait()
        devices[file] = loops.attach(file)

    threads = [threading.Thread(target=attach, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {file: backing_file(device) for file, device in devices.items()} == {file: str(file) for file in files}
    assert len(set(devices.values())) == len(files)
    for device in devices.values():
        loops.detach(device)


def test_the_size_of_what_is_no_block_device_is_an_error(make_disk: Callable[..., Any]) -> None:
    with pytest.raises(OSError, match="ioctl"):
        size_bytes(make_disk().file)
