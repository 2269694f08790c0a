"""Whether Ray can be started here or reached elsewhere; Ray itself would take minutes to say, and many lines."""

import os
import secrets
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from renege_ray.errors import UserError

_ANSWER_SECONDS = 5.0
# What a client of HTTP/2, and so of gRPC, begins with; a server begins with a frame of its settings.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_TYPE, _SETTINGS = 3, 4
_LONGEST_SOCKET_PATH = 107  # of the system
_LONGEST_PART = "/ray/session_2026-11-28_12-00-00_000000_4194304/sockets/plasma_store"  # what Ray puts behind it


def check_address(address: str) -> None:
    """Check that a cluster answers at RAY_ADDRESS.

    Args:
        address: "auto" (Ray finds the cluster of this machine), HOST:PORT, or ray://HOST:PORT.

    Raises:
        UserError: it is no such address, or nobody answers there.
    """
    if address == "auto":
        return
    scheme, separator, rest = address.partition("://")
    if separator and scheme != "ray":
        raise UserError(
            f"RAY_ADDRESS: {address} is not the address of a cluster (but of its dashboard, for `ray job submit "
            "--address`, perhaps); give HOST:PORT, such as 10.0.0.1:6379, or unset it to use this machine alone"
        )
    try:
        parts = urlsplit(f"//{rest if separator else address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError(
            f"RAY_ADDRESS: {address} is no HOST:PORT, such as 10.0.0.1:6379; or unset it to use this machine alone"
        )
    if why := why_silent(host, port):
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster answers at {address} ({why}); start one there (ray start --head), correct "
            "the address, or unset it to use this machine alone"
        )


def why_silent(host: str, port: int, seconds: float = _ANSWER_SECONDS) -> str:
    """Why nobody at an address answers as a Ray cluster would, within so many seconds; "" if somebody does."""
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return ""  # it would take Ray's certificates to say more
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except OSError as error:
        return (error.strerror or str(error) or type(error).__name__).lower()
    is_settings = len(answer) > _FRAME_TYPE and answer[_FRAME_TYPE] == _SETTINGS and not answer.startswith(b"HTTP")
    return "" if is_settings else "something else than Ray listens there"


def check_temporary_folder(environment: Mapping[str, str] = os.environ) -> None:
    """Check the folder that a Ray of our own would put its sockets and logs into.

    Raises:
        UserError: its path is too long for sockets, or it cannot be written.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), "")
    folder = environment.get(name, "/tmp")
    room = _LONGEST_SOCKET_PATH - len(_LONGEST_PART)
    if len(os.fsencode(folder)) > room:
        raise UserError(
            f"{name}: {folder} is too long a path for Ray's sockets ({len(os.fsencode(folder))} bytes, at most "
            f"{room}); set RAY_TMPDIR to a shorter one, such as /tmp"
        )
    try:
        inner = Path(folder, "ray")
        inner.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=inner):
            pass
    except OSError as error:
        raise UserError(
            f"{name or 'RAY_TMPDIR'}: {folder}/ray, where Ray keeps its sockets and logs, cannot be written "
            f"({error.strerror}); set RAY_TMPDIR to a short path of a folder of your own"
        ) from None


def provide_token() -> None:
    """Ray keeps a token below the home folder, by which its processes know each other. Where that cannot be written,
    this process and those that it starts have one of their own.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    folder = Path("~/.ray").expanduser()
    try:
        if (folder / "auth_token").read_text(encoding="utf-8").strip():
            return
    except OSError:
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
