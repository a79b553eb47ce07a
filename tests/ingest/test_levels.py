"""Which level of folders is which, from the names of folders that hold images."""

from collections import Counter
from itertools import product

import pytest

from twinrun.ingest.levels import possible_readings, split_names


def _folders(*patterns: str) -> Counter[tuple[str, ...]]:
    """Ten images in each folder of patterns such as "{train,test}/{cat,dog}"."""
    return Counter(
        {
            names: 10
            for pattern in patterns
            for names in product(*(part.strip("{}").split(",") for part in pattern.split("/")))
        }
    )


@pytest.mark.parametrize(
    ("patterns", "readings"),
    [
        (["{cat,dog}"], ["label"]),
        (["{patient_1,patient_2}/{clip_1,clip_2}/{cat,dog}"], ["group/skip/label", "label/group"]),
        (
            ["{site_1,site_2}/{patient_1,patient_2}/{cat,dog}"],
            ["group/skip/label", "skip/group/label", "label/group"],
        ),
        (["{person_1,person_2}/{session_1,session_2}"], ["label/group"]),
        (["{person_1,person_2}/{session_1,session_2}/images"], ["label/group"]),
        (["{person_1,person_2}/{session_1,session_2}/frames"], ["label/group"]),
        (["{person_1,person_2}/{camera_1,camera_2}", "person_1/camera_1/bad"], ["label/group"]),
        (["{train,test}/{person_1,person_2}/{session_1,session_2}/frames"], ["split/label/group"]),
        (["{train2017,val2017}/{cat,dog}"], ["split/label"]),
        (["{TrainSet,TestSet}/{cat,dog}"], ["split/label"]),
        (["{asl_alphabet_train,asl_alphabet_test}/{A,B}"], ["split/label"]),
        (["{train,test}/images/{cat,dog}"], ["split/skip/label"]),
        (["seg_train/seg_train/{a,b}", "seg_test/seg_test/{a,b}", "seg_pred/seg_pred"], ["split/skip/label"]),
        (["train/{cat,dog}"], ["split/label"]),
        (["train/{cat,dog}", "test"], ["split/label"]),
        (["train/{cat,dog}", "scraped"], ["split/label", "label"]),
        (["{train,test}"], ["split"]),
        (["{bus,car,train}"], ["label"]),
        (["{train_station,test_tube}"], ["label"]),
        (["{valid,invalid}"], ["label"]),
        (["PetImages/{Cat,Dog}"], ["skip/label"]),
        (["{cat,dog}/{train,val,test}"], ["label/split"]),
        (["{cat,dog}/{images,masks}"], ["label"]),
        (["{images,masks}/{cat,dog}"], ["skip/label"]),
        (["images/{train,val}"], ["skip/split"]),
        (["benign/{patient_1,patient_2}", "malignant/patient_3"], ["label/group"]),
        (["{patient_1,patient_2}/{benign,malignant}"], ["group/label"]),
        (["benign/{P001,P002,P003}", "malignant/{P004,P005}"], ["label"]),
        (["{batch_1,batch_2}/{cat,dog}"], ["group/label", "skip/label"]),
        (["{camera1,camera2}/{cat,dog}"], ["group/label", "skip/label"]),
        (["{fold_0,fold_1,fold_2}/{cat,dog}"], ["skip/label", "group/label"]),
        (["{fold_0,fold_1}/{train,test}/{cat,dog}"], ["skip/split/label", "group/split/label"]),
        (["{site_a,site_b}/{train,test}/{cat,dog}"], ["skip/split/label", "group/split/label", "label/split"]),
        (
            ["cat/{train,test}/{tabby,siam}", "dog/{train,test}/{pug,husky}"],
            ["label/split", "skip/split/label", "group/split/label"],
        ),
        (["{cat,dog}/{train,test}/{images,masks}"], ["label/split"]),
        (["{cat,dog}/{train,test}/{clip_1,clip_2}"], ["label/split/group"]),
        (["{train,validate}/{cat,dog}"], ["split/label"]),
        (["{training_data,validating}/{cat,dog}"], ["split/label"]),
        (["train/train/{a,b}", "val/{a,b}"], ["split/skip/label", "split/label"]),
        (["{lot1,lot2}/{pass,fail}"], ["label", "group/label"]),
        (["animals/{cat,dog}", "vehicles/{bus,car}"], ["label", "skip/label"]),
        (["{cat,dog}", "cat/old"], ["label"]),
    ],
)
def test_the_reading_follows_what_repeats_and_words_decide_only_where_all_folders_have_them(
    patterns: list[str], readings: list[str]
) -> None:
    assert ["/".join(reading.levels) for reading in possible_readings(_folders(*patterns))] == readings


def test_a_word_for_a_split_is_found_in_a_name_and_eval_is_val_beside_a_test_set() -> None:
    names = ["seg_train", "hold-out", "dev", "evaluation", "train_val", "trainTest", "contrast", "Valid"]

    assert split_names(names) == {
        "seg_train": "train", "hold-out": "test", "dev": "val", "evaluation": "val", "train_val": "train",
        "Valid": "val",
    }  # fmt: skip
    assert split_names(["train", "eval"]) == {"train": "train", "eval": "test"}
