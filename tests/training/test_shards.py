"""The gradient of a batch is the same to the bit on any number of threads, and the right one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from twinrun.models.architectures import build_network
from twinrun.models.bundle import weights_hash
from twinrun.models.predict import channel_tensor, normalised
from twinrun.training.shards import Numerics, ShardedNetwork, loaded_at_once

DIGITS = load_digits()
IMAGES = torch.from_numpy((DIGITS.images[:32] * 15).astype(np.uint8).repeat(4, 1).repeat(4, 2)[..., None].copy())
TARGETS = torch.from_numpy(DIGITS.target[:32].astype(np.int64))
FP32 = Numerics(torch.device("cpu"), None, (0.3,), (0.35,))
BF16 = Numerics(torch.device("cpu"), torch.bfloat16, (0.3,), (0.35,))


def load(part: slice) -> tuple[Tensor, Tensor]:
    return IMAGES[part], TARGETS[part]


def hash_after_steps(name: str, numerics: Numerics, *, threads: int, shards: int = 4, steps: int = 2) -> str:
    network = build_network(name, channels=1, size_px=(32, 32), classes=10, seed=1).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    sharded = ShardedNetwork(network, numerics, shards=shards, threads=threads, label_smoothing=0.1, seed=3)
    with sharded:
        for step in range(steps):
            sharded.backward(load, len(IMAGES), step)
            optimizer.step()
    return weights_hash(network.state_dict())


@pytest.mark.parametrize("numerics", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["lenet5", "resnet9", "mobilenet_v3_small"])
def test_training_with_one_thread_and_with_several_gives_the_same_weights(name: str, numerics: Numerics) -> None:
    hashes = {hash_after_steps(name, numerics, threads=threads) for threads in (1, 2, 4)}

    assert len(hashes) == 1


def test_the_number_of_shards_is_part_of_the_recipe_where_batches_are_normalised() -> None:
    assert hash_after_steps("resnet9", FP32, threads=2, shards=4) != hash_after_steps(
        "resnet9", FP32, threads=2, shards=2
    )


@pytest.mark.parametrize("threads", [4, 16])
def test_more_threads_than_there_are_tensors_to_add_give_the_same_gradients(threads: int) -> None:
    def gradients(threads: int) -> list[Tensor]:
        network = build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=1)
        head = list(network.parameters())[-2:]  # all that is trained at first, where a network starts pretrained
        with ShardedNetwork(network, FP32, shards=16, threads=threads, label_smoothing=0.1, seed=3) as sharded:
            sharded.train_only(head)
            sharded.backward(load, len(IMAGES), step=0)
        return [parameter.grad for parameter in head if parameter.grad is not None]

    alone, together = gradients(1), gradients(threads)

    assert len(alone) == 2
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("shards", [1, 3, 4, 7])
def test_the_gradient_is_that_of_the_mean_loss_over_the_whole_batch(shards: int) -> None:
    network = build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=1)
    pixels = normalised(IMAGES, channel_tensor(FP32.mean), channel_tensor(FP32.std))
    loss = cross_entropy(network(pixels), TARGETS, label_smoothing=0.1)
    wanted = torch.autograd.grad(loss, list(network.parameters()))

    with ShardedNetwork(network, FP32, shards=shards, threads=2, label_smoothing=0.1, seed=0) as sharded:
        result = sharded.backward(load, len(IMAGES), step=0)

    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale_is_trained", [True, False])
def test_running_statistics_are_the_mean_over_the_shards(scale_is_trained: bool) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32 * 32), nn.Linear(32 * 32, 10))
    norm = network[1]
    norm.weight.requires_grad_(scale_is_trained)
    pixels = normalised(IMAGES, channel_tensor(FP32.mean), channel_tensor(FP32.std)).flatten(1)
    wanted = torch.stack([0.1 * pixels[k : k + 8].mean(dim=0) for k in range(0, 32, 8)]).mean(dim=0)

    with ShardedNetwork(network, FP32, shards=4, threads=2, label_smoothing=0.0, seed=0) as sharded:
        sharded.backward(load, len(IMAGES), step=0)

    torch.testing.assert_close(norm.running_mean, wanted, rtol=1e-4, atol=1e-6)
    assert norm.num_batches_tracked == 1


def test_batch_normalisation_that_averages_over_all_batches_goes_on_counting_where_a_training_does() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32 * 32, momentum=None), nn.Linear(32 * 32, 10))

    def sharded(network: nn.Module) -> ShardedNetwork:
        return ShardedNetwork(network, FP32, shards=4, threads=2, label_smoothing=0.0, seed=0)

    def second_half(part: slice) -> tuple[Tensor, Tensor]:
        return IMAGES[16:][part], TARGETS[16:][part]

    network, again = build(), build()
    with sharded(network) as undisturbed:
        undisturbed.backward(load, 16, step=0)
        stopped = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        undisturbed.backward(second_half, 16, step=1)

    with sharded(again) as resumed:
        again.load_state_dict(stopped)
        resumed.backward(second_half, 16, step=1)

    assert torch.equal(again[1].running_mean, network[1].running_mean)  # type: ignore[index]


def test_batch_normalisation_that_a_network_froze_keeps_its_statistics() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32 * 32), nn.Linear(32 * 32, 10))
    norm = network[1].requires_grad_(False)

    with ShardedNetwork(network, FP32, shards=4, threads=2, label_smoothing=0.0, seed=0) as sharded:
        sharded.backward(load, len(IMAGES), step=0)

    torch.testing.assert_close(norm.running_mean, torch.zeros(32 * 32), rtol=0, atol=0)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    "layer",
    [lambda: nn.Dropout(0.5), lambda: nn.Dropout(0.5, inplace=True), lambda: nn.Dropout2d(0.5)],
    ids=["plain", "in place", "channels"],
)
def test_dropout_depends_on_the_step_and_leaves_the_global_generator_alone(layer: Callable[[], nn.Module]) -> None:
    def gradient(step: int, seed: int = 0) -> Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        with ShardedNetwork(network, FP32, shards=4, threads=2, label_smoothing=0.0, seed=seed) as sharded:
            before = torch.get_rng_state()
            sharded.backward(load, len(IMAGES), step)
            assert torch.equal(before, torch.get_rng_state())
        gradient = network.get_parameter("0.weight").grad
        assert gradient is not None
        return gradient

    assert torch.equal(gradient(0), gradient(0))
    assert not torch.equal(gradient(0), gradient(1))
    assert not torch.equal(gradient(0), gradient(0, seed=1))


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    network = build_network("resnet9", channels=1, size_px=(32, 32), classes=10, seed=1).eval()
    slices = [slice(k, k + 8) for k in range(0, 32, 8)]
    scores = []

    for threads in (1, 3):
        with ShardedNetwork(network, FP32, shards=4, threads=threads, label_smoothing=0.0, seed=0) as sharded:
            scores.append(sharded.scores(network, load, slices))

    assert torch.equal(*scores)
    assert scores[0].shape == (4, 2)


def test_images_that_are_loaded_at_once_are_those_of_each_shard() -> None:
    pixels, targets = torch.arange(40).reshape(10, 2, 2, 1), torch.arange(10)
    asked: list[slice] = []

    def load(part: slice) -> tuple[Tensor, Tensor]:
        asked.append(part)
        return pixels[part], targets[part]

    part_of = loaded_at_once(load, 4, 10)  # as the second of two processes, with two of four shards

    for part in (slice(7, 10), slice(4, 7)):
        assert all(torch.equal(given, own) for given, own in zip(part_of(part), load(part), strict=True))
    assert asked[0] == slice(4, 10)
    assert len(asked) == 3
