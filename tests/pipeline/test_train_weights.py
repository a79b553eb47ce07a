"""The stage `train` from published ImageNet weights: fetched by a command, found on this machine, never downloaded."""

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save
from torchvision.models import ShuffleNet_V2_X0_5_Weights, shufflenet_v2_x0_5
from training_support import TrainableProject, run_stage

from twinrun.base.errors import ModelError
from twinrun.cli.weights import fetch
from twinrun.models.bundle import load_bundle

AWAY = "http://127.0.0.1:9"
NETWORK, TIMM_NETWORK = "shufflenet_v2_x0_5", "timm/test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"
WEIGHTS = ShuffleNet_V2_X0_5_Weights.DEFAULT.value


class _Handler(SimpleHTTPRequestHandler):
    """Serves files as the Hugging Face hub does, with a commit and the sha256 of the content in the headers."""

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which its files are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def project(trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainableProject:
    """A project that starts from ImageNet weights, and libraries with empty caches."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    still = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-12, "weight_decay": 0.0}
    return trainable.set(pretrained="imagenet", model=NETWORK, **still)


def publish_torchvision(monkeypatch: pytest.MonkeyPatch, address: str) -> tuple[str, bytes, dict[str, torch.Tensor]]:
    """Have torchvision publish a network of random weights at `address`: name and content of the file, its tensors."""
    torch.manual_seed(3)
    tensors = shufflenet_v2_x0_5().state_dict()
    torch.save(tensors, "weights.pth")
    content = Path("weights.pth").read_bytes()
    name = f"shufflenet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(WEIGHTS, "url", f"{address}/{name}")
    return name, content, tensors


def put_into_hub_cache(home: Path, content: bytes) -> Path:
    """Lay the file of timm's network into the hub's cache; returns the file that is named by its sha256."""
    repository = home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    for folder in ("blobs", "refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    blob.write_bytes(content)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc/model.safetensors").symlink_to(blob)
    return blob


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the stage, which must end with an error, and return its message."""
    with pytest.raises(SystemExit) as raised:
        run_stage("train")
    assert raised.value.code == 1
    assert not Path("data/out/train/bundle").exists()
    return capsys.readouterr().err


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def trained() -> dict[str, torch.Tensor]:
    return dict(load_bundle(Path("data/out/train/bundle")).network.state_dict())


def test_weights_that_are_not_here_stop_the_training_with_file_size_hash_and_command(
    project: TrainableProject, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    project.set(model="resnet18")

    said = refusal(capsys)

    for fact in (
        "resnet18-f37072fd.pth, 44.7 MB, sha256 f37072fd...",
        "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        f"put the file at {tmp_path}/torch/hub/checkpoints/resnet18-f37072fd.pth",
        "twinrun weights fetch resnet18",
    ):
        assert fact in said
    assert not (tmp_path / "torch").exists()


def test_fetched_weights_start_a_training_of_gray_images_and_a_flipped_byte_is_refused(
    project: TrainableProject,
    server: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, content, tensors = publish_torchvision(monkeypatch, server[1])
    (server[0] / name).write_bytes(content)

    fetch(NETWORK)
    (server[0] / name).unlink()
    fetch(NETWORK)
    project.train_here()

    said = capsys.readouterr().out
    kept = Path("data/pretrained/imagenet", NETWORK)
    assert f"Kept in {kept}" in said
    assert f"Already in {kept}" in said
    assert torch.allclose(trained()["conv1.0.weight"], tensors["conv1.0.weight"].sum(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(trained()["conv5.0.weight"], tensors["conv5.0.weight"], atol=1e-6)
    parts = json.loads(Path("data/out/train/card.json").read_bytes())["fingerprint_parts"]
    assert parts["pretrained"]["sha256"] == hashlib.sha256(content).hexdigest()

    flip_a_byte(kept / "weights.safetensors")
    with pytest.raises(SystemExit):
        run_stage("train")
    assert f"{kept}/weights.safetensors were changed" in capsys.readouterr().err


def test_weights_in_the_cache_of_torch_are_used_and_a_flipped_byte_is_refused_before_they_are_parsed(
    project: TrainableProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, content, tensors = publish_torchvision(monkeypatch, AWAY)
    cached = tmp_path / "torch/hub/checkpoints" / name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)

    project.train_here()
    assert torch.allclose(trained()["conv5.0.weight"], tensors["conv5.0.weight"], atol=1e-6)

    flip_a_byte(cached)
    with pytest.raises(SystemExit):
        run_stage("train")
    said = capsys.readouterr().err
    assert f"{cached} were changed" in said
    assert "were not read" in said


def test_weights_of_timm_are_fetched_from_the_hub_and_found_in_its_cache(
    project: TrainableProject,
    server: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    torch.manual_seed(4)
    content = save(timm.create_model("test_resnet").state_dict())
    project.set(model=TIMM_NETWORK)
    served = server[0] / REPOSITORY / "resolve/main/model.safetensors"
    served.parent.mkdir(parents=True)
    served.write_bytes(content)
    monkeypatch.setenv("HF_ENDPOINT", server[1])

    fetch(TIMM_NETWORK)
    project.train_here()
    of_fetched = project.weights_hash()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another"))
    blob = put_into_hub_cache(tmp_path / "another", content)
    Path("data/pretrained/imagenet").rename("elsewhere")
    project.train_here()

    assert project.weights_hash() == of_fetched
    flip_a_byte(blob)
    with pytest.raises(SystemExit):
        run_stage("train")
    assert f"should be {blob.name}" in capsys.readouterr().err


@pytest.mark.parametrize("model", [NETWORK, TIMM_NETWORK])
def test_a_server_that_lacks_the_file_or_gives_other_bytes_leaves_nothing_behind(
    project: TrainableProject, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    name, _, _ = publish_torchvision(monkeypatch, server[1])
    monkeypatch.setenv("HF_ENDPOINT", server[1])
    (server[0] / name).write_bytes(b"other bytes")

    with pytest.raises(ModelError, match="could not be fetched"):
        fetch(model)

    assert not list(Path("data/pretrained").rglob("*.safetensors"))
    assert project.folder == Path.cwd()


@pytest.mark.parametrize(
    ("model", "message"), [("lenet5", "Twinrun's own"), ("resnet81", 'No network is called "resnet81"')]
)
def test_a_network_without_published_weights_is_refused_with_what_to_do(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fetch(model)
