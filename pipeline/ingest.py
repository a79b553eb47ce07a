"""Stage `ingest`: a source -> the pack of images, their facts and near duplicates. Run with `dvc repro ingest`."""

from pathlib import Path

from twinrun.base.errors import run_main
from twinrun.base.files import ensure_writable, write_table
from twinrun.base.printing import print
from twinrun.base.progress import fraction
from twinrun.core.cores import available_cores
from twinrun.core.params import IngestParams, load_params
from twinrun.dataset.pack import creating_pack, open_pack
from twinrun.dataset.pairs import pairs_table
from twinrun.decoding.samples import sample_rules
from twinrun.ingest.copies.nearest import near_duplicates
from twinrun.ingest.packing import Shape, facts_table, fill_pack, sample_notes, summary
from twinrun.ingest.sharing import OF_FILES, advice
from twinrun.ingest.sources import list_source

OUT = Path("data/out/ingest")
PACK = OUT / "images.npy"
TABLE = OUT / "table.parquet"
NEAR = OUT / "near.parquet"


def main() -> None:
    params = load_params(inputs=True).ingest
    listing = list_source(params)
    shape = Shape(params.size, params.channels, params.fit, params.resample, params.max_pixels, sample_rules(params))
    workers = available_cores() if params.workers == "auto" else params.workers

    ensure_writable(OUT, 0)
    TABLE.unlink(missing_ok=True)  # it comes last: a pack without its table is not a result
    with creating_pack(PACK, (len(listing.items), *shape.of_image)) as pack:
        facts = fill_pack(listing, shape, pack, workers)
    splits = [item.split for item in listing.items]
    with fraction("Searching for near duplicates") as progress:
        pairs = near_duplicates(open_pack(PACK), facts, splits, progress=progress)
    write_table(pairs_table(pairs), NEAR)
    write_table(facts_table(listing, facts), TABLE)
    notes = sample_notes(listing, facts, shape.rules)
    print("\n".join([*notes, summary(listing, facts), *_advice(params)]))


def _advice(params: IngestParams) -> list[str]:
    return advice(Path.cwd(), params.path) if params.source in OF_FILES else []


if __name__ == "__main__":
    run_main(main, "ingest")
