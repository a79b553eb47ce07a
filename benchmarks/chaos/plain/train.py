"""The control of `make chaos`: the same training on Lightning, MLFlowLogger and DVC, as their documentation shows it.

It gets the best settings that these offer: seed_everything(workers=True), deterministic=True, save_last, and
ckpt_path="last", which goes on after the last epoch where there is one.
"""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images with a random shift and rotation."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets
        self.transform = v2.RandomAffine(degrees=10, translate=(0.06, 0.06))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.targets[index]


class Digits(pl.LightningDataModule):
    """scikit-learn's digits at 32 x 32 pixels."""

    def __init__(self, batch_size: int, workers: int) -> None:
        super().__init__()
        self.batch_size, self.workers = batch_size, workers

    def setup(self, stage: str) -> None:  # noqa: ARG002
        digits = load_digits()
        images = interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=32)
        targets = torch.tensor(digits.target)
        train, val = train_test_split(range(len(images)), test_size=0.15, random_state=0, stratify=digits.target)
        self.train = Augmented(images[train], targets[train])
        self.val = TensorDataset(images[val], targets[val])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 256)


class LeNet(pl.LightningModule):
    """LeNet-5."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        loss = cross_entropy(self.network(images), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, targets = batch
        logits = self.network(images)
        self.log("val_loss", cross_entropy(logits, targets))
        self.log("val_accuracy", (logits.argmax(dim=1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class EpochLine(Callback):
    """A line for each epoch, which the chaos program counts; when the next begins, so that its checkpoint is there."""

    def __init__(self) -> None:
        self.done: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        print("training begins", flush=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._tell(trainer)
        self.done = trainer.current_epoch + 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        if self.done is not None:
            print(f"epoch {self.done}/{trainer.max_epochs}", flush=True)


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())["train"]
    pl.seed_everything(params["seed"], workers=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=params["devices"],
        max_epochs=params["epochs"],
        deterministic=True,
        enable_progress_bar=False,
        logger=MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "digits"),
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),
        ),
        callbacks=[EpochLine(), ModelCheckpoint(dirpath="checkpoints", save_last=True)],
    )
    module = LeNet(params["learning_rate"])
    trainer.fit(module, datamodule=Digits(params["batch_size"], params["loader_workers"]), ckpt_path="last")
    torch.save(module.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
