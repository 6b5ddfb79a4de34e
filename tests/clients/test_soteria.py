"""Soteria prunes what it says, where it says, and nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from clients.defenses.soteria import Soteria, sensitivity
from clients.local_training import gradient_on
from fl_sim.errors import ConfigError
from fl_sim.models import MODELS
from fl_sim.records import DatasetSpec
from fl_sim.seeds import generator

SPEC = DatasetSpec(image_shape=(1, 8, 8), num_classes=3, mean=(0.5,), std=(0.3,), class_names=("a", "b", "c"))
IMAGES = torch.rand(4, 1, 8, 8, generator=generator(0, "images"))
LABELS = torch.tensor([0, 1, 2, 1])


def make_model(name="mlp", **options):
    return MODELS[name](dataset=SPEC, generator=generator(0, "model"), **options).train()


def defended(model, defense, images=IMAGES, labels=LABELS):
    return defense.gradient(model, images, labels, batch_size=len(labels), generator=generator(0, "probes"))


def test_only_the_weight_gradient_of_the_one_layer_changes():
    model = make_model(hidden=(20, 10))
    plain, pruned = gradient_on(model, IMAGES, LABELS), defended(model, Soteria(pruned_percent=30.0))
    assert list(plain) == list(pruned)
    for name in plain:
        assert torch.allclose(plain[name], pruned[name], atol=1e-7) == (name != "linear2.weight"), name


def test_it_prunes_the_stated_share_of_one_images_representation_by_the_published_rule():
    model = make_model(hidden=(20, 10), activation="sigmoid")
    with torch.no_grad():
        model.linear1.weight *= torch.linspace(3.0, 0.1, 20)[:, None]  # features that react unlike each other
    images, labels = IMAGES[:1], LABELS[:1]
    plain, pruned = gradient_on(model, images, labels), defended(model, Soteria(pruned_percent=25.0), images, labels)
    gone = (pruned["linear2.weight"] == 0).all(dim=0)
    # Worked out apart from the code: r = sigmoid(W x + b), so |dr_i/dx| = r_i (1 - r_i) |W_i| / std.
    with torch.no_grad():
        hidden = torch.sigmoid(model.linear1(model.flatten(model.normalisation(images))))[0]
    reaction = hidden * (1 - hidden) * model.linear1.weight.detach().norm(dim=1) / 0.3
    expected = set((hidden / reaction).topk(5).indices.tolist())
    assert set(gone.nonzero().flatten().tolist()) == expected
    assert expected != set(hidden.topk(5).indices.tolist()) != set((1 / reaction).topk(5).indices.tolist())
    assert torch.allclose(pruned["linear2.weight"][:, ~gone], plain["linear2.weight"][:, ~gone], atol=1e-7)


def test_each_image_of_a_batch_is_pruned_by_itself():
    model, defense = make_model(hidden=(20, 10)), Soteria(pruned_percent=50.0)
    alone = [defended(model, defense, IMAGES[n : n + 1], LABELS[n : n + 1])["linear2.weight"] for n in range(4)]
    assert torch.allclose(defended(model, defense)["linear2.weight"], sum(alone) / 4, atol=1e-6)


def test_everything_pruned_leaves_no_weight_gradient_and_one_feature_goes_at_least():
    model = make_model(hidden=(20, 10), activation="sigmoid")
    assert not defended(model, Soteria(pruned_percent=100.0))["linear2.weight"].any()
    one = defended(model, Soteria(pruned_percent=0.001), IMAGES[:1], LABELS[:1])["linear2.weight"]
    assert int((one == 0).all(dim=0).sum()) == 1


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mlp", {"hidden": (20, 10)}, "linear2"),
        ("mlp", {"hidden": ()}, "linear1"),
        ("lenet", {}, "linear"),
        ("convnet", {"width": 4}, "linear"),
    ],
)
def test_the_layer_is_the_first_linear_one_behind_another(name, options, expected):
    model = make_model(name, **options)
    assert Soteria(pruned_percent=1.0)._find_layer(model) is model.get_submodule(expected)


def test_the_classifier_behind_convolutions_is_found_and_another_can_be_named():
    model = make_model("femnist_cnn")
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert Soteria(pruned_percent=1.0)._find_layer(model) is linears[0]
    assert Soteria(pruned_percent=1.0, layer=names[1])._find_layer(model) is linears[1]
    with pytest.raises(ConfigError, match=f"expected layer to be one of {names[0]}, {names[1]}; got 'nowhere'"):
        Soteria(pruned_percent=1.0, layer="nowhere").check_model(model)
    with pytest.raises(ConfigError, match="needs a model with a linear layer"):
        Soteria(pruned_percent=1.0).check_model(nn.Sequential(nn.Conv2d(1, 3, 3)))


def test_random_directions_estimate_the_exact_reaction():
    model = make_model("convnet", width=2)
    images = IMAGES.clone().requires_grad_()
    representation = model[:-1](images)
    exact = sensitivity(representation, images, num_probes=10_000, generator=generator(0, "probes"))
    estimate = sensitivity(representation, images, num_probes=20, generator=generator(0, "probes"))
    assert representation.shape[1] > 20
    relative = estimate[exact > 0] / exact[exact > 0] - 1
    assert relative.std().item() == pytest.approx((1 / 40) ** 0.5, rel=0.4)
    assert abs(relative.mean().item()) < 0.1
    assert not estimate[exact == 0].any()


def test_batch_norm_sees_the_batch_once():
    def normalised():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 5), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))

    once, other = normalised(), normalised()
    plain, pruned = gradient_on(once, IMAGES, LABELS), defended(other, Soteria(pruned_percent=10.0))
    for name, buffer in once.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name
    assert [name for name in plain if not torch.allclose(plain[name], pruned[name], atol=1e-6)] == ["4.weight"]


def test_the_loss_is_the_undefended_one():
    model = make_model("lenet")
    seen = []
    model.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    defended(model, Soteria(pruned_percent=50.0))
    with torch.no_grad():
        assert torch.equal(functional.cross_entropy(seen[0], LABELS), functional.cross_entropy(model(IMAGES), LABELS))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"pruned_percent must be in \[0, 100\], got 101"):
        Soteria(pruned_percent=101)
    with pytest.raises(ValueError, match="num_probes must be >= 1, got 0"):
        Soteria(pruned_percent=1, num_probes=0)
