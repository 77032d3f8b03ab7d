"""What rbd-nbd is told when it maps an image, and when it is attached to a device that has lost its daemon."""

from csi_host_rbd.attach.attacher import AttachRequest
from csi_host_rbd.attach.map_options import has_option
from csi_host_rbd.attach.nbd_logs import can_be_written

# No pid file under a name that all daemons of one user share, and no I/O error while OSDs are away.
_DAEMON_SETTINGS = ("--pid-file=", "--rados-osd-op-timeout=0")
_DEFAULT_OPTIONS = {
    "try-netlink": "--try-netlink",
    "reattach-timeout": "--reattach-timeout=300",
    "io-timeout": "--io-timeout=0",
}


def words_of(request: AttachRequest, command: str, *more: str, admin_socket: str) -> list[str]:
    """Return the words after the program's name; ``more`` are the command's own, ``admin_socket`` "" is for none."""
    options = request.map_options
    words = [f"--{word}" for word in filter(None, options.split(","))]
    words += [text for name, text in _DEFAULT_OPTIONS.items() if not has_option(options, name)]
    if request.spec.volume_id:
        words.append(f"--cookie={request.spec.volume_id}")
    if request.read_only:
        words.append("--read-only")
    log_file = request.log_file if request.log_file and can_be_written(request.log_file) else ""
    settings = [f"--log-file={log_file}", *_DAEMON_SETTINGS, f"--admin-socket={admin_socket}"]
    return [*settings, command, str(request.spec), *more, *words]
