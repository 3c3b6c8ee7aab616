"""Linux devices over SSH: every command is a channel of one connection."""

import logging
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from edgepipe.core.errors import InputError
from edgepipe.deploy.ssh_settings import SshSettings, read_settings
from edgepipe.deploy.target_url import TargetUrl, parse_url
from edgepipe.deploy.transport import (
    CHUNK_BYTES,
    DeviceError,
    LostConnectionError,
    RunLimits,
    flood_error,
    timeout_error,
)

CONNECT_SECONDS = 20.0
KEEPALIVE_SECONDS = 10
MAX_JUMPS = 8
PROXY_END_SECONDS = 5.0
INSTALL_HINT = "pip install 'edgepipe[deploy]'"


@final
@dataclass(frozen=True)
class SshTransport:
    """One authenticated connection, and what it goes over: the first of `jump_clients` is next to this machine."""

    name: str
    client: Any
    jump_clients: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    runs_python: ClassVar[bool] = True

    def run(self, command: str, input_bytes: bytes, limits: RunLimits) -> bytes:
        """See `Transport.run`."""
        deadline = time.monotonic() + limits.seconds
        with _wrap_channel_errors(self.name, limits.seconds):
            channel = self._open_channel(command)
            try:
                _send_all(channel, input_bytes, deadline)
                channel.shutdown_write()
                return _read_all(self.name, channel, deadline, limits)
            finally:
                channel.close()

    def hold(self, command: str) -> "HeldChannel":
        """See `Transport.hold`."""
        with _wrap_channel_errors(self.name, CONNECT_SECONDS):
            return HeldChannel(self.name, self._open_channel(command))

    def _open_channel(self, command: str) -> Any:
        transport = self.client.get_transport()
        if transport is None:
            raise LostConnectionError(f"{self.name}: the connection is closed")
        channel = transport.open_session(timeout=CONNECT_SECONDS)
        channel.settimeout(CONNECT_SECONDS)
        channel.set_combine_stderr(True)
        channel.exec_command(command)
        return channel

    def close(self) -> None:
        """See `Transport.close`."""
        for client in (self.client, *reversed(self.jump_clients)):
            client.close()


def _send_all(channel: Any, content: bytes, deadline: float) -> None:
    view = memoryview(content)
    for start in range(0, len(view), CHUNK_BYTES):
        channel.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            channel.sendall(view[start : start + CHUNK_BYTES])
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            return  # the command has ended early, as on a full disk: its output says why


def _read_all(name: str, channel: Any, deadline: float, limits: RunLimits) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        channel.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = channel.recv(CHUNK_BYTES)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > limits.output_bytes:
            raise flood_error(name, limits.output_bytes)
        if time.monotonic() > deadline:
            raise timeout_error(name, limits.seconds)


@final
@dataclass
class HeldChannel:
    """A command that runs until its input is closed."""

    name: str
    channel: Any
    buffer: bytes = b""

    def read_line(self, seconds: float) -> str:
        """See `HeldCommand.read_line`."""
        deadline = time.monotonic() + seconds
        with _wrap_channel_errors(self.name, seconds):
            while b"\n" not in self.buffer and len(self.buffer) < CHUNK_BYTES:
                self.channel.settimeout(max(0.01, deadline - time.monotonic()))
                chunk = self.channel.recv(CHUNK_BYTES)
                if not chunk:
                    break
                self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode(errors="replace")

    def write(self, text: str) -> None:
        """See `HeldCommand.write`."""
        with _wrap_channel_errors(self.name, CONNECT_SECONDS):
            self.channel.settimeout(CONNECT_SECONDS)
            self.channel.sendall(text.encode())

    def close(self) -> None:
        """See `HeldCommand.close`."""
        self.channel.close()


@contextmanager
def _wrap_channel_errors(name: str, seconds: float) -> Iterator[None]:
    import paramiko

    try:
        yield
    except TimeoutError:
        raise timeout_error(name, seconds) from None
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise LostConnectionError(f"{name}: the connection was lost: {_describe(error)}") from None


def open_ssh(url: TargetUrl, accept_new_host_key: bool) -> SshTransport:
    """Connect to `url`, over the hosts that the user's configuration jumps through.

    Raises:
        ToolError: paramiko is not installed, the host is down, unknown or changed, or refuses the keys.
    """
    try:
        import paramiko  # noqa: F401  (an extra)
    except ImportError:
        raise DeviceError(f"{url.name}: ssh needs the package paramiko; {INSTALL_HINT}") from None
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # its errors arrive as exceptions too
    settings, route = read_settings(url), _Route(accept_new_host_key)
    try:
        client = route.connect(url.name, settings, route.open_stream(url, settings, depth=0))
    except BaseException:
        route.close()
        raise
    return SshTransport(url.name, client, tuple(route.jump_clients), tuple(route.notes))


@final
@dataclass(frozen=True)
class ProxyProcess:
    """The process of a ProxyCommand."""

    process: subprocess.Popen[bytes]

    def close(self) -> None:
        """End it, once no connection uses it any more."""
        self.process.terminate()
        try:
            self.process.wait(PROXY_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _start_proxy(name: str, command: str) -> tuple[socket.socket, ProxyProcess]:
    """A socket whose other end is the command's input and output: paramiko's own ProxyCommand never sees its end."""
    own_end, command_end = socket.socketpair()
    with command_end:
        try:
            process = subprocess.Popen(
                shlex.split(command), stdin=command_end.fileno(), stdout=command_end.fileno(), stderr=subprocess.DEVNULL
            )
        except (OSError, ValueError) as error:
            own_end.close()
            raise DeviceError(f"{name}: ProxyCommand '{command}' of its ssh configuration: {error}") from None
    return own_end, ProxyProcess(process)


@dataclass
class _Route:
    """The way to a host: the connections to the hosts that are jumped over, and what was noticed on the way."""

    accepts_new: bool
    jump_clients: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def open_stream(self, url: TargetUrl, settings: SshSettings, depth: int) -> Any:
        """The stream to a host where the configuration has ProxyJump or ProxyCommand; None for a plain connection."""
        if depth > MAX_JUMPS:
            raise DeviceError(
                f"{url.name}: its ssh configuration jumps over {MAX_JUMPS} hosts and more; is it a circle?"
            )
        if not settings.jumps and settings.proxy_command:
            stream, proxy = _start_proxy(url.name, _fill_in(settings))
            self.jump_clients.append(proxy)
            return stream
        if not settings.jumps:
            return None
        hops = [_parse_jump(url, jump) for jump in settings.jumps]
        hop_settings = [read_settings(hop) for hop in hops]
        stream = self.open_stream(hops[0], hop_settings[0], depth + 1)
        for hop, own, following in zip(hops, hop_settings, [*hop_settings[1:], settings], strict=True):
            name = f"{url.name}: over {hop.host}"
            self.jump_clients.append(self.connect(name, own, stream))
            stream = _tunnel(name, self.jump_clients[-1], following)
        return stream

    def connect(self, name: str, settings: SshSettings, stream: Any) -> Any:
        """An authenticated client, whose host key was checked."""
        import paramiko

        from edgepipe.deploy import ssh_host_keys

        client = paramiko.SSHClient()
        self.notes += ssh_host_keys.load_known_hosts(client, name, settings)
        policy = ssh_host_keys.StrictPolicy(name, settings, self.accepts_new)
        client.set_missing_host_key_policy(policy)
        try:
            _authenticate(name, client, settings, stream)
            client.get_transport().set_keepalive(KEEPALIVE_SECONDS)
        except paramiko.BadHostKeyException as error:
            client.close()
            raise ssh_host_keys.changed_key_error(name, error, settings.known_hosts) from None
        except BaseException:
            client.close()
            raise
        self.notes += [policy.note] if policy.note else []
        return client

    def close(self) -> None:
        """End the connections to the hosts on the way."""
        for client in reversed(self.jump_clients):
            client.close()


def _parse_jump(url: TargetUrl, jump: str) -> TargetUrl:
    try:
        return parse_url(jump if "://" in jump else f"ssh://{jump}")
    except InputError as error:
        raise DeviceError(f"{url.name}: ProxyJump of its ssh configuration: {error}") from None


def _tunnel(name: str, client: Any, settings: SshSettings) -> Any:
    import paramiko

    target = (settings.address, settings.port)
    try:
        return client.get_transport().open_channel("direct-tcpip", target, ("127.0.0.1", 0), timeout=CONNECT_SECONDS)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise DeviceError(
            f"{name}: cannot reach {settings.address}:{settings.port} from there: {_describe(error)}"
        ) from None


def _fill_in(settings: SshSettings) -> str:
    assert settings.proxy_command is not None, "asked for by the configuration"
    text = settings.proxy_command
    for mark, value in (("%h", settings.address), ("%p", str(settings.port)), ("%r", settings.user)):
        text = text.replace(mark, value)
    return text


def _authenticate(name: str, client: Any, settings: SshSettings, stream: Any) -> None:
    import paramiko

    try:
        client.connect(
            settings.address,
            port=settings.port,
            username=settings.user,
            key_filename=list(settings.key_files) or None,
            allow_agent=not settings.only_these_keys,
            look_for_keys=not settings.only_these_keys,
            timeout=CONNECT_SECONDS,
            banner_timeout=CONNECT_SECONDS,
            auth_timeout=CONNECT_SECONDS,
            sock=stream,
        )
    except paramiko.BadHostKeyException:
        raise
    except paramiko.PasswordRequiredException:
        raise DeviceError(f"{name}: the key is protected by a passphrase; add it to the agent with `ssh-add`") from None
    except paramiko.AuthenticationException:
        raise DeviceError(_explain_refusal(name, settings)) from None
    except paramiko.SSHException as error:
        raise DeviceError(f"{name}: {_explain_ssh_error(error, settings)}") from None
    except socket.gaierror as error:
        raise DeviceError(
            f"{name}: no host '{settings.address}' ({error.strerror}); is it spelled right, and in ~/.ssh/config?"
        ) from None
    except (OSError, EOFError) as error:
        raise DeviceError(
            f"{name}: {settings.address}:{settings.port} does not answer: {_describe(error)}; "
            "is the device on, in this network, and its ssh server running?"
        ) from None


def _explain_refusal(name: str, settings: SshSettings) -> str:
    keys_text = ", ".join(settings.key_files) or "those of ~/.ssh"
    agent_text = "" if settings.only_these_keys else " and of the agent"
    return (
        f"{name}: user '{settings.user}' was refused with every key ({keys_text}{agent_text}); passwords are not used. "
        "Copy your key there with `ssh-copy-id`, or name another in ~/.ssh/config"
    )


def _explain_ssh_error(error: Exception, settings: SshSettings) -> str:
    if "No authentication methods available" in str(error):
        return "there is no key to log in with; create one with `ssh-keygen` and copy it there with `ssh-copy-id`"
    return f"{settings.address}:{settings.port} does not speak ssh as it should: {_describe(error)}"


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
