"""Layer 4: torch optimizers that vote. An estimator + an encoder + a vote + an update each."""

from lightning_signvr.optimizers.anchored import AnchoredOptimizer
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.clipping import clip_grad_norm_
from lightning_signvr.optimizers.dvrfs import DVRQFS, DVRSignFS
from lightning_signvr.optimizers.dvrq import DVRQ
from lightning_signvr.optimizers.dvrsign import DVRSign
from lightning_signvr.optimizers.eflion import EFLion
from lightning_signvr.optimizers.efsignsgd import EFSignSGD
from lightning_signvr.optimizers.efsignum import EFSignum
from lightning_signvr.optimizers.first_batch import FirstBatchOptimizer
from lightning_signvr.optimizers.lion import Lion
from lightning_signvr.optimizers.marslion import MARSLion
from lightning_signvr.optimizers.noisysignsgd import NoisySignSGD
from lightning_signvr.optimizers.proxsignsgd import ProxSignSGD
from lightning_signvr.optimizers.signprox import SignProx
from lightning_signvr.optimizers.signrvr import SignRVM, SignRVR
from lightning_signvr.optimizers.signsgd import SignSGD
from lightning_signvr.optimizers.signsvrg import SignSVRG
from lightning_signvr.optimizers.signum import Signum
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.optimizers.ssdm import SSDM
from lightning_signvr.optimizers.ssvr import SSVR
from lightning_signvr.optimizers.ssvrfs import SSVRFS
from lightning_signvr.optimizers.ssvrmv import SSVRMV
from lightning_signvr.optimizers.stosignsgd import StoSignSGD
from lightning_signvr.optimizers.voted_gradients import vote_gradients

__all__ = [
    "DVRQ",
    "DVRQFS",
    "SSDM",
    "SSVR",
    "SSVRFS",
    "SSVRMV",
    "AnchoredOptimizer",
    "DVRSign",
    "DVRSignFS",
    "EFLion",
    "EFSignSGD",
    "EFSignum",
    "FirstBatchOptimizer",
    "Lion",
    "MARSLion",
    "NoisySignSGD",
    "ProxSignSGD",
    "SignOptimizer",
    "SignProx",
    "SignRVM",
    "SignRVR",
    "SignSGD",
    "SignSVRG",
    "Signum",
    "SnapshotOptimizer",
    "StoSignSGD",
    "clip_grad_norm_",
    "vote_gradients",
]
