"""The client: it trains on its own images and sends the weights back."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_images, train

app = ClientApp()


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Answer a training message."""
    config = context.run_config
    partition_id = int(context.node_config["partition-id"])
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = load_images(partition_id, int(config["images-per-client"]))
    loss = train(
        net,
        images,
        labels,
        epochs=int(config["local-epochs"]),
        batch_size=int(config["batch-size"]),
        learning_rate=float(config["learning-rate"]),
    )
    metrics = MetricRecord({"num-examples": len(labels), "train-loss": loss, "partition-id": partition_id})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
