"""The OSD hangs below a mounted volume that is being written: what needs no Ceph goes on, and nothing is lost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.hosted import Hosted
from csi_host_rbd.testing.node_kit import Kit
from csi_host_rbd.testing.writers import Writer

# A write that waited for the cluster goes on some seconds after it.
_MORE_SECONDS = 30.0
# After which nobody takes the silence for a slow moment.
_BEFORE_SILENT_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Outage:
    """How long the OSD hangs, and what calls are allowed meanwhile, in seconds."""

    ceph: DevCluster
    host: Hosted
    seconds: float
    stats_seconds: float
    probe_seconds: float

    def live_through(self, busy: Kit, idle: Kit) -> None:
        """Have ``busy`` be written and ``idle`` be left alone while the OSD hangs; raises AssertionError.

        Statistics are abnormal for ``busy``, and answered in time for both; Probe and others are as ever. After it
        all that was written is there, also when ``busy`` is staged anew.
        """
        for kit in (busy, idle):
            kit.stage()
        idle.publish("idle")
        writer = Writer(busy.publish("busy") / "log", patience=_MORE_SECONDS + self.stats_seconds)
        writer.start()
        writer.wait_for_more()
        with self._hung():
            time.sleep(_BEFORE_SILENT_SECONDS)
            before = writer.safe
            until = time.monotonic() + self.seconds
            self._look(busy, idle)
            while time.monotonic() < until:
                self._look(busy, idle)
            # The last one may have been on its way.
            assert writer.safe <= before + 1
        writer.wait_for_more()
        assert not self._stats(busy, "busy").volume_condition.abnormal
        writer.end()
        busy.unpublish("busy")
        busy.unstage()
        busy.stage()
        writer.check(busy.publish("busy") / "log")

    @contextmanager
    def _hung(self) -> Iterator[None]:
        self.ceph.stop_osd()
        try:
            yield
        finally:
            self.ceph.resume_osd()

    def _look(self, busy: Kit, idle: Kit) -> None:
        condition = self._stats(busy, "busy").volume_condition
        assert condition.abnormal
        assert "backend" in condition.message
        # What is not used may have something to write all the same, of its filesystem: only the answer counts.
        self._stats(idle, "idle")
        begun = time.monotonic()
        assert self.host.rig.served.identity.Probe(csi_pb2.ProbeRequest(), timeout=20).ready.value
        assert time.monotonic() - begun < self.probe_seconds
        # Bind mounts of a volume whose device is silent, too.
        for kit in (idle, busy):
            kit.publish("another")
            kit.unpublish("another")

    def _stats(self, kit: Kit, name: str) -> csi_pb2.NodeGetVolumeStatsResponse:
        begun = time.monotonic()
        answer = kit.stats(name)
        assert time.monotonic() - begun < self.stats_seconds
        return answer
