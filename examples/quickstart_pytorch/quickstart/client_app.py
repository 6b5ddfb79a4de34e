"""The client: it trains on its own images and sends the weights back.

What fl-sim adds is ``audited``, a mod that looks at the update before it leaves; without it the app is what it was.
"""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from quickstart.task import MEAN, STD, Net, load_images, train

app = ClientApp()


def audited(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Try to invert the client's own update, where the run config grants seconds for it."""
    config = context.run_config
    if not config["audit-seconds"]:
        return call_next(message, context)
    from audit import Audit, PrivateBatch

    def private(message: Message, context: Context) -> PrivateBatch:
        images, labels = load_images(int(context.node_config["partition-id"]), int(config["images-per-client"]))
        return PrivateBatch(images=images, labels=labels)

    mod = Audit(
        private=private,
        model="quickstart.task:Net",
        data={"image_shape": (1, 8, 8), "num_classes": 10, "mean": (MEAN,), "std": (STD,)},
        training={
            "learning_rate": config["learning-rate"],
            "epochs": config["local-epochs"],
            "batch_size": config["batch-size"],
        },
        seconds=float(config["audit-seconds"]),
        policy=str(config["audit-policy"]),
    )
    return mod(message, context, call_next)


@app.train(mods=[audited])
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
