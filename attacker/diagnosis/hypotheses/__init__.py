"""What may differ between the declared training and the recorded update, one file a kind.

A hypothesis is a plain function of an `Inquiry` that returns what it found. The order of the table decides between two
that explain the update alike: the more special one first.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from attacker.diagnosis.hypotheses.clipping import clipping
from attacker.diagnosis.hypotheses.frozen import frozen
from attacker.diagnosis.hypotheses.inputs import normalisation
from attacker.diagnosis.hypotheses.modes import mode
from attacker.diagnosis.hypotheses.noise import noise
from attacker.diagnosis.hypotheses.optimiser import momentum, weight_decay
from attacker.diagnosis.hypotheses.precision import dtype, quantisation
from attacker.diagnosis.hypotheses.pruning import pruning
from attacker.diagnosis.hypotheses.scale import learning_rate, scale, sign
from attacker.diagnosis.hypotheses.searched_order import order_search
from attacker.diagnosis.hypotheses.steps import batch_order, batch_size, epochs, epochs_and_batch_size
from attacker.diagnosis.inquiry import Finding, Inquiry
from fl_sim.tables import Table, function_of

Hypothesis: TypeAlias = Callable[[Inquiry], Sequence[Finding]]

HYPOTHESES: Table[Hypothesis] = Table(
    "hypothesis",
    {
        "dtype": dtype,
        "frozen": frozen,
        "sign": sign,
        "normalisation": normalisation,
        "mode": mode,
        "pruning": pruning,
        "quantisation": quantisation,
        "clipping": clipping,
        "noise": noise,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "epochs": epochs,
        "batch_size": batch_size,
        "epochs_and_batch_size": epochs_and_batch_size,
        "scale": scale,
        "learning_rate": learning_rate,
        "batch_order": batch_order,
        "order_search": order_search,
    },
    check=function_of("inquiry"),
)

OF_MATCHING_UPDATES = ("dtype", "quantisation")
"""What can be seen although the declared training explains the update."""
LAST_RESORTS = ("epochs_and_batch_size", "order_search")
"""What is tried only where nothing else explains the update exactly."""
