"""The site: every page is in its navigation, and it builds without a warning or a dead link."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_signvr import cli
from tests.docs.test_snippets import SNIPPET
from tests.workers import run_workers

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def leaves(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in leaves(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(pages) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_public_subpackage_has_a_reference_page() -> None:
    packages = {path.parent.name for path in (ROOT / "lightning_signvr").glob("*/__init__.py")}
    assert packages <= {path.stem for path in (DOCS / "reference").glob("*.md")}


def plans() -> list[Any]:
    console = re.compile(r"```console\n\$ lightning-signvr (plan .*)\n```")
    return [
        pytest.param(command, id=f"{path.stem}-{number}")
        for path in sorted(DOCS.glob("*.md"))
        for number, command in enumerate(console.findall(path.read_text()))
    ]


@pytest.mark.parametrize("command", plans())
def test_the_plans_that_pages_name_can_be_made(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(command)) == 0
    assert re.search("^(Use it|Don't use it)", capsys.readouterr().out, re.MULTILINE)


def find_the_bad_worker(rank: int, folder: str) -> tuple[list[str], list[float]]:
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SNIPPET.findall((DOCS / "debugging.md").read_text())[0], names)
    metrics = names["trainer"].callback_metrics
    return names["autopsy"].findings, [float(metrics[f"sign_vote/worker_agreement/{i}"]) for i in range(4)]


@pytest.mark.slow
def test_the_page_on_debugging_finds_the_bad_worker(tmp_path: Path) -> None:
    for findings, agreement in run_workers(find_the_bad_worker, 4, str(tmp_path)):
        [finding] = findings
        assert finding.startswith("worker(s) 2 vote against the outcome")
        assert agreement[2] < 0.2
        assert min(agreement[:2] + agreement[3:]) > 0.9


# -- the built site ---------------------------------------------------------------------------------

needs_mkdocs = pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("mkdocstrings_handlers") is None,
    reason="needs mkdocs, which `make docs` installs",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "WARNING" not in ended.stdout + ended.stderr
    return folder


@pytest.mark.slow
@needs_mkdocs
def test_no_link_is_dead_and_nothing_is_fetched(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # those of sources, too
    for path in pages:
        text = path.read_text()
        assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"?https?:", text), path
        assert not re.search(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*https?:", text), path
        for link in re.findall(r'(?:href|src)="([^"#]+)', text):
            if "://" not in link and not link.startswith(("mailto:", "data:")):
                assert (path.parent / link).exists(), f"{path.relative_to(site)}: {link}"


@pytest.mark.slow
@needs_mkdocs
def test_docstrings_are_markdown_there(site: Path) -> None:
    for path in (site / "reference").glob("*.html"):
        shown = re.sub(
            r"<details class=\"mkdocstrings-source.*?</details>|<script.*?</script>",
            "",
            path.read_text(),
            flags=re.DOTALL,
        )
        assert not re.search(r":(class|func|meth|mod|attr):", shown), path.name
        assert "====" not in shown, path.name
        assert "doctest: +SKIP" not in shown, path.name
