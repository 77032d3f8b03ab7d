"""Whether the storage daemon has its driver for rbd, which is a module of its own, and in Debian a package of its own.

It is asked itself, as only it knows where its modules are, with a ceph.conf that is not there: it ends before it looks
for a cluster. QMP says what a driver's arguments are also where the driver is missing, and its errors have no codes, so
this is told by words; they are in no other language.
"""

from csi_host.errors import FailedPrecondition
from csi_host.process import ProcessError, Runner

PROGRAM = "qemu-storage-daemon"
_SECONDS = 20.0
_PROBE = "driver=rbd,node-name=probe,pool=none,image=none,conf=/nonexistent/ceph.conf"
_MISSING = "Unknown driver 'rbd'"


class DriverMissing(FailedPrecondition):
    """The storage daemon cannot open RBD images; the message names what is to be installed."""


class RbdDriver:
    """The storage daemon's driver for rbd, looked for until it is there."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._is_there = False

    def require(self) -> None:
        """Raise DriverMissing when the daemon says that it has none; whatever else it says is found out by its use."""
        if self._is_there:
            return
        try:
            self._run([PROGRAM, "--blockdev", _PROBE], timeout=_SECONDS, environment={"CEPH_ARGS": "", "CEPH_CONF": ""})
        except ProcessError as error:
            if _MISSING in error.stderr:
                raise DriverMissing(
                    f"{PROGRAM} has no driver for rbd on this node: install the Debian package qemu-block-extra"
                ) from error
            self._is_there = not error.timed_out
