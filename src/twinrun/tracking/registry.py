"""The MLflow registry: versions of a model made from bundles, and which of them is candidate and which champion.

A version is a pyfunc whose loader is twinrun.tracking.pyfunc and whose data is the bundle, so no pickle is written or
read. The same bundle never gets a second version: MLflow would give a repeated request a new number, so existing
versions are looked up first, while a lock is held.
"""

import hashlib
import json
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twinrun.base.errors import MissingModelError, ParamsError, RegistryError
from twinrun.base.files import explained, is_read_only
from twinrun.base.progress import phase
from twinrun.core.params import PARAMS, load_params
from twinrun.models.stored import StoredBundle, read_stored
from twinrun.record.objects import has_remote
from twinrun.record.records import number_from, sha256_from, version_numbers
from twinrun.tracking.metric_names import (
    CROSS_VALIDATION_METRICS,
    EVALUATION_METRICS,
    TEST_METRICS,
    evaluation_metrics,
    with_current_names,
)
from twinrun.tracking.presentation import DESCRIBED_TAG, describe_model, describe_version, may_describe, text_hash
from twinrun.tracking.promotions import ELSEWHERE, PROMOTIONS, Entry, Judgement, Promotions
from twinrun.tracking.store import (
    DATABASE,
    MLRUNS,
    Tracker,
    as_default,
    experiment_id,
    explaining,
    look_client,
    open_client,
    require_reachable,
)

CANDIDATE, CHAMPION = "candidate", "champion"
# Forced: DVC does not notice that a registry was removed or that another one is used.
REGISTER = "dvc repro -f -s register"
# The files that the command reads, in the working folder.
_TO_REGISTER = (
    *("data/out/ingest/images.npy", "data/out/validate/manifest.parquet", "data/out/train/bundle"),
    *("data/out/train/card.json", "data/out/evaluate/metrics.json"),
)
LOADER = "twinrun.tracking.pyfunc"
ONNX = "model.onnx"  # beside the bundle of a version
ONNX_TAG = "twinrun.onnx_sha256"
_BUNDLE_TAG = "twinrun.bundle"
_FORMER_TAG = "twinrun.former_champions"
_SET_TAG = "twinrun.champion_set"  # the champion that Twinrun set last; the alias may have been moved in MLflow's pages
_CHANGING_TAG = "twinrun.changing_champion."  # and a number: that of a process that is changing it
_LEFT_S = 60.0  # a tag that stays so long is by a process that was killed
_WAITING_S = 180.0
_MOST_NAMED = 10  # models, of a store that lacks the requested one
_GATE_TAG = "twinrun.gate."
_LONGEST_ANSWER = 500
# What loading a bundle needs; named here, since MLflow would otherwise load the model and ask the package index.
_REQUIRED = ("twinrun", "mlflow", "numpy", "pandas", "pillow", "safetensors", "torch", "torchvision")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    weights_hash: str
    fingerprint: str
    passed: bool
    metrics: Mapping[str, float]
    aliases: tuple[str, ...]
    run_id: str | None
    created: datetime
    gates: Mapping[str, str]

    def answer(self, gate: str) -> str:
        """The result of a gate when the version was registered, such as "passed: ..."; empty where it did not run."""
        return self.gates.get(_gate_tag(gate), "")

    def headline(self, name: str) -> float | None:
        """A number such as "accuracy": out of fold where the headline is, and of the test split otherwise."""
        return self.metrics.get(CROSS_VALIDATION_METRICS[name], self.metrics.get(TEST_METRICS[name]))


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A change of the champion; `before` is None where there was none.

    `gates` are the results of the gates that decided it, `test_set` is the hash of the images that they used.
    """

    name: str
    action: str
    before: int | None
    after: int
    reason: str | None
    gates: tuple[str, ...] = ()
    test_set: str | None = None


Judge = Callable[[Version, Version | None], Judgement]


class Registry:
    """One registered model in one store."""

    def __init__(self, tracker: Tracker, name: str, *, only_looking: bool = False) -> None:
        """Raises TrackingError, naming the store, where it cannot be reached. `only_looking`: nothing is changed."""
        require_reachable(tracker)
        self.tracker = tracker
        self.name = name
        with explaining(tracker):
            self._client = look_client(tracker) if only_looking else open_client(tracker)

    def register(
        self,
        bundle: Path,
        metrics: Mapping[str, Any],
        *,
        passed: bool,
        fingerprint: str,
        run_id: str | None,
        data: str = "not recorded",
        gates: Mapping[str, str] | None = None,
        refusal: str | None = None,
        onnx: bytes | None = None,
    ) -> Version:
        """Create a version from `bundle`, or find the one that was created from it, and keep `candidate` up to date.

        `metrics` are those of data/out/evaluate/metrics.json. `data` describes the training data for a person, `gates`
        has the result of each gate by its name, and `refusal` says why the version did not pass. `onnx` is the network
        for ONNX Runtime, which is kept beside the bundle. Raises BundleError where the bundle was changed or does not
        describe its weights.
        """
        stored = check_bundle(bundle)
        description, key = stored.description(), stored.key
        facts = {f"twinrun.{name}": repr(value) for name, value in evaluation_metrics(metrics).items()}
        tags = {
            "twinrun.weights_hash": str(description["weights_hash"]),
            "twinrun.fingerprint": fingerprint,
            "twinrun.passed": str(passed).lower(),
            **facts,
            **{_gate_tag(name): answer[:_LONGEST_ANSWER] for name, answer in (gates or {}).items()},
        }
        text = describe_version(metrics, description, data=data, run_id=run_id, refusal=refusal)
        with self._locked(), explaining(self.tracker):
            self._ensure_model()
            entry = self._of_bundle(key)
            if entry is None:
                model_id = self._model_of(stored, run_id, tags)
                entry = self._create_version(model_id, key, run_id, tags)
            else:
                for tag, value in tags.items():
                    if entry.tags.get(tag) != value:
                        self._client.set_model_version_tag(self.name, entry.version, tag, value)
                for tag in entry.tags:
                    if tag.startswith(_GATE_TAG) and tag not in tags:  # the gate no longer runs
                        self._client.delete_model_version_tag(self.name, entry.version, tag)
            if onnx is not None:
                self._add_onnx(entry, onnx)
            self._describe(entry, text)
            self._point_candidate()
        return self.version(int(entry.version))

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        if not self._is_possible:
            return []
        with explaining(self.tracker):
            aliases = self._aliases()
            entries = self._client.search_model_versions(f"name = '{self.name}'")
        return sorted((_version(entry, aliases) for entry in entries), key=lambda entry: -entry.version)

    def version(self, number: int) -> Version:
        """One version. Raises RegistryError, naming the existing ones, where there is no such version."""
        versions = self.versions()
        for version in versions:
            if version.version == number:
                return version
        if not versions:
            raise self.missing()
        there = ", ".join(str(known.version) for known in reversed(versions))
        raise RegistryError(f"{self.name!r} has no version {number}; it has {there}. List them: twinrun models")

    def tag(self, number: int, tag: str) -> str:
        """A tag of a version; empty where it has none."""
        with explaining(self.tracker):
            return str(self._client.get_model_version(self.name, str(number)).tags.get(tag, ""))

    def promote(
        self, number: int, *, force: bool = False, reason: str | None = None, judge: Judge | None = None
    ) -> Promotion:
        """Make a version the champion. Changes and records nothing where it is the champion already.

        `judge` gets the version and the present champion (None where there is none), and says whether the version may
        replace it. Raises RegistryError where it may not, or where the version has not passed its gates, unless forced
        with a reason. The results of the gates are recorded, also when the version is refused.
        """
        version = self.version(number)
        if force and not (reason or "").strip():
            raise RegistryError('A forced promotion needs a reason that others can read: --force --reason "..."')
        with self._locked(), explaining(self.tracker):
            before = self._reconciled()
            promotion = Promotion(name=self.name, action="promote", before=before, after=number, reason=reason)
            if before == number:
                return promotion
            judgement = self._judgement(version, before, judge)
            if judgement.refusal and not force:
                self._journal.end(self._begin(promotion, judgement), "refused", judgement.refusal)
                raise RegistryError(
                    f"Version {number} of {self.name!r} was not promoted. {judgement.refusal}\n"
                    "Improve it, or promote it anyway with a reason: "
                    f'twinrun promote {number} --force --reason "..."'
                )
            with self._alone():
                if (now := self._aliases().get(CHAMPION)) != before:
                    if now == number:
                        return replace(promotion, before=now)
                    was, is_now = ("no version" if each is None else f"version {each}" for each in (before, now))
                    changed = (
                        f"The champion of {self.name!r} was changed while version {number} was compared with it: it "
                        f"was {was} and is {is_now}."
                    )
                    judgement = replace(judgement, gates=(*judgement.gates, changed))
                    self._journal.end(self._begin(promotion, judgement), "refused", changed)
                    raise RegistryError(f"{changed} Nothing was changed. Compare with that: twinrun promote {number}")
                former = self._former(before)
                self._move(promotion, former if before is None else [*former, before], judgement)
            return replace(promotion, gates=judgement.gates, test_set=judgement.test_set)

    def rollback(self, reason: str | None = None) -> Promotion:
        """Make the champion before this one the champion again. Raises RegistryError where there was none."""
        existing = {version.version for version in self.versions()}
        if not existing:
            raise self.missing()
        with self._locked(), explaining(self.tracker), self._alone():
            before = self._reconciled()
            former = [number for number in self._former(before) if number in existing and number != before]
            if not former:
                now = "has no champion" if before is None else f"has had no champion before version {before}"
                raise RegistryError(f"{self.name!r} {now}, so there is nothing to go back to. See: twinrun models")
            promotion = Promotion(name=self.name, action="rollback", before=before, after=former[-1], reason=reason)
            return self._move(promotion, former[:-1])

    def missing(self) -> MissingModelError:
        """The error where there is no version; it names the existing models."""
        with explaining(self.tracker):
            models = self._client.search_registered_models(max_results=_MOST_NAMED)
        return missing_model(self.tracker, self.name, [model.name for model in models if model.name != self.name])

    def history(self) -> list[Entry]:
        """Every change of the champion that this project has recorded, the oldest first."""
        if not is_read_only(self.tracker.home / MLRUNS):
            with self._locked(), explaining(self.tracker):
                self._reconciled()
        return [entry for entry in self._journal.read()[0] if entry.model == self.name]

    def uses(self, test_set: str) -> int:
        """How many promotions of this model were decided on the test set with this hash, by this project's record."""
        return self._journal.uses(self.name, self._store)[test_set]

    @property
    def _is_possible(self) -> bool:
        """Whether a model can have that name: MLflow takes no slash or colon in it, and its search no quotes."""
        return not set("/:'\"") & set(self.name)

    @property
    def _journal(self) -> Promotions:
        return Promotions(self.tracker.home / MLRUNS / PROMOTIONS)

    @property
    def _store(self) -> str:
        """The store in the journal; one inside the project may move with it."""
        home, database = self.tracker.home, self.tracker.database
        if database is None or not database.is_relative_to(home):
            return self.tracker.shown
        return "local" if database == home / MLRUNS / DATABASE else database.relative_to(home).as_posix()

    def _judgement(self, version: Version, before: int | None, judge: Judge | None) -> Judgement:
        """The results of the present gates for a version; it must also have passed those of its registration."""
        champion = next((candidate for candidate in self.versions() if candidate.version == before), None)
        judgement = Judgement(refusal=None) if judge is None else judge(version, champion)
        if version.passed or judgement.refusal:
            return judgement
        accuracy = version.headline("accuracy")
        reason = "It has not passed its gates" + ("." if accuracy is None else f" (its accuracy is {accuracy:.4f}).")
        return replace(judgement, refusal=reason, gates=(*judgement.gates, reason))

    def _begin(self, promotion: Promotion, judgement: Judgement | None = None) -> str:
        return self._journal.begin(
            action=promotion.action,
            model=promotion.name,
            before=promotion.before,
            after=promotion.after,
            reason=promotion.reason,
            tracker=self._store,
            gates=() if judgement is None else judgement.gates,
            test_set=None if judgement is None else judgement.test_set,
        )

    def _move(self, promotion: Promotion, former: list[int], judgement: Judgement | None = None) -> Promotion:
        """Record the change before and after making it, so that no champion changes without a record."""
        entry = self._begin(promotion, judgement)
        try:
            # After a crash between two of them, the champion may also be in `former`; a rollback skips it there. Never
            # does a version that a rollback replaces count as a former champion.
            number = str(promotion.after)
            if promotion.action == "promote":
                self._set_former(former)
                self._client.set_registered_model_alias(self.name, CHAMPION, number)
                self._client.set_registered_model_tag(self.name, _SET_TAG, number)
            else:
                self._client.set_registered_model_tag(self.name, _SET_TAG, number)
                self._client.set_registered_model_alias(self.name, CHAMPION, number)
                self._set_former(former)
        except Exception as error:
            self._journal.end(entry, "failed", f"{type(error).__name__}: {error}")
            raise
        self._journal.end(entry, "done")
        return promotion

    def _reconciled(self) -> int | None:
        """The champion, after the record of promotions was brought up to date with the registry."""
        champion = self._aliases().get(CHAMPION)
        for entry in self._journal.unfinished(self.name, self._store):
            made = entry.after == champion
            self._journal.end(str(entry.id), "done" if made else "failed", None if made else "it was interrupted")
        last = self._journal.last(self.name, self._store)
        if champion is not None and (None if last is None else last.after) != champion:
            promotion = Promotion(
                name=self.name, action=ELSEWHERE, before=last.after if last else None, after=champion, reason=None
            )
            self._journal.end(self._begin(promotion), "done", "set in MLflow or from another machine")
        return champion

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        folder = self.tracker.home / MLRUNS
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "registry.lock", timeout=120):
                yield
        except Timeout:
            raise RegistryError(f"Another process has been changing the registry for 2 minutes ({folder}).") from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have no other clone of the project change the champion at the same time.

        MLflow has no lock, and the last writer of an alias wins. So each process writes a tag of its own, and is alone
        where it then sees no other one. Otherwise it takes its tag back and tries again.
        """
        if self.tracker.database == self.tracker.home / MLRUNS / DATABASE:  # a lock on a file is enough
            yield
            return
        own, seen = _CHANGING_TAG + uuid.uuid4().hex, dict[str, float]()
        try:
            if not self._is_alone(own, seen):
                with phase("Waiting for another clone, which is changing the champion", every_s=_LEFT_S / 4):
                    began = time.monotonic()
                    while not self._is_alone(own := _CHANGING_TAG + uuid.uuid4().hex, seen):
                        if time.monotonic() - began > _WAITING_S:
                            raise RegistryError(
                                f"Other clones have been changing the champion of {self.name!r} for "
                                f"{_WAITING_S:.0f} s, and nothing was changed. Try again."
                            )
                        time.sleep(0.1 + int(own[-2:], 16) / 500)  # differs, so that two do not meet again
            yield
        finally:
            self._take_back(own)

    def _is_alone(self, own: str, seen: dict[str, float]) -> bool:
        """Write the tag `own`, and take it back where there are others; `seen` is when each of these was seen first.

        A process has another tag in each attempt, so one that stays was left by a process that was killed.
        """
        self._client.set_registered_model_tag(self.name, own, "true")
        tags = self._client.get_registered_model(self.name).tags
        others = [tag for tag in tags if tag.startswith(_CHANGING_TAG) and tag != own]
        if others:
            self._take_back(own)
        for other in others:
            if time.monotonic() - seen.setdefault(other, time.monotonic()) > _LEFT_S:
                self._take_back(other)
        return not others

    def _take_back(self, tag: str) -> None:
        with suppress(Exception):
            self._client.delete_registered_model_tag(self.name, tag)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        text = describe_model(self.name)
        try:
            self._client.create_registered_model(self.name, description=text)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            if not self._client.get_registered_model(self.name).description:
                self._client.update_registered_model(self.name, text)

    def _add_onnx(self, version: Any, onnx: bytes) -> None:
        """Put the file beside the bundle, for older versions too, and then its hash into a tag."""
        digest = hashlib.sha256(onnx).hexdigest()
        if version.tags.get(ONNX_TAG) == digest:
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, ONNX)
            file.write_bytes(onnx)
            self._client.log_model_artifact(str(version.source).removeprefix("models:/"), str(file))
        self._client.set_model_version_tag(self.name, version.version, ONNX_TAG, digest)

    def _describe(self, version: Any, text: str) -> None:
        """Describe a version, unless a person has described it."""
        if may_describe(version.description, text, version.tags.get(DESCRIBED_TAG)):
            self._client.update_model_version(self.name, version.version, text)
            self._client.set_model_version_tag(self.name, version.version, DESCRIBED_TAG, text_hash(text))

    def _of_bundle(self, key: str) -> Any | None:
        entries = self._client.search_model_versions(f"name = '{self.name}'")
        same = [entry for entry in entries if entry.tags.get(_BUNDLE_TAG) == key]
        return min(same, key=lambda entry: int(entry.version), default=None)

    def _create_version(self, model_id: str, key: str, run_id: str | None, tags: Mapping[str, str]) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            with as_default(self.tracker):
                return self._client.create_model_version(
                    self.name,
                    source=f"models:/{model_id}",
                    run_id=run_id,
                    tags={_BUNDLE_TAG: key, **tags},
                    model_id=model_id,
                )
        except MlflowException:
            # The version may have been created although the answer was lost.
            entry = self._of_bundle(key)
            if entry is None:
                raise
            return entry

    def _model_of(self, stored: StoredBundle, run_id: str | None, tags: Mapping[str, str]) -> str:
        """The id of a finished MLflow model with this bundle: one left by a killed `register`, or a new one."""
        if run_id is not None:
            experiment = self._client.get_run(run_id).info.experiment_id
        else:
            experiment = experiment_id(self._client, self.tracker, self.name)
        for model in self._client.search_logged_models([experiment], f"tags.`{_BUNDLE_TAG}` = '{stored.key}'"):
            if str(model.status) == "READY" and model.source_run_id == run_id:
                return str(model.model_id)
        return self._log_model(experiment, stored, run_id, {_BUNDLE_TAG: stored.key, **tags})

    def _log_model(self, experiment: str, stored: StoredBundle, run_id: str | None, tags: dict[str, str]) -> str:
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        model = self._client.create_logged_model(
            experiment, "model", source_run_id=run_id, tags=tags, model_type="image-classifier"
        )
        try:
            description = stored.description()
            with tempfile.TemporaryDirectory() as folder:
                mlflow.pyfunc.save_model(
                    Path(folder, "model"),
                    loader_module=LOADER,
                    data_path=str(stored.write(Path(folder, "bundle"))),
                    model_config={"paths": True},  # which load_model(..., model_config={"paths": False}) may change
                    mlflow_model=Model(model_id=model.model_id, model_uuid=model.model_id, run_id=run_id),
                    signature=_signature(),
                    input_example=_example(description),
                    pip_requirements=_requirements(),
                    metadata={"weights_hash": description["weights_hash"], "classes": list(description["classes"])},
                )
                self._client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
        except BaseException:
            with suppress(Exception):
                self._client.delete_logged_model(model.model_id)
            raise
        self._client.finalize_logged_model(model.model_id, "READY")
        if run_id is not None:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def _point_candidate(self) -> None:
        """Give the alias `candidate` to the newest version that has passed."""
        now = self._aliases().get(CANDIDATE)
        entries = self._client.search_model_versions(f"name = '{self.name}'")
        newest = max(
            (int(entry.version) for entry in entries if entry.tags.get("twinrun.passed") == "true"), default=None
        )
        if newest is None and now is not None:
            self._client.delete_registered_model_alias(self.name, CANDIDATE)
        elif newest is not None and newest != now:
            self._client.set_registered_model_alias(self.name, CANDIDATE, str(newest))

    def _aliases(self) -> dict[str, int]:
        from mlflow.exceptions import MlflowException

        if not self._is_possible:
            return {}
        try:
            aliases = self._client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: int(version) for alias, version in aliases.items()}

    def _former(self, champion: int | None) -> list[int]:
        """Former champions, the latest last: also the one whose alias was moved or removed in MLflow's pages."""
        tags = self._client.get_registered_model(self.name).tags
        former = version_numbers(tags.get(_FORMER_TAG, "[]"), f"tag {_FORMER_TAG} of {self.name}")
        last = version_numbers(f"[{tags.get(_SET_TAG, '')}]", f"tag {_SET_TAG} of {self.name}")
        return former if last == [champion] else [*former, *last]

    def _set_former(self, former: list[int]) -> None:
        # In a tag of the registry, not in the local file, so that a rollback works from every machine.
        once = list(reversed(dict.fromkeys(reversed(former))))
        self._client.set_registered_model_tag(self.name, _FORMER_TAG, json.dumps(once[-100:]))


def how_to_register(project: Path) -> str:
    """The command that registers the model of `project`, given what DVC has there.

    With a trained and evaluated model it is the stage `register`, forced, since DVC may consider it up to date.
    Otherwise it is all stages or, where dvc.lock says that `register` has run, that stage again, forced, after the
    results were fetched from DVC's remote, as far as it has them, and the others computed.
    """
    if all((project / path).exists() for path in _TO_REGISTER):
        return REGISTER
    shared, lock = has_remote(project), project / "dvc.lock"
    recorded = lock.is_file() and re.search(r"^  register:", lock.read_text(encoding="utf-8"), re.MULTILINE)
    commands = f"dvc repro && {REGISTER}" if recorded else "dvc repro"
    absent = _absent_images(project)
    if shared and recorded:  # of results that nobody pushed, `dvc repro` computes those that are missing
        return f"dvc pull --allow-missing && {commands}"
    if absent is None:
        return commands
    if shared:
        return f"dvc pull {shlex.quote(absent)} && {commands}"
    return (
        f"the images ({absent}) are not here, and DVC has no default remote. Copy them there, and run: {commands}. Or "
        "share them from where they are: dvc remote add --default share FOLDER && dvc push, commit .dvc/config, and "
        f"here: git pull && dvc pull --allow-missing && {commands}"
    )


def _absent_images(project: Path) -> str | None:
    """The folder of images that DVC tracks and that is not here, as in a clone before `dvc pull`."""
    try:
        path = load_params(project / PARAMS).ingest.path
    except ParamsError:
        return None
    return path if (project / f"{path}.dvc").is_file() and not (project / path).exists() else None


def missing_model(tracker: Tracker, name: str, others: Sequence[str] = ()) -> MissingModelError:
    """The error for a model `name` that the store lacks; it names the `others` and the command that registers it."""
    there = f" The models there: {', '.join(map(repr, others))} (--model NAME)." if others else ""
    return MissingModelError(
        f"There is no model {name!r} in {tracker.shown}.{there}\n"
        f"Register the model of params.yaml: {how_to_register(Path())}"
    )


def _version(entry: Any, aliases: Mapping[str, int]) -> Version:
    number = int(entry.version)
    facts = with_current_names({name.removeprefix("twinrun."): value for name, value in entry.tags.items()})
    metrics = {name: value for name in EVALUATION_METRICS if (value := number_from(facts.get(name))) is not None}
    return Version(
        name=entry.name,
        version=number,
        weights_hash=sha256_from(entry.tags.get("twinrun.weights_hash")),
        fingerprint=sha256_from(entry.tags.get("twinrun.fingerprint")),
        passed=entry.tags.get("twinrun.passed") == "true",
        metrics=metrics,
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
        run_id=entry.run_id or None,
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        gates={name: answer for name, answer in entry.tags.items() if name.startswith(_GATE_TAG)},
    )


def check_bundle(bundle: Path) -> StoredBundle:
    """The bundle's files, checked to be unchanged and to belong to one model."""
    return read_stored(bundle, "registered")


def _signature() -> Any:
    """Of the output alone: MLflow's input schemas have no type for paths, images and arrays, and refuse them."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Map, Schema

    return ModelSignature(
        outputs=Schema(
            [
                ColSpec(DataType.string, "label", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(Map(DataType.double), "probabilities", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
    )


def _gate_tag(name: str) -> str:
    return _GATE_TAG + re.sub("[^a-z0-9]+", "_", name.lower())


def _example(description: Mapping[str, Any]) -> Any:
    """An example request: one PNG, a bright stroke on black, with the size and channels of the bundle."""
    import base64
    import io

    import pandas as pd
    from PIL import Image, ImageDraw

    preparation = description["preprocessing"]
    size = preparation["size_px"]
    height, width = size
    image = Image.new("L", (width, height))
    stroke = (width // 4, 3 * height // 4, 3 * width // 4, height // 4)
    ImageDraw.Draw(image).line(stroke, fill=255, width=max(1, min(height, width) // 10))
    file = io.BytesIO()
    image.convert("L" if preparation["channels"] == "gray" else "RGB").save(file, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


def _requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    requirements = []
    for name in _REQUIRED:
        # Twinrun itself has no version where it is used from its source without being installed.
        with suppress(PackageNotFoundError):
            requirements.append(f"{name}=={version(name).partition('+')[0]}")
    return requirements
