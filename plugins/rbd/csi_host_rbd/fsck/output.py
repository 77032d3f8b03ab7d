"""A report as text for people, and as JSON for programs."""

import json
from collections.abc import Sequence
from typing import Any

from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding
from csi_host_rbd.fsck.fsck import Outcome, Report

_REPAIR = "csi-host rbd fsck --repair --only {name}"


def as_json(reports: Sequence[Report]) -> str:
    """Return all of it; the member names are stable."""
    is_clean = not any(report.left or report.unread for report in reports)
    return json.dumps({"clean": is_clean, "places": [_place(report) for report in reports]}, indent=2)


def as_table(reports: Sequence[Report]) -> str:
    """Return a line of summary for each place, and below it each finding with its cause and what mends it."""
    return "\n".join(line for report in reports for line in _lines(report))


def classes_table() -> str:
    """Return every class with its severity, what ``--repair`` does, and what it means."""
    rows = [(one.name, one.severity.value, one.mending.value, one.summary) for one in CLASSES.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def _place(report: Report) -> dict[str, Any]:
    return {
        "pool": report.pool,
        "namespace": report.namespace,
        "findings": [_finding(outcome) for outcome in report.outcomes],
        "young": report.young,
        "unread": list(report.unread),
    }


def _finding(outcome: Outcome) -> dict[str, Any]:
    finding = outcome.finding
    return {
        "class": finding.kind.name,
        "severity": finding.kind.severity.value,
        "cause": finding.cause,
        "objects": list(finding.objects),
        "mending": finding.mending.value,
        "repair": _command(finding),
        "commands": [step.command for step in finding.steps],
        "repaired": outcome.is_repaired,
        "problem": outcome.problem,
    }


def _command(finding: Finding) -> str:
    if not finding.steps:
        return ""
    flag = " --remove-data" if finding.mending.value == "removes-data" else ""
    return _REPAIR.format(name=finding.kind.name) + flag


def _lines(report: Report) -> list[str]:
    place = "/".join(part for part in (report.pool, report.namespace) if part)
    repaired = len(report.outcomes) - report.left
    counts = f"{report.left} finding{'' if report.left == 1 else 's'}" + (f", {repaired} repaired" if repaired else "")
    young = f", {report.young} too young to judge" if report.young else ""
    lines = [f"{place}: {counts if report.outcomes else 'clean'}{young}"]
    for outcome in report.outcomes:
        lines += _finding_lines(outcome)
    return [*lines, *(f"  could not look at {one}" for one in report.unread)]


def _finding_lines(outcome: Outcome) -> list[str]:
    finding = outcome.finding
    state = "repaired" if outcome.is_repaired else finding.kind.severity.value
    lines = [f"  {finding.kind.name} ({state}): {', '.join(finding.objects)}", f"      {finding.cause}"]
    if outcome.is_repaired:
        return lines
    if outcome.problem:
        lines.append(f"      not repaired: {outcome.problem}")
    lines += [f"      mend: {command}" for command in [_command(finding)] if command]
    return lines + [f"            {step.command}" for step in finding.steps]
