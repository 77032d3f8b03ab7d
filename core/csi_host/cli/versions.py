"""``csi-host --version``: this program and everything it stands on."""

import platform
from importlib.metadata import version

from csi_host import __version__
from csi_host.plugins import Plugins

_PACKAGES = ("grpcio", "protobuf", "pluggy", "click")


def version_report(plugins: Plugins) -> str:
    """Return the report, one line each; the plugins load their backends' libraries for it."""
    found = {
        "csi-host": __version__,
        "Python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "kernel": platform.release(),
        **plugins.versions(),
    }
    return "\n".join(f"{name} {text}" for name, text in found.items())
