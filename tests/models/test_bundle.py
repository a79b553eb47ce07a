"""A model on disk is loaded only if every byte is what was written."""

import gc
import io
import json
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from clock import takes_at_most
from typer.testing import CliRunner

from twinrun.base.errors import BundleError
from twinrun.base.files import replacing_folder, write_json
from twinrun.cli.main import app
from twinrun.models.architectures import build_network
from twinrun.models.bundle import Preprocessing, load_bundle, save_bundle, weights_hash
from twinrun.models.predict import of_this_thread, probabilities

PREPARATION = Preprocessing(
    size_px=(16, 16), channels="gray", fit="pad", resample="bilinear", max_pixels=1000, mean=(0.3,), std=(0.2,)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = build_network("lenet5", channels=1, size_px=(16, 16), classes=3, seed=5)
    save_bundle(
        tmp_path / "bundle",
        network.state_dict(),
        architecture="lenet5",
        classes=("a", "b", "c"),
        preprocessing=PREPARATION,
    )
    return tmp_path / "bundle"


def test_a_bundle_comes_back_as_it_was_written(folder: Path) -> None:
    bundle = load_bundle(folder)

    assert bundle.classes == ("a", "b", "c")
    assert bundle.preprocessing == PREPARATION
    assert bundle.weights_hash == json.loads((folder / "model.json").read_bytes())["weights_hash"]


def test_a_model_that_was_unpacked_among_the_networks_of_a_project_does_not_consent_to_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, source = Path("networks/nice"), b"from pathlib import Path\nPath('ran').touch()\n"
    settings: dict[str, Any] = {"architecture": f"{folder}/network.py:build", "classes": ("a", "b")}
    for place in (folder, Path("networks/copy")):
        save_bundle(place, {"weight": torch.zeros(1)}, preprocessing=PREPARATION, source=source, **settings)

        refused = CliRunner().invoke(app, ["predict", str(folder / "network.py"), "--model", str(place)])

        assert isinstance(refused.exception, BundleError)
        assert "holds the source code" in str(refused.exception)
        assert not Path("ran").exists()


def test_a_small_file_that_names_a_huge_network_is_refused_before_the_network_is_built(tmp_path: Path) -> None:
    huge: dict[str, Any] = {"architecture": "regnet_y_128gf", "classes": ("a", "b")}  # 645 million weights
    save_bundle(tmp_path / "bundle", {"weight": torch.zeros(1)}, preprocessing=PREPARATION, **huge)

    with takes_at_most(2), pytest.raises(BundleError, match="far more weights"):
        load_bundle(tmp_path / "bundle")


def test_a_network_of_which_most_is_replaced_while_it_is_built_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinrun.models.bundle._SMALL_NETWORK", 0)
    pruned = "timm/efficientnet_b1_pruned"  # the smallest of those that timm builds whole, then prunes
    network = build_network(pruned, channels=1, size_px=(16, 16), classes=2, seed=5)
    save_bundle(tmp_path, network.state_dict(), architecture=pruned, classes=("a", "b"), preprocessing=PREPARATION)

    assert load_bundle(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_numbers_are_refused(dtype: torch.dtype, folder: Path) -> None:
    tensors = {"bias": torch.tensor([1.0, float("nan")], dtype=dtype)}
    save_bundle(folder, tensors, architecture="mlp", classes=("a", "b"), preprocessing=PREPARATION)

    with pytest.raises(BundleError, match="bias holds NaN or infinity"):
        load_bundle(folder)


@pytest.mark.parametrize(("flip", "shift_px", "views"), [(True, 0, 2), (False, 2, 5), (True, 2, 10)])
def test_a_bundle_with_test_views_gives_the_mean_of_its_answers_for_them(
    folder: Path, tmp_path: Path, flip: bool, shift_px: int, views: int
) -> None:
    plain = load_bundle(folder)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    places = [(2, 2), *([(0, 2), (4, 2), (2, 0), (2, 4)] if shift_px else [])]
    shown = [wide[:, top : top + 16, left : left + 16] for top, left in places]
    shown += [image[:, :, ::-1] for image in shown] if flip else []
    save_bundle(
        tmp_path / "several",
        plain.network.state_dict(),
        architecture="lenet5",
        classes=plain.classes,
        preprocessing=replace(PREPARATION, test_flip=flip, test_shift_px=shift_px),
    )

    several = load_bundle(tmp_path / "several")

    expected = np.mean([probabilities(plain, np.ascontiguousarray(view)) for view in shown], axis=0)
    assert len(shown) == views
    assert np.allclose(probabilities(several, images), expected, atol=1e-6)
    assert probabilities(several, images[:1]).tobytes() == probabilities(several, images)[:1].tobytes()
    assert several.weights_hash == plain.weights_hash


def test_a_bundle_from_before_frames_and_filters_is_a_bilinear_square(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_bytes())
    description["format"] = 1
    description["preprocessing"]["size_px"] = 16
    del description["preprocessing"]["resample"]
    with replacing_folder(folder) as temp:
        (temp / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
        write_json(description, temp / "model.json")

    assert load_bundle(folder).preprocessing == PREPARATION


def test_a_bundle_of_a_later_format_is_refused_with_its_number(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_bytes()) | {"format": 3}
    with replacing_folder(folder) as temp:
        (temp / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
        write_json(description, temp / "model.json")

    with pytest.raises(BundleError, match="format 3, and this version reads formats up to 2"):
        load_bundle(folder)


def test_the_same_weights_are_written_as_the_same_bytes(folder: Path) -> None:
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    bundle = load_bundle(folder)

    save_bundle(
        folder,
        bundle.network.state_dict(),
        architecture=bundle.architecture,
        classes=bundle.classes,
        preprocessing=bundle.preprocessing,
    )

    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json", "manifest.json"])
def test_a_changed_byte_anywhere_is_refused_before_anything_is_parsed(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetensors.torch.load", lambda _: pytest.fail("the weights were parsed"))
    content = bytearray((folder / name).read_bytes())

    for place in {0, len(content) // 3, len(content) // 2, len(content) - 2}:
        changed = content.copy()
        changed[place] ^= 1
        (folder / name).write_bytes(changed)

        with pytest.raises(BundleError, match="is not the one that was written"):
            load_bundle(folder)


def test_the_weights_hash_sees_names_shapes_types_and_values() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3).double(), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": -torch.ones(2)},
        {"a": -torch.zeros(2, 3), "b": torch.ones(2)},
    ]

    hashes = {weights_hash(tensors) for tensors in [base, *others]}

    assert len(hashes) == 6
    assert weights_hash(dict(reversed(base.items()))) == weights_hash(base)


def test_the_weights_hash_does_not_see_the_layout_in_memory() -> None:
    tensor = torch.rand(2, 3, 4, 4)

    assert weights_hash({"a": tensor}) == weights_hash({"a": tensor.to(memory_format=torch.channels_last)})


def test_an_image_gets_the_same_bits_alone_in_any_company_and_at_any_place(folder: Path) -> None:
    bundle = load_bundle(folder)
    images = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 1), dtype=np.uint8)
    shuffled = np.random.default_rng(1).permutation(600)

    shares = probabilities(bundle, images)

    assert shares.shape == (600, 3)
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.array_equal(probabilities(bundle, images, shuffled), shares[shuffled])
    assert np.array_equal(probabilities(bundle, images[100:117]), shares[100:117])
    assert all(np.array_equal(probabilities(bundle, images[row : row + 1])[0], shares[row]) for row in (0, 15, 599))


def test_requests_at_once_leave_the_number_of_threads_as_it_was(folder: Path) -> None:
    bundle, before = load_bundle(folder), torch.get_num_threads()
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), dtype=np.uint8)
    torch.set_num_threads(3)

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: probabilities(bundle, images), range(40)))

    with ThreadPoolExecutor(1) as new_thread:
        assert new_thread.submit(torch.get_num_threads).result() == 3
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    torch.set_num_threads(before)


def test_a_model_whose_network_refers_to_itself_is_not_kept_in_memory_once_it_answered(folder: Path) -> None:
    bundle = load_bundle(folder)
    network = ref(bundle.network)
    bundle.network.register_forward_pre_hook(lambda *_, own=bundle.network: own.eval() and None)

    probabilities(bundle, np.zeros((600, 16, 16, 1), np.uint8))
    del bundle
    gc.collect()

    assert network() is None


def test_a_copy_of_a_network_that_answered_has_an_answer_of_its_own_and_threads_that_ended_leave_nothing(
    folder: Path,
) -> None:
    network = load_bundle(folder).network
    of_this_thread(network)
    for _ in range(5):
        thread = Thread(target=of_this_thread, args=(network,))
        thread.start()
        thread.join()

    other = copy(network)
    file = io.BytesIO()
    torch.save(network, file)

    assert of_this_thread(other) is not of_this_thread(network)
    assert len(vars(network)["_twinrun_copies"]._by_thread) == 2
    assert b"twinrun.models.predict" not in file.getvalue()
