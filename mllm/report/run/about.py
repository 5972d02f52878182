"""Sections about a run: what was trained, data, privacy, environment, config and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.report.html_page import shortened
from mllm.report.run.blocks import (
    Block,
    Cell,
    Code,
    Details,
    Example,
    Examples,
    Items,
    Pairs,
    Section,
    Table,
    Text,
    flat,
    key_table,
    number,
    plain,
)
from mllm.report.run.inputs import RunFiles
from mllm.report.run.pictures import Pictures, draw_example, read_sample
from mllm.run_files import CONFIG, DATA_SUMMARY, ENVIRONMENT, FACTS, SKIPPED_ROWS, WARNINGS
from mllm.structures import BOX, IMAGE, POINT

EXAMPLES = 6
"""Maximum number of training samples."""
MAX_EXAMPLE_TEXT = 300
MAX_LISTED = 50
"""Maximum number of skipped rows on the page."""
_PRIVACY = (
    *("epsilon_spent", "target_epsilon", "delta", "unit", "units", "neighbors", "steps", "noise_multiplier"),
    *("clip_norm", "accountant"),
)
"""Keys of the privacy record that are shown, with all digits: a rounded epsilon would be too small."""
_UNSET = ("none", "no", "")
"""Texts of values that a table of settings leaves out."""


def trained(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section about the model: parameters by tower, and settings; for an evaluation the evaluated model."""
    blocks: list[Block] = []
    if run.is_evaluation:
        model = _dict(run.metrics.get("server")) or _dict(run.metrics.get("model"))
        values = {key: text for key, text in flat(model) if text not in _UNSET}
        digests = _dict(run.metrics.get("adapter_sha256"))
        blocks.append(key_table({**values, **{f"SHA-256 of {name}": digest for name, digest in digests.items()}}))
        return Section("model", "Evaluated model", blocks)
    if run.facts is None:
        return Section("model", "Trained model", [Text(run.problems[FACTS])])
    facts = run.facts
    if facts.parameters:
        blocks.append(_tower_table(facts.parameters))
    else:
        blocks.append(Text("facts.json has no numbers of parameters: it is of an older version.", is_muted=True))
    settings = {"base": facts.base, **facts.settings, **facts.training}
    blocks.append(Details("Settings", [key_table({k: t for k, t in flat(settings) if t not in _UNSET})]))
    return Section("model", "Trained model", blocks)


def _tower_table(parameters: Mapping[str, Mapping[str, int]]) -> Table:
    total = {key: sum(count[key] for count in parameters.values()) for key in ("tensors", "trainable", "all")}
    rows = [
        [
            Cell(tower),
            number(count["tensors"]),
            number(count["trainable"]),
            number(count["all"]),
            number(100 * count["trainable"] / max(1, count["all"]), 3),
        ]
        for tower, count in {**parameters, "all towers": total}.items()
    ]
    return Table(("tower", "trained tensors", "trained parameters", "all parameters", "%"), rows)


def data(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section about the splits: counts, modalities, sources, measures and examples."""
    if run.is_evaluation:
        settings = _dict(run.metrics.get("settings"))
        rows = [("split", run.split), ("config", plain(settings.get("config")))]
        rows += [(f"data.{key}", text) for key, text in flat(_dict(settings.get("data")))]
        rows += [(key, plain(value)) for key, value in _dict(run.metrics.get("counts")).items()]
        blocks: list[Block] = [Pairs(rows)]
        if settings.get("tiny"):
            blocks.append(
                Text("--tiny: absent data were replaced by generated miniatures, which the figures describe.")
            )
        return Section("data", "Data", blocks)
    types = {} if run.facts is None else {name: split.type for name, split in run.facts.data.items()}
    blocks = []
    if run.data:
        blocks.append(_split_table(run.data, types))
        blocks += _details_of_splits(run.data)
    else:
        blocks.append(Text(run.problems.get(DATA_SUMMARY, "data_summary.json is empty.")))
        if run.facts is not None:
            samples = {name: f"{split.samples:,} samples ({split.type})" for name, split in run.facts.data.items()}
            blocks.append(Pairs(list(samples.items())))
    if run.is_private:
        blocks.append(Text("The run is private: no sample of its data is shown."))
    elif examples := _training_examples(pictures):
        blocks.append(examples)
    return Section("data", "Data", blocks)


def _split_table(splits: Mapping[str, Mapping[str, Any]], types: Mapping[str, str]) -> Table:
    keys = ("samples", "patients", "samples without a patient", "skipped")
    rows = [
        [Cell(name), *(number(counts.get(key)) for key in keys), Cell(types.get(name, ""))]
        for name, counts in splits.items()
    ]
    return Table(("split", *keys, "dataset"), rows)


def _details_of_splits(splits: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Return modalities, statistics of measures, and counts of the sources of the splits."""
    blocks: list[Block] = []
    modalities = {name: _dict(counts.get("modalities")) for name, counts in splits.items()}
    if any(modalities.values()):
        names = list(dict.fromkeys(modality for own in modalities.values() for modality in own))
        rows = [[Cell(name), *(number(own.get(name, 0)) for own in modalities.values())] for name in names]
        blocks.append(Table(("modality", *modalities), rows, "Samples of each modality"))
    measures = [
        [Cell(f"{measure}, {name}"), *(number(figures.get(key), 1) for key in ("known", "mean", "std", "min", "max"))]
        for name, counts in splits.items()
        for measure, figures in _dict(counts.get("measures")).items()
    ]
    if measures:
        columns = ("measure, split", "known", "mean", "standard deviation", "smallest", "largest")
        blocks.append(Table(columns, measures, "Measures"))
    sources = [
        (name, ", ".join(f"{key}: {text}" for key, text in flat(source)))
        for name, counts in splits.items()
        for source in counts.get("sources") or []
        if isinstance(source, Mapping)
    ]
    return [*blocks, *([Details("Sources and dropped rows", [Pairs(sources)])] if sources else [])]


def _training_examples(pictures: Pictures) -> Examples | None:
    """Return evenly spaced samples of the training split with their pictures; None if it cannot be read."""
    split = pictures.splits.get("train")
    if split is None:
        return None
    count = min(EXAMPLES, len(split))
    examples = []
    for index in (position * len(split) // count for position in range(count)):
        if (sample := read_sample(split, index)) is not None:
            texts = [
                shortened(turn.text.replace(IMAGE, "").replace(BOX, "").replace(POINT, "").strip(), MAX_EXAMPLE_TEXT)
                for turn in sample.turns[-2:]
            ]
            images = [draw_example(sample)] if sample.images else []
            examples.append(Example(images, [text for text in texts if text]))
    return Examples("Samples of the training split", examples) if examples else None


def privacy(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section about differential privacy; None for a run without it."""
    if not run.is_private:
        return None
    shown = Text(
        "The report of a private run has no sample: no question, answer, image, class or chart of single samples. The "
        "values of data_args are left out."
    )
    record = None if run.facts is None else run.facts.privacy
    if record is None:
        return Section("privacy", "Privacy", [Text("privacy.json beside the adapter states the guarantee."), shown])
    rows = [(name.replace("_", " "), _unrounded(record[name])) for name in _PRIVACY if record.get(name) is not None]
    blocks: list[Block] = [Text(str(record.get("guarantee", ""))), Pairs(rows), shown]
    if record.get("warnings"):
        blocks.append(Items([str(text) for text in record["warnings"]]))
    outside = [str(text) for text in record.get("outside_the_guarantee", ())]
    blocks.append(Details("Not covered by the guarantee", [Items(outside)]))
    return Section("privacy", "Privacy", blocks)


def _unrounded(value: Any) -> str:
    return str(value) if isinstance(value, float) else plain(value)


def warnings(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section about warnings of the run, skipped rows and files that are absent or damaged."""
    blocks: list[Block] = []
    if run.warnings:
        blocks.append(Items(run.warnings))
    skipped = run.skipped or [(run.split, str(text)) for text in run.metrics.get("skipped") or []]
    if skipped:
        texts = [f"{split}: {message}" for split, message in skipped[:MAX_LISTED]]
        more = [f"{len(skipped) - MAX_LISTED:,} more, see {SKIPPED_ROWS}"] if len(skipped) > MAX_LISTED else []
        blocks += [Text(f"Rows that could not be used: {len(skipped):,}"), Items(texts + more)]
    if run.facts is not None and run.facts.idle_steps:
        blocks.append(Text(f"{run.facts.idle_steps:,} steps had no supervised item and made no update."))
    if damaged := [text for name, text in run.problems.items() if (run.folder / name).exists()]:
        blocks.append(Items(damaged))
    if not blocks:
        is_known = run.is_evaluation or WARNINGS not in run.problems
        blocks.append(Text("None." if is_known else f"{WARNINGS} is absent, so warnings of the run are unknown."))
    return Section("warnings", "Warnings", blocks)


def environment(run: RunFiles, pictures: Pictures) -> Section:
    """Return the section about hardware, packages and the command."""
    values = run.environment
    if not values:
        return Section("environment", "Environment", [Text(run.problems.get(ENVIRONMENT, f"{ENVIRONMENT} is empty."))])
    hardware, git = _dict(values.get("hardware")), _dict(values.get("git"))
    command = values.get("command") if not run.is_private else None
    rows = [
        ("device", plain(hardware.get("name"))),
        ("cores, memory", f"{plain(hardware.get('cores'))}, {int(hardware.get('host_memory') or 0) / 1e9:.1f} GB"),
        ("precision", plain(hardware.get("precision"))),
        ("platform", plain(values.get("platform"))),
        ("Python", plain(values.get("python"))),
        ("commit of mllm", plain(git.get("commit")) + (" with uncommitted changes" if git.get("dirty") else "")),
        ("command", " ".join(map(str, command)) if isinstance(command, list) else ""),
    ]
    packages = key_table(_dict(values.get("packages")), ("package", "version"))
    return Section(
        "environment", "Environment", [Pairs([row for row in rows if row[1]]), Details("Packages", [packages])]
    )


def config(run: RunFiles, pictures: Pictures) -> Section | None:
    """Return the section with the resolved config; for a private run without the values of the data."""
    if run.is_evaluation and not run.config:
        return None
    if not run.config:
        return Section("config", "Config", [Text(run.problems.get(CONFIG, f"{CONFIG} is empty."))])
    if run.is_private:
        return Section("config", "Config", [Text(f"{CONFIG} of a private run names its data, so it is not shown.")])
    return Section("config", "Config", [Details(f"The resolved config ({CONFIG})", [Code(run.config)])])


def _dict(value: Any) -> dict[str, Any]:
    """Return a value of a JSON file that should be an object; an empty one otherwise."""
    return value if isinstance(value, dict) else {}
