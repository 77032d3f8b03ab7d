"""Where kubelet itself bind mounts block volumes, which a driver meets among its own mounts."""

from pathlib import Path

from csi_host.node.mounts import Mount, StrPath, resolve_parent

_BLOCK_VOLUMES = ("plugins", "kubernetes.io", "csi", "volumeDevices")


def is_map_of(target: StrPath, mount: Mount) -> bool:
    """Whether a mount is kubelet's own of the block volume that it has published at ``target``, for any pod.

    Kubelet asks for ``…/volumeDevices/publish/<volume>/<pod uid>`` and binds that, unasked, at
    ``…/volumeDevices/<volume>/dev/<pod uid>`` (MapBlockVolume), where it stays until the pod is gone.
    """
    volume = Path(resolve_parent(target)).parent
    directory = volume.parent.parent
    is_kubelets = volume.parent.name == "publish" and directory.parts[-len(_BLOCK_VOLUMES) :] == _BLOCK_VOLUMES
    return is_kubelets and Path(mount.mount_point).parent == directory / volume.name / "dev"
