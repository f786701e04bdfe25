"""Read what a hostile rank could send: millions of times, by hand.

    python -m tests.voting.fuzz_headers --cases 10000000

Bytes are honest ones that were changed, or random. Each reader must refuse them with an error that names the
rank, or return what an honest rank could have sent; it must write nothing outside of its plane.
"""

from __future__ import annotations

import argparse
import math
import struct
import time
from collections.abc import Callable
from random import Random

import numpy as np
import torch

from lightning_signvr.signs import Counts
from lightning_signvr.signs.delta import decode_, encode, longest_code
from lightning_signvr.voting.channel import PlaneChannel
from lightning_signvr.voting.exchange import settle
from lightning_signvr.voting.header import BallotHeader, OutcomeHeader

EXTREME = (0, 1, 7, 8, 2**31 - 1, 2**31, 2**32 - 1, 2**48 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
GUARD, FILL = 64, 0x5A
RANK = 3


def changed(honest: bytes, random: Random, keep_length: bool = False) -> bytes:
    """Honest bytes after one to three changes, or random ones."""
    data = bytearray(honest)
    for _ in range(random.randrange(1, 4)):
        kind = random.randrange(0, 6)
        if kind == 0 and data:  # a bit
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif kind == 1 and len(data) >= 8:  # a word
            at = 8 * random.randrange(len(data) // 8)
            data[at : at + 8] = random.choice(EXTREME).to_bytes(8, "little")
        elif kind == 2 and len(data) >= 4:  # half a word
            at = 4 * random.randrange(len(data) // 4)
            data[at : at + 4] = random.randbytes(4)
        elif kind == 3 and len(data) >= 8:  # a small number in the place of another
            at = 8 * random.randrange(len(data) // 8)
            data[at : at + 8] = random.randrange(-2, 12).to_bytes(8, "little", signed=True)
        elif kind == 4:
            data = bytearray(random.randbytes(len(data)))
        elif kind == 5 and not keep_length:
            size = random.randrange(0, len(data) + 20)
            data = (data + bytearray(random.randbytes(20)))[:size]
    return bytes(data)


def ballot(random: Random) -> bool:
    """Whether a changed header of votes was read."""
    tensors, scaled = random.randrange(70), random.random() < 0.5
    missing = [random.random() < 0.5 for _ in range(tensors)]
    scales = [random.randrange(99) / 8 for _ in range(tensors)] if scaled else None
    detailed, exact = (random.random() < 0.5 for _ in range(2))
    step, digest, most = random.randrange(2**40), random.randrange(2**62), 8 * random.randrange(50)
    workers = random.choice([1, 4, 64])
    nonfinite = random.getrandbits(workers)
    honest = BallotHeader(step, digest, most // 16 * 8, missing, scales, detailed, exact, nonfinite)
    data = changed(honest.to_bytes(), random)
    try:
        read = BallotHeader.from_bytes(
            data, tensors, RANK, step, digest, most, scaled, detailed, exact, workers
        )
    except RuntimeError as error:
        return refused(error, f"rank {RANK} ")
    assert (read.step, read.digest, read.detailed, read.exact) == (step, digest, detailed, exact)
    assert read.room in range(0, most + 1, 8)
    assert 0 <= read.nonfinite < 2**workers
    assert len(read.missing) == tensors
    assert all(flag in (False, True) for flag in read.missing)
    assert (read.scales is None) is not scaled
    if read.scales is not None:
        assert len(read.scales) == tensors
        assert all(math.isfinite(scale) and scale >= 0 for scale in read.scales)
    return True


def outcome(random: Random) -> bool:
    """Whether a changed header of an outcome was read."""
    tensors, scaled, numbers = random.randrange(20), random.random() < 0.5, random.randrange(9)
    margin, lost, ties, silent = (random.randrange(10**6) for _ in range(4))
    most = 8 * random.randrange(50)
    scales = [random.randrange(99) / 8 for _ in range(tensors)] if scaled else None
    details = np.array([random.randrange(10**6) for _ in range(numbers)]) if numbers else None
    counts = Counts(margin + lost, margin, ties, silent)
    data = changed(OutcomeHeader(counts, most // 16 * 8, scales, details).to_bytes(), random)
    try:
        read = OutcomeHeader.from_bytes(data, RANK, most, tensors, scaled, numbers)
    except RuntimeError as error:
        return refused(error, f"rank {RANK} ")
    assert 0 <= read.counts.margin <= read.counts.votes <= 2**48
    assert 0 <= read.counts.ties <= 2**48
    assert 0 <= read.counts.silent <= 2**48
    assert read.room in range(0, most + 1, 8)
    if scaled:
        assert read.scales is not None
        assert len(read.scales) == tensors
        assert all(math.isfinite(scale) and scale >= 0 for scale in read.scales)
    if numbers:
        assert read.details is not None
        assert read.details.shape == (numbers,)
        assert 0 <= read.details.min() <= read.details.max() <= 2**48
    return True


def code(random: Random) -> bool:
    """Whether a changed code of a plane was taken; compared with decoding by hand."""
    size = 8 * random.randrange(1, 12)
    memory, plane = guarded(size)
    before = random.randbytes(size)
    plane.copy_(tensor_of(before))
    data = changed(honest_code(before, random), random)
    try:
        decode_(plane, tensor_of(data))
    except ValueError:
        assert plane.numpy().tobytes() == before
        taken = False
    else:
        assert plane.numpy().tobytes() == decoded(before, data)
        taken = True
    assert is_untouched(memory)
    return taken


def channel(random: Random) -> bool:
    """Whether a plane of three ranks was settled, one of which may ask for any room and send any code."""
    size, hostile = 8 * random.randrange(1, 9), random.randrange(3)
    memory, plane = guarded(3 * size)
    under_test = PlaneChannel(1, 3, size, torch.device("cpu"), storage=lambda: plane)
    now = bytes(3 * size)
    for _ in range(2):  # the second time the slot has room
        codes = [honest_code(now[k * size : (k + 1) * size], random) for k in range(3)]
        codes[hostile] = changed(codes[hostile], random)
        rooms = [-(-len(each) // 8) * 8 for each in codes]
        if random.random() < 0.5:
            rooms[hostile] = 8 * random.randrange(0, longest_code(size) // 8 + 1)  # what headers may say
        rooms = [min(room, under_test.most_room) for room in rooms]

        def slots(room: int, codes: list[bytes] = codes) -> torch.Tensor:
            sent = [
                (each[:room] if k == hostile else each).ljust(room, b"\0") for k, each in enumerate(codes)
            ]
            rows = [each if len(each) == room else bytes(room) for each in sent]  # as write() does
            return tensor_of(b"".join(rows)).view(3, room)

        try:
            settle(under_test, rooms, slots(under_test.slot), slots)
        except RuntimeError as error:
            assert is_untouched(memory)
            return refused(error, f"rank {hostile} sent a damaged plane")
        assert is_untouched(memory)
        assert under_test.slot in range(0, under_test.most_room + 1, 8)
        now = plane.numpy().tobytes()
    return True


def refused(error: Exception, beginning: str) -> bool:
    assert str(error).startswith(beginning), error
    return False


READERS: tuple[Callable[[Random], bool], ...] = (*[ballot] * 4, *[outcome] * 3, *[code] * 2, channel)
"""Those that take longer come less often."""


def fuzz(cases: int, seed: int) -> dict[str, list[int]]:
    """How many were read and how many refused, by reader; raises where one misbehaves."""
    random = Random(seed)
    found = {reader.__name__: [0, 0] for reader in READERS}
    for number in range(cases):
        reader = READERS[number % len(READERS)]
        found[reader.__name__][reader(random)] += 1
    return found


def guarded(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A plane of zeros, and the memory that it is in the middle of."""
    memory = torch.full((size + 2 * GUARD,), FILL, dtype=torch.uint8)
    plane = memory[GUARD : GUARD + size]
    return memory, plane.zero_()


def is_untouched(memory: torch.Tensor) -> bool:
    around, guard = memory.numpy().tobytes(), bytes([FILL]) * GUARD
    return around.startswith(guard) and around.endswith(guard)


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def honest_code(before: bytes, random: Random) -> bytes:
    """Of a plane of which some words change."""
    words = np.frombuffer(before, np.int64).copy()
    for _ in range(random.choice([0, 1, 2, words.size])):
        words[random.randrange(words.size)] ^= random.randrange(1, 2**62)
    return encode(tensor_of(before), tensor_of(words.tobytes())).numpy().tobytes()


def decoded(before: bytes, data: bytes) -> bytes:
    """By the description of the code in :mod:`lightning_signvr.signs.delta`."""
    if not data:
        return before
    (count,) = struct.unpack_from("<q", data)
    if count == -1:
        return data[8 : 8 + len(before)]
    words = list(struct.unpack(f"<{len(before) // 8}Q", before))
    changes = struct.unpack_from(f"<{count}Q", data, 8)
    for position, change in zip(struct.unpack_from(f"<{count}i", data, 8 + 8 * count), changes, strict=True):
        words[position] ^= change
    return struct.pack(f"<{len(words)}Q", *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--chunk", type=int, default=100_000, help="cases between lines; default: %(default)s"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    for chunk in range(-(-options.cases // options.chunk)):
        found = fuzz(options.chunk, options.seed + chunk)
        counts = ", ".join(f"{name} {read} read {refused} refused" for name, (refused, read) in found.items())
        done = (chunk + 1) * options.chunk
        print(f"{done} cases in {time.monotonic() - started:.0f} s; of the last: {counts}", flush=True)


if __name__ == "__main__":
    main()
