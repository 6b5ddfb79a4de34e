"""Noise: how large it is in an entry of the observed mean gradient, and what that says about how to compare.

    update     sigma / (eta U)                            once a round
    step       sigma sqrt(sum_k c_k^2) / U                c_k: what a gradient of 1 in step k adds to the update / eta
    example    sigma sqrt(sum_k c_k^2 / m_k) / U          m_k: images of step k
    DP-SGD     sigma C sqrt(sum_k (c_k / m_k)^2) / U      noise on the sum over a batch

A mean over R rounds divides the variance by R. FedSGD has one step and sends its gradient: U = eta = 1 there.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from attacker.adaptation.link import Client, Follow, Link, Part
from attacker.gradient_clipping import GradientClipping
from fl_sim.parameters import Parameters
from fl_sim.records import Algorithm

_KNEE = 0.3
"""Where the likelihood of Laplace noise is rounded off, in its scales: optimisers need a derivative at zero."""


def gaussian_noise(link: Link) -> Part:
    """Return the part that knows the noise's level."""
    return _known_level(link, link.option("stddev") ** 2, is_laplace=False)


def laplace_noise(link: Link) -> Part:
    """Return the part that knows the noise's level, and its shape where single draws are seen."""
    is_seen_singly = link.acts_on_what_is_sent and link.client.num_rounds == 1
    return _known_level(link, 2.0 * link.option("scale") ** 2, is_laplace=is_seen_singly)


def dp_sgd(link: Link) -> Part:
    """Return the part that clips each example in the simulation, and knows the noise's level.

    Batches that are sampled (Poisson) are simulated as if they were dealt out, which is said in the remarks.
    """
    norm = float(link.defense.options.get("clip_norm", float("inf")))
    multiplier = link.option("noise_multiplier")
    if norm == float("inf"):
        return Part()
    variance = (multiplier * norm) ** 2 * _gain(link.client, per_example=2)
    sampled = link.defense.options.get("sampling") == "poisson"
    return Part(
        clipping=GradientClipping(example=norm),
        variance=_everywhere(link.observed, variance / link.client.num_rounds) if multiplier else {},
        done=f"dp_sgd (examples clipped to {norm:g}" + (", noise level known)" if multiplier else ")"),
        undone="dp_sgd: batches drawn at random are simulated as dealt out, since the draw is not seen" * sampled,
    )


def laplace_residuals(observed: Parameters, scale: float) -> Follow:
    """Return what makes a squared distance the negative log-likelihood of Laplace noise, rounded off at zero.

        s' = o + psi(s - o),    psi(r)^2 = 4 b d (sqrt(1 + (r / d)^2) - 1) -> 4 b |r|,    d = 0.3 b

    Divided by twice the variance 2 b^2, as Gaussian noise of the same level would be, that is |r| / b.

    Args:
        observed: O.
        scale: b of the noise, > 0.
    """
    knee = _KNEE * scale

    def bent(residual: Tensor) -> Tensor:
        # sqrt(1 + x^2) - 1 cancels at small x: the same as x^2 / (sqrt(1 + x^2) + 1).
        return residual * (4.0 / _KNEE / (1.0 + (1.0 + (residual / knee).square()).sqrt())).sqrt()

    return lambda simulated: {name: observed[name] + bent(own) for name, own in _residuals(simulated, observed)}


def weighted_residuals(observed: Parameters, variance: Mapping[str, float], model_error: float) -> Follow:
    """Return what weights each tensor's residual by ``1 / sqrt(sigma_l^2 + tau_l^2)``, the observed energy kept.

    tau_l^2 is what the simulation gets wrong by itself, since it does not know which image stood in which batch: a
    share of the tensor's own mean square.

    Args:
        observed: O.
        variance: sigma_l^2, by tensor.
        model_error: That share, > 0.
    """
    energies = {name: float(tensor.square().sum()) for name, tensor in observed.items()}
    levels = {
        name: variance.get(name, 0.0) + model_error * energies[name] / tensor.numel()
        for name, tensor in observed.items()
    }
    known = [name for name, level in levels.items() if level > 0]
    total = sum(energies[name] / levels[name] for name in known)
    kept = (sum(energies[name] for name in known) / total) ** 0.5 if total > 0 else 0.0
    weights = {name: kept / levels[name] ** 0.5 if name in known else 1.0 for name in observed}
    return lambda simulated: {
        name: observed[name] + weights[name] * own for name, own in _residuals(simulated, observed)
    }


def _residuals(simulated: Parameters, observed: Parameters) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor - observed[name]) for name, tensor in simulated.items())


def _known_level(link: Link, variance: float, *, is_laplace: bool) -> Part:
    if variance == 0:
        return Part()
    client, where = link.client, link.defense.where
    if link.acts_on_what_is_sent:
        in_gradient = variance / client.unit**2
    else:
        in_gradient = variance * _gain(client, per_example=1 if where == "example" else 0)
    return Part(
        variance=_everywhere(link.observed, in_gradient / client.num_rounds),
        is_laplace=is_laplace,
        done=f"{link.defense.name} (level known{', Laplace likelihood' * is_laplace})",
    )


def _gain(client: Client, *, per_example: int) -> float:
    """Return ``sum_k c_k^2 / m_k^p / U^2``, with p = ``per_example``."""
    recipe, num_examples = client.recipe, client.num_examples
    if client.algorithm is Algorithm.FEDSGD:
        return float(num_examples) ** -per_example
    size = recipe.batch_size or num_examples
    num_steps = recipe.steps(num_examples)
    sizes = [min(size, num_examples - start) for _ in range(recipe.epochs) for start in range(0, num_examples, size)]
    # A gradient in step k moves the weights in every later step by momentum as well: 1 + mu + ... + mu^(U - k - 1).
    reach = [sum(recipe.momentum**i for i in range(num_steps - step)) for step in range(num_steps)]
    return sum(c**2 / m**per_example for c, m in zip(reach, sizes, strict=True)) / num_steps**2


def _everywhere(observed: Parameters, variance: float) -> Mapping[str, float]:
    return dict.fromkeys(observed, variance)


def noise_energy(observed: Parameters, variance: Mapping[str, float]) -> float:
    """Return the expected squared norm of the noise in the entries that arrived; those that are zero carry none."""
    return sum(float(torch.count_nonzero(tensor)) * variance.get(name, 0.0) for name, tensor in observed.items())
