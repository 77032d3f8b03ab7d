"""A volume's whole life, step by step, each seen to do what it says."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from .client import Client, CommandFailed, shown
from .machine import wait_until
from .servers import CLUSTER_ID, POOL, Cluster
from .show import Screen
from .workplace import Workplace

Fields = Mapping[str, Any]

_MIB = 1 << 20
_GIB = 1 << 30
_FILE_BYTES = 32 * _MIB
# A file system keeps some of its device for itself; ext4 the most, for its tables of inodes.
_LEAST_SHARE = 0.9
_TRASH_SECONDS = 60.0


class WalkFailed(Exception):
    """A step did not do what it should; the message says what was seen instead."""


def parameters() -> dict[str, str]:
    """Return the parameters of a StorageClass for the one-node Ceph."""
    return {"clusterID": CLUSTER_ID, "pool": POOL, "mounter": "qemu", "imageFeatures": "layering"}


def capability(filesystem: str) -> dict[str, Any]:
    """Return the capability of a filesystem volume with one writer."""
    return {"mount": {"fs_type": filesystem}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}


def create_request(name: str, filesystem: str) -> dict[str, Any]:
    """Return the request for a volume of 1 GiB."""
    return {
        "name": name,
        "capacity_range": {"required_bytes": _GIB},
        "volume_capabilities": [capability(filesystem)],
        "parameters": parameters(),
    }


class VolumeLife:
    """Leads one volume from creation to deletion; stops at the first step that fails."""

    def __init__(self, *, client: Client, cluster: Cluster, place: Workplace, screen: Screen, filesystem: str) -> None:
        self._client = client
        self._cluster = cluster
        self._screen = screen
        self._filesystem = filesystem
        self._capability = capability(filesystem)
        self._staging = place.staging / "walk"
        self._target = place.pods / "walk" / "mount"
        self._file = self._target / "hello.bin"

    def lead(self) -> None:
        """Walk all of it; raises WalkFailed, or CommandFailed with what the server said."""
        self._ask_who_is_there()
        volume = self._create()
        self._mount(volume)
        checksum = self._write()
        self._grow(volume["volume_id"], checksum)
        self._delete(volume["volume_id"])
        self._see_that_nothing_is_left()

    def _ask_who_is_there(self) -> None:
        self._call("GetPluginInfo", {}, lambda info: f"{info['name']} {info['vendor_version']}")
        self._call("GetPluginCapabilities", {}, _plugin_capabilities)
        self._call("Probe", {}, lambda answer: "ready" if answer.get("ready", True) else "not ready")
        self._call("NodeGetInfo", {}, lambda node: f"this machine is the node {node['node_id']!r}")

    def _create(self) -> Fields:
        request = create_request("walk", self._filesystem)
        volume: Fields = self._call(
            "CreateVolume",
            request,
            lambda answer: f"{_size(_volume(answer)['capacity_bytes'])}, image {_image(_volume(answer))}",
        )["volume"]
        self._call(
            "ValidateVolumeCapabilities",
            {
                "volume_id": volume["volume_id"],
                "volume_context": volume["volume_context"],
                "volume_capabilities": [self._capability],
            },
            self._confirmed,
        )
        return volume

    def _confirmed(self, answer: Fields) -> str:
        if not (answer.get("confirmed") or {}).get("volume_capabilities"):
            raise WalkFailed(f"not confirmed: {answer.get('message', '')}")
        return f"{self._filesystem} with one writer is fine"

    def _mount(self, volume: Fields) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        whereto = {
            "volume_id": volume["volume_id"],
            "staging_target_path": str(self._staging),
            "volume_capability": self._capability,
            "volume_context": volume["volume_context"],
        }
        self._call("NodeStageVolume", whereto, lambda _: f"attached, formatted with {self._filesystem}, mounted")
        self._call("NodePublishVolume", whereto | {"target_path": str(self._target)}, self._published)

    def _published(self, _answer: Fields) -> str:
        if not os.path.ismount(self._target):
            raise WalkFailed(f"nothing is mounted at {self._target}")
        return f"at {self._target}"

    def _write(self) -> str:
        return self._look("write a file", self._write_file)[1]

    def _write_file(self) -> tuple[str, str]:
        block = os.urandom(_MIB)
        with self._file.open("wb") as file:
            for _ in range(_FILE_BYTES // _MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        checksum = _checksum(self._file)
        return f"{_size(_FILE_BYTES)}, sha256 {checksum[:12]}", checksum

    def _grow(self, volume_id: str, checksum: str) -> None:
        here = {"volume_id": volume_id, "volume_path": str(self._target)}
        self._call("NodeGetVolumeStats", here | {"staging_target_path": str(self._staging)}, _usage)
        before = _filesystem_bytes(self._target)
        wanted = {"required_bytes": 2 * _GIB}
        self._call(
            "ControllerExpandVolume",
            {"volume_id": volume_id, "capacity_range": wanted, "volume_capability": self._capability},
            lambda answer: f"the image has {_size(answer['capacity_bytes'])}",
        )
        self._call(
            "NodeExpandVolume",
            here
            | {
                "staging_target_path": str(self._staging),
                "capacity_range": wanted,
                "volume_capability": self._capability,
            },
            lambda answer: f"the volume has {_size(answer['capacity_bytes'])}, while mounted",
        )
        self._look("the filesystem has grown", lambda: self._grown(before))
        self._look("the file is as it was", lambda: self._unchanged(checksum))

    def _grown(self, before: int) -> tuple[str, str]:
        after = _filesystem_bytes(self._target)
        if after < 2 * _GIB * _LEAST_SHARE:
            raise WalkFailed(f"the filesystem had {_size(before)} and has {_size(after)}")
        return f"from {_size(before)} to {_size(after)} (statvfs)", ""

    def _unchanged(self, checksum: str) -> tuple[str, str]:
        found = _checksum(self._file)
        if found != checksum:
            raise WalkFailed(f"sha256 {found} instead of {checksum}")
        return f"sha256 {found[:12]}", ""

    def _delete(self, volume_id: str) -> None:
        self._call(
            "NodeUnpublishVolume",
            {"volume_id": volume_id, "target_path": str(self._target)},
            lambda _: _gone(self._target),
        )
        self._call(
            "NodeUnstageVolume",
            {"volume_id": volume_id, "staging_target_path": str(self._staging)},
            lambda _: _emptied(self._staging),
        )
        self._call("DeleteVolume", {"volume_id": volume_id}, lambda _: "deleted")

    def _see_that_nothing_is_left(self) -> None:
        self._look("nothing is left in Ceph", self._clean)

    def _clean(self) -> tuple[str, str]:
        # Ceph's manager removes the data in its own time, as a task.
        wait_until(lambda: not self._cluster.trash(), _TRASH_SECONDS)
        left = [
            *(f"image {name}" for name in self._cluster.images()),
            *(f"in the trash: {name}" for name in self._cluster.trash()),
            *(f"journal {entry}" for entry in self._cluster.journal()),
        ]
        if left:
            raise WalkFailed(f"left behind: {', '.join(left)}")
        return "no image, nothing in the trash, the journal is empty", ""

    def _call(self, rpc: str, request: Fields, means: Callable[[Fields], str]) -> Fields:
        """Make a call and show what became of it; ``means`` says it in words, and raises WalkFailed if it is not so."""
        command = shown(self._client.command(rpc, request))
        began = monotonic()
        try:
            answer = self._client.call(rpc, request)
            words = means(answer.fields)
        except (CommandFailed, WalkFailed):
            self._screen.step(rpc, "failed", (monotonic() - began) * 1000, is_good=False, command=command)
            raise
        self._screen.step(rpc, words, answer.milliseconds, is_good=True, command=command)
        return answer.fields

    def _look(self, name: str, see: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        """Do something that is not a call, and show what became of it; ``see`` returns the words and a result."""
        began = monotonic()
        try:
            words, result = see()
        except (CommandFailed, WalkFailed, OSError):
            self._screen.step(name, "failed", (monotonic() - began) * 1000, is_good=False)
            raise
        self._screen.step(name, words, (monotonic() - began) * 1000, is_good=True)
        return words, result


def _plugin_capabilities(answer: Fields) -> str:
    words = []
    for entry in answer["capabilities"]:
        if "service" in entry:
            words.append(str(entry["service"]["type"]).removesuffix("_SERVICE").lower())
        elif "volume_expansion" in entry:
            words.append(f"grows volumes {entry['volume_expansion']['type'].lower()}")
    return ", ".join(words) or "a node only"


def _volume(answer: Fields) -> Fields:
    volume: Fields = answer["volume"]
    return volume


def _image(volume: Fields) -> str:
    return str(volume["volume_context"].get("imageName", volume["volume_id"]))


def _usage(answer: Fields) -> str:
    used = {entry["unit"]: entry for entry in answer["usage"]}
    space, inodes = used["BYTES"], used["INODES"]
    words = f"{_size(space['used'])} of {_size(space['total'])} used, {inodes['used']} of {inodes['total']} inodes"
    condition = answer.get("volume_condition") or {}
    if condition.get("abnormal"):
        raise WalkFailed(f"the volume's condition is abnormal: {condition.get('message', '')}")
    return words


def _gone(target: Path) -> str:
    if target.exists():
        raise WalkFailed(f"{target} is still there")
    return "unmounted, the target is gone"


def _emptied(staging: Path) -> str:
    left = sorted(path.name for path in staging.iterdir())
    if left:
        raise WalkFailed(f"left in {staging}: {', '.join(left)}")
    return "unmounted, detached, the staging directory is empty"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _filesystem_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"
