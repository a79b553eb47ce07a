"""The table: a row of facts for each image of the pack, sorted by path. Refuses to judge them."""

from pathlib import Path
from typing import TYPE_CHECKING

from twinrun.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

NO_LABEL = "lies in no class folder, so that it has no label"
"""The error of an image beside folders of classes."""


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
            "gray_p5": pa.float32(),  # gray that 5 % of the pixels do not exceed, in [0, 1]
            "gray_p95": pa.float32(),  # likewise 95 %
            "camera": pa.string(),  # make and model by the EXIF block, or null
            "error": pa.string(),  # why the image could not be decoded, or null
        }
    )


def read_table(path: Path) -> "pa.Table":
    """Read the table; raises DataError where it is missing or lacks a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=table_schema().names)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Make it: dvc repro ingest") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a table of images ({error}). Make it again: dvc repro -f ingest") from None
