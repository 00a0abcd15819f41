"""The centralised ceiling: all data in one place, one model per architecture. Not a federation, but what it would give
if data could be shared.
"""

from genfed.core.settings import settings
from genfed.methods.bases.local_training import LocalTraining


@settings
class Centralised(LocalTraining):
    """One model per architecture, trained on everybody's examples."""

    pooled = True
