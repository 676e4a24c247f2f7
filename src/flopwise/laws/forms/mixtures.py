"""Loss on one domain as a function of the shares of all domains in the training data.

Shares sum to 1, so a law in all of them would have a free direction; laws that are linear in shares leave the
last share out.
"""

from __future__ import annotations

from flopwise.errors import FlopwiseError
from flopwise.laws.forms.dense import EXPONENTS, FACTORS, FLOOR
from flopwise.laws.law import Law, Parameter, register

SHUKOR = "Shukor et al. 2025, arXiv 2507.09404"


def _terms(domains: int) -> range:
    if domains < 2:
        raise FlopwiseError(f"domains is {domains}, a mixture has at least 2")
    return range(1, domains + 1)


def _name(law: str, domains: int) -> str:
    return law if domains == 2 else f"{law}_{domains}"


def _shares(numbers: range) -> dict[str, str]:
    return {f"r{i}": f"share of domain {i} in the training data" for i in numbers}


def mixture_exponential(domains: int) -> Law:
    """Loss of one validation domain, exponential in shares; not registered: columns r1 to r(domains - 1).

    The paper's t_j and k with all shares are K = k exp(t_last) and t_j - t_last here.

    Raises:
        FlopwiseError: fewer than two domains.
    """
    _terms(domains)
    numbers = range(1, domains)
    return Law(
        name=_name("mixture_exponential", domains), regime="pretraining",
        formula="loss = E + K * exp(" + " + ".join(f"t{i} * r{i}" for i in numbers) + ")",
        parameters=(
            FLOOR, Parameter("K", (0.05, 5.0)),
            *(Parameter(f"t{i}", (-5.0, 1.0), log=False, bounds=(-60.0, 60.0)) for i in numbers),
        ),
        from_zero=tuple(f"r{i}" for i in numbers), units=_shares(numbers),
        source="Ye et al. 2024, arXiv 2403.16952, eq. 7", status="summary",
        needs=f"{2 * domains} mixtures or more, size and tokens alike; the last domain has the rest",
    )  # fmt: skip


def mixture_additive(domains: int) -> Law:
    """Loss at N and D with a floor that depends on the shares r1 to r(domains); not registered.

    Raises:
        FlopwiseError: fewer than two domains.
    """
    numbers = _terms(domains)
    return Law(
        name=_name("mixture_additive", domains), regime="pretraining",
        formula="loss = E + 1 / (" + " + ".join(f"C{i} * r{i}^g{i}" for i in numbers) + ") "
        "+ A / N^alpha + B / D^beta",
        parameters=(FLOOR, *FACTORS, *EXPONENTS, *_floor(numbers)),
        units=_shares(numbers), source=f"{SHUKOR}: the best mixture does not depend on N and D",
        status="summary", needs="several mixtures at several sizes and budgets; shares sum to 1, none is 0",
    )  # fmt: skip


def mixture_joint(domains: int) -> Law:
    """As `mixture_additive`, with the factors of N and D powers of sums over shares too; not registered.

    Raises:
        FlopwiseError: fewer than two domains.
    """
    numbers = _terms(domains)

    def factor(name: str) -> str:
        return f"({' + '.join(f'{name}{i} * r{i}' for i in numbers)})^g{name}"

    own = [
        p
        for name in "AB"
        for p in (
            *(Parameter(f"{name}{i}", (1.0, 300.0 * 3**i)) for i in numbers),
            Parameter(f"g{name}", (0.5, 2.0)),
        )
    ]
    return Law(
        name=_name("mixture_joint", domains), regime="pretraining",
        formula="loss = E + 1 / (" + " + ".join(f"C{i} * r{i}^g{i}" for i in numbers) + ") "
        f"+ {factor('A')} / N^alpha + {factor('B')} / D^beta",
        parameters=(FLOOR, *EXPONENTS, *_floor(numbers), *own),
        units=_shares(numbers), status="unverified",
        source=f"{SHUKOR}; the factors are from memory, and give the 37 parameters it counts for 8 domains",
        needs="many mixtures at several sizes and budgets; shares sum to 1, none is 0",
    )  # fmt: skip


def _floor(numbers: range) -> list[Parameter]:
    return [p for i in numbers for p in (Parameter(f"C{i}", (0.1, 10.0)), Parameter(f"g{i}", (0.1, 1.5)))]


MIXTURE_EXPONENTIAL = tuple(register(mixture_exponential(n)) for n in (2, 3, 5))
MIXTURE_ADDITIVE = tuple(register(mixture_additive(n)) for n in (2, 3))
MIXTURE_JOINT = register(mixture_joint(2))

BIMIX = register(
    Law(
        name="bimix", regime="pretraining", formula="loss = (E + A / S^alpha) / r^beta",
        parameters=(
            Parameter("E", (0.1, 10.0)), Parameter("A", (0.01, 100.0)), Parameter("alpha", (0.05, 2.0)),
            Parameter("beta", (0.005, 0.5)),
        ),
        units={"r": "share of the domain in the training data", "loss": "of the domain"},
        source="Ge et al. 2024 (BiMix), arXiv 2405.14908; its factors A B and C B are A and E here",
        status="checked",
        needs="three shares or more of the domain, each at several steps",
    )
)  # fmt: skip
