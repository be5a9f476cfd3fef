"""Flower's server, clients and wire (Beutel et al., 2020), as `federation` uses them. Imported only where somebody needs it."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.client import NumPyClient, start_client
from flwr.common import (
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    ReconnectIns,
    ndarrays_to_parameters,
)
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.superlink.fleet.grpc_bidi.grpc_server import start_grpc_server

from .errors import InputError, TrialError

if TYPE_CHECKING:
    from .federation import Answer, Client

WAIT_SECONDS = 600.0
"""How long a client waits for its server to be there."""


@dataclass(frozen=True)
class Meeting:
    """Where server and clients meet."""

    clients: int
    run: Callable[[Any, int], None]
    """So many rounds of one of Flower's strategies."""


class Side(NumPyClient):
    """A client as Flower knows it: the same in a simulation and at the end of a wire. Only `fit` has anything to say."""

    def __init__(self, client: Client, told: Callable[[int, Answer], None] | None = None) -> None:
        self.client = client
        self.told = told

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        answer = self.client.answer(parameters, config)
        if self.told is not None:
            self.told(int(config["round"]), answer)
        return answer.arrays, answer.images, dict(answer.facts)


class _Near(ClientProxy):
    """A client in this process, asked in Flower's own messages."""

    def __init__(self, cid: str, client: Client) -> None:
        super().__init__(cid)
        self.client = Side(client).to_client()

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        return self.client.fit(ins)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        return self.client.evaluate(ins)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        return self.client.get_parameters(ins)

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        return self.client.get_properties(ins)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        return DisconnectRes(reason="")


def packed(arrays: list[np.ndarray]) -> Parameters:
    """Arrays as Flower sends them."""
    return ndarrays_to_parameters(arrays)


def near(clients: Sequence[Client]) -> Meeting:
    """Simulated clients, asked one after the other, so that a seed decides everything."""

    def meet(strategy: Any, rounds: int) -> None:
        manager = SimpleClientManager()
        for number, client in enumerate(clients):
            manager.register(_Near(f"{number:06d}", client))
        with _quiet():
            _Here(client_manager=manager, strategy=strategy).fit(rounds, timeout=None)

    return Meeting(len(clients), meet)


class _Here(Server):
    """Asks its clients in this thread: in Flower's own pool, all of a round would train on after Ctrl-C, and in a thread that
    nobody can end."""

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        drawn = self.strategy.configure_fit(server_round, self.parameters, self.client_manager())
        asked = sorted(drawn, key=lambda pair: pair[0].cid)  # the answers are added up in this order
        results = [(client, client.fit(task, timeout, server_round)) for client, task in asked]
        return (*self.strategy.aggregate_fit(server_round, results, []), (results, []))


def far(address: str, clients: int, *, certificates: tuple[bytes, bytes, bytes] | None = None) -> Meeting:
    """Real clients over gRPC: waits at `address` (HOST:PORT) for so many, and lets them go when the rounds are over.

    `certificates`: of the authority, of the server, and the server's key, in PEM; without them nothing is encrypted.

    Raises:
        InputError: nobody can listen at `address`, which is tried at once: before the work that comes before the first round.
    """
    host, port = host_and_port(address)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"--address {address}: cannot be listened on: {why}; choose another") from None

    def meet(strategy: Any, rounds: int) -> None:
        manager = SimpleClientManager()
        server = Server(client_manager=manager, strategy=_in_order(strategy))
        with _quiet():
            try:
                wire = start_grpc_server(client_manager=manager, server_address=address, certificates=certificates)
            except (SystemExit, RuntimeError) as error:  # Flower's and gRPC's ways to say that somebody else listens there by now
                raise InputError(f"--address {address}: cannot be listened on: {error}; choose another") from None
            try:
                server.fit(rounds, timeout=None)
            finally:
                server.disconnect_all_clients(timeout=None)
                wire.stop(grace=1).wait()

    return Meeting(clients, meet)


def host_and_port(address: str) -> tuple[str, int]:
    """Of HOST:PORT; an IPv6 host may stand in brackets.

    Raises:
        InputError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"{address!r} is no address of a server; write HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join(address: str, client: Client, told: Callable[[int, Answer], None], *, authority: bytes | None = None) -> None:
    """Take part as a client until the server lets it go. `authority`: the certificate (PEM) that the server's must be signed by.

    Raises:
        InputError: the authority is none.
        TrialError: the server cannot be reached, is not what was agreed to, or went away.
    """
    import grpc

    with _quiet():
        try:
            _wait_for(address, authority)
            start_client(
                server_address=address,
                client=Side(client, told).to_client(),
                root_certificates=authority,
                insecure=authority is None,
            )
        except grpc.RpcError as error:
            reason = error.details() if isinstance(error, grpc.Call) else error
            raise TrialError(f"the connection to {address} is gone ({reason}); is the server still running?") from None


def _wait_for(address: str, authority: bytes | None) -> None:
    """Clients may be there before their server: Flower's own gives up at the first refusal."""
    import grpc

    if authority is not None:
        _greet(address, authority)
    trusted = None if authority is None else grpc.ssl_channel_credentials(authority)
    channel = grpc.insecure_channel(address) if trusted is None else grpc.secure_channel(address, trusted)
    try:
        grpc.channel_ready_future(channel).result(timeout=WAIT_SECONDS)
    except grpc.FutureTimeoutError:
        how = "; if it encrypts, give its --authority" if authority is None else ""
        raise TrialError(f"no server answered at {address} within {WAIT_SECONDS:.0f} s{how}") from None
    finally:
        channel.close()


def _greet(address: str, authority: bytes) -> None:
    """A handshake as gRPC makes it, which would try a server that is the wrong one again and again without a word."""
    host, _, port = address.rpartition(":")
    host, until = host.strip("[]"), time.monotonic() + WAIT_SECONDS
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise InputError("--authority: is no certificate in PEM; take the ca.pem of the server's --tls") from None
    context.set_alpn_protocols(["h2"])
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as listening:
                context.wrap_socket(listening, server_hostname=host).close()
            return
        except ssl.SSLCertVerificationError as error:
            raise TrialError(f"--authority does not vouch for the server at {address}: {error.verify_message}") from None
        except OSError as error:  # nobody there yet, or what stands before it closes: whoever answers in clear is another server
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                raise TrialError(
                    f"the server at {address} does not encrypt; start it with --tls, or join without --authority"
                ) from None
            if time.monotonic() > until:
                raise TrialError(f"no server answered at {address} within {WAIT_SECONDS:.0f} s: {error}") from None
            time.sleep(0.5)


def _in_order(strategy: Any) -> Any:
    """The same strategy, but a failure ends the training, and answers are added up in the clients' order: Flower gathers them in
    a set, and sums of floats depend on their order."""
    aggregate = strategy.aggregate_fit

    def aggregate_fit(number: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Any]) -> Any:
        if failures:
            raise _far_away(failures[0])
        return aggregate(number, sorted(results, key=lambda result: result[0].cid), [])

    strategy.aggregate_fit = aggregate_fit
    return strategy


def _far_away(failure: Any) -> Exception:
    said = failure[1].status.message if isinstance(failure, tuple) else ""
    text = "a client refused or went away; its side says why"
    return TrialError(
        f"{text}{f' ({said})' if said else ''}. The same command goes on after the last whole round, with all clients"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's own log is for its developers: it speaks of every round, and of old names that it keeps."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
