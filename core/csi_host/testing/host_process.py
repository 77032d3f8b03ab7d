"""``csi-host`` as its users run it: a process of its own, for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from csi_host.proto import csi_pb2, csi_pb2_grpc

# Also where every instruction is interpreted, as in a virtual machine without KVM.
_START_SECONDS = 150.0
_STOP_SECONDS = 300.0


class HostFailedError(AssertionError):
    """csi-host did not start or did not stop as it should; the message ends with its log."""


@dataclass(frozen=True, kw_only=True)
class HostProcess:
    """A serving csi-host."""

    endpoint: str
    log_file: Path
    process: "subprocess.Popen[bytes]"

    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(encoding="utf-8")

    def stop(self) -> None:
        """Ask it to end; raises HostFailedError when it does not, or with another exit code than 0."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            exit_code = self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise HostFailedError(f"still running {_STOP_SECONDS:g} s after SIGTERM:\n{self.log()}") from None
        if exit_code != 0:
            raise HostFailedError(f"exit code {exit_code}:\n{self.log()}")


@contextmanager
def serving(
    arguments: Sequence[str], *, socket: Path, log_file: Path, environment: Mapping[str, str] | None = None
) -> Iterator[HostProcess]:
    """Run ``csi-host`` with ``arguments`` on the unix socket ``socket`` for the length of the ``with``.

    Raises HostFailedError when it does not come up, and on leaving when it does not go down cleanly.
    """
    host = start(arguments, socket=socket, log_file=log_file, environment=environment)
    try:
        yield host
    except BaseException:
        host.process.kill()
        host.process.wait()
        raise
    host.stop()


def start(
    arguments: Sequence[str], *, socket: Path, log_file: Path, environment: Mapping[str, str] | None = None
) -> HostProcess:
    """Start ``csi-host`` and wait until it serves; raises HostFailedError. Ending it is the caller's."""
    endpoint = f"unix://{socket}"
    command = [str(Path(sys.executable).with_name("csi-host")), f"--endpoint={endpoint}", *arguments]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    host = HostProcess(endpoint=endpoint, log_file=log_file, process=process)
    try:
        wait_until_serving(host)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return host


def wait_until_serving(host: HostProcess) -> None:
    """Wait until it answers; raises HostFailedError when it has ended, or does not answer for long."""
    # Not channel_ready_future, whose thread complains when the channel is closed below it.
    with grpc.insecure_channel(host.endpoint, options=(("grpc.enable_http_proxy", 0),)) as channel:
        identity = csi_pb2_grpc.IdentityStub(channel)
        for _ in range(int(_START_SECONDS)):
            try:
                identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), wait_for_ready=True, timeout=1)
            except grpc.RpcError:
                if host.process.poll() is not None:
                    break
            else:
                return
    raise HostFailedError(f"csi-host does not serve on {host.endpoint}:\n{host.log()}")
