"""For Fabric: ``Fabric(strategy="sign_vote")``, or ``Fabric(strategy=SignVoteStrategy(...))``."""

from lightning_signvr.strategies import FabricSignVoteStrategy as SignVoteStrategy

__all__ = ["SignVoteStrategy"]
