"""Tests of both releases of CAMUS, compared with the phantoms in their files."""

import logging
import math
import shutil

import nibabel
import numpy as np
import pytest
from echo_files import write_camus

from mllm.config.schema import DataArgs
from mllm.dataset import builder
from mllm.dataset.builder import build_dataset, build_datasets, use_miniatures
from mllm.dataset.checking import check_splits
from mllm.errors import ConfigError, DataError

SPLITS = {"training": 4, "validation": 1, "testing": 2}
RELEASES = ("nifti", "mhd")


def open_dataset(folder, split="training", **options):
    return build_dataset(dict(type="CamusDataset", data_path=str(folder), split=split, **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in RELEASES}
    return {name: (folder, write_camus(folder, SPLITS, seed=2, release=name)) for name, folder in folders.items()}


@pytest.fixture
def copies(whole, tmp_path):
    return {name: (shutil.copytree(folder, tmp_path / name), patients) for name, (folder, patients) in whole.items()}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("split", ["training", "Testing"])
def test_a_split_is_its_patients_with_their_values(whole, release, split):
    folder, patients = whole[release]
    expected = [patient for patient in patients if patient.split == split.lower()]
    dataset = open_dataset(folder, split)
    assert [dataset.group(index) for index in range(len(dataset))] == [patient.name for patient in expected]
    for index, patient in enumerate(expected):
        sample = dataset.sample(index)
        assert sample.views == ["ED", "ES"]
        assert [image.size for image in sample.images] == [(160, 160)] * 2
        heart = patient.heart
        assert sample.measures["EDV"] == pytest.approx(heart.edv, rel=0.03)
        assert sample.measures["ESV"] == pytest.approx(heart.esv, rel=0.03)
        assert sample.measures["EF"] == pytest.approx(heart.ef, abs=0.5)
        assert sample.source.endswith(f"{split.lower()}.txt, line {index + 1}")
    assert len(open_dataset(folder, None)) == sum(SPLITS.values())


def test_both_releases_show_the_same_heart(whole):
    """The older release has pixels twice as wide as high, which are resampled to squares."""
    first_sample, second_sample = (open_dataset(whole[release][0]).sample(0) for release in RELEASES)
    for first, second in zip(first_sample.images, second_sample.images, strict=True):
        first, second = (np.asarray(image, float)[..., 0] for image in (first, second))
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("release", RELEASES)
def test_chamber_views_by_name(whole, release):
    folder, _ = whole[release]
    both = open_dataset(folder, chambers="both").sample(1)
    four, two = (open_dataset(folder, chambers=chambers).sample(1) for chambers in ("4CH", "2CH"))
    assert both.views == ["4CH ED", "4CH ES", "2CH ED", "2CH ES"]
    assert both.turns[0].text.count("<image>") == 4
    assert two.views == ["ED", "ES"]
    separate = [image.tobytes() for image in (*four.images, *two.images)]
    assert [image.tobytes() for image in both.images] == separate
    assert len(set(separate)) == 4
    with pytest.raises(ConfigError, match="chambers='3CH' must be 4CH, 2CH or both"):
        open_dataset(folder, chambers="3CH")


@pytest.mark.parametrize("release", RELEASES)
def test_frames_of_the_series_are_counted_from_1_in_any_order(copies, release):
    folder, patients = copies[release]
    expected = [[image.tobytes() for image in open_dataset(folder).sample(index).images] for index in range(4)]
    for path in folder.glob("*/patient*/*_E[DS].*"):
        path.unlink()
    dataset = open_dataset(folder)
    assert [[image.tobytes() for image in dataset.sample(index).images] for index in range(4)] == expected
    assert {patient.ed < patient.es for patient in patients[:4]} == {True, False}
    info = next(folder.glob(f"*/{patients[0].name}/Info_4CH.cfg"))
    info.write_text(info.read_text().replace("ED: 1\n", "ED: 0\n"))
    with pytest.raises(DataError, match=r"line 1: .*Info_4CH.cfg: ED must be the number of a frame, from 1"):
        open_dataset(folder).sample(0)


def test_volumes_of_the_masks_are_reported_and_compared_with_ef_of_the_files(whole, caplog):
    with caplog.at_level(logging.INFO):
        summary = open_dataset(whole["nifti"][0]).summary()
    assert summary["volumes"]["from the masks"] == 4
    assert summary["volumes"]["method"].startswith("biplane method of discs (modified Simpson), 20 discs")
    assert "volumes by biplane Simpson from the masks" in caplog.text
    assert summary["EF against the masks, points"]["largest"] < 1.5
    assert summary["patients of each split"] == SPLITS
    older = open_dataset(whole["mhd"][0]).summary()
    assert older["volumes"]["from the files"] == 4
    assert math.isnan(older["EF against the masks, points"]["mean"])


def test_volumes_of_unusable_masks_are_unknown_and_reported(copies):
    folder, patients = copies["nifti"]
    first, second, third = (folder / "database_nifti" / patient.name for patient in patients[:3])
    (first / f"{first.name}_2CH_ES_gt.nii.gz").unlink()
    (first / f"{first.name}_2CH_half_sequence_gt.nii.gz").unlink()
    path = second / f"{second.name}_4CH_ED_gt.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    info = third / "Info_4CH.cfg"
    info.write_text("".join(line for line in info.open() if not line.startswith("EF")))
    dataset = open_dataset(folder)
    assert [math.isnan(dataset.measures(index)["EDV"]) for index in range(4)] == [True, True, False, False]
    assert dataset.measures(0)["EF"] == round(patients[0].heart.ef)
    assert dataset.measures(2)["EF"] == pytest.approx(patients[2].heart.ef, abs=1), "of the masks"
    one, two = dataset.summary()["volumes"]["masks that give none"]
    assert "2CH_ES_gt.nii.gz does not exist" in one
    assert two == f"{second.name}: the mask has no left ventricle (label 1)"
    (first / "Info_4CH.cfg").write_text("ED: 1\nES: 9\n")
    dataset = open_dataset(folder)
    assert len(dataset) == 3
    assert dataset.summary()["dropped"] == {"without a known measure": 1}


def test_missing_directories_and_files_are_refused(copies, tmp_path):
    folder, patients = copies["nifti"]
    with pytest.raises(DataError, match="is not a folder of CAMUS: it must contain database_nifti"):
        open_dataset(tmp_path)
    with pytest.raises(ConfigError, match="unknown split 'train': did you mean 'training'"):
        open_dataset(folder, "train")
    with pytest.raises(DataError, match=r"subGroup7_training.txt does not exist; it lists the patients of training"):
        open_dataset(copies["mhd"][0], fold=7)
    home = folder / "database_nifti" / patients[1].name
    (home / "Info_4CH.cfg").write_text("ED 1\n")
    with pytest.raises(DataError, match=r"subgroup_training.txt, line 2: .*Info_4CH.cfg, line 1: must be 'Key: value'"):
        check_splits({"train": open_dataset(folder)})
    data = open_dataset(folder)
    assert len(check_splits({"train": data}, skip=True).skipped()) == 1
    assert data.summary()["used"] == len(data) - 1
    (home / "Info_4CH.cfg").write_text("EF: good\n")
    with pytest.raises(DataError, match=r"line 2: patient0002: field 'EF' must be a number, not 'good'"):
        open_dataset(folder).sample(1)
    shutil.rmtree(home)
    with pytest.raises(DataError, match=r"line 2: patient0002: .*patient0002 does not exist"):
        open_dataset(folder).sample(1)


def test_size_and_augmentation(whole):
    folder, _ = whole["mhd"]
    dataset = open_dataset(folder, size=2, seed=1, transforms=[dict(type="RandomFlip", probability=1.0)])
    assert len(dataset) == 2
    assert dataset.summary()["dropped"] == {"beyond size=2": 2}
    plain = open_dataset(folder, size=2, seed=1)
    assert dataset.group(0) == plain.group(0)
    assert np.array_equal(np.asarray(dataset.sample(0).images[1])[:, ::-1], np.asarray(plain.sample(0).images[1]))


def test_a_miniature_replaces_absent_data(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "MINIATURE_ROWS", 2)

    def split(name):
        return dict(type="CamusDataset", data_path=str(tmp_path / "gone"), split=name, chambers="both", fold=4)

    data_args = DataArgs(train=split("training"), validation=split("validation"), test=split("testing"))
    datasets = build_datasets(use_miniatures(data_args, tmp_path / "mini"))
    assert [len(dataset) for dataset in datasets.values()] == [2, 2, 2]
    assert len(datasets["test"].sample(1).images) == 4
