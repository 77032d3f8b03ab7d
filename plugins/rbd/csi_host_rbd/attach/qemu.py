"""The qemu mounter: a qemu-storage-daemon exports the image as a file through FUSE, a loop device sits on the file.

Needs no kernel module but fuse and loop. One daemon per image, in a session of its own: it outlives this process.
Everything about an image lives in one directory, ``<directory>/<hash of the spec>/``. The Ceph key goes to the
daemon over its socket; it is never on disk or on a command line.

What a failure leaves, and who mends it (every case by the next ``attach`` or ``detach``):

* this process dies after the daemon's start, or after the export: no loop device, so nobody uses it; torn down;
* it dies after the loop device: ``find`` finds it, ``attach`` returns it, ``detach`` takes it away;
* the daemon is killed: the kernel keeps a dead FUSE mount below a loop device that answers EIO; ``find`` says
  ``is_alive=False``, ``attach`` replaces it, ``detach`` removes it;
* the daemon hangs: QMP and the programs time out, nothing is changed, the error is not final; once no loop device is
  left its end is forced, which loses nothing, as the daemon has no write cache;
* this process dies within ``detach``: the steps go from the device down to the directory, and each looks for what is
  still there;
* its container ends, and with it the daemons and the mounts of their exports: the loop devices stay, and sysfs does not
  say any more whose they are; whoever has one mounted gives it to ``detach_device``;
* it dies within ``bare``: that daemon, its device and its directory (``<hash>-bare``) are taken away by the next
  ``bare`` or ``detach`` of the image, and stay out of ``find``'s sight until then.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from csi_host.errors import Aborted, FailedPrecondition, Unavailable
from csi_host.node.devices import size_bytes
from csi_host.node.mounts import mount_at
from csi_host.process import Runner
from csi_host.request import seconds_for
from csi_host_common_node.block import LoopDevices, is_going
from csi_host_common_node.mounter import Mounter
from csi_host_common_node.programs import require
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, ImageSpec
from csi_host_rbd.attach.block_devices import attribute, refuse_mounted
from csi_host_rbd.attach.cleanup import beyond_deadline, undo
from csi_host_rbd.attach.qemu_home import Home
from csi_host_rbd.attach.qemu_modules import PROGRAM, RbdDriver
from csi_host_rbd.attach.storage_daemon import StorageDaemon

_ASK_SECONDS = 10.0
_SOCKET_PATH_LIMIT = 107
# What the kernel calls an export whose mount went with the container that it was made in, and its daemon too.
_LOST_PLACES = frozenset({"/", "/image"})
# Short, as it is part of a socket's path; 80 bits tell the images of one node apart.
_HASH_LENGTH = 20


class QemuAttacher:
    """Attaches images through qemu-storage-daemon; ``directory`` holds what belongs to the attached ones.

    ``ceph_conf`` is an operator's ceph.conf whose settings the daemon gets too, where it exists; ``connect_timeout``
    bounds a daemon's connecting to the cluster, ``patience`` its answers and its end; both in seconds.
    """

    name: ClassVar[str] = "qemu"

    def __init__(
        self,
        *,
        run: Runner,
        directory: Path,
        ceph_conf: Path | None = None,
        connect_timeout: float = 15.0,
        patience: float = 10.0,
    ) -> None:
        self._run = run
        self._loops = LoopDevices(run)
        self._mounter = Mounter(run)
        self._driver = RbdDriver(run)
        # The kernel names a loop device's file by its real path.
        self._directory = directory.resolve()
        self._ceph_conf = ceph_conf
        self._connect_timeout = connect_timeout
        self._patience = patience

    def check(self) -> None:
        """Raise FailedPrecondition naming the program, device or driver that this machine lacks."""
        require((PROGRAM, "losetup", "nsenter", "stat", "umount"))
        for device, module in (("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")):
            if not Path(device).exists():
                raise FailedPrecondition(f"{device} is missing: load the kernel module {module} (modprobe {module})")
        self._driver.require()

    def check_features(self, features: int) -> None:
        """Accept every image: the daemon has the same librbd that looked at it."""

    def attach(self, request: AttachRequest) -> Attachment:
        """Return the image's loop device; see Attacher.attach."""
        self.check()
        home = self._home(request.spec)
        with self._owned(home):
            existing = self.find(request.spec)
            if existing and existing.is_alive and self._shows(home, existing, request):
                return existing
            return Attachment(device=self._make(home, request), read_only=request.read_only)

    @contextmanager
    def bare(self, request: AttachRequest) -> Iterator[str]:
        """Show the image as it is for the length of the ``with``; see OpensLuks.bare."""
        self.check()
        home = self._home(request.spec).bare
        with self._owned(home):
            device = self._make(home, replace(request, passphrase=None, read_only=False))
            try:
                yield device
            except Exception as error:
                undo([lambda: self._tear_down(home), home.path.rmdir], error)
                raise
            with beyond_deadline():
                self._tear_down(home)
                home.path.rmdir()

    def find(self, spec: ImageSpec) -> Attachment | None:
        """Return the image's loop device, None when it has none; see Attacher.find."""
        home = self._home(spec)
        devices = self._loops.find(home.export)
        if not devices:
            return None
        return Attachment(
            device=devices[0],
            read_only=attribute(devices[0], "ro") == "1",
            is_alive=self._daemon(home).is_running() and mount_at(home.export) is not None and not is_going(devices[0]),
        )

    def attached(self) -> list[ImageSpec]:
        """Return the images that have a directory, whatever there is of them; see Attacher.attached."""
        homes = [Home(path=path) for path in sorted(self._directory.glob("*"))]
        return [spec for home in homes if (spec := home.spec()) is not None]

    def refuse_other_cluster(self, spec: ImageSpec) -> None:
        """Do nothing: what an image has here is found by its cluster."""

    def reattach(self, request: AttachRequest) -> Attachment | None:  # noqa: ARG002 - the protocol's signature
        """Return None: the loop device keeps the file of the export that died, no other can take its place."""
        return None

    def keep(self, request: AttachRequest) -> None:
        """Do nothing: see reattach."""

    def detach(self, spec: ImageSpec, options: str = "") -> None:  # noqa: ARG002 - there are no options for this
        """Take the image's loop device, daemon and directory away; see Attacher.detach."""
        home = self._home(spec)
        self._detach(home)
        self._detach(home.bare)

    def detach_device(self, device: str) -> bool:
        """Detach the image behind a loop device; see Attacher.detach_device."""
        file = attribute(device, "loop/backing_file")
        if file in _LOST_PLACES:
            refuse_mounted(device)
            self._loops.detach(device)
            return True
        if file is None or Path(file).parent.parent != self._directory:
            return False
        home = Home(path=Path(file).parent)
        self._detach(home)
        if not home.is_bare:
            self._detach(home.bare)
        return True

    def grow(self, spec: ImageSpec, *, at_least: int = 0) -> int:  # noqa: ARG002 - it is asked, not waited for
        """Make the loop device show the image's size; see Attacher.grow."""
        home = self._home(spec)
        attachment = self.find(spec)
        if attachment is None or not attachment.is_alive:
            raise AttachmentLost(f"image {spec} is not attached here by a living {PROGRAM}; stage the volume again")
        sizes = self._daemon(home).follow_image_size(may_resize=not attachment.read_only)
        expected = sizes.image_bytes - sizes.header_bytes
        if sizes.export_bytes < expected:
            raise FailedPrecondition(f"image {spec} is attached read-only with its old size; stage the volume again")
        self._refresh_export(home)
        self._loops.grow(attachment.device)
        shown = size_bytes(attachment.device)
        if shown < expected:
            raise Unavailable(f"{attachment.device} shows {shown} bytes after growing, expected {expected}; ask again")
        return sizes.image_bytes

    def _shows(self, home: Home, existing: Attachment, request: AttachRequest) -> bool:
        is_opened = request.passphrase is not None
        return existing.read_only == request.read_only and self._daemon(home).opens_luks() == is_opened

    def _make(self, home: Home, request: AttachRequest) -> str:
        self._tear_down(home)
        try:
            self._daemon(home).start(request)
            # Other nodes write to the image too, and a page cached twice is a page wasted.
            return self._loops.attach(home.export, read_only=request.read_only, direct=True)
        except Exception as error:
            undo([lambda: self._tear_down(home), home.path.rmdir], error)
            raise

    def _home(self, spec: ImageSpec) -> Home:
        identity = json.dumps([spec.cluster_id, spec.pool, spec.namespace, spec.image])
        home = Home(path=self._directory / hashlib.sha256(identity.encode()).hexdigest()[:_HASH_LENGTH])
        excess = len(os.fsencode(home.bare.socket)) - _SOCKET_PATH_LIMIT
        if excess > 0:
            raise FailedPrecondition(
                f"{self._directory}: the qemu mounter's directory is {excess} bytes too long for unix sockets below it"
            )
        return home

    def _daemon(self, home: Home) -> StorageDaemon:
        return StorageDaemon(
            home,
            run=self._run,
            ceph_conf=self._ceph_conf,
            connect_timeout=self._connect_timeout,
            patience=self._patience,
        )

    @contextmanager
    def _owned(self, home: Home) -> Iterator[None]:
        """Hold the image's directory, made if missing, against another csi-host on this node."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.path.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(home.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise _somebody_else(home) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _somebody_else(home) from None
            if not _is_same_directory(descriptor, home.path):
                raise _somebody_else(home)
            yield
        finally:
            os.close(descriptor)

    def _detach(self, home: Home) -> None:
        if home.path.exists() or self._loops.find(home.export) or self._daemon(home).is_running():
            with self._owned(home):
                self._tear_down(home)
                home.path.rmdir()

    def _tear_down(self, home: Home) -> None:
        for device in self._loops.find(home.export):
            refuse_mounted(device)
            self._loops.detach(device)
        self._daemon(home).end()
        if mount_at(home.export) is not None:
            self._mounter.unmount(home.export)
        home.clear()

    def _refresh_export(self, home: Home) -> None:
        # The kernel caches a FUSE file's size for about a second, and the loop driver believes the cache.
        self._run(
            ["stat", "--cached=never", "--format=%s", str(home.export)],
            timeout=seconds_for("reading the exported size", at_most=_ASK_SECONDS),
        )


def _is_same_directory(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _somebody_else(home: Home) -> Aborted:
    return Aborted(f"{home.path}: another process on this node is attaching or detaching this image; ask again")
