"""Layer 5: torchmetrics of what votes decide and send, and of gradients.

=============================  ===================  =====================================================
class                          ``update``           value
=============================  ===================  =====================================================
:class:`SignAgreement`         ``votes``            mean of ``|sum of signs| / voters``
:class:`TieRate`               ``votes``            share of the coordinates that were tied
:class:`AbstainRate`           ``votes``            share of the votes that were not cast
:class:`FlipRate`              ``votes``            share of the coordinates that changed their sign
:class:`VoteMargin`            ``votes``, detailed  histogram of ``|votes for + - votes for -|``
:class:`WorkerAgreement`       ``votes``, detailed  share of each worker's votes with the outcome
:class:`CommunicationSavings`  ``vote``             bytes and bits, beside an all-reduce
:class:`GradientNorm`          ``gradients``        l1, l2 or l-infinity norm of the gradient
=============================  ===================  =====================================================

``votes`` is what a vote returned, which is also ``vote.last``; detailed: with ``vote.detailed = True``.
"""

from lightning_signvr.metrics.abstain_rate import AbstainRate
from lightning_signvr.metrics.communication_savings import CommunicationSavings
from lightning_signvr.metrics.flip_rate import FlipRate
from lightning_signvr.metrics.gradient_norm import GradientNorm
from lightning_signvr.metrics.sign_agreement import SignAgreement
from lightning_signvr.metrics.tie_rate import TieRate
from lightning_signvr.metrics.vote_margin import VoteMargin
from lightning_signvr.metrics.worker_agreement import WorkerAgreement

__all__ = [
    "AbstainRate",
    "CommunicationSavings",
    "FlipRate",
    "GradientNorm",
    "SignAgreement",
    "TieRate",
    "VoteMargin",
    "WorkerAgreement",
]
