"""Rows in the published formats become exact samples; invalid rows raise an error with their location."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mllm.dataset import templates
from mllm.dataset.builder import build_dataset
from mllm.errors import ConfigError, DataError
from mllm.structures import Mark, Turn

POLYGON = [2.0, 2.0, 12.0, 2.0, 12.0, 9.0, 2.0, 9.0]
MASK = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([POLYGON], 20, 40)))
QUESTION = {"template_string": "<question>"}


@pytest.fixture
def read(tmp_path):
    for name in ("a.png", "7.jpg", "COCO_train2014_a.png"):
        Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / name)

    def sample(type_, row, **options):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        return build_dataset(dict(type=type_, data_path=str(tmp_path / "rows.jsonl"), **options)).sample(0)

    return sample


def texts(sample):
    return [(turn.text, turn.marks) for turn in sample.turns]


def test_rec_reg_and_gc(read):
    row = {"img_path": "a.png", "expression": "the {left} dot", "bbox": [1, 2, 11, 12]}
    sample = read("RECDataset", row, template_string="Where is <expr>?")
    assert texts(sample) == [("<image> Where is the {left} dot?", ()), ("Answer: <box> .", ((0,),))]
    assert sample.marks == [Mark(box=(1, 2, 11, 12))]
    for name in ("REGDataset", "GCDataset"):
        sample = read(name, row, template_string="What is <box>?")
        assert texts(sample) == [("<image> What is <box>?", ((0,),)), ("the {left} dot", ())]


def test_an_expression_may_have_several_objects_or_none(read):
    two, template = [[1, 2, 11, 12], [20, 2, 30, 12]], {"template_string": "Where is <expr>?"}
    row = {"img_path": "a.png", "expression": "a dot", "bbox": two}
    sample = read("RECDataset", row, **template)
    assert texts(sample)[1] == ("Answer: <box> .", ((0, 1),)) and [mark.box for mark in sample.marks] == [
        tuple(box) for box in two
    ]
    assert texts(read("REGDataset", row, template_string="What is <box>?"))[0][1] == ((0, 1),)
    segmented = {**row, "bbox": [[2, 2, 10, 7], [2, 2, 10, 7]], "segmentation": [[POLYGON], POLYGON]}
    sample = read("RESDataset", segmented)
    assert texts(sample)[1] == ("Answer: <box> .", ((0, 1),))
    assert all(np.array_equal(mark.mask, MASK.astype(bool)) for mark in sample.marks) and len(sample.marks) == 2
    for name, absent in (("RECDataset", {"bbox": []}), ("RESDataset", {"bbox": [], "segmentation": []})):
        sample = read(name, {**row, **absent})
        assert texts(sample)[1] == ("Answer: none .", ()) and not sample.marks
    with pytest.raises(DataError, match="line 1: field 'bbox' has no box, which the question names"):
        read("REGDataset", {**row, "bbox": []})
    with pytest.raises(DataError, match="'segmentation' must be a list of 2 masks, one for each box"):
        read("RESDataset", {**segmented, "segmentation": [[POLYGON]]})


@pytest.mark.parametrize(
    "segmentation",
    [
        [POLYGON],
        POLYGON,
        coco_mask.frPyObjects([POLYGON], 20, 40)[0]
        | {"counts": coco_mask.frPyObjects([POLYGON], 20, 40)[0]["counts"].decode()},
        {
            "size": [20, 40],
            "counts": [
                int(run) for run in np.diff(np.flatnonzero(np.diff(np.r_[1 - MASK.T.ravel()[0], MASK.T.ravel(), 2])))
            ],
        },
    ],
    ids=["polygons", "polygon", "compressed", "plain"],
)
def test_res_reads_polygons_and_run_lengths(read, segmentation):
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        runs, value, counts = MASK.T.ravel(), 0, []
        while len(runs):
            length = int(np.argmax(runs != value)) if (runs != value).any() else len(runs)
            counts.append(length)
            runs, value = runs[length:], 1 - value
        segmentation = {"size": [20, 40], "counts": counts}
    row = {"img_path": "a.png", "expression": "it", "bbox": [2, 2, 10, 7], "segmentation": segmentation}
    mark = read("RESDataset", row).marks[0]
    assert mark.box == (2, 2, 12, 9) and np.array_equal(mark.mask, MASK.astype(bool))


def test_flickr_and_gpt4gen_insert_boxes_after_phrases(read):
    row = {
        "image_id": 7,
        "sentence": "<ph_st>A man<ph_ed> with <ph_st>dogs<ph_ed>.",
        "boxes": [[0, 0, 5, 5], [1, 1, 9, 9]],
    }
    sample = read("FlickrDataset", row | {"boxes_seq": [[0], [0, 1]]})
    assert texts(sample)[1] == ("A man <box> with dogs <box>.", ((0,), (0, 1)))
    row = {
        "img_path": "a.png",
        "boxes": [[0, 0, 5, 5]],
        "question": "Is <ph_st>he<ph_ed> old?",
        "question_boxes_seq": [[0]],
        "answer": "yes",
        "cot_with_ans": "<ph_st>He<ph_ed> is gray. Yes.",
        "answer_boxes_seq": [[0]],
    }
    sample = read("GPT4Gen", row, version="bc")
    assert "Is he <box> old?" in texts(sample)[0][0] and texts(sample)[0][1] == ((0,),)
    assert texts(sample)[1] == ("He <box> is gray. Yes.", ((0,),))
    assert texts(read("GPT4Gen", row, version="c"))[1] == ("He is gray. Yes.", ())
    assert texts(read("GPT4Gen", row, version="a"))[1] == ("The answer is yes.", ())


def test_questions_with_short_answers(read):
    row = {"image_path": "a.png", "question": "Why?", "annotation": {"multiple_choice_answer": "so"}}
    assert texts(read("VQAv2Dataset", row, **QUESTION)) == [("<image> Why?", ()), ("The answer is so.", ())]
    row = {"file_path": "a.png", "question": "Why?", "explanation": ["it is."], "multiple_answers": ["a", "b", "b"]}
    assert texts(read("VQAEXDataset", row, **QUESTION))[1] == ("it is. The answer is b.", ())
    row = {"image": "a.png", "text": "Is it?", "label": "No"}
    assert texts(read("POPEVQADataset", row, **QUESTION)) == [("<image> Is it?", ()), ("The answer is no.", ())]
    messages = [("human", "a\n<image>"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    row = {"image": "a.png", "conversations": [{"from": sender, "value": value} for sender, value in messages]}
    sample = read("InstructDataset", row, add_coco_prefix=True)
    assert sample.turns == [
        Turn("user", "<image> a"),
        Turn("assistant", "b"),
        Turn("user", "c"),
        Turn("assistant", "d"),
    ]


def test_pointing(read):
    row = {"file_path": "a.png", "question": "What is", "answer": "dog", "bbox": [0, 0, 8, 8], "point": [4, 4]}
    sample = read("Point_QA_local", row, version="p", **QUESTION)
    assert texts(sample) == [("<image> What is <point>", ((0,),)), ("The answer is dog.", ())]
    assert sample.marks == [Mark(point=(4, 4))]
    more = {"obj_question": "Dogs?", "super_question": "Animals like", "general_question": "Things like"}
    assert texts(read("Point_QA_twice", row | more, version="oq-b", **QUESTION))[0] == ("<image> Dogs?", ())
    assert texts(read("Point_QA_twice", row | more, version="sq-b", **QUESTION))[0] == (
        "<image> Animals like <box>",
        ((0,),),
    )
    row = {
        "file_path": "a.png",
        "question": "Which?",
        "candidates": [[0, 0, 5, 5], [5, 5, 9, 9]],
        "answer": [5, 5, 9, 9],
    }
    sample = read("V7W_POINT", row, version="b", **QUESTION)
    assert texts(sample) == [("<image> Which? Candidates: <box> <box>", ((0,), (1,))), ("Answer: <box> .", ((1,),))]


def test_vcr(read):
    row = {
        "img_fn": "a.png",
        "boxes": [[0, 0, 5, 5, 0.9], [5, 5, 9, 9, 0.8]],
        "question": ["Why", "is", [1], "'s", "hat", "red", "?"],
        "answer_choices": [["No", "."], [[0, 1], "agree", "."]],
        "answer_label": 1,
        "rationale_choices": [["Fun", "."]],
        "rationale_label": 0,
    }
    sample = read("VCRDataset", row, **QUESTION)
    assert texts(sample) == [("<image> Why is <box>'s hat red?", ((1,),)), ("<box> agree. Fun.", ((0, 1),))]
    sample = read("VCRPredDataset", row, **QUESTION)
    assert texts(sample)[0] == ("<image> Why is <box>'s hat red? A: No. B: <box> agree.", ((1,), (0, 1)))
    assert texts(sample)[1] == ("The answer is B.", ())


def test_gqa_inserts_boxes_of_the_scene(read, tmp_path):
    objects = {"11": {"x": 1, "y": 2, "w": 3, "h": 4}, "12": {"x": 5, "y": 5, "w": 10, "h": 10}}
    (tmp_path / "scenes.json").write_text(json.dumps({"7": {"objects": objects}}))
    row = {
        "imageId": 7,
        "question": "Is the man near the dog?",
        "answer": "yes",
        "fullAnswer": "Yes, the man is.",
        "semanticStr": "select: man (11)->relate: dog,near (12)",
        "annotations": {"question": {"2": "11", "5": "12"}, "fullAnswer": {"2": "11"}},
        "cot": {"value": "<ph_st>He<ph_ed> is near.", "boxes": [[1, 2, 4, 6]], "seq": [[0]]},
    }
    options = {"scene_graph_file": str(tmp_path / "scenes.json")}
    sample = read("GQADataset", row, version="qb-bl", **options)
    assert "Is the man <box> near the dog <box>?" in texts(sample)[0][0] and texts(sample)[0][1] == ((0,), (1,))
    assert texts(sample)[1] == ("Yes, the man <box> is.", ((2,),))
    assert sample.marks[1].box == (5, 5, 15, 15)
    assert texts(read("GQADataset", row, version="q-bc", **options))[1] == (
        "He <box> is near. The answer is yes.",
        ((0,),),
    )
    answer = texts(read("GQADataset", row, version="q-bs", **options))[1]
    assert answer == ("select: man <box>->relate: dog,near <box>. The answer is yes.", ((0,), (1,)))
    assert texts(read("GQADataset", row, version="q-s"))[1][0].startswith("select: man ->relate: dog,near")
    with pytest.raises(ConfigError, match="add scene_graph_file"):
        read("GQADataset", row, version="qb-a")
    with pytest.raises(ConfigError, match="has no version 'q-x'"):
        read("GQADataset", row, version="q-x")


def test_clevr_executes_its_program_on_the_scene(read, tmp_path):
    shapes = [("red", "cube", 5), ("red", "sphere", 15), ("blue", "cube", 25)]
    objects = [{"color": color, "shape": shape, "pixel_coords": [x, 10, 9.1]} for color, shape, x in shapes]
    scene = {"image_index": 3, "objects": objects, "relationships": {"right": [[1, 2], [2], []]}}
    (tmp_path / "scenes.json").write_text(json.dumps({"scenes": [scene]}))
    steps = [
        ("scene", [], []),
        ("filter_color", [0], ["red"]),
        ("filter_shape", [1], ["cube"]),
        ("unique", [2], []),
        ("relate", [3], ["right"]),
        ("count", [4], []),
    ]
    program = [dict(function=name, inputs=inputs, value_inputs=values) for name, inputs, values in steps]
    row = {"image_filename": "a.png", "image_index": 3, "question": "How many?", "answer": 2, "program": program}
    sample = read("ClevrDataset", row, version="q-bs", scene_graph_file=str(tmp_path / "scenes.json"))
    text, places = texts(sample)[1]
    assert text.endswith("unique <point>, relate right <point>, count. The answer is 2.")
    points = [[sample.marks[index].point[0] for index in group] for group in places]
    assert points == [[5, 15, 25], [5, 15], [5], [5], [15, 25]]
    assert texts(read("ClevrDataset", row, version="q-s"))[1][0].startswith("scene, filter color red, ")


REC = {"img_path": "a.png", "expression": "it", "bbox": [1, 2, 11, 12]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (REC | {"bbox": [11, 2, 1, 12]}, r"line 1: field 'bbox' \[11.0, 2.0, 1.0, 12.0\] has reversed corners"),
        (REC | {"bbox": [1, 2, 11, float("nan")]}, r"line 1: field 'bbox' .* has a number that is not finite"),
        (REC | {"bbox": [1, 2, 51, 12]}, "exceeds its image of 40 x 20 pixels"),
        *((REC | {"bbox": box}, "must contain four numbers") for box in ([1, 2, 3], "1234", [True, 2, 11, 12])),
        (REC | {"bbox": [1, 2, 11, 10**400]}, "must contain four numbers"),
        (REC | {"expression": "a <box>"}, "field 'expression' contains the placeholder <box>"),
        ({"img_path": "a.png", "expression": "it"}, "line 1: field 'bbox' is missing"),
    ],
)
def test_invalid_rows_are_refused(read, row, message):
    with pytest.raises(DataError, match=message):
        read("RECDataset", row)


@pytest.mark.parametrize("changed", [{"boxes": []}, {"answer_boxes_seq": [[1]]}])
def test_a_phrase_with_a_box_that_the_row_does_not_have_is_refused(read, changed):
    row = {"img_path": "a.png", "cot_with_ans": "A <ph_st>lesion<ph_ed>.", "boxes": [[1, 2, 11, 12]]}
    row |= {"question": "Where?", "answer_boxes_seq": [[0]]}
    with pytest.raises(DataError, match="line 1: the text refers to a box or point that the row does not have: number"):
        read("GPT4Gen", row | changed)


@pytest.mark.parametrize("group", [[-1], [0.5], [True], [float("nan")], ["0"], {}, 0])
def test_other_values_than_indices_of_boxes_are_refused(read, group):
    row = {"image_id": "7", "sentence": "A <ph_st>lesion<ph_ed>.", "boxes": [[1, 2, 11, 12]], "boxes_seq": [group]}
    with pytest.raises(DataError, match="line 1: the boxes of field 'sentence' must be lists of indices from 0"):
        read("FlickrDataset", row)


def test_a_place_without_a_box_is_refused(read):
    row = {"image_id": "7", "sentence": "A <ph_st>lesion<ph_ed>.", "boxes": [[1, 2, 11, 12]], "boxes_seq": [[]]}
    with pytest.raises(DataError, match="line 1: a place in the text has no box or point"):
        read("FlickrDataset", row)


@pytest.mark.parametrize("words", [[float("nan")], ["What", None], [{}], [" "], []])
def test_missing_words_are_no_text(read, words):
    row = {"img_fn": "a.png", "boxes": [[1, 2, 11, 12]], "question": words, "answer_choices": [["Yes"]]}
    with pytest.raises(DataError, match="line 1: field 'question' is empty"):
        read("VCRDataset", row | {"answer_label": 0})


def test_a_box_that_is_too_large_due_to_rounding_is_clipped(read):
    assert read("RECDataset", REC | {"bbox": [-0.4, 2, 40.6, 12]}).marks[0].box == (0, 2, 40, 12)


def test_templates_can_be_read_from_a_file(read, tmp_path):
    (tmp_path / "t.json").write_text('["See <boxes>?"]')
    assert texts(read("REGDataset", REC, template_file=str(tmp_path / "t.json")))[0] == ("<image> See <box>?", ((0,),))
    with pytest.raises(ConfigError, match="exclude each other"):
        read("REGDataset", REC, template_file=str(tmp_path / "t.json"), template_string="a")
    with pytest.raises(ConfigError, match="cannot be read"):
        read("REGDataset", REC, template_file=str(tmp_path / "none.json"))


def test_templates_fit_singulars_and_plurals():
    """A class of a detection dataset may be `white blood cells`: no verb may depend on its number."""
    written = [template for name in dir(templates) if name.isupper() for template in getattr(templates, name)]
    verb = r"(is|are|has|have|was|were)"
    name = r"<(expr|label|obj)>"
    assert len(written) > 100
    assert not [text for text in written if re.search(rf"{name} {verb}\b|\b(is|are|was|were) {name}", text)]


@pytest.mark.parametrize(
    ("name", "template", "message"),
    [
        ("RECDataset", "Where is <exrp>?", "unknown placeholder 'exrp': did you mean 'expr'"),
        ("RECDataset", "Where is it?", "has no <expr>, without which the question is incomplete"),
        ("RECDataset", "In <image>, where is <expr>?", "has <image>: remove it"),
        ("REGDataset", "What is <objs>?", "unknown placeholder 'objs'; known are box"),
        ("VQAEXDataset", "Explain.", "has no <question>"),
        ("DetectionDataset", "Where is <lable>?", "unknown placeholder 'lable': did you mean 'label'"),
        ("MultiLabelDataset", "Is <labl> visible?", "unknown placeholder 'labl': did you mean 'label'"),
    ],
)
def test_a_wrong_placeholder_of_a_template_is_refused(name, template, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "finding": 1}\n')
    (tmp_path / "templates.json").write_text(json.dumps([template]))
    options = dict(type=name, data_path=str(tmp_path / "rows.jsonl"))
    options |= {"labels": ["finding"]} if name == "MultiLabelDataset" else {}
    for choice in (dict(template_string=template), dict(template_file=str(tmp_path / "templates.json"))):
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_dataset({**options, **choice})
