"""Densities over (log a, log b) of the noise level: a Gaussian mixture, or a kernel density where data are few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]

COMPONENTS_MAX = 4
OUTER_SHARE = 0.01  # of the points, dropped as outliers
FEW = 200  # points, below which every one is a component of its own
SMALLEST = 0.03  # deviation of a component along any direction, so that equal points stay a density
WIDTH = 0.5  # of the jitter, relative to Scott's rule
ROUNDS, CONVERGED = 200, 1e-5


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussian mixture in D dimensions; a kernel density is one of equal covariances."""

    weights: Array  # (N,), sum 1
    means: Array  # (N, D)
    covariances: Array  # (N, D, D), or (1, D, D) for all

    def draw(self, rng: np.random.Generator) -> Array:
        """One point (D,)."""
        index = min(int(np.searchsorted(np.cumsum(self.weights), rng.random())), len(self.weights) - 1)
        covariance = self.covariances[index % len(self.covariances)]
        return np.asarray(self.means[index] + np.linalg.cholesky(covariance) @ rng.standard_normal(len(covariance)))

    def log_density(self, points: Array) -> Array:
        """Logarithm of the density at points (M, D): (M,)."""
        return np.asarray(logsumexp(self.log_joint(points), axis=1))

    def log_joint(self, points: Array) -> Array:
        """Logarithm of weight times density of each component, (M, N)."""
        inverse = np.linalg.inv(np.linalg.cholesky(self.covariances))
        offset = points[:, None, :] - self.means[None]
        whitened = np.einsum("nij,mnj->mni", np.broadcast_to(inverse, (len(self.means), *inverse.shape[1:])), offset)
        log_norm = np.log(np.diagonal(inverse, axis1=1, axis2=2)).sum(1) - 0.5 * points.shape[1] * np.log(2 * np.pi)
        return np.asarray(np.log(self.weights) + log_norm - 0.5 * np.square(whitened).sum(2))


def fit_density(points: Array) -> Mixture:
    """A density of points (M, D): by BIC a mixture of 1 to 4 components, or a kernel density below 200 points.

    The outer 1 % by robust distance are dropped first. The same points give the same density.
    """
    kept = drop_outliers(np.asarray(points, dtype=np.float64))
    if len(points) < FEW:
        return kernel_density(kept)
    fits = [fit_mixture(kept, count) for count in range(1, COMPONENTS_MAX + 1)]
    return min(fits, key=lambda fit: criterion(fit, kept))


def drop_outliers(points: Array) -> Array:
    """Points (M, D) without the outer 1 %, judged by the distance from the median in median absolute deviations."""
    offset = points - np.median(points, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(offset), axis=0), SMALLEST)
    distance = np.square(offset / spread).sum(1)
    kept = len(points) - int(OUTER_SHARE * len(points))
    return points[np.sort(np.argsort(distance, kind="stable")[:kept])]


def kernel_density(points: Array) -> Mixture:
    """Every point with Gaussian jitter of half the width of Scott's rule (Multivariate Density Estimation, 1992).

    The rule is for one Gaussian; images whose noise is mostly signal-dependent and images whose noise is not are two.
    """
    count, dimension = points.shape
    factor = WIDTH**2 * count ** (-2.0 / (dimension + 4))
    covariance = np.cov(points.T) if count > dimension else np.zeros((dimension, dimension))
    covariance = factor * np.atleast_2d(covariance) + SMALLEST**2 * np.eye(dimension)
    return Mixture(np.full(count, 1 / count), points.copy(), covariance[None])


def fit_mixture(points: Array, count: int) -> Mixture:
    """Expectation maximisation, from a cut of the points into equal parts along their longest axis."""
    centred = points - points.mean(0)
    longest = np.linalg.svd(centred, full_matrices=False)[2][0]
    part = np.empty(len(points), dtype=int)
    part[np.argsort(centred @ longest, kind="stable")] = np.arange(len(points)) * count // len(points)
    mixture, before = maximise(points, np.eye(count)[part]), -np.inf
    for _ in range(ROUNDS):
        joint = mixture.log_joint(points)
        total = logsumexp(joint, axis=1)
        mixture = maximise(points, np.exp(joint - total[:, None]))
        if total.mean() - before < CONVERGED:
            break
        before = total.mean()
    return mixture


def maximise(points: Array, share: Array) -> Mixture:
    """The mixture that fits points (M, D) best, of which component n owns share[:, n]."""
    mass = share.sum(0) + 1e-9
    means = share.T @ points / mass[:, None]
    offset = points[:, None, :] - means[None]
    covariances = np.einsum("mn,mni,mnj->nij", share, offset, offset) / mass[:, None, None]
    return Mixture(mass / mass.sum(), means, covariances + SMALLEST**2 * np.eye(points.shape[1]))


def criterion(mixture: Mixture, points: Array) -> float:
    """Bayesian information criterion (Schwarz, 1978): less is better."""
    count, dimension = mixture.means.shape
    parameters = count * (1 + dimension + dimension * (dimension + 1) // 2) - 1
    return float(parameters * np.log(len(points)) - 2 * mixture.log_density(points).sum())
