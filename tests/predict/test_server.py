"""Evaluation by a server: requests, failures, continuation and probabilities of options, over real HTTP."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from chat_server import ChatServer, chat_server, images_of, question_of, said
from PIL import Image

from mllm.config.schema import ModelArgs
from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError
from mllm.pipeline.evaluate_model import main
from mllm.predict import server_client
from mllm.predict.server import ServerAnswers
from mllm.predict.server_client import ServerClient
from mllm.structures import Sample, Turn

DATA = "test=dict(_delete_=True, type='VQADataset', data_path='rows.jsonl', image_folder='pictures')"
MORE = f"model_args.update(system='Be brief.')\ndata_args = dict({DATA}, gen_kwargs=dict(max_new_tokens=7))"
ARGS = ModelArgs(type="image-text", model_name_or_path="none")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time."""
    seconds: list[float] = []
    monkeypatch.setattr(server_client.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def config(write_config: Callable[..., str], write_rows: Callable[..., None]) -> str:
    """A config whose test split has five rows with one image each."""
    write_rows({"image": "0.png", "question": "Which?", "answer": "MRI"})
    return write_config(MORE)


def answerer(server: ChatServer, args: ModelArgs = ARGS, **options) -> ServerAnswers:
    return ServerAnswers(ServerClient.of(server.url), "tiny", args, **options)


def answers(server: ChatServer, *samples: Sample, **options) -> list:
    parts = answerer(server, **options).answers(dict(enumerate(samples)), ())
    found = {index: answer for part in parts for index, answer in part.items()}
    for answer in found.values():
        if isinstance(answer, DataError):
            raise answer
    return [found[index] for index in range(len(samples))]


def ask(question: str, *images: Image.Image) -> Sample:
    return Sample([Turn("user", "<image>" * len(images) + question)], list(images), source="rows.jsonl, line 1")


def refused(server: ChatServer, sample: Sample, **options) -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        answers(server, sample, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_split_is_evaluated_by_the_answers_of_a_server(config, monkeypatch, capsys, caplog) -> None:
    monkeypatch.setenv("MLLM_SERVER_TOKEN", "secret-token")
    with chat_server(lambda request: said("MRI" if "Which" in question_of(request) else "A scan.")) as server:
        assert main([config, "--server", server.url + "/v1/", "--concurrency", "2"]) == 0
    folder = Path("exp/run/evaluation-test")
    values = json.loads((folder / "metrics.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == ["A scan."] * 4 + ["MRI"] and rows[0]["tokens"] == 3
    assert values["figures"]["accuracy"]["accuracy"] == 1.0
    assert values["server"] == {"address": f"{server.url}/v1", "model": "tiny"}
    assert {header["Authorization"] for header in server.headers} == {"Bearer secret-token"}
    written = "".join(path.read_text() for path in folder.rglob("*.json*"))
    assert "secret-token" not in written + caplog.text + "".join(capsys.readouterr())
    for request in server.requests:
        assert [turn["role"] for turn in request["messages"]] == ["system", "user"]
        assert request["messages"][0]["content"] == "Be brief." and question_of(request) in ("What?", "Which?")
        assert (request["model"], request["max_tokens"], request["temperature"]) == ("tiny", 7, 0.0)
    assert len({request["seed"] for request in server.requests}) == 5
    sent = sorted(np.asarray(images_of(request)[0]).tobytes() for request in server.requests)
    files = [np.asarray(read_images(Path("pictures") / f"{number}.png")[0]).tobytes() for number in (0, 0, 1, 2, 3)]
    assert sent == sorted(files)


def test_a_broken_evaluation_keeps_its_answers_and_continues(config, waits) -> None:
    done: list[str] = []

    def fail_after_three(request):
        if len(done) >= 3:
            return 503, {"error": {"message": "overloaded"}}
        done.append(question_of(request))
        return said("A scan.")

    with chat_server(fail_after_three) as server:
        message = r"refuses .*rows.jsonl, line 4.* with status 503 \(overloaded\); the 3 answers so far are kept in"
        with pytest.raises(ConfigError, match=message):
            main([config, "--server", server.url, "--concurrency", "1"])
        assert waits == [1.0, 2.0, 4.0, 8.0]
        server.reply, count = (lambda request: said("A scan.")), len(server.requests)
        assert main([config, "--server", server.url]) == 0
        assert len(server.requests) - count == 2
    folder = Path("exp/run/evaluation-test")
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 5
    assert json.loads((folder / "metrics.json").read_text())["counts"]["continued"] == 3


def test_an_evaluation_that_ends_before_any_answer_keeps_none(config, waits) -> None:
    overloaded = pytest.raises(ConfigError, match=r"with status 503 \(overloaded\)$")
    with chat_server(lambda request: (503, {"error": {"message": "overloaded"}})) as server, overloaded:
        main([config, "--server", server.url])
    assert not Path("exp/run/evaluation-test").exists()


def test_a_row_that_the_server_refuses_is_skipped_and_counted(config, caplog) -> None:
    """Status 400 for one row of five, as servers answer to a row that exceeds the context of the model."""

    def refuse_one(request):
        too_long = (400, {"error": {"message": "the request exceeds the available context size"}})
        return too_long if "Which" in question_of(request) else said("A scan.")

    folder = Path("exp/run/evaluation-test")
    with chat_server(refuse_one) as server:
        with pytest.raises(DataError, match=r"rows.jsonl, line 5: it is too long for the server .*on_error='skip'"):
            main([config, "--server", server.url])
        assert len(server.requests) == 5 and not (folder / "metrics.json").exists()
        assert main([config, "--server", server.url, "--cfg-options", "data_args.on_error=skip"]) == 0
        assert len(server.requests) == 6, "the four answers were kept"
        server.reply = lambda request: (400, {"error": "odd"})
        with pytest.raises(
            DataError, match="none of the 5 rows of 'test' can be used; first error: .*line 1: the serv"
        ):
            main([config, "--server", server.url, "--cfg-options", "data_args.on_error=skip"])
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 4
    counts = json.loads((folder / "metrics.json").read_text())["counts"]
    assert counts["skipped"] == 1 and "skipped " in caplog.text


def test_several_images_and_former_turns_are_in_the_order_of_the_conversation() -> None:
    red, blue = (Image.new("RGB", (5, 3), color) for color in ("red", "blue"))
    turns = [Turn("user", "First <image> then?"), Turn("assistant", "Yes."), Turn("user", "<image> Now?")]
    sample = Sample([*turns, Turn("assistant", "the reference")], [red, blue])
    with chat_server(lambda request: said("")) as server:
        (answer,) = answers(server, sample)
    (request,) = server.requests
    assert answer.text == "" and [image.getpixel((0, 0)) for image in images_of(request)] == [(255, 0, 0), (0, 0, 255)]
    kinds = [[part["type"] for part in turn["content"]] for turn in request["messages"] if turn["role"] == "user"]
    assert kinds == [["text", "image_url", "text"], ["image_url", "text"]]
    assert request["messages"][1] == {"role": "assistant", "content": "Yes."} and len(request["messages"]) == 3


def test_boxes_in_the_text_are_read_in_pixels_of_the_image() -> None:
    with chat_server(lambda request: said("It is [0.100,0.200,0.500,0.900].")) as server:
        (answer,) = answers(server, ask("Where?", Image.new("RGB", (200, 100))))
    assert [mark.box for mark in answer.marks] == [(20.0, 20.0, 100.0, 90.0)] and answer.unreadable == 0


def test_busy_servers_and_lost_connections_are_asked_again(waits) -> None:
    replies = [(429, "slow down"), None, (502, "<html>"), (200, "no JSON"), said("yes")]
    with chat_server(lambda request: replies[len(server.requests) - 1]) as server:
        (answer,) = answers(server, ask("Why?"))
    assert answer.text == "yes" and waits == [1.0, 2.0, 4.0, 8.0]


def test_requests_are_sent_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)

    def wait(request):
        both.wait()
        return said(question_of(request))

    with chat_server(wait) as server:
        found = answers(server, *(ask(f"{number}?") for number in range(4)), concurrency=2)
    assert [answer.text for answer in found] == ["0?", "1?", "2?", "3?"]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": "no"}), "refuses the token (status 401): set the variable MLLM_SERVER_TOKEN"),
        ((404, {"error": {"message": "model gone"}}), "does not know the model or the address (model gone)"),
        ((400, {"message": "maximum context length is 8 tokens"}), "line 1: it is too long for the server"),
        ((400, {"error": {"message": "the request exceeds the available context size"}}), "line 1: it is too long"),
        ((500, {"error": {"message": "image input is not supported"}}), "refuses images (image input is not"),
        ((307, ""), "redirects to another address"),
        ((422, {"detail": "odd"}), "rows.jsonl, line 1: the server refuses it with status 422 (odd):"),
        ((200, {"choices": []}), "answer to rows.jsonl, line 1 has no text"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_is_not_repeated(reply, message, waits) -> None:
    with chat_server(lambda request: reply) as server:
        assert message in refused(server, ask("Why?", Image.new("RGB", (4, 4))))
    assert len(server.requests) == 1 and waits == []


def test_an_absent_server_an_unknown_model_and_another_machine_are_refused(config, waits) -> None:
    def message(*arguments: str) -> str:
        with pytest.raises(ConfigError) as error:
            main([config, *arguments])
        return str(error.value)

    with chat_server(lambda request: said("")) as server:
        server.models += ["other"]
        assert "has 2 models (tiny, other): choose one with --server-model" in message("--server", server.url)
        assert "has no model 'big': it has tiny" in message("--server", server.url, "--server-model", "big")
    assert "does not answer (" in message("--server", server.url)
    assert "add --allow-remote if these data may leave this machine" in message("--server", "http://192.0.2.7:80")
    assert "must be an address such as http://localhost:8000" in message("--server", "localhost:8000")
    assert not Path("exp").exists() and not server.requests


def test_a_server_that_ignores_images_is_refused(config) -> None:
    """llama-cpp-python serves a model without `--clip_model_path` so: it drops the images and answers the text."""

    def reply(request, *, image_tokens: int):
        count = len(question_of(request).split()) + image_tokens * len(images_of(request))
        return 200, {**said("A scan.")[1], "usage": {"completion_tokens": 3, "prompt_tokens": count}}

    with chat_server(partial(reply, image_tokens=0)) as server:
        with pytest.raises(ConfigError, match="ignores images: .* has 1 tokens with and without them.*--mmproj"):
            main([config, "--server", server.url])
        assert len(server.requests) == 2 and not Path("exp/run/evaluation-test").exists(), (
            "no answer without images is kept"
        )
        server.reply, count = partial(reply, image_tokens=256), len(server.requests)
        assert main([config, "--server", server.url]) == 0
    assert len(server.requests) - count == 6, "five questions, and the first one without its image"
    (probe,) = (request for request in server.requests[count:] if not images_of(request))
    assert probe["max_tokens"] == 1 and question_of(probe) == question_of(server.requests[count])


def test_a_server_that_lists_no_model_is_asked_by_the_name_of_the_command_line(config) -> None:
    """`transformers serve FOLDER` lists the models of its cache only, and answers with that of the folder."""
    with chat_server(lambda request: said("A scan.")) as server:
        server.models.clear()
        with pytest.raises(ConfigError, match="has 0 models .none.: choose one with --server-model"):
            main([config, "--server", server.url])
        assert main([config, "--server", server.url, "--server-model", "my/model"]) == 0
    assert {request["model"] for request in server.requests} == {"my/model"}


def test_probabilities_of_options_are_those_of_the_first_token() -> None:
    """0.5 for " B" and 0.1 for "B", 0.2 for "A", none for "C": 0.75, 0.25 and 0."""
    top = [(" B", 0.5), ("A", 0.2), ("The", 0.15), ("B", 0.1)]
    content = [{"top_logprobs": [{"token": token, "logprob": math.log(value)} for token, value in top]}]
    options = "Which? Options: A: none B: edema C: nodule"
    with chat_server(lambda request: said(" B", logprobs={"content": content})) as server:
        (answer,) = answers(server, ask(options), scoring="options")
        request = server.requests[0]
        assert (request["max_tokens"], request["logprobs"], request["top_logprobs"]) == (1, True, 20)
        assert answer.text == "B" and answer.scores == pytest.approx({"none": 0.25, "edema": 0.75, "nodule": 0.0})
        message = refused(server, ask("Is it?"), scoring="options", choices=["yes", "no"])
        assert "none of its options is among the 20 most probable first tokens" in message
        server.reply = lambda request: said("B")
        assert "returns no logprobs, which scoring='options' needs" in refused(server, ask(options), scoring="options")


def test_sampling_options_and_seeds_of_rows_are_sent() -> None:
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.2}
    with chat_server(lambda request: said("x")) as server:
        for seed in (1, 1, 2):
            answers(server, ask("Why?"), seed=seed, **options)
    first, second, other = server.requests
    assert first == second and first["seed"] != other["seed"] and 0 <= first["seed"] < 2**31
    assert (first["temperature"], first["top_p"], first["repetition_penalty"]) == (0.7, 0.9, 1.2)
    assert "top_k" not in first
