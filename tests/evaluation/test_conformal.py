"""Answers with a guarantee: the sets of a peer, coverage by class on real images, "I don't know" for other things."""

import gzip
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from crepes import ConformalClassifier
from crepes.extras import hinge
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.evaluation.conformal import (
    Calibration,
    calibrate,
    independent,
    kinds_of_answers,
    read_calibration,
    score_answers,
    with_calibration,
)

ALPHA = 0.05
CLASSES = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def digits() -> tuple[FloatArray, IntArray]:
    """Logits of 1,597 digits by a weak model that was trained on 200 others, and their classes."""
    images, targets = _digits()
    model = LogisticRegression(C=10, max_iter=300).fit(images[:200], targets[:200])
    return model.decision_function(images[200:]), targets[200:].astype(np.int64)


def test_the_sets_of_each_class_are_those_of_crepes(digits: tuple[FloatArray, IntArray]) -> None:
    logits, targets = digits
    own = _calibrated(logits[:700], targets[:700])

    named = own.probabilities(logits[700:]) >= np.array(own.least)

    known, new = own.probabilities(logits[:700]), own.probabilities(logits[700:])
    peer = ConformalClassifier().fit(hinge(known, np.arange(10), targets[:700]), bins=targets[:700])
    by_class = [
        peer.predict_set(hinge(new), bins=np.full(len(new), at), confidence=1 - ALPHA, smoothing=False)
        for at in range(10)
    ]
    expected = np.stack([by_class[at][:, at] for at in range(10)], axis=1)
    assert all(own.images)
    assert 0.1 < named.mean() < 0.5
    np.testing.assert_array_equal(named, expected.astype(bool))


def test_each_class_is_covered_as_promised_over_many_splits(digits: tuple[FloatArray, IntArray]) -> None:
    logits, targets = digits
    rng, covered, below = np.random.default_rng(0), [], 0

    for _ in range(60):
        order = rng.permutation(len(targets))
        known, new = order[:700], order[700:]
        scores = score_answers(_calibrated(logits[known], targets[known]), logits[new], None, targets[new], CLASSES)
        covered.append([each.share for each in scores.coverage])
        below += any(each.interval[1] < 1 - ALPHA for each in scores.coverage)

    assert (np.mean(covered, axis=0) >= 1 - ALPHA - 0.005).all()
    assert below <= 3  # of 60: intervals of 95% for ten classes together


def test_clips_of_many_frames_give_wide_intervals_that_contain_the_promise(digits: tuple[FloatArray, IntArray]) -> None:
    logits, targets = digits[0].repeat(20, axis=0), digits[1].repeat(20)
    clip, rng, missed = np.arange(len(targets)) // 20, np.random.default_rng(0), 0

    for _ in range(60):
        order = rng.permutation(len(digits[1]))
        known, new = (np.flatnonzero(np.isin(clip, chosen)) for chosen in (order[:300], order[300:600]))
        scores = score_answers(
            _calibrated(logits[known], targets[known], clip[known]),
            logits[new],
            None,
            targets[new],
            CLASSES,
            groups=clip[new],
            calibrated_on=independent(clip[known], targets[known], 10),
        )
        missed += any(each.interval[1] < 1 - ALPHA for each in scores.coverage)

    assert missed <= 3  # of 60: intervals of 95% for ten classes together


def test_photos_in_groups_are_covered_as_promised_and_known_where_another_group_looks_alike(
    digits: tuple[FloatArray, IntArray],
) -> None:
    logits, targets, images = digits[0].repeat(10, axis=0), digits[1].repeat(10), _digits()[0][200:].repeat(10, axis=0)
    group, rng, covered, unknown = np.arange(len(targets)) // 10, np.random.default_rng(0), [], []

    for at in range(60):
        order = rng.permutation(len(digits[1]))
        known, new = np.flatnonzero(np.isin(group, order[:30])), 10 * order[30:600]
        features = images if at < 5 else None  # which take time
        own = calibrate(
            logits[known], None if features is None else features[known], targets[known], ALPHA, "f" * 64, group[known]
        )
        assert own is not None
        assert sum(own.images) == 30
        scores = score_answers(own, logits[new], None if features is None else features[new], targets[new], CLASSES)
        covered.append(scores.coverage[0].share)
        unknown += [scores.unknown] * (features is not None)

    assert np.mean(covered) >= 1 - ALPHA
    assert np.mean(unknown) < 0.2
    assert calibrate(logits[:180], None, targets[:180], ALPHA, "f" * 64, group[:180]) is None  # 18 groups


def test_one_long_clip_does_not_decide_which_single_photos_look_like_something_else() -> None:
    things, rng = np.array([0] * 1000 + list(range(1, 31))), np.random.default_rng(0)
    sure, photos = np.stack([rng.normal(6, 2, 2000), np.zeros(2000)], axis=1), rng.normal(1, 1, (2000, 8))
    sure[0], photos[0] = (9, 0), 1  # the clip is more usual than most

    own = calibrate(sure[things], photos[things], np.zeros(1030, np.int64), ALPHA, "f" * 64, things)

    assert own is not None
    for features in (None, photos):
        assert np.mean(kinds_of_answers(own, sure, features) == "unknown") < 0.15


def test_one_long_clip_counts_little_beside_single_images_and_much_more_in_the_whole() -> None:
    clip, targets = np.array([0] * 100 + list(range(1, 101))), np.arange(200) // 100

    whole, of_clip, of_single_images = independent(clip, targets, 2)

    assert (of_clip, of_single_images) == (1, 100)
    assert whole == pytest.approx(200**2 / (100**2 + 100))


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_interval_of_every_class_contains_the_promise(
    name: str, digits: tuple[FloatArray, IntArray], request: pytest.FixtureRequest
) -> None:
    logits, targets = digits if name == "digits" else _mnist(request.getfixturevalue("real_images"))
    half = len(targets) // 2

    scores = score_answers(
        _calibrated(logits[:half], targets[:half]), logits[half:], None, targets[half:], CLASSES
    ).coverage

    assert [each.label for each in scores] == ["all", *CLASSES]
    assert all(each.of_its_own for each in scores)
    assert all(each.interval[0] <= 1 - ALPHA <= each.interval[1] for each in scores), scores


def test_a_temperature_calibrates_and_changes_no_label(digits: tuple[FloatArray, IntArray]) -> None:
    logits, targets = digits
    own = _calibrated(8 * logits[:700], targets[:700])  # eight times too sure

    shares = own.probabilities(8 * logits[700:])

    assert abs(shares.max(axis=1).mean() - (shares.argmax(axis=1) == targets[700:]).mean()) < 0.03
    np.testing.assert_array_equal(shares.argmax(axis=1), logits[700:].argmax(axis=1))


def test_answers_are_not_certain_because_every_validation_image_is_right(
    digits: tuple[FloatArray, IntArray],
) -> None:
    logits, targets = digits
    right = np.flatnonzero(logits[:700].argmax(axis=1) == targets[:700])[:100]
    own = _calibrated(logits[right], targets[right])

    shares = own.probabilities(logits[700:])

    assert abs(shares.max(axis=1).mean() - (shares.argmax(axis=1) == targets[700:]).mean()) < 0.03


def test_an_image_that_no_class_claims_is_answered_with_i_dont_know(digits: tuple[FloatArray, IntArray]) -> None:
    logits, targets = digits
    own = _calibrated(logits[:700], targets[:700])

    scores = score_answers(own, np.full((5, 10), logits.min()), None, targets[:5], CLASSES)

    assert scores.unknown == 1
    assert scores.single_accuracy is None
    assert own.unusual(logits[700:], None).mean() < 0.03


def test_features_far_from_all_of_the_validation_split_are_answered_with_i_dont_know_in_onnx_too(
    digits: tuple[FloatArray, IntArray],
) -> None:
    logits, targets = digits
    images = _digits()[0][200:]
    strange = np.random.default_rng(0).uniform(0, 16, (20, 64))
    own = calibrate(logits[:700], images[:700], targets[:700], ALPHA, "f" * 64)
    assert own is not None

    odd = score_answers(own, logits[700:720], strange, targets[700:720], CLASSES)
    file = with_calibration(_linear(np.eye(64, 10, dtype=np.float32)), own.model_dump_json(), "f" * 64, 10)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    together = session.run(["similarity"], {"images": np.concatenate([images[700:], strange]).astype(np.float32)})[0]
    kept = read_calibration(session.get_modelmeta().custom_metadata_map["calibration"], "f" * 64, 10)

    assert odd.unknown == 1
    assert kept is not None
    assert kept.reference is None
    assert 0.002 < (together[:-20, 0] < kept.similarity).mean() < 0.03
    assert (together[-20:, 0] < kept.similarity).all()


def test_a_class_with_too_few_images_is_named_for_all_but_one_in_so_many_and_one_more() -> None:
    rng, known = np.random.default_rng(0), np.array([0] * 60 + [1] * 17 + [2] * 19)
    new = np.array([0] * 60 + [1] * 29 + [2] * 60)

    calibrations, covered, contains = [], [], []
    for _ in range(300):
        logits, others = (rng.normal(size=(len(of), 3)) + np.diag([2, 1, 2])[of] for of in (known, new))
        calibrations.append(_calibrated(logits, known))
        scores = score_answers(calibrations[-1], others, None, new, ("a", "b", "c")).coverage[2]
        covered.append(scores.share)
        contains.append(scores.interval[0] <= 17 / 18 <= scores.interval[1])

    assert {(*own.images,) for own in calibrations} == {(60, 17, 19)}
    assert scores.label == "b"
    assert not scores.of_its_own
    assert np.mean(covered) == pytest.approx(17 / 18, abs=0.015)
    assert np.mean(contains) >= 0.95  # intervals of 95% for three classes together, for 17 and 29 images


def test_a_split_that_is_too_small_gives_no_calibration(digits: tuple[FloatArray, IntArray]) -> None:
    logits, targets = digits

    assert calibrate(logits[:18], None, targets[:18], ALPHA, "f" * 64) is None


def test_a_calibration_of_another_model_is_refused(digits: tuple[FloatArray, IntArray]) -> None:
    own = _calibrated(*digits)
    content = own.model_dump_json()

    assert read_calibration(content, "f" * 64, 10) == own
    assert read_calibration("null\n", "f" * 64, 10) is None
    with pytest.raises(DataError, match="Evaluate again: dvc repro"):
        read_calibration(content, "0" * 64, 10)
    with pytest.raises(DataError, match="cannot be read"):
        read_calibration(content.replace('"energy":', '"energie":'), "f" * 64, 10)


def test_an_onnx_file_carries_the_calibration_of_its_weights_alone(digits: tuple[FloatArray, IntArray]) -> None:
    content = _calibrated(*digits).model_dump_json()
    file = _linear(np.eye(64, 10, dtype=np.float32))

    carried = with_calibration(file, content, "f" * 64, 10)

    assert {each.key: each.value for each in onnx.load_from_string(carried).metadata_props} == {"calibration": content}
    with pytest.raises(DataError, match="The calibration is of the weights"):
        with_calibration(file, content, "0" * 64, 10)


def _digits() -> tuple[FloatArray, IntArray]:
    """The digits in a drawn order: as they come, the last ones are by other writers."""
    images, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(targets))
    return images[order], targets[order]


def _mnist(real_images: Path) -> tuple[FloatArray, IntArray]:
    """Logits of 9,000 test images of MNIST by a weak model that was trained on 1,000 others, and their classes."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((real_images / "mnist" / f"t10k-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    images, targets = pixels[16:].reshape(-1, 784)[:, ::3] / 255, labels[8:].astype(np.int64)
    order = np.random.default_rng(1).permutation(len(targets))  # the first half is by other writers
    model = LogisticRegression(C=0.05, max_iter=100).fit(images[order[:1000]], targets[order[:1000]])
    return model.decision_function(images[order[1000:]]), targets[order[1000:]]


def _linear(weight: NDArray[np.float32]) -> bytes:
    """An ONNX model of one linear layer."""
    node = onnx.helper.make_node("Gemm", ["images", "weight"], ["logits"])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in zip(("images", "logits"), weight.shape, strict=True)
    ]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "weight")])
    opset = onnx.helper.make_opsetid("", 18)
    return bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def _calibrated(logits: FloatArray, targets: IntArray, groups: IntArray | None = None) -> Calibration:
    found = calibrate(logits, None, targets, ALPHA, "f" * 64, groups)
    assert found is not None
    return found
