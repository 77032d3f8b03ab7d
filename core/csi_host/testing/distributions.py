"""Plugins' distributions as an installer leaves them on disk, for tests."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

from csi_host.hookspecs import ENTRY_POINT_GROUP


def write_distribution(directory: Path, name: str, plugins: Mapping[str, str], *, version: str = "1.0") -> None:
    """Install a distribution into ``directory``: ``plugins`` is the source of a module by its entry point's name.

    With ``directory`` on the module path the host finds the plugins.
    """
    information = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{ENTRY_POINT_GROUP}]"]
    for entry_point, source in plugins.items():
        # Named after its place: modules of several tests in one process never meet.
        module = f"plugin_{abs(hash((directory, name, entry_point)))}"
        (directory / f"{module}.py").write_text(source)
        lines.append(f"{entry_point} = {module}")
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")


def entry_points_in(directory: Path) -> list[EntryPoint]:
    """Return the plugins installed in ``directory``; loading them needs it on the module path."""
    return [
        entry_point
        for distribution in distributions(path=[str(directory)])
        for entry_point in distribution.entry_points
        if entry_point.group == ENTRY_POINT_GROUP
    ]
