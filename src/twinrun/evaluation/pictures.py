"""Drawing scores, mistakes and feature maps as PNG bytes, the same bytes for the same values.

No clock, no version and no setting of this machine's matplotlib reaches a picture. Class names are drawn as they are:
a dollar sign in a name starts no formula.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.evaluation.features import FeatureMaps, liveliest
from twinrun.evaluation.history import History
from twinrun.evaluation.metrics import CalibrationBins
from twinrun.evaluation.predictions import Mistake

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144  # of every picture; a page shows them at 96, so that they are sharp on a screen with small pixels

_BLUE, _RED, _INK, _FAINT = "#1f5f8b", "#c8452d", "#22272e", "#8a929c"
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_MOST_LABELS = 120  # classes; above it the labels of a confusion matrix would be dust


def confusion_picture(matrix: IntArray, classes: tuple[str, ...]) -> bytes:
    """Draw a confusion matrix (actual, predicted): right answers in blue, wrong ones in red, as shares of the row."""
    n_classes = len(classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(n_classes, dtype=bool)
    # The root makes a single mistake visible beside a hundred right answers.
    strength = np.where(right, share, 0.15 + 0.85 * np.sqrt(share))[..., None]
    colours = (1 - strength) * _rgb("#ffffff") + strength * np.where(right[..., None], _rgb(_BLUE), _rgb(_RED))
    colours[(matrix == 0) & ~right] = _rgb("#f6f7f8")
    cell_in = 0.42 if n_classes <= 12 else 0.3 if n_classes <= 30 else 0.19 if n_classes <= 60 else 0.12
    side_in = max(2.4, min(n_classes, _MOST_LABELS) * cell_in)

    with _figure(side_in, side_in, layout="none") as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(colours, interpolation="nearest", aspect="equal")
        axes.spines[:].set_visible(False)
        axes.set(ylabel="label", xlabel="prediction")
        if n_classes <= _MOST_LABELS:
            names = [_short(name, 22) for name in classes]
            size = min(9.0, cell_in * 72 * 0.72)
            sideways = max(map(len, names)) * size * 0.62 > cell_in * 72
            axes.set_xticks(range(n_classes), names, rotation=90 if sideways else 0, fontsize=size)
            axes.set_yticks(range(n_classes), names, fontsize=size)
            axes.tick_params(length=0)
            few = n_classes <= 30  # a line between all classes, or one after every fifth to guide the eye
            lines = np.arange(1 if few else 5, n_classes, 1 if few else 5) - 0.5
            axes.set_xticks(lines, minor=True)
            axes.set_yticks(lines, minor=True)
            axes.grid(which="minor", color="white" if few else "#d9dde1", linewidth=0.8)
            axes.tick_params(which="minor", length=0)
        if n_classes <= 30:
            widest = len(str(matrix.max()))
            size = min(9.0, cell_in * 72 / (0.72 * max(widest, 2)))
            for row, column in np.argwhere(matrix > 0):
                dark = strength[row, column, 0] > 0.6
                axes.text(
                    column, row, str(matrix[row, column]), ha="center", va="center", fontsize=size,
                    color="white" if dark else _INK,
                )  # fmt: skip
        return _png(figure)


def reliability_picture(bins: CalibrationBins, error: float) -> bytes:
    """Draw accuracy against confidence, and below it the number of images in each bin of confidence."""
    filled = bins.images > 0
    left, width = bins.edges[:-1][filled], np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    with _figure(4.6, 4.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        upper.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1, label="calibrated")
        low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
        upper.vlines(confidence, low, high, color=_RED, linewidth=2, label="gap", zorder=2)
        area = 12 + 130 * np.sqrt(bins.images[filled] / bins.images.max())
        upper.scatter(confidence, accuracy, area, color=_BLUE, zorder=3, label="images of one bin", clip_on=False)
        upper.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="accuracy")
        upper.set_title(f"Calibration error {error:.3f}")
        upper.legend(loc="lower right", fontsize=8, markerscale=0.6)
        lower.bar(left, bins.images[filled], width, align="edge", color=_FAINT, edgecolor="white", linewidth=0.8)
        lower.set_yscale("log")
        lower.set_ylim(0.7, bins.images.max() * 5)
        lower.yaxis.set_major_formatter("{x:,.0f}")
        lower.minorticks_off()
        for at, wide, images in zip(left, width, bins.images[filled], strict=True):
            lower.text(at + wide / 2, images * 1.2, str(images), ha="center", va="bottom", fontsize=6, color=_INK)
        lower.set(xlabel="confidence: the largest probability", ylabel="images")
        figure.align_ylabels()
        return _png(figure)


def risk_picture(risk: FloatArray) -> bytes:
    """Draw the share of wrong answers (N,) among the most confident ones, by how many of the N are given."""
    with _figure(4.6, 2.6) as figure:
        axes = figure.subplots()
        axes.plot(100 * np.arange(1, len(risk) + 1) / len(risk), 100 * risk, color=_BLUE, linewidth=1.5)
        axes.set(xlim=(0, 100), xlabel="images answered, %", ylabel="of them wrong, %")
        axes.set_ylim(bottom=0)
        return _png(figure)


def curves_picture(history: History) -> bytes:
    """Draw loss, validation accuracy and learning rate over the epochs."""
    few = len(history.epoch) < 25
    marker = "o" if few else ""
    with _figure(8.6, 3.0) as figure:
        loss, accuracy, rate = figure.subplots(1, 3)
        loss.plot(history.epoch, history.train_loss, color=_FAINT, marker=marker, markersize=3, label="training")
        loss.plot(history.epoch, history.val_loss, color=_BLUE, marker=marker, markersize=3, label="validation")
        loss.set_title("Loss")
        loss.legend(fontsize=8)
        if np.all(np.array(history.train_loss + history.val_loss) > 0):
            loss.set_yscale("log")
            _plain_log_ticks(loss)

        best = int(np.argmax(history.val_accuracy))
        percent = [100 * value for value in history.val_accuracy]
        accuracy.plot(history.epoch, percent, color=_BLUE, marker=marker, markersize=3)
        accuracy.plot(history.epoch[best], percent[best], "o", color=_RED, markersize=6)
        accuracy.annotate(
            f"best: {percent[best]:.2f}% (epoch {history.epoch[best]:g})", (1, 0.06), xycoords="axes fraction",
            ha="right", fontsize=8, color=_RED,
        )  # fmt: skip
        accuracy.set_title("Validation accuracy, %")

        rate.plot(history.epoch, history.learning_rate, color=_BLUE, marker=marker, markersize=3)
        rate.set_title("Learning rate")
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter("{x:g}")
        for axes in (loss, accuracy, rate):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6, min_n_ticks=1)
            axes.grid(axis="y", color="#e6e9ec", linewidth=0.8)
            axes.set_axisbelow(True)
        return _png(figure)


def mistakes_picture(images: Pixels, mistakes: Sequence[Mistake]) -> bytes:
    """Draw a sheet of wrongly classified images (N, H, W, C) with prediction, probability and label."""
    columns, tile_in, text_in, gap_in = 6, 1.28, 0.44, 0.16
    rows = -(-len(mistakes) // columns)
    used = min(columns, len(mistakes))
    width, height = used * (tile_in + gap_in), rows * (tile_in + text_in + gap_in) + gap_in
    with _figure(width, height, layout="none") as figure:
        for at, (image, mistake) in enumerate(zip(images, mistakes, strict=True)):
            row, column = divmod(at, columns)
            x, top = column * (tile_in + gap_in), gap_in + row * (tile_in + text_in + gap_in)
            _place(figure, _enlarged(_as_rgb(image), round(tile_in * DPI)), x, top)
            lines = (
                (f"{_short(mistake.predicted, 14)}?  {_percent(mistake.probability)}", _RED, "bold"),
                (f"is {_short(mistake.actual, 17)}", _INK, "normal"),
            )
            for number, (text, colour, weight) in enumerate(lines):
                y = 1 - (top + tile_in + 0.05 + number * 0.18) / height
                figure.text(x / width, y, text, color=colour, fontweight=weight, fontsize=8.5, va="top")
        return _png(figure, tight=False)


def features_picture(
    image: npt.NDArray[np.uint8], seen: Sequence[FeatureMaps], answer: Sequence[tuple[str, float]]
) -> bytes:
    """Draw an image (H, W, C), the network's outputs from first to last, and its `answer`: names and probabilities.

    Of every output the 14 maps that vary most are drawn, each from its own smallest value (dark) to its largest
    (light). The units of a vector are one bar, in order.
    """
    tile_in, gap_in, text_in, first_in, maps_shown = 0.52, 0.05, 0.3, 1.5, 14
    width = maps_shown * (tile_in + gap_in)
    heights = [text_in + (0.2 if maps.is_vector else tile_in) + 0.1 for maps in seen]
    height = first_in + 0.25 + sum(heights)
    with _figure(width, height, layout="none") as figure:

        def write(text: str, x: float, top: float, **settings: Any) -> None:
            figure.text(x / width, 1 - top / height, text, va="top", **settings)

        _place(figure, _enlarged(_as_rgb(image), round(first_in * DPI)), 0, 0.1)
        write("What goes in, and what comes out", first_in + 0.25, 0.12, fontweight="bold", fontsize=10)
        for number, (name, probability) in enumerate(answer[:5]):
            top = 0.42 + number * 0.23
            write(_short(name, 26), first_in + 0.25, top, fontsize=8.5)
            bar = np.tile(
                _rgb255(_BLUE if number == 0 else _FAINT), (round(0.13 * DPI), max(1, round(2 * probability * DPI)), 1)
            )
            _place(figure, bar.astype(np.uint8), first_in + 2.3, top)
            write(_percent(probability), first_in + 2.3 + 2 * probability + 0.06, top, fontsize=8.5)

        top = first_in + 0.3
        for maps, high in zip(seen, heights, strict=True):
            write(maps.kind, 0, top, fontsize=8.5, fontweight="bold", color=_BLUE)
            write(_described(maps), 0.9, top, fontsize=8.5)
            if maps.is_vector:
                strip = _strip(maps.maps[:, 0, 0], round((width - gap_in) * DPI), round(0.2 * DPI))
                _place(figure, strip, 0, top + 0.2)
            else:
                for column, index in enumerate(liveliest(maps.maps, maps_shown)):
                    tile = _enlarged(_coloured(maps.maps[index]), round(tile_in * DPI))
                    _place(figure, tile, column * (tile_in + gap_in), top + 0.2)
            top += high
        return _png(figure, tight=False)


@contextmanager
def _figure(width_in: float, height_in: float, layout: str = "constrained") -> "Iterator[Figure]":
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the page has it as text too.
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout=layout)  # type: ignore[arg-type]
        FigureCanvasAgg(figure)
        yield figure


def _png(figure: "Figure", tight: bool = True) -> bytes:
    """Encode with few colours where few are used: a chart shrinks to a third and looks the same."""
    from PIL import Image

    drawn = io.BytesIO()
    extent: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.08} if tight else {}
    figure.savefig(drawn, format="png", **extent)
    picture = Image.open(drawn).convert("RGB")
    few = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    encoded = io.BytesIO()
    few.save(encoded, format="PNG", optimize=True)
    return encoded.getvalue()


def _place(figure: "Figure", pixels: Pixels, x_in: float, top_in: float) -> None:
    """Put pixels (H, W, 3) on the figure one to one, their upper left corner that far from its own."""
    height = round(figure.get_figheight() * DPI)
    figure.figimage(pixels, round(x_in * DPI), height - round(top_in * DPI) - pixels.shape[0], origin="upper")


def _enlarged(pixels: Pixels, side_px: int) -> Pixels:
    """Scale (H, W, 3) to a square of `side_px`, oblong ones between white; small images keep their pixels visible."""
    from PIL import Image

    longest = max(pixels.shape[:2])
    method = Image.Resampling.NEAREST if longest < side_px else Image.Resampling.LANCZOS
    height, width = (max(1, round(side * side_px / longest)) for side in pixels.shape[:2])
    square = np.full((side_px, side_px, 3), 255, np.uint8)
    top, left = (side_px - height) // 2, (side_px - width) // 2
    scaled = Image.fromarray(pixels).resize((width, height), method)
    square[top : top + height, left : left + width] = np.asarray(scaled)
    return square


def _as_rgb(image: Pixels) -> Pixels:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _coloured(values: npt.NDArray[np.float32]) -> Pixels:
    """Colours from the smallest value (dark) to the largest (light); a constant is dark."""
    import matplotlib

    low, high = values.min(), values.max()
    scaled = np.zeros_like(values) if high <= low else (values - low) / (high - low)
    colours: Pixels = matplotlib.colormaps["viridis"](scaled, bytes=True)[..., :3]
    return colours


def _strip(values: npt.NDArray[np.float32], width_px: int, height_px: int) -> Pixels:
    """A vector as one bar of colours, each unit as wide as the others; units share a pixel where there are too many."""
    at = np.arange(width_px) * len(values) // width_px
    return np.repeat(_coloured(values[None, :])[:, at], height_px, axis=0)


def _described(maps: FeatureMaps) -> str:
    count, height, width = maps.maps.shape
    size = f"{count} units" if maps.is_vector else f"{count} maps of {height} x {width}"
    return f"{size}   {maps.operation}" + (f" at {maps.layer}" if maps.layer else "")


def _plain_log_ticks(axes: "Axes") -> None:
    """Numbers such as 0.3 on a log axis; matplotlib's own labels are formulas."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _percent(share: float) -> str:
    """A share as a percentage that says 0 or 100 only where it is."""
    percent = 100 * share
    if percent in (0, 100) or 1 <= percent <= 99:
        return f"{percent:.0f}%"
    return f"{min(percent, 99.9):.1f}%" if percent >= 0.1 else "< 0.1%"


def _short(name: str, most: int) -> str:
    flat = " ".join(name.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _rgb(colour: str) -> npt.NDArray[np.float64]:
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(colour))


def _rgb255(colour: str) -> npt.NDArray[np.float64]:
    return (_rgb(colour) * 255).round()
