"""The rules that keep each kind of work in its one place, read from the source."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

_SOURCE_DIRECTORIES = ("core", "plugins", "examples")
_GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
_TEXT_SUFFIXES = {".py", ".pyi", ".md", ".toml", ".proto", ".yaml", ".yml", ".json", ".sh", ""}
# Written in pieces, so that this file does not find itself.
_MACHINE_PATH = re.compile("(?<![A-Za-z0-9_.}])/" + "(work|root|home)/[a-z]")

_START_PROGRAMS = {"subprocess", "multiprocessing", "pty"}
_START_PROGRAMS_IN_OS = re.compile(r"system|popen|forkpty|fork|spawn[lv]p?e?|exec[lv]p?e?|posix_spawnp?")

# Who starts programs besides csi_host.process, and why.
_MAY_START_PROGRAMS = {
    "core/csi_host/process.py": "the one place that does",
    "core/csi_host/testing/host_process.py": "runs csi-host itself, as a process to be signalled and killed",
    "core/csi_host/testing/csi_sanity.py": "runs the conformance suite for minutes; not part of a serving host",
    "core/csi_host/testing/namespaces.py": "a process that has a mount namespace for as long as a test wants it",
    "plugins/rbd/csi_host_rbd/testing/pools.py": "a tool that watches an image for as long as a test wants it to",
    "plugins/rbd/csi_host_rbd/testing/victims.py": "processes that serve the driver, to be killed at a chosen step",
    "examples/rbd_walk/client.py": "a user's program beside the host: it runs csi-host as users do",
    "examples/rbd_walk/servers.py": "keeps csi-host running beside the walk and stops it",
    "examples/rbd_walk/machine.py": "looks at what is left on the machine without the code that was to clean it up",
}
# The Ceph bindings, and the one module that each may be imported in.
_BINDINGS = {
    "rados": "plugins/rbd/csi_host_rbd/ceph/bindings.py",
    "rbd": "plugins/rbd/csi_host_rbd/ceph/bindings.py",
    "cephfs": "plugins/cephfs_stub/csi_host_cephfs_stub/cephfs.py",
}


@pytest.fixture(scope="module")
def sources(repository: Path) -> Mapping[str, ast.Module]:
    found = {
        str(path.relative_to(repository)): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for directory in _SOURCE_DIRECTORIES
        for path in sorted((repository / directory).rglob("*.py"))
        if not _GENERATED.search(path.name)
    }
    assert len(found) > 50, "the rules are looking at the wrong directory"
    return found


def _places(sources: Mapping[str, ast.Module], what: Callable[[ast.AST], bool]) -> list[str]:
    return [
        f"{name}:{getattr(node, 'lineno', 0)}"
        for name, tree in sources.items()
        for node in ast.walk(tree)
        if what(node)
    ]


def _files(places: Sequence[str]) -> set[str]:
    return {place.rpartition(":")[0] for place in places}


def _imports(node: ast.AST, modules: set[str]) -> bool:
    """Whether a node imports one of the modules, below TYPE_CHECKING and by name in a text as well."""
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in modules for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.level == 0 and (node.module or "").partition(".")[0] in modules
    if isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__", "importorskip"}:
        return any(isinstance(word, ast.Constant) and word.value in modules for word in node.args)
    return False


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _starts_a_program(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg == "preexec_fn"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
        return _START_PROGRAMS_IN_OS.fullmatch(node.attr) is not None
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        return any(_START_PROGRAMS_IN_OS.fullmatch(alias.name) for alias in node.names)
    return _imports(node, _START_PROGRAMS)


def _ends_an_rpc(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) in {"abort", "abort_with_status", "set_code", "set_details"}


def test_there_is_one_place_that_turns_an_error_into_a_status(sources: Mapping[str, ast.Module]) -> None:
    places = _places(sources, _ends_an_rpc)
    assert len(places) == 1, places
    assert places[0].startswith("core/csi_host/server/")


@pytest.mark.parametrize("module", _BINDINGS)
def test_the_ceph_bindings_are_imported_in_one_module_each(sources: Mapping[str, ast.Module], module: str) -> None:
    places = _places(sources, lambda node: _imports(node, {module}))
    assert _files(places) == {_BINDINGS[module]}, places


def test_programs_are_started_in_one_place_and_in_those_that_have_a_reason(sources: Mapping[str, ast.Module]) -> None:
    assert _files(_places(sources, _starts_a_program)) == set(_MAY_START_PROGRAMS)


def test_nothing_forks_this_process(sources: Mapping[str, ast.Module]) -> None:
    # gRPC and librados have threads and locks that a forked child would hold for ever.
    forking = {"fork", "forkpty", "preexec_fn"}

    def forks(node: ast.AST) -> bool:
        return (
            (isinstance(node, ast.keyword) and node.arg in forking)
            or (isinstance(node, ast.Attribute) and node.attr in forking)
            or _imports(node, {"multiprocessing", "pty"})
        )

    # A test's own server of processes to be killed, started anew before there is a thread.
    assert _files(_places(sources, forks)) == {"plugins/rbd/csi_host_rbd/testing/victims.py"}


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import subprocess", _starts_a_program),
        ("def f():\n    from subprocess import run", _starts_a_program),
        ("os.system('ls')", _starts_a_program),
        ("from os import execvp", _starts_a_program),
        ("os.posix_spawn(a, b, c)", _starts_a_program),
        ("Popen(a, preexec_fn=f)", _starts_a_program),
        ("importlib.import_module('subprocess')", _starts_a_program),
        ("import multiprocessing.pool", _starts_a_program),
        ("context.abort(code, text)", _ends_an_rpc),
        ("self.context.abort_with_status(status)", _ends_an_rpc),
        ("if TYPE_CHECKING:\n    import rbd", lambda node: _imports(node, {"rbd"})),
        ("from rbd import Image as I", lambda node: _imports(node, {"rbd"})),
    ],
)
def test_the_rules_see_what_they_forbid(code: str, rule: Callable[[ast.AST], bool]) -> None:
    assert _places({"x.py": ast.parse(code)}, rule)


def test_no_directory_of_plugins_or_tests_is_a_package(repository: Path) -> None:
    # With plugins/ on sys.path, a package or even an empty directory "rbd" would be imported in librbd's place.
    between = [repository / "plugins", *(repository / "plugins").glob("*/"), repository / "examples"]
    forbidden = [directory / "__init__.py" for directory in between if (directory / "__init__.py").exists()]
    assert [*forbidden, *(repository / "tests").rglob("__init__.py")] == []


def test_no_file_names_a_path_of_the_machine_it_was_written_on(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for path in _text_files(repository)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _MACHINE_PATH.search(line)
    ]
    assert found == []


def test_what_a_linter_is_told_to_pass_over_has_its_code_and_a_reason(repository: Path) -> None:
    assert list(_unexplained(repository)) == []


def _unexplained(repository: Path) -> Iterator[str]:
    mark = re.compile(r"#.*?\b(?:noqa|type: ignore)(?P<codes>: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|\[[\w, -]+\])?(?P<reason>.*)")
    for path in _text_files(repository):
        if path.suffix != ".py" or _GENERATED.search(path.name) or "tests" in path.parts:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            found = mark.search(line)
            above = lines[number - 1].lstrip().startswith("#")
            if found and not (found["codes"] and (above or re.search(r"[a-z]{3}", found["reason"]))):
                yield f"{path.relative_to(repository)}:{number + 1}: {line.strip()}"


def _text_files(repository: Path) -> Iterator[Path]:
    for directory in ("core", "plugins", "examples", "tests", ".ci"):
        for path in sorted((repository / directory).rglob("*")):
            is_text = path.suffix in _TEXT_SUFFIXES and path.is_file()
            if is_text and "__pycache__" not in path.parts:
                yield path
    yield from (path for path in sorted(repository.glob("*")) if path.is_file() and path.suffix in _TEXT_SUFFIXES)
