"""Start and end of the server."""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from mllm.config.hardware import check_packages
from mllm.errors import ConfigError, origin_of
from mllm.predict.library import load_sources, model_sources
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.variants import refuse_unlike
from mllm.serve.app import build_app
from mllm.serve.attachments import remove_left_files
from mllm.serve.keeping import Keeper
from mllm.serve.limits import Limits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """Options of `mllm serve`."""

    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapters by name."""
    model: str | None = None
    """A whole model, or the base of the adapters."""
    host: str = "127.0.0.1"
    port: int = 8000
    """Port; 0: any free one."""
    token: str | None = None
    keep: str | None = None
    """File of requests and answers; None: nothing is stored."""
    batch_size: int = 8
    limits: Limits = field(default_factory=Limits)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `model_args` that replace the saved ones; None leaves a key unchanged."""
    patience: int | None = None
    """Seconds that open connections have at the end; None: until their requests are answered."""


def serve(options: ServeOptions, build: Callable[..., FastAPI] = build_app) -> None:
    """Load the model, and answer requests until SIGTERM or Ctrl-C, which let the running ones finish.

    Args:
        options: Options of the server.
        build: Function that returns the application for the arguments of `build_app`.

    Raises:
        ConfigError: The port is in use, the host needs a token, or the model cannot be loaded.
    """
    if not is_loopback(options.host) and not options.token:
        raise ConfigError(
            f"--host {options.host} lets other machines send requests: set --token or the variable MLLM_SERVER_TOKEN"
        )
    check_packages()
    # All errors that need no weights come first: loading them can take minutes.
    sources = model_sources(options.adapters, options.model, **options.model_args)
    refuse_unlike(sources)
    keeper = None if options.keep is None else Keeper(options.keep)
    listener = bound_socket(options.host, options.port)
    remove_left_files()
    with listener:
        model = load_sources(sources, options.batch_size)
        run(build(model, options.limits, options.token, keeper), listener, model, options.patience)


def run(app: FastAPI, listener: socket.socket, model: LoadedModel, patience: int | None = None) -> None:
    """Serve an application on a socket until a signal."""
    # Without access log and with errors only: requests must not be in a log.
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=patience,
    )
    logging.getLogger("uvicorn.error").addFilter(without_values)
    warnings.simplefilter("ignore")  # those of libraries that decode files may have values of their headers
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    logger.info("models: %s", ", ".join(model.names))
    logger.info("serving http://%s/v1; Ctrl-C or SIGTERM stops after the running requests", address)

    def ignore(number: int, frame: FrameType | None) -> None:
        """Do nothing: uvicorn repeats the signal after the server has stopped."""

    server = uvicorn.Server(config)
    former = {number: signal.signal(number, ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    is_complete = patience is None and not server.force_exit
    logger.info("the server has stopped%s", "; all requests were answered" if is_complete else "")


def without_values(record: logging.LogRecord) -> bool:
    """Replace the traceback of a record, whose message may have values of a request, by type and location."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg, record.args = "a request failed: %s in %s", (type(error).__name__, origin_of(error))
        record.exc_info = record.exc_text = None
    return True


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket of an address. Raise `ConfigError` if it is in use or not an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Another server with the same option could bind the address too, until one of them listens.
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror):
            raise ConfigError(f"--host {host} is no address of this machine") from error
        raise ConfigError(
            f"{host}:{port} cannot be used ({(error.strerror or str(error)).lower()}): choose another --port or --host"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
