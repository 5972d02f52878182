"""The page in headless Chromium, on the server with a tiny model."""

from __future__ import annotations

import json
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[serve]'")

import anyio
import httpx
import uvicorn
from medical_files import write_series
from PIL import Image

from mllm import load
from mllm.errors import DataError
from mllm.predict.loaded_model import LoadedModel
from mllm.serve.app import build_app
from mllm.serve.keeping import Keeper
from mllm.serve.limits import Limits
from mllm.ui.conversation import Conversation, Shown
from mllm.ui.corrections import Corrections
from mllm.ui.events import Events
from mllm.ui.private_folder import private_folder
from mllm.ui.serving import QueuedModel, build_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
PATIENCE = 60
SECRET = "a secret"


@pytest.fixture(scope="module")
def model(generating_adapter) -> LoadedModel:
    return load(adapters={"first": generating_adapter, "second": generating_adapter})


@pytest.fixture(scope="module")
def served(model, tmp_path_factory) -> Iterator[tuple[str, Path, Path]]:
    """The address of a page without token, its folder of corrections, and its private folder."""
    corrections = tmp_path_factory.mktemp("kept") / "corrections"
    with private_folder() as folder:
        keeper = Keeper(corrections.parent / "kept.jsonl")
        app = build_page(build_app(model, keeper=keeper), Corrections(corrections), folder)
        settings = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", corrections, folder
        server.should_exit = True
        thread.join()
    assert not folder.exists()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium of 380 pixels width, which logs its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    driver = shutil.which("chromedriver")
    if CHROMIUM is None or driver is None:
        pytest.skip("Chromium with its driver is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    size = {"width": 380, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield chrome
    chrome.quit()


class Person:
    """Person at the browser."""

    def __init__(self, chrome: Any, address: str) -> None:
        self.chrome = chrome
        chrome.get(address)
        self.see("#ask")

    def see(self, selector: str, count: int = 1) -> Any:
        """Wait for a number of elements and return the last one."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.chrome.find_elements("css selector", selector)
            if len(found) >= count:
                return found[-1]
            time.sleep(0.1)
        raise AssertionError(f"{selector} did not appear: {self.chrome.find_element('tag name', 'body').text}")

    def write(self, selector: str, text: str) -> None:
        self.see(selector).send_keys(text)

    def click(self, selector: str) -> None:
        self.chrome.execute_script("arguments[0].click()", self.see(selector))

    def drop(self, selector: str, path: Path) -> None:
        """Drag a file or a folder to the middle of an element."""
        box = self.see(selector).rect
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.chrome.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **place, "data": data})

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.chrome.find_elements("css selector", selector)]

    def requests(self) -> set[str]:
        """Return the addresses that the browser has requested."""
        messages = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        sent = [part["params"] for part in messages if part["method"] == "Network.requestWillBeSent"]
        return {part["request"]["url"] for part in sent}


def test_a_person_asks_two_models_and_corrects_them(served, browser, model, pictures):
    address, corrections, folder = served
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    person = Person(browser, address)
    person.write("#files input[type=file]", str(pictures / "1.png"))
    person.see(".viewer img")
    person.write("#question textarea", "What <i>is</i> this?")
    person.click("#ask")
    person.see("#conversation .answer", 2)
    expected = model.ask(str(pictures / "1.png"), "What <i>is</i> this?").text.strip()
    assert person.texts(".question p") == ["What <i>is</i> this?"]
    assert person.texts(".answer h4") == ["first", "second"]
    assert [text.split() for text in person.texts(".answer .text")] == [expected.split()] * 2
    person.write("#question textarea", "Why?")
    person.click("#ask")
    person.see("#conversation .answer", 4)
    person.click("#correct button")
    person.click("#keep")
    assert "needs the right answer" in person.see("#kept .error").text
    person.write("#right textarea", "A picture of noise.")
    person.click("#keep")
    assert "has 1 row" in person.see("#kept p:not(.error)").text
    (row,) = map(json.loads, (corrections / "train.jsonl").read_text().splitlines())
    assert (row["question"], row["answer"]) == ("Why?", "A picture of noise.")
    kept = [json.loads(line) for line in (corrections.parent / "kept.jsonl").read_text().splitlines()]
    assert [row["request"]["messages"][0]["content"] for row in kept[2:]] == ["Why?", "Why?"]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
    outside = {url for url in person.requests() if not url.startswith((address, "data:", "blob:"))}
    assert not outside, "the page works without internet"


def test_a_folder_of_a_series_or_its_files_are_dropped(served, browser, tmp_path):
    """The drop area of Gradio uploads a folder as a file, which fails."""
    (tmp_path / "study").mkdir()
    files = write_series(tmp_path / "study" / "series")
    (tmp_path / "study" / "README.txt").write_text("a viewer")
    person = Person(browser, served[0])
    person.drop("#files", tmp_path / "study")
    assert person.see(".viewer figcaption").text == "series of 4 files, slice 3 of 4"
    person = Person(browser, served[0])
    person.drop("#files", files[1])
    assert person.see(".viewer figcaption").text == files[1].name


def test_the_page_names_no_other_host_and_shows_no_other_file(served):
    address, _, folder = served
    page = httpx.get(f"{address}/", follow_redirects=True)
    assert "default-src 'self'" in page.headers["content-security-policy"] and "fonts.g" not in page.text
    (folder / "secret.txt").write_text("a secret")
    for path in (folder / "secret.txt", Path(__file__)):
        assert httpx.get(f"{address}/ui/gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{address}/ui/", headers={"Host": "other.example"}).status_code == 403
    report = httpx.get(f"{address}/ui-report", params={"run": str(folder)})
    assert report.status_code == 404 and str(folder) in report.text
    assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "first"
    assert httpx.get(f"{address}/favicon.ico").status_code == 204


def test_a_page_with_a_token_opens_with_it_only(model, tmp_path):
    testclient = pytest.importorskip("fastapi.testclient")
    app = build_page(build_app(model, token=SECRET), Corrections(tmp_path / "kept"), tmp_path / "files", SECRET)
    client = testclient.TestClient(app, base_url="http://scanner.example")
    for path in ("/", "/ui/", "/ui-report", "/ui/config"):
        assert client.get(path).status_code == 401
    assert client.get("/ui/", params={"token": "wrong"}).status_code == 401
    assert client.get("/ui/", params={"token": SECRET}, follow_redirects=False).headers["location"].endswith("/ui/")
    assert client.get("/ui/").status_code == 200, "the cookie opens the page"
    assert client.get("/v1/models").status_code == 401, "the cookie opens the page only"


def test_questions_of_several_persons_are_answered_at_the_same_time(served, monkeypatch):
    """Each question waits until three are asked, so that one at a time would not end."""
    address = f"{served[0]}/ui/gradio_api/queue"
    config = httpx.get(f"{served[0]}/ui/config").json()
    (button,) = [part["id"] for part in config["components"] if part["props"].get("elem_id") == "ask"]
    (number,) = [one["id"] for one in config["dependencies"] if [button, "click"] in one["targets"]]
    barrier, real = threading.Barrier(3, timeout=20), Events._session

    def session(self, request):
        barrier.wait()
        return real(self, request)

    monkeypatch.setattr(Events, "_session", session)

    def end(name: str) -> dict[str, Any]:
        with httpx.stream("GET", f"{address}/data", params={"session_hash": name}, timeout=60) as stream:
            events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            return next(event for event in events if event["msg"] == "process_completed")

    names = ["a", "b", "c"]
    for name in names:
        asked = {"data": ["Why?", [], 4, ""], "fn_index": number, "session_hash": name}
        assert httpx.post(f"{address}/join", json=asked).status_code == 200
    with ThreadPoolExecutor(3) as threads:
        ends = list(threads.map(end, names))
    assert all(one["success"] and "no model is selected" in one["output"]["data"][2] for one in ends), ends


def test_the_page_has_the_limits_of_the_server(model, tmp_path, pictures):
    testclient = pytest.importorskip("fastapi.testclient")
    limits = Limits(upload=1000, pixels=5000, tokens=3)
    app = build_page(build_app(model, limits), Corrections(tmp_path / "kept"), tmp_path / "files")
    with testclient.TestClient(app, base_url="http://localhost") as client:
        config = client.get("/ui/config").json()
        (length,) = [
            part["props"] for part in config["components"] if "Maximum length" in str(part["props"].get("label"))
        ]
        assert (length["maximum"], length["value"]) == (3, 3)
        for size, status in ((900, 200), (1100, 413)):
            sent = client.post("/ui/gradio_api/upload", files={"files": ("a.png", b"x" * size)})
            assert sent.status_code == status, sent.text
        asker = QueuedModel(app.state.service)

        def ask(side: int, **options: Any) -> Any:
            def run() -> Any:
                image = Image.new("RGB", (side, 50))
                answer = yield from asker.stream(image, "Why?", model="first", is_cancelled=lambda: False, **options)
                answers.append(answer)

            return client.portal.call(anyio.to_thread.run_sync, lambda: list(run()))

        answers: list[Any] = []
        pieces = ask(60, after=None, max_new_tokens=50)
        (answer,) = answers
        assert "".join(pieces) == answer.text
        assert (answer.end, answer.tokens) == ("length", 3)
        with pytest.raises(DataError, match="have 6,000 pixels, and the limit of this server is 5,000: begin a new"):
            ask(60, after=answer)


def test_the_questions_to_two_models_are_in_the_queue_together_and_leave_it(model, tmp_path, pictures):
    testclient = pytest.importorskip("fastapi.testclient")
    app = build_page(build_app(model, Limits(queue=2)), Corrections(tmp_path / "kept"), tmp_path / "files")
    batcher, talk = app.state.service.batcher, Conversation()
    shown = Shown(Image.open(pictures / "0.png"), "a.png", 0)

    def ask() -> Any:
        asker = QueuedModel(app.state.service)
        return talk.ask(asker, ["first", "second"], "Why?", shown, lambda: False, max_new_tokens=20)

    def begin() -> int:
        steps = ask()
        next(steps), next(steps)
        waiting = batcher.open
        steps.close()
        return waiting

    def refuse() -> None:
        batcher.admit()
        with pytest.raises(DataError, match="the server has 2 requests, which is its limit"):
            list(ask())
        batcher.leave()

    with testclient.TestClient(app, base_url="http://localhost") as client:
        assert client.portal.call(anyio.to_thread.run_sync, begin) == 2
        assert client.portal.call(lambda: batcher.open) == 0
        client.portal.call(anyio.to_thread.run_sync, refuse)
        assert client.portal.call(lambda: batcher.open) == 0 and not talk.exchanges
        steps = client.portal.call(anyio.to_thread.run_sync, lambda: [dict(step.written) for step in ask()])
    (exchange,) = talk.exchanges
    assert [answer.text for answer in exchange.answers.values()] == list(steps[-1].values())
    assert exchange.answers["second"].text == model.ask(shown.image, "Why?", model="second", max_new_tokens=20).text


def test_a_page_of_another_machine_cannot_use_this_one(served):
    address = served[0]
    assert httpx.get(f"{address}/ui/", headers={"Origin": address}).status_code == 200
    for path in ("/ui/gradio_api/queue/join", "/ui/gradio_api/upload", "/v1/chat/completions"):
        sent = httpx.post(f"{address}{path}", headers={"Origin": "https://evil.example"}, json={})
        assert sent.status_code == 403, path


def test_the_page_of_a_model_of_measures_measures_in_the_queue_of_the_server(measuring, tmp_path):
    testclient = pytest.importorskip("fastapi.testclient")
    app = build_page(build_app(measuring, Limits(pixels=5000)), Corrections(tmp_path / "kept"), tmp_path / "files")
    images = {name: Image.new("L", (40, 40), gray).convert("RGB") for name, gray in (("ED", 50), ("ES", 90))}
    with testclient.TestClient(app, base_url="http://localhost") as client:
        parts = [part["props"].get("elem_id") for part in client.get("/ui/config").json()["components"]]
        assert {"view", "take", "chosen"} <= set(parts) and not {"question", "correct"} & set(parts)
        asker = QueuedModel(app.state.service)
        answer = client.portal.call(anyio.to_thread.run_sync, lambda: asker.measure(images))
        assert answer.measures == measuring.measure(images).measures
        images["ES"] = Image.new("RGB", (90, 90))
        with pytest.raises(DataError, match="have 9,700 pixels, and the limit"):
            client.portal.call(anyio.to_thread.run_sync, lambda: asker.measure(images))
