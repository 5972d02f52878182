"""Answers of an OpenAI-compatible server to the samples of a split."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import Any

from PIL.Image import Image

from mllm.config.defaults import with_defaults
from mllm.config.schema import ModelArgs, RunConfig
from mllm.contents import reference_of
from mllm.engine.answering import GENERATION, OPTIONS, Answers, digest_of, options_fingerprint
from mllm.engine.option_scores import candidates_of
from mllm.errors import ConfigError, DataError
from mllm.models.builder.build_chat import build_box_format
from mllm.models.encoding.marks import MarkWriter
from mllm.models.encoding.text_encoder import parts_of, without_answer
from mllm.predict.server_client import ServerClient, choose_model, is_local
from mllm.private_messages import is_private
from mllm.structures import IMAGE, Answer, Sample, Turn

WINDOW = 8
"""Number of windows of `concurrency` rows that are read at a time."""
TOP = 20
"""Number of most probable first tokens whose probabilities are requested, the maximum of the protocol."""
Json = dict[str, Any]
CONCURRENCY = 8
"""Default number of requests at a time."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """Options of an evaluation by a server."""

    address: str
    """Address such as `http://localhost:8000`."""
    model: str | None = None
    """Name of the model on the server; None: its only one."""
    concurrency: int = CONCURRENCY
    """Number of requests at a time."""
    allow_remote: bool = False
    """Send the data to a server on another machine."""


def open_server(options: ServerOptions, config: RunConfig) -> ServerAnswers:
    """Return the answers of a server to the questions of a config.

    Raises:
        ConfigError: The server is on another machine without `allow_remote`, does not answer, or has no such model.
    """
    client = ServerClient.of(options.address)
    if not is_local(client.url) and not options.allow_remote:
        raise ConfigError(
            f"--server {options.address} is not this machine, and the questions and images of the split would be sent "
            "to it: add --allow-remote if these data may leave this machine"
        )
    if config.data_args.gen_kwargs.get("scales"):
        raise ConfigError("--server: the server chooses the size of images: remove data_args.gen_kwargs.scales")
    model = choose_model(client.models(), options.model, client.url)
    logger.info("the answers are those of %s on %s", model, client.url)
    return ServerAnswers(
        client, model, config.model_args, concurrency=options.concurrency, **config.data_args.gen_kwargs
    )


class ServerAnswers:
    """Answers of a server: generated text, or the most probable option of a question.

    A request has the turns of the sample, with the system text of `model_args` if there is none; the server applies
    the chat template of its model. Images are PNG files in data URLs, with the pixels that the processor of a model in
    memory would receive. Boxes and points are read from the text in the box format of `model_args`.

    `scoring='options'` reads the probability of each option as the first token of the answer from `logprobs`, so each
    option must be one token, such as a letter. The probabilities are normalized over the options; an option that is not
    among the most probable tokens has probability 0.

    Args:
        client: Client of the server.
        model: Name of the model on the server.
        args: `model_args` of the config: system text, box format and padding of images.
        concurrency: Number of requests at a time.
        scoring: 'generation' or 'options'.
        choices: Options of questions that list none.
        options: Options of generation: `max_new_tokens`, `do_sample`, `temperature`, `top_p`, `top_k`,
            `repetition_penalty`, `seed`.

    Raises:
        ConfigError: Boxes or masks of the config are read by heads, which a server does not have.
    """

    def __init__(
        self,
        client: ServerClient,
        model: str,
        args: ModelArgs,
        *,
        concurrency: int = CONCURRENCY,
        scoring: str = GENERATION,
        choices: Sequence[str] = (),
        **options: Any,
    ) -> None:
        args = with_defaults(args)
        if args.heads:
            raise ConfigError("--server: the config has model_args.heads, whose boxes and masks a server cannot return")
        self.client, self.model, self.system = client, model, args.system
        self.marks = MarkWriter(build_box_format(args), pad_to_square=bool(args.pad_to_square))
        self.has_scores, self.choices, self.options = scoring == OPTIONS, choices, options
        self.shares_images = False
        self.concurrency, self.stop = concurrency, args.turn_end
        self.window = WINDOW * concurrency
        self._tried_images = False
        self._settings = [args.system, args.box_format, args.pad_to_square, args.turn_end]

    def check(self, sample: Sample) -> None:
        """Raise `DataError` if the sample has no question, or placeholders that do not match its images."""
        turns = without_answer(sample.turns)
        if not turns or turns[-1].role != "user":
            raise DataError.without_values("there is no question before the answer")
        count = sum(turn.text.count(IMAGE) for turn in turns)
        if count != len(sample.images):
            raise DataError.without_values(f"the text has {count} {IMAGE} placeholders for {len(sample.images)} images")
        if self.has_scores:
            candidates_of(sample, self.choices)

    def reference(self, sample: Sample) -> Answer:
        """Return the reference answer with the text of its marks."""
        answer = reference_of(sample)
        if not sample.turns or sample.turns[-1].role != "assistant":
            return answer
        (written,), _ = self.marks.write(sample, [sample.turns[-1]], self.marks.frames(sample))
        text = self.marks.box_format.plain(written.text.strip())
        return Answer(text, answer.marks, measures=sample.measures, group=sample.group)

    def answers(self, samples: Mapping[int, Sample], answered: Container[int]) -> Iterator[Answers]:
        """Yield the answers to the samples of a window as they come; see `Answerer`.

        The answer to a row that the server refuses is the error. After another error no further request is sent, and
        the answers to those that were sent are yielded before it is raised.
        """
        ended = Event()

        def answer(index: int, sample: Sample) -> Answer | DataError | None:
            if ended.is_set():
                return None
            try:
                return self._answer(index, sample)
            except DataError as error:
                return error
            except BaseException:
                ended.set()
                raise

        rows = {index: sample for index, sample in samples.items() if index not in answered}
        # The first row with images is answered alone, so that no answer of a server that ignores them is kept.
        for index in [index for index, sample in rows.items() if sample.images]:
            if self._tried_images:
                break
            if (result := answer(index, rows.pop(index))) is not None:
                yield {index: result}
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(answer, index, sample): index for index, sample in rows.items()}
            failure: BaseException | None = None
            try:
                for future in as_completed(futures):
                    if (error := future.exception()) is not None:
                        failure = failure or error
                    elif (result := future.result()) is not None:
                        yield {futures[future]: result}
            finally:
                ended.set()  # the caller may have ended the iteration
            if failure is not None:
                raise failure

    def facts(self) -> dict[str, Any]:
        """Return the address of the server and the name of the model, for `metrics.json`."""
        return {"server": {"address": self.client.url, "model": self.model}}

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the model's name, the form of the requests, and the options of generation."""
        return {
            "model on the server": digest_of(self.model),
            "settings of model_args": digest_of(self._settings),
            **options_fingerprint(self.has_scores, self.choices, self.options),
        }

    def _answer(self, index: int, sample: Sample) -> Answer:
        """Return the answer to one sample."""
        row = f"row {index + 1}" if is_private() or not sample.source else sample.source
        body = self.client.complete(self.request(index, sample), row, bool(sample.images))
        try:
            choice = body["choices"][0]
            text = str(choice["message"].get("content") or "").strip()
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ConfigError(f"the server's answer to {row} has no text: it is no OpenAI-compatible server") from error
        count = _tokens(body, "completion_tokens") or 0
        if sample.images and not self._tried_images:
            self._try_without_images(index, sample, row, _tokens(body, "prompt_tokens"))
            self._tried_images = True
        if self.has_scores:
            return self._scored(choice, sample, row, count)
        marks, unreadable = self.marks.read(text, self.marks.frames(sample))
        return Answer(self.marks.box_format.plain(text), marks, unreadable, tokens=count)

    def _try_without_images(self, index: int, sample: Sample, row: str, expected: int | None) -> None:
        """Compare the length of a prompt with that of the same prompt without its images, if the server states both.

        Raises:
            ConfigError: The lengths are equal, so the server ignores images.
        """
        if expected is None:
            return
        request = self.request(index, sample)
        for turn in request["messages"]:
            if isinstance(turn["content"], list):
                turn["content"] = [part for part in turn["content"] if part["type"] == "text"]
        try:
            body = self.client.complete(request | {"max_tokens": 1}, row, False)
        except DataError:
            return  # it answers no question without an image
        if _tokens(body, "prompt_tokens") == expected:
            raise ConfigError(
                f"the server {self.client.url} ignores images: the prompt of a row has {expected} tokens with and "
                "without them; serve a model that reads images (llama.cpp: with --mmproj)"
            )

    def request(self, index: int, sample: Sample) -> Json:
        """Return the body of the request for a sample.

        The seed of a sample depends on the seed of the options and the index of its row alone.
        """
        options = self.options
        sampled = bool(options.get("do_sample", False))
        body: Json = {
            "model": self.model,
            "messages": self.messages(sample),
            "max_tokens": 1 if self.has_scores else options.get("max_new_tokens", 128),
            "temperature": options.get("temperature", 1.0) if sampled else 0.0,
            "seed": _seed(options.get("seed", 0), index),
            "stream": False,
        }
        if self.stop:
            body["stop"] = [self.stop]
        # Keys beyond the protocol of OpenAI are sent only if they have an effect.
        names = ("top_p", "top_k") if sampled else ()
        body |= {name: options[name] for name in names if options.get(name)}
        if options.get("repetition_penalty", 1.0) != 1.0:
            body["repetition_penalty"] = options["repetition_penalty"]
        return body | ({"logprobs": True, "top_logprobs": TOP} if self.has_scores else {})

    def messages(self, sample: Sample) -> list[Json]:
        """Return the conversation of a sample without its last answer, with images in place of the placeholders."""
        prepared, _, _ = self.marks.prepare(sample)
        turns = without_answer(prepared.turns)
        if self.system and not any(turn.role == "system" for turn in turns):
            turns = [Turn("system", self.system), *turns]
        images = iter(prepared.images)
        return [{"role": turn.role, "content": _content(turn.text, images)} for turn in turns]

    def _scored(self, choice: Json, sample: Sample, row: str, tokens: int) -> Answer:
        """Return the most probable option, with the probabilities of all, from the first token of the answer.

        Raises:
            ConfigError: The server returns no probabilities.
            DataError: No option is among the most probable tokens.
        """
        content = (choice.get("logprobs") or {}).get("content") or []
        top = content[0].get("top_logprobs") if content else None
        if not top:
            raise ConfigError(
                f"the server {self.client.url} returns no logprobs, which scoring='options' needs: use "
                "scoring='generation', or a server that returns them (vLLM, llama.cpp)"
            )
        candidates = candidates_of(sample, self.choices)
        likelihoods = dict.fromkeys(candidates, 0.0)
        for entry in top:
            token = str(entry["token"]).strip()
            if token in likelihoods:
                likelihoods[token] += math.exp(float(entry["logprob"]))
        total = sum(likelihoods.values())
        if not total > 0:
            raise DataError.at(
                row,
                f"none of its options is among the {TOP} most probable first tokens of the answer: options must be one "
                "token each, such as letters; otherwise use scoring='generation'",
            )
        scores = dict.fromkeys(candidates.values(), 0.0)
        for option, text in candidates.items():
            scores[text] += likelihoods[option] / total  # two letters can have the same text
        return Answer(max(likelihoods, key=likelihoods.__getitem__), scores=scores, tokens=tokens)


def _content(text: str, images: Iterator[Image]) -> str | list[Json]:
    """Return the content of a turn: its text, or texts and images in their order."""
    if IMAGE not in text:
        return text.strip()
    return [
        {"type": "image_url", "image_url": {"url": data_url(next(images))}} if part["type"] == "image" else part
        for part in parts_of(text)
    ]


def _tokens(body: Json, name: str) -> int | None:
    """Return a number of tokens of an answer; None if the server does not state it."""
    usage = body.get("usage")
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else None


def data_url(image: Image) -> str:
    """Return an image as a PNG file in a data URL, RGB."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _seed(seed: int, index: int) -> int:
    """Return the seed of a row, in [0, 2**31), which all servers accept."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
