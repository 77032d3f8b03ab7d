"""What csi-host finds through the entry point: a driver's name, its options, and how to make it."""

from pathlib import Path

from csi_host.driver import Driver, DriverOption, DriverType, HostContext
from csi_host.hookspecs import hookimpl

FILESYSTEMS = ("ext4", "ext3", "xfs")


@hookimpl
def csi_host_register_driver() -> DriverType:
    """Return the driver this plugin brings; called for every command, so it is cheap."""
    return DriverType(
        name="memory",
        summary="Volumes in this machine's memory, an example: its data is gone with the machine",
        default_driver_name="memory.csi.example.com",
        create=create,
        options=(
            DriverOption(
                name="memory-directory",
                help="Where the volumes' files are; a directory on a tmpfs, as /run is.",
                default=Path("/run/csi-host-memory"),
                parse=parse_directory,
                metavar="DIRECTORY",
            ),
            DriverOption(
                name="memory-filesystem",
                help=f"What a volume gets whose capability names no filesystem: {', '.join(FILESYSTEMS)}.",
                default="ext4",
                parse=parse_filesystem,
                metavar="TYPE",
            ),
        ),
    )


def create(context: HostContext) -> Driver:
    """Return the driver's servers; called once, for the driver that is served."""
    from csi_host_memory.controller import MemoryController  # noqa: PLC0415 - loaded only by whoever serves it
    from csi_host_memory.files import Files  # noqa: PLC0415 - as above
    from csi_host_memory.node import MemoryNode  # noqa: PLC0415 - as above

    directory: Path = context.options["memory-directory"]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    volumes = Files(directory, kind="vol", run=context.run)
    snapshots = Files(directory, kind="snap", run=context.run)
    return Driver(
        controller=MemoryController(context, volumes=volumes, snapshots=snapshots),
        node=MemoryNode(context, volumes=volumes, default_filesystem=context.options["memory-filesystem"]),
    )


def parse_directory(text: str) -> Path:
    """Return the path; raises ValueError for a relative one."""
    if not text.startswith("/"):
        raise ValueError(f"expected an absolute path, got {text!r}")
    return Path(text)


def parse_filesystem(text: str) -> str:
    """Return the filesystem's name; raises ValueError for one that is not known."""
    if text not in FILESYSTEMS:
        raise ValueError(f"expected one of {', '.join(FILESYSTEMS)}, got {text!r}")
    return text
