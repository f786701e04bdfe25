from __future__ import annotations

import math

import pytest
import torch

from lightning_signvr.signs.definition import abstains, check_signable, is_negative
from tests.signs.values import DTYPES, sign, special_values


@pytest.mark.parametrize("dtype", DTYPES)
def test_definition_holds_for_special_values(dtype):
    values = special_values(dtype)
    signs = [sign(number) for number in values.tolist()]
    assert is_negative(values).tolist() == [each < 0 for each in signs]
    assert abstains(values).tolist() == [each == 0 for each in signs]


def test_special_values_are_what_the_tests_need():
    for dtype in DTYPES:
        numbers = special_values(dtype).tolist()
        assert sum(map(math.isnan, numbers)) == 2
        assert sum(math.isinf(number) for number in numbers) == 2
        assert sum(0 < abs(number) < torch.finfo(dtype).smallest_normal for number in numbers) == 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"gradient has dtype \w+, .*supported are float32, .*convert"):
        check_signable(torch.zeros(3, dtype=dtype), "gradient")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_is_refused_with_the_remedy():
    for sparse in (torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr()):
        with pytest.raises(TypeError, match=r"gradient is sparse .*sparse=False"):
            check_signable(sparse, "gradient")


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"gradient must be a torch.Tensor, got list"):
        check_signable([1.0], "gradient")
