"""A Gaussian process over a pool, in NumPy: what is expected of configurations that were not timed yet.

    k(a, b) = s^2 (1 + r + r^2/3) exp(-r),   r = sqrt(5 sum_i ((a_i - b_i) / l_i)^2)    Matern-5/2, a length a column

Lengths, s and the noise are those of highest posterior density, by Adam on the analytic gradient; their prior is
log-normal with lengths that grow with the root of the number of columns (Hvarfner, Hellsten, Nardi 2024, "Vanilla
Bayesian optimization performs great in high dimensions"). The posterior over the pool grows by one row of the Cholesky
factor a trial, so a step costs trials x pool multiplications.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weft.autotune.space.encoding import Matrix

Vector = NDArray[np.float64]
_ROOT5 = 5.0**0.5
_JITTER = 1e-6
_LENGTH, _NOISE = 0.5, 0.05
"""Prior medians: of a length, for one column whose values span 1; of the noise, for targets of deviation 1."""
_SPREAD = 0.75  # of the logarithm of a length
_STEPS, _RATE = 15, 0.1


class Kernel:
    """The covariance and the noise; `theta` is log lengths, log s^2, log noise."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.theta = np.concatenate([np.full(columns, np.log(_LENGTH * np.sqrt(columns))), [0.0, np.log(_NOISE)]])
        self.prior = self.theta.copy()
        self.spread = np.concatenate([np.full(columns, _SPREAD), [1.0, 1.0]])

    @property
    def variance(self) -> float:
        return float(np.exp(self.theta[-2]))

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return float(np.exp(2 * self.theta[-1])) + _JITTER

    def __call__(self, a: Matrix, b: Matrix) -> Matrix:
        """[len(a), len(b)]"""
        scale = np.exp(-self.theta[: self.columns])
        a, b = a * scale, b * scale
        square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
        r = _ROOT5 * np.sqrt(np.maximum(square, 0.0))
        return self.variance * (1 + r + r * r / 3) * np.exp(-r)

    def fit(self, x: Matrix, y: Vector, steps: int = _STEPS) -> None:
        """Move theta uphill from where it is; x: [n, columns], y: [n] of mean 0 and deviation 1."""
        apart = (x[:, None] - x[None]) ** 2
        first, second = np.zeros_like(self.theta), np.zeros_like(self.theta)
        best = (np.inf, self.theta.copy())
        for step in range(1, steps + 1):
            try:
                loss, slope = self._loss(apart, y)
            except np.linalg.LinAlgError:
                break
            if loss < best[0]:
                best = (loss, self.theta.copy())
            first = 0.8 * first + 0.2 * slope
            second = 0.9 * second + 0.1 * slope * slope
            move = (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.9**step)) + 1e-8)
            self.theta = np.clip(self.theta - _RATE * move, -5.0, 4.0)
        self.theta = best[1]

    def _loss(self, apart: NDArray[np.float64], y: Vector) -> tuple[float, Vector]:
        """Negative log posterior of theta and its gradient. apart: [n, n, columns] squared differences."""
        n, d = len(y), self.columns
        weight = np.exp(-2 * self.theta[:d])
        r = _ROOT5 * np.sqrt(apart @ weight)
        decay = self.variance * np.exp(-r)
        clean = (1 + r + r * r / 3) * decay
        noise = np.exp(2 * self.theta[d + 1])
        full = clean + (noise + _JITTER) * np.eye(n)
        lower = np.linalg.cholesky(full)
        inverse = np.linalg.inv(full)
        alpha = inverse @ y
        off = (self.theta - self.prior) / self.spread
        loss = 0.5 * y @ alpha + np.log(np.diag(lower)).sum() + 0.5 * off @ off
        pull = inverse - np.outer(alpha, alpha)  # d loss / d covariance, twice
        slope = np.empty_like(self.theta)
        slope[:d] = 0.5 * (5 / 3) * weight * np.tensordot((1 + r) * decay * pull, apart, axes=2)
        slope[d] = 0.5 * (pull * clean).sum()
        slope[d + 1] = np.trace(pull) * noise
        return float(loss), slope + off / self.spread


class Posterior:
    """Mean and deviation at every candidate, after observations that may be added one by one."""

    def __init__(self, kernel: Kernel, candidates: Matrix, seen: Matrix, room: int) -> None:
        """candidates: [m, columns]; seen: [n, columns], where was observed; room: for how many more."""
        self.kernel, self.candidates, self.n = kernel, candidates, len(seen)
        n, most = self.n, self.n + room
        self.seen = np.concatenate([seen, np.empty((room, seen.shape[1]))])
        self.inverse = np.zeros((most, most))  # of the lower Cholesky factor
        self.inverse[:n, :n] = np.linalg.inv(np.linalg.cholesky(kernel(seen, seen) + kernel.noise * np.eye(n)))
        self.v = np.empty((most, len(candidates)))  # inverse @ covariance(seen, candidates)
        self.v[:n] = self.inverse[:n, :n] @ kernel(seen, candidates)
        self.variance = kernel.variance - (self.v[:n] ** 2).sum(0)

    def add(self, point: Vector) -> None:
        """Observe at one more point, [columns]."""
        n, point = self.n, point[None]
        left = self.inverse[:n, :n] @ self.kernel(self.seen[:n], point)[:, 0]
        pivot = np.sqrt(max(self.kernel.variance + self.kernel.noise - left @ left, self.kernel.noise))
        self.inverse[n, :n] = -(left @ self.inverse[:n, :n]) / pivot
        self.inverse[n, n] = 1 / pivot
        self.v[n] = (self.kernel(point, self.candidates)[0] - left @ self.v[:n]) / pivot
        self.variance -= self.v[n] ** 2
        self.seen[n] = point
        self.n = n + 1

    def drop(self) -> None:
        """Forget the point added last."""
        self.n -= 1
        self.inverse[self.n] = 0.0
        self.variance += self.v[self.n] ** 2

    @property
    def full(self) -> bool:
        """Whether there is no room for another point."""
        return self.n == len(self.seen)

    def mean(self, y: Vector) -> Vector:
        """At every candidate; y: [n], what was observed, in the order of the points."""
        return (self.inverse[: self.n, : self.n] @ y) @ self.v[: self.n]

    def mean_at(self, y: Vector, point: Vector) -> float:
        """At one point, [columns]."""
        weights = self.inverse[: self.n, : self.n].T @ (self.inverse[: self.n, : self.n] @ y)
        return float(self.kernel(point[None], self.seen[: self.n])[0] @ weights)

    def deviation(self) -> Vector:
        """At every candidate."""
        return np.sqrt(np.maximum(self.variance, 1e-10))


def expected_improvement(mean: Vector, deviation: Vector, best: float) -> Vector:
    """E[max(best - f, 0)] of f ~ N(mean, deviation^2) (Jones, Schonlau, Welch 1998, eq. 15)."""
    u = (best - mean) / deviation
    return deviation * (u * normal_cdf(u) + np.exp(-u * u / 2) / np.sqrt(2 * np.pi))


def normal_cdf(z: Vector) -> Vector:
    """P(N(0, 1) <= z) to 7.5e-8 (Abramowitz and Stegun, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    upper = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * poly
    return np.where(z >= 0, 1 - upper, upper)
