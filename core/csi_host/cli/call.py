"""``csi-host call``: every RPC of the spec, by hand."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click
import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from csi_host.cli.message_text import TextError, json_values, message_from, read_map, schema, secret_field
from csi_host.cli.rpcs import Rpc, all_rpcs, find_rpc
from csi_host.durations import parse_duration
from csi_host.process import redact
from csi_host.server.endpoint import Endpoint
from csi_host.services.secret_fields import secret_values
from csi_host.settings import ENDPOINT

_HELP = """Call METHOD (CreateVolume, or Controller/CreateVolume) of a CSI server, and print its answer as JSON.

REQUEST is JSON or YAML with the proto's field names; without it every field is unset. The answers of a streaming
method are printed one a line.

\b
    csi-host call --endpoint unix:///csi.sock GetPluginInfo
    csi-host call CreateVolume --schema
    csi-host call CreateVolume --secrets secret.yaml '
      name: pvc-1
      capacity_range: {required_bytes: 1073741824}
      volume_capabilities: [{mount: {}, access_mode: {mode: SINGLE_NODE_WRITER}}]'
    csi-host call DeleteVolume '{"volume_id": "v1"}' --timeout 1m30s
    generate | csi-host call NodeStageVolume -f -

The exit code is 0 when the call succeeds, 1 when it fails (its code and message are on stderr), 2 when the command
line or the request cannot be understood. Secrets given with --secrets are not on the command line, where every user
of the machine can read them, and are cut out of what the server says.
"""

# A list of many volumes is longer than gRPC's usual 4 MiB; and a proxy has no part in a local protocol.
_CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0))


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a click callback: the text's meaning; the ValueError with which ``parse`` refuses it is a usage error."""

    def meaning(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return meaning


@click.command("call", help=_HELP)
@click.argument("method", callback=_parsed(find_rpc), required=False)
@click.argument("request_text", metavar="[REQUEST]", required=False)
@click.option("-f", "--file", type=click.File(encoding="utf-8"), help="Read the request from a file, - for stdin.")
@click.option(
    "--endpoint",
    metavar="ENDPOINT",
    callback=_parsed(Endpoint.parse),
    envvar=ENDPOINT.variables,
    show_envvar=True,
    default=str(ENDPOINT.default),
    show_default=True,
    help="Where the server listens: unix:///path or tcp://host:port.",
)
@click.option(
    "--secrets",
    type=click.File(encoding="utf-8"),
    help="Read a JSON or YAML map from a file, - for stdin, into the request's secrets.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    callback=_parsed(parse_duration),
    default="1m",
    show_default=True,
    help="How long the call may take, such as 10s or 1m30s; 0 for as long as it likes.",
)
@click.option("--list", "is_list", is_flag=True, help="Print the RPCs there are, and call none.")
@click.option("--schema", "is_schema", is_flag=True, help="Print the fields of METHOD's messages, and do not call it.")
def call(
    *,
    method: Rpc | None,
    request_text: str | None,
    file: TextIO | None,
    endpoint: Endpoint,
    secrets: TextIO | None,
    timeout: float,
    is_list: bool,
    is_schema: bool,
) -> None:
    """Print an answer, or what there is to call; --help is made of _HELP."""
    if is_list:
        click.echo("\n".join(map(str, all_rpcs())))
        return
    if method is None:
        raise click.UsageError("Missing argument 'METHOD'; csi-host call --list shows them.")
    if is_schema:
        click.echo(_schemas(method))
        return
    with _usage_errors():
        request = _request(method, _given_text(request_text, file), secrets)
    _call(method, request, endpoint, timeout)


def _schemas(rpc: Rpc) -> str:
    answer = "answers, a stream of" if rpc.is_streaming else "answer"
    return f"request: {schema(rpc.request)}\n\n{answer}: {schema(rpc.answer)}"


def _given_text(argument: str | None, file: TextIO | None) -> str:
    if argument is not None and file is not None:
        raise click.UsageError("Give the request as an argument or with --file, not both.")
    if argument == "-":
        file = sys.stdin
    return file.read() if file is not None else argument or ""


def _request(rpc: Rpc, text: str, secrets: TextIO | None) -> Message:
    values = read_map(text, "request")
    if secrets is not None:
        field = secret_field(rpc.request)
        if field is None:
            raise click.UsageError(f"--secrets: {rpc.name} takes none.")
        if field.name in values:
            raise click.UsageError(f"--secrets: the request has {field.name} already.")
        values[field.name] = read_map(secrets.read(), "secrets")
    return message_from(rpc.request, values)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except TextError as error:
        raise click.UsageError(str(error)) from error
    except UnicodeDecodeError as error:
        raise click.UsageError("The request and the secrets have to be UTF-8 text.") from error


def _call(rpc: Rpc, request: Message, endpoint: Endpoint, timeout: float) -> None:
    try:
        with grpc.insecure_channel(endpoint.grpc_target, options=_CHANNEL_OPTIONS) as channel:
            for answer in _answers(channel, rpc, request, timeout or None):
                click.echo(json.dumps(json_values(answer), ensure_ascii=False, indent=None if rpc.is_streaming else 2))
    except grpc.RpcError as error:
        # A server that is not ours may well repeat a key in its message.
        details = redact(error.details() or "", secret_values(request))
        click.echo(f"{rpc.name} failed: {error.code().name}: {details}", err=True)
        sys.exit(1)
    except TextError as error:
        raise click.ClickException(f"{rpc.name} succeeded, but its answer cannot be shown: {error}") from error


def _answers(channel: grpc.Channel, rpc: Rpc, request: Message, timeout: float | None) -> Iterable[Message]:
    answer_type = GetMessageClass(rpc.answer)
    if rpc.is_streaming:
        stream = channel.unary_stream(
            rpc.path, request_serializer=_serialized, response_deserializer=answer_type.FromString
        )
        return stream(request, timeout=timeout)
    unary = channel.unary_unary(rpc.path, request_serializer=_serialized, response_deserializer=answer_type.FromString)
    return [unary(request, timeout=timeout)]


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
