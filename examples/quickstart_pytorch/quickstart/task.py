"""The network, the data and the training of the app; nothing of fl-sim."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

MEAN, STD = 0.3, 0.4


class Net(nn.Module):
    """A small CNN for grey images of 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.hidden = nn.Linear(16 * 8 * 8, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 1, 8, 8) to logits (N, 10)."""
        features = functional.relu(self.conv(images)).flatten(1)
        return self.head(functional.relu(self.hidden(features)))


def load_images(partition_id: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Return a client's images, pixels in [0, 1], and labels."""
    digits = load_digits()
    shuffled = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0)).numpy()
    rows = shuffled[partition_id * num_images : (partition_id + 1) * num_images]
    return torch.tensor(digits.images[rows] / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target[rows])


def train(net: Net, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, learning_rate: float) -> float:
    """Train with plain SGD and return the mean loss."""
    loader = DataLoader(TensorDataset((images - MEAN) / STD, labels), batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
    net.train()
    losses: list[float] = []
    for _ in range(epochs):
        for batch, targets in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(batch), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)
