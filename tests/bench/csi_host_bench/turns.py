"""The turns of the bench: a set of volumes on each side, from their creation to their deletion."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .measuring import Batch, NotServedError, Pair, Result, measure_bare, measure_rpc
from .place import Place

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """With how many callers, and how often.

    Fewer snapshots are made, and not in every turn: each waits for the monitors for about a second when it is made, and
    when the manager removes it.
    """

    callers: int
    volumes: int
    snapshots: int
    turns: int
    turns_with_snapshots: int = 2


# One caller waits for each call, so few calls say as much; a turn takes a few seconds on either side.
PLANS = (
    Plan(callers=1, volumes=20, snapshots=2, turns=10),
    Plan(callers=8, volumes=80, snapshots=8, turns=6),
    Plan(callers=32, volumes=192, snapshots=32, turns=6),
)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One RPC, the calls of librbd that are its floor, and the capability without which it is not served."""

    rpc: str
    action: str
    floor: str
    capability: str


CREATE = Measure(rpc="CreateVolume", action="create", floor="create", capability="CREATE_DELETE_VOLUME")
EXPAND = Measure(rpc="ControllerExpandVolume", action="expand", floor="open, resize", capability="EXPAND_VOLUME")
SNAPSHOT = Measure(rpc="CreateSnapshot", action="snapshot", floor="open, snapshot", capability="CREATE_DELETE_SNAPSHOT")
RESTORE = Measure(
    rpc="CreateVolume from a snapshot", action="restore", floor="clone", capability="CREATE_DELETE_SNAPSHOT"
)
CLONE = Measure(
    rpc="CreateVolume from a volume", action="clone", floor="open, snapshot, clone", capability="CLONE_VOLUME"
)
DELETE = Measure(rpc="DeleteVolume", action="delete", floor="trash move", capability="CREATE_DELETE_VOLUME")
# The same calls of the driver beside a floor after which the manager has as much to remove.
DELETE_WITH_TASK = replace(DELETE, floor="trash move, task")
MEASURES = (CREATE, DELETE, DELETE_WITH_TASK, SNAPSHOT, RESTORE, CLONE, EXPAND)


@dataclass
class Bench:
    """Measures every RPC with one plan after the other."""

    place: Place
    report: Report
    _pairs: dict[tuple[Measure, int], list[Pair]] = field(default_factory=dict)
    _not_served: set[str] = field(default_factory=set)

    def run(self, plans: Sequence[Plan]) -> list[Result]:
        """Measure; raises CallsFailedError when a call fails that should not."""
        has = self.place.capabilities()
        self._not_served |= {measure.rpc for measure in MEASURES if measure.capability not in has}
        _Turn(self, plans[0], "warm-up", is_bare_first=True).run()
        self._pairs.clear()
        for plan in plans:
            for turn in range(plan.turns):
                self.report(f"{plan.callers} callers, turn {turn + 1} of {plan.turns}")
                has_snapshots = turn < plan.turns_with_snapshots
                _Turn(
                    self,
                    plan if has_snapshots else replace(plan, snapshots=0),
                    f"{plan.callers}-{turn}",
                    is_bare_first=turn % 2 == 0,
                ).run()
        return list(self._results(plans))

    def pair(self, measure: Measure, plan: Plan, sides: "Sides") -> list[Any]:
        """Measure both sides of one RPC and return what the driver answered; nothing where it is not served."""
        if measure.rpc in self._not_served or not sides.bare.items:
            return []
        try:
            pair, answers = sides.measured(self.place, plan.callers)
        except NotServedError:
            self._not_served.add(measure.rpc)
            return []
        self._pairs.setdefault((measure, plan.callers), []).append(pair)
        return answers

    def beside(self, floor: Measure, measure: Measure, plan: Plan, bare: Batch) -> None:
        """Measure another floor for what the driver did last with ``measure``."""
        last = self._pairs[measure, plan.callers][-1]
        pair = Pair(rpc=last.rpc, bare=measure_bare(self.place, bare, plan.callers))
        self._pairs.setdefault((floor, plan.callers), []).append(pair)

    def _results(self, plans: Sequence[Plan]) -> Iterator[Result]:
        for measure in MEASURES:
            for plan in plans:
                pairs = self._pairs.get((measure, plan.callers), [])
                yield Result(rpc=measure.rpc, floor=measure.floor, callers=plan.callers, pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What both sides do, and which of them begins: they take turns in that as well."""

    rpc: Batch
    bare: Batch
    is_bare_first: bool

    def measured(self, place: Place, callers: int) -> tuple[Pair, list[Any]]:
        """Measure both; raises NotServedError, CallsFailedError."""
        if self.is_bare_first:
            bare = measure_bare(place, self.bare, callers)
            rpc, answers = measure_rpc(place, self.rpc, callers)
        else:
            rpc, answers = measure_rpc(place, self.rpc, callers)
            bare = measure_bare(place, self.bare, callers)
        return Pair(rpc=rpc, bare=bare), answers


class _Turn:
    """One set of volumes on each side."""

    def __init__(self, bench: Bench, plan: Plan, tag: str, *, is_bare_first: bool) -> None:
        self._bench = bench
        self._place = bench.place
        self._plan = plan
        self._names = [f"rpc-{tag}-{number}" for number in range(plan.volumes)]
        self._bare = [f"bare-{tag}-{number}" for number in range(plan.volumes)]
        self._is_bare_first = is_bare_first

    def run(self) -> None:
        count = self._plan.snapshots
        volumes = self._measure(CREATE, self._names, self._bare)
        self._measure(EXPAND, volumes, self._bare)
        some, bare = list(zip(self._names, volumes, strict=True))[:count], self._bare[:count]
        snapshots = self._measure(SNAPSHOT, [(f"{name}-snapshot", volume) for name, volume in some], bare)
        restores = self._measure(
            RESTORE, [(f"{name}-restore", each) for (name, _), each in zip(some, snapshots, strict=False)], bare
        )
        clones = self._measure(CLONE, [(f"{name}-clone", volume) for name, volume in some], bare)
        self._clean_up(restores + clones, snapshots)
        self._bare_clean_up(bare if snapshots or clones else [], restores=bool(restores), clones=bool(clones))
        self._place.settle()
        self._measure(DELETE, volumes, self._bare)
        self._place.settle()
        # Other names: what has the bare ones in the trash is removed by the bare worker itself.
        names = [f"task-{name}" for name in self._bare]
        self._place.librbd("create", names, callers=self._plan.callers)
        batch = Batch(action="delete_with_task", items=names)
        self._bench.beside(DELETE_WITH_TASK, DELETE, self._plan, batch)
        self._place.settle()

    def _measure(self, measure: Measure, items: Sequence[Any], bare: Sequence[str]) -> list[Any]:
        sides = Sides(
            rpc=Batch(action=measure.action, items=items),
            bare=Batch(action=measure.action, items=bare),
            is_bare_first=self._is_bare_first,
        )
        return self._bench.pair(measure, self._plan, sides)

    def _clean_up(self, volumes: Sequence[str], snapshots: Sequence[str]) -> None:
        self._place.rpc("delete", volumes, callers=self._plan.callers)
        self._place.rpc("delete_snapshot", snapshots, callers=self._plan.callers)

    def _bare_clean_up(self, names: Sequence[str], *, restores: bool, clones: bool) -> None:
        callers = self._plan.callers
        if restores:
            self._place.librbd("remove", [f"{name}-restore" for name in names], callers=callers)
        if clones:
            self._place.librbd("remove", [f"{name}-clone" for name in names], callers=callers)
        self._place.librbd("remove_snapshot", names, callers=callers)
