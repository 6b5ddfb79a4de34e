"""The only reader of truth.

No attack can import this module (an import contract says so). The campaign opens it after an attack has returned, to
score it, and before one starts only where the threat model grants a piece of the truth by name.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attacker.batch_norm import LayerStatistics, batch_statistics
from fl_sim.batch_order import batch_order_generator, epoch_order
from fl_sim.config import parse_data
from fl_sim.datasets import pixels
from fl_sim.errors import FlSimError, MissingDataError, RecordingError, brief
from fl_sim.federated_data import FederatedData, load_federated_data
from fl_sim.files import read_json
from fl_sim.npz_files import read_npz
from fl_sim.records import LocalTraining, RoundRecord
from fl_sim.run_store import ENCLOSED_TRUTH, EXACT_PIXELS
from fl_sim.seeds import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateBatch:
    """What a client holds.

    Attributes:
        images: (N_c, C, H, W), pixels in [0, 1].
        labels: (N_c,), int64.
    """

    images: Tensor
    labels: Tensor


class Truth:
    """The private images of every client of a run."""

    def __init__(
        self, data: FederatedData, seed: int, *, is_foreign: bool = False, exact: Tensor | None = None
    ) -> None:
        """Hold the data and the run seed; use `read_truth` to find them.

        Args:
            data: Who holds what.
            seed: From which clients of this platform draw their orders.
            is_foreign: The clients were others, whose draws nobody knows.
            exact: Pixels of all images, (N, C, H, W), where bytes are not what the clients trained on.
        """
        self._data = data
        self._seed = seed
        self._is_foreign = is_foreign
        self._exact = exact

    @property
    def num_classes(self) -> int:
        """K, the number of classes of the data set."""
        return self._data.dataset.spec.num_classes

    def private_batch(self, *clients: int) -> PrivateBatch:
        """Return what a client holds, or several, one after the other."""
        images = pixels(torch.cat([self._data.images(client_id) for client_id in clients]))
        if self._exact is not None:
            images = self._exact[torch.cat([self._data.client_indices[client_id] for client_id in clients])]
        return PrivateBatch(
            images=images,
            labels=torch.cat([self._data.labels(client_id) for client_id in clients]),
        )

    def label_counts(self, client_id: int) -> Tensor:
        """Return a client's images of each class, shape (K,), int64."""
        return torch.bincount(self._data.labels(client_id), minlength=self.num_classes)

    def batch_label_counts(self, client_id: int, server_round: int, recipe: LocalTraining) -> Tensor:
        """Return the images of each class in the batch of every local step, shape (U, K), int64.

        The client's order is drawn again from the run seed.

        Raises:
            MissingDataError: If the client shuffled its images elsewhere.
        """
        if not self.knows_order(client_id, recipe):
            raise MissingDataError("which image stood in which batch is not known of clients that trained elsewhere")
        labels = self._data.labels(client_id)
        orders = self.visits(client_id, server_round, recipe, epochs=recipe.epochs)
        batches = [batch for order in orders for batch in labels[order].split(recipe.batch_size or len(labels))]
        return torch.stack([torch.bincount(batch, minlength=self.num_classes) for batch in batches])

    def knows_order(self, client_id: int, recipe: LocalTraining) -> bool:
        """Say whether `visits` is the client's own order, or one batch made the order irrelevant."""
        is_irrelevant = recipe.batches_per_epoch(len(self._data.labels(client_id))) == 1
        return not self._is_foreign or recipe.order == "static" or is_irrelevant

    def visits(self, client_id: int, server_round: int, recipe: LocalTraining, *, epochs: int) -> Tensor:
        """Return the order in which the client visits its images in each epoch, shape (E, N), int64.

        Where `knows_order` says no, a random order like the client's.

        Args:
            client_id: The client.
            server_round: The round.
            recipe: Says whether the order is drawn, which is done again from the run seed.
            epochs: E; where it is more than the recipe's, what the client would have drawn next.
        """
        stream = batch_order_generator(self._seed, client_id, server_round)
        num_examples = len(self._data.labels(client_id))
        return torch.stack([epoch_order(num_examples, recipe.order, stream) for _ in range(epochs)])

    def pool_label_counts(self, client_id: int) -> Tensor:
        """Return the images of each class that the client does not hold, shape (K,), int64, for trivial baselines."""
        every = torch.bincount(self._data.dataset.labels, minlength=self.num_classes)
        return every - self.label_counts(client_id)

    def batch_statistics(self, client_id: int, model: nn.Module, record: RoundRecord) -> dict[str, LayerStatistics]:
        """Return what BatchNorm layers see of a client's whole batch at w_t, by layer; empty without such layers.

        Args:
            client_id: The client.
            model: The architecture; w_t is taken from the record. Left in training mode, as it is at the clients.
            record: The round.
        """
        with torch.no_grad():
            images = self.private_batch(client_id).images
            return batch_statistics(model.train(), record.global_parameters, record.global_buffers, images)

    def all_label_counts(self) -> Tensor:
        """Return the label counts of every client, shape (clients, K)."""
        return torch.stack([self.label_counts(client_id) for client_id in range(len(self._data.client_indices))])

    def pool(self, *clients: int) -> Tensor:
        """Return the images that none of the clients holds, shape (P, C, H, W), for trivial baselines."""
        others = torch.ones(len(self._data.dataset.images), dtype=torch.bool)
        for client_id in clients:
            others[self._data.client_indices[client_id]] = False
        return pixels(self._data.dataset.images[others])

    def identification_pool(self, size: int) -> Tensor:
        """Return the images that a reconstruction of any client may be taken for, shape (P, C, H, W), P <= size.

        The private images of all clients come first, then images of the data set that no client holds. Where there are
        more than ``size``, a fixed draw of them.
        """
        private = torch.cat([torch.as_tensor(indices) for indices in self._data.client_indices])
        is_unheld = torch.ones(len(self._data.dataset.images), dtype=torch.bool)
        is_unheld[private] = False
        draw = generator(0, "identification-pool")
        candidates = [part[torch.randperm(len(part), generator=draw)] for part in (private, is_unheld.nonzero()[:, 0])]
        return pixels(self._data.dataset.images[torch.cat(candidates)[:size]])


def read_truth(run_folder: Path) -> Truth:
    """Find the private images of a run again.

    Args:
        run_folder: The run; its ``truth/truth.json`` names data set, partition and seed.

    Raises:
        MissingDataError: If the reference or the data is gone; attacks still run, unscored.
        RecordingError: If the reference is damaged.
        ConfigError: If it does not fit the data.
    """
    path = run_folder / "truth" / "truth.json"
    if not path.exists():
        raise MissingDataError(f"{path} does not exist: without the truth nothing can be scored")
    reference = read_json(path)
    seed, data, is_foreign = reference.get("seed"), reference.get("data"), reference.get("enclosed") is True
    if not isinstance(seed, int) or not isinstance(data, dict):
        raise RecordingError(f"{path}: expected a seed and the section data; the file is damaged or foreign")
    try:
        where = parse_data(data)
        if is_foreign:  # the images lie beside the reference, wherever the run folder is now
            where = replace(where, options={**where.options, "path": str(path.parent / ENCLOSED_TRUTH)})
        data = load_federated_data(where, seed)
        exact = _exact_pixels(path.parent / ENCLOSED_TRUTH, data) if is_foreign else None
        return Truth(data, seed, is_foreign=is_foreign, exact=exact)
    except FlSimError:
        raise
    except Exception as error:  # what a loader makes of options that nobody has meant
        raise RecordingError(f"{path}: the private images cannot be found again: {brief(repr(error))}") from error


def _exact_pixels(path: Path, data: FederatedData) -> Tensor | None:
    """Return the pixels of a foreign truth that bytes would round, or ``None`` where bytes are exact."""
    found = read_npz(path).get(EXACT_PIXELS)
    if found is None:
        return None
    shape = tuple(data.dataset.images.shape)
    if found.dtype != "float32" or found.shape != shape:
        raise RecordingError(
            f"{path}: {EXACT_PIXELS}: expected float32 of shape {shape}, got {found.dtype} of shape {found.shape}; "
            "the file is damaged or foreign"
        )
    exact = torch.from_numpy(found)
    if not bool((exact - pixels(data.dataset.images)).abs().max() <= 1 / 255):
        raise RecordingError(
            f"{path}: {EXACT_PIXELS}: expected the pixels of its images; the file is damaged or foreign"
        )
    return exact
