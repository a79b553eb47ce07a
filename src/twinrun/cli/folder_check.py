"""All checks on any folder of images, without a pipeline: no split is drawn, and no params.yaml read."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from twinrun.base.errors import PublishError
from twinrun.base.files import (
    ensure_writable,
    require_replaceable,
    scratch_folder,
    write_json,
    write_table,
    write_text,
)
from twinrun.base.progress import fraction
from twinrun.base.regular_files import open_regular
from twinrun.core.cores import available_cores
from twinrun.core.params import LabelErrorParams, SplitFractions, ValidateParams
from twinrun.dataset.pack import creating_pack, open_pack
from twinrun.decoding.decode import AS_STORED
from twinrun.decoding.samples import SampleRules
from twinrun.ingest.copies.nearest import near_duplicates
from twinrun.ingest.facts import Facts
from twinrun.ingest.folders import REPORT_FILES, Levels, as_options, list_images
from twinrun.ingest.listing import Arrays, Listing
from twinrun.ingest.packing import Shape, facts_table, fill_pack, sample_notes
from twinrun.tables.page import is_page
from twinrun.validate.evidence import Reference
from twinrun.validate.findings import Finding, Verdict
from twinrun.validate.judging import judge_table
from twinrun.validate.report import report_html
from twinrun.validate.results import findings_table, is_findings, is_result, result_json

REPORT, _RESULT, FINDINGS = REPORT_FILES
_MAX_PIXELS = 100_000_000
_SIDE_PX, _SMALLEST_SIDE_PX = 64, 16
_HEADERS_READ = 100
_PLAIN_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")  # whose headers are small
# As in the preset `folder`, except that a class may have a single image: there may be more elsewhere.
_SETTINGS = ValidateParams(
    seed=0,
    fractions=SplitFractions(train=0.7, val=0.15, test=0.15),
    splits=None,
    min_images_per_class=1,
    max_imbalance=10.0,
    min_side_px=8,
    max_side_px=10_000,
    modes=["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16"],
    on_broken="stop",
    on_size="stop",
    on_mode="stop",
    on_classes="stop",
    on_names="warn",
    on_contradiction="stop",
    on_leak="stop",
    on_near_leak="stop",
    on_duplicate="warn",
    on_label_error="warn",
    label_errors=LabelErrorParams(folds=5, budget_s=600.0),
    on_shortcut="stop",
    max_shortcut=0.9,
    on_quality="warn",
    on_drift="warn",
    reference=None,
    decisions=None,
    expectations=[],
)


def _is_report(out: Path, page: Path) -> bool:
    """Whether this command wrote the page. One of an early version has no mark, but a result beside it."""
    result = out / _RESULT
    return is_page(page) or (result.is_file() and is_result(result))


def check_folder(
    folder: Path,
    out: Path,
    *,
    size_px: int | None = None,
    labels: bool = True,
    reference: Reference | None = None,
    levels: Levels = "auto",
    leave_out: Sequence[str] = (),
    splits_file: Path | None = None,
    follow_links: bool = False,
    rules: SampleRules = AS_STORED,
) -> tuple[Verdict, list[str]]:
    """Check the images below `folder` and write index.html, result.json and findings.parquet into `out`.

    Images are resized to `size_px` for the checks, by default 64 pixels a side, or less if all are smaller. Labels and
    splits are read from the names of folders, as `levels` says; `leave_out` has patterns of paths to leave out;
    `splits_file`, `follow_links` and `rules` are as in ingest. If `labels` is true, wrong labels are searched for. With
    a `reference`, drift is measured against it. Returns the verdict and notes for the terminal. Raises SourceError if
    there is nothing to check, and PublishError if `out` cannot be written or has another file with one of these names.
    """
    listing = list_images(folder, out, levels, leave_out, splits_file=splits_file, follow_links=follow_links)
    size_px = size_px or _usual_size(listing)
    is_new = not out.exists()
    _make_writable(out)
    for name, is_own in ((REPORT, partial(_is_report, out)), (_RESULT, is_result), (FINDINGS, is_findings)):
        require_replaceable(out / name, is_own, "--out")
    shape = Shape((size_px, size_px), "rgb", "pad", "bilinear", _MAX_PIXELS, rules)
    settings = _SETTINGS if labels else replace(_SETTINGS, label_errors=LabelErrorParams(folds=0, budget_s=1.0))
    with _removed_if_empty(out if is_new else None), scratch_folder("twinrun-check") as temp:
        pack = temp / "images.npy"
        with creating_pack(pack, (len(listing.items), *shape.of_image)) as unfinished:
            facts = [_without_setting(fact) for fact in fill_pack(listing, shape, unfinished, available_cores())]
        images, table, splits = open_pack(pack), facts_table(listing, facts), [item.split for item in listing.items]
        with fraction("Searching for near duplicates") as progress:
            pairs = near_duplicates(images, facts, splits, progress=progress)
        verdict = judge_table(table, images, pairs, settings, reference=reference, draw_splits=False)
        verdict = replace(
            verdict,
            findings=[*_on_classes(verdict), *(_without_settings(finding, out) for finding in verdict.findings)],
        )
        write_text(report_html(verdict, table, images, settings, {}, docs=None), out / REPORT)
        write_table(findings_table(verdict, table), out / FINDINGS)
        write_json(result_json(verdict, table), out / _RESULT)
    return verdict, [*listing.notes, *(as_options(note) for note in sample_notes(listing, facts, rules))]


def _usual_size(listing: Listing) -> int:
    """64 pixels, or the longest side in a sample of the images (from their headers) if that is less; at least 16."""
    if isinstance(listing.content, Arrays):
        height, width = listing.content.pixels.shape[1:3]
        return min(_SIDE_PX, max(_SMALLEST_SIDE_PX, int(height), int(width)))
    paths = listing.content.paths
    longest = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # problems of an image are reported when it is decoded
        for path in paths[:: max(1, len(paths) // _HEADERS_READ)]:
            with contextlib.suppress(Exception), open_regular(path) as file:
                longest = max(longest, *Image.open(file, formats=_PLAIN_FORMATS).size)
    return min(_SIDE_PX, max(_SMALLEST_SIDE_PX, longest)) if longest else _SIDE_PX


def _make_writable(out: Path) -> None:
    try:
        ensure_writable(out, 0)
    except OSError as error:
        raise PublishError(f"{out} cannot be used as a folder: {error.strerror}. Name another one: --out.") from None


@contextlib.contextmanager
def _removed_if_empty(folder: Path | None) -> Iterator[None]:
    """Remove the folder, if one is given, after an error or Ctrl-C that came before anything was written into it."""
    try:
        yield
    except BaseException:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _on_classes(verdict: Verdict) -> list[Finding]:
    """A warning if there are no labels, so that nobody takes the folder of a single class for a whole data set."""
    if verdict.classes:
        return []
    return [
        Finding(
            name="classes",
            meaning="The images lie in folders of two classes or more",
            severity="warning",
            status="warning",
            found="There are fewer than two classes, so labels were not checked; a training would stop here. "
            "Labels are the names of folders, or those in a CSV (--splits-file)",
            settings=(),
            advice="If it is one class of a set, check the folder above it",
            judged_by="",
        )
    ]


def _without_setting(fact: Facts) -> Facts:
    """Name the option in place of the setting in the error of an unreadable image: here there is no params.yaml."""
    if fact.error is None:
        return fact
    error = re.sub(r"\(params\.yaml: ingest\.(depth|bands)\)", r"(--\1)", fact.error)
    return replace(fact, error=re.sub(r" \(params\.yaml: [\w.]+\)", "", error))


def _without_settings(finding: Finding, out: Path) -> Finding:
    """Shorten the advice to what needs no setting: what follows its first ", or" is about changing one."""
    advice = finding.advice.partition(", or ")[0].replace("data fix", f"data fix --findings {out / FINDINGS}")
    if finding.name == "label_search" and finding.settings:
        advice = "Check only some of the images, or skip the search for wrong labels: --no-labels"
    return replace(finding, settings=(), advice=advice)
