"""How sure a fit is: the noise, and the covariance of the parameters that it leaves.

Two estimates, by how much evidence there is. With many independent pieces (runs, or clusters of them) the
covariance is the M-estimator's sandwich: the law's curvature, as the loss sees it, around the scatter of the
scores summed over clusters. It holds for noise that differs from point to point, for outliers, and for any
correlation within a cluster (Huber 1967; Liang and Zeger 1986), with scores enlarged by what the fit took
from them and the degrees of freedom that such a variance has (Bell and McCaffrey 2002). With few, that would
be a variance from a handful of squares; then the noise is taken as normal, split into a part between clusters
and one within (analysis of variance on the linearised law, Henderson 1953, method 3), and Student's t has the
degrees of freedom of the part between: with five trunks, three of whose freedoms the law uses up, two are
left, and intervals are wide because little is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwise.laws.law import Array

SANDWICH = 15
"""Independent pieces of evidence beyond the parameters from which on the sandwich is used."""
SHARE = 0.7
"""Half-width, in robust standard deviations, of the window that the density of residuals is counted in."""


@dataclass(frozen=True)
class Spread:
    """Covariance of the searched parameters and the scatter of single runs, with their degrees of freedom."""

    covariance: Array
    curvature: Array
    """Of the objective, smoothed [k, k]: what its profile would be if the law were linear."""
    between: float
    """Standard deviation between clusters, on the law's scale; 0 where none can be seen."""
    within: float
    dofs: Array
    """Degrees of freedom of each parameter's variance [k]; infinite for a likelihood of independent
    counts."""
    seen: bool
    """Whether noise between clusters could be told from the law itself."""
    how: str
    """"sandwich", "anova" or "likelihood"."""

    @property
    def dof(self) -> float:
        """Of predictions, which lean on all parameters: the middle one's."""
        return float(np.median(self.dofs))

    @property
    def scatter(self) -> float:
        """Standard deviation of a new run around the law."""
        return float(np.hypot(self.between, self.within))


def spread(J: Array, r: Array, clusters: Array | None, delta: float) -> Spread:
    """Noise and covariance, from residuals `r` [n] and derivatives `J` [n, k] of a fit.

    `clusters` [n]: which points share noise. `delta`: where the loss turns to absolute values.
    """
    n, k = J.shape
    if clusters is not None and len(np.unique(clusters)) == n:
        clusters = None
    pieces = n if clusters is None else len(np.unique(clusters))
    noise = _anova(J, r, clusters, delta)
    if pieces - k < SANDWICH:
        return noise
    sigma = robust_scale(r, k)
    soft = _density(r, delta, sigma)
    curvature = (J.T * soft) @ J
    inverse = invert(curvature)
    psi = np.clip(r, -delta, delta)
    if clusters is None:
        meat, dofs = _of_rows(J, psi, soft, inverse)
    else:
        meat, dofs = _of_clusters(J, psi, soft, inverse, clusters)
    covariance = _symmetric(inverse @ meat @ inverse)
    return Spread(covariance, curvature, noise.between, noise.within, dofs, True, "sandwich")


def _of_rows(J: Array, psi: Array, soft: Array, inverse: Array) -> tuple[Array, Array]:
    """`_of_clusters` where every row is a cluster of its own: MacKinnon and White's HC2."""
    n, k = J.shape
    X = J * np.sqrt(soft)[:, None]
    kept = np.maximum(1 - np.einsum("ni,ij,nj->n", X, inverse, X), 0.05)
    scores = J * (psi / np.sqrt(kept))[:, None]
    meat = scores.T @ scores
    V = X @ inverse / np.sqrt(kept)[:, None]
    return meat, np.array([_degrees(V[:, i] ** 2, X * V[:, i, None], inverse, n) for i in range(k)])


def _degrees(lengths: Array, moments: Array, inverse: Array, pieces: int) -> float:
    """Degrees of freedom of a variance, from `lengths` [g] and `moments` [g, k] of its clusters."""
    # Traces of B = diag(lengths) - moments inverse moments' and of its square, without making it [g, g].
    M = inverse @ (moments.T @ moments)
    along = np.einsum("gi,ij,gj->g", moments, inverse, moments)
    trace = float(lengths.sum() - np.trace(M))
    square = float((lengths**2).sum() - 2 * (lengths @ along) + np.trace(M @ M))
    return float(np.clip(trace**2 / max(square, 1e-300), 1.0, pieces))


def _of_clusters(J: Array, psi: Array, soft: Array, inverse: Array, clusters: Array) -> tuple[Array, Array]:
    """Scatter of the clusters' scores [k, k], and degrees of freedom of each parameter's variance [k].

    What the fit has taken from a cluster's residuals is given back, and the degrees of freedom are those of a
    chi square with the same mean and variance (Bell and McCaffrey 2002, CR2): few clusters that say much of a
    parameter count as few.
    """
    k = J.shape[1]
    meat = np.zeros((k, k))
    lengths, moments = [], []
    root = np.sqrt(soft)
    labels = np.unique(clusters, return_inverse=True)[1]
    for rows in np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1]):
        X = J[rows] * root[rows, None]
        # What the fit takes from a cluster lies in the span of its columns, of k dimensions at most.
        Q, R = np.linalg.qr(X)
        values, vectors = np.linalg.eigh(np.eye(len(R)) - R @ inverse @ R.T)
        more = (vectors * (1 / np.sqrt(np.maximum(values, 0.05)) - 1)) @ vectors.T
        s = J[rows].T @ (psi[rows] + Q @ (more @ (Q.T @ psi[rows])))
        meat += np.outer(s, s)
        v = (X + Q @ (more @ R)) @ inverse
        lengths.append((v**2).sum(axis=0))
        moments.append(X.T @ v)
    L, U = np.array(lengths), np.array(moments)  # [g, k], [g, k, k]: the last axis is the parameter
    return meat, np.array([_degrees(L[:, i], U[:, :, i], inverse, len(L)) for i in range(k)])


def from_likelihood(H: Array, scores: Array, clusters: Array | None, n: int) -> Spread:
    """Covariance of a maximum-likelihood fit from its second derivative `H` [k, k]; of clusters, the
    sandwich.

    `scores` [n, k]: derivatives of each row's minus log-likelihood.
    """
    inverse = invert(H)
    pieces = n if clusters is None else len(np.unique(clusters))
    if clusters is None or pieces == n:
        return Spread(inverse, H, 0.0, 0.0, np.full(len(H), np.inf), True, "likelihood")
    sums = np.stack([scores[clusters == g].sum(axis=0) for g in np.unique(clusters)])
    meat = sums.T @ sums * pieces / max(pieces - 1, 1)
    dofs = np.full(len(H), float(max(pieces - 1, 1)))
    return Spread(_symmetric(inverse @ meat @ inverse), H, 0.0, 0.0, dofs, True, "sandwich")


def _symmetric(covariance: Array) -> Array:
    """Without what rounding did to a nearly singular product."""
    out = (covariance + covariance.T) / 2
    np.fill_diagonal(out, np.maximum(np.diag(out), 0.0))
    return out


def robust_scale(r: Array, k: int) -> float:
    """Standard deviation of normal residuals from their median size, outliers left aside; k were fitted."""
    n = len(r)
    return 1.4826 * float(np.median(np.abs(r))) * float(np.sqrt(n / max(n - k, 1)))


def _density(r: Array, delta: float, sigma: float) -> Array:
    """Expected second derivative of the loss at each point [n].

    For squares it is 1. For Huber's loss it is the chance that a residual is inside delta. Where delta is far
    below the scatter hardly any point is: the share within a wider window says more, scaled to delta as for
    normal noise. Points outside the window have none (Powell 1991), so that noise may differ between points.
    """
    if delta == np.inf or sigma == 0:
        return np.ones(len(r))
    from flopwise.laws.quantiles import ndtr

    h = max(delta, SHARE * sigma)
    inside = (np.abs(r) <= h).astype(float)
    scale = (2 * ndtr(delta / sigma) - 1) / (2 * ndtr(h / sigma) - 1)
    return np.maximum(inside * float(scale), 1e-12)


def _anova(J: Array, r: Array, clusters: Array | None, delta: float) -> Spread:
    """Noise between and within clusters, taken as normal."""
    n, k = J.shape
    inverse = invert(J.T @ J, J)
    rss = float(r @ r)
    pooled = rss / max(n - k, 1)
    H = J.T @ J * inside(delta, float(np.sqrt(pooled)))
    whole = float(np.sqrt(pooled))
    if clusters is None:
        covariance = pooled * efficiency(delta, whole) * inverse
        return Spread(covariance, H, 0.0, whole, np.full(k, float(n - k)), True, "anova")
    labels = np.unique(clusters, return_inverse=True)[1]
    count = np.bincount(labels).astype(float)

    def sums(A: Array) -> Array:
        """Of each column of A [n, c], by cluster [c, G]."""
        return np.stack([np.bincount(labels, a) for a in A.T])

    # Directions in which clusters differ and the law is stiff; those it can follow say nothing of the noise.
    basis = _basis(J)
    shared = sums(basis)
    size2, v = np.linalg.eigh(np.diag(count) - shared.T @ shared)
    stiff = size2 > 0.1 * count.max()
    dof_b = int(stiff.sum())
    dof_w = n - basis.shape[1] - dof_b
    along = v.T @ (np.bincount(labels, r) - shared.T @ (basis.T @ r))
    between_ss = float((along[stiff] ** 2 / size2[stiff]).sum())
    ms_w = max(rss - between_ss, 0.0) / dof_w if dof_w else 0.0
    if dof_b == 0:
        covariance = pooled * efficiency(delta, whole) * inverse
        return Spread(covariance, H, 0.0, whole, np.full(k, float(n - k)), False, "anova")
    ms_b = between_ss / dof_b
    # Expected mean square between clusters: within + per * between.
    per = float(size2[stiff].mean())
    between = max(0.0, (ms_b - ms_w) / per)
    within = ms_w if between else pooled
    carried = inverse @ sums(J)
    covariance = within * efficiency(delta, np.sqrt(within)) * inverse + between * carried @ carried.T
    return Spread(
        covariance,
        H,
        float(np.sqrt(between)),
        float(np.sqrt(within)),
        np.full(k, float(dof_b)),
        True,
        "anova",
    )


def inside(delta: float, sigma: float) -> float:
    """The chance that normal noise of this size is inside delta: what Huber's loss curves on average."""
    from flopwise.laws.quantiles import ndtr

    return 1.0 if sigma == 0 or delta == np.inf else float(2 * ndtr(delta / sigma) - 1)


def efficiency(delta: float, sigma: float) -> float:
    """Variance of a Huber estimate over that of least squares under normal noise, from 1 to pi / 2.

    >>> round(efficiency(1e-9, 1.0), 3), round(efficiency(1.345, 1.0), 3), efficiency(float("inf"), 1.0)
    (1.571, 1.053, 1.0)
    """
    from flopwise.laws.quantiles import ndtr

    if sigma == 0 or delta / sigma > 10:
        return 1.0
    c = max(delta / sigma, 1e-6)
    within = 2 * ndtr(c) - 1
    density = np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
    return float((within - 2 * c * density + 2 * c**2 * ndtr(-c)) / within**2)


def invert(H: Array, J: Array | None = None) -> Array:
    """H^-1 with columns scaled alike; a direction the data do not see gets a huge variance, not none.

    `J` with J'J = H, where there is one, keeps twice the digits.
    """
    norms = np.sqrt(np.maximum(np.diag(H), 0.0)) if J is None else np.linalg.norm(J, axis=0)
    norms = np.where(norms > 1e-100 * norms.max(initial=0.0), norms, norms.max(initial=0.0) or 1.0)
    if J is None:
        values, vectors = np.linalg.eigh(np.nan_to_num(H / np.outer(norms, norms)))
        s2, vt = values, vectors.T
    else:
        _, s, vt = np.linalg.svd(J / norms, full_matrices=False)
        s2 = s**2
    # A floor of 1e-10 means a variance 1e10 times the best: "not identified", yet sums keep their digits.
    s2 = np.maximum(s2, 1e-10 * (s2.max() if s2.max() > 0 else 1.0))
    return (vt.T / s2) @ vt / np.outer(norms, norms)


def _basis(A: Array) -> Array:
    """Orthonormal basis of the columns' span."""
    u, s, _ = np.linalg.svd(A / max(float(np.linalg.norm(A, axis=0).max()), 1e-300), full_matrices=False)
    return u[:, s > 1e-8 * max(float(s.max()), 1e-3)]
