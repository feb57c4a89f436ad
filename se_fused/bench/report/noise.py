"""How large a change must be before it is more than noise: small-sample statistics, each with its source."""

import math
import statistics
from collections.abc import Sequence

from .records import Spread

__all__ = ["LEVEL", "Noise", "median_error", "student_quantile"]

LEVEL = 0.05
"""Chance that a run in which nothing changed shows any change at all, if noise were normal."""

# A normal distribution's median absolute deviation is 0.6745 of its standard deviation, and the estimate of the latter
# from the former has 37 % of the efficiency of the root mean square (Rousseeuw & Croux 1993, "Alternatives to the
# Median Absolute Deviation", JASA 88, p. 1273): n values tell as much as 0.37 n would.
_MAD = 1 / statistics.NormalDist().inv_cdf(0.75)
_MAD_EFFICIENCY = 0.37

FEWEST = 19
"""Controls below which there is no 95 % of anything: (19 + 1) * 0.95 is the 19th in order."""


def student_quantile(p: float, freedom: float) -> float:
    """Quantile of Student's t for p > 1/2.

    Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.5: four terms in 1 / freedom. Of the table's value
    it is within 1 % from 7 degrees on, at any p that is asked for here.
    """
    x = statistics.NormalDist().inv_cdf(p)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def median_error(seconds: Spread) -> float | None:
    """Standard error of the logarithm of a median of n calls; None for a single call, which tells nothing of it.

    1.25 / 1.35 * (q3 - q1) / sqrt(n): a normal sample's median has 1.25 times the error of its mean, and its quartiles
    lie 1.35 standard deviations apart (McGill, Tukey & Larsen 1978, "Variations of Box Plots", The American
    Statistician 32, p. 16). Their notch, 1.57 (q3 - q1) / sqrt(n), is 1.7 of these errors: a compromise for looking at
    two notches side by side. Two medians are compared here by their difference, so the errors are added in
    quadrature and the multiple is that of the level asked for.
    """
    if seconds.n < 2:
        return None
    return 1.25 / 1.35 * (seconds.q3 - seconds.q1) / math.sqrt(seconds.n) / seconds.median


class Noise:
    """The spread of what ought to be 0: logarithms of the controls' changes after the drift is taken off.

    Args:
        residuals: of the controls.
        judged: how many benchmarks are held against it, >= 1.

    Attributes:
        enough: whether there are controls enough to tell.
        threshold: logarithm that a change must exceed; infinite if not enough.
    """

    def __init__(self, residuals: Sequence[float], judged: int) -> None:
        self.count, self.enough = len(residuals), len(residuals) >= FEWEST
        self.threshold = math.inf
        if not self.enough:
            return
        sizes = sorted(map(abs, residuals))
        # A new value from the same source exceeds the k-th smallest of n with chance 1 - k / (n + 1), whatever the
        # distribution (Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World", section 2.2).
        ordered = sizes[min(math.ceil((len(sizes) + 1) * (1 - LEVEL)), len(sizes)) - 1]
        # That holds for one. For all that are judged together the level is shared (Bonferroni), which is further out
        # than the controls reach, so the normal's tail stands in, widened for a scale known from few.
        p = 1 - LEVEL / (2 * max(judged, 1))
        scale = _MAD * statistics.median(sizes)
        self.threshold = max(ordered, scale * student_quantile(p, _MAD_EFFICIENCY * (len(sizes) - 1)))
