"""The attacks that the tables compare, under the names of the FedAvg-leakage paper."""

from dataclasses import dataclass, field, replace
from typing import Any

from attacker.label_scores import FREQUENCIES
from fl_sim.records import LocalTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One column of a table.

    Attributes:
        title: What stands above the column.
        attack: A name of ATTACKS.
        options: Its hyper-parameters, as far as they are not the defaults.
        gradients_per_image: Relative cost of following one image through one epoch; for the time left.
        one_epoch: The method that this one equals for E = 1, so that it is not measured twice; ``None`` for itself.
        once: Whether the images are followed once instead of in every epoch.
        sees_batches: Whether the split into batches makes a difference.
        revision: Counted up when the attack's defaults change, so that what was measured before does not count.
    """

    title: str
    attack: str = "fedavg_leakage"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    gradients_per_image: float = 1.0
    one_epoch: str | None = None
    once: bool = False
    sees_batches: bool = True
    revision: int = 1

    def cost(self, recipe: LocalTraining, num_images: int) -> float:
        """Return the cost of one optimisation step, in images followed through an epoch of mini-batches."""
        return self.gradients_per_image * num_images * (1 if self.once else recipe.epochs)

    def with_options(self, **options: Any) -> "Method":
        """Return the method with further hyper-parameters."""
        return replace(self, options={**self.options, **options})


# A full-batch gradient of 50 images costs about 0.65 of ten gradients of 5: fewer passes over the weights.
_FULL_BATCH = 0.65

FEDAVG_METHODS: dict[str, Method] = {
    "ours_prior": Method(title="per-epoch images, prior"),
    "ours_no_prior": Method(title="per-epoch images, no prior", options={"epoch_order": 0.0}, one_epoch="ours_prior"),
    "shared": Method(title="Shared", options={"variables": "shared"}, one_epoch="ours_prior"),
    "fedsgd_epoch": Method(
        title="FedSGD-Epoch",
        options={"variables": "shared", "simulation": "fedsgd_epoch"},
        gradients_per_image=_FULL_BATCH,
        sees_batches=False,
        one_epoch="fedsgd",
    ),
    "fedsgd": Method(
        title="FedSGD",
        options={"variables": "shared", "simulation": "fedsgd"},
        gradients_per_image=_FULL_BATCH,
        once=True,
        sees_batches=False,
    ),
    "fedsgd_epoch_copies": Method(
        title="FedSGD-Epoch, per-epoch images",
        options={"simulation": "fedsgd_epoch"},
        gradients_per_image=_FULL_BATCH,
        sees_batches=False,
        one_epoch="fedsgd",
    ),
    # Five full-batch gradients for ten epochs, or three, in two fifths of the steps; the prior in every step.
    "feature_span": Method(
        title="feature span (this project)", attack="feature_span", revision=3, gradients_per_image=0.2
    ),
    "feature_span_quick": Method(
        title="feature span, quick (this project)", attack="feature_span_quick", gradients_per_image=0.15
    ),
}

# Table 3 has all of them with the paper's label recovery; this one with the best there is.
RECOVERING_METHODS: dict[str, Method] = {
    **FEDAVG_METHODS,
    "feature_span_own_labels": replace(
        FEDAVG_METHODS["feature_span"],
        title="feature span, own label recovery (this project)",
        options={"label_recovery": "automatic"},
    ),
}

PAPER_METHODS = ("ours_prior", "ours_no_prior", "shared", "fedsgd_epoch", "fedsgd")

LABEL_METHODS: dict[str, Method] = {
    "interpolated": Method(title="interpolated (the paper's)", attack="interpolated"),
    "geng_server": Method(title="Geng at the server's weights", attack="geng_server"),
    "geng_client": Method(title="Geng at the client's weights", attack="geng_client"),
    "bias_gradient": Method(title="bias gradient (this project)", attack="bias_gradient"),
    "frequencies": Method(title="guess: class frequencies of the rest of the data", attack=FREQUENCIES),
}

# Table 4: the weights of the released scripts, FEMNIST and CIFAR100.
_PRIOR_WEIGHTS = {
    "mean l1": (250.846, 15.708),
    "conv + mean l1": (263.623, 16.206),
    "max l1": (77.298, 4.848),
    "conv + max l1": (81.365, 5.0),
    "mean l2": (1000.0, 62.675),
    "conv + mean l2": (1054.413, 65.573),
    "max l2": (92.378, 5.814),
    "conv + max l2": (97.776, 6.075),
}
# What the scripts use everywhere else: given no options, so that one measurement serves all tables.
_STANDARD_PRIOR = {"femnist": "mean l2", "cifar100": "conv + max l2"}


def epoch_priors(paper_data: str) -> dict[str, Method]:
    """Return the eight epoch order-invariant priors of Table 4.

    Args:
        paper_data: ``"femnist"`` or ``"cifar100"``: the weights differ.
    """
    column = ("femnist", "cifar100").index(paper_data)
    return {
        name: Method(title=name)
        if name == _STANDARD_PRIOR[paper_data]
        else Method(
            title=name,
            options={
                "epoch_aggregate": name.split()[-2],
                "epoch_norm": name.split()[-1],
                "epoch_filters": name.startswith("conv"),
                "epoch_order": weights[column],
            },
        )
        for name, weights in _PRIOR_WEIGHTS.items()
    }
