"""Stage `validate`: the facts -> a manifest of what may be used, a verdict, a report. Run with `dvc repro validate`."""

import shutil
from pathlib import Path

from twinrun.base.errors import ValidationFailed, run_main
from twinrun.base.files import ensure_writable, write_json, write_table, write_text
from twinrun.base.paths import expanded
from twinrun.base.printing import print
from twinrun.core.params import load_params, setting_lines
from twinrun.dataset.manifest import write_manifest
from twinrun.dataset.pack import open_pack
from twinrun.dataset.pairs import read_pairs
from twinrun.dataset.table import read_table
from twinrun.tracking.stage_journals import journal_validation, publish
from twinrun.validate.decisions import read_decisions
from twinrun.validate.fixed_splits import read_fixed_splits
from twinrun.validate.judging import judge_table
from twinrun.validate.messages import summary
from twinrun.validate.reference import find_reference
from twinrun.validate.report import report_html
from twinrun.validate.results import distributions_csv, findings_table, result_json

PACK = Path("data/out/ingest/images.npy")
TABLE = Path("data/out/ingest/table.parquet")
NEAR = Path("data/out/ingest/near.parquet")
OUT = Path("data/out/validate")
MANIFEST = OUT / "manifest.parquet"
REPORT = OUT / "report" / "index.html"
DOCS = OUT / "data_docs"


def main() -> None:
    params = load_params()
    settings, places = params.validate, setting_lines()
    images = open_pack(PACK)
    table, pairs = read_table(TABLE, len(images)), read_pairs(NEAR, len(images))
    decisions = read_decisions(expanded(settings.decisions)) if settings.decisions is not None else []
    if open_lines := sum(decision.action is None for decision in decisions):
        print(f"{settings.decisions}: lines without an action have no effect ({open_lines:,}).")
    fixed = read_fixed_splits(expanded(settings.splits)) if settings.splits is not None else []
    reference = find_reference(settings.reference)
    ensure_writable(OUT, 0)
    MANIFEST.unlink(missing_ok=True)  # it comes last, and only if the data pass
    shutil.rmtree(DOCS, ignore_errors=True)

    verdict = judge_table(
        table, images, pairs, settings, decisions=decisions, fixed=fixed, reference=reference, docs=DOCS
    )

    write_text(report_html(verdict, table, images, settings, places), REPORT)
    write_table(findings_table(verdict, table), OUT / "findings.parquet")
    write_text(distributions_csv(verdict, table), OUT / "facts.csv")
    result = result_json(verdict, table)
    write_json(result, OUT / "result.json")
    journal_validation(OUT, result, params)
    text = summary(verdict, REPORT.as_posix(), places)
    if not verdict.passed:
        publish()
        raise ValidationFailed(text)
    write_manifest(
        MANIFEST,
        ids=table["id"].to_pylist(),
        labels=verdict.labels,
        splits=verdict.splits,
        dropped=verdict.dropped,
        given=table["label"].to_pylist(),
        decisions=verdict.decisions,
        units=verdict.units,
    )
    print(text)


if __name__ == "__main__":
    run_main(main, "validate")
