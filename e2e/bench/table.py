"""Figures with their peers and goals: a table on the terminal, a line of JSON each in a file."""

from __future__ import annotations

import json
import operator
from dataclasses import asdict, dataclass
from pathlib import Path

MEETS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass
class Figure:
    """One measured number, beside the peer's where there is one."""

    metric: str
    unit: str
    ours: float
    peer: float | None = None
    goal: str | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the peer's number ours is."""
        return None if not self.peer else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the goal is met, like "<= 30" or "< peer"."""
        if self.goal is None:
            return None
        sign, _, bound = self.goal.partition(" ")
        return bool(MEETS[sign](self.ours, self.peer if bound == "peer" else float(bound)))


class Table:
    """The figures of one case, told as they come."""

    def __init__(self, case: str, path: Path) -> None:
        """Begin an empty file."""
        self.case, self.path = case, path
        self.figures: list[Figure] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        print(f"{'':54} {'ours':>12} {'peer':>12} {'ratio':>8}  goal")

    def add(
        self,
        metric: str,
        unit: str,
        ours: float,
        peer: float | None = None,
        goal: str | None = None,
    ) -> None:
        """Take a figure."""
        figure = Figure(metric, unit, ours, peer, goal)
        self.figures.append(figure)
        with self.path.open("a") as file:
            row = {"case": self.case, **asdict(figure), "ratio": figure.ratio, "met": figure.met}
            file.write(json.dumps(row) + "\n")
        there = "" if peer is None else f"{peer:,.4g}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}"
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        name = f"{metric} [{unit}]"
        print(f"{name:54} {ours:12,.4g} {there:>12} {ratio:>8}  {goal or ''} {verdict}", flush=True)

    def is_met(self) -> bool:
        """Whether no goal was missed."""
        return all(figure.met is not False for figure in self.figures)
