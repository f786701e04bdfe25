"""Train over slow links with one bit per parameter in each direction.

``import lightning_signvr`` registers ``Trainer(strategy="sign_vote")`` and ``Fabric(strategy="sign_vote")``.
Where Lightning is not installed, everything but the strategies and callbacks is there; where the environment
has ``LIGHTNING_SIGNVR_REGISTER=0``, Lightning is not imported and nothing registered before they are used.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from os import environ as _environ

from lightning_signvr.local_gradients import keep_gradients_local
from lightning_signvr.optimizers import SignOptimizer, SignSGD, Signum, vote_gradients
from lightning_signvr.voting import LocalVote, MajorityVote

__version__ = "0.1.0"

__all__ = [
    "LocalVote",
    "MajorityVote",
    "SignOptimizer",
    "SignSGD",
    "Signum",
    "__version__",
    "keep_gradients_local",
    "vote_gradients",
]

# Lightning has no other way to learn the strategies' names, whichever is imported first.
if _find_spec("lightning") is not None and _environ.get("LIGHTNING_SIGNVR_REGISTER") != "0":
    from lightning_signvr.callbacks import SignVoteMonitor
    from lightning_signvr.strategies import SignVoteStrategy

    __all__ += ["SignVoteMonitor", "SignVoteStrategy"]
else:

    def __getattr__(name: str) -> object:
        packages = {"SignVoteMonitor": "callbacks", "SignVoteStrategy": "strategies"}
        if name not in packages:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if _find_spec("lightning") is None:
            raise ImportError(f"{name} needs Lightning, which is not installed here: pip install lightning")
        return getattr(_import_module(f"{__name__}.{packages[name]}"), name)
