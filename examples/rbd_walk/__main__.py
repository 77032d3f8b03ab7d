"""``python -m rbd_walk``: set everything up, walk, serve, and leave nothing behind."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from .client import Client, CommandFailed, ServerLog, shown
from .life import VolumeLife, WalkFailed, create_request
from .servers import Cluster, Host
from .show import Screen
from .signals import Interrupted, Signals
from .workplace import Workplace

# linux/capability.h; ext4 asks for it when it grows while mounted.
_CAP_SYS_RESOURCE = 24
_TAIL_LINES = 20


@click.command()
@click.option("--once", is_flag=True, help="Stop after the walk instead of serving on; the exit code is its outcome.")
@click.option("--filesystem", type=click.Choice(["xfs", "ext4"]), help="What to format with.  [default: what can grow]")
def main(*, once: bool, filesystem: str | None) -> NoReturn:
    """Lead one volume through its whole life on a one-node Ceph, then serve until Ctrl-C."""
    screen = Screen(sys.stdout)
    with Signals(lambda: screen.line("   already cleaning up, a moment please")) as signals:
        sys.exit(Run(screen, signals, filesystem=filesystem).do(once=once))


class Run:
    """One run, from the first directory to the last one removed."""

    def __init__(self, screen: Screen, signals: Signals, *, filesystem: str | None) -> None:
        self._screen = screen
        self._signals = signals
        self._asked_filesystem = filesystem
        self._filesystem = filesystem or ("ext4" if _can_grow_mounted_ext4() else "xfs")
        self._is_serving = False

    def do(self, *, once: bool) -> int:
        """Do it all; return the exit code: 0 when the walk succeeded and nothing is left."""
        exit_code, place = 0, None
        try:
            self._clear_abandoned()
            with self._signals.held():
                place = Workplace.make()
            self._try_out(place, once=once)
        except Interrupted as interrupted:
            self._screen.line()
            exit_code = 0 if self._is_serving else interrupted.exit_code
        except (CommandFailed, WalkFailed, OSError) as error:
            self._explain(error, place)
            exit_code = 1
        self._signals.close()
        return self._clear(place, exit_code) if place else exit_code

    def _try_out(self, place: Workplace, *, once: bool) -> None:
        self._screen.title("csi-host: one volume's whole life on a real Ceph")
        self._screen.fact("everything is below", str(place.directory))
        cluster, host = Cluster(place.cluster), None
        with self._screen.waiting("a one-node Ceph", "monitor, manager, OSD in memory"):
            cluster.up()
        host = Host(place, cluster.clusters_file)
        try:
            with self._screen.waiting("csi-host --driver rbd", f"on {host.endpoint}"):
                host.start()
            self._screen.fact("filesystem", self._filesystem_and_why())
            client = Client(endpoint=host.endpoint, secrets_file=cluster.secrets_file, log=ServerLog(place.log_file))
            self._walk(place, cluster, client)
            if not once:
                self._serve(place, cluster, client, host)
        finally:
            self._signals.close()
            host.stop()

    def _walk(self, place: Workplace, cluster: Cluster, client: Client) -> None:
        self._screen.title("The walk")
        self._screen.line("To repeat a step by hand:")
        self._screen.command(f"{_export(client)}\n")
        VolumeLife(client=client, cluster=cluster, place=place, screen=self._screen, filesystem=self._filesystem).lead()
        self._screen.title("The walk succeeded.")

    def _serve(self, place: Workplace, cluster: Cluster, client: Client, host: Host) -> None:
        self._is_serving = True
        self._explain_serving(place, cluster, client)
        raise CommandFailed(f"csi-host ended by itself, with exit code {host.wait()}")

    def _explain_serving(self, place: Workplace, cluster: Cluster, client: Client) -> None:
        screen, sudo = self._screen, "sudo --preserve-env=CSI_ENDPOINT " if "SUDO_USER" in os.environ else ""
        screen.title("Serving. Ctrl-C stops and removes all of it.")
        screen.fact("staging directory", f"{place.staging} (below it, one for each volume)")
        screen.fact("log", str(place.log_file))
        screen.fact("Ceph", f"{sudo}ceph --conf {cluster.ceph_conf} status")
        screen.line("\nIn another terminal, in this directory:\n")
        screen.command(_export(client))
        screen.command(f"{sudo}{shown(client.command('GetPluginInfo', {}))}")
        screen.command(f"{sudo}{shown(client.command('CreateVolume', create_request('mine', self._filesystem)))}")
        screen.command(f"{sudo}{shown(client.command('DeleteVolume', {'volume_id': 'the volume_id of the answer'}))}")
        screen.line("\n`csi-host call --list` has every RPC, `csi-host call NodeStageVolume --schema` its fields.")

    def _filesystem_and_why(self) -> str:
        if _can_grow_mounted_ext4():
            return self._filesystem
        if self._asked_filesystem == "ext4":
            return (
                "ext4, which cannot be grown while mounted on this machine (no CAP_SYS_RESOURCE): expect that to fail"
            )
        return "xfs, as this machine cannot grow a mounted ext4 (no CAP_SYS_RESOURCE)"

    def _explain(self, error: Exception, place: Workplace | None) -> None:
        self._screen.line()
        self._screen.trouble(str(error))
        if place and place.log_file.exists():
            self._screen.line(f"\nThe end of csi-host's log ({place.log_file}):")
            for line in ServerLog(place.log_file).tail(_TAIL_LINES):
                self._screen.line(f"   {line}")

    def _clear_abandoned(self) -> None:
        for place in Workplace.abandoned():
            self._screen.fact("cleaning up after", f"an earlier run that was killed: {place.directory}")
            self._clear(place, 0)

    def _clear(self, place: Workplace, exit_code: int) -> int:
        """Let go of everything and say so; return ``exit_code``, or 1 when something resists."""
        place.detach()
        trouble: list[str] = []
        try:
            Cluster(place.cluster).down()
        except CommandFailed as error:
            trouble.append(str(error))
        trouble += place.remove()
        for text in trouble:
            self._screen.trouble(f"left behind: {text}")
        if not trouble:
            self._screen.line("Everything is stopped and removed.")
        return exit_code or bool(trouble)


def _export(client: Client) -> str:
    return f"export {' '.join(f'{name}={value}' for name, value in client.variables().items())}"


def _can_grow_mounted_ext4() -> bool:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_RESOURCE & 1)


if __name__ == "__main__":
    main()
