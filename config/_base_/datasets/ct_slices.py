"""CT volumes and their reports in your own files, with slices of a volume as the images of a row.

An image in a row is, for example, {"path": "ct_01.nii.gz", "slice": [20, 30, 40, 50], "window": "lung"}. The path of a
DICOM series is the folder of its files, or their list: {"path": "patient_7/series_2", "slice": [20, 30]}.
"""

data_args = dict(
    train=dict(
        type="PatientSplit",
        dataset=dict(type="VQADataset", data_path="data/ct/reports.jsonl", image_folder="data/ct/volumes"),
        split="train",
        fractions=(0.9, 0.1, 0.0),
    ),
    validation=dict(
        type="PatientSplit",
        dataset=dict(type="VQADataset", data_path="data/ct/reports.jsonl", image_folder="data/ct/volumes"),
        split="validation",
        fractions=(0.9, 0.1, 0.0),
    ),
    test=None,
    gen_kwargs=dict(max_new_tokens=256),
    on_error="raise",
    tokens_per_micro_batch=None,
)
