"""``csi-host probe``: ask the server whether it is ready, for a pod's livenessProbe."""

from collections.abc import Mapping

import click
import grpc

from csi_host.cli.failures import StartFailure, told
from csi_host.cli.flags import SettingOption, SettingsCommand, given_flags
from csi_host.config import Sources
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.server.endpoint import Endpoint
from csi_host.settings import ENDPOINT, PROBE_SETTINGS, TIMEOUT

_HELP = """Call Probe; the exit code is 0 when the server is ready, else 1.

--timeout bounds the whole of it, connecting included.
"""


def probe_command(environment: Mapping[str, str]) -> click.Command:
    """Return the command; ``environment`` is where settings are looked for after the flags."""

    @click.pass_context
    def probe(ctx: click.Context, /, **_settings: str | None) -> None:
        with told():
            settled = Sources(given_flags(ctx), environment).settle(PROBE_SETTINGS)
        endpoint, timeout_seconds = settled[ENDPOINT.name].value, settled[TIMEOUT.name].value
        if not _is_ready(endpoint, timeout_seconds):
            raise StartFailure(f"{endpoint}: the server answers that it is not ready")
        click.echo("ready")

    return SettingsCommand(
        "probe",
        callback=probe,
        params=[SettingOption(setting) for setting in PROBE_SETTINGS],
        help=_HELP,
        short_help="Ask the server whether it is ready.",
    )


def _is_ready(endpoint: Endpoint, timeout_seconds: float) -> bool:
    with grpc.insecure_channel(endpoint.grpc_target) as channel:
        stub = csi_pb2_grpc.IdentityStub(channel)
        try:
            answer = stub.Probe(csi_pb2.ProbeRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise StartFailure(f"{endpoint}: {error.code().name}: {error.details()}") from error
    # CSI spec, ProbeResponse.ready: not set means ready.
    return not answer.HasField("ready") or answer.ready.value
