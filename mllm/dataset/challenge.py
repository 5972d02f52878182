"""Files of answers that challenges take: their interface, and their writer for the rows of a split."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from mllm.dataset.base import SampleDataset
from mllm.files import json_text, replaced_file
from mllm.private_messages import is_private
from mllm.structures import Answer

logger = logging.getLogger(__name__)


class ChallengeDataset(SampleDataset):
    """Base class of datasets of a challenge that takes one JSON file with a list of answers.

    A subclass defines the name of the file and the entry of a row, which can have any form.
    """

    challenge_file: ClassVar[str]
    """Name of the file of answers."""

    @abstractmethod
    def challenge_entry(self, index: int, answer: Answer | None) -> Any:
        """Return the entry of a row in the file of answers, of plain types.

        Args:
            index: Index of the row.
            answer: Predicted answer. None: the row could not be used, and has an empty answer.
        """


def challenge_entries(split: SampleDataset, answers: Iterable[tuple[int, Answer]]) -> Iterator[tuple[str, Any]]:
    """Yield the name of the file of answers and the entry of each row of a split, in the order of the rows.

    Rows of other datasets, which can be combined with those of a challenge, have no entry.

    Args:
        split: A split whose rows are fixed.
        answers: Index of a row of the split and its predicted answer, in the order of the rows.
    """
    following = iter(answers)
    answered, answer = next(following, (None, None))
    for index, (source, row) in enumerate(split.rows()):
        own = answer if answered == index else None
        if isinstance(source, ChallengeDataset):
            yield source.challenge_file, source.challenge_entry(row, own)
        if answered == index:
            answered, answer = next(following, (None, None))
    assert answered is None, "the answers are in the order of the rows"


def write_challenge_files(split: SampleDataset, answers: Iterable[tuple[int, Answer]], folder: Path) -> list[Path]:
    """Write the files of answers for the challenges whose rows a split has, and return their paths.

    Each file is complete or absent. None is written in a private run, because the entries are rows of the data, and
    for a random mixture, which has some rows twice and some not at all.

    Args:
        split: The split.
        answers: Index of a row of the split and its predicted answer, in the order of the rows.
        folder: The output folder.
    """
    sources = {id(source): source for source, _ in split.rows()}.values()
    names = {source.challenge_file for source in sources if isinstance(source, ChallengeDataset)}
    if not names:
        return []
    if is_private() or not split.fixed:
        reason = "the run is private" if is_private() else "the rows of the split are drawn at random"
        logger.warning("%s is not written: %s", ", ".join(sorted(names)), reason)
        return []
    paths = [folder / name for name in sorted(names)]
    with ExitStack() as opened:
        files = {path.name: opened.enter_context(replaced_file(path)) for path in paths}
        starts = dict.fromkeys(files, "[\n  ")
        for name, entry in challenge_entries(split, answers):
            files[name].write(starts[name] + json_text(entry).rstrip("\n").replace("\n", "\n  "))
            starts[name] = ",\n  "
        for file in files.values():
            file.write("\n]\n")
    for path in paths:
        logger.info("answers in the format of the challenge are in %s", path)
    return paths
