"""The Ceph bindings: the only place of the project that imports them.

They are compiled for the distribution's own interpreter and are not on PyPI.
"""

from typing import Any

_HELP = (
    "the Ceph bindings are missing: install the Debian packages python3-rados and python3-rbd, and run under the "
    "distribution's own python3 (a virtual environment needs --system-site-packages)"
)

try:
    import rados as _rados
    import rbd as _rbd
except ImportError as error:
    raise ImportError(f"{_HELP}: {error}") from error

# A directory of that name on sys.path is imported as an empty namespace package, without an error.
if not hasattr(_rados, "Rados") or not hasattr(_rbd, "RBD"):
    raise ImportError(f"{_HELP}: a directory named rados or rbd on sys.path hides them")

# The modules have no types.
rados: Any = _rados
rbd: Any = _rbd
