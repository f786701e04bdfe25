"""``lightning-signvr plan``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from math import isinf
from pathlib import Path
from typing import Any, TypeVar

from lightning_signvr.planner.advice import advise, explain_break_even
from lightning_signvr.planner.breakeven import break_even
from lightning_signvr.planner.cost import Prediction, Problem, predict
from lightning_signvr.planner.figures import Cluster, Costs, Link
from lightning_signvr.planner.measured import Measured, load_measured
from lightning_signvr.planner.methods import METHODS, TORCH_STATE
from lightning_signvr.planner.models import assumed_shapes, load_shapes
from lightning_signvr.planner.plot import write_plot
from lightning_signvr.planner.tables import as_table
from lightning_signvr.planner.units import (
    format_bytes,
    format_rate,
    format_seconds,
    parse_count,
    parse_duration,
    parse_rate,
    parse_seconds,
)

Value = TypeVar("Value")
BASELINES = {"fp32": "fp32 DDP", "bf16": "bf16 DDP"}
DEFAULT_LATENCY = 1e-4


def _argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """A type for argparse whose errors say what ``parse`` says."""

    def typed(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return typed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    count, rate = _argument(parse_count), _argument(parse_rate)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--parameters", type=count, help="of the model, such as 25.6M")
    model.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="import path of a class or function that makes the model when called without arguments",
    )
    parser.add_argument("--tensors", type=count, help="parameter tensors, with --parameters")
    parser.add_argument("--workers", type=count, help="processes that train; needed without --measured")
    parser.add_argument("--workers-per-node", type=count, default=1, help="(default: %(default)s)")
    parser.add_argument("--link", type=rate, help="speed between nodes, such as 1Gbit/s or 125MB/s")
    parser.add_argument(
        "--latency", type=_argument(parse_seconds), help="of a message between nodes (default: 0.1ms)"
    )
    parser.add_argument("--node-link", type=rate, help="speed between workers of a node (default: 100Gbit/s)")
    parser.add_argument(
        "--compute",
        type=_argument(parse_duration),
        required=True,
        help="seconds of a step's forward and backward pass, such as 0.12s",
    )
    parser.add_argument(
        "--optimizer",
        choices=list(METHODS),
        default="Signum",
        metavar="NAME",
        help="class of the optimizer that votes (default: %(default)s)",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="figures of lightning_signvr.planner.measure; what is given here as well is not taken from it",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan.

    Returns:
        Exit status: 0, or 2 where an argument cannot be.
    """
    try:
        measured = None if arguments.measured is None else load_measured(arguments.measured)
        problem = _problem(arguments, measured)
        predictions = predict(problem)
        if arguments.plot is not None:
            _plot(problem, predictions, arguments.plot)
    except ValueError as error:
        print(f"lightning-signvr plan: error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(_as_data(problem, predictions), indent=2))
    else:
        print(_as_text(problem, predictions, arguments, measured))
    return 0


def _plot(problem: Problem, predictions: dict[str, Prediction], path: Path) -> None:
    try:
        write_plot(problem, predictions, path)
    except (OSError, ValueError) as error:
        raise ValueError(f"argument --plot: {error}") from error


def _problem(arguments: argparse.Namespace, measured: Measured | None) -> Problem:
    if arguments.model is not None:
        if arguments.tensors is not None:
            raise ValueError("argument --tensors: only with --parameters; --model has tensors of its own")
        shapes = _named("--model", load_shapes, arguments.model)
    else:
        shapes = _named("--tensors", assumed_shapes, arguments.parameters, arguments.tensors)
    return Problem(
        shapes,
        _cluster(arguments, measured),
        arguments.compute,
        METHODS[arguments.optimizer],
        Costs() if measured is None else measured.costs,
    )


def _cluster(arguments: argparse.Namespace, measured: Measured | None) -> Cluster:
    workers = arguments.workers
    if workers is None:
        if measured is None:
            raise ValueError("argument --workers: how many processes train?")
        workers = measured.workers
    if arguments.link is not None:
        link = Link(arguments.link, DEFAULT_LATENCY if measured is None else measured.link.latency)
    elif measured is not None:
        link = measured.link
    else:
        raise ValueError("argument --link: how fast is the network? Or measure it, and use --measured")
    if arguments.latency is not None:
        link = replace(link, latency=arguments.latency)
    cluster = _named("--workers-per-node", Cluster, workers, link, arguments.workers_per_node)
    if arguments.node_link is not None:
        cluster = replace(cluster, node_link=replace(cluster.node_link, bytes_per_second=arguments.node_link))
    return cluster if measured is None else replace(cluster, overlap=measured.overlap)


def _named(argument: str, call: Callable[..., Value], *values: Any) -> Value:
    """``call(*values)``, with the argument's name in what it raises."""
    try:
        return call(*values)
    except ValueError as error:
        raise ValueError(f"argument {argument}: {error}") from error


def _as_text(
    problem: Problem,
    predictions: dict[str, Prediction],
    arguments: argparse.Namespace,
    measured: Measured | None,
) -> str:
    cluster, several = problem.cluster, problem.cluster.workers_per_node > 1
    name = arguments.model or "a model of assumed shapes"
    network = f"{format_rate(cluster.link.bytes_per_second)}, {format_seconds(cluster.link.latency)}"
    if several:
        network += f" between {cluster.nodes} nodes, {format_rate(cluster.node_link.bytes_per_second)} inside"
    costs = "of one CPU core (elsewhere: measure them)" if measured is None else f"from {arguments.measured}"
    fp32 = predictions["fp32"].seconds
    steps = [
        [
            step.name,
            format_seconds(step.seconds),
            f"{fp32 / step.seconds:.2f}x",
            format_bytes(step.bytes_sent),
            format_seconds(step.exchange),
            "during backward" if step.overlapped else "after backward",
        ]
        for step in predictions.values()
    ]
    return "\n".join(
        [
            f"{name}: {problem.parameters:,} parameters in {len(problem.shapes)} tensors; {cluster.workers} "
            f"workers; {network}; forward and backward {format_seconds(problem.compute)}; "
            f"{arguments.optimizer}.",
            f"Costs of packing and updating: {costs}.",
            "",
            as_table(
                ["exchange", "step", "speed-up", "sent per worker", "waiting", "exchanged"],
                steps,
            ),
            "",
            "Break-even speed of the link",
            *(f"  {explain_break_even(problem, other, label)}" for other, label in BASELINES.items()),
            "",
            "Optimizer state per worker, in float32",
            *_memory_table(problem),
            "",
            advise(problem, predictions),
            "A step of one optimizer is not a step of another: compare losses after the same time.",
        ]
    )


def _memory_table(problem: Problem) -> list[str]:
    """A line for each amount of state and number of gradients, with the optimizers that have it."""
    workers, parameters = problem.cluster.workers, problem.parameters
    groups: dict[tuple[float, int], list[str]] = {}
    for name, copies in TORCH_STATE.items():
        groups.setdefault((4.0 * copies * parameters, 1), []).append(f"torch's {name}")
    for name, method in METHODS.items():
        key = (method.state_bytes(parameters, workers), method.gradients)
        groups.setdefault(key, []).append(name)
    rows = [
        [f"{size / (4 * parameters):.3g}", format_bytes(size), str(gradients)]
        for size, gradients in sorted(groups)
    ]
    names = ["optimizers", *(", ".join(groups[key]) for key in sorted(groups))]
    lines = as_table(["copies", "size", "gradients per step"], rows).splitlines()
    return [f"{line}  {text}" for line, text in zip(lines, names, strict=True)]


def _as_data(problem: Problem, predictions: dict[str, Prediction]) -> dict[str, Any]:
    fp32 = predictions["fp32"].seconds
    cluster = problem.cluster
    speeds = {other: break_even(problem, other) for other in BASELINES}
    return {
        "parameters": problem.parameters,
        "tensors": len(problem.shapes),
        "cluster": asdict(cluster),
        "compute": problem.compute,
        "costs": asdict(problem.costs),
        "predictions": {
            name: {**asdict(step), "seconds": step.seconds, "speed_up": fp32 / step.seconds}
            for name, step in predictions.items()
        },
        # null: the vote is faster at any speed; 0: at none
        "break_even_bytes_per_second": {
            other: None if isinf(speed) else speed for other, speed in speeds.items()
        },
        "state_bytes": {
            name: method.state_bytes(problem.parameters, cluster.workers) for name, method in METHODS.items()
        },
        "advice": advise(problem, predictions),
    }
