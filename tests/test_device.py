"""Where a model computes and in which precision."""

import pytest
import torch

from minillm import device
from minillm.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def times(monkeypatch):
    """Pretend that products take so many seconds."""

    def pretend(fp32, bf16):
        seconds = {torch.float32: fp32, torch.bfloat16: bf16}
        monkeypatch.setattr(device, "product_seconds", seconds.__getitem__)

    return pretend


def test_precision_as_asked_for():
    assert device.choose_dtype(CPU, "fp32") == (torch.float32, "as asked for")
    assert device.choose_dtype(CPU, "bf16") == (torch.bfloat16, "as asked for")
    with pytest.raises(UserError, match="--precision fp8 is not one of auto, fp32, bf16"):
        device.choose_dtype(CPU, "fp8")


def test_bfloat16_where_it_pays(times):
    times(fp32=2.0, bf16=1.0)
    assert device.choose_dtype(CPU, "auto")[0] == torch.bfloat16
    times(fp32=1.0, bf16=1.0)
    dtype, why = device.choose_dtype(CPU, "auto")
    assert dtype == torch.float32
    assert "1.0 times as fast here, which does not pay" in why


def test_place_gives_its_reasons(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    placement = device.place("fp32")
    assert (placement.device, placement.dtype) == (CPU, torch.float32)
    assert len(placement.lines) == 3
    assert "because PyTorch sees no CUDA GPU" in placement.lines[0]
    assert placement.lines[1] == "precision  float32 (as asked for)"
    assert placement.lines[2].startswith("kernels    torch (")
    assert 0 < device.product_seconds(torch.float32, rows=8, width=8) < 1
