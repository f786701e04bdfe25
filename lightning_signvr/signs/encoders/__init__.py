"""Randomized signs: numbers whose sign is drawn with a probability that tells the magnitude.

An encoder takes a direction and random numbers, and returns numbers of which the vote takes the sign.
Where the direction is 0 or NaN, so is the result: that coordinate abstains.
"""

from lightning_signvr.signs.encoders.dither import dither
from lightning_signvr.signs.encoders.noise import NOISES, Noise, noise_from
from lightning_signvr.signs.encoders.radius import (
    MAGNITUDE_POLICIES,
    RADIUS_POLICIES,
    RadiusPolicy,
    clipped,
    magnitude_of,
    magnitudes,
    merged_magnitudes,
    radius_of,
)

__all__ = [
    "MAGNITUDE_POLICIES",
    "NOISES",
    "RADIUS_POLICIES",
    "Noise",
    "RadiusPolicy",
    "clipped",
    "dither",
    "magnitude_of",
    "magnitudes",
    "merged_magnitudes",
    "noise_from",
    "radius_of",
]
