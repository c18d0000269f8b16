"""TF32 settings hold inside, and are put back whatever names the caller used for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastddpm.engine import precision


def settings() -> list[Any]:
    """Everything that torch tells about TF32, None where it raises: the old names do so after the
    new ones were written."""
    found: list[Any] = []
    backends = torch.backends
    for read in (
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.fp32_precision,
        lambda: backends.cudnn.conv.fp32_precision,
        lambda: backends.cudnn.rnn.fp32_precision,
        lambda: backends.mkldnn.matmul.fp32_precision,
    ):
        try:
            found.append(read())
        except (RuntimeError, AttributeError):
            found.append(None)
    return found


def new_names() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def as_at_the_start() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = True
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(
    "before",
    [
        lambda: None,
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        new_names,
    ],
    ids=["nothing", "products", "no convolutions", "high", "medium", "new names"],
)
def test_tf32_holds_inside_and_is_put_back(before: Any, tf32: bool) -> None:
    if before is new_names and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the old names only")
    try:
        before()
        found = settings()
        with pytest.raises(KeyError), precision(tf32=tf32):
            assert torch.backends.cudnn.allow_tf32 is tf32
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
            assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
            if hasattr(torch.backends.cudnn, "conv"):
                assert torch.backends.cudnn.conv.fp32_precision == ("tf32" if tf32 else "ieee")
            raise KeyError
        # Who has used the new names cannot read the old ones.
        assert [now for now, then in zip(settings(), found, strict=True) if then is not None] == [
            then for then in found if then is not None
        ]
    finally:
        as_at_the_start()
