"""Checkpoint folders of a plain loop: each worker's own state, whole or not there, refused when damaged."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_signvr.checkpoint_folders import INDEX, CheckpointFolder, write
from lightning_signvr.optimizers import EFSignum, Signum
from lightning_signvr.optimizers.rank_states import with_rank_states
from lightning_signvr.sharded_checkpoints import IN_RANK_FILES, consolidate, load, save
from tests.strategies.helpers import (
    LR,
    LogLines,
    batches,
    parameters_of,
    same,
    same_on_all,
    state_of,
)
from tests.workers import WorkerError, _context, run_workers

STEPS = 4  # before a save, and as many after it
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Signum": lambda parameters: Signum(parameters, lr=LR),
    "EFSignum": lambda parameters: EFSignum(parameters, lr=LR),  # with a state at each shard's owner
}


def make(name: str = "Signum", seed: int = 0) -> tuple[nn.Sequential, Optimizer]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return net, OPTIMIZERS[name](net.parameters())


def train(rank: int, net: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for inputs, targets in batches(rank, 2 * STEPS)[first:last]:
        optimizer.zero_grad()
        (net(inputs) - targets).pow(2).mean().backward()
        optimizer.step()


def trained(rank: int, path: str, name: str = "Signum", steps: int = STEPS) -> np.ndarray:
    net, optimizer = make(name)
    train(rank, net, optimizer, 0, steps)
    contents = {"model": net.state_dict(), "step": steps}
    save(path, contents, {"optimizer": optimizer.state_dict()})
    return state_of(optimizer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- resuming ---------------------------------------------------------------------------------------


def whole_and_resumed(rank: int, folder: str) -> list[tuple[np.ndarray, ...]]:
    ends = []
    for name in OPTIMIZERS:
        path = f"{folder}/{name}"
        trained(rank, path, name)
        whole, resumed = make(name), make(name, seed=9)
        train(rank, *whole, 0, 2 * STEPS)
        checkpoint = load(path)
        resumed[0].load_state_dict(checkpoint["model"])
        resumed[1].load_state_dict(checkpoint["optimizer"])
        train(rank, *resumed, checkpoint["step"], 2 * STEPS)
        ends.append((*map(parameters_of, (whole[0], resumed[0])), *map(state_of, (whole[1], resumed[1]))))
    return ends


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_the_uninterrupted_one(workers: int, tmp_path: Path) -> None:
    everyones = run_workers(whole_and_resumed, workers, str(tmp_path))
    for own in everyones:
        for parameters, resumed_parameters, state, resumed_state in own:
            np.testing.assert_array_equal(resumed_parameters, parameters)
            np.testing.assert_array_equal(resumed_state, state)
    if workers > 1:
        assert not same_on_all([own[0][2] for own in everyones])
    assert len(names(tmp_path / "Signum")) == workers + 2  # of each, what they share, the index


def resume(rank: int, path: str) -> tuple[np.ndarray, int, list[str], str]:
    log, net_and_optimizer = LogLines(), make(seed=9)
    mean, reset = load(path, on_resize="mean"), load(path, on_resize="reset")
    net_and_optimizer[1].load_state_dict(mean["optimizer"])
    assert reset["optimizer"]["state"] == {}
    try:
        load(path)
    except RuntimeError as error:
        return state_of(net_and_optimizer[1]), reset["step"], log.lines, str(error)
    raise AssertionError("another number of workers was not refused")


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 3), pytest.param(3, 2, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)],
    ids=["2-3", "3-2", "4-1"],
)
def test_another_number_of_workers(before: int, after: int, tmp_path: Path) -> None:
    path = str(tmp_path / "saved")
    states = run_workers(trained, before, path)
    mean = np.mean(states, axis=0).astype(np.float32)
    for rank, (state, step, lines, error) in enumerate(run_workers(resume, after, path)):
        np.testing.assert_array_equal(state, mean)
        assert step == STEPS
        assert f"{path} holds the optimizer states of {before} worker(s), and this run has {after}" in error
        assert [line.rsplit("on_resize=")[1] for line in lines] == (
            ['"mean")', '"reset")'] if rank == 0 else []
        )


def test_an_unknown_way_to_resize_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"on_resize must be .* got 'average'"):
        load(tmp_path, on_resize="average")  # type: ignore[arg-type]


def grow_by_loading(path: str, pipe: Any) -> None:
    """Send by how many bytes the memory of this process grew at most that is not a view of files."""
    most, ended = 0, threading.Event()

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, resident())

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    state = load(path, on_resize="mean")["optimizer"]["state"][0]["momentum_buffer"]
    ended.set()
    watcher.join()
    pipe.send((most - before, float(state.mean())))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_mean_of_many_workers_is_not_held_many_times(tmp_path: Path) -> None:
    elements, workers = 5_000_000, 24
    state = {"state": {0: {"momentum_buffer": torch.ones(elements)}}, "param_groups": [{"params": [0]}]}
    path = tmp_path / "saved"
    save(path, {}, {"optimizer": state})
    files = json.loads((path / INDEX).read_text())["index"]["files"]
    [own] = (name for name in files if name.startswith("rank_0-"))
    for rank in range(1, workers):
        name = own.replace("rank_0", f"rank_{rank}")
        os.link(path / own, path / name)
        files[name] = files[own]
    reindex(path, workers=workers, files=files)
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=grow_by_loading, args=(str(path), theirs))
    process.start()
    growth, mean = ours.recv()
    process.join()
    assert mean == 1
    assert growth < 8 * 4 * elements  # the mean, its sum in float64, what is added to it


def save_twice(rank: int, folder: str) -> Any:
    net, optimizer = make()
    train(rank, net, optimizer, 0, STEPS)
    save(f"{folder}/sharded", {"model": net.state_dict()}, {"optimizer": optimizer.state_dict()})
    complete = with_rank_states(optimizer.state_dict(), torch.device("cpu"))
    if rank == 0:
        torch.save({"model": net.state_dict(), "optimizer": complete}, f"{folder}/full.pt")


def test_a_folder_becomes_the_file_of_all_states(tmp_path: Path) -> None:
    run_workers(save_twice, 3, str(tmp_path))
    consolidate(tmp_path / "sharded", tmp_path / "made.pt")
    made, full = (torch.load(tmp_path / name, weights_only=True) for name in ("made.pt", "full.pt"))
    assert len(full["optimizer"]["rank_states"]["states"]) == 3
    assert same(made["model"], full["model"])
    assert made["optimizer"].keys() == full["optimizer"].keys()
    assert all(same(made["optimizer"][key], full["optimizer"][key]) for key in full["optimizer"])


def test_a_name_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"different names, got \['optimizer'\] in both"):
        save(tmp_path / "last", {"optimizer": 1}, {"optimizer": {"state": {}, "param_groups": []}})


# -- whole, or what was there before ----------------------------------------------------------------


def content_of(path: Path) -> int | None:
    """What :func:`put` wrote, complete; None where nothing has the name."""
    if not path.exists():
        return None
    folder = CheckpointFolder(path)
    values = [folder.read(rank)["value"] for rank in (None, *range(folder.workers))]
    assert all(torch.equal(value, values[0]) for value in values)
    return int(values[0][0])


def put(path: Path, value: int, elements: int = 3000) -> None:
    tree = {"value": torch.full((elements,), value)}
    write(path, tree, tree)


def put_and_die(path: Path, calls: int) -> None:
    """In a process of its own, which kills itself before one of the calls that change what is on the disk."""
    left = calls

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    put(path, 2)


def outcome_of_death(path: Path, calls: int) -> int:
    process = _context.Process(target=put_and_die, args=(path, calls))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize(
    "is_there", [pytest.param(False, marks=pytest.mark.slow), True], ids=["new", "there"]
)
def test_kill_9_at_any_point_leaves_one_or_the_other(is_there: bool, tmp_path: Path) -> None:
    seen, calls = set(), 0
    while True:
        path = tmp_path / f"{calls}" / "last.ckpt"
        path.parent.mkdir()
        if is_there:
            put(path, 1)
        is_dead = outcome_of_death(path, calls) == -signal.SIGKILL
        seen.add(content_of(path))
        assert [name for name in names(path.parent) if not name.startswith(".unfinished-")] in (
            [],
            [path.name],
        )
        put(path, 3)
        assert content_of(path) == 3
        assert names(path.parent) == [path.name]  # nothing is left
        assert len(names(path)) == 3
        if not is_dead:
            break
        calls += 1
    assert calls > 8
    assert seen == {1 if is_there else None, 2}


def save_and_die(rank: int, path: str, victim: int, limit: int) -> None:
    trained(rank, path)
    if rank == victim:  # the kernel kills it where it writes beyond the limit
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    trained(rank, f"{path}-new" if limit == 1 else path, steps=1)


@pytest.mark.parametrize(
    ("victim", "limit"),
    [(0, 700), pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(2, 700, marks=pytest.mark.slow)],
)
def test_a_killed_worker_leaves_the_checkpoint_before(victim: int, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "last"
    with pytest.raises(WorkerError, match=f"rank {victim}: died without a word") as error:
        run_workers(save_and_die, 3, str(path), victim, limit)
    assert str(error.value).count("Traceback") >= 2  # the others fail too, rather than wait
    assert [name for name in names(tmp_path) if not name.startswith(".unfinished-")] == ["last"]
    resumed = run_workers(resumed_state, 3, str(path))
    assert [step for _, step in resumed] == [STEPS] * 3
    states = run_workers(trained, 3, str(path))
    for (state, _), expected in zip(resumed, states, strict=True):
        np.testing.assert_array_equal(state, expected)
    assert len(names(path)) == 5


def resumed_state(rank: int, path: str) -> tuple[np.ndarray, int]:
    _, optimizer = make(seed=9)
    checkpoint = load(path)
    optimizer.load_state_dict(checkpoint["optimizer"])
    return state_of(optimizer), checkpoint["step"]


def save_on_full_disk(rank: int, path: str) -> list[str]:
    trained(rank, path)
    messages = []
    for target in (path, f"{path}-new"):
        if rank == 1:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY)
            )  # Python ignores the signal
        try:
            trained(rank, target, steps=1)
        except (OSError, RuntimeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert load(path)["step"] == STEPS
    return messages


def test_a_full_disk_of_one_worker_is_an_error_of_all(tmp_path: Path) -> None:
    first, second = run_workers(save_on_full_disk, 2, str(tmp_path / "last"))
    assert ["failed on rank(s) 1: what they raised says why" in message for message in first] == [True, True]
    assert [message.startswith("OSError") and "rank_1-" in message for message in second] == [True, True]
    assert names(tmp_path) == ["last"]
    assert len(names(tmp_path / "last")) == 4


def save_apart(rank: int, folder: str) -> list[str]:
    messages = []
    for path in (f"{folder}/{rank}/last", f"{folder}/{rank}/there"):  # as if each had a disk of its own
        try:
            trained(rank, path)
        except (OSError, RuntimeError) as error:
            messages.append(str(error))
    return messages


def test_a_disk_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        put(tmp_path / str(rank) / "there", 1)
    (first, first_there), (second, second_there) = run_workers(save_apart, 2, str(tmp_path))
    assert "failed on rank(s) 1" in first
    assert "rank 1 does not see" in second
    assert "on a disk that they share" in second
    assert "rank 0 does not see all of" in first_there
    assert "failed on rank(s) 0" in second_there
    for rank in range(2):
        assert names(tmp_path / str(rank)) == ["there"]
        assert content_of(tmp_path / str(rank) / "there") == 1


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is a folder that is no checkpoint"):
        put(tmp_path, 1)
    assert names(tmp_path) == ["notes.txt"]


def test_what_else_has_the_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a checkpoint of before")
    (tmp_path / "empty").mkdir()
    put(tmp_path / "other", 1)
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for name in ("file", "empty", "link"):
        put(tmp_path / name, 2)
        assert content_of(tmp_path / name) == 2
    assert content_of(tmp_path / "other") == 1
    put(tmp_path / "other", 2)
    assert (tmp_path / "other" / "notes.txt").exists()
    assert names(tmp_path) == ["empty", "file", "link", "other"]


# -- damage -----------------------------------------------------------------------------------------


def outcomes(folder: Path, victim: Path, cases: list[bytes]) -> dict[str, int]:
    """How often a damaged file was refused by its name, and how often all loaded as it was saved."""
    data, expected = victim.read_bytes(), load(folder)
    counts = {"refused": 0, "equal": 0}
    for case in cases:
        victim.write_bytes(case)
        try:
            found = load(folder)
        except RuntimeError as error:
            counts["refused"] += f"{victim} is damaged or incomplete" in str(error)
        else:
            assert same(found, expected)
            counts["equal"] += 1
    victim.write_bytes(data)
    assert sum(counts.values()) == len(cases)
    return counts


def test_the_damage_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(100, 100)
    optimizer = Signum(net.parameters(), lr=LR)
    net(torch.randn(8, 100)).pow(2).mean().backward()
    optimizer.step()
    save(tmp_path / "saved", {"model": net.state_dict()}, {"optimizer": optimizer.state_dict()})
    draw = random.Random(0)
    for name in names(tmp_path / "saved"):
        victim = tmp_path / "saved" / name
        data = victim.read_bytes()
        cuts = [data[:size] for size in range(0, len(data), 4096 if len(data) > 4096 else 16)]
        flips = []
        for _ in range(200):
            case = bytearray(data)
            for _ in range(draw.randint(1, 8)):
                case[draw.randrange(len(data))] ^= draw.randint(1, 255)
            flips.append(bytes(case))
        found = outcomes(tmp_path / "saved", victim, [data, *cuts, *flips])
        assert (
            found["equal"] == 1 if name != INDEX else found["equal"] < 100
        )  # blanks of the index do not count
        victim.unlink()
        with pytest.raises(RuntimeError, match=f"without {INDEX}" if name == INDEX else f"{name} is damaged"):
            load(tmp_path / "saved")
        victim.write_bytes(data)


def damaged_for_one(rank: int, path: str) -> str:
    trained(rank, path)
    if rank == 1:
        next(Path(path).glob("rank_1-*")).unlink()
    try:
        load(path)
    except RuntimeError as error:
        return str(error)
    return ""


def test_damage_of_one_workers_file_is_an_error_of_all(tmp_path: Path) -> None:
    first, second = run_workers(damaged_for_one, 2, str(tmp_path / "saved"))
    assert "loading" in first
    assert "failed on rank(s) 1" in first
    assert "No such file" in second
    assert "rank_1-" in second


def test_files_of_two_saves_do_not_mix(tmp_path: Path) -> None:
    put(tmp_path / "a", 1)
    put(tmp_path / "b", 2)
    ours, theirs = (next((tmp_path / name).glob("rank_0-*")) for name in "ab")
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(RuntimeError, match="its checksum differs"):
        content_of(tmp_path / "a")


def reindex(folder: Path, **changes: Any) -> None:
    """Change the index as a program would that knows how."""
    document = json.loads((folder / INDEX).read_text())
    document["index"].update(changes)
    document["crc32"] = zlib.crc32(json.dumps(document["index"], sort_keys=True).encode())
    (folder / INDEX).write_text(json.dumps(document))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "saved", 1)
    reindex(tmp_path / "saved")
    assert content_of(tmp_path / "saved") == 1
    reindex(tmp_path / "saved", format=2)
    with pytest.raises(RuntimeError, match="has format 2, this version reads 1: update lightning-signvr"):
        CheckpointFolder(tmp_path / "saved")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["shared", "rank_0"])
def test_a_trap_does_not_go_off(kind: str, tmp_path: Path) -> None:
    victim, trap = tmp_path / "victim", {"optimizer": Trap(tmp_path / "victim")}
    plain = {"optimizer": {"param_groups": [], IN_RANK_FILES: "optimizer"}}
    write(tmp_path / "saved", trap if kind == "shared" else plain, trap)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        load(tmp_path / "saved")
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        consolidate(tmp_path / "saved", tmp_path / "made.pt")
    assert not victim.exists()
    torch.load(next((tmp_path / "saved").glob(f"{kind}-*")), weights_only=False)
    assert victim.exists()  # it was one


def test_other_files_in_a_checkpoint_folder_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    write(folder, {"step": 1}, {})
    for name in ("my-weights.pt", "rank_0-mine.pt"):
        (folder / name).write_text("mine")
    write(folder, {"step": 2}, {})
    assert CheckpointFolder(folder).read(None) == {"step": 2}
    assert {file.name for file in folder.glob("*m*.pt")} == {"my-weights.pt", "rank_0-mine.pt"}
    assert len(list(folder.iterdir())) == 3 + 2


def test_a_folder_that_was_not_removed_to_the_end_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    write(folder, {"step": 1}, {})
    (folder / INDEX).unlink()
    write(folder, {"step": 2}, {})
    assert CheckpointFolder(folder).read(None) == {"step": 2}


def test_a_file_that_a_folder_cannot_replace_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "last.ckpt", os.rename
    path.write_text("old")

    def full(source: Any, target: Any) -> None:
        if Path(source).is_dir():
            raise OSError("no room")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="no room"):
        write(path, {"step": 1}, {})
    assert path.read_text() == "old"
    monkeypatch.undo()
    write(path, {"step": 1}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
