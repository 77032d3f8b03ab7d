"""What attaching an image takes, put together of the configuration, a call's secrets and the volume's context."""

from pathlib import Path

from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec
from csi_host_rbd.attach.nbd_logs import log_file
from csi_host_rbd.clusters import ClusterConfig
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.map_wishes import MapWishes


def attach_request(
    spec: ImageSpec, mounter: str, config: ClusterConfig, credentials: Credentials, wishes: MapWishes
) -> AttachRequest:
    """Return what attaching an image through ``mounter`` takes, for writing."""
    namespace = config.net_namespace_file
    return AttachRequest(
        spec=spec,
        mon_host=config.mon_host,
        user=credentials.user_id,
        key=credentials.key,
        map_options=wishes.map_options.get(mounter, ""),
        network_namespace=Path(namespace) if namespace else None,
        log_file=log_file(wishes.log_directory, spec.volume_id) if has_log(mounter, wishes) else None,
    )


def has_log(mounter: str, wishes: MapWishes) -> bool:
    """Whether the daemon of an image that is attached through ``mounter`` writes a log."""
    return mounter == "rbd-nbd" and bool(wishes.log_directory)
