import threading
import time
from pathlib import Path
from typing import Any

import pluggy
import pytest

from csi_host.errors import NotFound
from csi_host.hookspecs import HookSpecs, hookimpl
from csi_host.node.guard import GuardedStats
from csi_host.node.stats import VolumeStats
from csi_host_common_node import plugin


class _Better:
    @hookimpl
    def csi_host_volume_stats(self, volume_path: Path) -> VolumeStats | None:
        return VolumeStats(message="better") if volume_path.name == "mine" else None


def test_a_mount_that_hangs_is_abnormal_in_time_and_is_asked_again_when_it_answers(fuse_file: Any) -> None:
    stats = GuardedStats(plugin.csi_host_volume_stats, budget_seconds=0.2)
    fuse_file.stop()
    begin = time.monotonic()
    assert "has not answered" in stats(fuse_file.path).message
    assert stats(fuse_file.path).abnormal
    assert time.monotonic() - begin < 5
    fuse_file.resume()
    for thread in threading.enumerate():
        if thread.name.startswith("stats "):
            thread.join(10)
    # It answers: what is mounted there is a file, which is no volume.
    with pytest.raises(NotFound):
        GuardedStats(plugin.csi_host_volume_stats, budget_seconds=10)(fuse_file.path)


@pytest.fixture
def manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("csi_host")
    manager.add_hookspecs(HookSpecs)
    manager.register(_Better())
    manager.register(plugin)
    manager.check_pending()
    return manager


def test_the_shared_answer_is_asked_for_what_no_driver_answers(manager: pluggy.PluginManager, staged: Path) -> None:
    assert manager.hook.csi_host_volume_stats(volume_path=staged).bytes.total > 0
    assert manager.hook.csi_host_volume_stats(volume_path=Path("/mine")).message == "better"
    with pytest.raises(NotFound):
        manager.hook.csi_host_volume_stats(volume_path=staged / "lost+found")
