"""The trees find nearly every nearest neighbour that comparing all pairs finds."""

import numpy as np

from twinrun.ingest.copies.forest import grow, nearest


def test_most_nearest_neighbours_are_found_and_their_distances_are_right() -> None:
    random = np.random.default_rng(0)
    points = random.standard_normal((1000, 12)).astype(np.float32)
    points[500:] = points[:500] + random.standard_normal((500, 12)).astype(np.float32) * 0.01
    owners = np.arange(1000, dtype=np.int32)

    found, distance = nearest(grow(points, 8), points, owners)

    expected = np.concatenate([np.arange(500, 1000), np.arange(500)])
    assert (found == expected).mean() > 0.99
    right = found == expected
    assert np.allclose(distance[right], ((points - points[expected]) ** 2).sum(axis=1)[right], atol=1e-3)


def test_a_point_has_no_neighbour_where_there_is_no_other() -> None:
    point = np.ones((1, 4), np.float32)

    found, distance = nearest(grow(point, 2), point, np.zeros(1, np.int32))

    assert (found[0], distance[0]) == (-1, np.inf)
