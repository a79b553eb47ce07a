"""The table: a row of facts for each image of the pack, sorted by path."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.errors import DataError
from twinrun.base.files import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, Sequence[Any]]
"""The facts as plain lists, by column; a value for each row of the pack."""

NO_LABEL = "lies in no class folder, so that it has no label"
"""The error of an image beside folders of classes."""

NO_LABEL_IN_LIST = "has no label in the splits file"
"""The error of an image whose label the file of ingest.splits_file should name."""


def table_schema() -> "pa.Schema":
    """The columns, as ingest writes them and validate reads them."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),  # first 16 hexadecimal digits of the sha256 of the path
            "path": pa.string(),  # inside the source
            "label": pa.string(),
            "split": pa.string(),  # as published, or null
            "group": pa.string(),  # burst, patient, household: what must stay in one split, or null
            "bytes_sha256": pa.string(),  # of the file, or of the image's bytes in an array
            "pixels_sha256": pa.string(),  # of the pixels at full size, in the channels asked for
            "phash": pa.string(),  # perceptual, 64 bits in hexadecimal
            "width": pa.int32(),  # as stored, before the EXIF orientation, pixels
            "height": pa.int32(),
            "mode": pa.string(),  # Pillow's name of the stored colour mode
            "format": pa.string(),
            "file_bytes": pa.int64(),
            "brightness": pa.float32(),  # mean gray, in [0, 1]
            "contrast": pa.float32(),  # standard deviation of the gray, in [0, 0.5]
            "sharpness": pa.float32(),  # standard deviation of the gray's Laplacian, in [0, 4]
            "red": pa.float32(),  # mean of the channel, in [0, 1]; red, green and blue of gray images are the same
            "green": pa.float32(),
            "blue": pa.float32(),
            "entropy": pa.float32(),  # of the histogram of 256 grays, bits, in [0, 8]
            "gray_p5": pa.float32(),  # gray that 5% of the pixels do not exceed, in [0, 1]
            "gray_p95": pa.float32(),  # likewise 95%
            "camera": pa.string(),  # make and model by the EXIF block, or null
            "error": pa.string(),  # why the image could not be decoded, or null
        }
    )


def read_table(path: Path, images: int | None = None) -> "pa.Table":
    """Read the table.

    Raises DataError where it is missing, lacks a column or a value, or has not a row for each of `images` images.
    """
    again = "Create it again: dvc repro -f ingest"
    try:
        table = read_parquet(
            path, table_schema(), "a table of images", again, nulls={*table_schema().names} - {"id", "path"}
        )
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Create it: dvc repro ingest") from None
    if images is not None and len(table) != images:
        raise DataError(f"{path} has {len(table):,} rows and there are {images:,} images. {again}")
    return table
