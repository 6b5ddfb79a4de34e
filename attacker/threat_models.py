"""Named threat models: how much an attacker is granted."""

from attacker.observation import ThreatModel
from fl_sim.tables import Table, instance_of

HONEST_BUT_CURIOUS = ThreatModel(
    name="honest_but_curious",
    description="The server knows what it sees and hands out: the update, N_c, E, m and eta. Labels are recovered.",
    realistic=True,
)
KNOWN_LABEL_COUNTS = ThreatModel(
    name="known_label_counts",
    description="As honest_but_curious, and the true number of images of each class is given.",
    realistic=False,
    label_counts=True,
)
KNOWN_BATCH_STATISTICS = ThreatModel(
    name="known_batch_statistics",
    description="As honest_but_curious, and the private batch's BatchNorm statistics at w_t are given.",
    realistic=False,
    batch_statistics=True,
)

KNOWN_BATCH_LABEL_COUNTS = ThreatModel(
    name="known_batch_label_counts",
    description="As known_label_counts, and the true number of images of each class in every local batch is given.",
    realistic=False,
    label_counts=True,
    batch_label_counts=True,
)

UNKNOWN_EPOCHS = ThreatModel(
    name="unknown_epochs",
    description="Clients keep E and m to themselves; the server knows U, eta and N_c. Labels are recovered.",
    realistic=True,
    local_training=False,
    local_steps=True,
)
UNKNOWN_EPOCHS_KNOWN_LABEL_COUNTS = ThreatModel(
    name="unknown_epochs_known_label_counts",
    description="As unknown_epochs, and the true number of images of each class is given.",
    realistic=False,
    local_training=False,
    local_steps=True,
    label_counts=True,
)

KNOWN_DEFENSES = ThreatModel(
    name="known_defenses",
    description="As honest_but_curious, and the server knows the clients' defenses: they stand in the app that it "
    "hands out.",
    realistic=True,
    defenses=True,
)
KNOWN_DEFENSES_AND_LABEL_COUNTS = ThreatModel(
    name="known_defenses_and_label_counts",
    description="As known_defenses, and the true number of images of each class is given.",
    realistic=False,
    label_counts=True,
    defenses=True,
)

_ALL = (
    HONEST_BUT_CURIOUS,
    KNOWN_DEFENSES,
    UNKNOWN_EPOCHS,
    KNOWN_LABEL_COUNTS,
    KNOWN_BATCH_LABEL_COUNTS,
    KNOWN_BATCH_STATISTICS,
    UNKNOWN_EPOCHS_KNOWN_LABEL_COUNTS,
    KNOWN_DEFENSES_AND_LABEL_COUNTS,
)

THREAT_MODELS: Table[ThreatModel] = Table(
    "threat model", {model.name: model for model in _ALL}, check=instance_of(ThreatModel)
)
