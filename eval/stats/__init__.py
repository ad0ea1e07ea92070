"""Statistics for answers that come in clusters: several questions about one video.

Every number here takes the video, not the question, as the unit that was sampled:

* `means`: means, paired tests, Holm's correction
* `hierarchy`: the same over several training runs
* `debias`: judge verdicts put right with gold labels (`prediction_powered` does the arithmetic)
* `gold_plan`: how many gold labels an interval needs
* `power`: the smallest difference a set can show
* `agreement`: Cohen's kappa, Krippendorff's alpha
* `length`: figures at equal length
"""

from eval.stats.agreement import Agreement, cohen_kappa, krippendorff_alpha
from eval.stats.debias import Debiased, debiased_difference, debiased_mean
from eval.stats.gold_plan import GoldPlan, Spread, expected_half_width, gold_needed
from eval.stats.hierarchy import SeedEstimate, hierarchical_difference, hierarchical_mean, sign_flip_over_seeds
from eval.stats.length import LengthSensitivity, length_sensitivity
from eval.stats.means import (
    LEVEL,
    Estimate,
    Paired,
    cluster_mean,
    holm,
    jsonable,
    paired_test,
    student_quantile,
    unanimous_width,
    vector,
)
from eval.stats.power import planned_difference, smallest_difference

__all__ = [
    "LEVEL",
    "Agreement",
    "Debiased",
    "Estimate",
    "GoldPlan",
    "LengthSensitivity",
    "Paired",
    "SeedEstimate",
    "Spread",
    "cluster_mean",
    "cohen_kappa",
    "debiased_difference",
    "debiased_mean",
    "expected_half_width",
    "gold_needed",
    "hierarchical_difference",
    "hierarchical_mean",
    "holm",
    "jsonable",
    "krippendorff_alpha",
    "length_sensitivity",
    "paired_test",
    "planned_difference",
    "sign_flip_over_seeds",
    "smallest_difference",
    "student_quantile",
    "unanimous_width",
    "vector",
]
