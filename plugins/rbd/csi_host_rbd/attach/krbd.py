"""The rbd mounter: the kernel's own client maps the image. What is mapped is what /sys/bus/rbd/devices says.

An image of the same name in another pool namespace is not it, nor is a mapped snapshot; of another cluster it is not
when the kernel says another ``cluster_fsid``. No udev is waited for (``noudev``): the kernel makes the device file
itself, and in a container or another network namespace the event never comes.

What a failure leaves, and who mends it:

* this process dies, or ``rbd`` is killed by its timeout, while the kernel maps: the device may come a moment later;
  the next ``attach`` finds it and returns it, the next ``detach`` takes it away;
* it dies after the map: the same;
* the monitors or OSDs do not answer: the timeout ends ``rbd``, a device that came nevertheless is taken away, and the
  error is not final;
* somebody (udev, a probe) has the device open for a moment: unmapping is repeated for some seconds, then DeviceInUse
  names who;
* it is mapped twice: ``find`` returns the first, ``detach`` takes both away.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from csi_host.errors import FailedPrecondition, Unavailable
from csi_host.process import Runner
from csi_host.request import seconds_for
from csi_host_common_node.programs import require
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, FeaturesNotSupported, ImageSpec
from csi_host_rbd.attach.block_devices import release
from csi_host_rbd.attach.cleanup import undo
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kernel_modules import KernelModule
from csi_host_rbd.attach.map_options import has_option
from csi_host_rbd.features import feature_names

_UNMAP_SECONDS = 30.0
_REFRESH_SECONDS = 30.0
_BUSY_EXIT_CODE = 16
_NO_SNAPSHOT = "-"


class AmbiguousDevice(FailedPrecondition):
    """Images of one name of several clusters are mapped here, and it is not known which cluster is meant."""


@dataclass(frozen=True, kw_only=True)
class _Mapped:
    """One entry of /sys/bus/rbd/devices."""

    device: str
    pool: str
    namespace: str
    image: str
    snapshot: str
    fsid: str
    size: int

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(cluster_id="", pool=self.pool, namespace=self.namespace, image=self.image, fsid=self.fsid)

    def shows(self, spec: ImageSpec) -> bool:
        names = (self.pool, self.namespace, self.image, self.snapshot)
        is_named = names == (spec.pool, spec.namespace, spec.image, _NO_SNAPSHOT)
        return is_named and (not spec.fsid or not self.fsid or self.fsid == spec.fsid)


class KrbdAttacher:
    """Maps images with the kernel's client. ``patience`` is how long a busy device is waited for, in seconds.

    ``extra_options`` gives the map options for images of a cluster that no StorageClass names: read affinity.
    """

    name: ClassVar[str] = "rbd"

    def __init__(
        self,
        *,
        run: Runner,
        client: RbdClient,
        extra_options: Callable[[str], str] = lambda _: "",
        patience: float = 10.0,
        pause: Callable[[float], None] = time.sleep,
        sysfs: Path = Path("/sys"),
    ) -> None:
        self._run = run
        self._client = client
        self._extra_options = extra_options
        self._patience = patience
        self._pause = pause
        self._bus = sysfs / "bus/rbd"
        self._block = sysfs / "block"
        self._module = KernelModule("rbd", self._bus, run=run)

    def check(self) -> None:
        """Raise FailedPrecondition naming the program or kernel module that this machine lacks."""
        require(("rbd", "nsenter", "tee"))
        self._module.require()

    def check_features(self, features: int) -> None:
        """Raise FeaturesNotSupported naming what this kernel does not know of the image; see Attacher."""
        supported = _number(_read(self._bus / "supported_features"))
        unknown = features & ~supported
        if unknown:
            raise FeaturesNotSupported(
                f"this node's kernel cannot map an image with {', '.join(feature_names(unknown))}: disable that "
                "(rbd feature disable), run a newer kernel, or set mounter: rbd-nbd or tryOtherMounters: true in the "
                "StorageClass"
            )

    def attach(self, request: AttachRequest) -> Attachment:
        """Return the image's device; see Attacher.attach."""
        self.check()
        spec = request.spec
        existing = self.find(spec)
        if existing and existing.read_only == request.read_only:
            return existing
        self.detach(spec)
        try:
            self._map(request)
        except Exception as error:
            undo([lambda: self.detach(spec)], error)
            raise
        made = self.find(spec)
        if made is None:
            raise Unavailable(f"rbd has mapped {spec}, and the kernel shows no such device; ask again")
        return made

    def find(self, spec: ImageSpec) -> Attachment | None:
        """Return the image's device, None when it has none; see Attacher.find. Raises AmbiguousDevice."""
        mapped = self._mapped(spec)
        return Attachment(device=mapped[0].device, read_only=self._is_read_only(mapped[0].device)) if mapped else None

    def attached(self) -> list[ImageSpec]:
        """Return the images that are mapped; see Attacher.attached. The kernel knows no cluster id, only its fsid."""
        return [mapped.spec for mapped in self._devices() if mapped.snapshot == _NO_SNAPSHOT]

    def refuse_other_cluster(self, spec: ImageSpec) -> None:
        """Do nothing: the kernel says of which cluster each device is."""

    def reattach(self, request: AttachRequest) -> Attachment | None:  # noqa: ARG002 - the protocol's signature
        """Return None: the kernel's client does not die, it waits for its cluster."""
        return None

    def keep(self, request: AttachRequest) -> None:
        """Do nothing: see reattach."""

    def detach(self, spec: ImageSpec, options: str = "") -> None:
        """Unmap the image, however often it is mapped; see Attacher.detach."""
        for mapped in self._mapped(spec):
            self._unmap(mapped.device, options)

    def detach_device(self, device: str) -> bool:
        """Unmap the image behind a device; see Attacher.detach_device."""
        if device not in {mapped.device for mapped in self._devices()}:
            return False
        self._unmap(device, "")
        return True

    def grow(self, spec: ImageSpec, *, at_least: int = 0) -> int:  # noqa: ARG002 - it is asked, not waited for
        """Have the kernel read the image's size again, and return it; see Attacher.grow."""
        mapped = self._mapped(spec)
        if not mapped:
            raise AttachmentLost(f"image {spec} is not mapped on this node; stage the volume again")
        number = mapped[0].device.removeprefix("/dev/rbd")
        # By a program, since the kernel asks the cluster before the write returns: it can be killed, a thread cannot.
        self._run(
            ["tee", str(self._bus / "devices" / number / "refresh")],
            timeout=seconds_for("reading the image's size", at_most=_REFRESH_SECONDS),
            stdin="1",
        )
        size = _number(_read(self._bus / "devices" / number / "size"))
        shown = 512 * _number(_read(self._block / Path(mapped[0].device).name / "size"))
        if shown < size:
            raise Unavailable(f"{mapped[0].device} shows {shown} bytes, its image has {size}; ask again")
        return size

    def _map(self, request: AttachRequest) -> None:
        spec = request.spec
        extra = "" if has_option(request.map_options, "read-from-replica") else self._extra_options(spec.cluster_id)
        options = ",".join(filter(None, ("noudev", request.map_options, extra)))
        self._client.map(
            "rbd",
            [
                *("map", "--pool", spec.pool, *(["--namespace", spec.namespace] if spec.namespace else [])),
                *("--image", spec.image, "--device-type", "krbd", "--options", options),
                *(["--read-only"] if request.read_only else []),
            ],
            request,
        )

    def _unmap(self, device: str, options: str) -> None:
        words = ",".join(filter(None, ("noudev", options)))
        release(
            device,
            lambda: self._run(
                ["rbd", "unmap", device, "--device-type", "krbd", "--options", words],
                timeout=seconds_for("unmapping the image", at_most=_UNMAP_SECONDS),
            ),
            is_there=lambda: any(mapped.device == device for mapped in self._devices()),
            busy_code=_BUSY_EXIT_CODE,
            patience=self._patience,
            pause=self._pause,
        )

    def _mapped(self, spec: ImageSpec) -> list[_Mapped]:
        mapped = [one for one in self._devices() if one.shows(spec)]
        if len({one.fsid for one in mapped}) > 1:
            places = ", ".join(f"{one.device} of cluster {one.fsid or 'unknown'}" for one in mapped)
            raise AmbiguousDevice(
                f"{spec} is mapped from several clusters, and it is not known which one is meant: {places}; "
                "unmap by hand what is not wanted"
            )
        return mapped

    def _devices(self) -> Iterator[_Mapped]:
        try:
            numbers = sorted(int(entry.name) for entry in (self._bus / "devices").iterdir() if entry.name.isdigit())
        except FileNotFoundError:
            return
        for number in numbers:
            read = {name: _read(self._bus / "devices" / str(number) / name) for name in _ATTRIBUTES}
            # Gone while we look; kernels before 4.19 have no namespaces.
            if read["name"] is None or read["pool"] is None or read["current_snap"] is None:
                continue
            yield _Mapped(
                device=f"/dev/rbd{number}",
                pool=read["pool"],
                namespace=read["pool_ns"] or "",
                image=read["name"],
                snapshot=read["current_snap"],
                fsid=read["cluster_fsid"] or "",
                size=_number(read["size"]),
            )

    def _is_read_only(self, device: str) -> bool:
        return _read(self._block / Path(device).name / "ro") == "1"


_ATTRIBUTES = ("pool", "pool_ns", "name", "current_snap", "cluster_fsid", "size")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except OSError:
        return None


def _number(text: str | None) -> int:
    return int(text or "0", 0)
