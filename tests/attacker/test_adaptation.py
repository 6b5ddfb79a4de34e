"""The attacker who knows the defenses: exact at the truth, at the right noise level, and plain about what it cannot."""

import re
from dataclasses import replace

import pytest
import torch
from defended_clients import DATASET, LABELS, declared, defended, naive
from small_problems import mlp, pictures
from torch import Tensor

from attacker.adaptation import FOLLOWED, adaptation
from attacker.adaptation.link import Client
from attacker.adaptation.soteria import defended_layer
from attacker.analytic import AnalyticFullyConnected
from attacker.inversion_problem import InversionProblem, inversion_problem
from attacker.observation import Observation
from attacker.recipes.inverting_gradients import InvertingGradients
from clients.defenses import DEFENSES, Soteria
from fl_sim.datasets import DATASETS
from fl_sim.models import MODELS
from fl_sim.parameters import flatten, subtract
from fl_sim.records import DeclaredDefense, LocalTraining

IMAGES = pictures(2)
RECIPE = LocalTraining(epochs=2, learning_rate=0.05)
SINGLE_IMAGES = LocalTraining(epochs=2, batch_size=1, learning_rate=0.05, momentum=0.5, order="static")


def problem_of(observation: Observation) -> InversionProblem:
    return inversion_problem(observation, "automatic", torch.Generator().manual_seed(0))


def at_truth(problem: InversionProblem) -> dict[str, Tensor]:
    """Return what the attack makes of the private images themselves, in the client's order."""
    problem = replace(problem, labels=LABELS)
    return problem.simulate(IMAGES, "full")


def unexplained(observation: Observation) -> float:
    """Return the share of the observed energy that the attack cannot explain with the private images themselves."""
    problem = problem_of(observation)
    residual = flatten(subtract(at_truth(problem), problem.observed))
    return float(residual.square().sum() / flatten(problem.observed).square().sum())


PRUNING = declared("random_pruning", probability=0.5)
CLIPPING = declared("clipping", clip_norm=0.05)
TOP_K = declared("top_k", share=0.2, where="update")
QUANTISATION = declared("quantisation", bits=3)


@pytest.mark.parametrize("recipe", [None, RECIPE], ids=["fedsgd", "fedavg"])
@pytest.mark.parametrize(
    "defenses",
    [
        (PRUNING,),
        (declared("magnitude_pruning", share=0.7),),
        (TOP_K,),
        (CLIPPING,),
        (CLIPPING, PRUNING),
        (TOP_K, CLIPPING),
        (QUANTISATION,),
        (CLIPPING, QUANTISATION),
        (QUANTISATION, declared("top_k", share=0.1)),
        (PRUNING, QUANTISATION),
        (declared("clipping", clip_norm=0.05, where="step"),),
        (declared("clipping", clip_norm=0.05, where="example"),),
        (declared("dp_sgd", clip_norm=0.05, noise_multiplier=0.0),),
    ],
    ids=lambda defenses: "+".join(f"{defense.name}-{defense.where}" for defense in defenses),
)
def test_the_truth_explains_what_was_sent(defenses, recipe) -> None:
    observation = defended(*defenses, recipe=recipe)
    assert unexplained(observation) < 1e-8
    assert unexplained(naive(observation)) > 0.01


def test_signs_agree_at_the_truth_but_for_entries_near_zero() -> None:
    observation = defended(declared("sign"))
    assert unexplained(observation) < 2e-3
    assert unexplained(naive(observation)) > 0.1


def test_clipped_steps_follow_one_another_as_at_the_client() -> None:
    for where in ("step", "example"):
        observation = defended(declared("clipping", clip_norm=0.3, where=where), recipe=SINGLE_IMAGES)
        assert unexplained(observation) < 1e-8
        assert unexplained(naive(observation)) > 0.01


def test_soteria_is_left_out_and_the_rest_is_exact() -> None:
    observation = defended(declared("soteria", pruned_percent=80))
    problem = problem_of(observation)
    assert problem.is_muted("5.weight")
    assert not problem.observed["5.weight"].any()
    assert unexplained(observation) < 1e-8
    assert unexplained(naive(observation)) > 0.01


@pytest.mark.parametrize("model", ["mlp", "lenet", "convnet", "femnist_cnn"])
def test_attacker_and_client_agree_on_the_layer_of_soteria(model) -> None:
    built = MODELS[model](dataset=DATASETS["digits"]().spec, generator=torch.Generator())
    defended_here = Soteria(pruned_percent=50)._find_layer(built)
    assert built.get_submodule(str(defended_layer(built, None))) is defended_here


@pytest.mark.parametrize("recipe", [None, RECIPE, SINGLE_IMAGES], ids=["fedsgd", "fedavg", "momentum"])
@pytest.mark.parametrize(
    "defense",
    [
        *(declared("gaussian_noise", stddev=1e-3, where=where) for where in ("update", "step", "example")),
        declared("laplace_noise", scale=1e-3),
        declared("dp_sgd", clip_norm=1e-3, noise_multiplier=1.0),
    ],
    ids=lambda defense: f"{defense.name}-{defense.where}",
)
def test_the_noise_level_is_that_of_the_client(defense, recipe) -> None:
    silent = {"stddev": 1e-9, "scale": 1e-9, "noise_multiplier": 1e-9}
    options = {name: silent.get(name, value) for name, value in defense.options.items()}
    noisy = problem_of(defended(defense, recipe=recipe))
    clean = problem_of(defended(replace(defense, options=options), recipe=recipe))
    noise = flatten(subtract(noisy.observed, clean.observed))
    assert noisy.noise_variance("1.weight") == pytest.approx(float(noise.square().mean()), rel=0.1)
    assert 0 < noisy.trust < clean.trust <= 1


def test_quantisation_is_noise_of_about_the_stated_level() -> None:
    noisy, clean = problem_of(defended(declared("quantisation", bits=4))), problem_of(defended())
    for name in ("1.weight", "5.weight", "7.weight"):
        noise = noisy.observed[name] - clean.observed[name]
        assert noisy.noise_variance(name) == pytest.approx(float(noise.square().mean()), rel=0.5)


def test_laplace_noise_is_compared_by_its_likelihood() -> None:
    scale = 0.2
    observation = defended(declared("laplace_noise", scale=scale))
    problem = problem_of(observation)
    residual = flatten(subtract(at_truth(problem_of(naive(observation))), problem.observed))
    bent = flatten(subtract(at_truth(problem), problem.observed))
    knee = 0.3 * scale
    expected = 4 * scale * knee * ((1 + (residual / knee).square()).sqrt() - 1)
    torch.testing.assert_close(bent.square(), expected, rtol=1e-3, atol=1e-6)


def test_what_follows_a_defense_is_differentiated() -> None:
    inside = declared("clipping", clip_norm=0.3, where="example")
    for defenses in ((CLIPPING, PRUNING), (inside, declared("laplace_noise", scale=0.01)), (QUANTISATION,)):
        problem = problem_of(defended(*defenses, recipe=RECIPE))
        problem = replace(
            problem,
            model=problem.model.double(),
            parameters={name: tensor.double() for name, tensor in problem.parameters.items()},
            buffers={name: tensor.double() for name, tensor in problem.buffers.items()},
        )

        def update(images: Tensor, problem: InversionProblem = problem) -> tuple[Tensor, ...]:
            return tuple(tensor[:3] for tensor in problem.simulate(images, "full").values())

        assert torch.autograd.gradcheck(update, pictures(2, seed=3).double().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("defenses", "remark"),
    [
        ((PRUNING, declared("gaussian_noise", stddev=0.1)), "does not follow random_pruning: .* hidden by gaussian"),
        ((declared("sign"), declared("laplace_noise", scale=0.1)), "does not follow sign: signs are hidden by laplace"),
        ((QUANTISATION, CLIPPING), "does not follow quantisation: its levels are hidden by clipping"),
        ((QUANTISATION, PRUNING), "does not follow quantisation: its levels are hidden by random_pruning"),
        ((replace(PRUNING, options={"probability": 0.5, "where": "step"}),), "entries of each step were kept is not"),
        ((declared("sign", where="example"),), "the signs of each example are not seen"),
        ((declared("my_lab.rounding:Rounding", step=1e-4),), "does not follow my_lab.rounding:Rounding: not among"),
        ((declared("dp_sgd", clip_norm=1.0, noise_multiplier=0.0, sampling="poisson"),), "drawn at random"),
    ],
)
def test_what_cannot_be_followed_is_said_with_its_reason(defenses, remark) -> None:
    # Several steps: for FedSGD a step is what is sent.
    observation = replace((plain := defended(recipe=RECIPE)), knowledge=replace(plain.knowledge, defenses=defenses))
    found = InvertingGradients(steps=1)(observation, generator=torch.Generator())
    assert_remark(found.remarks, remark)


def assert_remark(remarks: tuple[str, ...], pattern: str) -> None:
    assert any(re.search(pattern, line) for line in remarks), remarks


def test_every_defense_is_either_followed_or_refused_by_name() -> None:
    assert FOLLOWED.keys() == DEFENSES.keys()


def test_without_the_grant_nothing_is_followed() -> None:
    sent = defended(QUANTISATION)
    attack = InvertingGradients(steps=3)

    def images(observation: Observation) -> Tensor:
        found = attack(observation, generator=torch.Generator().manual_seed(1))
        assert bool(found.remarks) == bool(observation.knowledge.defenses)
        return found.images

    undeclared = replace(sent, knowledge=replace(sent.knowledge, defenses=()))
    assert torch.equal(images(naive(sent)), images(undeclared))
    assert not torch.equal(images(naive(sent)), images(sent))


def client_of(*, pixels: int) -> Client:
    return Client(
        model=torch.nn.Linear(1, 1),
        algorithm=defended().algorithm,
        recipe=LocalTraining(),
        num_examples=2,
        image_shape=(1, 1, pixels // 2),
    )


def test_what_was_dropped_is_drawn_to_zero_where_what_was_kept_cannot_tell_the_images() -> None:
    observed = {"weight": torch.tensor([4.0, 0.0, -2.0, 0.0])}
    simulated = {"weight": torch.tensor([3.0, 1.0, -2.0, -3.0])}
    enough, few = (
        adaptation([declared("magnitude_pruning", share=0.5)], observed, client_of(pixels=pixels)) for pixels in (2, 4)
    )
    assert enough.follow(simulated)["weight"].tolist() == [3.0, 0.0, -2.0, -1.0]
    assert few.follow(simulated)["weight"].tolist() == pytest.approx([3.0, 0.2, -2.0, -1.4])
    assert "drawn to zero" in few.remarks[0]
    assert "drawn to zero" not in enough.remarks[0]


def test_defenses_of_strength_zero_change_nothing() -> None:
    observed = dict(problem_of(defended()).observed)
    client = client_of(pixels=4)
    for defense in (
        declared("gaussian_noise", stddev=0.0),
        declared("laplace_noise", scale=0.0),
        declared("quantisation", bits=32),
        declared("soteria", pruned_percent=0),
        declared("dp_sgd", noise_multiplier=0.0),
    ):
        found = adaptation([defense], observed, client)
        assert (found.steps, found.clipping, found.trust, found.muted) == ((), None, 1.0, ())


def test_a_mean_over_clients_is_not_followed_and_says_so() -> None:
    observation = defended(PRUNING, recipe=RECIPE)
    knowledge = replace(observation.knowledge, cohort=(1, 1), label_counts=torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]]))
    found = InvertingGradients(steps=1)(replace(observation, knowledge=knowledge), generator=torch.Generator())
    assert_remark(found.remarks, "the mean of defended updates is not a defended mean")


def test_the_closed_form_says_that_it_follows_nothing() -> None:
    observation = defended(DeclaredDefense(name="gaussian_noise", options={"stddev": 0.1}), model=mlp(DATASET))
    found = AnalyticFullyConnected()(observation, generator=torch.Generator())
    assert_remark(found.remarks, "does not follow the defenses: the closed form")
    assert AnalyticFullyConnected()(naive(observation), generator=torch.Generator()).remarks == ()
