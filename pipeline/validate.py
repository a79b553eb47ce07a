"""Stage `validate`: the facts -> a manifest of what may be used, a verdict, a report. Run with `dvc repro validate`."""

from pathlib import Path

from twinrun.data.manifest import write_manifest
from twinrun.data.pack import open_pack
from twinrun.data.report import report_html
from twinrun.data.table import read_table
from twinrun.data.validation import failure_message, judge_table, result_json, summary
from twinrun.errors import ValidationFailed, run_main
from twinrun.params import load_params
from twinrun.publish import ensure_writable, write_json, write_text

PACK = Path("data/out/ingest/images.npy")
TABLE = Path("data/out/ingest/table.parquet")
OUT = Path("data/out/validate")
MANIFEST = OUT / "manifest.parquet"
REPORT = OUT / "report" / "index.html"


def main() -> None:
    params = load_params().validate
    table, images = read_table(TABLE), open_pack(PACK)
    ensure_writable(OUT, 0)
    MANIFEST.unlink(missing_ok=True)  # it comes last, and only if the data pass

    verdict = judge_table(table, params)

    write_text(report_html(verdict, table, images, params), REPORT)
    write_json(result_json(verdict, table), OUT / "result.json")
    if not verdict.passed:
        raise ValidationFailed(failure_message(verdict, REPORT.as_posix()))
    write_manifest(
        MANIFEST,
        ids=table["id"].to_pylist(),
        labels=table["label"].to_pylist(),
        splits=verdict.splits,
        dropped=verdict.dropped,
    )
    print(summary(verdict))


if __name__ == "__main__":
    run_main(main)
