"""The arithmetic of the measurements, which nobody would see go wrong."""

import threading
from xml.etree import ElementTree as ET

import pytest
from csi_host_bench.callers import CallError, call_all
from csi_host_bench.measuring import Pair, Result, Sample
from csi_host_bench.plot import plot
from csi_host_bench.tables import table, verdicts


def _sample(rate: float) -> Sample:
    return Sample(calls=10, wall_seconds=10 / rate, median_seconds=0.1, cpu_seconds=0.05, osd_cpu_seconds=0.02)


def _result(*rates: tuple[float, float], callers: int = 32) -> Result:
    pairs = [Pair(rpc=_sample(rpc), bare=_sample(bare)) for rpc, bare in rates]
    return Result(rpc="CreateVolume", floor="create", callers=callers, pairs=pairs)


def test_the_share_is_the_median_of_the_turns_and_not_of_all_calls() -> None:
    result = _result((50, 100), (10, 100), (600, 1000))
    assert result.share == pytest.approx(0.5)
    assert list(result.shares) == pytest.approx([0.1, 0.6])


@pytest.mark.parametrize(("rate", "word"), [(45.1, "reached"), (44.9, "missed")])
def test_a_verdict_says_whether_what_was_aimed_at_was_reached(rate: float, word: str) -> None:
    (line,) = verdicts([_result((rate, 100))])
    assert line.startswith(f"{word}: CreateVolume at 32 callers")


def test_the_table_has_a_line_for_what_is_not_served() -> None:
    lines = table([_result((50, 100)), _result(callers=8)]).splitlines()
    assert "50%" in lines[1]
    assert "5.00" in lines[1]
    assert "not served" in lines[2]


def test_the_plot_is_a_picture_whatever_the_environment_is_called() -> None:
    text = plot([_result((50, 100)), _result(callers=8)], {"processor": "<&>"})
    picture = ET.fromstring(text)  # noqa: S314 (it was written here)
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"50%", "not served", "processor <&>"} <= set(words)


def test_every_item_is_called_once_by_so_many_callers_at_once() -> None:
    together = threading.Barrier(4)

    def call(item: int) -> int:
        together.wait(20)
        if item == 3:
            raise CallError("ABORTED", "busy")
        return item * 2

    called = call_all(call, range(8), 4)
    assert called.answers == [0, 2, 4, None, 8, 10, 12, 14]
    assert (called.failed, called.codes, called.errors) == ([3], ["ABORTED"], ["ABORTED: busy"])
