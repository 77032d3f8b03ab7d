"""The rbd-nbd mounter: a daemon with librbd serves a network block device of the kernel.

The daemon is nobody's child: it has a session of its own and outlives this process. When it dies the kernel holds the
device's I/O for ``reattach-timeout`` seconds (300); ``reattach`` starts another one, below what is mounted on it. That
takes the kernel's netlink interface, which only the machine's own network namespace has: mapped in another one, or by
a kernel before 5.14, a device has no cookie and ends with its daemon.

What a failure leaves, and who mends it:

* this process dies, or rbd-nbd is killed by its timeout, within the map: a device with a daemon is found by the next
  ``attach`` or ``detach``; without one it was never connected;
* the daemon is killed: ``find`` says ``is_alive=False``; ``attach`` and the healer re-attach, ``detach`` does so
  first too, where it knows the key, so that what is not yet written is written;
* the device is mounted or open: rbd-nbd and the kernel would take it away all the same and lose what is not yet
  written, so it is looked for in every mount namespace and process, and DeviceInUse says where;
* it is closed, but its last writes are in the page cache, as the daemon has it open too: they are flushed first, and
  when that fails or hangs nothing is detached;
* the daemon lives and the cluster does not answer: flushing and mapping end with their timeouts, nothing is changed;
* the daemon is killed when nobody but it has the device open any more and the last writes are still in the page cache
  (for half a minute at the most): the kernel (seen with 6.1) writes them when the dying daemon closes the device, and
  waits for the daemon. No other one helps, ``detach`` ends with its timeout, and only a reboot ends the device. With
  a filesystem mounted, or a pod that has the block device open, this does not happen.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from csi_host.errors import CsiError, Unavailable
from csi_host.process import ProcessError, ProcessTimeout, Runner
from csi_host.request import seconds_for
from csi_host_common_node.programs import require
from csi_host_rbd.attach import nbd_netlink
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, DeviceInUse, ImageSpec
from csi_host_rbd.attach.block_devices import holders_of, refuse_mounted
from csi_host_rbd.attach.cleanup import undo
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.kernel_modules import KernelModule
from csi_host_rbd.attach.map_options import has_option
from csi_host_rbd.attach.nbd_devices import PROGRAM, NbdDevice, connected_devices
from csi_host_rbd.attach.nbd_logs import can_be_written

log = logging.getLogger(__name__)

_UNMAP_SECONDS = 30.0
_FLUSH_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
# No pid file under a name that all daemons of one user share, and no I/O error while OSDs are away.
_DAEMON_SETTINGS = ("--pid-file=", "--rados-osd-op-timeout=0")
_SOCKETS = Path("/run/csi-host/rbd-nbd")
_DEFAULT_OPTIONS = {
    "try-netlink": "--try-netlink",
    "reattach-timeout": "--reattach-timeout=300",
    "io-timeout": "--io-timeout=0",
}


class NbdAttacher:
    """Maps images with rbd-nbd. ``patience`` is how long a busy or slow device is waited for, in seconds."""

    name: ClassVar[str] = "rbd-nbd"

    def __init__(
        self,
        *,
        run: Runner,
        client: RbdClient,
        kept: KeptRequests,
        patience: float = 10.0,
        pause: Callable[[float], None] = time.sleep,
        sysfs: Path = Path("/sys"),
        proc: Path = Path("/proc"),
        sockets: Path = _SOCKETS,
    ) -> None:
        self._run = run
        self._client = client
        self._kept = kept
        self._patience = patience
        self._pause = pause
        self._sysfs = sysfs
        self._proc = proc
        self._sockets = sockets
        self._module = KernelModule("nbd", sysfs / "module/nbd", run=run)

    def check(self) -> None:
        """Raise FailedPrecondition naming the program or kernel module that this machine lacks."""
        require((PROGRAM, "rbd", "blockdev", "nsenter"))
        self._module.require()

    def check_features(self, features: int) -> None:
        """Accept every image: the daemon has librbd, which looked at it."""

    def attach(self, request: AttachRequest) -> Attachment:
        """Return the image's device, its daemon replaced if it has died; see Attacher.attach."""
        self.check()
        spec = request.spec
        existing = self.find(spec)
        if existing and existing.read_only == request.read_only and (alive := self.reattach(request)):
            return alive
        self.detach(spec)
        try:
            self._start(request, "map")
        except Exception as error:
            undo([lambda: self.detach(spec)], error)
            raise
        self._kept.keep(request)
        made = self.find(spec)
        if made is None:
            raise Unavailable(f"{PROGRAM} has mapped {spec}, and the kernel shows no such device; ask again")
        return made

    def find(self, spec: ImageSpec) -> Attachment | None:
        """Return the image's device, dead or alive, None when it has none; see Attacher.find."""
        device = self._find(spec)
        return _attachment(device) if device else None

    def reattach(self, request: AttachRequest) -> Attachment | None:
        """Start another daemon for the image's device if it has none; None when it has no device. See Attacher."""
        found = self._find(request.spec)
        if found is None:
            return None
        if found.daemon is None:
            self._start(request, "attach", "--device", found.device)
        self._kept.keep(request)
        now = self._find(request.spec)
        return _attachment(now) if now and now.daemon else None

    def heal(self, spec: ImageSpec) -> bool:
        """Re-attach the image's dead device as it was attached; False when that is not known.

        Raises AttachmentLost when there is no device, and what re-attaching fails with.
        """
        found = self._find(spec)
        if found is None:
            raise AttachmentLost(f"image {spec} is not mapped on this node; stage the volume again")
        if found.daemon is not None:
            return True
        request = self._kept.find(spec)
        return request is not None and self.reattach(request) is not None

    def dead_cookies(self) -> list[str]:
        """Return the cookies, volume ids, of the devices that have lost their daemons."""
        return [device.cookie for device in self._devices() if device.cookie and device.daemon is None]

    def detach(self, spec: ImageSpec, options: str = "") -> None:
        """Unmap the image, what was written being in it; see Attacher.detach."""
        device = self._find(spec)
        if device is not None:
            if device.daemon is None:
                device = self._revived(device, spec)
            self._unmap(device, options)
        self._forget_socket(spec.volume_id or str(spec))
        self._kept.forget(spec)

    def detach_device(self, device: str) -> bool:
        """Unmap the image behind a device; see Attacher.detach_device."""
        found = [each for each in self._devices() if each.device == device]
        for each in found:
            self._unmap(each, "")
            self._forget_socket(each.cookie)
        return bool(found)

    def grow(self, spec: ImageSpec, *, at_least: int = 0) -> int:
        """Make the device show the image's size, and return it; see Attacher.grow."""
        device = self._find(spec)
        if device is None or device.daemon is None:
            raise AttachmentLost(f"image {spec} is not attached here by a living {PROGRAM}; stage the volume again")
        request = self._kept.find(spec)
        size = self._image_bytes(request) if request else at_least
        if device.size < size and device.cookie:
            try:
                nbd_netlink.set_size(device.index, size, device.cookie)
            except OSError as error:
                raise Unavailable(f"{device.device} cannot be made {size} bytes long: {error.strerror}") from error
        return self._shown(spec, size)

    def _find(self, spec: ImageSpec) -> NbdDevice | None:
        return next((device for device in self._devices() if device.shows(spec)), None)

    def _devices(self) -> list[NbdDevice]:
        return list(connected_devices(self._sysfs, self._proc))

    def _start(self, request: AttachRequest, command: str, *more: str) -> None:
        options = request.map_options
        words = [f"--{word}" for word in filter(None, options.split(","))]
        words += [text for name, text in _DEFAULT_OPTIONS.items() if not has_option(options, name)]
        if request.spec.volume_id:
            words.append(f"--cookie={request.spec.volume_id}")
        if request.read_only:
            words.append("--read-only")
        log_file = request.log_file if request.log_file and can_be_written(request.log_file) else ""
        settings = [f"--log-file={log_file}", *_DAEMON_SETTINGS, f"--admin-socket={self._admin_socket(request.spec)}"]
        self._client.connected(PROGRAM, [*settings, command, str(request.spec), *more, *words], request)

    def _admin_socket(self, spec: ImageSpec) -> str:
        """Return where the image's daemon is to be asked what it waits for, "" where there is no place for it."""
        try:
            self._sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning(f"statistics cannot ask {PROGRAM} what it waits for: {self._sockets}: {error.strerror}")
            return ""
        return str(self._socket_of(spec.volume_id or str(spec)))

    def _socket_of(self, name: str) -> Path:
        # The path of a socket has 107 bytes at the most.
        return self._sockets / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.asok"

    def _forget_socket(self, name: str) -> None:
        # A daemon that was killed leaves it; it is in nobody's way.
        with suppress(OSError):
            self._socket_of(name).unlink()

    def _revived(self, device: NbdDevice, spec: ImageSpec) -> NbdDevice:
        """Return the device with a daemon that can write what the page cache holds; without where nothing is known."""
        refuse_mounted(device.device)
        try:
            self.heal(spec)
        except CsiError as error:
            raise Unavailable(
                f"{device.device} has lost its {PROGRAM}, and no other could be started to write what is not yet "
                f"written: {error}; `{PROGRAM} unmap {device.device}` by hand gives that up"
            ) from error
        return self._find(spec) or device

    def _unmap(self, device: NbdDevice, options: str) -> None:
        self._wait_until_unused(device.device)
        if device.daemon is not None:
            # A device is written to the end when the last one closes it, and the daemon has it open until its own end.
            self._flush(device.device)
        words = [f"--{word}" for word in filter(None, options.split(","))]
        try:
            self._run(
                [PROGRAM, "unmap", device.device, *words],
                timeout=seconds_for("unmapping the image", at_most=_UNMAP_SECONDS),
            )
        except ProcessError:
            if self._is_connected(device):
                raise
        self._wait(
            lambda: not self._is_connected(device), f"{device.device} is still there after {PROGRAM} unmap; ask again"
        )

    def _flush(self, device: str) -> None:
        try:
            self._run(
                ["blockdev", "--flushbufs", device],
                timeout=seconds_for("writing what is in the page cache", at_most=_FLUSH_SECONDS),
            )
        except ProcessTimeout as error:
            raise Unavailable(
                f"{device} stays, as what was last written to it is not yet in its image, and its cluster does not "
                f"take it: {error}; ask again"
            ) from error

    def _wait_until_unused(self, device: str) -> None:
        """Raise DeviceInUse naming who has the device, but for who has it only for a moment, as udev does."""
        refuse_mounted(device)
        until = time.monotonic() + self._patience
        while users := [user for user in holders_of(device) if not user.endswith(f"({PROGRAM})")]:
            if time.monotonic() >= until:
                raise DeviceInUse(f"{device} is in use: {', '.join(users)}")
            self._pause(_PAUSE_SECONDS)

    def _is_connected(self, device: NbdDevice) -> bool:
        return any((each.device, each.cookie) == (device.device, device.cookie) for each in self._devices())

    def _image_bytes(self, request: AttachRequest) -> int:
        spec = request.spec
        namespace = ["--namespace", spec.namespace] if spec.namespace else []
        arguments = ["info", "--pool", spec.pool, *namespace, "--image", spec.image, "--format", "json"]
        return int(json.loads(self._client.connected("rbd", arguments, request).stdout)["size"])

    def _shown(self, spec: ImageSpec, size: int) -> int:
        def shows_it() -> bool:
            device = self._find(spec)
            return device is not None and device.size >= size

        self._wait(shows_it, f"image {spec} has {size} bytes, and its device does not show them; ask again")
        device = self._find(spec)
        return device.size if device else size

    def _wait(self, is_so: Callable[[], bool], complaint: str) -> None:
        until = time.monotonic() + self._patience
        while not is_so():
            if time.monotonic() >= until:
                raise Unavailable(complaint)
            self._pause(_PAUSE_SECONDS)


def _attachment(device: NbdDevice) -> Attachment:
    return Attachment(device=device.device, read_only=device.read_only, is_alive=device.daemon is not None)
