"""Beside directories named rbd, ``import rbd`` could succeed as an empty namespace and hide that librbd is missing."""

import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from csi_host.process import run

_LOOK = """
import json, sys
try:
    import {name}
    print(json.dumps({{"has_class": hasattr({name}, "{type}"), "origin": {name}.__file__}}))
except ModuleNotFoundError as error:
    print(json.dumps({{"missing": error.name}}))
"""


@pytest.mark.parametrize(("name", "type_name"), [("rbd", "RBD"), ("rados", "Rados"), ("cephfs", "LibCephFS")])
def test_from_the_repository_a_binding_is_the_real_one_or_missing(repository: Path, name: str, type_name: str) -> None:
    code = _LOOK.format(name=name, type=type_name)
    found = json.loads(run(["env", "-C", str(repository), sys.executable, "-c", code], timeout=60).stdout)
    if "missing" in found:
        assert found == {"missing": name}
    else:
        assert found["has_class"]
        assert not Path(found["origin"]).is_relative_to(repository / "plugins")


@pytest.mark.parametrize("name", ["rbd", "rados", "cephfs"])
def test_none_of_the_projects_own_entries_of_the_path_has_a_module_of_that_name(repository: Path, name: str) -> None:
    inside = [entry for entry in sys.path if Path(entry or ".").resolve().is_relative_to(repository)]
    own = [entry for entry in inside if ".venv" not in Path(entry).parts]
    assert own, "the project is not on the path of this test run"
    # A namespace package is found with an origin of None, so the finder is asked and not the file system.
    assert PathFinder.find_spec(name, [*own, str(repository)]) is None
