"""Which level of folders is the split, which the label, which the group: decided by evidence. Pure.

The evidence is which levels hold images, which folder names repeat below other folders, and words that people use for
splits (train, dev, seg_train, training_set, ...), for parts of a data set (images, masks) and for images that belong
together (patient_01, clip_3). Words alone decide only where all folders of a level have them. A reading says what each
level is. Where two readings remain possible, both are returned.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from twinrun.core.params import Level
from twinrun.dataset.manifest import SplitName
from twinrun.ingest.listing import words_of

Parts = tuple[str, ...]  # names of folders, from the top
Levels = tuple[Level, ...]

_TEST_OR_VAL = words_of("eval evals evaluate evaluating evaluation evalset evaluationset")  # val if there is a test set
_SPLIT_WORDS: dict[str, SplitName] = {
    **dict.fromkeys(words_of("train training trainset trainingset traindata trainingdata trainval trn"), "train"),
    **dict.fromkeys(words_of("val vali valid validate validating validation valset validset validationset"), "val"),
    **dict.fromkeys(words_of("valdata validationdata dev devset devel development"), "val"),
    **dict.fromkeys(words_of("test tests testing testset testingset testdata tst holdout holdouts heldout"), "test"),
    **dict.fromkeys(_TEST_OR_VAL, "test"),
}
_MASK_WORDS = words_of(
    """mask masks seg segmentation segmentations segmentationclass segmentationobject annotation annotations anno
    label labels gt groundtruth depth thumb thumbs thumbnail thumbnails preview previews heatmap heatmaps overlay
    overlays"""
)
_MAY_BE_MASK = re.compile("|".join(sorted(_MASK_WORDS)), re.IGNORECASE)
_PART_WORDS = _MASK_WORDS | words_of(
    """image images img imgs photo photos picture pictures pics jpg jpgs jpeg jpegs png pngs jpegimages rgb"""
)
_FILLERS = _PART_WORDS | words_of("set data dataset split splits subset part files folder crops the of")
_GROUP_WORDS = words_of(
    """patient patients pat subject subj sub person people participant user animal household case scene site location
    loc camera cam clip video vid sequence seq session sess recording rec track burst plant plot slide batch"""
)
# What may be a group, or just how the images were sorted.
_SORTED_BY = words_of("household scene site location loc camera cam session sess plant plot slide batch")
_FOLD_WORDS = frozenset({"fold", "folds", "cv", "kfold"})
_REPEATED = 0.5  # share of the folders of a level whose names are below another folder too
_DIRECT = 0.1  # share of images beside the folders of a level, up to which that level may be the label
_WORDS = re.compile(r"[^\W\d_]+|\d+")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass
class Tree:
    """Images directly in a folder, and the folders below it that hold images."""

    images: int = 0
    below: dict[str, "Tree"] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Images in the folder and below it."""
        return self.images + sum(tree.total for tree in self.below.values())


@dataclass(frozen=True)
class Place:
    """What an image's folders say about it; `stray` is the name of a folder beside the splits that is not a split."""

    split: SplitName | None
    label: str | None
    group: str | None
    stray: str | None = None


@dataclass(frozen=True)
class Reading:
    """What each level of folders is, from the top, and the split that each folder of the split level names.

    The `unlabelled` folders of the split level contain a single folder, which is not a class in any other split.
    """

    levels: Levels
    splits: Mapping[str, SplitName]
    unlabelled: frozenset[str] = frozenset()

    def place(self, folders: Parts) -> Place:
        """What the reading says about an image in `folders`; folders below its levels do not matter."""
        named = dict(zip(self.levels, folders, strict=False))
        split = named.get("split")
        if split is not None and split not in self.splits:
            return Place(None, named.get("label"), named.get("group"), split)
        if split is None:
            return Place(None, named.get("label"), named.get("group"))
        label = None if split in self.unlabelled else named.get("label")
        return Place(self.splits[split], label, named.get("group"))


def tree_of(folders: Mapping[Parts, int]) -> Tree:
    """The tree of the folders that hold images, given the number of images directly in each."""
    top = Tree()
    for parts, images in folders.items():
        tree = top
        for name in parts:
            tree = tree.below.setdefault(name, Tree())
        tree.images += images
    return top


def possible_readings(folders: Mapping[Parts, int]) -> list[Reading]:
    """The readings that the evidence allows, the likeliest first; `folders` have the number of images in each."""
    readings = [reading_as(levels, folders) for levels in dict.fromkeys(_readings(tree_of(folders), True))]
    return [replace(reading, unlabelled=_unlabelled(reading, folders)) for reading in readings]


def reading_as(levels: Sequence[Level], folders: Iterable[Parts]) -> Reading:
    """The reading with the given `levels`."""
    if "split" not in levels:
        return Reading(tuple(levels), {})
    depth = list(levels).index("split")
    return Reading(tuple(levels), split_names({parts[depth] for parts in folders if len(parts) > depth}))


def split_names(names: Iterable[str]) -> dict[str, SplitName]:
    """The split of each of `names` that has a word for one, such as seg_train, training_set, dev and hold_out."""
    word_of = {name: _split_word(name) for name in sorted(names)}
    has_test = any(
        word is not None and _SPLIT_WORDS[word] == "test" and word not in _TEST_OR_VAL for word in word_of.values()
    )
    return {
        name: "val" if word in _TEST_OR_VAL and has_test else _SPLIT_WORDS[word]
        for name, word in word_of.items()
        if word is not None
    }


def split_names_among_labels(reading: Reading, folders: Iterable[Parts]) -> set[Parts]:
    """Folders of the label level that are named as a split beside others that are not, such as test beside cat and dog.

    Not train, which may be a class, nor valid beside invalid.
    """
    if "label" not in reading.levels:
        return set()
    depth = reading.levels.index("label")
    labels = {parts[: depth + 1] for parts in folders if reading.place(parts).label is not None}
    names = {parts[-1] for parts in labels}
    known_names = {name.casefold() for name in names}
    named = {
        name
        for name in names
        if (word := name.casefold()) != "train" and f"in{word}" not in known_names and _pure_splits([name], [name])
    }
    return {parts for parts in labels if parts[-1] in named} if named != names else set()


def is_mask_folder(name: str, beside: Container[Parts] = ()) -> bool:
    """Whether a folder's name says that it holds masks, annotations, depth maps or thumbnails of photos.

    It may also have the words of a folder `beside` it, see `words_in`, as cat_mask has that of cat.
    """
    if _is_made_of(name, _MASK_WORDS):
        return True
    parts = words_in(name)
    rest = tuple(word for word in parts if word not in _MASK_WORDS)
    return bool(rest) and rest != parts and rest in beside


def words_in(name: str) -> Parts:
    """The words and numbers in a folder's name."""
    return tuple(_split_name(name))


def mask_files(names: Iterable[str]) -> list[str]:
    """The files of one folder that are named as masks of others in it, such as 7_mask.png beside 7.png."""
    files = list(names)
    masks = [name for name in files if _MAY_BE_MASK.search(name)]
    if not masks:
        return []
    parts = {name: _split_name(name.rpartition(".")[0] or name) for name in files}
    masks = [name for name in masks if not _MASK_WORDS.isdisjoint(parts[name])]
    photos = {_without_parts(parts[name]) for name in set(files).difference(masks)}
    return [name for name in masks if _without_parts(parts[name]) in photos]


def mask_pattern(name: str) -> str:
    """A pattern for `ingest.leave_out` that matches files named like the mask `name`, such as "*_mask.png"."""
    stem, dot, suffix = name.rpartition(".")
    word = next(word for word in reversed(_WORDS.findall(_HUMPS.sub(" ", stem))) if word.casefold() in _MASK_WORDS)
    before, _, after = stem.rpartition(word)
    if not after:
        mark = before[-1:] if not before[-1:].isalnum() else ""
        return f"*{mark}{word}{dot}{suffix}"
    return f"*/{word}{after[0]}*" if not before else f"*{word}*"


def _readings(tree: Tree, may_split: bool) -> list[Levels]:
    folders = tree.below
    if not folders:
        return [()]
    parents = {name: child for name, child in folders.items() if child.below}
    if may_split and (splits := _level_of_splits(folders)):
        return _below_splits({name: child for name, child in parents.items() if name in splits})
    if may_split and (train := _train_beside_flat(folders)):
        return [*_below_splits(train), ("label",)]
    if len(folders) == 1 and parents:
        return _after("skip", _readings(next(iter(parents.values())), may_split))
    if all(_is_part(name) for name in folders):
        return _after("skip", _readings(_merged(parents.values()), may_split))
    if not parents:
        return [("label",)]
    names = Counter(name for parent in parents.values() for name in parent.below)
    if all(_is_part(name) for name in names):
        return [("label",)]
    if may_split and _are_splits(names):
        return _above_splits(folders, parents)
    inner = _readings(_merged(parents.values()), may_split)
    groups_below: list[Levels] = [("label", "group")] if all(_is_numbered(name, _GROUP_WORDS) for name in names) else []
    # Both may be groups, as in patient_1/clip_2/cat.
    are_groups_above = all(_is_numbered(name, _GROUP_WORDS) for name in folders) and "group" in inner[0]
    if groups_below and not (are_groups_above and _hold_labels(_merged(parents.values()).below.values())):
        return groups_below
    if all(_is_numbered(name, _FOLD_WORDS) or split_names([name]) for name in folders):
        return [*_after("skip", inner), *_after("group", inner)]
    if all(_is_numbered(name, _GROUP_WORDS) for name in folders):
        is_sorted = all(_is_numbered(name, _SORTED_BY) for name in folders)
        return [*_after("group", inner), *(_after("skip", inner) if is_sorted else []), *groups_below]
    if not _may_be_labels(tree, parents, names):
        return [("label",)]
    grouped: list[Levels] = [("label", "group")] if _are_ids(names) and not _are_ids(folders) else []
    return [("label",), *grouped, *_after("group" if _are_ids(folders) else "skip", inner)]


def _hold_labels(groups: Iterable[Tree]) -> bool:
    """Whether the folders in `groups` may be classes: at least two have names that are in several groups."""
    names = Counter(name for group in groups for name in group.below)
    repeated = [name for name, count in names.items() if count > 1]
    return len(repeated) > 1 and not all(_is_numbered(name, _GROUP_WORDS) or _is_part(name) for name in names)


def _after(level: Level, readings: list[Levels]) -> list[Levels]:
    """The readings below one more level. Of two levels of groups the outer one counts, since it holds the inner."""
    passed_over: Level = "skip" if level == "group" else level
    below = [tuple(passed_over if inner == level == "group" else inner for inner in levels) for levels in readings]
    return list(dict.fromkeys((level, *levels) for levels in below))


def _below_splits(splits: dict[str, Tree]) -> list[Levels]:
    if not splits:
        return [("split",)]
    inner = {name: tree for name, outer in splits.items() if (tree := _inside(outer)) is not None and tree.below}
    outer = [tree for name, tree in splits.items() if name not in inner]
    is_nested = bool(inner) and all(_inside(tree) is not None for tree in outer)
    is_half_nested = any(tree.below.keys() & other.below.keys() for tree in inner.values() for other in outer)
    if not is_nested and not is_half_nested:
        return _after("split", _readings(_merged(splits.values()), False))
    inside = [tree for split in splits.values() if (tree := _inside(split)) is not None]
    nested = _readings(_merged(inner.values() if is_half_nested else inside), False)
    nested = _after("split", _after("skip", nested))
    return [*nested, *_after("split", _readings(_merged(outer), False))] if is_half_nested else nested


def _above_splits(folders: dict[str, Tree], parents: dict[str, Tree]) -> list[Levels]:
    """Readings of folders with splits in them: they are classes, or a level above splits that have classes in them."""
    inner = [levels for levels in _readings(_merged(parents.values()), True) if "label" in levels]
    below = [{name for split in parent.below.values() for name in split.below} for parent in parents.values()]
    names = Counter(name for labels in below for name in labels)
    if not inner:
        return [("label", "split")]
    if all(_is_numbered(name, _GROUP_WORDS) for name in names):
        return [("label", "split", "group")]
    outer = [*_after("skip", inner), *_after("group", inner)]
    if all(_is_numbered(name, _FOLD_WORDS) for name in folders):
        return outer
    repeated = sum(count for count in names.values() if count > 1)
    return [*outer, ("label", "split")] if repeated >= _REPEATED * names.total() else [("label", "split"), *outer]


def _unlabelled(reading: Reading, folders: Iterable[Parts]) -> frozenset[str]:
    """Folders of splits other than train whose only folder is in no other split, where another has several classes."""
    levels = list(reading.levels)
    if "split" not in levels or "label" not in levels[levels.index("split") :]:
        return frozenset()
    labels: dict[str, set[str]] = {}
    for parts in folders:
        if len(parts) > levels.index("label"):
            labels.setdefault(parts[levels.index("split")], set()).add(parts[levels.index("label")])
    if max(map(len, labels.values()), default=0) < 2:
        return frozenset()
    splits = Counter(label for of_split in labels.values() for label in of_split)
    return frozenset(
        name
        for name, of_split in labels.items()
        if len(of_split) == 1 and splits[next(iter(of_split))] == 1 and reading.splits.get(name, "train") != "train"
    )


def _inside(tree: Tree) -> Tree | None:
    """The one folder in a folder that holds nothing else."""
    return next(iter(tree.below.values())) if len(tree.below) == 1 and not tree.images else None


def _level_of_splits(folders: dict[str, Tree]) -> dict[str, SplitName]:
    """The splits that the folders of a level name, where that level is one of splits; otherwise none."""
    named = split_names(folders)
    pure = _pure_splits(named, folders)
    parents = [tree for name, tree in folders.items() if tree.below and name in named]
    if len(named) == len(folders) and "train" in named.values():
        if len(pure) == len(folders) and (len(folders) > 1 or parents):
            return named
        names = Counter(name for tree in parents for name in (_inside(tree) or tree).below)
        return named if len(parents) > 1 and max(names.values(), default=0) > 1 else {}
    if len(named) == len(pure) == len(folders) > 1 and parents:
        return named
    if len({named[name] for name in pure}) > 1 and any(folders[name].below for name in pure):
        return {name: named[name] for name in pure}
    return {}


def _train_beside_flat(folders: dict[str, Tree]) -> dict[str, Tree]:
    """A folder named as a training set with classes in it, if the others have no sub-folders and no such name."""
    train = {name: tree for name, tree in folders.items() if len(tree.below) > 1 and split_names([name])}
    others = [tree for name, tree in folders.items() if name not in train]
    return train if len(train) == 1 and others and not any(tree.below for tree in others) else {}


def _are_splits(names: Iterable[str]) -> bool:
    """Whether the names below classes are those of splits, train among them."""
    below = list(names)
    named = split_names(below)
    return len(named) == len(below) > 1 and "train" in named.values() and len(_pure_splits(named, below)) == len(named)


def _may_be_labels(tree: Tree, parents: dict[str, Tree], names: Counter[str]) -> bool:
    """Whether the second level may be the label as well: its names repeat, or are several in a folder and no ids."""
    direct = sum(child.images for child in tree.below.values())
    if len(parents) < 2 or len(names) < 2 or direct > _DIRECT * tree.total:
        return False
    folders, repeated = names.total(), [count for count in names.values() if count > 1]
    if len(repeated) > 1 and sum(repeated) >= _REPEATED * folders:
        return True
    return folders >= 2 * len(parents) and not _are_ids(names)


def _are_ids(names: Iterable[str]) -> bool:
    """Whether at least half of the names have digits, as those of patients, clips and days do."""
    with_digits = [any(character.isdigit() for character in name) for name in names]
    return sum(with_digits) * 2 >= len(with_digits)


def _merged(trees: Iterable[Tree]) -> Tree:
    merged = Tree()
    same: dict[str, list[Tree]] = {}
    for tree in trees:
        merged.images += tree.images
        for name, child in tree.below.items():
            same.setdefault(name, []).append(child)
    merged.below = {name: trees_of[0] if len(trees_of) == 1 else _merged(trees_of) for name, trees_of in same.items()}
    return merged


def _split_name(name: str) -> list[str]:
    text = _HUMPS.sub(" ", name).casefold()
    return _WORDS.findall(re.sub(r"(hold|held)[\W_]*out", "holdout", text))


def _split_word(name: str) -> str | None:
    """The word for a split in a name; None where there is none or words for two, except train_val, which is train."""
    splits = {_SPLIT_WORDS[word]: word for word in _split_name(name) if word in _SPLIT_WORDS}
    if splits.keys() == {"train", "val"}:
        return splits["train"]
    return next(iter(splits.values())) if len(splits) == 1 else None


def _pure_splits(names: Iterable[str], beside: Iterable[str]) -> set[str]:
    """Those of `names` that say nothing more than a split, such as train2017 or images_train.

    A word that all names `beside` have says nothing.
    """
    siblings = [set(_split_name(sibling)) for sibling in beside]
    shared = set.intersection(*siblings) if len(siblings) > 1 else set()
    said_of_splits = _SPLIT_WORDS.keys() | _FILLERS | shared
    return {
        name
        for name in names
        if all(word in said_of_splits or word.isdigit() for word in _split_name(name)) and _split_word(name) is not None
    }


def _without_parts(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word in parts if word not in _PART_WORDS)


def _is_part(name: str) -> bool:
    return _is_made_of(name, _PART_WORDS)


def _is_made_of(name: str, known: frozenset[str]) -> bool:
    parts = _split_name(name)
    return bool(parts) and ("".join(parts) in known or all(word in known for word in parts))


def _is_numbered(name: str, known: frozenset[str]) -> bool:
    """Whether a name is one of `known` with a number, such as patient_07 and clip3."""
    parts = _split_name(name)
    return any(word in known for word in parts) and any(word.isdigit() for word in parts)
