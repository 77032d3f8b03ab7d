"""Checking a pool, and mending it, beside running controllers.

Three things keep a call at work from being taken for one that was cut off: what did not fit in the scan is read again
on its own; what is wrong then is read once more after a pause; and what is younger than the minimal age is not told of
at all. Before mending, it is read a fourth time, within the locks that the controllers share, where they share them.

What is written then is conditional in the cluster: a name goes only while it leads to the same uuid, an entry only
while no image's id was written into it. A controller that took over an abandoned reservation in this very moment finds
its entry gone, and undoes what it made. (ceph-csi has no such check: it would write the id into a new object, which the
next run finds.) What librbd makes in several steps has no such condition: the names of an image without a header, a
snapshot on a source, a clone that its parent does not know yet. Only age and the shared locks tell them from leftovers,
so a minimal age shorter than any call lasts is for pools that no controller works in. Killed between two steps, mending
leaves what the next run finds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from csi_host.errors import CsiError, Unavailable
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.registries import batches
from csi_host_rbd.fsck.classes import CLASSES, Mending
from csi_host_rbd.fsck.findings import Finding, LockKeys
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.progress import Progress
from csi_host_rbd.fsck.records import Hints
from csi_host_rbd.fsck.scan import Scan
from csi_host_rbd.fsck.suspicions import Suspicion

# What mends one thing may bring the next to light: an image between two lost its clone.
_ROUNDS = 4
# These make something whole that others would take away, or take for granted.
_FIRST = ("lost-entry", "id-object-missing", "image-not-listed", "child-not-registered", "snapshot-missing")

Hold = Callable[[Pool, LockKeys], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked for: times in seconds; ``only`` are names of classes, none for all."""

    only: frozenset[str] = frozenset()
    repairs: bool = False
    removes_data: bool = False
    min_age: float = 3600.0
    settle: float = 3.0
    lists_objects: bool = True
    workers: int = 16


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finding and what became of it; ``problem`` says why it could not be mended."""

    finding: Finding
    is_repaired: bool = False
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is wrong in one RADOS namespace of a pool.

    ``young`` counts what may be a call at work, ``unread`` says what could not be looked at.
    """

    pool: str
    namespace: str
    outcomes: tuple[Outcome, ...] = ()
    young: int = 0
    unread: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """How many findings are not mended."""
        return sum(1 for one in self.outcomes if not one.is_repaired)


@dataclass
class _Round:
    found: list[tuple[Suspicion, Finding]] = field(default_factory=list)
    young: int = 0
    unread: list[str] = field(default_factory=list)


def no_locks(_pool: Pool, _locks: LockKeys) -> AbstractContextManager[object]:
    """Hold nothing: for controllers that share no locks."""
    return nullcontext()


class Fsck:
    """Checks one place as it is wished; ``pause`` waits for so many seconds."""

    def __init__(
        self,
        look: Look,
        wishes: Wishes,
        *,
        progress: Progress,
        hold: Hold = no_locks,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._look = look
        self._wishes = wishes
        self._progress = progress
        self._hold = hold
        self._pause = pause

    def run(self) -> Report:
        """Look, and mend what is wished; raises what looking fails with."""
        repaired: list[Outcome] = []
        with ThreadPoolExecutor(self._wishes.workers, thread_name_prefix="csi-host-fsck") as workers:
            for last in range(1, _ROUNDS + 1):
                found = self._check(workers)
                outcomes = [self._mend(*one) for one in _in_order(found.found)] if self._wishes.repairs else []
                repaired += [one for one in outcomes if one.is_repaired]
                if last == _ROUNDS or not any(one.is_repaired for one in outcomes):
                    break
        left = outcomes if self._wishes.repairs else [Outcome(finding=one) for _, one in _in_order(found.found)]
        return Report(
            pool=self._look.pool.name,
            namespace=self._look.pool.namespace,
            outcomes=(*repaired, *(one for one in left if not one.is_repaired)),
            young=found.young,
            unread=tuple(found.unread),
        )

    def _check(self, workers: ThreadPoolExecutor) -> _Round:
        look = replace(self._look, hints=Hints())
        self._look = look
        scan = Scan(look, workers=workers, progress=self._progress, lists_objects=self._wishes.lists_objects)
        found = self._examine(workers, scan.run())
        if found.found:
            self._pause(self._wishes.settle)
            again = self._examine(workers, [suspicion for suspicion, _ in found.found])
            known = {finding.identity for _, finding in found.found}
            again.found = [one for one in again.found if one[1].identity in known]
            again.young += found.young
            again.unread += found.unread
            return again
        return found

    def _examine(self, workers: ThreadPoolExecutor, suspicions: Sequence[Suspicion]) -> _Round:
        result = _Round()
        seen = set()
        # What is told of an image in the trash must be younger than the image's move there.
        self._look.task_list.forget()
        pages = ((one, answer) for page in batches(suspicions) for one, answer in self._examined_page(workers, page))
        for suspicion, answer in self._progress.over("what did not fit", pages, lambda _: 1, len(suspicions)):
            if isinstance(answer, str):
                result.unread.append(answer)
                continue
            for finding in answer:
                if not self._is_wished(finding) or finding.identity in seen:
                    continue
                seen.add(finding.identity)
                if self._is_young(finding):
                    result.young += 1
                else:
                    result.found.append((suspicion, finding))
        return result

    def _examined_page(
        self, workers: ThreadPoolExecutor, page: Sequence[Suspicion]
    ) -> Iterator[tuple[Suspicion, list[Finding] | str]]:
        return zip(page, workers.map(self._examined, page), strict=True)

    def _examined(self, suspicion: Suspicion) -> list[Finding] | str:
        try:
            return suspicion.examine(self._look)
        except CsiError as error:
            return f"{suspicion.what} {' '.join(suspicion.subject)}: {error}"

    def _is_wished(self, finding: Finding) -> bool:
        return not self._wishes.only or finding.kind.name in self._wishes.only

    def _is_young(self, finding: Finding) -> bool:
        return time.time() - finding.since < self._wishes.min_age

    def _mend(self, suspicion: Suspicion, finding: Finding) -> Outcome:
        problem = self._why_not(finding)
        if problem:
            return Outcome(finding=finding, problem=problem)
        try:
            with self._hold(self._look.pool, finding.locks):
                return self._mend_fresh(suspicion, finding)
        except CsiError as error:
            return Outcome(finding=finding, problem=str(error))

    def _why_not(self, finding: Finding) -> str:
        if finding.mending is Mending.BY_HAND:
            return "this needs a person's decision"
        if finding.mending is Mending.REMOVES_DATA and not self._wishes.removes_data:
            return "this needs --remove-data"
        return ""

    def _mend_fresh(self, suspicion: Suspicion, finding: Finding) -> Outcome:
        fresh = self._looked_again(suspicion, finding)
        if fresh is None:
            # Somebody else has mended it, or it was a call at work after all.
            return Outcome(finding=finding, is_repaired=True)
        problem = self._why_not(fresh)
        if problem or self._is_young(fresh):
            return Outcome(finding=finding, problem=problem or "somebody is at it")
        for step in fresh.steps:
            step.do()
        if self._looked_again(suspicion, finding) is not None:
            raise Unavailable(f"{finding.kind.name} is still there: somebody else changes it as well; run this again")
        return Outcome(finding=finding, is_repaired=True)

    def _looked_again(self, suspicion: Suspicion, finding: Finding) -> Finding | None:
        self._look.task_list.forget()
        return next((one for one in suspicion.examine(self._look) if one.identity == finding.identity), None)


def _in_order(found: Sequence[tuple[Suspicion, Finding]]) -> list[tuple[Suspicion, Finding]]:
    order = {name: position for position, name in enumerate((*_FIRST, *(one for one in CLASSES if one not in _FIRST)))}
    return sorted(found, key=lambda one: (order[one[1].kind.name], one[1].objects))
