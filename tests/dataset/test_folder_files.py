import os
import random

import pytest

from mllm.dataset.folder_files import NamedFiles, files_below
from mllm.errors import DataError


def test_files_are_in_the_order_of_pathlib(tmp_path):
    names = [
        f"{folder}{name}" for folder in ("", "a/", "a-b/", "a.b/c/", "b/") for name in ("a.png", "-.png", "\u00e4")
    ]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert list(files_below(tmp_path)) == expected
    for name in (".DS_Store", "a/._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(files_below(tmp_path)) == expected


def test_links_to_folders_are_followed_and_a_circle_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "absent.png")
    assert list(files_below(tmp_path / "data")) == ["broken.png", "link/a.png"]
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match=r"folder .*data/link/up is a link to a folder above it: remove the link"):
        list(files_below(tmp_path / "data"))
    with pytest.raises(DataError, match="folder .*absent/ cannot be read: No such file or directory"):
        list(files_below(tmp_path / "absent"))


def test_files_are_found_by_their_stems_as_in_a_dict():
    names = [f"{number % 7}/{number}{suffix}" for number in range(200) for suffix in (".png", ".tif")[: 1 + number % 2]]
    files, by_stem = NamedFiles(names, lambda name: os.path.splitext(name)[0]), dict[str, list[str]]()
    for name in names:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    for stem in list(by_stem)[::3]:
        assert files.find(stem) == by_stem.pop(stem)
    assert files.find("8/8") == []
    assert [files.names[number] for number in files.not_found()] == [name for own in by_stem.values() for name in own]
