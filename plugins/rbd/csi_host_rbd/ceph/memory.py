"""Memory that librbd has given back and the C library still holds.

An open image has a copy of all of Ceph's configuration, half a megabyte in small pieces, so that many calls at once
leave some ten megabytes in as many pieces behind, which the C library keeps for later.
"""

import ctypes


def release_free_memory() -> None:
    """Give what is free back to the system; does nothing with a C library that is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
