"""Which image is behind a volume that a node is asked to stage, and how it is attached."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.attach.attacher import AttachRequest
from csi_host_rbd.backend import Cluster
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.encryption.keys import Keys
from csi_host_rbd.encryption.parameters import BLOCK, DEFAULT_KMS_ID, EncryptionParameters
from csi_host_rbd.encryption.service import Encryption, differs
from csi_host_rbd.errors import VolumeNotFound
from csi_host_rbd.map_wishes import CONTEXT, MapWishes
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.requests import attach_request
from csi_host_rbd.node.stash import Stash
from csi_host_rbd.places import Places
from csi_host_rbd.reservations import Reservation
from csi_host_rbd.truth import truth_of
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId


class EncryptionDiffers(FailedPrecondition):
    """The volume's context and the journal do not agree on how the volume is encrypted; the message names both."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Where a volume's image is; ``is_known`` is one that the journal has."""

    cluster: Cluster
    pool: Pool
    name: str
    keys: Keys | None
    is_known: bool


class NodeImages:
    """Finds the image of a volume: through the journal, or by name where an administrator made the volume.

    A volume whose site was lost is found where the cluster mapping says; it keeps the handle that the CO knows.
    """

    def __init__(self, places: Places, encryption: Encryption) -> None:
        self._places = places
        self._encryption = encryption

    @contextmanager
    def find(
        self, volume_id: str, context: Mapping[str, str] | None, credentials: Credentials, secrets: Mapping[str, str]
    ) -> Iterator[NodeImage]:
        """Yield the image, its cluster's connection being held for as long; ``secrets`` are what a KMS may need.

        ``context`` is None where the journal is all there is to go by: the image is known then, not how to attach it.
        Raises VolumeNotFound, ClusterNotServed, InvalidArgument naming what the context lacks, EncryptionDiffers,
        MappingFileInvalid, and what the cluster fails with.
        """
        is_static = context is not None and _is_true(context, "staticVolume")
        finding = (
            self._static(volume_id, context or {}, secrets)
            if is_static
            else self._journaled(volume_id, secrets, context)
        )
        with finding as found:
            context = context or {}
            yield NodeImage(
                cluster=found.cluster,
                pool=found.pool,
                name=found.name,
                credentials=credentials,
                keys=found.keys,
                is_static=not found.is_known,
                mounter=context.get("mounter", ""),
                mkfs_options=context.get("mkfsOptions", ""),
                handle=volume_id,
                wishes=MapWishes.of(context),
            )

    @contextmanager
    def _static(self, volume_id: str, context: Mapping[str, str], secrets: Mapping[str, str]) -> Iterator[_Found]:
        # The handle is the image's name, but for volumes that were migrated from Kubernetes' own driver.
        name = _required(context, "imageName") if _is_true(context, "migration") else volume_id
        cluster_id, pool_name = _required(context, "clusterID"), _required(context, "pool")
        with self._places.static(cluster_id, pool_name, secrets) as (cluster, pool):
            keys = self._encryption.keys_of_class(_encryption_of(context), secrets, owner="")
            yield _Found(cluster=cluster, pool=pool, name=name, keys=keys, is_known=False)

    @contextmanager
    def _journaled(
        self, volume_id: str, secrets: Mapping[str, str], context: Mapping[str, str] | None
    ) -> Iterator[_Found]:
        with self._places.volume(volume_id, secrets) as (place, reservation):
            if context is not None:
                _check_context(context, reservation)
            yield _Found(
                cluster=place.cluster,
                pool=reservation.pool,
                name=reservation.image_name,
                keys=self._encryption.keys_of(reservation, volume_id, secrets),
                # One that Kubernetes' own driver made has a handle that leads to it, and no entry.
                is_known=bool(reservation.uuid),
            )

    def attach_request(self, stash: Stash, context: Mapping[str, str], credentials: Credentials) -> AttachRequest:
        """Return what attaching a staged volume takes, for writing; no cluster is asked.

        Raises ClusterNotConfigured, ClusterAmbiguous, and InvalidArgument for a volume_context that cannot be the
        volume's.
        """
        config = (
            self._places.cluster_config(stash.cluster_id)
            if stash.cluster_id
            else self._places.only_cluster_config(_cluster_id(stash.volume_id, context))
        )
        return attach_request(stash.spec, stash.mounter, config, credentials, MapWishes.of(context))


def _cluster_id(volume_id: str, context: Mapping[str, str]) -> str:
    if _is_true(context, "staticVolume"):
        return _required(context, "clusterID")
    try:
        return VolumeId.parse(volume_id).cluster_id
    except InvalidVolumeId as reason:
        raise VolumeNotFound(f"volume_id: no volume of this driver has the handle {volume_id!r}: {reason}") from reason


def check_encryption(context: Mapping[str, str]) -> None:
    """Raise InvalidArgument for a volume context with an encryption that this driver does not have.

    What ceph-csi staged of such a volume (``encryptionType: file``) is mounted, but its root is not what is encrypted.
    """
    _encryption_of(context)


def _encryption_of(context: Mapping[str, str]) -> EncryptionParameters | None:
    if not _is_true(context, "encrypted"):
        return None
    encryption_type = context.get("encryptionType") or BLOCK
    if encryption_type != BLOCK:
        raise InvalidArgument(f"volume_context[encryptionType]: expected {BLOCK!r}, got {encryption_type!r}")
    return EncryptionParameters(kms_id=context.get("encryptionKMSID") or DEFAULT_KMS_ID)


def _check_context(context: Mapping[str, str], reservation: Reservation) -> None:
    # The journal decides; a context that says otherwise is another volume's, or was changed by hand.
    wanted = _encryption_of(context)
    if difference := differs(wanted, reservation):
        said = "not encrypted" if wanted is None else f"encrypted with the KMS {wanted.kms_id!r}"
        raise EncryptionDiffers(
            f"volume_context[encrypted]: by its context the volume is {said}, by the journal it is {difference}; it is "
            "left as it is"
        )


def _required(context: Mapping[str, str], name: str) -> str:
    value = context.get(name, "")
    if not value:
        raise InvalidArgument(f"volume_context[{name}]: required for a static volume")
    return value


def _is_true(context: Mapping[str, str], name: str) -> bool:
    return truth_of(context, name, where=CONTEXT)
