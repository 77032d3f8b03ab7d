"""How attached images were attached, key included, kept where a restart of this process finds it and no disk does.

A daemon that serves a device and dies can be replaced only by somebody who has the key. kubelet hands it over once, at
NodeStageVolume, and stages a running pod's volume never again. So it is kept until the image is detached: in root's
user keyring (keyrings(7)), which lives as long as the machine runs, and in this process' memory where the kernel or a
sandbox refuses keyrings; then a restart forgets it, which is logged once. What root can read there it can also read
from the daemon's memory.

What a failure leaves: the request of an image that is detached already (this process died in between) stays until the
machine is restarted or the image is detached again. One that cannot be read counts as none.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_MEMBERS = ("mon_host", "user", "key", "read_only", "map_options")
_PATHS = ("network_namespace", "log_file")


class SecretStore(Protocol):
    """Keeps bytes by name outside of this process; every method raises OSError."""

    def add(self, name: str, payload: bytes) -> None:
        """Put ``payload`` there, in place of what has the name."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return what has the name, None when nothing has."""
        ...

    def remove(self, name: str) -> None:
        """Take away what has the name; fine when nothing has."""
        ...


class KeptRequests:
    """The requests of attached images, by volume; ``store`` is the kernel's keyring, None for memory alone.

    By image where the volume is not known. A volume's request is that of its image only: another of its id is none.
    """

    def __init__(self, store: SecretStore | None = None) -> None:
        self._store = store
        self._memory: dict[str, AttachRequest] = {}
        self._lock = Lock()
        self._has_complained = False

    def keep(self, request: AttachRequest) -> None:
        """Remember how an image was attached; never fails."""
        name = _name(request.spec)
        with self._lock:
            self._memory[name] = request
        self._try(lambda store: store.add(name, _payload(request)))

    def find(self, spec: ImageSpec) -> AttachRequest | None:
        """Return how the image was attached, None when nothing is known; never fails."""
        known = self._found(_name(spec))
        return replace(known, spec=spec) if known and _is_same(known.spec, spec) else None

    def find_volume(self, volume_id: str) -> AttachRequest | None:
        """Return how a volume was attached of which nothing but its id is known, None when nothing is; never fails."""
        return self._found(_name_of_volume(volume_id)) if volume_id else None

    def forget(self, spec: ImageSpec) -> None:
        """Drop what is known of an image; fine when nothing is."""
        name = _name(spec)
        with self._lock:
            self._memory.pop(name, None)
        self._try(lambda store: store.remove(name))

    def _found(self, name: str) -> AttachRequest | None:
        with self._lock:
            known = self._memory.get(name)
        if known is not None:
            return known
        payload = self._try(lambda store: store.read(name))
        return _request(payload) if payload else None

    def _try(self, act: Callable[[SecretStore], _T]) -> _T | None:
        if self._store is None:
            return None
        try:
            return act(self._store)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                log.warning(
                    "the kernel keeps no keys for this process (%s): after a restart of csi-host a device whose "
                    "daemon has died is healed only when its volume is staged again",
                    error.strerror,
                )
            return None


def _name(spec: ImageSpec) -> str:
    if spec.volume_id:
        return _name_of_volume(spec.volume_id)
    return _hashed([spec.cluster_id, spec.pool, spec.namespace, spec.image])


def _name_of_volume(volume_id: str) -> str:
    return _hashed([volume_id])


def _hashed(identity: list[str]) -> str:
    return f"csi-host:{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}"


def _is_same(kept: ImageSpec, asked: ImageSpec) -> bool:
    # A stash of ceph-csi does not say which cluster it is.
    is_same_cluster = kept.cluster_id == asked.cluster_id or not (kept.cluster_id and asked.cluster_id)
    return is_same_cluster and str(kept) == str(asked)


def _payload(request: AttachRequest) -> bytes:
    members = {"spec": asdict(request.spec), **{name: getattr(request, name) for name in _MEMBERS}}
    paths = {name: str(getattr(request, name) or "") for name in _PATHS}
    return json.dumps({**members, **paths}).encode()


def _request(payload: bytes) -> AttachRequest | None:
    try:
        members = json.loads(payload)
        known = {name: members[name] for name in _MEMBERS}
        # What an older csi-host kept says nothing of a log.
        paths = {name: Path(path) for name in _PATHS if (path := members.get(name))}
        return AttachRequest(spec=ImageSpec(**members["spec"]), **known | paths)
    except (ValueError, KeyError, TypeError):
        return None
