"""A real SuperLink and real SuperNodes as processes on the loopback address, with TLS and keys."""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_BIN = Path(sys.executable).parent
_READY_S = 60


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_certificates(folder: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key` signed by it, for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])

    def begin(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("hwnas test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=6))
        )

    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca = (
        begin("hwnas test authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        begin("localhost", server)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "server.key").write_bytes(
        server.private_bytes(
            pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def write_key(folder: Path, name: str) -> None:
    """A SuperNode's key, as `ssh-keygen -t ecdsa -b 384` writes it: `NAME` and `NAME.pub`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    (folder / name).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    (folder / f"{name}.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


@dataclass
class Deployment:
    """Processes in a folder that holds their certificates, keys and logs."""

    folder: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def environment(self) -> dict[str, str]:
        home = self.folder / "flower"
        home.mkdir(exist_ok=True)
        return os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def start_superlink(self) -> None:
        folder = self.folder
        if not self.ca.exists():
            write_certificates(folder)
        self._start(
            "superlink",
            "flower-superlink",
            "--ssl-ca-certfile",
            str(self.ca),
            "--ssl-certfile",
            str(folder / "server.pem"),
            "--ssl-keyfile",
            str(folder / "server.key"),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            "--database",
            str(folder / "superlink.db"),
            "--port",
            str(self.port),
        )
        self._wait_for_port(self.port)
        connection = (
            f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.ca}"\n'
        )
        (folder / "flower").mkdir(exist_ok=True)
        (folder / "flower" / "config.toml").write_text(connection)

    def register(self, name: str) -> None:
        """Let the SuperLink know a SuperNode's public key."""
        if not (self.folder / name).exists():
            write_key(self.folder, name)
        command = ["flwr", "supernode", "register", str(self.folder / f"{name}.pub"), "test"]
        done = subprocess.run(
            [str(_BIN / command[0]), *command[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start_supernode(self, name: str, config: str) -> None:
        if not (self.folder / name).exists():
            write_key(self.folder, name)
        self._start(
            name,
            "flower-supernode",
            "--root-certificates",
            str(self.ca),
            "--superlink",
            self.address,
            "--port",
            str(free_port()),
            "--auth-supernode-private-key",
            str(self.folder / name),
            "--node-config",
            config,
        )

    def _start(self, name: str, program: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [str(_BIN / program), *arguments],
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _wait_for_port(self, port: int) -> None:
        end = time.monotonic() + _READY_S
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"nothing listens on {port}: {self.log('superlink')[-2000:]}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """Without a word, as a machine fails: what runs in sessions of its own falls too."""
        process = self.processes.pop(name)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, timeout=10)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    found = Deployment(folder)
    try:
        yield found
    finally:
        found.stop()
