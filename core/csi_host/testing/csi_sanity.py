"""csi-sanity, the conformance suite of the CSI project, run against an endpoint and understood."""

import fcntl
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Self
from xml.etree import ElementTree as ET

import yaml

VERSION = "v5.4.0"
_MODULE = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
# Of this version, without the one that is pending.
_SPECS = 91
_INSTALL_SECONDS = 600.0
# csi-sanity sets no deadline on its calls, so a hang would be a hang: ginkgo ends it, and we end ginkgo.
_GINKGO_GRACE_SECONDS = 60.0
_SECRET_SECTIONS = (
    "CreateVolumeSecret", "DeleteVolumeSecret", "ControllerPublishVolumeSecret", "ControllerUnpublishVolumeSecret",
    "ControllerValidateVolumeCapabilitiesSecret", "ControllerExpandVolumeSecret", "ControllerModifyVolumeSecret",
    "NodeStageVolumeSecret", "NodePublishVolumeSecret", "CreateSnapshotSecret", "DeleteSnapshotSecret",
    "ListSnapshotsSecret",
)  # fmt: skip


class CsiSanityMissingError(Exception):
    """csi-sanity cannot be had on this machine; the message says why."""


def install(directory: Path) -> Path:
    """Return csi-sanity's path below ``directory``, built with Go when it is not there yet, by one caller at a time.

    Raises CsiSanityMissingError without Go, and when the build fails (no module proxy, a Go that is too old).
    """
    binary = directory / f"csi-sanity-{VERSION}" / "csi-sanity"
    if binary.exists():
        return binary
    go = which("go")
    if go is None:
        raise CsiSanityMissingError("Go is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(go, binary)
    return binary


def _build(go: str, binary: Path) -> None:
    built = subprocess.run(
        ["env", f"GOBIN={binary.parent}", go, "install", f"{_MODULE}@{VERSION}"],
        capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
    )  # fmt: skip
    if built.returncode != 0 or not binary.exists():
        raise CsiSanityMissingError(f"go install {_MODULE}@{VERSION} failed: {built.stderr.strip()[-500:]}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run csi-sanity with. Sizes are bytes; ``skip`` is a regular expression over the specs' names.

    ``controller_endpoint`` is for a driver whose controller is a process of its own. ``parameters`` are a
    StorageClass's, ``mutable_parameters`` a VolumeAttributesClass's, ``secret`` goes with every call that takes one.
    """

    endpoint: str
    controller_endpoint: str = ""
    access: str = "mount"
    volume_bytes: int = 1 << 30
    expanded_bytes: int = 2 << 30
    parameters: Mapping[str, str] = field(default_factory=dict)
    mutable_parameters: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict)
    skip: str = ""
    timeout_seconds: float = 540.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a run ended: the names of the specs by their outcome, and what csi-sanity printed."""

    exit_code: int
    output: str
    passed: frozenset[str]
    skipped: frozenset[str]
    failed: Mapping[str, str]

    @classmethod
    def read(cls, junit: Path, *, exit_code: int, output: str) -> Self:
        """Understand a JUnit report of ginkgo. A pending spec (csi-sanity has one) is neither passed nor skipped."""
        passed: set[str] = set()
        skipped: set[str] = set()
        failed: dict[str, str] = {}
        for case in ET.parse(junit).iter("testcase"):  # noqa: S314 - written by the program we just ran
            name, status = case.get("name", "").removeprefix("[It] "), case.get("status", "")
            if status == "passed":
                passed.add(name)
            elif status == "skipped":
                skipped.add(name)
            elif status != "pending":
                failed[name] = _what_failed(case)
        return cls(
            exit_code=exit_code, output=output, passed=frozenset(passed), skipped=frozenset(skipped), failed=failed
        )


def assert_conforms(report: Report, skipped: Path, driver: str) -> None:
    """Raise AssertionError unless all specs passed but for exactly those that a driver is to skip by a list.

    ``skipped`` is TOML: groups of drivers and of the beginnings of specs' names.
    """
    if report.failed or report.exit_code != 0:
        failures = [f"{name}\n{why}" for name, why in report.failed.items()]
        raise AssertionError("\n\n".join(failures) or report.output)
    groups = tomllib.loads(skipped.read_text(encoding="utf-8"))["group"]
    names = [name for group in groups if driver in group["drivers"] for name in group["specs"]]
    specs = report.passed | report.skipped
    expected = {spec for spec in specs if spec.startswith(tuple(names))}
    wrong = {
        f"not {_SPECS} specs": [str(len(specs))] if len(specs) != _SPECS else [],
        "no such spec": [name for name in names if not any(spec.startswith(name) for spec in specs)],
        "skipped, and not on the list": sorted(report.skipped - expected),
        "on the list, and not skipped": sorted(expected - report.skipped),
    }
    if any(wrong.values()):
        raise AssertionError("; ".join(f"{what}: {', '.join(which)}" for what, which in wrong.items() if which))


def run(binary: Path, settings: Settings, *, directory: Path, junit: Path) -> Report:
    """Run every spec against ``settings.endpoint``; its files go below ``directory``, its report to ``junit``.

    Raises subprocess.TimeoutExpired when csi-sanity outlives its own time limit.
    """
    arguments = _arguments(settings, directory, junit)
    ended = subprocess.run(
        [str(binary), *arguments],
        capture_output=True, text=True, check=False, timeout=settings.timeout_seconds + _GINKGO_GRACE_SECONDS,
    )  # fmt: skip
    output = ended.stdout + ended.stderr
    if not junit.exists():
        return Report(
            exit_code=ended.returncode, output=output, passed=frozenset(), skipped=frozenset(), failed={"start": output}
        )
    return Report.read(junit, exit_code=ended.returncode, output=output)


def _arguments(settings: Settings, directory: Path, junit: Path) -> list[str]:
    junit.parent.mkdir(parents=True, exist_ok=True)
    junit.unlink(missing_ok=True)
    # The mount and staging directories must not exist: csi-sanity makes them itself, and fails every spec otherwise.
    flags = {
        "csi.endpoint": settings.endpoint,
        "csi.controllerendpoint": settings.controller_endpoint,
        "csi.mountdir": str(directory / "mount"),
        "csi.stagingdir": str(directory / "staging"),
        "csi.testvolumeaccesstype": settings.access,
        "csi.testvolumesize": str(settings.volume_bytes),
        "csi.testvolumeexpandsize": str(settings.expanded_bytes),
        "csi.testvolumeparameters": _write_yaml(directory / "parameters.yaml", dict(settings.parameters)),
        "csi.testvolumemutableparameters": _mutable(settings, directory),
        "csi.secrets": _write_yaml(
            directory / "secrets.yaml", {section: dict(settings.secret) for section in _SECRET_SECTIONS}
        ),
        "ginkgo.junit-report": str(junit),
        "ginkgo.timeout": f"{settings.timeout_seconds:g}s",
        "ginkgo.skip": settings.skip,
    }
    return ["-ginkgo.v", "-ginkgo.no-color", *(f"-{name}={value}" for name, value in flags.items() if value)]


def _mutable(settings: Settings, directory: Path) -> str:
    if not settings.mutable_parameters:
        return ""
    return _write_yaml(directory / "mutable_parameters.yaml", dict(settings.mutable_parameters))


def _write_yaml(path: Path, content: object) -> str:
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def _what_failed(case: ET.Element) -> str:
    texts = [
        f"{part.get('message', '')}\n{part.text or ''}".strip() for part in case if part.tag in {"failure", "error"}
    ]
    return "\n".join(texts) or f"status {case.get('status')!r}"
