"""An epoch shows each image once, or each class as often, in an order that only settings and ids decide."""

import numpy as np
import pytest

from twinrun.training.batches import batch_sizes, epoch_batches, place_keys, shard_slices

KEYS = np.arange(10, 31, dtype=np.uint64)


def test_an_epoch_holds_each_image_once_and_another_epoch_has_another_order() -> None:
    first, again, second = (np.concatenate(epoch_batches(KEYS, 0, epoch, 4)) for epoch in (0, 0, 1))

    assert sorted(first) == list(range(len(KEYS)))
    assert first.tolist() == again.tolist() != second.tolist()


@pytest.mark.parametrize(("images", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (3, [3])])
def test_no_batch_is_a_single_image_unless_there_is_no_other(images: int, sizes: list[int]) -> None:
    assert batch_sizes(images, 4) == sizes


def test_balanced_classes_get_the_same_number_of_places_and_repeats_have_keys_of_their_own() -> None:
    classes = np.array([0] * 18 + [1] * 3)

    places = np.concatenate(epoch_batches(KEYS, 0, 0, 4, classes))

    assert np.bincount(classes[places % len(KEYS)]).tolist() == [11, 10]
    assert len(np.unique(place_keys(KEYS, places))) == len(places) == len(KEYS)


def test_shards_cover_a_batch_and_none_is_a_single_image_of_a_larger_batch() -> None:
    for images in range(1, 20):
        slices = shard_slices(images, 4)
        sizes = [part.stop - part.start for part in slices]

        assert sum(sizes) == images
        assert min(sizes) >= min(images, 2)
        assert max(sizes) - min(sizes) <= 1
