"""EchoNet-Dynamic: end-diastolic and end-systolic frames with EF (%), EDV and ESV (mL), in its official splits."""

data_args = dict(
    train=dict(type="EchoNetDataset", data_path="data/EchoNet-Dynamic", split="TRAIN", size=100),
    validation=dict(type="EchoNetDataset", data_path="data/EchoNet-Dynamic", split="VAL", size=100),
    test=dict(type="EchoNetDataset", data_path="data/EchoNet-Dynamic", split="TEST"),
    compute_metric="measures",
    on_error="raise",
)
