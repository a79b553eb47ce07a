"""Test-time augmentation: a network that looks at several views of an image and gives the mean of its answers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class MeanOverViews(nn.Module):
    """Gives log probabilities (N, C): the mean of a network's probabilities over views of each image.

    The views are the image, where `shift_px` is above 0 also moved by so many pixels in four directions (its edge is
    repeated), and where `flip` each of them mirrored too: 2, 5 or 10. Logits and log probabilities have the same
    softmax, so that it takes the place of the network.
    """

    def __init__(self, network: nn.Module, *, flip: bool, shift_px: int) -> None:
        super().__init__()
        self.network, self.flip, self.shift_px = network, flip, shift_px

    def forward(self, images: Tensor) -> Tensor:
        views = [*self._moved(images)]
        if self.flip:
            views += [view.flip(3) for view in views]
        shares = torch.stack([self.network(view).float().softmax(dim=1) for view in views])
        return shares.mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny).log()

    def _moved(self, images: Tensor) -> list[Tensor]:
        if not self.shift_px:
            return [images]
        height, width, by = images.shape[2], images.shape[3], self.shift_px
        wide = pad(images, (by, by, by, by), mode="replicate")
        places = [(by, by), (0, by), (2 * by, by), (by, 0), (by, 2 * by)]
        # Copies, since a network may change the images that it is given.
        return [wide[:, :, top : top + height, left : left + width].clone() for top, left in places]


def with_views(network: nn.Module, *, flip: bool, shift_px: int) -> nn.Module:
    """The network, or it over several views where there are any beside the image itself."""
    return MeanOverViews(network, flip=flip, shift_px=shift_px).eval() if flip or shift_px else network


def plain_network(network: nn.Module) -> nn.Module:
    """The network that looks at an image once."""
    return network.network if isinstance(network, MeanOverViews) else network
