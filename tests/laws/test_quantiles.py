"""Quantiles made without scipy are scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from flopwise.laws.quantiles import ndtr, ndtri, stdtrit


@pytest.mark.parametrize("dof", [1.0, 2.0, 3.3, 5.0, 12.5, 30.0, 235.0, 1e4])
@pytest.mark.parametrize("p", [0.005, 0.3, 0.5, 0.75, 0.9, 0.975, 0.995])
def test_students_t(dof, p):
    assert stdtrit(dof, p) == pytest.approx(float(special.stdtrit(dof, p)), rel=1e-6, abs=1e-9)


def test_the_normal():
    x = np.linspace(-5, 5, 21)
    assert [ndtr(v) for v in x] == pytest.approx(special.ndtr(x).tolist(), rel=1e-12)
    p = np.linspace(0.001, 0.999, 21)
    assert [ndtri(v) for v in p] == pytest.approx(special.ndtri(p).tolist(), rel=1e-8, abs=1e-12)
    assert stdtrit(np.inf, 0.975) == pytest.approx(1.959964, rel=1e-6)
