"""A network that looks at several views of an image."""

import pytest
import torch
from torch import nn

from twinrun.models.views import plain_network, with_views


@pytest.mark.parametrize(("flip", "shift_px", "views"), [(True, 0, 2), (False, 1, 5), (True, 1, 10)])
def test_the_answer_is_the_mean_of_the_probabilities_over_the_views(flip: bool, shift_px: int, views: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    images, seen = torch.rand(2, 1, 6, 6), []
    network.register_forward_hook(lambda _, given, answer: seen.append((given[0], answer)))

    answer = with_views(network, flip=flip, shift_px=shift_px)(images)

    assert len(seen) == views
    assert torch.allclose(answer.exp(), torch.stack([logits.softmax(1) for _, logits in seen]).mean(0))
    assert any(torch.equal(view, images) for view, _ in seen)
    assert any(torch.equal(view, images.flip(3)) for view, _ in seen) == flip


@pytest.mark.parametrize(("flip", "shift_px"), [(True, 0), (False, 1), (True, 1)])
def test_a_network_that_changes_its_images_in_place_sees_the_same_views(flip: bool, shift_px: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(40, 3))
    in_place = nn.Sequential(Doubled(), *plain)
    images = torch.randn(2, 1, 5, 8)

    with torch.inference_mode():
        answer = with_views(in_place, flip=flip, shift_px=shift_px)(images.clone())
        expected = with_views(plain, flip=flip, shift_px=shift_px)(2 * images)

    assert torch.allclose(answer, expected)


class Doubled(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mul_(2)


def test_one_view_is_the_network_itself() -> None:
    network = nn.Linear(1, 1)

    assert with_views(network, flip=False, shift_px=0) is network
    assert plain_network(with_views(network, flip=True, shift_px=0)) is plain_network(network) is network
