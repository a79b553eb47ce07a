"""Arrays of NumPy as images: which shapes and values are pixels, and what is said of the others."""

import io
from typing import Any

import numpy as np
import pytest

from twinrun.decoding.npy import open_npy
from twinrun.decoding.samples import FormatError, Samples


def stored(array: Any) -> io.BytesIO:
    file = io.BytesIO()
    np.save(file, array)
    return file


def opened(array: Any, bands: tuple[int, ...] | None = None) -> Samples:
    return open_npy(stored(array), bands).load()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", ">u2", "<u2"])
def test_integers_are_read_in_any_order_of_bytes_and_axes(kind: str, order: Any) -> None:
    values = np.arange(24).reshape(2, 4, 3) * (10 if kind == "u1" else 2000)

    samples = opened(np.asarray(values, kind, order=order))

    assert samples.values.tolist() == values.tolist()
    assert (samples.color, samples.bits) == ("rgb", 8 if kind == "u1" else 16)


@pytest.mark.parametrize(
    ("array", "expected", "bits"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255], 8),
        (np.array([[False, True]]), [0, 1], 1),
        (np.array([[0, 255]], np.int64), [0, 255], 8),
        (np.array([[0.0, 1.5]]), [0.0, 1.5], None),
        (np.array([[-0.5, 1.0]]), [-0.5, 1.0], None),
        (np.array([[0.0, np.nan]]), [0.0, np.nan], None),
        (np.array([[-1, 255]], np.int64), [-1, 255], None),
    ],
)
def test_values_have_a_range_where_they_fit_one_and_otherwise_none(array: Any, expected: list[Any], bits: Any) -> None:
    samples = opened(array)

    np.testing.assert_array_equal(samples.values.ravel(), expected)
    assert samples.bits == bits
    assert (bits is None) == ("its values" in samples.unranged)


def test_a_fourth_band_is_alpha_and_named_bands_are_taken_in_their_order() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)

    with_alpha, chosen = opened(values), opened(values, (3, 1, 2))

    assert with_alpha.alpha is not None
    assert with_alpha.alpha.tolist() == values[:, :, 3].tolist()
    assert with_alpha.values.shape == (2, 3, 3)
    assert chosen.alpha is None
    assert chosen.values.tolist() == values[:, :, [2, 0, 1]].tolist()


@pytest.mark.parametrize(
    ("array", "bands", "problem"),
    [
        (np.zeros((3, 8, 8), np.uint8), None, r"channels first: np\.moveaxis"),
        (np.zeros((8, 8, 7), np.uint8), None, r"C = 1, 3 or 4 \(or name the bands in params\.yaml: ingest\.bands\)"),
        (np.zeros((8, 8, 7), np.uint8), (1, 2, 9), "has 7 bands and not the band 9"),
        (np.zeros((8,), np.uint8), None, r"shape \(8,\)"),
        (np.zeros((0, 8), np.uint8), None, r"shape \(0, 8\)"),
        (np.zeros((2, 2), complex), None, "NumPy array of complex128"),
        (np.array([[None]]), None, "NumPy array of object"),
    ],
)
def test_an_array_that_is_no_image_is_refused_by_its_header(array: Any, bands: Any, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        open_npy(stored(array), bands)


def test_a_file_that_was_cut_is_refused_with_the_share_that_is_there() -> None:
    whole = stored(np.zeros((40, 40), np.uint8)).getvalue()

    with pytest.raises(FormatError, match="truncated after 50%"):
        open_npy(io.BytesIO(whole[: len(whole) // 2]), None)
