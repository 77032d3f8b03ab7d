"""One qemu-storage-daemon: started with nothing secret, then told over QMP which image to export as which file.

An encrypted image is opened by librbd's own LUKS (qemu's knows only the first version of it). Then the export is
smaller than the image by the header, and librbd still resizes the image, not what is exported of it: how many bytes
the header has is part of the export's id, where a later process finds it.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_host.errors import CsiError, Internal, InvalidArgument, Unavailable
from csi_host.kms import Passphrase
from csi_host.process import Runner
from csi_host.request import seconds_for
from csi_host_rbd.attach.attacher import AttachmentLost, AttachRequest
from csi_host_rbd.attach.client import inside
from csi_host_rbd.attach.processes import end_process, find_processes, wait_for_end
from csi_host_rbd.attach.qemu_home import Home
from csi_host_rbd.attach.qemu_modules import PROGRAM
from csi_host_rbd.attach.qmp import QmpClient, QmpRefused

_IMAGE_NODE = "image"
_PROBE_NODE = "probe"
_KEY = "key"
_PASSPHRASE = "passphrase"  # noqa: S105 (the name of the object in the daemon, not its value)
_EXPORT = "export"
_START_SECONDS = 20.0
# Opening waits for the monitors (bounded by the connect timeout) and then for the image's OSDs.
_OPEN_MARGIN_SECONDS = 20.0


class ImageNotOpened(Unavailable):
    """The storage daemon could not open the image; the message has the daemon's words."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of an image, of the LUKS header that is not exported of it (0 without one), and of the export."""

    image_bytes: int
    header_bytes: int
    export_bytes: int


class StorageDaemon:
    """The daemon of one image, running or not.

    ``connect_timeout`` bounds its connecting to the cluster, ``patience`` how long it may take to answer, and how long
    to end; both in seconds.
    """

    def __init__(
        self, home: Home, *, run: Runner, ceph_conf: Path | None, connect_timeout: float, patience: float
    ) -> None:
        self._home = home
        self._patience = patience
        self._run = run
        self._ceph_conf = ceph_conf
        self._connect_timeout = connect_timeout
        # A comma in an option's value is written twice.
        path = str(home.socket).replace(",", ",,")
        self._chardev = f"socket,id=qmp,path={path},server=on,wait=off"

    def is_running(self) -> bool:
        """Whether the kernel has a process of it."""
        return bool(self._pids())

    def start(self, request: AttachRequest) -> None:
        """Start the process in the request's network namespace and have it export the image.

        Raises ImageNotOpened, NetworkNamespaceMissing, or non-final errors of QMP.
        """
        enter = inside(request.network_namespace)
        self._home.note(request.spec)
        node = _rbd_node(self._home, request)
        self._home.write(self._home.conf, self._conf_text(request))
        self._home.write(self._home.node, json.dumps(node))
        self._home.write(self._home.export, "")
        self._run(
            [*enter, PROGRAM, "--daemonize", "--chardev", self._chardev, "--monitor", "chardev=qmp,mode=control"],
            timeout=seconds_for(f"starting {PROGRAM}", at_most=_START_SECONDS),
            # What an operator set for other Ceph clients would win over the conf.
            environment={"CEPH_ARGS": "", "CEPH_CONF": ""},
        )
        with self._qmp() as qmp:
            try:
                self._export_image(qmp, node, request)
            except QmpRefused as error:
                raise ImageNotOpened(f"image {request.spec} cannot be opened by {PROGRAM}: {error}") from error

    def opens_luks(self) -> bool:
        """Whether the daemon was told to open LUKS."""
        try:
            return "encrypt" in json.loads(self._home.node.read_text())
        except (OSError, ValueError):
            return False

    def follow_image_size(self, *, may_resize: bool) -> Sizes:
        """Make the export as big as the image is now.

        The daemon keeps the size that it opened the image with until it is told to resize: to the size that the image
        already has, which a second, passing open shows. Should the image be grown once more in the milliseconds
        between, that growth is undone before anything can have been written there; ask for it again.
        """
        with self._qmp() as qmp:
            header_bytes = _header_bytes(qmp)
            image_bytes = self._image_bytes(qmp)
            export_bytes = _node_bytes(qmp, _IMAGE_NODE)
            if header_bytes + export_bytes < image_bytes and may_resize:
                # The whole image's size: to librbd the export's would mean an image without its last bytes.
                qmp.execute("block_resize", {"node-name": _IMAGE_NODE, "size": image_bytes})
                export_bytes = _node_bytes(qmp, _IMAGE_NODE)
        if header_bytes + export_bytes > image_bytes:
            raise Internal(
                f"{self._home.path}: the export and its header have more bytes than the image's {image_bytes}"
            )
        return Sizes(image_bytes=image_bytes, header_bytes=header_bytes, export_bytes=export_bytes)

    def end(self) -> None:
        """End the process, whose export nobody uses any more; raises Unavailable when it cannot be ended.

        Asked to quit it closes the export and the image first. It has no write cache of its own, so a process that
        does not listen is killed without losing a write that was answered.
        """
        for pid in self._pids():
            try:
                with QmpClient(self._home.socket, timeout=self._patience) as qmp:
                    qmp.execute("quit")
                has_ended = wait_for_end(pid, PROGRAM, self._chardev, timeout=self._patience)
            except CsiError:
                has_ended = False
            if not has_ended:
                end_process(pid, PROGRAM, self._chardev, patience=self._patience)

    def _pids(self) -> list[int]:
        return find_processes(PROGRAM, self._chardev)

    @contextmanager
    def _qmp(self) -> Iterator[QmpClient]:
        with QmpClient(
            self._home.socket, timeout=seconds_for(f"asking {PROGRAM}", at_most=self._patience)
        ) as connected:
            yield connected

    def _export_image(self, qmp: QmpClient, node: Mapping[str, object], request: AttachRequest) -> None:
        # The key stays in the daemon's memory, which needs it again to look at the image's size.
        _add_secret(qmp, _KEY, request.key)
        header_bytes = 0
        if request.passphrase is None:
            self._open(qmp, node)
        else:
            header_bytes = self._open_luks(qmp, node, request.passphrase)
        qmp.execute(
            "block-export-add",
            {
                "type": "fuse",
                "id": f"{_EXPORT}-{header_bytes}",
                "node-name": _IMAGE_NODE,
                "mountpoint": str(self._home.export),
                "writable": not request.read_only,
                "allow-other": "off",
            },
        )

    def _open(self, qmp: QmpClient, node: Mapping[str, object]) -> None:
        limit = self._connect_timeout + _OPEN_MARGIN_SECONDS
        qmp.execute("blockdev-add", node, timeout=seconds_for("opening the image", at_most=limit))

    def _open_luks(self, qmp: QmpClient, node: Mapping[str, object], passphrase: Passphrase) -> int:
        """Open an encrypted image and return what its header takes of it, in bytes."""
        _add_secret(qmp, _PASSPHRASE, base64.b64encode(passphrase.reveal().encode()).decode())
        self._open(qmp, node)
        # librbd has taken its key from it: the daemon need not keep it.
        qmp.execute("object-del", {"id": _PASSPHRASE})
        header_bytes = self._image_bytes(qmp) - _node_bytes(qmp, _IMAGE_NODE)
        if header_bytes <= 0:
            raise Internal(f"{self._home.path}: {PROGRAM} says that {header_bytes} bytes of the image are its header")
        return header_bytes

    def _image_bytes(self, qmp: QmpClient) -> int:
        names = {node["node-name"] for node in _nodes(qmp)}
        if _IMAGE_NODE not in names:
            raise AttachmentLost(f"{self._home.path}: {PROGRAM} has no image open; stage the volume again")
        if _PROBE_NODE in names:
            # An earlier look was cut off before it had closed it.
            qmp.execute("blockdev-del", {"node-name": _PROBE_NODE})
        node = json.loads(self._home.node.read_text())
        node.pop("encrypt", None)
        self._open(qmp, {**node, "node-name": _PROBE_NODE, "read-only": True})
        size = _node_bytes(qmp, _PROBE_NODE)
        qmp.execute("blockdev-del", {"node-name": _PROBE_NODE})
        return size

    def _conf_text(self, request: AttachRequest) -> str:
        """Return the operator's ceph.conf and then what the request says, which wins as its section is narrower."""
        for value in (request.mon_host, request.user):
            if not value.isprintable():
                raise InvalidArgument(f"mon_host and user: expected printable text, got {value!r}")
        base = ""
        if self._ceph_conf is not None and self._ceph_conf.is_file():
            base = self._ceph_conf.read_text()
        return (
            f"{base}\n"
            f"# {request.spec} of cluster {request.spec.cluster_id}\n"
            f"[client.{request.user}]\n"
            f"mon_host = {request.mon_host}\n"
            f"client_mount_timeout = {max(1, round(self._connect_timeout))}\n"
            # A device waits for its OSDs however long they are away, as a disk does: an error breaks the filesystem.
            "rados_osd_op_timeout = 0\n"
        )


def _rbd_node(home: Home, request: AttachRequest) -> dict[str, object]:
    """Return the arguments of blockdev-add; ``cache.direct`` is librbd without a cache, flushes go through."""
    spec = request.spec
    return {
        "driver": "rbd",
        "node-name": _IMAGE_NODE,
        "pool": spec.pool,
        **({"namespace": spec.namespace} if spec.namespace else {}),
        "image": spec.image,
        "user": request.user,
        "key-secret": _KEY,
        "conf": str(home.conf),
        "read-only": request.read_only,
        "discard": "unmap",
        "cache": {"direct": True, "no-flush": False},
        **({"encrypt": {"format": "luks2", "key-secret": _PASSPHRASE}} if request.passphrase else {}),
    }


def _nodes(qmp: QmpClient) -> list[dict[str, Any]]:
    return list(qmp.execute("query-named-block-nodes", {"flat": True}))


def _node_bytes(qmp: QmpClient, name: str) -> int:
    return next(int(node["image"]["virtual-size"]) for node in _nodes(qmp) if node["node-name"] == name)


def _add_secret(qmp: QmpClient, name: str, data: str) -> None:
    qmp.execute("object-add", {"qom-type": "secret", "id": name, "data": data, "format": "base64"})


def _header_bytes(qmp: QmpClient) -> int:
    names = [str(export["id"]) for export in qmp.execute("query-block-exports")]
    return next((int(name.removeprefix(f"{_EXPORT}-")) for name in names if name.startswith(f"{_EXPORT}-")), 0)
