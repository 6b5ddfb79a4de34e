"""A client looks at its own update with an attacker's eyes before it leaves.

The package stands on the attacker and is imported by nobody: not by the clients of the simulation, which must not know
the attacker, nor by the platform. A user puts `Audit` into a ClientApp of his own; see docs/audit.md.
"""

from audit.figures import Figures
from audit.mod import Audit, Policy
from audit.trial import PrivateBatch

__all__ = ["Audit", "Figures", "Policy", "PrivateBatch"]
