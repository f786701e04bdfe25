"""Layer 2: process groups. The packed-sign all-reduce, its rules and its traffic counters."""

from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.local import LocalVote
from lightning_signvr.voting.majority import MajorityVote
from lightning_signvr.voting.mean import MeanVote
from lightning_signvr.voting.nodes import VOTERS, Voters
from lightning_signvr.voting.nonfinite import NONFINITE_RULES, Nonfinite
from lightning_signvr.voting.result import VotedSigns
from lightning_signvr.voting.rules import TIE_RULES, ZERO_RULES, TieRule, ZeroRule
from lightning_signvr.voting.scaled import ScaledMeanVote
from lightning_signvr.voting.stochastic import StochasticVote
from lightning_signvr.voting.topology import TOPOLOGIES, Topology
from lightning_signvr.voting.traffic import Traffic

__all__ = [
    "NONFINITE_RULES",
    "TIE_RULES",
    "TOPOLOGIES",
    "VOTERS",
    "ZERO_RULES",
    "LocalVote",
    "MajorityVote",
    "MeanVote",
    "Nonfinite",
    "ScaledMeanVote",
    "StochasticVote",
    "TieRule",
    "Topology",
    "Traffic",
    "VoteDetails",
    "VotedSigns",
    "Voters",
    "ZeroRule",
]
