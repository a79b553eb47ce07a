"""What differs between two runs: code, params, data, environment, hardware; then results. Pure: no files."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["code", "params", "data", "environment", "hardware"]
KINDS: tuple[Kind, ...] = ("code", "params", "data", "environment", "hardware")
Card = Mapping[str, Any]
Packages = Mapping[str, str]

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
_DECIDING = re.compile(
    r"python|implementation|torch(vision)?|pytorch-lightning|numpy|safetensors|scikit-learn|scipy|timm|triton|"
    r"(nvidia|cuda|intel|mkl)\b.*|.*openmp.*"
)
_WEIGHTS = "pretrained weights "  # and the setting that names them
_COMES_WITH_PYTHON = frozenset({"pip", "setuptools", "wheel"})


@dataclass(frozen=True)
class Change:
    """One difference: its name, and its value on either side (None: missing there)."""

    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.name}: {self.after}, was missing"
        return f"{self.name}: {self.before}, now {'gone' if self.after is None else self.after}"


@dataclass(frozen=True)
class ImageChange:
    """What happened to one image; `description` completes the sentence "this image was ..."."""

    id: str
    path: str
    description: str
    used: str | None = None

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.used})' if self.used else ''}: {self.description}"


@dataclass(frozen=True)
class MetricPair:
    """One metric of two runs, with the 95% interval of each where it is known."""

    name: str
    before: float | None
    after: float | None
    before_interval: tuple[float, float] | None
    after_interval: tuple[float, float] | None

    @property
    def within(self) -> bool | None:
        """Whether the second value lies in the interval of the first; None where one of them is not known."""
        if self.after is None or self.before_interval is None:
            return None
        low, high = self.before_interval
        return low <= self.after <= high


@dataclass(frozen=True)
class PredictionChange:
    """An image whose predicted class changed."""

    id: str
    label: str
    before: str
    after: str
    before_probability: float
    after_probability: float


@dataclass
class Differences:
    """All differences by kind, in the order in which a cause is sought; those in `deciding` can change weights."""

    changes: dict[Kind, list[Change]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    deciding: dict[Kind, list[Change]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def first_cause(self) -> Kind | None:
        """The first kind, in order, in which something differs that can change weights."""
        return next((kind for kind in KINDS if self.deciding[kind]), None)

    @property
    def of_images(self) -> list[Change]:
        """What differs in the images and their table and can change weights."""
        return [change for change in self.deciding["data"] if change not in self.of_pretrained]

    @property
    def of_pretrained(self) -> list[Change]:
        """Pretrained weights that have the same name in both runs and other content."""
        return [change for change in self.deciding["data"] if change.name.startswith(_WEIGHTS)]


def compare_cards(
    before: Card, after: Card, packages: tuple[Packages | None, Packages | None] = (None, None)
) -> Differences:
    """What differs between two run cards. `packages` are those installed for each run, where that is known."""
    differences = Differences()
    parts, new_parts = before.get("fingerprint_parts", {}), after.get("fingerprint_parts", {})

    def decides(kind: Kind, old: Any, new: Any, prefix: str = "") -> None:
        differences.deciding[kind] += flat_changes(old, new, prefix)

    decides("code", parts.get("code", {}), new_parts.get("code", {}))
    decides("code", *_in_both(_own_network(before), _own_network(after)))
    decides("params", _settings(parts), _settings(new_parts))
    decides("data", parts.get("data", {}), new_parts.get("data", {}))
    decides("data", *_in_both(_pretrained(before), _pretrained(after)))
    decides("hardware", parts.get("numerics", {}), new_parts.get("numerics", {}))
    differences.changes["code"] = [
        *flat_changes(_code(before), _code(after)),
        *(Change(source_of(c.name), _short(c.before), _short(c.after)) for c in differences.deciding["code"]),
    ]
    differences.changes["params"] = flat_changes(before.get("params", {}), after.get("params", {}))
    differences.changes["data"] = [
        Change({"pack": "pixels of the pack"}.get(c.name, c.name), _short(c.before), _short(c.after))
        for c in differences.deciding["data"]
    ]
    differences.changes["environment"] = _environment(before, after, packages)
    differences.deciding["environment"] = [c for c in differences.changes["environment"] if is_deciding(c.name)]
    machine, new_machine = _machine(before.get("hardware", {})), _machine(after.get("hardware", {}))
    numerics = [c for c in differences.deciding["hardware"] if c.name not in ("machine",)]
    differences.changes["hardware"] = [*numerics, *flat_changes(machine, new_machine)]
    differences.deciding["hardware"] += [
        c for c in flat_changes(machine, new_machine) if c.name in ("processor", "instructions", "gpus")
    ]
    return differences


def is_deciding(package: str) -> bool:
    """Whether another version of a package, or of Python, can change the weights other than through the data."""
    return _DECIDING.fullmatch(package) is not None


def source_of(name: str) -> str:
    """The path in the repository of a file whose hash is part of a fingerprint."""
    return name if name.startswith(("pipeline/", "networks/")) else f"src/twinrun/{name}"


def compare_packages(before: Packages, after: Packages) -> list[Change]:
    """Packages that are not installed in the same version."""
    return [
        Change(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in _COMES_WITH_PYTHON
    ]


def flat_changes(before: Any, after: Any, prefix: str = "") -> list[Change]:
    """The differences of two nested mappings, under dotted names; 1 and 1.0 are equal."""
    old, new = dict(_flatten(before, prefix)), dict(_flatten(after, prefix))
    return [
        Change(name, _text(old[name]) if name in old else None, _text(new[name]) if name in new else None)
        for name in [*old, *(name for name in new if name not in old)]
        if name not in old or name not in new or old[name] != new[name]
    ]


def compare_images(
    before: "pa.Table",
    after: "pa.Table",
    before_manifest: "pa.Table | None" = None,
    after_manifest: "pa.Table | None" = None,
) -> list[ImageChange]:
    """Images added, removed, renamed, relabelled, changed or moved to another split, by two tables and manifests.

    A removed image and an added one with the same pixels are one image, which was renamed.
    """
    old, new = _by_id(before), _by_id(after)
    renamed = _renamed(old, new)
    old_use, new_use = _by_id(before_manifest), _by_id(after_manifest)
    changes = []
    for image in sorted(
        (old.keys() | new.keys()) - set(renamed.values()), key=lambda image: str((old.get(image) or new[image])["path"])
    ):
        facts, now = old.get(image), new.get(image)
        use, new_use_of = _use(old_use.get(image)), _use(new_use.get(image))
        path = str((facts or now or {})["path"])
        descriptions = []
        if facts is None:
            descriptions, use = ["added"], new_use_of
        elif image in renamed:
            descriptions = [f"renamed to {new[renamed[image]]['path']}"]
        elif now is None:
            descriptions = ["removed"]
        else:
            rows = (old_use, new_use) if image in old_use and image in new_use else (old, new)  # decisions relabel
            label, new_label = (some[image]["label"] for some in rows)
            if label != new_label:
                descriptions.append(f"relabelled from {label!r} to {new_label!r}")
            if facts["pixels_sha256"] != now["pixels_sha256"]:
                descriptions.append(_broken_or(now, "its pixels changed"))
            elif facts["bytes_sha256"] != now["bytes_sha256"]:
                descriptions.append("its file changed, its pixels did not")
            if old_use and new_use and use != new_use_of:
                descriptions.append(f"used for {use}, now for {new_use_of}")
        if descriptions:
            changes.append(ImageChange(image, path, ", ".join(descriptions), use))
    return changes


def class_changes(before: Mapping[str, Sequence[Any]], after: Mapping[str, Sequence[Any]]) -> list[str]:
    """A sentence for each class that is renamed, gone or new, and for images that are gone; [] where there is none.

    Takes facts as columns: `label` and `pixels_sha256`, an entry for each image that is used. A class is renamed where
    more than half of its images are in one new class.
    """
    old, new = _pixels_by_class(before), _pixels_by_class(after)
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    lines = []
    for name in gone:
        same, other = max(
            ((sum((old[name] & new[added_name]).values()), added_name) for added_name in added), default=(0, "")
        )
        if 2 * same > old[name].total():
            lines.append(f'Class "{name}" is renamed to "{other}" ({same:,} identical {_images(same)}).')
            added.remove(other)
        else:
            lines.append(f'Class "{name}" is gone ({old[name].total():,} {_images(old[name].total())}).')
    lines += [f'Class "{name}" is new ({new[name].total():,} {_images(new[name].total())}).' for name in added]
    lost = (sum(old.values(), Counter()) - sum(new.values(), Counter())).total()
    return lines + ([f"{lost:,} earlier {_images(lost)} {'is' if lost == 1 else 'are'} gone."] if lost else [])


def compare_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[MetricPair]:
    """The headlines of two metrics.json side by side."""
    return [
        MetricPair(name, _number(before, name), _number(after, name), _interval(before, name), _interval(after, name))
        for name in METRICS
        if name in before or name in after
    ]


def compare_predictions(before: "pa.Table", after: "pa.Table") -> tuple[list[PredictionChange], int]:
    """Images whose predicted class changed, the most confident first; and how many images both tables have."""
    old, new = _by_id(before), _by_id(after)
    both = [image for image in old if image in new]
    changed = [
        PredictionChange(
            id=image,
            label=str(new[image]["label"]),
            before=str(old[image]["predicted"]),
            after=str(new[image]["predicted"]),
            before_probability=max(old[image]["probabilities"]),
            after_probability=max(new[image]["probabilities"]),
        )
        for image in both
        if old[image]["predicted"] != new[image]["predicted"]
    ]
    return sorted(changed, key=lambda change: (-change.after_probability, change.id)), len(both)


def _settings(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The params in a fingerprint that a person sets, without the normalisation, which follows from the data."""
    params = dict(parts.get("params", {}))
    preparation = dict(params.pop("preparation", {}))
    preparation.pop("mean", None)
    preparation.pop("std", None)
    return {**params, "preparation": preparation}


def _own_network(card: Card) -> dict[str, str | None]:
    """The hash of the project's file that `train.model` names, by its path."""
    network, model = card.get("fingerprint_parts", {}).get("network", {}), _train(card, "model")
    return {model.partition(":")[0]: network.get("sha256")} if network else {}


def _pretrained(card: Card) -> dict[str, str | None]:
    """The hash of the pretrained weights, by the settings that name them."""
    weights = card.get("fingerprint_parts", {}).get("pretrained", {})
    name = f"{_WEIGHTS}{_train(card, 'pretrained')} of {_train(card, 'model')}"
    return {name: weights.get("sha256")} if weights else {}


def _train(card: Card, setting: str) -> str:
    return str(card.get("fingerprint_parts", {}).get("params", {}).get(setting))


def _in_both(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those with a name that both have: of one with another name it is a setting that differs."""
    names = before.keys() & after.keys()
    return {name: before[name] for name in names}, {name: after[name] for name in names}


def _code(card: Card) -> dict[str, Any]:
    from twinrun.record.card import diff_hash

    diff = str(card.get("diff") or "")
    return {
        "commit": card.get("commit"),
        "uncommitted changes": f"a patch of {diff.count(chr(10))} lines ({diff_hash(diff)[:8]})" if diff else "none",
        "untracked files not kept": ", ".join(card.get("untracked_left_out", [])) or "none",
    }


def _environment(before: Card, after: Card, packages: tuple[Packages | None, Packages | None]) -> list[Change]:
    old, new = before.get("environment", {}), after.get("environment", {})
    names = ("python", "implementation", "platform")
    changes = flat_changes({k: old.get(k) for k in names}, {k: new.get(k) for k in names})
    if old.get("lock_sha256") != new.get("lock_sha256"):
        changes.append(Change("requirements.lock", _short(old.get("lock_sha256")), _short(new.get("lock_sha256"))))
    if packages[0] is not None and packages[1] is not None:
        return changes + compare_packages(packages[0], packages[1])
    old_packages, new_packages = (_deciding_packages(card) for card in (before, after))
    return changes + compare_packages(old_packages, new_packages)


def _deciding_packages(card: Card) -> dict[str, str]:
    return dict(card.get("fingerprint_parts", {}).get("environment", {}).get("packages", {}))


def _machine(hardware: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "processor": hardware.get("cpu"),
        "instructions": " ".join(hardware.get("cpu_flags", [])),
        "cores": hardware.get("cores_usable"),
        "gpus": ", ".join(str(gpu.get("gpu") or gpu.get("name")) for gpu in hardware.get("gpus", [])) or "none",
    }


def _flatten(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, list(value) if isinstance(value, tuple) else value)]
    return [
        pair for name, inner in value.items() for pair in _flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "null" if value is None else str(value)


def _short(value: Any) -> str | None:
    return None if value is None else str(value)[:12]


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    return float(metrics[name]) if isinstance(metrics.get(name), int | float) else None


def _interval(metrics: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    interval: Sequence[float] | None = metrics.get("intervals", {}).get(name)
    return (float(interval[0]), float(interval[1])) if interval else None


def _by_id(table: "pa.Table | None") -> dict[str, dict[str, Any]]:
    return {} if table is None else {row["id"]: row for row in table.to_pylist()}


def _renamed(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The ids of images before and now that have the same pixels under another name, one for one."""
    waiting: dict[str, list[str]] = {}
    for image in sorted(new.keys() - old.keys(), key=lambda image: str(new[image]["path"]), reverse=True):
        if new[image]["pixels_sha256"]:
            waiting.setdefault(new[image]["pixels_sha256"], []).append(image)
    gone = sorted(old.keys() - new.keys(), key=lambda image: str(old[image]["path"]))
    return {image: waiting[pixels].pop() for image in gone if waiting.get(pixels := old[image]["pixels_sha256"])}


def _pixels_by_class(columns: Mapping[str, Sequence[Any]]) -> dict[str, Counter[str]]:
    by_class: dict[str, Counter[str]] = {}
    for label, pixels in zip(columns["label"], columns["pixels_sha256"], strict=True):
        by_class.setdefault(str(label), Counter())[str(pixels)] += 1
    return by_class


def _images(number: int) -> str:
    return "image" if number == 1 else "images"


def _use(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return None
    return f"nothing, {row['dropped']}" if row["dropped"] else str(row["split"])


def _broken_or(facts: Mapping[str, Any], otherwise: str) -> str:
    return f"can no longer be decoded ({facts['error']})" if facts["error"] else otherwise
