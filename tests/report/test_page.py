"""The page of real runs, and of runs with everything that a page can show."""

from __future__ import annotations

import math
import re
from pathlib import Path
from time import time
from typing import NamedTuple

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_signvr import SignVoteMonitor
from lightning_signvr.report import read_runs, write_report
from tests.report.pages import Page, write_events
from tests.strategies.helpers import Regression, batches, loader, make_trainer
from tests.workers import run_workers

EPOCHS, STEPS_PER_EPOCH, EVERY, WORKERS = 2, 6, 2, 2
STEPS = EPOCHS * STEPS_PER_EPOCH


class _Trained(NamedTuple):
    bytes_sent: int
    parameters: int
    metrics: dict[str, float]
    seconds: float


def _train(rank: int, folder: str) -> _Trained:
    """An epoch, and another one from its checkpoint, with another Trainer and event file."""
    begun, sent = time(), 0
    checkpoint = f"{folder}/epoch.ckpt"
    for epoch in range(EPOCHS):
        logger = TensorBoardLogger(folder, name="", version="run")
        logger.log_hyperparams({"lr": 0.01, "<name>": "a & b"})
        module = Regression(net=nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)))
        trainer = make_trainer(
            callbacks=[SignVoteMonitor()], logger=logger, log_every_n_steps=EVERY, max_epochs=epoch + 1
        )
        trainer.fit(module, loader(batches(rank, STEPS_PER_EPOCH)), ckpt_path=checkpoint if epoch else None)
        trainer.save_checkpoint(checkpoint)
        logger.finalize("success")
        sent += trainer.strategy.votes[0].traffic.bytes_sent
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    return _Trained(sent, sum(p.numel() for p in module.parameters()), metrics, time() - begun)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def trained(folder: Path) -> _Trained:
    return run_workers(_train, WORKERS, str(folder))[0]


@pytest.fixture(scope="module")
def page(trained: _Trained, folder: Path) -> Page:
    assert write_report(folder / "run", folder / "report.html") == []
    return Page((folder / "report.html").read_text())


def _told(page: Page, name: str) -> str:
    """The text after another one."""
    return page.texts[page.texts.index(name) + 1]


def test_headline_figures_are_those_of_the_run(page: Page, trained: _Trained) -> None:
    assert _told(page, "Steps") == str(STEPS)
    assert _told(page, "Final loss/train") == f"{trained.metrics['loss/train']:.4g}"
    sent, saved = trained.bytes_sent, 4 * trained.parameters * STEPS - trained.bytes_sent
    assert _told(page, "Sent by a worker") == f"{sent / 1000:.1f} kB"
    assert _told(page, "Saved") == f"{saved / 1000:.1f} kB"
    assert 0 < float(_told(page, "Time").removesuffix(" s")) <= trained.seconds + 0.05
    assert f"In {STEPS} steps each worker sent {sent / 1000:.1f} kB." in " ".join(page.texts)


def test_mean_agreement_is_that_of_all_logged_steps(page: Page, folder: Path) -> None:
    [run], _ = read_runs(folder / "run")
    logged = run.scalars["sign_vote/agreement"]
    assert [step for step, _ in logged] == list(range(EVERY - 1, STEPS, EVERY))
    assert _told(page, "Mean sign agreement") == f"{np.mean([value for _, value in logged]):.4g}"


def test_each_tag_of_a_real_run_has_a_chart(page: Page, trained: _Trained) -> None:
    charts = [str(own["aria-label"]) for own in page.all("svg", role="img")]
    single = {tag for tag in trained.metrics if "/layer/" not in tag and not re.search("agreement/", tag)}
    assert {"loss/train", "comm/bytes_sent", "sign_vote/tie_rate"} < single < set(trained.metrics)
    for tag in single:
        assert sum(f" {tag}." in chart for chart in charts) == 1, tag
    assert len(charts) == len(single) + 1  # and that of the workers
    last = f"{trained.metrics['sign_vote/agreement']:.4g} at step {STEPS - 1}, between"
    assert last in next(chart for chart in charts if "Sign agreement" in chart)


def test_settings_are_there_and_escaped(page: Page, folder: Path) -> None:
    assert _told(page, "lr") == "0.01"
    assert _told(page, "<name>") == "a & b"
    assert "<name>" not in (folder / "report.html").read_text()


def test_a_real_run_has_all_sections(page: Page) -> None:
    assert not page.all("div", class_="problems")
    headings = ["In short", "How it went", "Layers that stand out", "Workers that stand out", "Settings"]
    assert [text for text in page.texts if text in headings] == headings
    assert _told(page, "workers") == str(WORKERS)  # a setting that the monitor logs
    assert "setting" not in page.texts  # the heading of its table
    assert _told(page, "worker 1") != "worker 0"
    assert {"net.0", "net.2"} < set(page.texts)


def test_what_was_not_logged_is_left_out(tmp_path: Path) -> None:
    write_events(tmp_path / "run", {"loss": [(0, 2.0), (9, 1.0)]})
    write_report(tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.all("h2")) == 2
    assert {"In short", "How it went"} < set(page.texts)
    assert {"Steps", "Time", "Final loss"} < set(page.texts)
    assert not {"Saved", "Sent by a worker", "Mean sign agreement"} & set(page.texts)


def _layers_and_workers(folder: Path) -> None:
    scalars = {f"sign_vote/agreement/layers.{n}": [(0, 0.9), (9, 0.3 + n / 100)] for n in range(12)}
    scalars |= {f"grad_norm/layer/layers.{n}": [(0, 1.0), (9, 2.0 + n)] for n in range(12)}
    scalars |= {f"sign_vote/agreement/silent.{n}": [(9, math.nan)] for n in range(5)}
    scalars["sign_vote/agreement"] = [(0, 0.9), (9, 0.4)]
    for rank in range(11):
        scalars[f"sign_vote/worker_agreement/{rank}"] = [(0, 0.75), (9, 0.25 if rank == 10 else 0.75)]
    scalars["sign_vote/worker_agreement/2/1"] = [(0, math.nan), (9, math.nan)]
    write_events(folder, scalars)


def test_worst_layers_and_workers(tmp_path: Path) -> None:
    _layers_and_workers(tmp_path / "run")
    write_report(tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    named = [text for text in page.texts if text.startswith("layers.")]
    assert named == [f"layers.{number}" for number in range(10)]
    at = page.texts.index("layers.7")
    assert page.texts[at : at + 3] == ["layers.7", "0.37", "9"]
    assert "run: 10 of 17" in page.texts
    assert not any(text.startswith("silent") for text in page.texts)
    table = page.texts[page.texts.index("at the end", page.texts.index("Workers that stand out")) + 1 :]
    assert table[:3] == ["worker 0", "0.75", "0.75"]
    assert table[9:12] == ["worker 2, optimizer 1", "not a number", "not a number"]
    assert table[33:37] == ["worker 10", "0.5", "0.25", "against the others"]
    assert table.count("against the others") == 1
    assert "Drawn are the 6 lowest of 12." in " ".join(page.texts)
    charts = [str(own["aria-label"]) for own in page.all("svg", role="img")]
    assert len(charts) == 2  # agreement and workers: neither layers nor workers have charts of their own
    assert "worker 10: 0.75 at step 0, 0.25 at step 9" in charts[1]


def test_several_runs_are_drawn_together(tmp_path: Path) -> None:
    write_events(tmp_path / "first", {"loss": [(0, 2.0), (9, 1.0)], "hp_metric": [(0, -1.0)]})
    write_events(tmp_path / "second", {"loss": [(0, 4.0), (9, 3.0)], "once": [(7, 0.125)]})
    write_report(tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    [chart] = page.all("svg", role="img")
    assert "first: 2 at step 0, 1 at step 9" in str(chart["aria-label"])
    assert "second: 4 at step 0, 3 at step 9" in str(chart["aria-label"])
    row = page.texts.index("Final loss")
    assert page.texts[row + 1 : row + 3] == ["1", "3"]
    assert page.texts[page.texts.index("Logged once") :] == [
        "Logged once",
        "first",
        "second",
        "once",
        "0.125",
    ]


def test_all_text_is_escaped(tmp_path: Path) -> None:
    # no slash in it: it is a folder's name, too
    evil = "<script>alert('&')<script>\"onload="
    with SummaryWriter(str(tmp_path / f"run {evil}")) as writer:
        for step in range(2):
            for tag in (evil, f"loss {evil}", f"sign_vote/agreement/{evil}"):
                writer.add_scalar(tag, 1.0 + step, step)
        writer.add_scalar(f"once {evil}", 1.0)
        writer.add_text(f"text {evil}", evil)
        writer.add_text("sign_vote/settings", f"| setting | value |\n|---|---|\n| {evil}! | a|b |")
    write_report(tmp_path / f"run {evil}", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert "<script" not in html
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert sum(evil in text for text in page.texts) >= 6
    assert _told(page, f"{evil}!") == "a|b"


@pytest.mark.parametrize("name", ["run", "layers"])
def test_the_page_needs_no_network(name: str, trained: _Trained, folder: Path, tmp_path: Path) -> None:
    _layers_and_workers(tmp_path / "layers")
    write_report({"run": folder, "layers": tmp_path}[name] / name, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import|//\w", html)
    for _, attributes in Page(html).elements:
        assert not {"src", "href", "xlink:href", "srcset", "data", "action"} & attributes.keys()


def test_the_same_events_give_the_same_page(trained: _Trained, folder: Path) -> None:
    pages = []
    for _ in range(2):
        write_report(folder, folder / "again.html")
        pages.append((folder / "again.html").read_bytes())
    assert pages[0] == pages[1]
