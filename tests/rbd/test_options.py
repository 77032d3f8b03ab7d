from typing import Any

import pytest

from csi_host_rbd.options import OPTIONS

_OPTIONS = {option.name: option for option in OPTIONS}


def test_one_controller_is_what_there_is_unless_said_otherwise() -> None:
    assert _OPTIONS["lockbackend"].default == "memory"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lockbackend", "rados", "rados"),
        ("lockbackend", "memory", "memory"),
        ("locklease", "30s", 30.0),
        ("locklease", "1m", 60.0),
    ],
)
def test_settings_of_the_locks(name: str, text: str, value: Any) -> None:
    assert _OPTIONS[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lockbackend", "etcd", "expected one of memory, rados, got 'etcd'"),
        ("lockbackend", "", "expected one of memory, rados"),
        ("locklease", "0", "expected a duration from 1 to 3600 seconds, got '0'"),
        ("locklease", "2h", "expected a duration from 1 to 3600 seconds"),
        ("locklease", "soon", "expected a duration such as"),
    ],
)
def test_settings_of_the_locks_that_make_no_sense_are_refused(name: str, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        _OPTIONS[name].parse(text)
