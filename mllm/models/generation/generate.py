"""Answers in text: greedy or sampled, in batches, the same one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from mllm.models.generation.object_decoding import ObjectReader
from mllm.structures import Answer, Bundle, Encoded, Sample


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns dropout off for a while; afterwards every module has the mode that it had, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


PLAIN = dict(num_beams=1, repetition_penalty=1.0, encoder_repetition_penalty=1.0, no_repeat_ngram_size=0)
PLAIN_SAMPLING = dict(typical_p=1.0, min_p=0.0, epsilon_cutoff=0.0, eta_cutoff=0.0)
"""What would change an answer unasked: left open, these would be filled in from the checkpoint's own settings."""

WINDOW = 8
"""How many batches are encoded at a time: enough to sort by length, few enough to hold their pixels in memory."""


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
    """The model's answer to each conversation, in order; a last assistant turn is left out of the question.

    Generation stops at the end of the turn. Samples of like length share a batch, padded on the left, so that
    little is computed in vain. Sampling is seeded by `seed` and leaves the run's random state as it was; `top_k` of 0
    means all tokens. Logits of what the answer has said already are divided by `repetition_penalty` where positive and
    multiplied where negative (arXiv:1909.05858); the question's words and ends of turns are not held against it.
    `samples` may be lazy: only a few batches of them are held at a time.
    """
    model = bundle.model.pretrained
    stops = stop_ids(bundle)
    pad = bundle.encoder.tokenizer.pad_token_id
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops) if pad is None else pad,
        use_cache=True,
        **PLAIN,
        **({**PLAIN_SAMPLING, "temperature": temperature, "top_p": top_p, "top_k": top_k} if do_sample else {}),
    )
    remaining = iter(samples)
    total = len(samples) if isinstance(samples, Sized) else None
    devices = [model.device] if model.device.type == "cuda" else []
    answers: list[Answer] = []
    with (
        evaluating(bundle.model),
        torch.random.fork_rng(devices=devices),
        tqdm(total=total, desc="answers", disable=None if progress else True) as bar,  # None: off where nobody watches
    ):
        torch.manual_seed(seed)
        while window := [bundle.encoder.prompt(sample) for sample in islice(remaining, WINDOW * batch_size)]:
            answers += _answer(bundle, window, options, batch_size, bar, float(repetition_penalty))
    return answers


def _answer(
    bundle: Bundle,
    prompts: Sequence[Encoded],
    options: GenerationConfig,
    batch_size: int,
    bar: tqdm,
    repetition_penalty: float,
) -> list[Answer]:
    """The answers to `prompts`, in order, from batches of like length."""
    model, encoder = bundle.model.pretrained, bundle.encoder
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [Answer("")] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = [prompts[i] for i in order[start : start + batch_size]]
        batch = encoder.pad(chosen, side="left").to(model.device)
        begin = 1 if model.config.is_encoder_decoder else batch.student["input_ids"].shape[1]
        # Told of the prompt too, it would make an end of turn less likely, and answers depend on the batch's padding.
        penalty = [] if repetition_penalty == 1 else [RepetitionPenaltyLogitsProcessor(repetition_penalty, begin)]
        reader = None
        if bundle.model.heads:
            counts = torch.tensor([len(prompt.frames) for prompt in chosen])
            first = (counts.cumsum(0) - counts).clamp_max(max(0, int(counts.sum()) - 1))
            reader = ObjectReader(bundle.model, encoder.object_id, first)
            with reader.watching(batch.student) as inputs:
                tokens = model.generate(**inputs, generation_config=options, logits_processor=penalty)
                reader.finish(tokens[:, -1])
        else:
            tokens = model.generate(**batch.student, generation_config=options, logits_processor=penalty)
        for row, i in enumerate(order[start : start + batch_size]):
            spoken = _until(tokens[row, begin:], options.eos_token_id)
            count = min(len(spoken) + 1, tokens.shape[1] - begin)
            marks = () if reader is None else reader.marks(row, prompts[i].frames)
            answers[i] = replace(encoder.read_answer(spoken, prompts[i].frames, marks), tokens=count)
        bar.update(len(chosen))
    return answers


def stop_ids(bundle: Bundle) -> set[int]:
    """The token ids that end an answer: the template's end of turn, and what the checkpoint itself names."""
    tokenizer = bundle.encoder.tokenizer
    named = bundle.model.pretrained.generation_config.eos_token_id
    ids = {bundle.encoder.turn_end_id, *(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return {token for token in ids if token is not None}


def _until(tokens: Tensor, stops: list[int]) -> Tensor:
    """The tokens [L] before the first that is one of `stops`."""
    ended = torch.isin(tokens, torch.tensor(stops, device=tokens.device)).nonzero()
    return tokens[: int(ended[0])] if len(ended) else tokens
