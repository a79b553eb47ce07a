"""What a network with pretrained weights is before its first step."""

import torch

from twinrun.models.architectures import build_network, find_head
from twinrun.models.pretrained import Pretrained, start_from


def _started(seed: int) -> torch.nn.Module:
    def build(seed: int) -> torch.nn.Module:
        return build_network("timm/tf_efficientnet_lite0", channels=3, size_px=(32, 32), classes=6, seed=seed)

    network = build(seed)
    start_from(network, [Pretrained(build(7).state_dict(), "0" * 64, None, None)], classes=6)
    return network.eval()


def test_a_fresh_head_finds_all_classes_about_equally_probable_and_is_drawn_from_the_seed() -> None:
    one, again, other = (_started(seed) for seed in (1, 1, 2))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    heads = [find_head(network, 6) for network in (one, again, other)]
    first, second, third = (head[1].weight for head in heads if head is not None)

    assert (one(images).softmax(dim=1) - 1 / 6).abs().max() < 0.01
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(one.get_parameter("conv_stem.weight"), other.get_parameter("conv_stem.weight"))
