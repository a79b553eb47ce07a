"""Frames of clips: names that run in numbers, and neighbours that look alike. Pure.

A name such as clip07_frame0012.jpg has a number that runs while the rest stays the same. Where the images of such a
series look far more like their neighbours than like images of other series with the same label, a split image by image
puts one moment into train and the next into test. A regular expression on the path then says what belongs together.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_SUFFIX = re.compile(r"\.\w*$")
_NUMBER = re.compile(r"\d+")
_POSITIONS = 3  # numbers from the end of a path that may be the running one
_FEWEST_FRAMES = 4
_ALIKE = 0.6  # of the distance between images of different series: neighbours nearer than that are frames
_ALIKE_IN_RUN = 0.5  # likewise, where no names but the images alone say where a clip ends
_LEAST_SHARE = 0.2  # of the images: fewer frames are no reason to group all
_SAMPLE = 2000
_UNMARKED = "-_ /"  # characters that re.escape marks and that need no mark

Series = dict[str, list[int]]  # rows by the path with its running number as "#", in the order of that number


@dataclass(frozen=True)
class Clips:
    """Series of frames that look alike, and a regular expression on paths that separates them, where there is one."""

    series: Mapping[str, Sequence[int]]
    pattern: str | None

    @property
    def frames(self) -> int:
        """Number of images in all series."""
        return sum(map(len, self.series.values()))


def find_clips(
    paths: Sequence[str], phashes: Sequence[str | None], labels: Sequence[str | None], rows: Collection[int]
) -> Clips | None:
    """The clips among `rows`, by the columns of the table of facts; `phashes` are 64 bits in hexadecimal.

    None where names do not run in numbers, or neighbours are no more alike than others.
    """
    hashes = {row: int(phash, 16) for row in rows if (phash := phashes[row]) is not None}
    best: Series = {}
    for position in range(1, _POSITIONS + 1):
        alike = _alike(_series(paths, labels, hashes, position), hashes, labels)
        if sum(map(len, alike.values())) > sum(map(len, best.values())):
            best = alike
    fewest = max(2 * _FEWEST_FRAMES, _LEAST_SHARE * len(rows))
    pattern = _pattern(best, paths) if sum(map(len, best.values())) >= fewest else None
    if pattern is not None:
        return Clips(best, pattern)
    runs = _runs(paths, hashes, labels)
    return Clips(runs, None) if sum(map(len, runs.values())) >= fewest else None


def are_torn(clips: Clips, splits: Sequence[str | None]) -> bool:
    """Whether frames of one clip are in two splits, or splits are still to be drawn."""
    return any(len({splits[row] for row in rows}) > 1 or splits[rows[0]] is None for rows in clips.series.values())


def _series(paths: Sequence[str], labels: Sequence[str | None], rows: Iterable[int], position: int) -> Series:
    """Images whose paths differ in one number alone, the `position`-th from the end; labels have two series or more."""
    numbered: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        numbers = list(_NUMBER.finditer(_SUFFIX.sub("", paths[row])))
        if len(numbers) >= position:
            number = numbers[-position]
            key = f"{paths[row][: number.start()]}#{paths[row][number.end() :]}"
            numbered[key].append((int(number.group()), row))
    series = {
        key: [row for _, row in sorted(frames)] for key, frames in numbered.items() if len(frames) >= _FEWEST_FRAMES
    }
    of_label: dict[str | None, int] = defaultdict(int)
    for members in series.values():
        of_label[labels[members[0]]] += 1
    return {key: members for key, members in series.items() if of_label[labels[members[0]]] > 1}


def _runs(paths: Sequence[str], hashes: Mapping[int, int], labels: Sequence[str | None]) -> Series:
    """Numbered images of a folder in the order of their numbers, cut where neighbours are not alike: bursts, clips.

    None of those where neighbours are alike hardly more often than any two images of the folder.
    """
    folders: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for row in hashes:
        folder, _, name = paths[row].rpartition("/")
        if _NUMBER.search(_SUFFIX.sub("", name)):
            folders[folder, labels[row]].append(row)
    series: Series = {}
    for rows in folders.values():
        ordered = sorted(rows, key=lambda row: [part.zfill(20) for part in re.split(r"(\d+)", paths[row])])
        far = len(ordered) // 2
        apart = [_distance(hashes[a], hashes[b]) for a, b in zip(ordered, ordered[far:] + ordered[:far], strict=True)]
        near = _ALIKE_IN_RUN * float(np.median(apart))
        steps = [_distance(hashes[a], hashes[b]) <= near for a, b in pairwise(ordered)]
        by_chance = sum(distance <= near for distance in apart) / len(apart)
        if not steps or sum(steps) / len(steps) < _LEAST_SHARE + 3 * by_chance:
            continue
        run = [ordered[0]]
        for row, alike in zip(ordered[1:], steps, strict=True):
            if not alike:
                run = [row]
                continue
            run.append(row)
            series[paths[run[0]]] = run
    return series


def _alike(series: Series, hashes: Mapping[int, int], labels: Sequence[str | None]) -> Series:
    """The series whose neighbours are much nearer to one another than images of different series of their label."""
    of_label: dict[str | None, list[str]] = defaultdict(list)
    for key, members in series.items():
        of_label[labels[members[0]]].append(key)
    alike: Series = {}
    for keys in of_label.values():
        between = _median_between([series[key] for key in keys], hashes)
        for key in keys:
            steps = [_distance(hashes[a], hashes[b]) for a, b in zip(series[key], series[key][1:], strict=False)]
            if float(np.median(steps)) <= _ALIKE * between:
                alike[key] = series[key]
    return alike


def _median_between(series: Sequence[Sequence[int]], hashes: Mapping[int, int]) -> float:
    """The median distance between images of different series, from a fixed sample."""
    distances = []
    for turn in range(-(-_SAMPLE // len(series))):
        for first, second in zip(series, [*series[1:], series[0]], strict=True):
            distances.append(_distance(hashes[first[turn % len(first)]], hashes[second[(3 * turn) % len(second)]]))
    return float(np.median(distances))


def _distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def _pattern(series: Series, paths: Sequence[str]) -> str | None:
    """A regular expression whose first group separates the series; None where none of those tried does."""
    prefixes = [key.partition("#")[0] for key in series]
    tail = _common_tail(prefixes)
    heads = [prefix.removesuffix(tail) for prefix in prefixes]
    tried = []
    if tail and all(head[-1:].isdigit() for head in heads):
        word = re.search(r"[^\W\d_]*(_|[^\w/])*$", _common_end([head.rstrip("0123456789") for head in heads]))
        tried.append(rf"(.*{_escaped(word.group()) if word else ''}\d+){_escaped(tail)}\d+")
    if tail:
        tried.append(rf"(.*){_escaped(tail)}\d+")
    tried.append(r"(.*\D)\d+")
    return next((pattern for pattern in tried if _separates(pattern, series, paths)), None)


def _common_tail(prefixes: Sequence[str]) -> str:
    """What all prefixes end in, without digits, from a separator on, such as "_frame"."""
    tail = re.split(r"\d", _common_end(prefixes))[-1]
    if all(prefix.removesuffix(tail)[-1:].isdigit() for prefix in prefixes):
        return tail
    separator = re.search(r"[\W_]", tail)
    return tail[separator.start() :] if separator else ""


def _common_end(texts: Sequence[str]) -> str:
    shared = 0
    while all(len(text) > shared and text[-shared - 1] == texts[0][-shared - 1] for text in texts):
        shared += 1
    return texts[0][len(texts[0]) - shared :]


def _escaped(text: str) -> str:
    marked = re.escape(text)
    for character in _UNMARKED:
        marked = marked.replace(f"\\{character}", character)
    return marked


def _separates(pattern: str, series: Series, paths: Sequence[str]) -> bool:
    """Whether all frames of each series are in one group, and not all series in the same."""
    matcher = re.compile(pattern)
    groups = set()
    for rows in series.values():
        captured = {match.group(1) if (match := matcher.search(paths[row])) else None for row in rows}
        if len(captured) > 1 or not all(captured):
            return False
        groups |= captured
    return len(groups) > len(series) / 2
