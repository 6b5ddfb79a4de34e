"""Complete attacks, most of them a paper's, composed of the library's parts: one file each; `ATTACKS` names them.

An entry is a frozen dataclass type. Its fields are the hyper-parameters, all with defaults; its instances are called
with an observation, see `attacker.attack.Attack`.
"""

from collections.abc import Callable

from attacker.analytic import AnalyticFullyConnected
from attacker.attack import Attack
from attacker.recipes.automatic import Automatic
from attacker.recipes.dlg import DeepLeakage
from attacker.recipes.epoch_search import EpochSearch
from attacker.recipes.feature_span import FeatureSpan
from attacker.recipes.feature_span_quick import FeatureSpanQuick
from attacker.recipes.fedavg_leakage import FedAvgLeakage
from attacker.recipes.gradinversion import GradInversion
from attacker.recipes.idlg import ImprovedDeepLeakage
from attacker.recipes.inverting_gradients import InvertingGradients
from fl_sim.tables import Table, class_called_with

ATTACKS: Table[Callable[..., Attack]] = Table(
    "attack",
    {
        "automatic": Automatic,
        "fedavg_leakage": FedAvgLeakage,
        "feature_span": FeatureSpan,
        "feature_span_quick": FeatureSpanQuick,
        "inverting_gradients": InvertingGradients,
        "gradinversion": GradInversion,
        "dlg": DeepLeakage,
        "idlg": ImprovedDeepLeakage,
        "analytic": AnalyticFullyConnected,
        "epoch_search": EpochSearch,
    },
    check=class_called_with("generator", "on_step"),
)

__all__ = [
    "ATTACKS",
    "AnalyticFullyConnected",
    "Automatic",
    "DeepLeakage",
    "EpochSearch",
    "FeatureSpan",
    "FeatureSpanQuick",
    "FedAvgLeakage",
    "GradInversion",
    "ImprovedDeepLeakage",
    "InvertingGradients",
]
