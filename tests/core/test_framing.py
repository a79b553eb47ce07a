"""Where an image lies in its frame."""

import pytest

from twinrun.core.framing import Box, padded_box, upright_boxes


@pytest.mark.parametrize(
    ("image", "frame", "box"),
    [
        ((100, 100), (32, 32), (0, 0, 32, 32)),
        ((100, 200), (32, 32), (8, 0, 16, 32)),
        ((300, 100), (30, 60), (0, 25, 30, 10)),
        ((10_000, 1), (32, 32), (0, 15, 32, 1)),
    ],
)
def test_a_padded_image_is_in_the_middle_and_touches_two_edges(
    image: tuple[int, int], frame: tuple[int, int], box: Box
) -> None:
    assert padded_box(*image, frame) == box


def test_an_image_turned_upright_is_tried_in_the_smaller_box_first() -> None:
    boxes = upright_boxes(100, 200, (40, 20))

    assert boxes == [padded_box(100, 200, (40, 20)), padded_box(200, 100, (40, 20))]
    assert boxes[0][2] * boxes[0][3] < boxes[1][2] * boxes[1][3]
