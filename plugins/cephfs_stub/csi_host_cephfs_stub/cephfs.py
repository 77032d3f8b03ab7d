"""The only code of this driver that touches libcephfs."""


def library_version() -> str:
    """Return the version of libcephfs, or a text saying that it is not there."""
    try:
        import cephfs  # noqa: PLC0415  the binding is the distribution's package, and the driver works without it
    except ImportError as error:
        return f"not installed ({error})"
    return ".".join(str(part) for part in cephfs.LibCephFS().version())
