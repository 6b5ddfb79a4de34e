"""Data sets: shapes, ranges, test splits, and one clear line for each thing that can be wrong with a file."""

import hashlib
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fl_sim.datasets import DATASETS, Dataset, pixels
from fl_sim.datasets.channel_statistics import channel_statistics
from fl_sim.datasets.hold_out import last_clients, stratified
from fl_sim.errors import ConfigError, MissingDataError
from fl_sim.records import DatasetSpec

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def shared(name):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; this test needs real data")
    return path


def write_npz(path, **entries):
    np.savez(path, **entries)
    return path


def grey_images(num_images, size=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, size, size), dtype=np.uint8)


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_data_set_has_defaulted_keyword_options_and_a_docstring(name):
    factory = DATASETS[name]
    assert factory.__doc__
    assert not factory.__defaults__
    assert factory.__kwdefaults__.keys() == set(factory.__annotations__) - {"return"}


@pytest.mark.parametrize("name", ["arrays", "folder", "cifar10", "cifar100"])
def test_a_path_that_is_left_out_or_wrong_is_named(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name}.*needs the option path"):
        DATASETS[name]()
    with pytest.raises(MissingDataError, match=r"nowhere does not exist; "):
        DATASETS[name](path=tmp_path / "nowhere")


def test_pixels_are_bytes_over_255():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(pixels(images), torch.tensor([0.0, 0.2, 1.0]))
    with pytest.raises(ValueError, match=r"must be uint8, got torch.float32"):
        pixels(pixels(images))


def test_channel_statistics_agree_with_numpy():
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, 4, 7), dtype=np.uint8))
    mean, std = channel_statistics(images)
    values = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)))
    assert channel_statistics(torch.zeros(2, 1, 3, 3, dtype=torch.uint8)) == ((0.0,), (1 / 255,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 1, 2, 2)}, r"images: expected uint8 .*got torch.float32"),
        ({"images": torch.zeros(2, 3, 2, 2, dtype=torch.uint8)}, r"images: expected .*\(N, 1, 2, 2\)"),
        ({"labels": torch.tensor([0, 3])}, r"labels: expected values in \[0, 3\), got 0 to 3"),
        ({"labels": torch.tensor([0])}, r"labels: expected int64 of shape \(2,\)"),
        ({"clients": torch.tensor([0.0, 1.0])}, "clients: expected int64"),
        ({"test_images": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)}, "test_images: expected at least one"),
    ],
)
def test_a_data_set_of_ones_own_is_checked(change, message):
    spec = DatasetSpec(image_shape=(1, 2, 2), num_classes=3, mean=(0.5,), std=(0.5,), class_names=("a", "b", "c"))
    fields = {
        "images": torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 2]),
        "test_images": torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        "test_labels": torch.tensor([1]),
    }
    Dataset(name="mine", spec=spec, **fields)
    with pytest.raises(ValueError, match=message):
        Dataset(name="mine", spec=spec, **{**fields, **change})


def test_a_spec_must_fit_the_channels():
    fields = {"images": torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "labels": torch.zeros(1, dtype=torch.int64)}
    tests = {"test_images": fields["images"], "test_labels": fields["labels"]}
    spec = {"image_shape": (1, 2, 2), "num_classes": 1, "class_names": ("a",)}
    with pytest.raises(ValueError, match=r"spec.mean: expected one value for each of 1 channels, got 2"):
        Dataset(name="mine", spec=DatasetSpec(mean=(0.5, 0.5), std=(0.5,), **spec), **fields, **tests)
    with pytest.raises(ValueError, match=r"spec.std must be > 0"):
        Dataset(name="mine", spec=DatasetSpec(mean=(0.5,), std=(0.0,), **spec), **fields, **tests)


def test_stratified_hold_out_takes_the_same_share_of_every_class():
    labels = torch.arange(4).repeat_interleave(torch.tensor([10, 20, 30, 40]))[torch.randperm(100)]
    held_out = stratified(labels, 0.2)
    assert torch.bincount(labels[held_out]).tolist() == [2, 4, 6, 8]
    assert torch.equal(held_out, stratified(labels, 0.2))
    assert int(stratified(labels, 1e-6).sum()) == 1


def test_hold_out_of_clients_takes_whole_clients_from_the_end():
    clients = torch.tensor([3, 0, 1, 3, 2, 0])
    assert last_clients(clients, 0.25).tolist() == [True, False, False, True, False, False]
    assert last_clients(clients, 0.01).tolist() == last_clients(clients, 0.25).tolist()
    assert last_clients(clients, 0.5).tolist() == [True, False, False, True, True, False]


def test_hold_out_refuses_what_leaves_nothing():
    with pytest.raises(ConfigError, match=r"leaves no image of 1"):
        stratified(torch.tensor([0]), 0.5)
    with pytest.raises(ConfigError, match=r"leaves none of 1 clients"):
        last_clients(torch.tensor([0, 0]), 0.5)
    with pytest.raises(ConfigError, match=r"test_fraction must be in \[0, 1\), got 1"):
        DATASETS["digits"](test_fraction=1)


def test_digits():
    dataset = DATASETS["digits"]()
    assert dataset.spec.image_shape == (1, 28, 28)
    assert dataset.spec.num_classes == 10
    assert len(dataset.images) + len(dataset.test_images) == 1797
    assert len(dataset.test_images) == round(0.2 * 1797)
    assert dataset.images.max() == 255
    assert torch.bincount(dataset.test_labels).min() >= 34
    again = DATASETS["digits"]()
    assert torch.equal(dataset.images, again.images)
    assert torch.equal(dataset.test_labels, again.test_labels)


def test_digits_of_the_original_size_keep_their_sixteen_levels():
    dataset = DATASETS["digits"](size=8, test_fraction=0)
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert len(dataset.images.unique()) == 17
    assert dataset.test_images is dataset.images
    with pytest.raises(ValueError, match=r"size must be from 1 to 512, got"):
        DATASETS["digits"](size=0)


def test_faces():
    dataset = DATASETS["faces"]()
    assert dataset.spec.image_shape == (1, 25, 25)
    assert torch.bincount(dataset.labels).tolist() == [80, 80]
    assert torch.bincount(dataset.test_labels).tolist() == [20, 20]
    assert dataset.images.max() > 250


def test_arrays_with_clients_keep_the_rows_of_each_client_in_order(tmp_path):
    images = grey_images(12)
    clients = np.array([2, 0, 1, 3, 0, 2, 1, 0, 3, 3, 1, 2], dtype=np.uint8)
    labels = np.arange(12) % 3
    path = write_npz(tmp_path / "mine.npz", images=images, labels=labels, clients=clients, classes=["x", "y", "z"])
    dataset = DATASETS["arrays"](path=path)
    assert dataset.name == "mine"
    assert dataset.spec.class_names == ("x", "y", "z")
    for client_id in range(3):
        own = dataset.images[dataset.clients == client_id, 0].numpy()
        np.testing.assert_array_equal(own, images[clients == client_id])
    np.testing.assert_array_equal(dataset.test_images[:, 0].numpy(), images[clients == 3])
    np.testing.assert_array_equal(dataset.test_labels.numpy(), labels[clients == 3])
    mean, std = channel_statistics(torch.from_numpy(images).unsqueeze(1))
    assert (dataset.spec.mean, dataset.spec.std) == (mean, std)


def test_arrays_in_colour_without_clients(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    path = write_npz(tmp_path / "a.npz", images=images, labels=np.array([0, 4] * 5, dtype=np.int16))
    dataset = DATASETS["arrays"](path=path, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), num_classes=7)
    assert dataset.spec == DatasetSpec(
        image_shape=(3, 4, 5),
        num_classes=7,
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
        class_names=tuple("0123456"),
    )
    assert dataset.clients is None
    assert dataset.test_labels.tolist() in ([0, 4], [4, 0])
    everything = DATASETS["arrays"](path=path, test_fraction=0)
    np.testing.assert_array_equal(everything.images.permute(0, 2, 3, 1).numpy(), images)
    assert everything.spec.num_classes == 5


def test_arrays_cut_into_clients_of_consecutive_rows(tmp_path):
    path = write_npz(tmp_path / "a.npz", images=grey_images(7), labels=np.zeros(7, dtype=np.int64))
    dataset = DATASETS["arrays"](path=path, rows_per_client=3)
    assert dataset.clients.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(dataset.test_images) == 1
    with pytest.raises(ConfigError, match=r"rows_per_client must be >= 1"):
        DATASETS["arrays"](path=path, rows_per_client=0)


GOOD = {"images": grey_images(4), "labels": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ({"images": GOOD["images"]}, {}, r"bad.npz: expected an entry 'labels', got \['images'\]"),
        ({**GOOD, "images": GOOD["images"] / 255}, {}, "bad.npz: images: expected uint8 .*got float64"),
        ({**GOOD, "images": GOOD["images"][0]}, {}, r"bad.npz: images: expected .*got uint8 of shape \(6, 6\)"),
        ({**GOOD, "images": GOOD["images"][:0]}, {}, "bad.npz: images: expected at least one image"),
        ({**GOOD, "labels": np.array([0.0, 1, 0, 1])}, {}, "bad.npz: labels: expected integers .*got float64"),
        ({**GOOD, "labels": np.array([0, 1])}, {}, r"bad.npz: labels: expected integers of shape \(4,\)"),
        ({**GOOD, "labels": np.array([0, 1, -1, 1])}, {}, "bad.npz: labels: expected integers from 0, got -1"),
        ({**GOOD, "clients": np.array([0, 1])}, {}, r"bad.npz: clients: expected integers of shape \(4,\)"),
        ({**GOOD, "classes": np.array([1, 2])}, {}, r"bad.npz: classes: expected text of shape \(K,\), got int64"),
        ({**GOOD, "classes": np.array(["a"])}, {}, "bad.npz: labels: expected values below the 1 classes, got 1"),
        ({**GOOD, "classes": np.array(["a", "b"])}, {"num_classes": 3}, "expected num_classes = 3 names, got 2"),
        ({**GOOD, "clients": GOOD["labels"]}, {"rows_per_client": 2}, "rows_per_client is for files without clients"),
        ({**GOOD, "labels": np.array([0, 1, 0, 1], dtype=object)}, {}, "bad.npz: expected .* without pickled objects"),
    ],
)
def test_arrays_name_what_is_wrong(tmp_path, entries, options, message):
    path = write_npz(tmp_path / "bad.npz", **entries)
    with pytest.raises(ConfigError, match=message):
        DATASETS["arrays"](path=path, **options)


@pytest.mark.parametrize("content", [b"", b"no zip", pickle.dumps([1])])
def test_arrays_refuse_files_of_another_kind(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad.npz: expected an .npz file without pickled objects"):
        DATASETS["arrays"](path=path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"single.npy: expected an .npz file, got a single array"):
        DATASETS["arrays"](path=tmp_path / "single.npy")


def test_femnist_look_alike_keeps_its_clients():
    path = shared("femnist_like_10k.npz")
    dataset = DATASETS["arrays"](path=path)
    assert dataset.spec.num_classes == 62
    assert dataset.clients.unique().tolist() == list(range(180))
    with np.load(path) as archive:
        np.testing.assert_array_equal(
            dataset.images[dataset.clients == 149, 0].numpy(), archive["images"][archive["clients"] == 149]
        )
    assert dataset.spec.mean == pytest.approx((0.966,), abs=1e-3)
    assert dataset.spec.std == pytest.approx((0.156,), abs=1e-3)


def test_cifar100_sample_in_consecutive_fifties():
    path = shared("cifar100_3k.npz")
    dataset = DATASETS["arrays"](path=path, rows_per_client=50, test_fraction=0)
    assert dataset.spec.image_shape == (3, 32, 32)
    with np.load(path) as archive:
        expected = archive["images"][50 * 59 : 50 * 60]
    np.testing.assert_array_equal(dataset.images[dataset.clients == 59].permute(0, 2, 3, 1).numpy(), expected)


def test_folder_resizes_and_crops_the_middle(tmp_path):
    for name, level in (("ant", 40), ("bee", 200)):
        (tmp_path / name).mkdir()
        for number in range(5):
            picture = np.zeros((20, 60, 3), dtype=np.uint8)
            picture[:, 20:40] = level
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    dataset = DATASETS["folder"](path=tmp_path, size=10)
    assert dataset.spec.class_names == ("ant", "bee")
    assert dataset.images.shape == (8, 3, 10, 10)
    assert torch.bincount(dataset.test_labels).tolist() == [1, 1]
    assert dataset.images[:, :, :, 2:8].flatten(1).unique(dim=0).tolist() == [[40] * 180, [200] * 180]
    grey = DATASETS["folder"](path=tmp_path, size=10, colour="grey")
    assert grey.spec.image_shape == (1, 10, 10)
    with pytest.raises(ConfigError, match=r"size must be >= 1"):
        DATASETS["folder"](path=tmp_path, size=0)


def test_folder_names_the_picture_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingDataError, match=r"one sub-folder of pictures for each class"):
        DATASETS["folder"](path=tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"broken.png: expected a picture"):
        DATASETS["folder"](path=tmp_path)


def leaf_file(path, writers, seed=0):
    rng = np.random.default_rng(seed)
    data = {
        writer: {"x": (rng.integers(0, 256, (size, 784)) / 255).tolist(), "y": rng.integers(0, 62, size).tolist()}
        for writer, size in writers.items()
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"users": list(data), "num_samples": list(writers.values()), "user_data": data}))
    return data


def test_femnist_from_leaf_files(tmp_path):
    first = leaf_file(tmp_path / "a.json", {"f1": 3, "f0": 2})
    leaf_file(tmp_path / "b.json", {"f2": 4})
    dataset = DATASETS["femnist"](path=tmp_path)
    assert dataset.clients.tolist() == [0, 0, 0, 1, 1]
    assert dataset.labels[dataset.clients == 1].tolist() == first["f0"]["y"]
    np.testing.assert_allclose(pixels(dataset.images[:3]).flatten(1), first["f1"]["x"], atol=1e-6)
    assert len(dataset.test_images) == 4
    assert dataset.spec.mean == (0.9642384386141873,)
    assert dataset.spec.class_names[9:12] == ("9", "A", "B")
    assert DATASETS["femnist"](path=tmp_path, max_writers=1, test_fraction=0).clients.tolist() == [0, 0, 0]


def test_femnist_with_leafs_own_test_set(tmp_path):
    leaf_file(tmp_path / "train" / "a.json", {"f0": 3, "f1": 2})
    test = leaf_file(tmp_path / "test" / "a.json", {"f0": 1, "f1": 2}, seed=1)
    dataset = DATASETS["femnist"](path=tmp_path)
    assert dataset.clients.tolist() == [0, 0, 0, 1, 1]
    assert dataset.test_labels.tolist() == test["f0"]["y"] + test["f1"]["y"]


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"users": ["a"], "user_data": {}}', '{"users": ["a"], "user_data": {"a": {"x": [[2, 2]], "y": [1]}}}'],
)
def test_femnist_names_a_file_that_is_not_leafs(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a.json: expected LEAF's users and user_data"):
        DATASETS["femnist"](path=tmp_path)


def test_femnist_refuses_pixels_out_of_range(tmp_path):
    user = {"x": [[2.0] * 784], "y": [1]}
    (tmp_path / "a.json").write_text(json.dumps({"users": ["a"], "user_data": {"a": user}}))
    with pytest.raises(ConfigError, match=r"pixels from 2.0 to 2.0"):
        DATASETS["femnist"](path=tmp_path)


def test_femnist_without_files(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"expected LEAF's .*json files, got none"):
        DATASETS["femnist"](path=tmp_path)
    with pytest.raises(ConfigError, match=r"max_writers must be >= 1"):
        DATASETS["femnist"](max_writers=0)
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(MissingDataError, match=r"flwr-datasets is not installed; pip install"):
        DATASETS["femnist"]()


class HubSplit(list):
    """What is used of a split of Hugging Face: columns, rows and a selection."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def select(self, rows):
        return HubSplit(self[row] for row in rows)


def test_femnist_from_hugging_face(monkeypatch):
    rows = HubSplit(
        {"image": Image.fromarray(np.full((28, 28), level, dtype=np.uint8)), "writer_id": writer, "character": level}
        for level, writer in enumerate(["f2", "f0", "f1", "f0", "f2"])
    )

    class FederatedDataset:
        def __init__(self, *, dataset, partitioners, shuffle):
            assert (dataset, partitioners, shuffle) == ("flwrlabs/femnist", {"train": 1}, False)

        def load_split(self, split):
            if offline:
                raise ConnectionError("no network")
            return rows

    module = ModuleType("flwr_datasets")
    module.FederatedDataset = FederatedDataset
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)
    offline = False
    dataset = DATASETS["femnist"](max_writers=2)
    assert dataset.labels.tolist() == [1, 3]
    assert dataset.images[:, 0, 0, 0].tolist() == [1, 3]
    assert dataset.clients.tolist() == [0, 0]
    assert dataset.test_labels.tolist() == [2]
    offline = True
    with pytest.raises(MissingDataError, match=r"Hugging Face did not deliver: no network"):
        DATASETS["femnist"]()


def batch_file(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


@pytest.mark.parametrize(
    ("name", "class_name", "labels_key", "names_key", "num_classes"),
    [
        ("cifar10", "CIFAR10", "labels", "label_names", 10),
        ("cifar100", "CIFAR100", "fine_labels", "fine_label_names", 100),
    ],
)
def test_cifar_from_torchvisions_files(tmp_path, monkeypatch, name, class_name, labels_key, names_key, num_classes):
    import torchvision.datasets

    source = getattr(torchvision.datasets, class_name)
    folder = tmp_path / source.base_folder
    train = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    entries = {
        "train_list": [batch_file(folder / "train", {"data": train, labels_key: [1, 2]})],
        "test_list": [batch_file(folder / "test", {"data": train[:1], labels_key: [3]})],
    }
    meta = batch_file(folder / "meta", {names_key: [f"class {label}" for label in range(num_classes)]})
    entries["meta"] = {"filename": meta[0], "key": names_key, "md5": meta[1]}
    for attribute, value in entries.items():
        monkeypatch.setattr(source, attribute, value)
    dataset = DATASETS[name](path=tmp_path)
    np.testing.assert_array_equal(dataset.images.numpy(), train.reshape(2, 3, 32, 32))
    assert dataset.labels.tolist() == [1, 2]
    assert dataset.test_labels.tolist() == [3]
    assert dataset.spec.num_classes == num_classes


def test_cifar_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(MissingDataError, match=r"holds cifar-10-batches-py, or set download = true"):
        DATASETS["cifar10"](path=tmp_path)
