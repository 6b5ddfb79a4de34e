"""The number of images from the last layer's bias: of all N, the one that makes the label counts whole numbers.

    -d_k / eta = U (p_k - lambda_k / N),     d = the bias's update, p = mean softmax in training, lambda = counts

Classes that the client does not hold, lambda_k = 0, tell U, and so N up to a batch; all counts are whole numbers, and
that tells N. The bias of a class that is not held falls with the speed eta p_k, so that along the way from w_t to w_c

    eta U = -d_k * mean of 1 / p_k,

a harmonic mean that needs to know neither when the client was where, nor N. p is that of dummy images, moved to where
the update says the features of the private images are. The gradients of the logits sum to 0 over the classes: what is
left of that sum is noise, which counts as an error of d.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.attack import DoesNotApplyError
from attacker.labels.dummies import NUM_DUMMIES, blobs
from attacker.labels.last_layer import features_and_logits, find_last_layer
from attacker.local_update import gradient_gain
from attacker.num_examples.class_sums import noise_of_last_layer
from attacker.num_examples.estimate import NumExamplesEstimate
from attacker.observation import Observation
from fl_sim.parameters import add, scale
from fl_sim.records import Algorithm, LocalTraining

MOST = 1000
# Simpson's rule.
_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
_WEIGHTS = (1 / 12, 4 / 12, 2 / 12, 4 / 12, 1 / 12)
# Tuned on clients 0 to 49 of the look-alike data. How far p of the dummies is from that of the private images: for each
# class by itself, and for all together; a part of it that is there without local steps, and a part that grows with the
# logarithm by which the training moved p.
_OWN_ERROR = (0.02, 0.2)
_COMMON_ERROR = (0.005, 0.02)
# Images that are visited late count for more or less than others.
_ERROR_OF_A_COUNT = 0.1
_SMALLEST_ERROR = 1e-3
_COMMON_STEPS = 11
# Misfits were below 1.5 for untrained networks; beyond this the model of the errors does not hold.
_WORST_MISFIT = 2.0
# Share of the classes that are not held: with fewer of them nothing tells U. Where the model of the errors did not
# hold, there were none; on untrained networks and with up to 300 images a seventh and more.
_NOT_HELD = 0.05
# Of an entry's deviation. Nearer to all of it, counts of 0 for all classes but one explain the noise best.
_DROWNED = 0.5
# Counts that are known no better than this cannot be told from any others.
_COARSEST = 0.25
_WIDEST = 0.5
_CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasPath:
    """What the update of the last layer's bias and the way from w_t to w_c say.

    Attributes:
        update: (K,), d.
        start: (K,), mean softmax at w_t.
        end: (K,), mean softmax at w_c; ``start`` again for a single step.
        inverse: (K,), mean of 1 / p along the way.
        noise: Standard deviation of what a defense left in an entry of ``update``; rounding without one.
    """

    update: Tensor
    start: Tensor
    end: Tensor
    inverse: Tensor
    noise: float

    @property
    def drift(self) -> float:
        """How far the training moved p: median absolute logarithm."""
        return float((self.start * self.inverse).log().abs().median())

    def softmax(self, num_steps: Tensor) -> Tensor:
        """Return the mean softmax over the local steps, (len(num_steps), K).

        The steps start from w_t and do not reach w_c: their mean is the left Riemann sum of the integral.
        """
        ahead = 0.5 * (1.0 / self.start - 1.0 / self.end)
        several = 1.0 / (self.inverse + ahead / num_steps[:, None])
        return torch.where(num_steps[:, None] == 1, self.start, several)


def num_examples_from_label_shares(
    observation: Observation, *, generator: torch.Generator, at_least: int = 1
) -> NumExamplesEstimate:
    """Take the likeliest N between ``at_least`` and 1000.

    Args:
        observation: The update; N_c is not looked at.
        generator: Draws dummy images from public facts.
        at_least: N that something else rules out below.

    Raises:
        DoesNotApplyError: If the last layer has no bias, if no N explains its update, or if too many do.
        NotGrantedError: If the recipe of local training is not granted.

    References:
        This project; the gradient of a logit: Zhao et al., iDLG, arXiv:2001.02610, 2020, Eq. 3.
    """
    recipe = observation.require_local_training()
    path = follow_bias(observation, generator=generator)
    if at_least > MOST:
        raise DoesNotApplyError(f"N_c is at least {at_least}, and label shares tell no more than {MOST}")
    candidates = range(at_least, MOST + 1)
    one_step = observation.algorithm is Algorithm.FEDSGD
    weights, misfits, errors, zeros = _posterior(path, candidates, recipe, one_step=one_step)
    best = int(weights.argmax())
    tail = (1.0 - _CONFIDENCE) / 2
    below = weights.cumsum(0)
    low, high = (candidates[min(int((below < part).sum()), len(candidates) - 1)] for part in (tail, 1.0 - tail))
    found = candidates[best]
    if not float(misfits[best]) < _WORST_MISFIT:
        raise DoesNotApplyError(
            f"no N_c explains the update of the last layer's bias: squared misfit {float(misfits[best]):.1f} of what "
            f"untrained networks leave, more than {_WORST_MISFIT:g}; a trained network or a defense does that"
        )
    if not one_step and not float(zeros[best]) >= _NOT_HELD * len(path.update):
        raise DoesNotApplyError(
            "the last layer's bias does not show classes that the client does not hold, and only they tell the number "
            "of local steps; a client with all classes, a trained network or a clipped update does that"
        )
    if not float(errors[best]) < _COARSEST or high - low > _WIDEST * found or high == MOST:
        raise DoesNotApplyError(f"the last layer's bias leaves N_c open: of all, {low} to {high} fit best")
    return NumExamplesEstimate(num_examples=found, low=low, high=high, method="label shares")


def follow_bias(observation: Observation, *, generator: torch.Generator) -> BiasPath:
    """Estimate the softmax of the private images on the way from w_t to w_c.

    Raises:
        DoesNotApplyError: If the model does not end in a fully connected layer with a bias, or entries of it
            have no update.
    """
    layer = find_last_layer(observation.model, observation.dataset.num_classes)
    if layer.bias is None:
        raise DoesNotApplyError("N_c from label shares needs a last layer with a bias")
    update, weight_update = (observation.delta[name].nan_to_num(0.0, 0.0, 0.0) for name in (layer.bias, layer.weight))
    if not bool(update.all()) or bool((update.abs() == update[0].abs()).all()):
        raise DoesNotApplyError(f"{layer.bias} has entries without an update, or signs only; a defense does that")
    noise = noise_of_last_layer(observation, layer)
    energy = float(update.square().sum())
    if not noise < _DROWNED * math.sqrt(energy / len(update)):
        raise DoesNotApplyError(f"{layer.bias} has an update that is mostly noise; a defense does that")
    # The mean feature over the training: the least-squares fit of one outer product to the weight's update.
    mean_feature = (update / energy) @ weight_update
    images = blobs(observation.dataset, NUM_DUMMIES, generator)
    one_step = _is_one_step(observation)
    at_start: Tensor | None = None
    softmaxes: list[Tensor] = []
    for place in _PLACES[:1] if one_step else _PLACES:
        parameters = add(observation.global_parameters, scale(observation.delta, place))
        features, logits = features_and_logits(observation, layer, parameters, images)
        dummies = features.mean(dim=0)
        at_start = dummies if at_start is None else at_start
        # Features grow while a client trains: on a straight line from the dummies' through the mean.
        private = mean_feature if one_step else torch.lerp(at_start, mean_feature, 2 * place)
        shifted = logits + parameters[layer.weight] @ (private - dummies)
        softmaxes.append(shifted.double().softmax(dim=1).mean(dim=0).clamp_min(1e-12))
    weights = (1.0,) if one_step else _WEIGHTS
    inverse = torch.stack([weight / p for weight, p in zip(weights, softmaxes, strict=True)]).sum(dim=0)
    return BiasPath(
        update=update.double(),
        start=softmaxes[0],
        end=softmaxes[-1],
        inverse=inverse,
        noise=noise,
    )


def _is_one_step(observation: Observation) -> bool:
    recipe = observation.require_local_training()
    return observation.algorithm is Algorithm.FEDSGD or (recipe.epochs == 1 and recipe.batch_size is None)


def _posterior(
    path: BiasPath, candidates: Sequence[int], recipe: LocalTraining, *, one_step: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for each N, its probability, its mean squared misfit, how well its counts are known, and how many are 0.

    A share lambda_k / N is a count over N, seen with an error. A finer lattice always fits better; it pays for that
    with a smaller probability of each of its points (the counts are taken to be geometric, with mean N / K).
    """
    device = path.update.device
    num = torch.tensor(candidates, dtype=torch.float64, device=device)
    steps = num.new_tensor([1 if one_step else recipe.steps(count) for count in candidates])
    gains = num.new_tensor([1.0 if one_step else gradient_gain(recipe, count) for count in candidates])
    length = recipe.learning_rate * steps * gains
    pull = path.update / length[:, None]
    softmax = path.softmax(steps)
    uneven = num.new_tensor([0.0 if one_step else _weight_variance(recipe, count) for count in candidates])
    drift = path.drift
    own, common = (constant + slope * drift for constant, slope in (_OWN_ERROR, _COMMON_ERROR))
    late = min(1.0, 5 * drift) * _ERROR_OF_A_COUNT
    mean_count = num / len(path.update)
    error = (num[:, None] * own * softmax).square() + (num * path.noise / length).square()[:, None]
    error = error + _SMALLEST_ERROR**2
    evidence: list[Tensor] = []
    misfits: list[Tensor] = []
    zeros: list[Tensor] = []
    for deviation in torch.linspace(-2.0, 2.0, _COMMON_STEPS).tolist():
        counts = num[:, None] * ((1.0 + deviation * common) * softmax + pull)
        nearest = counts.round().clamp_min(0.0)
        variance = error + nearest * uneven[:, None] + (late * nearest).square()
        misfit = (counts - nearest).square() / variance
        prior = nearest * (mean_count / (1 + mean_count)).log()[:, None] - (1 + mean_count).log()[:, None]
        likelihood = -0.5 * misfit - 0.5 * variance.log() + prior + num.log()[:, None]
        evidence.append(likelihood.sum(dim=1) - 0.5 * deviation**2 - num.log())
        misfits.append(misfit.mean(dim=1))
        zeros.append((nearest == 0).double().sum(dim=1))
    together = torch.stack(evidence)
    weights = together.logsumexp(dim=0).softmax(dim=0)
    likeliest = together.argmax(dim=0, keepdim=True)
    misfit, held_none = (torch.stack(found).gather(0, likeliest)[0] for found in (misfits, zeros))
    return weights, misfit, error.median(dim=1).values.sqrt(), held_none


def _weight_variance(recipe: LocalTraining, num_examples: int) -> float:
    """Return the relative variance of an image's weight in the update: in a short last batch it counts for more."""
    if recipe.batch_size is None:
        return 0.0
    batches = math.ceil(num_examples / recipe.batch_size)
    short = num_examples - (batches - 1) * recipe.batch_size
    usual = num_examples / (batches * recipe.batch_size)
    in_short = num_examples / (batches * short)
    share = short / num_examples
    return max(0.0, share * in_short**2 + (1.0 - share) * usual**2 - 1.0) / recipe.epochs
