"""The hooks a plugin can implement, and the entry-point group it is found by."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import grpc
import pluggy

from csi_host.driver import Driver, DriverType, HostContext
from csi_host.kms import KmsType
from csi_host.node.stats import VolumeStats

ENTRY_POINT_GROUP = "csi_host"

hookspec = pluggy.HookspecMarker("csi_host")
hookimpl = pluggy.HookimplMarker("csi_host")


class HookSpecs:
    """One method per hook."""

    @hookspec
    def csi_host_register_driver(self) -> DriverType:
        """Return the driver this plugin brings."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def csi_host_volume_stats(self, volume_path: Path) -> VolumeStats | None:
        """Return the usage and condition of what is mounted at ``volume_path``, or None to let another plugin answer.

        Called on a helper thread with a time budget: a dead mount may hang it, and must not hang anything else.
        Raises NotFound when there is no volume at the path.
        """

    @hookspec
    def csi_host_interceptors(self, context: HostContext) -> Sequence[grpc.ServerInterceptor]:
        """Return gRPC server interceptors to run inside the host's own."""
        raise NotImplementedError

    @hookspec
    def csi_host_kms_providers(self) -> Sequence[KmsType]:
        """Return kinds of key management systems, for every driver that encrypts volumes."""
        raise NotImplementedError

    @hookspec
    def csi_host_commands(self) -> Sequence[click.Command]:
        """Return commands to add below ``csi-host``."""
        raise NotImplementedError

    @hookspec
    def csi_host_versions(self) -> Mapping[str, str]:
        """Return the versions of the libraries this plugin works with, by name, for ``csi-host --version``.

        The one hook besides ``create`` that may load a backend's library. A library that is not there has a text
        saying so instead of a version.
        """
        raise NotImplementedError

    @hookspec
    def csi_host_serving(self, context: HostContext, driver: Driver) -> None:
        """Called once, when the socket listens; work that goes on in the background starts here."""
