"""An accelerated DDPMPipeline draws diffusers' images: whole chains, byte by byte."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# benchmarks/ is no part of the package. Appended, so that nothing installed is shadowed.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import same_images
from benchmarks.same_images import Chain

pytest.importorskip("diffusers")


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [
        Chain("mnist", 100, 2),
        # Each of its steps takes a tenth of a second there.
        Chain("cifar10", 5, 1),
        *(pytest.param(chain, marks=pytest.mark.nightly) for chain in same_images.CHAINS),
    ],
    ids=lambda chain: f"{chain.network}_{chain.steps}",
)
def test_same_images(chain: Chain) -> None:
    found = same_images.compared(chain)
    assert not same_images.missed(found), found


def test_other_images_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own, seeds = same_images._images, iter((0, 1))
    monkeypatch.setattr(
        same_images, "_images", lambda made, chain: own(made, chain._replace(seed=next(seeds)))
    )
    assert same_images.missed(same_images.compared(Chain("mnist", 3, 1)))
