"""A guard against importing the bare source folder.

Python started in a checkout finds the folder fastddpm/ there before an installed package, but the
kernels lie beside it and only an installation maps them to fastddpm.kernels.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def require_installation() -> None:
    """Raise ImportError unless fastddpm.kernels can be found."""
    if find_spec("fastddpm.kernels") is None:
        raise ImportError(
            f"fastddpm was imported from the source folder {Path(__file__).parent}, which has no "
            "kernels and no compiled library. Run `pip install -e .` in the checkout, or start "
            "Python from another folder to use an installed fastddpm."
        )
