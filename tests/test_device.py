"""In which precision a device trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automl_tl import device


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_emulates_bf16_trains_in_fp16(
    native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert device.precision(nn.Linear(1, 1)) == expected
