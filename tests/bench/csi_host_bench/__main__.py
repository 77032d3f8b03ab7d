"""The measurements, as ``make bench``, ``make report-volumes`` and ``make report-memory`` run them."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from .environment import environment
from .many import many_report
from .memory import memory_report
from .place import Place, prepared
from .plot import plot
from .reports import Say, Verdict
from .tables import environment_lines, table, values, verdicts
from .turns import PLANS, Bench, Plan

_output = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Where the results and the driver's log go.",
)


@click.group()
def main() -> None:
    """Measure the rbd controller on a one-node Ceph of its own."""


@main.command()
@_output
@click.option("--turns", type=click.IntRange(min=1), help="How often each side is measured.")
@click.option("--callers", type=int, multiple=True, help="Only this number of callers.")
def bench(output: Path, turns: int | None, callers: Sequence[int]) -> None:
    """Measure the RPCs beside bare librbd calls."""
    place_of = environment()
    with prepared(output) as place:
        results = Bench(place, lambda text: click.echo(f"  {text}", err=True)).run(_plans(turns, callers))
    lines = [*environment_lines(place_of), "", table(results), "", *verdicts(results)]
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {"environment": place_of, "results": values(results)}
    (output / "bench.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (output / "bench.svg").write_text(plot(results, place_of), encoding="utf-8")
    click.echo("\n".join(lines))
    click.echo(f"written to {output}: bench.txt, bench.json, bench.svg")


@main.command()
@_output
@click.option("--count", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--callers", type=click.IntRange(min=1), default=32, show_default=True)
def volumes(output: Path, count: int, callers: int) -> None:
    """Make ten thousand volumes, list them, delete them, and look for what is left."""
    with _reporting(output, "volumes") as (place, say):
        _conclude(say, many_report(place, say, count=count, callers=callers))


@main.command()
@_output
@click.option("--first", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--last", type=click.IntRange(min=2), default=5_000, show_default=True)
@click.option("--callers", type=click.IntRange(min=1), default=32, show_default=True)
def memory(output: Path, first: int, last: int, callers: int) -> None:
    """Compare the driver's memory after few creations and deletions with that after many."""
    with _reporting(output, "memory") as (place, say):
        _conclude(say, memory_report(place, say, first=first, last=last, callers=callers))


@contextmanager
def _reporting(output: Path, name: str) -> Iterator[tuple[Place, Say]]:
    """A place, and what says a line and keeps it in the report's file."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{name}.txt").open("w", encoding="utf-8") as file:

        def say(line: str) -> None:
            click.echo(line)
            file.write(f"{line}\n")
            file.flush()

        for line in environment_lines(environment()):
            say(line)
        with prepared(output) as place:
            yield place, say


def _conclude(say: Say, verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        say(str(verdict))
    if any(verdict.holds is False for verdict in verdicts):
        raise click.ClickException("not everything holds that has to")


def _plans(turns: int | None, callers: Sequence[int]) -> list[Plan]:
    chosen = [plan for plan in PLANS if not callers or plan.callers in callers]
    return [replace(plan, turns=turns or plan.turns) for plan in chosen]


def _stop(number: int, _frame: object) -> None:
    # Python would end at once, and leave the cluster and the driver running.
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    main(prog_name="csi_host_bench")
