"""Generation of answers in text: greedy or sampled, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from mllm.models.encoding.text_encoder import TextEncoder
from mllm.models.generation.object_decoding import ObjectDecoder
from mllm.models.language_model import LanguageModel
from mllm.structures import Answer, Bundle, Encoded, Model, Sample


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


DEFAULTS = dict(num_beams=1, repetition_penalty=1.0, encoder_repetition_penalty=1.0, no_repeat_ngram_size=0)
SAMPLING_DEFAULTS = dict(typical_p=1.0, min_p=0.0, epsilon_cutoff=0.0, eta_cutoff=0.0)
"""Neutral values of options that transformers would otherwise read from the checkpoint's generation config."""

WINDOW = 8
"""Number of batches that are encoded at a time: enough to sort by length, few enough to hold their pixels in memory."""


@torch.inference_mode()
def generate(
    bundle: Bundle,
    samples: Iterable[Sample],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 4,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> list[Answer]:
    """Return the answer to each conversation, in order. A last assistant turn is not part of the prompt.

    Generation stops at the end of the turn. Batches hold samples of similar length, padded on the left. `top_k=0`
    means all tokens. Sampling is seeded by `seed` and does not change the global random state. `repetition_penalty`
    divides positive and multiplies negative logits of tokens that are already in the answer (arXiv:1909.05858); tokens
    of the prompt and ends of turns are not penalized. `samples` may be lazy: a few batches are in memory at a time.
    """
    model = bundle.model.pretrained
    stops = stop_ids(bundle)
    pad = bundle.encoder.tokenizer.pad_token_id
    sampling = {**SAMPLING_DEFAULTS, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops) if pad is None else pad,
        use_cache=True,
        **DEFAULTS,
        **(sampling if do_sample else {}),
    )
    remaining = iter(samples)
    total = len(samples) if isinstance(samples, Sized) else None
    devices = [model.device] if model.device.type == "cuda" else []
    answers: list[Answer] = []
    with (
        evaluating(bundle.model),
        torch.random.fork_rng(devices=devices),
        tqdm(total=total, desc="answers", disable=None if progress else True) as bar,  # None: off without a terminal
    ):
        torch.manual_seed(seed)
        while window := [bundle.encoder.prompt(sample) for sample in islice(remaining, WINDOW * batch_size)]:
            answers += _generate_window(bundle, window, options, batch_size, bar, float(repetition_penalty))
    return answers


def _generate_window(
    bundle: Bundle,
    prompts: Sequence[Encoded],
    options: GenerationConfig,
    batch_size: int,
    bar: tqdm,
    repetition_penalty: float,
) -> list[Answer]:
    """Return the answers to `prompts`, in order, from batches of similar length."""
    encoder = text_encoder_of(bundle)
    model: Any = bundle.model.pretrained
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [Answer("")] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        chosen = [prompts[i] for i in indices]
        batch = encoder.pad(chosen, side="left").to(model.device)
        begin = 1 if model.config.is_encoder_decoder else batch.student["input_ids"].shape[1]
        # Only generated tokens are penalized: else ends of turns in the prompt and padding would change answers.
        penalty = [] if repetition_penalty == 1 else [RepetitionPenaltyLogitsProcessor(repetition_penalty, begin)]
        decoder = None
        if bundle.model.heads:
            assert isinstance(bundle.model, LanguageModel)
            counts = torch.tensor([len(prompt.frames) for prompt in chosen])
            first_images = (counts.cumsum(0) - counts).clamp_max(max(0, int(counts.sum()) - 1))
            decoder = ObjectDecoder(bundle.model, encoder.object_id, first_images)
            with decoder.decoding(batch.student) as inputs:
                tokens = model.generate(**inputs, generation_config=options, logits_processor=penalty)
                decoder.finish(tokens[:, -1])
        else:
            tokens = model.generate(**batch.student, generation_config=options, logits_processor=penalty)
        for row, i in enumerate(indices):
            answer_L = _until(tokens[row, begin:], options.eos_token_id)
            count = min(len(answer_L) + 1, tokens.shape[1] - begin)
            marks = () if decoder is None else decoder.marks(row, prompts[i].frames)
            answers[i] = replace(encoder.read_answer(answer_L, prompts[i].frames, marks), tokens=count)
        bar.update(len(chosen))
    return answers


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
