"""Where an image lies in the frame that it is fitted into."""

from twinrun.core.arrays import Size

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""


def padded_box(height: int, width: int, size: Size) -> Box:
    """Where an image of `height` x `width` lies in the frame `size` (H, W) when padded: top, left, height, width."""
    scale = min(size[0] / height, size[1] / width)
    down, across = max(1, round(height * scale)), max(1, round(width * scale))
    return (size[0] - down) // 2, (size[1] - across) // 2, down, across


def upright_boxes(height: int, width: int, frame: Size) -> list[Box]:
    """Where a padded image of `height` x `width`, as stored or turned upright, may lie in `frame`; smallest first.

    The larger box of an oblong frame can hold all of the smaller one, and the black beside it, so it is tried last.
    """
    return sorted((padded_box(height, width, frame), padded_box(width, height, frame)), key=lambda box: box[2] * box[3])
