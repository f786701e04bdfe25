"""Layer 3: regularizers with their proximal operators. Tensors only.

A regularizer ``r`` has a value ``r(x)`` and a proximal operator
``prox(x, step) = argmin_u r(u) + ||u - x||^2 / (2 step)``; where ``r`` is a mean of simpler terms, these are
its ``components``.

=========================  ============================================  ====================================
class                      value                                         prox
=========================  ============================================  ====================================
:class:`L1`                ``strength * sum |x_i|``                      soft threshold
:class:`SquaredL2`         ``strength / 2 * sum x_i^2``                  shrink by a factor
:class:`ElasticNet`        ``sum l1 * |x_i| + l2 / 2 * x_i^2``           soft threshold, then shrink
:class:`Box`               0 in ``[lower, upper]``, +inf outside         clamp
:class:`NonNegative`       0 where all ``x_i >= 0``, +inf elsewhere      clamp
:class:`L0`                ``strength *`` number of non-zeros            hard threshold
:class:`GroupL21`          ``strength * sum`` of group norms             soft threshold of group norms
:class:`NuclearNorm`       ``strength * sum`` of singular values         soft threshold of singular values
:class:`TotalVariation1d`  ``strength * sum |x_{i+1} - x_i|``            taut string; 2 components
:class:`TotalVariation2d`  the same along rows and columns               of its 4 components
=========================  ============================================  ====================================
"""

from lightning_signvr.proximal.base import Regularizer
from lightning_signvr.proximal.cardinality import L0
from lightning_signvr.proximal.constraints import Box, NonNegative
from lightning_signvr.proximal.group import GroupL21
from lightning_signvr.proximal.norms import L1, ElasticNet, SquaredL2
from lightning_signvr.proximal.nuclear import NuclearNorm
from lightning_signvr.proximal.total_variation import TotalVariation1d, TotalVariation2d

__all__ = [
    "L0",
    "L1",
    "Box",
    "ElasticNet",
    "GroupL21",
    "NonNegative",
    "NuclearNorm",
    "Regularizer",
    "SquaredL2",
    "TotalVariation1d",
    "TotalVariation2d",
]
