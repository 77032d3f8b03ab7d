"""The Ceph user of calls that bring no secret.

Kubernetes sends none with ListVolumes, GetCapacity and ControllerGetVolume, and none with DeleteVolume once the Secret
that the volume was made with is gone. ``--controllersecret`` names what is used then:

* a directory, as a Kubernetes Secret is mounted: files ``userID`` and ``userKey``, for one cluster only in a
  directory of the cluster's id below it;
* a JSON or YAML file: an object with ``userID`` and ``userKey``, or one that has such objects by cluster id.

It is read at each use, so a changed key is known at once. Neither the key nor the text of a file is ever in a message.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.credentials import Credentials

_FIELDS = ("userID", "userKey")


class NoControllerSecret(FailedPrecondition):
    """The call brings no secret, and the driver was given none for such calls."""


class ControllerSecretInvalid(FailedPrecondition):
    """The file or directory of the secret cannot be read, or lacks what it should hold."""


class ControllerSecret:
    """The secret in ``path``, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @property
    def is_configured(self) -> bool:
        """Whether calls without a secret can be served."""
        return self._path is not None

    def credentials(self, secrets: Mapping[str, str] | None, cluster_id: str) -> Credentials:
        """Return the user of a call's own secrets, or of this one where the call brings none.

        ``secrets`` is None for a call that cannot bring any. Raises InvalidArgument for secrets that are wrong or
        missing, NoControllerSecret, ControllerSecretInvalid.
        """
        if secrets is None or (self.is_configured and not secrets):
            return self._own(cluster_id)
        return Credentials.from_secrets(secrets)

    def _own(self, cluster_id: str) -> Credentials:
        if self._path is None:
            raise NoControllerSecret(
                "this call brings no secret, and the driver was started without --controllersecret"
            )
        try:
            return Credentials.from_secrets(self._read(self._path, cluster_id))
        except InvalidArgument as reason:
            raise ControllerSecretInvalid(f"--controllersecret {self._path}: {reason}") from None
        except OSError as error:
            raise ControllerSecretInvalid(f"--controllersecret {self._path} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, yaml.YAMLError):
            raise ControllerSecretInvalid(
                f"--controllersecret {self._path}: it is neither JSON nor YAML text"
            ) from None

    def _read(self, path: Path, cluster_id: str) -> Mapping[str, str]:
        if not path.is_dir():
            return _fields(yaml.safe_load(path.read_text(encoding="utf-8")), cluster_id)
        own = path / cluster_id
        # A handle's cluster id is anybody's text: it names a directory right below this one, or nothing.
        is_below = own.parent == path and cluster_id not in {"", ".", ".."}
        directory = own if is_below and own.is_dir() else path
        files = [directory / name for name in _FIELDS]
        return {file.name: file.read_text(encoding="utf-8").strip() for file in files if file.is_file()}


def _fields(loaded: Any, cluster_id: str) -> Mapping[str, str]:
    if isinstance(loaded, dict) and isinstance(loaded.get(cluster_id), dict):
        loaded = loaded[cluster_id]
    if not isinstance(loaded, dict):
        return {}
    return {name: str(loaded[name]) for name in _FIELDS if loaded.get(name)}
