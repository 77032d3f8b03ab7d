"""The rbd-nbd mounter: a daemon with librbd serves a network block device of the kernel.

The daemon is nobody's child: it has a session of its own and outlives this process. When it dies the kernel holds the
device's I/O for ``reattach-timeout`` seconds (300); ``reattach`` starts another one, below what is mounted on it. That
takes the kernel's netlink interface, which only the machine's own network namespace has: mapped in another one, or by
a kernel before 5.14, a device has no cookie and ends with its daemon. Such a device is known by its daemon's pid alone,
as the machine counts, so without the machine's pids (``hostPID``) nothing is mapped in another network namespace.

What a failure leaves, and who mends it:

* this process dies, or rbd-nbd is killed by its timeout, within the map: a device with a daemon is found by the next
  ``attach`` or ``detach``; without one it was never connected. Its key was kept before;
* what was mapped is not found, since this process is in a network namespace of its own without the machine's pids: the
  daemon is ended, its device with it;
* the daemon is killed: ``find`` says ``is_alive=False``; ``attach`` and the healer re-attach, ``detach`` does so
  first too, where it knows the key, so that what is not yet written is written;
* the volume is wanted of another cluster, as its site was lost: DeviceInUse, until its device here is detached;
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

import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from csi_host.errors import CsiError, FailedPrecondition, Unavailable
from csi_host.process import Runner
from csi_host_common_node.programs import require
from csi_host_rbd.attach import nbd_netlink
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, DeviceInUse, ImageSpec
from csi_host_rbd.attach.block_devices import comes_true, refuse_mounted
from csi_host_rbd.attach.cleanup import undo
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.kernel_modules import KernelModule
from csi_host_rbd.attach.nbd_commands import words_of
from csi_host_rbd.attach.nbd_daemons import PROGRAM, end_daemons, mapped_for, sees_machines_pids
from csi_host_rbd.attach.nbd_devices import NbdDevice, connected_devices
from csi_host_rbd.attach.nbd_sockets import SOCKETS, AdminSockets
from csi_host_rbd.attach.nbd_unmapping import unmap


class SizeNotKnown(FailedPrecondition):
    """A device is shorter than it is wanted, and the cluster cannot be asked whether its image is as large as that."""


class PidsNotSeen(FailedPrecondition):
    """A device would be made that could be neither found nor taken away from here."""


class NbdAttacher:
    """Maps images with rbd-nbd. ``patience`` is how long a busy or slow device is waited for, in seconds.

    ``set_size`` tells the kernel the size of a device, see nbd_netlink.
    """

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
        sockets: Path = SOCKETS,
        set_size: Callable[[int, int, str], None] = nbd_netlink.set_size,
    ) -> None:
        self._run = run
        self._client = client
        self._kept = kept
        self._patience = patience
        self._pause = pause
        self._sysfs = sysfs
        self._proc = proc
        self._sockets = AdminSockets(sockets)
        self._set_size = set_size
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
        self.refuse_other_cluster(spec)
        existing = self.find(spec)
        if existing and existing.read_only == request.read_only and (alive := self.reattach(request)):
            return alive
        self.detach(spec)
        if request.network_namespace is not None and not sees_machines_pids(self._proc):
            raise PidsNotSeen(
                f"rbd.netNamespaceFilePath: {PROGRAM} in another network namespace is known by its pid alone, and "
                "csi-host does not see the machine's pids: run it with them (hostPID: true)"
            )
        earlier = mapped_for(spec, self._proc)
        try:
            # Before there is a device: then what is kept of a device's cookie is of its image, whatever happens.
            self.keep(request)
            self._start(request, "map")
            return self._made(spec)
        except Exception as error:
            undo([lambda: self._take_back(spec, earlier)], error)
            raise

    def find(self, spec: ImageSpec) -> Attachment | None:
        """Return the image's device, dead or alive, None when it has none; see Attacher.find."""
        device = self._find(spec)
        return _attachment(device) if device else None

    def attached(self) -> list[ImageSpec]:
        """Return the images of the connected devices; see Attacher.attached.

        Of a dead one of which nothing was kept the volume id alone is known.
        """
        return [self._spec_of(device) for device in self._devices()]

    def refuse_other_cluster(self, spec: ImageSpec) -> None:
        """Raise DeviceInUse when the image's device was attached to another cluster's; see Attacher.

        A device is known by its volume's id, which two sites that mirror each other have in common.
        """
        kept = self._kept.find_volume(spec.volume_id)
        if kept and kept.spec.is_of_other_cluster(spec) and (device := self._find(spec)):
            raise DeviceInUse(
                f"{device.device} is still a device here of {kept.spec} of cluster {kept.spec.cluster}, and the volume "
                f"is wanted of cluster {spec.cluster}; unstage the volume first"
            )

    def reattach(self, request: AttachRequest) -> Attachment | None:
        """Start another daemon for the image's device if it has none; None when it has no device. See Attacher."""
        self.refuse_other_cluster(request.spec)
        found = self._find(request.spec)
        if found is None:
            return None
        if found.daemon is None:
            self._start(request, "attach", "--device", found.device)
        self.keep(request)
        now = self._find(request.spec)
        return _attachment(now) if now and now.daemon else None

    def keep(self, request: AttachRequest) -> None:
        """Remember how the image was attached, for ``heal``, ``detach`` and ``grow``; see Attacher.keep."""
        self._kept.keep(request)

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
            self._unmap(device, spec, options)
        self._forget(spec)

    def detach_device(self, device: str) -> bool:
        """Unmap the image behind a device, as ``detach`` does with what is known; see Attacher.detach_device."""
        found = [each for each in self._devices() if each.device == device]
        for each in found:
            spec = self._spec_of(each)
            self._unmap(each, spec, "")
            self._forget(spec)
        return bool(found)

    def grow(self, spec: ImageSpec, *, at_least: int = 0) -> int:
        """Make the device show the image's size, and return it; see Attacher.grow."""
        device = self._find(spec)
        if device is None or device.daemon is None:
            raise AttachmentLost(f"image {spec} is not attached here by a living {PROGRAM}; stage the volume again")
        request = self._kept.find(spec)
        if request is None:
            return self._followed(spec, at_least)
        size = self._client.image_bytes(request)
        if device.size < size and device.cookie:
            try:
                self._set_size(device.index, size, device.cookie)
            except OSError as error:
                raise Unavailable(f"{device.device} cannot be made {size} bytes long: {error.strerror}") from error
        if not self._comes_true(lambda: self._shown_bytes(spec) >= size):
            raise Unavailable(f"image {spec} has {size} bytes, and its device does not show them; ask again")
        return size

    def _find(self, spec: ImageSpec) -> NbdDevice | None:
        return next((device for device in self._devices() if device.shows(spec)), None)

    def _devices(self) -> list[NbdDevice]:
        return list(connected_devices(self._sysfs, self._proc))

    def _made(self, spec: ImageSpec) -> Attachment:
        if (made := self.find(spec)) is None:
            where = "is csi-host in the machine's network and pid namespaces (hostNetwork, hostPID)?"
            raise Unavailable(f"{PROGRAM} has mapped {spec}, and the kernel shows no such device; {where}")
        return made

    def _take_back(self, spec: ImageSpec, earlier: list[int]) -> None:
        """Take away what mapping the image has made: a device, and daemons whose device is not found."""
        self.detach(spec)
        end_daemons(spec, self._proc, but=earlier, patience=self._patience)

    def _start(self, request: AttachRequest, command: str, *more: str) -> None:
        admin_socket = self._sockets.place(_name(request.spec))
        self._client.map(PROGRAM, words_of(request, command, *more, admin_socket=admin_socket), request)

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

    def _spec_of(self, device: NbdDevice) -> ImageSpec:
        """Return the image of a device, as far as what was kept of its volume or its daemon says."""
        known = self._kept.find_volume(device.cookie)
        return known.spec if known else device.spec

    def _forget(self, spec: ImageSpec) -> None:
        self._sockets.forget(_name(spec))
        self._kept.forget(spec)

    def _unmap(self, device: NbdDevice, spec: ImageSpec, options: str) -> None:
        if device.daemon is None:
            device = self._revived(device, spec)
        unmap(
            device,
            options,
            run=self._run,
            is_connected=lambda: self._is_connected(device),
            patience=self._patience,
            pause=self._pause,
        )

    def _is_connected(self, device: NbdDevice) -> bool:
        return any((each.device, each.cookie) == (device.device, device.cookie) for each in self._devices())

    def _followed(self, spec: ImageSpec, at_least: int) -> int:
        """Return the size that the device has by what its daemon told the kernel: the cluster cannot be asked."""
        if not self._comes_true(lambda: self._shown_bytes(spec) >= at_least):
            raise SizeNotKnown(
                f"the device of image {spec} has {self._shown_bytes(spec)} bytes, not {at_least}, and the key to ask "
                "how many the image has is not known any more: ControllerExpandVolume comes first; if the image is as "
                "large already, stage the volume again"
            )
        return self._shown_bytes(spec)

    def _shown_bytes(self, spec: ImageSpec) -> int:
        device = self._find(spec)
        return device.size if device else 0

    def _comes_true(self, is_so: Callable[[], bool]) -> bool:
        return comes_true(is_so, patience=self._patience, pause=self._pause)


def _name(spec: ImageSpec) -> str:
    return spec.volume_id or str(spec)


def _attachment(device: NbdDevice) -> Attachment:
    return Attachment(device=device.device, read_only=device.read_only, is_alive=device.daemon is not None)
