"""Randomness is a function: the same key, the same draw."""

import numpy as np

from twinrun.core.keyed import id_keys, keyed_order, keyed_uniform
from twinrun.training.batches import batch_sizes, epoch_batches, shard_slices

KEYS = id_keys([f"{i:016x}" for i in range(10_000)])


def test_a_draw_depends_on_its_key_and_on_nothing_else() -> None:
    alone = keyed_uniform(1, 2, KEYS[17:18])

    among_others = keyed_uniform(1, 2, KEYS)[17:18]

    assert alone == among_others
    assert keyed_uniform(1, 3, KEYS[17:18]) != alone
    assert keyed_uniform(2, 1, KEYS[17:18]) != alone


def test_draws_are_uniform_and_those_of_neighbouring_keys_are_unrelated() -> None:
    draws = np.stack([keyed_uniform(seed, epoch, KEYS) for seed in range(3) for epoch in range(3)])

    counts = np.stack([np.histogram(row, bins=20, range=(0, 1))[0] for row in draws])
    correlations = np.asarray(np.corrcoef(draws))[np.triu_indices(len(draws), 1)]
    serial = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in draws]

    assert draws.min() >= 0
    assert draws.max() < 1
    chi_square = ((counts - 500) ** 2 / 500).sum(axis=1)
    assert (chi_square < 43.8).all()  # 19 degrees of freedom: exceeded by 1 in 1,000
    assert np.abs(correlations).max() < 0.045
    assert np.abs(serial).max() < 0.045


def test_the_order_of_an_epoch_is_a_permutation_and_another_one_in_the_next() -> None:
    first, second = keyed_order(KEYS, 0, 1, 0), keyed_order(KEYS, 0, 1, 1)

    assert sorted(first.tolist()) == list(range(len(KEYS)))
    assert (first != second).mean() > 0.99


def test_adding_an_image_leaves_the_relative_order_of_the_others() -> None:
    with_all, without_last = keyed_order(KEYS, 5), keyed_order(KEYS[:-1], 5)

    assert with_all[with_all != len(KEYS) - 1].tolist() == without_last.tolist()


def test_batches_hold_every_image_once_and_none_is_alone() -> None:
    for images in range(1, 70):
        batches = epoch_batches(KEYS[:images], seed=0, epoch=3, batch_size=8)

        assert sorted(np.concatenate(batches).tolist()) == list(range(images))
        assert [len(batch) for batch in batches] == batch_sizes(images, 8)
        assert images == 1 or min(len(batch) for batch in batches) > 1


def test_shards_cover_a_batch_in_order_and_have_two_images_where_the_batch_has() -> None:
    for images in range(1, 40):
        slices = shard_slices(images, 8)

        assert [i for part in slices for i in range(images)[part]] == list(range(images))
        assert images == 1 or min(part.stop - part.start for part in slices) >= 2
