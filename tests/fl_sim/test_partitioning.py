"""Partitions: disjoint, complete, never an empty client, and a function of the generator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_sim.datasets import Dataset
from fl_sim.datasets.partitioning import PARTITIONERS, cap, label_counts
from fl_sim.errors import ConfigError
from fl_sim.records import DatasetSpec


def dataset_of(labels, clients=None):
    labels = torch.as_tensor(labels)
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    num_classes = int(labels.max()) + 1
    return Dataset(
        name="toy",
        images=images,
        labels=labels,
        spec=DatasetSpec(
            image_shape=(1, 1, 1), num_classes=num_classes, mean=(0.5,), std=(0.5,), class_names=("?",) * num_classes
        ),
        clients=None if clients is None else torch.as_tensor(clients),
        test_images=images[:1],
        test_labels=labels[:1],
    )


def divide(name, dataset, num_clients, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return PARTITIONERS[name](dataset=dataset, num_clients=num_clients, generator=generator, **options)


RANDOM = ["iid", "dirichlet", "shards"]


@pytest.mark.parametrize("name", RANDOM)
@given(
    labels=st.lists(st.integers(0, 4), min_size=24, max_size=80),
    num_clients=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=30, deadline=None)
def test_disjoint_complete_and_never_empty(name, labels, num_clients, seed):
    indices = divide(name, dataset_of(labels), num_clients, seed, **({"alpha": 5.0} if name == "dirichlet" else {}))
    assert len(indices) == num_clients
    assert all(own.dtype == torch.int64 and len(own) > 0 for own in indices)
    assert torch.cat(indices).sort().values.tolist() == list(range(len(labels)))


@given(clients=st.lists(st.integers(0, 5), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_by_client_keeps_ids_and_order(clients):
    num_clients = max(clients) + 1
    dataset = dataset_of([0] * len(clients), clients)
    if set(clients) != set(range(num_clients)):
        with pytest.raises(ConfigError, match="has no images of client"):
            divide("by_client", dataset, num_clients)
        return
    indices = divide("by_client", dataset, num_clients)
    for client_id, own in enumerate(indices):
        assert own.tolist() == [row for row, owner in enumerate(clients) if owner == client_id]
    assert [own.tolist() for own in divide("by_client", dataset, 1)] == [indices[0].tolist()]


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_equal_other_seed_different(name):
    dataset = dataset_of(torch.arange(5).repeat(20))
    first, again, other = (torch.cat(divide(name, dataset, 4, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", RANDOM)
def test_the_order_within_a_client_favours_no_class(name):
    dataset = dataset_of(torch.arange(2).repeat_interleave(500))
    (own,) = divide(name, dataset, 1)
    assert 20 < label_counts(dataset.labels, cap([own], 100), 2)[0, 0] < 80


def test_iid_sizes_differ_by_one_at_most():
    assert sorted(len(own) for own in divide("iid", dataset_of([0] * 11), 4)) == [2, 3, 3, 3]


def test_a_small_alpha_skews_the_labels():
    dataset = dataset_of(torch.arange(10).repeat(200))

    def largest_share(alpha):
        counts = label_counts(dataset.labels, divide("dirichlet", dataset, 5, alpha=alpha), 10)
        return float((counts.max(dim=0).values / counts.sum(dim=0)).mean())

    assert largest_share(0.1) > 0.6
    assert largest_share(1000.0) < 0.25


def test_shards_limit_the_classes_of_a_client():
    dataset = dataset_of(torch.arange(10).repeat(20))
    counts = label_counts(dataset.labels, divide("shards", dataset, 5, shards_per_client=2), 10)
    assert int((counts > 0).sum(dim=1).max()) <= 2
    assert counts.sum(dim=1).tolist() == [40] * 5


def test_cap_takes_the_first():
    indices = (torch.tensor([4, 1, 3]), torch.tensor([2]))
    assert [own.tolist() for own in cap(indices, 2)] == [[4, 1], [2]]
    assert [own.tolist() for own in cap(indices, None)] == [[4, 1, 3], [2]]
    with pytest.raises(ConfigError, match="examples_per_client must be >= 1, got 0"):
        cap(indices, 0)


def test_label_counts_agree_with_a_naive_count():
    labels = torch.tensor([0, 2, 2, 1, 0])
    assert label_counts(labels, (torch.tensor([1, 2]), torch.tensor([0, 3])), 4).tolist() == [
        [0, 0, 2, 0],
        [1, 1, 0, 0],
    ]


@pytest.mark.parametrize(
    ("name", "num_clients", "options", "message"),
    [
        ("by_client", 2, {}, "has no natural clients; partition it by iid"),
        ("by_client", 0, {}, "num_clients must be >= 1, got 0"),
        ("iid", 0, {}, "num_clients must be >= 1, got 0"),
        ("iid", 7, {}, "6 images are too few for 7 clients; lower num_clients"),
        ("dirichlet", 0, {}, "num_clients must be >= 1, got 0"),
        ("dirichlet", 7, {}, "6 images are too few for 7 clients"),
        ("dirichlet", 2, {"alpha": 0.0}, "alpha must be a positive number, got 0"),
        ("dirichlet", 6, {"alpha": 1e-3}, "without images; raise alpha or lower num_clients"),
        ("shards", 0, {}, "num_clients must be >= 1, got 0"),
        ("shards", 4, {}, "6 images are too few for 8 shards; lower num_clients or shards_per_client"),
        ("shards", 2, {"shards_per_client": 0}, "shards_per_client must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_divided_says_what_to_do(name, num_clients, options, message):
    with pytest.raises(ConfigError, match=message):
        divide(name, dataset_of([0, 1, 2, 0, 1, 2]), num_clients, **options)
