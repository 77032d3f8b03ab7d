"""How a command ends that cannot do its work: one line on stderr and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from csi_host.config import ConfigError
from csi_host.errors import CsiError
from csi_host.plugins import PluginError, UnknownDriver
from csi_host.server.endpoint import EndpointError


class StartFailure(click.ClickException):
    """The command line is right, the work cannot begin; exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write one line."""
        click.echo(f"csi-host: {' '.join(self.message.split())}", file=file, err=file is None)


@contextmanager
def told() -> Iterator[None]:
    """Turn what was found wrong into a usage error (exit code 2) or a StartFailure (exit code 1)."""
    try:
        yield
    except ConfigError as error:
        if error.is_usage:
            raise click.UsageError(str(error)) from error
        raise StartFailure(str(error)) from error
    except UnknownDriver as error:
        raise click.UsageError(str(error)) from error
    except (PluginError, CsiError, EndpointError) as error:
        raise StartFailure(str(error)) from error
