"""Datasets of folders: classes of images, and images with masks."""

import gc
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.errors import ConfigError, DataError


def write(folder, *names, size=(8, 8)):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 255).save(path)


def test_folders_of_splits_are_not_classes(tmp_path):
    write(tmp_path, "train/benign/a.png", "Test/benign/b.png")
    options = dict(type="ClassificationFolderDataset", data_path=str(tmp_path))
    message = "has the folders Test, train, which are splits and not classes: set split='Test', or name the folders"
    with pytest.raises(ConfigError, match=message):
        build_dataset(options)
    assert len(build_dataset(dict(options, labels=["train", "Test"]))) == 2


def test_folders_of_programs_are_no_classes_and_images_without_a_class_are_counted(tmp_path, caplog):
    write(tmp_path, "benign/a.png", "c.png", ".ipynb_checkpoints/a.png", "__MACOSX/benign/a.png", "benign/x/.b.png")
    data = build_dataset(dict(type="ClassificationFolderDataset", data_path=str(tmp_path)))
    assert data.summary()["images by class"] == {"benign": 1}
    assert data.describe(0) == str(tmp_path / "benign" / "a.png")
    (tmp_path / "malignant").mkdir()
    data = build_dataset(dict(type="ClassificationFolderDataset", data_path=str(tmp_path)))
    assert data.summary()["images by class"] == {"benign": 1, "malignant": 0}
    assert f"1 folders of classes have no image, for example {tmp_path / 'malignant'}" in caplog.text
    assert f"1 images are outside of the folders of classes, for example {tmp_path / 'c.png'}" in caplog.text


def test_the_reason_why_no_mask_can_be_read_is_named(tmp_path):
    write(tmp_path / "train", "a.png")
    (tmp_path / "train_mask").mkdir()
    Image.merge("RGB", [Image.linear_gradient("L"), *[Image.new("L", (256, 256))] * 2]).save(
        tmp_path / "train_mask" / "a.png"
    )
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "train"), labels={1: "liver"})
    with pytest.raises(DataError, match="mask .*a.png has colors: a mask needs one channel with the labels"):
        build_dataset(options)
    for name in ("data_path", "mask_folder"):
        with pytest.raises(DataError, match=f"{name} .*tran does not exist: did you mean 'train'"):
            build_dataset({**options, name: str(tmp_path / "tran")})


def test_masks_beside_their_images_are_not_images(tmp_path):
    write(tmp_path, "benign (1).png", "benign (1)_mask.png", "benign (2).png", "benign (2)_mask.png")
    path = str(tmp_path)
    options = dict(type="SegmentationDataset", data_path=path, mask_folder=path, labels="lesion", mask_suffix="_mask")
    assert [row["image"] for row in build_dataset(options).records] == ["benign (1).png", "benign (2).png"]


def test_several_masks_of_an_image_and_several_images_of_a_mask_are_errors_of_their_row(tmp_path):
    write(tmp_path / "train", "s1_CT_abdomen.png")
    write(tmp_path / "train_mask", "s1_CT_abdomen.png", "s1_CT_abdomen.bmp")
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "train"))
    message = "s1_CT_abdomen.png: it has several masks in .*train_mask: s1_CT_abdomen.bmp, s1_CT_abdomen.png"
    with pytest.raises(DataError, match=message):
        check_splits({"train": build_dataset(dict(options, labels="organ"))})
    shutil.rmtree(tmp_path / "train_mask")
    write(tmp_path / "train", "s1_CT_abdomen.bmp")
    write(tmp_path / "train_mask", "s1_CT_abdomen_liver.png")
    message = "abdomen_liver.png: it is the mask of several images in .*train: s1_CT_abdomen.bmp, s1_CT_abdomen.png"
    with pytest.raises(DataError, match=message):
        check_splits({"train": build_dataset(dict(options, naming="biomedparse"))})


@pytest.mark.parametrize("name", ["classes", "masks", "biomedparse"])
def test_rows_of_folders_take_some_tens_of_bytes(tmp_path, name):
    end = "_b" if name == "biomedparse" else ""
    for folder in ("train/a", "train_mask/a"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(2000):
        (tmp_path / f"train/a/{number:06}_CT_a.png").touch()
        (tmp_path / f"train_mask/a/{number:06}_CT_a{end}.png").touch()
    kinds = {
        "classes": dict(type="ClassificationFolderDataset", split="train", data_path=str(tmp_path)),
        "masks": dict(type="SegmentationDataset", data_path=str(tmp_path / "train"), labels="organ"),
        "biomedparse": dict(type="SegmentationDataset", data_path=str(tmp_path / "train"), naming="biomedparse"),
    }
    build_dataset(kinds[name])  # imports
    gc.collect()
    tracemalloc.start()
    data = build_dataset(kinds[name])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(data) == 2000
    assert kept < 40 * 2000


def write_palette(path, numbers, colors):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(numbers, np.uint8)).convert("P")
    image.putdata(np.array(numbers).ravel().tolist())
    image.putpalette([value for color in colors for value in color])
    image.save(path)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_a_palette_whose_background_is_not_number_0_is_refused(tmp_path, suffix):
    black, white, red = (0, 0, 0), (255, 255, 255), (255, 0, 0)
    write(tmp_path / "image", "a.png", size=(4, 2))
    numbers = [[0, 0, 1, 1], [0, 1, 1, 1]]
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "image"), mask_folder=str(tmp_path / "mask"))
    write_palette(tmp_path / "mask" / f"a{suffix}", numbers, [white, black])
    with pytest.raises(DataError, match="palette in which number 1 is black, and number 0, the background, is not"):
        build_dataset(dict(options, labels="lesion")).sample(0)
    (mark,) = build_dataset(dict(options, labels={0: "lesion"})).sample(0).marks
    assert mark.mask.tolist() == (np.array(numbers) == 0).tolist()
    for colors in ([black, red], [white, red]):
        write_palette(tmp_path / "mask" / f"a{suffix}", numbers, colors)
        (mark,) = build_dataset(dict(options, labels="lesion")).sample(0).marks
        assert mark.mask.tolist() == (np.array(numbers) == 1).tolist()


def test_a_mask_of_several_pages_is_refused(tmp_path):
    write(tmp_path / "image", "a.png")
    (tmp_path / "mask").mkdir()
    pages = [Image.new("L", (8, 8), value) for value in (255, 0)]
    pages[0].save(tmp_path / "mask" / "a.tif", save_all=True, append_images=pages[1:])
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "image"), mask_folder=str(tmp_path / "mask"))
    with pytest.raises(DataError, match="mask .*a.tif has several pages: write one file for each image"):
        build_dataset(dict(options, labels="lesion")).sample(0)


def test_a_mask_with_transparency_is_refused_and_one_with_values_between_is_reported(tmp_path, caplog):
    write(tmp_path / "image", "a.png", size=(8, 8))
    (tmp_path / "mask").mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:5] = 255
    options = dict(type="SegmentationDataset", data_path=str(tmp_path / "image"), mask_folder=str(tmp_path / "mask"))

    def pixels(picture):
        picture.save(tmp_path / "mask" / "a.png")
        return build_dataset(dict(options, labels="lesion")).sample(0).marks[0].mask.sum()

    white, gray = np.full_like(mask, 255), Image.fromarray(mask)
    for mode in ("RGBA", "LA"):
        plain = Image.fromarray(white).convert(mode)
        plain.putalpha(gray)
        with pytest.raises(DataError, match="mask .*a.png has transparency: write the labels of its pixels into one"):
            pixels(plain)
        opaque = gray.convert(mode)
        assert pixels(opaque) == pixels(gray) == 6
    assert pixels(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))) == 63  # numbers of instances
    assert "is a mask of 0 and 255" not in caplog.text
    assert pixels(Image.fromarray(np.where(mask > 0, mask, np.arange(64).reshape(8, 8) % 3).astype(np.uint8))) > 6
    assert "a.png is a mask of 0 and 255 with other values, as after compression or resizing" in caplog.text
