"""Inspection of all rows of a split, in worker processes if the split is large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from PIL.Image import Image

from mllm.dataset.base import SampleDataset
from mllm.dataset.contents import content_of
from mllm.dataset.image_files import UndecodedImage
from mllm.dataset.repeated_rows import identity_of
from mllm.errors import DataError, UserError
from mllm.private_messages import in_row, sentence_of, worker_setup
from mllm.structures import Mark, Sample

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

MANY_ROWS = 20_000
"""Number of rows from which workers are used: starting them takes as long as inspecting a few thousand rows."""
COMPARED = 4096
"""Maximum number of evenly spaced rows of a split whose content includes parts of their files."""
_CHUNK = 256
"""Number of rows that a worker inspects before it sends them."""
_Place: TypeAlias = tuple[int, int, int]
"""Number of the source dataset of a row, index in it, and number of the row in its split."""


class InspectedRow(NamedTuple):
    """Result of the inspection of a row."""

    sample: Sample
    """The sample. That of a worker has no files: its images have a size only, or are left out if it has no marks."""
    content: bytes
    """Content of the row; see `content_of`."""
    identity: int | None
    """Hash of the row; see `identity_of`."""


class SplitRows:
    """All rows of a split.

    Args:
        name: Name of the split.
        dataset: Dataset of the split.
    """

    def __init__(self, name: str, dataset: SampleDataset) -> None:
        self.name, self._dataset = name, dataset
        self.count = 0
        """Number of rows. The length of a `MixedDataset` is that of the draws of an epoch."""
        self._sources: list[SampleDataset] = []
        self._numbers: dict[int, int] = {}
        """Object id of each source -> its number."""
        for self.count, (source, _) in enumerate(dataset.rows(), start=1):  # noqa: B007
            if id(source) not in self._numbers:
                self._numbers[id(source)] = len(self._sources)
                self._sources.append(source)

    def __getitem__(self, places: Sequence[_Place]) -> list[InspectedRow | str]:
        """Return the results of some rows without their files; the data loader calls it in a worker."""
        results = [self._inspect(self._sources[source], index, number) for source, index, number in places]
        return [row if isinstance(row, str) else row._replace(sample=_without_files(row.sample)) for row in results]

    def inspected(self, workers: int = 0) -> Iterator[tuple[SampleDataset, int, InspectedRow | str]]:
        """Yield the source of each row, its index in it, and its result, or the sentence of its error.

        Args:
            workers: Number of worker processes for a split of `MANY_ROWS`; 0: this process inspects the rows.

        Raises:
            DataError: A worker process ended unexpectedly.
        """
        if workers == 0 or self.count < MANY_ROWS:
            for number, (source, index) in enumerate(self._dataset.rows()):
                yield source, index, self._inspect(source, index, number)
            return
        try:
            for places, results in zip(self._chunks(), self._loader(workers), strict=True):
                for (number, index, _), result in zip(places, results, strict=True):
                    yield self._sources[number], index, result
        except RuntimeError as error:
            raise DataError.without_values(
                f"a process that checked the rows of {self.name} ended unexpectedly, perhaps for lack of memory: set "
                "training_args.dataloader_num_workers=0, which needs none"
            ) from error

    def _inspect(self, source: SampleDataset, index: int, number: int) -> InspectedRow | str:
        with in_row(self.name, number):
            try:
                sample = source.inspect(index)
                reads_files = number % -(-self.count // COMPARED) == 0
                return InspectedRow(sample, content_of(sample, reads_files), identity_of(sample))
            except UserError as error:
                return sentence_of(error)  # here, because an error loses its traceback when it leaves a worker

    def _chunks(self) -> Iterator[list[_Place]]:
        rows = enumerate(self._dataset.rows())
        places = ((self._numbers[id(source)], index, number) for number, (source, index) in rows)
        while chunk := list(islice(places, _CHUNK)):
            yield chunk

    def _loader(self, workers: int) -> DataLoader[list[InspectedRow | str]]:
        import torch  # commands that check few rows start without it
        from torch.utils.data import DataLoader

        return DataLoader(
            self,  # type: ignore[arg-type]  # the loader only needs `__getitem__`
            batch_size=None,
            sampler=self._chunks(),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=worker_setup(),
            generator=torch.Generator().manual_seed(0),  # the default one is that of dropout
        )


def _without_files(sample: Sample) -> Sample:
    """Return a sample without its files and the contents of its masks, which takes a third of the time to send."""
    if not sample.marks:
        return replace(sample, images=[], files=[], source="")
    images: list[Image] = [UndecodedImage(b"", {}, 0, image.size) for image in sample.images]
    marks = [_without_content(mark) for mark in sample.marks]
    return replace(sample, images=images, marks=marks, files=[], source="")


def _without_content(mark: Mark) -> Mark:
    return mark if mark.undecoded is None else replace(mark, undecoded=replace(mark.undecoded, content=b""))


def _unchanged(results: list[InspectedRow | str]) -> list[InspectedRow | str]:
    return results
