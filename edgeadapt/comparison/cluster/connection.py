"""A connection to a Ray cluster, and what may keep it from being made."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from edgeadapt.comparison.cluster.driver import do_on
from edgeadapt.comparison.run import Execute
from edgeadapt.console import log
from edgeadapt.errors import HostFailure
from edgeadapt.extras import need
from edgeadapt.jobs import available_threads

_CLIENT = "ray://"
_START = "start one with `ray start --head`, or say --ray local"
_TOKEN = "set RAY_AUTH_TOKEN to what `ray get-auth-token` says on its head"
_RESULTS = 128 << 20  # a trial's result has kilobytes; Ray would take a third of the memory


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Execute]:
    """A way to do trials, while the connection lasts.

    Args:
        address: `auto` (the cluster that this machine belongs to), `HOST:PORT` of its head,
            `ray://HOST:PORT` of its server for clients, or `local`: one on this machine that ends
            with the comparison.

    Raises:
        MissingExtraError: Ray is not installed.
        HostFailure: there is no cluster, or it does not answer.
    """
    ray = need("ray", "comparing on a Ray cluster")
    with _connected(ray, address):
        yield lambda ground, trials: do_on(ray, ground, trials)


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers
        options = {
            "num_cpus": available_threads(),
            "object_store_memory": _RESULTS,
            "include_dashboard": False,
        }
    debug = log.isEnabledFor(logging.DEBUG)
    _knock(address)
    try:
        with _own_sigterm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, it raises after
            _show_token(address)
            ray.init(
                address=address, log_to_driver=debug,
                logging_level=logging.INFO if debug else logging.ERROR, **options,
            )  # fmt: skip
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address == "auto":
            raise HostFailure(f"{_none_at(address)} ({reason}); {_START}") from error
        raise HostFailure(
            f"the Ray cluster at {address!r} lets nobody in from here ({reason}); see that this "
            f"machine has its Ray, its Python and its token: {_TOKEN}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _none_at(address: str) -> str:
    return f"no Ray cluster answers at {address!r}"


def _knock(address: str) -> None:
    """See that somebody is there: Ray itself tries for minutes.

    Raises:
        HostFailure: nobody is.
    """
    host, colon, port = address.removeprefix(_CLIENT).rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise HostFailure(f"{_none_at(address)} ({error}); {_START}") from error


def _show_token(address: str) -> None:
    """Have Ray show this machine's token to a cluster that asks for it.

    Since 2.59 clusters do. Ray shows it by itself to what `auto` finds, but not to an address. It
    must not be shown to a cluster that has none: that answers without, which Ray then takes for an
    intruder's, and each actor ends before it begins.

    Raises:
        HostFailure: there is no token here.
    """
    if not _asks_for_token(address):
        return
    setup = importlib.import_module("ray._private.authentication.authentication_token_setup")
    logger = logging.getLogger(setup.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)  # it tells how to go without
    shown = setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    logger.setLevel(before)
    if not shown:
        raise HostFailure(f"the Ray cluster at {address!r} asks for its token; {_TOKEN}")


def _asks_for_token(address: str) -> bool:
    if address in ("auto", "local"):
        return False
    grpc = need("grpc", "connecting to a Ray cluster")
    server = address.removeprefix(_CLIENT)
    method = "RayletDriver/ClusterInfo" if server != address else "NodeInfoGcsService/GetClusterId"
    with grpc.insecure_channel(server) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)
