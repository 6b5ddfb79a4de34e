"""The client: one step of SGD with a proximal term, which is zero in the first step."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits
from torch.nn import functional

from second_app.model import build_network, get_weights, set_weights

app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Answer a training message; the server says how to train."""
    settings = message.content["settings"]
    number = int(context.node_config["partition-id"])
    size = int(context.run_config["images-per-client"])
    digits = load_digits()
    rows = slice(1000 + number * size, 1000 + (number + 1) * size)
    images, labels = torch.tensor(digits.images[rows] / 16, dtype=torch.float32), torch.tensor(digits.target[rows])
    network = build_network()
    set_weights(network, message.content["weights"].to_numpy_ndarrays())
    sent = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=float(settings["rate"]))
    network.train()
    for _ in range(int(settings["steps"])):
        optimizer.zero_grad()
        far = sum((own - other).square().sum() for own, other in zip(network.parameters(), sent, strict=True))
        loss = functional.cross_entropy(network(images), labels) + 0.5 * float(settings["proximal"]) * far
        loss.backward()
        optimizer.step()
    content = RecordDict(
        {"weights": ArrayRecord(get_weights(network)), "numbers": MetricRecord({"samples": len(labels)})}
    )
    return Message(content, reply_to=message)
