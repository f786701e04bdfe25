"""What votes decided and cost between two looks."""

from __future__ import annotations

from lightning_signvr.metrics import CommunicationSavings
from lightning_signvr.voting import MajorityVote


class Meter:
    """Reads a vote's counters; nothing is exchanged for it.

    Args:
        vote: the vote to look at.

    Example:
        >>> vote = MajorityVote()
        >>> meter = Meter(vote)
        >>> votes = vote([torch.tensor([-0.3, 2.0])])
        >>> meter.read()["sign_vote/agreement"]
        1.0
        >>> meter.read()
        {}
    """

    def __init__(self, vote: MajorityVote) -> None:
        self.vote = vote
        self.restart()

    def restart(self) -> None:
        """Begin anew, as after the vote went to another step."""
        self._step = self.vote.step
        self._seconds = self._total_seconds()
        self._savings = CommunicationSavings()
        self._savings.update(self.vote)

    def _total_seconds(self) -> float:
        return sum(self.vote.traffic.seconds.values())

    def read(self) -> dict[str, float]:
        """The last vote, and the traffic since the last call per step; empty where no vote was cast since.

        What is not defined is left out, as the savings of a lone worker.
        """
        steps, voted = self.vote.step - self._step, self.vote.last
        if steps <= 0 or voted is None:
            return {}
        self._savings.update(self.vote)
        traffic = {key: float(value) for key, value in self._savings.compute().items()}
        traffic["bytes_sent"] /= steps
        traffic["bytes_received"] /= steps
        traffic["seconds"] = (self._total_seconds() - self._seconds) / steps
        self.restart()
        values = {
            "sign_vote/agreement": voted.agreement,
            "sign_vote/tie_rate": voted.tie_rate,
            "sign_vote/abstain_rate": voted.abstain_rate,
            **{f"comm/{key}": value for key, value in traffic.items()},
        }
        return {key: value for key, value in values.items() if value == value}  # NaN is not itself
