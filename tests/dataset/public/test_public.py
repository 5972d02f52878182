"""Public medical sets: miniatures in the published layout, official splits, and the refusals of damaged copies."""

import csv
import gc
import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.dataset.public import chexpert
from mllm.dataset.public.flare import DATASETS_BY_CATEGORY, task_of
from mllm.dataset.public.report_text import last_paragraph, sections
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS

QUESTIONS = "MedicalVQADataset VQARADDataset SLAKEDataset PathVQADataset"
PUBLIC = sorted(name for name, location in DATASETS.locations.items() if ".public." in location.module)


@pytest.fixture
def copy(tmp_path):
    """Return a function that writes the miniature of a class and returns its options and its folder."""

    def write(name, rows=6, folder="train"):
        options = {"type": name, **DATASETS.find(name).miniature(tmp_path / folder, rows)}
        return options, Path(options["data_path"])

    return write


def texts(options):
    data = build_dataset(options)
    return [data.sample(index).turns[-1].text for index in range(len(data))]


def edit_csv(path, change):
    """Apply a function to the rows of a CSV file, a list of lists with the header first."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_all_public_sets_are_covered():
    names = "ChestXray14Dataset ChestXray14BoxDataset CheXpertDataset MIMICCXRDataset MIMICCXRLabelDataset"
    assert sorted(f"{names} IUXrayDataset FLAREDataset {QUESTIONS}".split()) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_miniature_can_be_read_and_two_of_them_share_no_patient(copy, name):
    splits = {}
    for folder in ("train", "validation"):
        options, _ = copy(name, folder=folder)
        splits[folder] = build_dataset(options)
    for data in check_splits(splits).values():
        for index in range(len(data)):
            sample = data.sample(index)
            assert sample.images and sample.group and sample.turns[-1].role == "assistant"
            assert "<label" not in sample.turns[0].text and "<section>" not in sample.turns[0].text
            assert sample.turns[-2].text.count("<image>") == len(sample.images)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ChestXray14Dataset", "Data_Entry_2017.csv"),
        ("ChestXray14Dataset", "train_val_list.txt"),
        ("ChestXray14BoxDataset", "BBox_List_2017.csv"),
        ("CheXpertDataset", "train.csv"),
        ("MIMICCXRDataset", "mimic-cxr-2.0.0-split.csv"),
        ("MIMICCXRDataset", "mimic-cxr-2.0.0-metadata.csv"),
        ("MIMICCXRLabelDataset", "mimic-cxr-2.0.0-chexpert.csv"),
        ("IUXrayDataset", "annotation.json"),
        ("VQARADDataset", "VQA_RAD Dataset Public.json"),
        ("SLAKEDataset", "train.json"),
        ("PathVQADataset", "qas/train/train_qa.pkl"),
    ],
)
def test_an_absent_official_file_is_named(copy, name, file):
    options, root = copy(name)
    (root / file).unlink()
    with pytest.raises(DataError, match=f"has no .*{Path(file).name}.*official file with"):
        build_dataset({**options, **({"split": "train_val"} if "list" in file else {})})


@pytest.mark.parametrize("name", PUBLIC)
def test_a_wrong_split_is_refused(copy, name):
    options, _ = copy(name)
    with pytest.raises(ConfigError, match="split 'trian'"):
        build_dataset({**options, "split": "trian"})


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("ChestXray14Dataset", "Data_Entry_2017.csv", "Finding Labels"),
        ("CheXpertDataset", "train.csv", "Pleural Effusion"),
        ("MIMICCXRDataset", "mimic-cxr-2.0.0-split.csv", "study_id"),
        ("MIMICCXRLabelDataset", "mimic-cxr-2.0.0-chexpert.csv", "Edema"),
    ],
)
def test_an_absent_column_is_named(copy, name, file, column):
    options, root = copy(name)
    edit_csv(root / file, lambda rows: rows[0].__setitem__(rows[0].index(column), f"{column}s"))
    with pytest.raises(DataError, match=f"{file} has no column '{column}': did you mean '{column}s'"):
        build_dataset(options)


def test_compressed_tables_are_read(copy):
    import gzip

    options, root = copy("MIMICCXRLabelDataset")
    expected = texts(options)
    for path in root.glob("*.csv"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert texts(options) == expected


def test_labels_of_chestxray14_are_joined_by_bars_and_boxes_spell_infiltrate_otherwise(copy):
    options, root = copy("ChestXray14Dataset")
    assert texts(options) == ["No Finding", "Nodule", "Infiltration; Nodule"] * 2
    boxes = build_dataset({**options, "type": "ChestXray14BoxDataset", "labels": ["Infiltration"]})
    with (root / "BBox_List_2017.csv").open() as file:
        line = next(line for line in file if "Infiltrate" in line).split(",")
    x, y, width, height = map(float, line[2:6])
    assert boxes.sample(0).marks[0].box == (x, y, x + width, y + height)
    assert build_dataset(options).group(1) == str(int(boxes.group(0)) - 1)
    text = (root / "BBox_List_2017.csv").read_text()
    for header in ("x,y,w,h,,,", "Bbox [x,Bbox [y,Bbox [w,Bbox [h],,,"):
        (root / "BBox_List_2017.csv").write_text(text.replace("Bbox [x,y,w,h],,,", header))
        other = build_dataset({**options, "type": "ChestXray14BoxDataset", "labels": ["Infiltration"]})
        assert other.sample(0).marks[0].box == (x, y, x + width, y + height)


def test_a_label_outside_the_list_and_an_absent_image_are_errors_of_their_rows(copy):
    options, root = copy("ChestXray14Dataset")

    def change(rows):
        rows[2][1] = "Nodul"
        rows[3][0] = "00099999_000.png"

    edit_csv(root / "Data_Entry_2017.csv", change)
    data = build_dataset({**options, "split": None})
    with pytest.raises(DataError, match=r"Data_Entry_2017.csv, line 3: unknown label 'Nodul': did you mean 'Nodule'"):
        data.sample(1)
    with pytest.raises(DataError, match=r"line 4: image 00099999_000.png is in none of the folders"):
        data.sample(2)


def test_a_patient_in_two_official_splits_is_found(copy):
    options, root = copy("ChestXray14Dataset")
    names = (root / "train_val_list.txt").read_text().split()
    edit_csv(root / "Data_Entry_2017.csv", lambda rows: rows[2].__setitem__(3, rows[1][3]))
    (root / "train_val_list.txt").write_text(names[0])
    (root / "test_list.txt").write_text(names[1])
    splits = {
        name: build_dataset({**options, "split": split})
        for name, split in zip("ab", ("train_val", "test"), strict=True)
    }
    with pytest.raises(DataError, match="1 patient is in both a and b"):
        check_splits(splits)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "ChestXray14Dataset",
            "Data_Entry_2017.csv",
            r"line 4: column 'Image Index' has '.*', as .*line 2 has: keep one",
        ),
        ("CheXpertDataset", "train.csv", r"line 6: column 'Path' has '.*', as .*train.csv, line 2 has"),
        ("MIMICCXRDataset", "mimic-cxr-2.0.0-split.csv", r"column 'dicom_id' has '.*', as .*line 2 has.*line 6\)"),
        (
            "MIMICCXRLabelDataset",
            "mimic-cxr-2.0.0-chexpert.csv",
            r"line 4: column 'study_id' has '.*', as .*line 2 has",
        ),
    ],
)
def test_an_id_that_occurs_twice_is_an_error_of_its_row(copy, name, file, message):
    options, root = copy(name, rows=2)
    edit_csv(root / file, lambda rows: rows.append(rows[1]))
    data = {"train": build_dataset({**options, **({"split": None} if "Chest" in name else {})})}
    with pytest.raises(DataError, match=message):
        check_splits(data)
    assert len(check_splits(data, skip=True).skipped()) == 1


def test_images_without_a_row_are_counted(copy, caplog):
    options, root = copy("ChestXray14Dataset", rows=1)
    Image.new("L", (8, 8)).save(root / "images" / "00099999_000.png")
    build_dataset(options)
    assert "Data_Entry_2017.csv: 1 images have no row, for example" in caplog.text


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("VQARADDataset", "VQA_RAD Dataset Public.json", "image_name"),
        ("SLAKEDataset", "train.json", "img_name"),
        ("FLAREDataset", "training/Retinography/retino/retino_questions_train.json", "ImageName"),
    ],
)
def test_a_row_without_an_image_is_an_error_of_its_row(copy, name, file, column):
    options, root = copy(name, rows=38)
    entries = json.loads((root / file).read_text())
    del entries[1][column]
    (root / file).write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"\(row 2\): field '(image|ImageName)' (is empty|must be the name)"):
        build_dataset(options).sample(1)


@pytest.mark.parametrize("per", ["image", "label"])
def test_a_damaged_row_of_chexpert_is_an_error_of_this_row(copy, per):
    options, root = copy("CheXpertDataset", rows=6)

    def change(rows):
        rows[1][0] = "CheXpert-v1.0/train/first/1.jpg"
        rows[3][rows[0].index("Edema")] = "2"
        rows[5] = [*rows[5][:-1], "1.0"]  # the frontal image of a study, whose lateral image has another value

    edit_csv(root / "train.csv", change)
    uncertain = "ignore" if per == "label" else "zeros"
    data = build_dataset({**options, "views": "all", "level": "study", "per": per, "uncertain": uncertain})
    skipped = list(check_splits({"train": data}, skip=True).reports["train"].skipped)
    where = " (Edema)" if per == "label" else ""
    line, other = f"{root / 'train.csv'}, line ", "has other labels than this row of the same study"
    assert skipped[0].startswith(f"{line}2") and "'CheXpert-v1.0/train/first/1.jpg' is not a path like" in skipped[0]
    assert [row for row in skipped if row.startswith(f"{line}4") and row.endswith(f": {line}5 {other}")]
    assert [row for row in skipped if row.startswith(f"{line}6") and row.endswith(f": {line}7 {other}")]
    data = build_dataset({**options, "per": per, "uncertain": uncertain})
    skipped = list(check_splits({"train": data}, skip=True).reports["train"].skipped)
    assert f"{line}4{where}: label 'Edema' must be 1, 0, -1 (uncertain) or blank, not '2'" in skipped


@pytest.mark.parametrize(
    ("name", "split"),
    [("MIMICCXRDataset", "validate"), ("MIMICCXRLabelDataset", "test"), ("VQARADDataset", "test")],
)
def test_a_split_without_a_row_is_named(copy, name, split):
    options, _ = copy(name)
    with pytest.raises(DataError, match=f"has no row of split '{split}' that can be used"):
        build_dataset({**options, "split": split})


def test_the_splits_that_flare_has_are_named(copy):
    options, root = copy("FLAREDataset", rows=2)
    with pytest.raises(DataError, match="has no folder testing, only training: set split to one that it has"):
        build_dataset({**options, "split": "testing"})
    with pytest.raises(DataError, match="has no folder training: set it to organized_dataset"):
        build_dataset({**options, "data_path": str(root.parent)})


def test_a_column_that_the_first_row_lacks_is_an_error_of_this_row(copy):
    options, root = copy("FLAREDataset", rows=19)
    file = root / "training" / "Microscopy" / "neurips22cell" / "neurips22cell_questions_train.json"
    entry = json.loads(file.read_text())[0]
    file.write_text(json.dumps([{key: entry[key] for key in entry if key != "ImageName"}, entry]))
    report = check_splits({"train": build_dataset({**options, "sets": ["neurips22cell"]})}, skip=True).reports["train"]
    assert report.answers.rows == 1 and "(row 1): field 'ImageName' must be the name of an image" in str(report.skipped)


def test_blank_and_uncertain_labels_of_chexpert(copy):
    options, _ = copy("CheXpertDataset", rows=4)
    assert texts({**options, "uncertain": "zeros"})[1] == "Lung Lesion"
    assert texts({**options, "uncertain": "ones"})[1] == "Lung Lesion; Fracture"
    assert len(build_dataset({**options, "views": "all"})) == 8
    study = build_dataset({**options, "views": "all", "level": "study"})
    assert len(study) == 4 and len(study.sample(0).images) == 2
    ignored = build_dataset({**options, "uncertain": "ignore", "per": "label"})
    assert len(ignored) == 4 * 13 - 1  # the fracture of row 2; row 4 has no finding
    with pytest.raises(ConfigError, match="set level='study'"):
        build_dataset({**options, "split": "test"})


def test_the_labels_of_the_test_split_of_chexpert_are_those_of_studies(copy):
    options, root = copy("CheXpertDataset", rows=2)
    (root / "train").rename(root / "test")
    with (root / "train.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    first = [rows[1][0].replace("/train/", "/test/").rsplit("/", 1)[0], *rows[1][5:]]
    with (root / "test_labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Study", *rows[0][5:]], first])
    data = build_dataset({**options, "split": "test", "level": "study", "views": "all"})
    assert len(data) == 1 and len(data.sample(0).images) == 2 and data.group(0).startswith("patient")


def test_sections_of_mimic_cxr_reports():
    report = (
        " ADDENDUM:  see below\n ______________________________\n FINAL REPORT\n EXAMINATION:  CHEST\n\n"
        " FINDINGS: \n \n The lungs   are\n clear. ___ is seen.\n\n CONCLUSION:\n No change.\n"
        "\n NOTIFICATION: by phone\n"
    )
    assert sections(report) == {"findings": "The lungs are clear. ___ is seen.", "impression": "No change."}
    assert sections("no headings here: at all") == {}
    assert last_paragraph(" First part.\n \n  Second\n part. \n\n") == "Second part."


def test_studies_without_the_section_are_counted_and_lateral_views_are_left_out(copy):
    options, root = copy("MIMICCXRDataset", rows=3)
    report = next(root.glob("files/*/*/*.txt"))
    report.write_text(report.read_text().replace("FINDINGS", "TECHNIQUE"))
    data = build_dataset(options)
    assert len(data) == 2 and data.summary()["studies without findings"] == 1
    assert len(build_dataset({**options, "section": "impression"})) == 3
    assert texts({**options, "section": "both"})[0].startswith("Findings: The ")
    both = build_dataset({**options, "views": "all", "images": "all"})
    assert len(both.sample(0).images) == 2 and len(data.sample(0).images) == 1
    report.unlink()
    with pytest.raises(DataError, match=r"split.csv, line \d+: report .*\.txt does not exist"):
        check_splits({"train": build_dataset(options)})


def test_the_tables_of_iu_xray_have_no_splits(copy):
    options, root = copy("IUXrayDataset", rows=2)
    studies = json.loads((root / "annotation.json").read_text())["train"]
    (root / "annotation.json").unlink()
    (root / "images").rename(root / "images_normalized")
    (root / "images").mkdir()
    (root / "images_normalized").rename(root / "images" / "images_normalized")
    rows = [["uid", "MeSH", "findings", "impression"], [1, "", " Clear\nlungs. ", ""], [2, "", "", "Normal."]]
    views = ("Frontal", "Lateral")
    files = [
        (uid, name, view) for uid in (1, 2) for name, view in zip(studies[uid - 1]["image_path"], views, strict=True)
    ]
    for name, lines in (("reports", rows), ("projections", [["uid", "filename", "projection"], *files])):
        with (root / f"indiana_{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    del options["split"]
    assert texts(options) == ["Clear lungs."] and texts({**options, "section": "impression"}) == ["Normal."]
    assert len(build_dataset({**options, "views": "frontal"}).sample(0).images) == 1
    with pytest.raises(ConfigError, match="has no splits; use PatientSplit"):
        build_dataset({**options, "split": "train"})


def test_answer_types_and_languages_of_published_questions(copy):
    rad, root = copy("VQARADDataset")
    assert texts({**rad, "answer_type": "OPEN"}) == ["1", "0", "2"]  # the last field of a row may be a number
    entries = json.loads((root / "VQA_RAD Dataset Public.json").read_text())
    entries[1]["phrase_type"], entries[2]["image_name"] = "test_freeform", entries[1]["image_name"]
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))
    splits = {name: build_dataset({**rad, "split": name}) for name in ("train", "test")}
    assert [len(data) for data in splits.values()] == [5, 1]
    with pytest.raises(DataError, match="1 patient is in both train and test"):
        check_splits(splits)
    check_splits({name: build_dataset({**rad, "split": name, "by_image": False}) for name in splits})
    slake, root = copy("SLAKEDataset")
    entries = json.loads((root / "train.json").read_text())
    entries[0]["q_lang"] = "zh"
    (root / "train.json").write_text(json.dumps(entries))
    assert [len(build_dataset({**slake, "language": language})) for language in ("en", "zh", None)] == [5, 1, 6]
    path_vqa, _ = copy("PathVQADataset")
    assert texts({**path_vqa, "answer_type": "CLOSED"}) == ["no", "yes", "yes"]


def test_the_files_decide_which_published_questions_a_folder_has(tmp_path):
    cls = DATASETS.find("MedicalVQADataset")
    for layout, answers in (
        *(("vqa_rad", ["no", "1", "yes"]), ("slake", ["no", "1", "yes"])),
        *(("path_vqa", ["no", "1", "yes"]), ("pmc_vqa", ["A", "B", "B"])),
    ):
        options = cls.miniature_with({"layout": layout}, tmp_path / layout, 3)
        assert options.pop("layout") == layout
        assert texts({"type": "MedicalVQADataset", **options}) == answers
        other = "slake" if layout != "slake" else "vqa_rad"
        with pytest.raises(DataError, match="has no .*official file with the questions of split train"):
            build_dataset({"type": "MedicalVQADataset", **options, "layout": other})
        cls.miniature_with({"layout": layout}, tmp_path / "all", 1)
    with pytest.raises(ConfigError, match="tables of several sets: set layout to vqa_rad or slake or path_vqa or pmc"):
        build_dataset({"type": "MedicalVQADataset", "data_path": str(tmp_path / "all")})
    with pytest.raises(DataError, match="has no VQA_RAD Dataset Public.json or train.json or"):
        build_dataset({"type": "MedicalVQADataset", "data_path": str(tmp_path)})
    with pytest.raises(ConfigError, match="language is an option of layout='slake'"):
        build_dataset({"type": "MedicalVQADataset", "data_path": str(tmp_path / "pmc_vqa"), "language": "zh"})
    with pytest.raises(ConfigError, match="VQARADDataset has layout='vqa_rad', not 'slake'"):
        build_dataset({"type": "VQARADDataset", "data_path": str(tmp_path / "vqa_rad"), "layout": "slake"})


def test_pmc_vqa_has_choices_with_their_letters_in_both_versions(tmp_path):
    """The example row of https://huggingface.co/datasets/xmcmic/PMC-VQA, as in version 1 and 2, and damaged rows."""
    choices = ("Diffuse uptake pattern", "Focal uptake pattern", "No uptake pattern", "Cannot determine")
    lettered = [f"{letter}:{text}" for letter, text in zip("ABCD", choices, strict=True)]
    question, image = "What is the uptake pattern in the breast?", "PMC1064097_F1.jpg"
    letters = [f"Choice {letter}" for letter in "ABCD"]
    first = ["Figure_path", "Question", "Answer", *letters, "Answer_label"]
    second = ["index", "Figure_path", "Caption", "Question", *letters, "Answer", "split"]
    for name, rows in {
        "train.csv": [first, [image, question, choices[1], *lettered, "B"], [image, question, "", *lettered, "E"]],
        "train_2.csv": [second, [0, image, "PET.", question, *choices, "B", "train"]],
    }.items():
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30), (90, 9, 9)).save(tmp_path / "images" / image)
    options = {"type": "MedicalVQADataset", "data_path": str(tmp_path), "layout": "pmc_vqa"}
    for split in ("train", "train_2"):
        data = build_dataset({**options, "split": split})
        assert data.sample(0).turns[0].text == f"<image> {question}\n" + "\n".join(
            f"{letter}: {text}" for letter, text in zip("ABCD", choices, strict=True)
        )
        assert data.sample(0).turns[1].text == "B" and data.group(0) == image
        named = build_dataset({**options, "split": split, "choices": False, "answer_type": "OPEN"})
        assert [turn.text for turn in named.sample(0).turns] == [f"<image> {question}", choices[1]]
    with pytest.raises(DataError, match=r"train.csv, line 3: field 'Answer_label' must be A, B, C or D, not 'E'"):
        build_dataset(options).sample(1)


def test_two_answers_of_pmc_vqa_that_differ_are_refused(tmp_path):
    options = DATASETS.find("MedicalVQADataset").miniature_with({"layout": "pmc_vqa"}, tmp_path / "pmc", 3)
    table = tmp_path / "pmc" / "train.csv"

    def exchange(rows):
        answer, label = rows[0].index("Answer"), rows[0].index("Answer_label")
        choices = {letter: rows[1][rows[0].index(f"Choice {letter}")] for letter in "AB"}
        rows[1][answer], rows[1][label] = choices["A"].removeprefix("A:"), "B"

    edit_csv(table, exchange)
    with pytest.raises(DataError, match="line 2: fields 'Answer_label' and 'Answer' name different choices"):
        build_dataset({"type": "MedicalVQADataset", **options}).sample(0)


@pytest.mark.parametrize(
    ("text", "answer", "task"),
    [
        ("Classification", "A", "classification"),
        ("classification", "T", "classification"),
        ("disease_diagnosis_classification", "T", "classification"),
        ("Multi-label Classification", "A;B", "multi_label_classification"),
        ("multi_label_classification", "A;B", "multi_label_classification"),
        ("multi-label", "A;B", "multi_label_classification"),
        ("Detection", "[1, 2, 3, 4]", "detection"),
        ("detection", "[1, 2, 3, 4]", "detection"),
        ("Counting", "3", "counting"),
        ("regression", "1.5", "regression"),
        ("Report Generation", "Clear.", "report_generation"),
        ("Report_Generation", "Clear.", "report_generation"),
        ("instance_detection", "{}", "instance_detection"),
        ("Instance Detection", "{}", "instance_detection"),
        ("Cell Counting", "3", "counting"),
        ("Classification, Detection, Regression", "[1, 2, 3, 4]", "detection"),
        ("Classification, Detection, Regression", "12.5", "regression"),
        ("Classification, Detection, Regression", "B", "classification"),
        ("Classification / Detection", "[1, 2, 3, 4]", "detection"),
        ("MultiLabel Classification", "A", "multi_label_classification"),
        ("ReportGeneration", "Clear.", "report_generation"),
    ],
)
def test_spellings_of_flare_tasks(text, answer, task):
    assert task_of(text, answer) == task


def test_an_unusable_answer_of_flare_is_an_error_of_its_row(copy):
    options, root = copy("FLAREDataset", rows=19)
    file = root / "training" / "Microscopy" / "neurips22cell" / "neurips22cell_questions_train.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entries[0], "Answer": "\ud800"}]))
    data = build_dataset({**options, "sets": ["neurips22cell"]})
    with pytest.raises(DataError, match=r"neurips22cell_questions_train.json, line 1: field 'Answer' has half of a"):
        data.sample(0)


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        ("Counting", ("7", 7, "1,234", 5.0), ("about seven", "There are 5 cells.", -3, 4.5, [5], {"cells": 5}, "")),
        ("regression", ("1.5", "12 mm", -2), ("large", "[1, 2, 3, 4]", [1.5])),
        (
            "detection",
            ("[1,2,3,4]", [1, 2, 3, 4], [[1, 2, 3, 4], [5, 6, 7, 8]], "[]"),
            ("none of them", "[1, 2, 3]", [[]], "[[]]", "{}", {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, [{"bbox": [1, 2]}]),
        ),
        (
            "instance_detection",
            ({"1": [[1, 2, 3, 4]]}, '{"1": [[1, 2, 3, 4]], "X": []}', "{}"),
            ("A", {"1": "x"}, [[]], {"1": [[]]}, {"1": {"bbox": [1, 2, 3, 4]}}),
        ),
        ("classification", ("A", "benign", "There are 5 cells."), (["A"], "[]", {"answer": "A"}, [[]], "[[]]")),
        ("multi_label_classification", ("A;B", ["A", "B"]), ({"A": 1}, '["A", "B"]', ["A", None])),
        ("report_generation", ("No finding.",), (["No finding."], {"findings": "none"})),
    ],
)
def test_an_answer_of_flare_without_the_number_or_box_of_its_task_is_an_error_of_its_row(copy, task, good, bad):
    options, root = copy("FLAREDataset", rows=19)
    file = root / "training" / "Microscopy" / "neurips22cell" / "neurips22cell_questions_train.json"
    entry = json.loads(file.read_text())[0]
    answers = [*good, *bad]
    file.write_text(json.dumps([{**entry, "TaskType": task, "Answer": answer} for answer in answers]))
    data = build_dataset({**options, "sets": ["neurips22cell"]})
    skipped = list(check_splits({"train": data}, skip=True).reports["train"].skipped)
    assert len(skipped) == len(bad)
    kinds = {"Counting": "whole number from 0", "regression": "number", "detection": "box", "instance_detection": "box"}
    assert f"has no {kinds.get(task, 'text')}, but its TaskType is" in skipped[0]


def test_counts_and_lists_of_labels_of_flare_have_the_form_that_the_question_asks_for(copy):
    options, root = copy("FLAREDataset", rows=19)
    file = root / "training" / "Microscopy" / "neurips22cell" / "neurips22cell_questions_train.json"
    entry = json.loads(file.read_text())[0]
    answers = [("Counting", 5.0), ("Counting", "12.0"), ("multi-label", ["caries", "crown"])]
    file.write_text(json.dumps([{**entry, "TaskType": task, "Answer": answer} for task, answer in answers]))
    data = build_dataset({**options, "sets": ["neurips22cell"]})
    assert [data.sample(index).turns[-1].text for index in range(3)] == ["5", "12", "caries; crown"]


@pytest.mark.parametrize(
    ("folder", "file", "split", "is_refused"),
    [
        ("training", "train", "train", False),
        ("training", "train", "", False),
        ("training", "train", "val", True),
        ("validation-public", "val", "Val", False),
        ("validation-public", "val", "validation-hidden", True),
        ("validation-hidden", "val_withGT", "val", False),
        ("testing", "test", "test", False),
        ("testing", "test", "train", True),
    ],
)
def test_a_split_column_of_flare_that_names_another_folder_is_an_error_of_its_row(
    copy, folder, file, split, is_refused
):
    options, root = copy("FLAREDataset", rows=38)
    place = root / folder / "Retinography" / "retino"
    if folder != "training":
        place.parent.mkdir(parents=True)
        (root / "training" / "Retinography" / "retino").rename(place)
        (place / "retino_questions_train.json").rename(place / f"retino_questions_{file}.json")
    path = place / f"retino_questions_{file}.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, "Split": split if n else ""} for n, entry in enumerate(entries)]))
    data = build_dataset({**options, "split": folder, "sets": ["retino"]})
    skipped = check_splits({folder: data}, skip=True).skipped()
    assert len(skipped) == (len(entries) - 1 if is_refused else 0)
    for _, message in skipped:
        assert f"{path}, line" in message
        assert message.endswith(f"field 'Split' is '{split}', but the row is in the folder {folder}")


def test_unknown_flare_tasks_are_refused():
    with pytest.raises(DataError, match="unknown TaskType 'Clasification': did you mean 'classification'"):
        task_of("Clasification", "A")


def test_flare_reads_all_datasets_and_a_file_with_answers_instead_of_the_one_without(copy):
    options, root = copy("FLAREDataset", rows=19)
    data = build_dataset(options)
    assert len(data) == sum(map(len, DATASETS_BY_CATEGORY.values())) == 19
    assert len({file.read_bytes() for file in root.rglob("*.jpg")}) == 19, "mllm data would report equal images"
    assert data.sample(0).turns[0].role == "system" and sum(data.summary()["rows by task"].values()) == 19
    (root / "training").rename(root / "validation-hidden")
    for file in root.rglob("*_questions_train.json"):
        entries = [{**entry, "Split": "val"} for entry in json.loads(file.read_text())]
        file.with_name(file.name.replace("train", "val_withGT")).write_text(json.dumps(entries))
        without = [{**entry, "Answer": ""} for entry in entries]
        file.rename(file.with_name(file.name.replace("train", "val"))).write_text(json.dumps(without))
    hidden = {**options, "split": "validation-hidden"}
    assert len(build_dataset(hidden)) == 19
    assert texts({**hidden, "tasks": ["counting"]})[0].isdigit()
    assert len(build_dataset({**hidden, "sets": ["retino"]})) == 1
    with pytest.raises(ConfigError, match="unknown task 'count': did you mean 'counting'"):
        build_dataset({**hidden, "tasks": ["count"]})
    for file in root.rglob("*_withGT.json"):
        file.unlink()
    questions = build_dataset(hidden)
    assert not questions.has_references and {turn.role for turn in questions.sample(0).turns} == {"system", "user"}


@pytest.mark.parametrize("level", ["image", "study"])
def test_rows_of_chexpert_in_memory_take_some_tens_of_bytes(tmp_path, level):
    names = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABELS]
    with (tmp_path / "train.csv").open("w") as file:
        file.write(f"{','.join(names)}\n")
        for number in range(4000):
            path = f"CheXpert-v1.0/train/patient{number // 4:05}/study{number % 4 + 1}/view1_frontal.jpg"
            file.write(",".join([path, "Male", "58", "Frontal", "AP", *["1.0", "", "0.0"] * 4, "", "1.0"]) + "\n")
    options = dict(type="CheXpertDataset", data_path=str(tmp_path), level=level)
    build_dataset(options)  # imports
    gc.collect()
    tracemalloc.start()
    dataset = build_dataset(options)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset) == 4000 and kept < 100 * len(dataset)
