"""Fine-tuning, balance and early stopping: each does what it says, and gives the same weights however it is run."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from training_support import TrainableProject, change_params
from typer.testing import CliRunner

from twinrun.base.errors import ModelError, PublishError
from twinrun.cli.main import app
from twinrun.core.keyed import id_keys
from twinrun.core.params import TrainParams, load_params
from twinrun.dataset.manifest import SPLITS
from twinrun.models.architectures import build_network
from twinrun.models.bundle import weights_hash
from twinrun.project.presets import preset_params
from twinrun.training.augment import augment, resized
from twinrun.training.batches import epoch_batches, place_keys
from twinrun.training.fit import Trained
from twinrun.training.folds import Labels
from twinrun.training.interruption import StopRequest
from twinrun.training.job import Job, prepare_job
from twinrun.training.module import EpochScores, build_optimizer
from twinrun.training.range_test import RangeTest, range_test
from twinrun.training.schedule import image_size

TINY = "timm/test_resnet"
RECIPES: dict[str, dict[str, Any]] = {
    "head first": {"head_first_epochs": 1, "backbone_learning_rate": 0.1, "ema_decay": 0.8, "gradient_clip": 1.0},
    "batch norm kept": {"freeze": "batch_norm", "balance": "weights", "optimizer": "sgd"},
    "whitened, with Muon": {
        **{"model": "lenet5", "pretrained": None, "whiten": True, "identity": True, "optimizer": "muon"},
        "augment": {"flip": True, "flip_in_turn": True},
    },
    "airbench94, with Muon": {"model": "airbench94", "pretrained": None, "whiten": True, "optimizer": "muon"},
    "sampling": {
        "balance": "sampling",
        "patience": 1,
        "start_size": 0.5,
        "augment": {"mixup": 0.4, "cutmix": 1.0, "crop_scale": 0.5},
    },
}


@pytest.fixture
def params(trainable: TrainableProject) -> TrainParams:
    """A fine-tuning of three epochs of a tiny network, from weights in a file."""
    Path("data/pretrained").mkdir(parents=True)
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), "data/pretrained/tiny.safetensors")
    trainable.set(model=TINY, pretrained="data/pretrained/tiny.safetensors", epochs=3, batch_size=256, threads=1)
    return load_params().train


def recipe(params: TrainParams, settings: dict[str, Any]) -> TrainParams:
    augment = replace(params.augment, **settings.get("augment", {}))
    return replace(params, **{**settings, "augment": augment})


def job(params: TrainParams, resume_root: str = "resume") -> Job:
    """The training of the working folder."""
    pack, manifest = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")
    return prepare_job(load_params().ingest, params, pack, manifest, Path(resume_root), Path("features"))


def train(params: TrainParams, resume_root: str) -> Trained:
    return job(params, resume_root).run(StopRequest(), lambda *_: None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_same_weights_with_more_threads_and_after_a_stop_in_any_epoch(
    trainable: TrainableProject, params: TrainParams, name: str
) -> None:
    trainable.keep_a_third()
    settings = recipe(replace(params, batch_size=128), RECIPES[name])
    undisturbed = train(settings, "undisturbed")

    def die(_: EpochScores, speed: float | None) -> None:
        if speed is not None:
            raise ZeroDivisionError

    several = replace(settings, threads=3)
    for _ in range(len(undisturbed.history)):
        with pytest.raises(ZeroDivisionError):
            job(several, "stopped").run(StopRequest(), die)
    resumed = train(several, "stopped")

    assert weights_hash(resumed.tensors) == weights_hash(undisturbed.tensors)
    assert resumed.history == undisturbed.history


def test_several_seeds_and_folds_give_the_same_weights_with_more_threads_and_after_a_stop_in_any_of_them(
    params: TrainParams,
) -> None:
    small = replace(params, model="mlp", pretrained=None, epochs=1, batch_size=512, seeds=3, folds=2)
    undisturbed = train(small, "undisturbed")
    assert undisturbed.out_of_fold is not None

    several = replace(small, threads=3)
    for _ in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twinrun.training.job.announce", lambda *_: 1 / 0)  # after the checkpoint of an epoch
            with pytest.raises(ZeroDivisionError):
                train(several, "stopped")
    resumed = train(several, "stopped")

    assert resumed.out_of_fold is not None
    assert weights_hash(resumed.tensors) == weights_hash(undisturbed.tensors)
    assert resumed.out_of_fold.ids == undisturbed.out_of_fold.ids
    assert (resumed.out_of_fold.probabilities == undisturbed.out_of_fold.probabilities).all()
    assert {n: p.tobytes() for n, p in resumed.beside.items()} == {
        n: p.tobytes() for n, p in undisturbed.beside.items()
    }


def test_of_several_seeds_the_one_with_the_median_validation_accuracy_goes_on(params: TrainParams) -> None:
    small = replace(params, model="mlp", pretrained=None, epochs=1, batch_size=512)
    alone = {seed: train(replace(small, seed=seed), f"alone-{seed}") for seed in (5, 6, 7)}

    together = train(replace(small, seed=5, seeds=3), "together")

    def accuracy(trained: Trained) -> float:
        return trained.history[-1].val_accuracy

    _, median, _ = sorted(alone.values(), key=lambda trained: (accuracy(trained), -trained.history[-1].val_loss))
    assert weights_hash(together.tensors) == weights_hash(median.tensors)
    assert together.history == median.history
    assert list(together.beside) == ["seed 5", "seed 6", "seed 7"]


def test_every_image_is_scored_out_of_fold_by_a_network_that_saw_nothing_of_its_unit(params: TrainParams) -> None:
    made = job(replace(params, model="mlp", pretrained=None, folds=3))
    units = Labels.of_all(made.manifest)

    manifests = made._folds()

    for manifest in manifests:
        parts = {name: set(Labels.of(manifest.split(name)).units) for name in SPLITS}
        assert not parts["test"] & (parts["train"] | parts["val"])
        assert {*manifest.split("val").ids} <= {*made.manifest.split("val").ids}
    scored = [image_id for manifest in manifests for image_id in manifest.split("test").ids]
    assert sorted(scored) == sorted(units.ids)
    assert {sum(map(len, manifest.splits.values())) for manifest in manifests} == {len(units.ids)}


def test_head_first_leaves_the_backbone_as_it_is_and_trains_all_of_it_after_that(params: TrainParams) -> None:
    settings = replace(params, head_first_epochs=1, keep="last")
    given = {name: tensor.clone() for name, tensor in job(settings).network.state_dict().items()}
    seen: list[set[str]] = []
    training = job(settings)

    def look(*_: object) -> None:
        state = training.network.state_dict()
        seen.append({name for name, tensor in state.items() if not torch.equal(tensor, given[name])})

    training.run(StopRequest(), look)

    assert seen[0] == {"fc.weight", "fc.bias"}
    assert set(given) - seen[1] == set()


def test_kept_batch_normalisation_has_the_given_weights_and_statistics_to_the_bit(params: TrainParams) -> None:
    settings = replace(params, freeze="batch_norm", epochs=1)
    training = job(settings)
    given = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    norms = [n for n, module in training.network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]

    tensors = training.run(StopRequest(), lambda *_: None).tensors

    of_norms = {name for name in tensors if name.rpartition(".")[0] in norms}
    assert len(of_norms) == 5 * len(norms) > 0
    assert {name for name in tensors if torch.equal(tensors[name], given[name])} == of_norms


def test_the_backbone_learns_by_its_share_of_the_learning_rate(params: TrainParams) -> None:
    plain = replace(params, optimizer="sgd", momentum=0.0, weight_decay=0.0, epochs=1, batch_size=1024, keep="last")
    given = {name: tensor.clone() for name, tensor in job(plain).network.state_dict().items()}
    first = next(name for name, tensor in given.items() if tensor.ndim == 4)

    def steps(share: float) -> dict[str, float]:
        tensors = train(replace(plain, backbone_learning_rate=share), f"share-{share}").tensors
        return {n: float((tensors[n] - given[n]).norm()) for n in (first, "fc.weight")}

    whole, tenth = steps(1.0), steps(0.1)

    assert tenth["fc.weight"] == pytest.approx(whole["fc.weight"], rel=1e-3)
    assert tenth[first] == pytest.approx(0.1 * whole[first], rel=0.1)


def test_without_a_lower_validation_loss_the_training_ends_and_the_best_epoch_is_kept(
    params: TrainParams, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(params, model="lenet5", pretrained=None, patience=2, epochs=8, learning_rate=1e-12)

    trained = train(settings, "resume")

    losses = [scores.val_loss for scores in trained.history]
    lowest = losses.index(min(losses))
    assert len(losses) == lowest + 3 < 8
    assert "no lower validation loss for 2 epochs (train.patience)" in capsys.readouterr().out


def test_images_grow_from_their_first_size_to_the_whole_over_three_quarters_of_the_epochs(params: TrainParams) -> None:
    growing = replace(params, start_size=0.5, epochs=8)

    sizes = [image_size(epoch, (128, 96), growing) for epoch in range(8)]

    assert sizes == [(64, 48), (72, 56), (88, 64), (96, 72), (104, 80), (120, 88), (128, 96), (128, 96)]
    images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    means = images.reshape(2, 4, 2, 4, 2).mean(axis=(2, 4))
    assert np.abs(resized(images, (4, 4))[:, 1:3, 1:3, 0] - means[:, 1:3, 1:3]).max() <= 1


def test_a_network_that_cannot_take_the_first_size_is_refused_before_it_is_trained(params: TrainParams) -> None:
    settings = replace(params, model="lenet5", pretrained=None, start_size=0.3)

    with pytest.raises(ModelError, match=r"lenet5 cannot take images of 8 x 8 pixels.*Raise train\.start_size"):
        job(settings)


def test_a_range_test_ends_where_the_loss_explodes_and_suggests_a_rate_below_its_lowest(params: TrainParams) -> None:
    settings = replace(params, model="mlp", pretrained=None, batch_size=64)
    tests = [
        range_test(job(replace(settings, threads=threads)), lowest=1e-6, highest=100, steps=60, stop=StopRequest())
        for threads in (1, 2)
    ]

    one, other = tests

    assert (one.losses == other.losses).all()
    assert len(one.losses) < 60
    assert 1e-5 < one.suggestion() < 0.1
    assert one.rates[0] == 1e-6
    assert one.suggestion() == pytest.approx(one.rates[one.smoothed.argmin()] / 10)


def test_a_range_test_draws_batches_and_clips_gradients_as_a_training_does(params: TrainParams) -> None:
    whole = len(job(params).manifest.split("train"))
    settings = replace(params, model="mlp", pretrained=None, optimizer="sgd", epochs=1, batch_size=whole)
    balanced = replace(settings, balance="sampling")
    clipped = replace(settings, gradient_clip=1e-6)

    def tested(settings: TrainParams) -> RangeTest:
        return range_test(job(settings), lowest=1e-3, highest=100, steps=30, stop=StopRequest())

    (first,) = train(balanced, "balanced").history
    assert tested(balanced).losses[0] == pytest.approx(first.train_loss, rel=1e-12)
    assert tested(settings).losses[0] != pytest.approx(first.train_loss, rel=1e-12)
    assert len(tested(settings).losses) < 30
    assert len(tested(clipped).losses) == 30


def test_the_fastest_fall_of_a_range_test_lies_before_its_lowest_loss() -> None:
    rates, losses = np.geomspace(1e-4, 1, 5), np.array([2.0, 1.9, 1.0, 9.0, 3.0])

    found = RangeTest(rates, losses, losses)

    assert found.steepest == pytest.approx(1e-2)
    assert RangeTest(rates[:3], losses[2:], losses[2:]).steepest == pytest.approx(1e-5)


def test_the_command_lr_prints_a_suggestion_and_draws_it(trainable: TrainableProject) -> None:
    trainable.set(model="mlp", batch_size=256)

    result = CliRunner().invoke(app, ["lr", "--steps", "20", "--highest", "10"], catch_exceptions=False)

    assert result.exit_code == 0
    assert "Try it: dvc exp run -S train.learning_rate=" in result.stdout
    assert Path(".twinrun/lr/lr.png").read_bytes()[1:4] == b"PNG"
    assert Path(".twinrun/lr/lr.csv").read_text().startswith("learning_rate,loss,smoothed_loss\n1e-06,")
    assert not Path("data/out/train").exists()


@pytest.mark.parametrize("name", ["lr.csv", "lr.png"])
def test_the_command_lr_replaces_its_own_files_and_none_of_a_person(trainable: TrainableProject, name: str) -> None:
    trainable.set(model="mlp", batch_size=256)
    mine = Path("plots", name)
    mine.parent.mkdir()
    mine.write_bytes(b"a photo of mine")
    command = ["lr", "--steps", "10", "--out", "plots"]

    refused = CliRunner().invoke(app, command)

    assert isinstance(refused.exception, PublishError)
    assert f"plots/{name} exists, is not what this command writes, and would be lost" in str(refused.exception)
    assert [path.read_bytes() for path in mine.parent.iterdir()] == [b"a photo of mine"]

    mine.unlink()
    assert [CliRunner().invoke(app, command).exit_code for _ in range(2)] == [0, 0]


@pytest.mark.usefixtures("trainable")
def test_the_command_lr_draws_no_picture_among_the_images() -> None:
    Path("images/cat").mkdir(parents=True)
    change_params(Path("params.yaml"), "ingest", {"source": "folder", "path": "images"})

    result = CliRunner().invoke(app, ["lr", "--steps", "10", "--out", "images/cat/plots"])

    assert "images/cat/plots lies in the images (ingest.path), and lr.png would be one of them" in str(result.exception)
    assert list(Path("images").rglob("*")) == [Path("images/cat")]


def test_a_whitened_first_convolution_gives_maps_of_variance_one_and_is_not_trained(params: TrainParams) -> None:
    settings = replace(params, model="resnet9", pretrained=None, whiten=True, epochs=1, batch_size=1024)
    made = job(settings)
    stem: Any = made.network.get_submodule("stem")
    first = stem[0]
    rows = np.sort(made.manifest.split("train").rows)
    pixels = (torch.from_numpy(made.images[rows].astype(np.float32)) / 255 - made.numerics.mean[0]) / made.numerics.std[
        0
    ]

    maps = torch.nn.functional.conv2d(pixels.permute(0, 3, 1, 2), first.weight)

    mean_squares = maps.square().mean(dim=(0, 2, 3))
    assert first.weight.shape == (64, 1, 3, 3)
    assert mean_squares[:4].tolist() == pytest.approx([1.0] * 4, abs=0.05)  # rarer directions are damped
    assert torch.allclose(first.weight[:9], -first.weight[9:18])
    assert not first.weight.requires_grad
    assert build_optimizer(made.network, settings).param_groups
    assert all(first.weight is not p for g in build_optimizer(made.network, settings).param_groups for p in g["params"])


@pytest.mark.parametrize("recipe", ["whiten", "identity"])
def test_a_recipe_for_convolutions_is_refused_for_a_network_without(recipe: str, params: TrainParams) -> None:
    settings = replace(params, model="mlp", pretrained=None, whiten=recipe == "whiten", identity=recipe == "identity")

    with pytest.raises(ModelError, match=rf"params\.yaml: train\.{recipe}\)\. Set it to false"):
        job(settings)


def test_the_bias_of_a_whitened_convolution_is_zero_and_is_not_trained(params: TrainParams) -> None:
    network: Any = job(replace(params, model="lenet5", pretrained=None, whiten=True)).network
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))

    assert first.bias is not None
    assert not first.bias.any()
    assert not first.bias.requires_grad


def test_convolutions_begin_by_handing_on_what_they_are_given(params: TrainParams) -> None:
    block: Any = job(replace(params, model="resnet9", pretrained=None, identity=True)).network.get_submodule("layer1")
    images = torch.rand(2, 64, 8, 8)

    assert torch.allclose(block[0](images)[:, :64], images, atol=1e-6)


def test_muon_steps_filters_as_torch_does_their_matrices_and_adamw_steps_the_rest() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4))
    network.to(memory_format=torch.channels_last)
    filters, bias = network.get_parameter("0.weight"), network.get_parameter("0.bias")
    matrix = filters.detach().flatten(1).clone().requires_grad_()
    own_bias = bias.detach().clone().requires_grad_()
    settings = replace(preset_params("digits").train, optimizer="muon", weight_decay=0.0)
    optimizer = build_optimizer(network, settings, list(network[2].parameters()))
    muon = torch.optim.Muon([matrix], lr=3e-3, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([own_bias], lr=3e-3, betas=(0.9, 0.999), weight_decay=0.0)

    for _ in range(3):
        gradient, of_bias = torch.randn(8, 3, 3, 3), torch.randn(8)
        filters.grad, bias.grad = gradient, of_bias
        matrix.grad, own_bias.grad = gradient.flatten(1).clone(), of_bias.clone()
        for each in (optimizer, muon, adamw):
            each.step()

    assert torch.allclose(filters.detach().flatten(1), matrix.detach(), atol=2e-4)
    assert torch.allclose(bias, own_bias, atol=1e-6)


def test_flipping_in_turn_mirrors_each_image_in_every_second_epoch() -> None:
    keys = id_keys([f"{i:016x}" for i in range(50)])
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    settings = replace(preset_params("digits").train.augment, shift_px=0, rotate_deg=0.0, flip=True, flip_in_turn=True)

    mirrored = [
        (augment(images, keys, 0, epoch, settings) == images[:, :, ::-1]).all(axis=(1, 2, 3)) for epoch in range(4)
    ]

    assert (mirrored[0] != mirrored[1]).all()
    assert (mirrored[0] == mirrored[2]).all()
    assert (mirrored[1] == mirrored[3]).all()
    assert 10 < mirrored[0].sum() < 40


def test_sampling_gives_every_class_the_same_number_of_places_and_repeats_have_keys_of_their_own() -> None:
    keys = id_keys([f"{i:016x}" for i in range(1000)])
    classes = np.repeat([0, 1, 2], [900, 90, 10])

    epochs = [np.concatenate(epoch_batches(keys, 0, epoch, 64, classes)) for epoch in range(2)]

    assert Counter(classes[epochs[0] % 1000].tolist()) == {0: 334, 1: 333, 2: 333}
    assert len(np.unique(place_keys(keys, epochs[0]))) == 1000
    assert len(np.unique(epochs[0] % 1000)) == 334 + 90 + 10
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())


def test_weights_make_the_classes_equal_in_the_loss_and_an_image_weighs_one_on_average(params: TrainParams) -> None:
    from twinrun.training.fit import class_weights
    from twinrun.training.module import SplitImages

    made = job(params)
    split = made.manifest.split("train")
    rare = np.flatnonzero((split.targets != 3) | (np.arange(len(split)) % 10 == 0))
    fewer = replace(split, rows=split.rows[rare], ids=[split.ids[i] for i in rare], targets=split.targets[rare])

    weights = np.array(class_weights(SplitImages(made.images, fewer, 11)))

    totals = weights[:10] * np.bincount(fewer.targets, minlength=10)
    assert np.allclose(totals, totals[0])
    assert weights[fewer.targets].mean() == pytest.approx(1.0)
    assert weights[10] == 0  # of a class without images here


@pytest.mark.parametrize(
    ("bias", "logits"),
    [
        (False, "self.head(features.mean((2, 3)))"),
        (True, "self.head(features.mean((2, 3))) + self.other(features.amax((2, 3)))"),
        (True, "self.head(features.permute(0, 2, 3, 1)).mean((1, 2))"),
    ],
)
def test_a_head_that_does_not_give_the_logits_by_itself_is_refused_before_features_are_computed(
    params: TrainParams, bias: bool, logits: str
) -> None:
    Path("networks").mkdir()
    Path("networks/mine.py").write_text(f"""
from torch import nn

class Mine(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.other = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)
        self.head = nn.Linear(4, classes, bias={bias})
    def forward(self, images):
        features = self.conv(images)
        return {logits}

def build(channels, size_px, classes):
    return Mine(channels, classes)
""")
    name, file = "networks/mine.py:build", "data/pretrained/mine.safetensors"
    save_file(build_network(name, channels=1, size_px=(32, 32), classes=10, seed=1).state_dict(), file)

    with pytest.raises(ModelError, match="does not end in a linear layer with a bias"):
        job(replace(params, model=name, pretrained=file, freeze="backbone"))


def test_a_network_without_a_head_cannot_be_trained_head_first(params: TrainParams) -> None:
    settings = replace(params, model="squeezenet1_1", pretrained=None, head_first_epochs=1)

    with pytest.raises(ModelError, match=r"does not end in a linear layer.*train\.head_first_epochs: 0"):
        job(settings)
