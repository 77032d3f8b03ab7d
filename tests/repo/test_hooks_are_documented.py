import inspect
import re
from pathlib import Path

import pytest

from csi_host.hookspecs import HookSpecs

_HOOKS = {name: method for name, method in vars(HookSpecs).items() if name.startswith("csi_host_")}


@pytest.fixture(scope="module")
def architecture(repository: Path) -> str:
    return (repository / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", _HOOKS)
def test_a_hook_is_in_the_architectures_table_with_its_arguments(architecture: str, hook: str) -> None:
    arguments = ", ".join(name for name in inspect.signature(_HOOKS[hook]).parameters if name != "self")
    assert f"\n| `{hook}({arguments})` |" in architecture


def test_the_architecture_names_no_hook_that_there_is_not(architecture: str) -> None:
    assert set(re.findall(r"`(csi_host_\w+)\(", architecture)) <= set(_HOOKS)
