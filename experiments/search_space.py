"""The plan of a search as data: each factor with its role, the values it may take, and why.

A *scientific* factor is one whose effect we want to know.  A *nuisance* factor must be chosen well for every value of
the scientific ones, or their comparison is not fair.  A *fixed* factor has one value, and the results hold for this
value alone.  The table in the report and the search itself read the same list, so they cannot differ.

Sources: the three roles, Godbole et al., 2023, "Deep Learning Tuning Playbook"; quasi-random search, Bousquet et al.,
2017 (arXiv:1706.03200); the generalised golden ratio, Roberts, 2018, "The unreasonable effectiveness of quasirandom
sequences".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from checks import InputError

KINDS = ("scientific", "nuisance", "fixed")
Settings = dict[str, Any]


@dataclass(frozen=True)
class LogRange:
    """All numbers from `low` to `high`; equal ratios are equally likely.

    >>> LogRange(0.001, 0.1).at(0.5), str(LogRange(0.001, 0.1))
    (0.01, '0.001 … 0.1')
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < float("inf"):
            raise InputError(f"LogRange: {self.low} … {self.high}; expected 0 < low < high.")

    def at(self, share: float) -> float:
        """The number at a share 0 … 1 of the way; never outside, whatever the rounding."""
        return min(max(self.low * (self.high / self.low) ** share, self.low), self.high)

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Factor:
    """One hyper-parameter: its name, its role, its values (a tuple of them or a `LogRange`), and the reason.

    >>> Factor("batch", "nuisance", (8, 16), "noise of the gradient").at(0.7)
    16
    """

    name: str
    kind: str
    values: tuple[Any, ...] | LogRange
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Factor {self.name}: kind={self.kind!r}; choose one of {', '.join(KINDS)}.")
        number = 2 if isinstance(self.values, LogRange) else len(set(self.values))
        doubled = isinstance(self.values, tuple) and number < len(self.values)
        if doubled or number == 0 or (number == 1) != (self.kind == "fixed"):
            raise InputError(
                f"Factor {self.name} is {self.kind} and has the values {self.values}.\n"
                "A fixed factor has one value, any other has two or more, all different."
            )

    def at(self, share: float) -> Any:
        """The value at a share 0 … 1 of the way through all values."""
        if isinstance(self.values, LogRange):
            return self.values.at(share)
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def spelled(self) -> str:
        """The values as a text; two factors with the same text are searched alike."""
        return str(self.values) if isinstance(self.values, LogRange) else ", ".join(map(str, self.values))


def searched(factors: Sequence[Factor]) -> list[Factor]:
    """The factors that are not fixed."""
    return [factor for factor in factors if factor.kind != "fixed"]


def with_fixed(factors: Sequence[Factor], chosen: Mapping[str, Any]) -> Settings:
    """The chosen values and those of the fixed factors, in the order of the plan.

    Raises `InputError` unless every searched factor has a value of its own.

    >>> plan = [Factor("lr", "nuisance", LogRange(0.001, 0.1)), Factor("epochs", "fixed", (9,))]
    >>> with_fixed(plan, {"lr": 0.01})
    {'lr': 0.01, 'epochs': 9}
    """
    names = [factor.name for factor in searched(factors)]
    if wrong := sorted(set(names) ^ set(chosen)):
        raise InputError(f"Settings: missing or not in the plan: {', '.join(wrong)}. Expected just {', '.join(names)}.")
    for factor in searched(factors):
        if chosen[factor.name] not in factor.values:
            raise InputError(
                f"Settings: {factor.name}={chosen[factor.name]!r} is outside of the plan.\n"
                f"Expected one of {factor.spelled()}; or change the plan before the search."
            )
    return {
        f.name: f.values[0] if isinstance(f.values, tuple) and f.kind == "fixed" else chosen[f.name] for f in factors
    }


def with_values(factors: Sequence[Factor], name: str, values: tuple[Any, ...] | LogRange) -> list[Factor]:
    """The same plan with other values for one factor, for example the range that a range test has given."""
    if name not in [factor.name for factor in factors]:
        raise InputError(f"The plan has no factor {name!r}; it has {', '.join(factor.name for factor in factors)}.")
    return [replace(factor, values=values) if factor.name == name else factor for factor in factors]


def spelled(factors: Sequence[Factor]) -> dict[str, str]:
    """Every factor with its values as text: what must be the same for a search to be continued."""
    return {factor.name: factor.spelled() for factor in factors}


def plan_table(factors: Sequence[Factor]) -> str:
    """The plan as a table in Markdown, in the order scientific, nuisance, fixed."""
    rows = sorted(factors, key=lambda factor: KINDS.index(factor.kind))
    lines = [f"| {f.name} | {f.kind} | {f.spelled()} | {f.why} |" for f in rows]
    return "\n".join(["| factor | role | values | why |", "|---|---|---|---|", *lines])


def quasi_random(factors: Sequence[Factor], index: int, seed: int = 0) -> Settings:
    """Point number `index` of a sequence that fills the space evenly, for the factors that are searched.

    u_j = frac(s_j + (index + 1)·φ^(−j)), j = 1 … d, with φ^(d+1) = φ + 1 and the shift s from the seed.  No two points
    lie close together, so few of them say more than random ones; and a point depends on its number alone, so several
    processes can share the sequence without talking to each other.

    >>> plan = [Factor("lr", "nuisance", LogRange(0.001, 0.1)), Factor("skip", "scientific", ("none", "concat"))]
    >>> [quasi_random(plan, index)["skip"] for index in range(100)].count("none")
    49
    """
    plan = searched(factors)
    phi = 2.0
    for _ in range(60):  # the fixed point of φ = (1 + φ)^(1 / (d + 1))
        phi = (1 + phi) ** (1 / (len(plan) + 1))
    shift = np.random.default_rng(seed).random(len(plan))
    shares = (shift + (index + 1) * phi ** -np.arange(1.0, len(plan) + 1)) % 1
    return {factor.name: factor.at(float(share)) for factor, share in zip(plan, shares)}


def digest(settings: Mapping[str, Any], seed: int) -> str:
    """A short name for settings and seed, the same in every process.

    >>> digest({"a": 1, "b": "x"}, 0) == digest({"b": "x", "a": 1}, 0) != digest({"a": 1, "b": "x"}, 1)
    True
    """
    return hashlib.sha256(json.dumps([dict(sorted(settings.items())), seed]).encode()).hexdigest()[:12]
