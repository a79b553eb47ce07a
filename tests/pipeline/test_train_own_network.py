"""The stage `train` with a network from a file of the project, and the consent that loading such a model asks for."""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from training_support import TrainableProject, change_params, run_stage
from typer.testing import CliRunner

from twinrun.base.errors import BundleError, TwinrunError
from twinrun.cli.main import app
from twinrun.core.params import load_params
from twinrun.dataset.pack import open_pack
from twinrun.evaluation.predict import outputs_of
from twinrun.evaluation.trial import try_bundle
from twinrun.models.architectures import build_network
from twinrun.models.bundle import TRUSTED, load_bundle
from twinrun.models.own import build_from_source
from twinrun.models.predict import probabilities
from twinrun.models.stored import read_stored

HISTORY = Path("data/out/train/history.csv")
AWAY = "http://127.0.0.1:9"
FILE = Path("networks/mine.py")
SOURCE = """
from torch import nn

def build(channels, size_px, classes):
    height, width = size_px
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1),
                         nn.Flatten(), nn.Linear(4 * (height // 2) * (width // 2), classes))
"""


def network(forward: str, init: str = "pass", built: str = "Mine(channels, classes)") -> str:
    """The source of a network with a convolution and a head, of its own state and its own forward pass."""
    return f"""
import random
import numpy as np
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3, 2), nn.Linear(4, classes)
        {init}
    def features(self, images):
        return self.conv(images).mean((2, 3))
    def forward(self, images):
        {forward}

def build(channels, size_px, classes):
    return {built}
"""


PLAIN = "return self.head(self.features(images))"
# Threads that share it would take each other's features.
KEEPS = network(
    "self.kept = self.features(images); time.sleep(0 if self.training else 0.001); return self.head(self.kept)"
).replace("import random\n", "import random, time\n")


@pytest.fixture
def own(trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch) -> TrainableProject:
    """A project whose network is in a file of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    FILE.parent.mkdir()
    FILE.write_text(SOURCE)
    return trainable.set(model="networks/mine.py:build", epochs=1)


def card() -> dict[str, object]:
    content: dict[str, object] = json.loads(Path("data/out/train/card.json").read_bytes())
    return content


def test_a_network_from_a_file_is_trained_and_the_file_is_in_fingerprint_and_bundle(own: TrainableProject) -> None:
    FILE.write_text(KEEPS)
    own.set(threads=1).train_here()
    first, fingerprint, history = own.weights_hash(), card()["fingerprint"], HISTORY.read_text()
    own.set(threads=3).train_here()
    again = own.weights_hash()
    assert HISTORY.read_text() == history

    FILE.write_text(KEEPS + "# a remark\n")
    own.train_here()

    assert again == first == own.weights_hash()
    assert card()["fingerprint"] != fingerprint
    bundle, images = load_bundle(Path("data/out/train/bundle")), open_pack(Path("data/out/ingest/images.npy"))[:64]
    shares = probabilities(bundle, images)
    assert np.array_equal(shares, np.concatenate([probabilities(bundle, images[i : i + 8]) for i in range(0, 64, 8)]))
    assert np.allclose(outputs_of(bundle, images, np.arange(64))[0].argmax(axis=1), shares.argmax(axis=1))
    assert Path("data/out/train/bundle/network.py").read_text() == FILE.read_text()
    trial = try_bundle(read_stored(Path("data/out/train/bundle"), "registered"), None)
    assert trial.repeats > 0


def test_a_model_that_holds_source_is_loaded_by_consent_alone_and_a_changed_source_never(
    own: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.train_here()
    bundle = Path("data/out/train/bundle")
    FILE.unlink()

    with pytest.raises(BundleError, match=r"holds the source code.*--trust"):
        load_bundle(bundle)
    refused = CliRunner().invoke(app, ["predict", "requirements.lock", "--model", str(bundle)])
    agreed = load_bundle(bundle, trust=True)
    monkeypatch.setenv(TRUSTED, hashlib.sha256(SOURCE.encode()).hexdigest())
    by_variable = load_bundle(bundle)

    assert isinstance(refused.exception, TwinrunError)
    assert agreed.weights_hash == by_variable.weights_hash == own.weights_hash()
    (bundle / "network.py").write_text(SOURCE.replace("0.1", "0.2"))
    with pytest.raises(BundleError, match="not the one that was written"):
        load_bundle(bundle, trust=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SOURCE.replace("def build", "def other"), "networks/mine.py has no function build"),
        ("def build(channels, size_px, classes):\n    return 1 / 0\n", "networks/mine.py, line 2: ZeroDivisionError"),
        ("def build(:\n", "networks/mine.py, line 1: SyntaxError"),
        ("def build(*_):\n    return 3\n", "returned int and no torch.nn.Module"),
        ("import parts\n" + SOURCE, "networks/mine.py, line 1: imports another file of the project"),
        ("from .parts import x\n" + SOURCE, "networks/mine.py, line 1: imports another file of the project"),
        ("import sys\nsys.path.insert(0, '.')\nimport parts\n" + SOURCE, "networks/mine.py: imports another file of"),
        ("raise SystemExit(0)\n", "networks/mine.py, line 1: SystemExit: 0"),
        (network("return self.nothing"), "networks/mine.py, line 15: AttributeError: 'Mine' object has no attribute"),
        (network("assert False"), "networks/mine.py, line 15: AssertionError"),
        (network("assert not self.training; " + PLAIN), "networks/mine.py, line 15: AssertionError"),
        (network("return self.head(images)"), "It was given images of 32 x 32 pixels with 1 channel"),
        (network("return self.features(images), images"), "gives a tuple for 1 image"),
        (network(PLAIN + " if not self.training else (images, images)"), "gives a tuple for 2 images"),
        (network(PLAIN, built="Mine(channels, 13)"), "gives a tensor of shape (1, 13) for 1 image"),
        (network(PLAIN, built="Mine(channels, 3)"), "logits, a tensor of shape (1, 10): one number for each class"),
        (network(PLAIN + ".squeeze()"), "gives a tensor of shape (10,) for 1 image"),
        (network("return self.head(self.conv(images).permute(0, 2, 3, 1))"), "gives a tensor of shape (1, 15, 15, 10)"),
        (network(PLAIN, built="nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))"), "no weights that can be"),
        (network(PLAIN, "self.lock = __import__('threading').Lock()"), "cannot be copied"),
        (
            network(PLAIN, "self.register_buffer('m', torch.tensor(-torch.inf))"),
            "m of networks/mine.py:build holds NaN",
        ),
        (network(PLAIN, "self.register_buffer('m', torch.tensor(1j))"), "torch.complex64, which a model cannot hold"),
        (
            network(PLAIN, "self.conv = nn.Sequential(self.conv, nn.InstanceNorm2d(4, track_running_stats=True))"),
            "conv.1.running_mean of networks/mine.py:build is changed by a pass in training mode",
        ),
        (
            "import torch\ntorch.set_default_dtype(torch.float64)\n" + SOURCE,
            "of networks/mine.py is torch.float64 on cpu, and weights begin as torch.float32",
        ),
        (network(PLAIN, built="Mine(channels, classes).half()"), "is torch.float16 on cpu"),
        (network(PLAIN, built="Mine(channels, classes).to('meta')"), "is torch.float32 on meta"),
        (
            network("return self.head(self.all(images))", "self.all = lambda images: self.conv(images).mean((2, 3))"),
            "computes with layers of the network that it was copied from",
        ),
        (
            network(
                "return self.head(self.features(images) + self.one(images.flatten(1).long() * 0).mean(1))",
                "self.one = nn.Embedding(1, 4, sparse=True)",
            ),
            "has a sparse gradient",
        ),
        (network("return self.head(self.features(images)).detach()"), "depend on none of its weights"),
        (
            network(PLAIN, "self.more = nn.Linear(int(torch.randint(1, 10**6, ())), 1)"),
            "has other weights each time it is built",
        ),
        (
            network("kept = self.features(images).exp(); kept.zero_(); " + PLAIN[:-1] + " + kept)"),
            "modified by an inplace operation",
        ),
        (
            network("self.seen += self.training; return self.head(self.features(images) * self.seen)", "self.seen = 1"),
            "gives other logits when it sees the same images again",
        ),
        (
            network(
                "noise = torch.rand(4, generator=self.drawn) * self.training; "
                "return self.head(self.features(images) + noise)",
                "self.drawn = torch.Generator()",
            ),
            "gives other logits when it sees the same images again",
        ),
        (
            network("return self.head(self.features(images) @ self.mix)", "self.mix = torch.randn(4, 4)"),
            "drawn at random and are not in its state_dict()",
        ),
        (
            network("return self.head(self.layers[0](self.features(images)))", "self.layers = [nn.Linear(4, 4)]"),
            "drawn at random and are not in its state_dict()",
        ),
        (
            network(PLAIN, "self.conv = nn.Sequential(self.conv, nn.BatchNorm2d(4, track_running_stats=False))"),
            "gives an image other logits beside another image than alone",
        ),
        (network("assert len(images) < 20; " + PLAIN), "networks/mine.py, line 15: AssertionError"),
        (
            network(
                "self.seen += 1; images = images + (torch.rand(1) if self.seen > 8 else 0); " + PLAIN,
                "self.seen = 0",
            ),
            "draws random numbers in a way that Twinrun cannot key",
        ),
        (network("images = images * random.random(); " + PLAIN), "draws random numbers from Python's or NumPy's"),
        (network("images = images * np.random.rand(); " + PLAIN), "draws random numbers from Python's or NumPy's"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_with_file_and_line(
    own: TrainableProject,
    source: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "sys.path" not in source:
        monkeypatch.syspath_prepend(str(own.folder))
    monkeypatch.setattr("sys.path", sys.path.copy())
    (own.folder / "parts.py").write_text("x = 1\n")
    FILE.write_text(source)

    with pytest.raises(SystemExit):
        run_stage("train")

    assert message in capsys.readouterr().err


def test_the_name_of_a_file_does_not_say_that_pytorch_cannot_compute_its_network_twice(
    own: TrainableProject, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("networks/deterministic.py").write_text(network("assert len(images) < 20; " + PLAIN))
    own.set(model="networks/deterministic.py:build")

    with pytest.raises(SystemExit):
        run_stage("train")

    said = capsys.readouterr().err
    assert "networks/deterministic.py, line 15: AssertionError" in said
    assert "cannot compute twice" not in said


def test_a_machine_whose_memory_is_full_is_no_error_of_the_network_and_sweeps_know_it_by_its_type() -> None:
    source = b"import torch\ndef build(channels, size_px, classes):\n    raise torch.OutOfMemoryError('full')\n"

    with pytest.raises(torch.OutOfMemoryError, match=r"^full$"):
        build_from_source("networks/mine.py:build", source, 1, (32, 32), 10)


def test_the_library_of_python_may_lie_in_the_folder_of_the_project(
    own: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = b"import dataclasses, math\n" + SOURCE.encode()
    monkeypatch.chdir(sys.base_prefix)

    assert own.folder != Path.cwd()
    assert (
        build_from_source("networks/mine.py:build", source, 1, (32, 32), 10)(torch.zeros(2, 1, 32, 32)).shape[1] == 10
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_function_is_that_of_the_model_and_not_of_the_file_as_it_is_now(own: TrainableProject) -> None:
    scripted = """
import torch
from torch import nn

@torch.jit.script
def scaled(features):
    return features * 2.0

class Mine(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(32 * 32, classes)
    def forward(self, images):
        return scaled(self.head(images.flatten(1)))

def build(channels, size_px, classes):
    return Mine(classes)
"""
    FILE.write_text(scripted.replace("2.0", "3.0"))
    of_model = build_network(
        "networks/mine.py:build", channels=1, size_px=(32, 32), classes=10, seed=1, source=scripted.encode()
    )
    images = torch.ones(1, 1, 32, 32)

    assert own.folder == Path.cwd()
    assert torch.equal(of_model(images), 2 * of_model.get_submodule("head")(images.flatten(1)))


def test_first_weights_that_are_drawn_with_numpy_or_python_are_a_function_of_the_seed(own: TrainableProject) -> None:
    FILE.write_text(network(PLAIN, "nn.init.constant_(self.head.bias, np.random.rand() + random.random())"))

    def first_bias(seed: int) -> float:
        name = "networks/mine.py:build"
        network = build_network(name, channels=1, size_px=(32, 32), classes=10, seed=seed)
        return float(network.get_parameter("head.bias")[0])

    assert own.folder == Path.cwd()
    assert first_bias(1) == first_bias(1) != first_bias(2)


def test_a_file_that_is_changed_while_its_network_is_trained_gives_no_result_until_it_is_put_back(
    own: TrainableProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SOURCE.replace("nn.ReLU", "nn.GELU")
    monkeypatch.setattr("pipeline.train.announce", lambda *_: FILE.write_text(other))

    with pytest.raises(SystemExit):
        run_stage("train")
    said = capsys.readouterr().err
    written = Path("data/out/train/bundle").exists()
    FILE.write_text(SOURCE)
    own.train_here()

    assert "networks/mine.py was changed while the network in it was trained" in said
    assert not written
    assert Path("data/out/train/bundle/network.py").read_text() == SOURCE
    assert "Resuming after epoch 1 of 1" in capsys.readouterr().out


def test_a_network_that_uses_a_weight_twice_and_filters_of_three_dimensions_is_trained_and_loaded(
    own: TrainableProject,
) -> None:
    twice = "self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4); self.second.weight = self.first.weight"
    deep = "self.deep = nn.Conv3d(1, 4, (1, 3, 3))"
    features = "self.features(images) + self.deep(images[:, :, None]).mean((2, 3, 4))"
    FILE.write_text(network(f"return self.head(self.second(self.first({features})))", f"{twice}; {deep}"))

    own.train_here()

    tensors = load_bundle(Path("data/out/train/bundle")).network.state_dict()
    assert torch.equal(tensors["first.weight"], tensors["second.weight"])


def test_a_network_with_a_gate_that_changes_its_input_in_place_is_reported_with_its_own_numbers(
    own: TrainableProject,
) -> None:
    gated = "images.sub_(0.5); return self.head(nn.functional.gelu(self.features(images))) * torch.sigmoid(self.gate)"
    FILE.write_text(network(gated, "self.gate = nn.Parameter(torch.zeros(()))"))
    own.train_here()

    run_stage("evaluate")

    predicted = pq.read_table("data/out/evaluate/predictions.parquet")["probabilities"].to_pylist()
    page = Path("data/out/evaluate/report/network.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["probabilities"] in predicted
    assert json.loads(data)["maps"]["kind"] == "gradient"


def test_what_a_network_and_the_exporter_print_is_no_part_of_the_answer_of_a_trial(own: TrainableProject) -> None:
    FILE.write_text(
        network(
            "print('.', end=''); return self.head(nn.functional.adaptive_avg_pool2d(self.conv(images), 4).mean((2, 3)))"
        )
    )
    own.train_here()

    trial = try_bundle(read_stored(Path("data/out/train/bundle"), "registered"), None)

    assert trial.onnx is None
    assert "adaptive_avg_pool2d" in trial.no_onnx
    assert trial.repeats > 0


@pytest.mark.usefixtures("own")
def test_what_a_network_sets_for_all_of_pytorch_is_undone() -> None:
    FILE.write_text(
        SOURCE.replace("def build", "def plain")
        + "import torch\n"
        + "def build(*given):\n"
        + "    network = plain(*given)\n"
        + "    torch.set_default_dtype(torch.float64), torch.set_default_device('meta')\n"
        + "    torch.set_grad_enabled(False), torch.set_num_threads(3)\n"
        + "    return network\n"
    )
    before = torch.get_num_threads()

    build_network("networks/mine.py:build", channels=1, size_px=(32, 32), classes=10, seed=0)

    assert torch.zeros(1).dtype == torch.float32
    assert torch.zeros(1).device.type == "cpu"
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == before


def test_a_file_that_is_missing_or_misnamed_is_refused_by_the_first_stage(own: TrainableProject) -> None:
    FILE.unlink()

    with pytest.raises(TwinrunError, match=r"train\.model: there is no file networks/mine\.py"):
        load_params(inputs=True)
    own.set(model="../mine.py:build")
    with pytest.raises(TwinrunError, match=r"write it as networks/mine\.py:build"):
        load_params()


def test_every_recipe_at_once_gives_the_same_weights_in_two_processes(own: TrainableProject) -> None:
    change_params(
        own.folder / "params.yaml",
        "train",
        {"epochs": 2, "head_first_epochs": 1, "backbone_learning_rate": 0.5, "balance": "sampling", "patience": 5},
    )
    yaml = YAML()
    params = yaml.load(own.folder / "params.yaml")
    params["train"]["augment"].update(
        crop_scale=0.5, crop_ratio=1.2, brightness=0.2, contrast=0.2, mixup=0.2, cutmix=1.0
    )
    yaml.dump(params, own.folder / "params.yaml")
    own.train_here()
    alone = own.weights_hash()

    code, said = own.train("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    assert code == 0, said
    assert own.weights_hash() == alone
