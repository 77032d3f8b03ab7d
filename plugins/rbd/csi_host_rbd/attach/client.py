"""The command lines of ``rbd`` and ``rbd-nbd``: as which user, to which cluster, through which network."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import BoundedSemaphore, Lock

from csi_host.errors import Aborted, FailedPrecondition, InvalidArgument
from csi_host.process import SECRET_FILE, ProcessResult, Runner
from csi_host.request import seconds_for
from csi_host_rbd.attach.attacher import AttachRequest

# So many at once of a cluster: more make none of them faster, as each connects to it with dozens of threads.
MAPS_AT_ONCE = 8
_WAIT_SECONDS = 60.0
# Beside what connecting may take: a program's own start and end, and the image's.
_MARGIN_SECONDS = 60.0


class NetworkNamespaceMissing(FailedPrecondition):
    """The file of the network namespace that the configuration names is not there."""


class MapSlots:
    """How many images of one cluster are mapped at once on this node, whichever mounters they have.

    Each cluster has its own, as those of one that does not answer are held for as long as connecting may take. It is
    known by its ``mon_host``: a volume that ceph-csi staged does not say its cluster's id.
    """

    def __init__(self, count: int = MAPS_AT_ONCE) -> None:
        self._count = count
        self._lock = Lock()
        self._free: dict[str, BoundedSemaphore] = {}

    @contextmanager
    def taken(self, mon_host: str) -> Iterator[None]:
        """Hold one, waited for as long as the caller can; raises Aborted when none becomes free."""
        with self._lock:
            free = self._free.setdefault(mon_host, BoundedSemaphore(self._count))
        if not free.acquire(timeout=seconds_for("mapping the image", at_most=_WAIT_SECONDS)):
            raise Aborted(f"{self._count} images of the cluster at {mon_host} are being mapped here already; ask again")
        try:
            yield
        finally:
            free.release()


class RbdClient:
    """Starts the command line tools that map images; no key is ever on a command line or on disk.

    ``ceph_conf`` is an operator's ceph.conf whose settings they get, where it exists; never the host's own.
    ``connect_timeout`` bounds connecting to the cluster, in seconds.
    """

    def __init__(
        self,
        *,
        run: Runner,
        ceph_conf: Path | None = None,
        connect_timeout: float = 15.0,
        slots: MapSlots | None = None,
    ) -> None:
        self._run = run
        self._ceph_conf = ceph_conf
        self._connect_timeout = connect_timeout
        self._slots = slots or MapSlots()

    def map(self, program: str, arguments: list[str], request: AttachRequest) -> ProcessResult:
        """Run a program that maps an image of the request's cluster, one of a few at once.

        Raises ProcessError, InvalidArgument, NetworkNamespaceMissing, and Aborted when others take too long.
        """
        with self._slots.taken(request.mon_host):
            return self._ask(program, arguments, request)

    def image_bytes(self, request: AttachRequest) -> int:
        """Return the size of the request's image, without waiting for others; raises as ``map``, not Aborted."""
        spec = request.spec
        namespace = ["--namespace", spec.namespace] if spec.namespace else []
        arguments = ["info", "--pool", spec.pool, *namespace, "--image", spec.image, "--format", "json"]
        return int(json.loads(self._ask("rbd", arguments, request).stdout)["size"])

    def _ask(self, program: str, arguments: list[str], request: AttachRequest) -> ProcessResult:
        for value in (request.mon_host, request.user):
            if not value.isprintable():
                raise InvalidArgument(f"mon_host and user: expected printable text, got {value!r}")
        connection = self._connection(request.mon_host, request.user)
        argv = [*inside(request.network_namespace), program, *connection, *arguments]
        limit = 2 * self._connect_timeout + _MARGIN_SECONDS
        return self._run(argv, timeout=seconds_for(f"running {program}", at_most=limit), secret_file=request.key)

    def _connection(self, mon_host: str, user: str) -> list[str]:
        conf = self._ceph_conf if self._ceph_conf is not None and self._ceph_conf.is_file() else Path(os.devnull)
        return [
            "--conf",
            str(conf),
            "--id",
            user,
            "-m",
            mon_host,
            "--keyfile",
            SECRET_FILE,
            f"--client-mount-timeout={max(1, round(self._connect_timeout))}",
        ]


def inside(network_namespace: Path | None) -> list[str]:
    """Return the beginning of a command line that runs a program there; empty for this process' own namespace.

    The program takes the place of nsenter, its process id and all. Raises NetworkNamespaceMissing.
    """
    if network_namespace is None:
        return []
    if not network_namespace.exists():
        raise NetworkNamespaceMissing(
            f"rbd.netNamespaceFilePath: {network_namespace} is not there; the cluster's network namespace has to be "
            "on this node before volumes are attached"
        )
    return ["nsenter", f"--net={network_namespace}", "--"]
