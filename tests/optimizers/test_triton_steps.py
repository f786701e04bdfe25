from __future__ import annotations

import pytest

from tests.signs.test_triton_kernels import needs_interpreter, run_in_interpreter


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("which", ["not two_workers", "two_workers"])
def test_steps_with_kernels_end_as_those_without(which: str) -> None:
    run_in_interpreter("tests/optimizers/triton_steps.py", "-k", which)
