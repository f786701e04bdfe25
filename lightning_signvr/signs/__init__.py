"""Layer 1: tensors and bits. Pack, unpack, tally; one definition of sign. No process group."""

from lightning_signvr.signs.batch import add_signs_all_, pack_all
from lightning_signvr.signs.codec import (
    add_signs_,
    pack_signs,
    pack_signs_and_abstentions,
    packed_size,
    unpack_signs,
)
from lightning_signvr.signs.definition import SUPPORTED_DTYPES, check_signable
from lightning_signvr.signs.details import Details, examine
from lightning_signvr.signs.planes import count_ones, count_planes, read_planes
from lightning_signvr.signs.random_bits import random_bytes, random_uniform
from lightning_signvr.signs.recipes import CorrectedAverage, Direction, MovingAverage, Recipe, Recursive
from lightning_signvr.signs.tally import Counts, Tally, majority

__all__ = [
    "SUPPORTED_DTYPES",
    "CorrectedAverage",
    "Counts",
    "Details",
    "Direction",
    "MovingAverage",
    "Recipe",
    "Recursive",
    "Tally",
    "add_signs_",
    "add_signs_all_",
    "check_signable",
    "count_ones",
    "count_planes",
    "examine",
    "majority",
    "pack_all",
    "pack_signs",
    "pack_signs_and_abstentions",
    "packed_size",
    "random_bytes",
    "random_uniform",
    "read_planes",
    "unpack_signs",
]
