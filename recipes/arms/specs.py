"""What each arm is. An arm's name says everything: a training scheme and suffixes.

base                  nothing
sft_chosen            supervised training on the chosen answers
dpo                   one run of DPO
dpo_expo              that same run, then one extrapolation chosen on validation
dpo_matched           one run at a learning rate that ends as far from the base as `iter_w2s`
dpo_on_policy         one run; rejected answers are the base's own
iter                  rounds of DPO, alpha 0
iter_w2s              rounds of DPO, each with an extrapolation chosen on validation
iter_on_policy        as iter; before each round rejected answers are sampled from the model as it is then
iter_w2s_on_policy    as that, with extrapolation

+sft       with the SFT term (weight `sft_weight`, 0.2 if that is 0)
+visual    pairs by the judges that look at the video alone; no ground truth
"""

from __future__ import annotations

from dataclasses import dataclass

from dataset_builder.errors import KitError

# scheme: (rounds, extrapolates, pairs, relative cost of a step)
SCHEMES = {
    "base": (0, False, "fixed", 0.0),
    "sft_chosen": (1, False, "fixed", 0.5),
    "dpo": (1, False, "fixed", 1.0),
    "dpo_expo": (1, True, "fixed", 0.5),
    "dpo_matched": (1, False, "fixed", 1.5),
    "dpo_on_policy": (1, False, "on_policy", 1.6),
    "iter": (None, False, "fixed", 1.2),
    "iter_w2s": (None, True, "fixed", 1.6),
    "iter_on_policy": (None, False, "on_policy", 2.0),
    "iter_w2s_on_policy": (None, True, "on_policy", 2.4),
}
SUFFIXES = ("sft", "visual")
CONTROLS = ("base", "sft_chosen")
DEFAULT_ARMS = ("base", "sft_chosen", "dpo", "dpo_expo", "iter", "iter_w2s")
SFT_WEIGHT = 0.2


@dataclass(frozen=True)
class Arm:
    """A compared training variant.

    Attributes:
        name: with suffixes.
        scheme: key of ``SCHEMES``.
        sft: with the SFT term.
        visual: pairs without ground truth.
    """

    name: str
    scheme: str
    sft: bool
    visual: bool

    @property
    def iterates(self) -> bool:
        """Whether it has rounds."""
        return SCHEMES[self.scheme][0] is None

    @property
    def extrapolates(self) -> bool:
        """Whether it chooses alphas."""
        return SCHEMES[self.scheme][1]

    @property
    def pairs(self) -> str:
        """``fixed`` or ``on_policy``."""
        return SCHEMES[self.scheme][2]

    @property
    def cost(self) -> float:
        """Time of one of its steps, a DPO step being 1."""
        return SCHEMES[self.scheme][3]

    @property
    def searched(self) -> bool:
        """Whether it has a learning-rate search of its own."""
        return self.scheme not in ("base", "dpo_expo", "dpo_matched")

    def sibling(self, scheme: str) -> str:
        """Name of the arm of another scheme with the same suffixes."""
        return scheme + self.name[len(self.scheme) :]


def parse_arm(name: str) -> Arm:
    """The arm of a name.

    Raises:
        KitError: for a name that means nothing.
    """
    scheme, *suffixes = name.split("+")
    wrong = [s for s in suffixes if s not in SUFFIXES]
    if scheme not in SCHEMES or wrong or suffixes != sorted(set(suffixes)):
        raise KitError(
            f"arm_names: {name!r} is not an arm; there are {', '.join(SCHEMES)}, with +sft, +visual or +sft+visual"
        )
    if (scheme == "base" and suffixes) or (scheme == "sft_chosen" and "sft" in suffixes):
        raise KitError(f"arm_names: {name!r}: {scheme} has no such variant")
    return Arm(name, scheme, "sft" in suffixes, "visual" in suffixes)


def parse_arms(names: list[str] | tuple[str, ...]) -> list[Arm]:
    """Arms in the order given; base is always the first.

    Raises:
        KitError: for an unknown name, or an arm without the one it is derived from.
    """
    arms = [parse_arm(name) for name in dict.fromkeys(["base", *names])]
    known = {arm.name for arm in arms}
    for arm in arms:
        for scheme in {"dpo_expo": ("dpo",), "dpo_matched": ("dpo", "iter_w2s")}.get(arm.scheme, ()):
            if arm.sibling(scheme) not in known:
                raise KitError(f"arm_names: {arm.name} is derived from {arm.sibling(scheme)}, which is missing")
    return arms
