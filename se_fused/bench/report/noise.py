"""Thresholds above which a change is not noise: statistics of small samples, with their sources."""

import math
import statistics
from collections.abc import Sequence

from .records import Spread

__all__ = ["LEVEL", "Noise", "median_error", "student_quantile"]

LEVEL = 0.05
"""Probability that a run without any real change shows a change, assuming normal noise."""

# The median absolute deviation of a normal distribution is 0.6745 of its standard deviation. Estimating the standard
# deviation from it has 37 % of the efficiency of the root mean square (Rousseeuw & Croux 1993, "Alternatives to the
# Median Absolute Deviation", JASA 88, p. 1273): n values give the accuracy of 0.37 n values.
_MAD = 1 / statistics.NormalDist().inv_cdf(0.75)
_MAD_EFFICIENCY = 0.37

FEWEST = 19
"""Least number of controls with a 95 % quantile: for 19 values, it is the 19th in order, (19 + 1) * 0.95."""


def student_quantile(p: float, freedom: float) -> float:
    """Quantile of Student's t for p > 1/2.

    Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.5: four terms in 1 / freedom. From 7 degrees of
    freedom on, it is within 1 % of the tabulated value for every p used here.
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
    """Standard error of the logarithm of a median of n calls; None for a single call, whose error is unknown.

    1.25 / 1.35 * (q3 - q1) / sqrt(n): the median of a normal sample has 1.25 times the error of its mean, and its
    quartiles are 1.35 standard deviations apart (McGill, Tukey & Larsen 1978, "Variations of Box Plots", The American
    Statistician 32, p. 16). Their notch, 1.57 (q3 - q1) / sqrt(n), is 1.7 of these errors, a compromise for comparing
    two notches by eye. Here, two medians are compared by their difference: the errors are added in quadrature and
    multiplied by the factor of the requested level.
    """
    if seconds.n < 2:
        return None
    return 1.25 / 1.35 * (seconds.q3 - seconds.q1) / math.sqrt(seconds.n) / seconds.median


class Noise:
    """Noise threshold from the controls: the spread of the logarithms of their changes after subtracting the drift.

    Args:
        residuals: these logarithms, which would be 0 without noise.
        judged: number of benchmarks that are compared with the threshold, >= 1.

    Attributes:
        enough: whether there are enough controls.
        threshold: the logarithm that a change must exceed; infinite without enough controls.
    """

    def __init__(self, residuals: Sequence[float], judged: int) -> None:
        self.count, self.enough = len(residuals), len(residuals) >= FEWEST
        self.threshold = math.inf
        if not self.enough:
            return
        sizes = sorted(map(abs, residuals))
        # For any distribution, a new value exceeds the k-th smallest of n values with probability 1 - k / (n + 1)
        # (Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World", section 2.2).
        ordered = sizes[min(math.ceil((len(sizes) + 1) * (1 - LEVEL)), len(sizes)) - 1]
        # This is the threshold for a single benchmark. For several, the level is divided among them (Bonferroni). The
        # quantile is then beyond the largest control, so Student's t is used, with a scale estimated from few values.
        p = 1 - LEVEL / (2 * max(judged, 1))
        scale = _MAD * statistics.median(sizes)
        self.threshold = max(ordered, scale * student_quantile(p, _MAD_EFFICIENCY * (len(sizes) - 1)))
