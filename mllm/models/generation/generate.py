"""Generation of answers in text: greedy or sampled, in batches."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, RepetitionPenaltyLogitsProcessor, StoppingCriteria

from mllm.models.backbone.model_errors import explained_model_errors
from mllm.models.encoding.image_features import backbone_inputs
from mllm.models.encoding.text_encoder import TextEncoder
from mllm.models.generation.checkpoint_settings import without_checkpoint_settings
from mllm.models.generation.left_padding import needs_equal_lengths
from mllm.models.generation.object_decoding import ObjectDecoder
from mllm.models.generation.sampling import Sampling
from mllm.models.generation.shared_prompts import SharedPrompts, shared_inputs, shares_tokens
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle, Model
from mllm.shared_rows import leaders_of, rows_of
from mllm.structures import Answer, Encoded, Mark, Sample


@contextmanager
def evaluating(model: nn.Module | Model) -> Iterator[None]:
    """Set evaluation mode inside the block. Restore the mode of every module, also of frozen ones, at its end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


WINDOW = 8
"""Number of batches that are encoded at a time: enough to sort by length, few enough to hold their pixels in memory."""


def generate(
    bundle: Bundle,
    samples: Iterable[Sample],
    *,
    numbers: Sequence[int] | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Answer]:
    """Return the answer to each conversation, in order. A last assistant turn is not part of the prompt.

    Args:
        bundle: Model and encoder.
        samples: Conversations. They may be lazy: a few batches are in memory at a time.
        numbers: Number of each sample, from which its random numbers are derived; may grow while `samples` is read.
            None: their positions.
        progress: Show a progress bar.
        options: Options of `Generation.of`.
    """
    run = Generation.of(bundle, **options)
    remaining = iter(samples)
    total = len(samples) if isinstance(samples, Sized) else None
    answers: list[Answer] = []
    with tqdm(total=total, desc="answers", disable=None if progress else True) as bar:  # None: off without a terminal
        while window := [bundle.encoder.prompt(sample) for sample in islice(remaining, run.window)]:
            positions = range(len(answers), len(answers) + len(window))
            seeds = positions if numbers is None else [numbers[i] for i in positions]
            answered: dict[int, Answer] = {}
            for batch in run.batches(window, seeds):
                answered |= batch
                bar.update(len(batch))
            answers += [answered[i] for i in range(len(window))]
    return answers


def _options(bundle: Bundle, max_new_tokens: int) -> GenerationConfig:
    """Return the options of transformers. The most probable token is chosen, after our own sampling if there is one."""
    encoder, stops = text_encoder_of(bundle), stop_ids(bundle)
    pad = encoder.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops) if pad is None else pad,
        decoder_start_token_id=encoder.decoder_start_id,
        forced_bos_token_id=encoder.forced_start_id,
        use_cache=True,
    )


@dataclass(frozen=True)
class Control:
    """Options of the generation of one batch."""

    options: GenerationConfig
    processors: list[LogitsProcessor]
    """Changes of the logits [B, vocabulary] before each token, in order."""
    criteria: list[StoppingCriteria] = field(default_factory=list)
    """Ends of answers besides the end of the turn."""


@dataclass(frozen=True)
class Generation:
    """Generation of the answers to windows of prompts. A window is divided into batches of similar length."""

    bundle: Bundle
    options: GenerationConfig
    batch_size: int
    sampling: Sampling | None
    """None: greedy decoding."""
    repetition_penalty: float
    shares_images: bool
    """The tokens of an image are computed once for its questions in a window."""

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        max_new_tokens: int = 128,
        batch_size: int = 4,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        share_images: bool = True,
    ) -> Generation:
        """Return the generation with these options.

        Generation stops at the end of the turn. Batches hold samples of similar length, padded on the left. `top_k=0`
        means all tokens. A sampled answer depends on `seed` and the number of its sample, not on the batch or the
        global random state. `repetition_penalty` divides positive and multiplies negative logits of tokens that are
        already in the answer (arXiv:1909.05858); tokens of the prompt and ends of turns are not penalized.
        `share_images` has an effect if model and encoder of the bundle share tokens.
        """
        sampling = Sampling(temperature, top_p, top_k, seed) if do_sample else None
        shares = share_images and shares_tokens(bundle)
        return cls(bundle, _options(bundle, max_new_tokens), batch_size, sampling, float(repetition_penalty), shares)

    @property
    def window(self) -> int:
        """Return the number of prompts of a window."""
        return WINDOW * self.batch_size

    def batches(
        self, prompts: Sequence[Encoded], numbers: Sequence[int], answered: Container[int] = ()
    ) -> Iterator[dict[int, Answer]]:
        """Yield the answers to the prompts of a window, batch by batch: index of the prompt -> answer.

        Args:
            prompts: The prompts.
            numbers: Number of each prompt, from which its random numbers are derived.
            answered: Numbers of prompts that need no answer. A batch of these is left out. The other batches are those
                of the whole window, so that their answers do not depend on `answered` by rounding.
        """
        rows = self._rows(prompts)
        in_rows = {index for row in rows for index in row}
        apart = self._needs_equal_lengths(prompts)
        kinds = [(prompt.images_per_row, prompt.has_features, len(prompt) * apart) for prompt in prompts]
        order = sorted(set(range(len(prompts))) - in_rows, key=lambda i: (kinds[i], len(prompts[i])))
        for indices in [list(group) for _, group in groupby(order, key=lambda i: kinds[i])]:
            for part in self._parts(indices, numbers, answered):
                with self._computing():
                    answers = self._answers([prompts[i] for i in part], [numbers[i] for i in part])
                yield dict(zip(part, answers, strict=True))
        yield from self._shared_batches(rows, prompts, numbers, answered)

    def _needs_equal_lengths(self, prompts: Sequence[Encoded]) -> bool:
        """Return True if only prompts of equal length can be in a batch."""
        if self.batch_size == 1:
            return False
        with self._computing():
            return needs_equal_lengths(self.bundle.model.pretrained, text_encoder_of(self.bundle), prompts)

    def _rows(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        """Return rows of prompts that share tokens with another one.

        A row has at most the tokens of a batch and one prompt more, so that questions share images if each is answered
        alone, too.
        """
        if not self.shares_images:
            return []
        leaders, _ = leaders_of(prompts)
        leading = {leader for index, leader in enumerate(leaders) if leader != index}
        sharing = [index for index, leader in enumerate(leaders) if leader != index or index in leading]
        room = (self.batch_size + 1) * max((len(prompts[index]) for index in sharing), default=0)
        rows = rows_of([prompts[index] for index in sharing], room)
        return [sorted((sharing[place] for place in row), key=lambda i: len(prompts[i])) for row in rows]

    def _shared_batches(
        self,
        rows: Sequence[Sequence[int]],
        prompts: Sequence[Encoded],
        numbers: Sequence[int],
        answered: Container[int],
    ) -> Iterator[dict[int, Answer]]:
        """Yield the answers to the prompts of rows, whose common first tokens are computed once.

        A batch can have prompts of several rows. A row is in memory from its first batch to its last one.
        """
        places = {index: (number, place) for number, row in enumerate(rows) for place, index in enumerate(row)}
        computed: dict[int, SharedPrompts] = {}
        for part in self._parts([index for row in rows for index in row], numbers, answered):
            with self._computing():
                needed = dict.fromkeys(places[index][0] for index in part)
                computed = {
                    number: computed.get(number) or SharedPrompts(self.bundle, [prompts[i] for i in rows[number]])
                    for number in needed
                }
                inputs = shared_inputs([(computed[places[i][0]], places[i][1]) for i in part])
                tokens = self._generated(inputs, [numbers[i] for i in part])
                begin = inputs["input_ids"].shape[1]
                answers = self._read(tokens, begin, [prompts[i] for i in part], [numbers[i] for i in part])
            yield dict(zip(part, answers, strict=True))

    def _parts(
        self, indices: Sequence[int], numbers: Sequence[int], answered: Container[int]
    ) -> Iterator[Sequence[int]]:
        """Yield the batches of some prompts that have one without an answer."""
        for start in range(0, len(indices), self.batch_size):
            part = indices[start : start + self.batch_size]
            if not all(numbers[i] in answered for i in part):
                yield part

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Set evaluation mode, the precision of the model and inference mode inside the block."""
        with torch.inference_mode(), evaluating(self.bundle.model), self.bundle.model.computing():
            yield

    def _answers(self, prompts: Sequence[Encoded], numbers: Sequence[int]) -> list[Answer]:
        """Return the answers to the prompts of one batch; the model is in evaluation mode."""
        encoder = text_encoder_of(self.bundle)
        model: Any = self.bundle.model.pretrained
        batch = encoder.pad(prompts, side="left").to(model.device)
        begin = 1 if model.config.is_encoder_decoder else batch.student["input_ids"].shape[1]
        if not self.bundle.model.heads:
            return self._read(self._generated(backbone_inputs(batch.student), numbers), begin, prompts, numbers)
        assert isinstance(self.bundle.model, LanguageModel)
        counts = torch.tensor([len(prompt.frames) for prompt in prompts])
        first_images = (counts.cumsum(0) - counts).clamp_max(max(0, int(counts.sum()) - 1))
        decoder = ObjectDecoder(self.bundle.model, encoder.object_id, first_images)
        with decoder.decoding(batch.student) as inputs:
            tokens = self._generated(inputs, numbers)
            decoder.finish(tokens[:, -1])
        return self._read(tokens, begin, prompts, numbers, decoder)

    def _generated(self, inputs: dict[str, Any], numbers: Sequence[int]) -> Tensor:
        """Return the tokens [B, L] of the prompts, or the start of the decoder, and of the answers."""
        model: Any = self.bundle.model.pretrained
        begin = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        control = self.control(begin, numbers)
        explained = explained_model_errors(model, "while it generates an answer", "cannot answer")
        with explained, without_checkpoint_settings(model):
            tokens: Tensor = model.generate(
                **inputs,
                generation_config=control.options,
                logits_processor=control.processors,
                stopping_criteria=control.criteria,
                synced_gpus=False,  # each process has its own answers; after FSDP, transformers would synchronize them
            )
        return tokens

    def _read(
        self,
        tokens: Tensor,
        begin: int,
        prompts: Sequence[Encoded],
        numbers: Sequence[int],
        decoder: ObjectDecoder | None = None,
    ) -> list[Answer]:
        """Return the answers in generated tokens [B, L], which begin at `begin`."""
        answers = []
        for row, prompt in enumerate(prompts):
            marks = () if decoder is None else decoder.marks(row, prompt.frames)
            answers.append(self.read(tokens[row, begin:], numbers[row], prompt, marks))
        return answers

    def read(self, generated_L: Tensor, number: int, prompt: Encoded, marks: Sequence[Mark]) -> Answer:
        """Return the answer in generated tokens [L], which may go on behind its end.

        Args:
            generated_L: Generated tokens.
            number: Number of the prompt.
            prompt: The prompt.
            marks: Predictions of the heads.
        """
        answer_L = _until(generated_L, self.options.eos_token_id)
        count = min(len(answer_L) + 1, len(generated_L))
        return replace(text_encoder_of(self.bundle).read_answer(answer_L, prompt.frames, marks), tokens=count)

    def control(self, begin: int, numbers: Sequence[int]) -> Control:
        """Return the options of a batch of prompts. `begin` is the position of the first generated token."""
        # Only generated tokens are penalized: else ends of turns in the prompt and padding would change answers.
        penalty = RepetitionPenaltyLogitsProcessor(self.repetition_penalty, begin)
        processors: list[LogitsProcessor] = [] if self.repetition_penalty == 1 else [penalty]
        return Control(self.options, processors + (self.sampling.processors(numbers) if self.sampling else []))


def text_encoder_of(bundle: Bundle) -> TextEncoder:
    """Return the encoder of a bundle whose model generates text."""
    assert isinstance(bundle.encoder, TextEncoder), "the model does not generate text"
    return bundle.encoder


def stop_ids(bundle: Bundle) -> set[int]:
    """Return the token ids that end an answer: the end of turn, the tokenizer's end, and those of the checkpoint."""
    encoder, generation_config = text_encoder_of(bundle), bundle.model.pretrained.generation_config
    assert generation_config is not None
    end = generation_config.eos_token_id
    ids = {encoder.turn_end_id, *(end if isinstance(end, list) else [end]), encoder.tokenizer.eos_token_id}
    return {token for token in ids if token is not None}


def _until(tokens: Tensor, stops: list[int]) -> Tensor:
    """Return the tokens [L] before the first one in `stops`."""
    ends = torch.isin(tokens, torch.tensor(stops, device=tokens.device)).nonzero()
    return tokens[: int(ends[0])] if len(ends) else tokens
