"""Train over slow links with one bit per parameter in each direction.

``import lightning_signvr`` registers ``Trainer(strategy="sign_vote")``.
"""

from lightning_signvr.callbacks import SignVoteMonitor
from lightning_signvr.optimizers import SignOptimizer, SignSGD, Signum, vote_gradients
from lightning_signvr.strategies import SignVoteStrategy
from lightning_signvr.voting import LocalVote, MajorityVote

__version__ = "0.1.0"

__all__ = [
    "LocalVote",
    "MajorityVote",
    "SignOptimizer",
    "SignSGD",
    "SignVoteMonitor",
    "SignVoteStrategy",
    "Signum",
    "__version__",
    "vote_gradients",
]
