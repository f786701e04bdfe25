"""Two sites with a slow link, as a user would make them; their network is real."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.examples.running import ROOT

ROW = re.compile(r"^(ddp|sign_vote), \w+ +(\d+) +(\S+) +(\S+) MB +(\S+)$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(240)  # where many programs share few cores
def test_votes_make_more_steps_with_fewer_bytes() -> None:
    ended = subprocess.run(
        [sys.executable, "examples/two_sites.py", "--seconds", "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    if ended.returncode == 2 and "two sites cannot be made here" in ended.stderr:
        pytest.skip(ended.stderr.splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    rows = {name: list(map(float, numbers)) for name, *numbers in ROW.findall(ended.stdout)}
    steps, seconds, megabytes, accuracy = zip(rows["ddp"], rows["sign_vote"], strict=True)
    assert steps[1] > 2 * steps[0]
    assert seconds[1] < seconds[0] / 2
    assert 12.5 < megabytes[0] < 13.5  # 3.18 million floats, and TCP's headers
    assert 0.39 < megabytes[1] < 0.5  # as many bits
    assert accuracy[1] > accuracy[0]


def test_without_root_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "two_sites.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["two_sites.py"])
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        os.seteuid(user)
    assert ended.value.code == 2
    assert "two sites cannot be made here: network namespaces need Linux and root" in capsys.readouterr().err
