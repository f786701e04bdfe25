"""Layer 7: Lightning callbacks: what to log, what to check, what to say."""

from lightning_signvr.callbacks.communication import CommunicationMonitor
from lightning_signvr.callbacks.first_batch import LargeFirstBatch
from lightning_signvr.callbacks.gradient_norm import GradientNormMonitor
from lightning_signvr.callbacks.monitor import SignVoteMonitor
from lightning_signvr.callbacks.replica_check import ReplicaCheck
from lightning_signvr.callbacks.second_gradient import SecondGradient
from lightning_signvr.callbacks.sign_agreement import SignAgreementMonitor
from lightning_signvr.callbacks.snapshot import SnapshotGradient
from lightning_signvr.callbacks.variance_reduction import VarianceReductionMonitor
from lightning_signvr.callbacks.vote_autopsy import VoteAutopsy

__all__ = [
    "CommunicationMonitor",
    "GradientNormMonitor",
    "LargeFirstBatch",
    "ReplicaCheck",
    "SecondGradient",
    "SignAgreementMonitor",
    "SignVoteMonitor",
    "SnapshotGradient",
    "VarianceReductionMonitor",
    "VoteAutopsy",
]
