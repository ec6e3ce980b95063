"""A pytest plugin for other projects' suites, with interception and without.

The clients of such a suite trust the authority of its own servers and nothing
else. Whoever looks into their connections has to be trusted as well, and so
has to have the same authority: the one that SUITE_AUTHORITY and
SUITE_AUTHORITY_KEY name. It is the one that

- fixtures make for their servers (trustme), in the suite's conftest alone:
  where a test makes an authority that is not to be trusted, it stays so;
- uvicorn's servers in conftest show, which speak TLS then;
- stands for the public ones (certifi).

urllib3's servers ask for a client certificate, and take whoever shows none;
such connections are left alone. Here they do not ask.

What came of each test is written to SUITE_OUTCOMES. A server's thread that
never ends has failed its test; it does not keep the process from its end.
"""
import json
import os
import pathlib
import ssl
import sys
import tempfile
import types

import certifi
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

CERTIFICATE = pathlib.Path(os.environ["SUITE_AUTHORITY"])
KEY = pathlib.Path(os.environ["SUITE_AUTHORITY_KEY"])
outcomes = {}


class Authority(trustme.CA):
    def __init__(self, *args, parent_cert=None, **named):
        super().__init__(*args, parent_cert=parent_cert, **named)
        if parent_cert is None:
            self._certificate = x509.load_pem_x509_certificate(CERTIFICATE.read_bytes())
            self._private_key = load_pem_private_key(KEY.read_bytes(), None)


def secured(config):
    folder = pathlib.Path(tempfile.mkdtemp())
    leaf = Authority().issue_cert("127.0.0.1", "localhost")
    leaf.private_key_pem.write_to_path(folder / "key")
    leaf.cert_chain_pems[0].write_to_path(folder / "certificate")
    files = {"ssl_certfile": str(folder / "certificate"), "ssl_keyfile": str(folder / "key")}
    return lambda **named: config(**{**named, **files})


certifi.where = lambda: str(CERTIFICATE)


def pytest_plugin_registered(plugin):
    if getattr(plugin, "__name__", "").endswith("conftest"):
        servers = sys.modules.get("dummyserver.socketserver")
        if servers:
            servers.DEFAULT_CERTS["cert_reqs"] = ssl.CERT_NONE
        if hasattr(plugin, "trustme"):
            plugin.trustme = types.SimpleNamespace(**{**vars(trustme), "CA": Authority})
        if hasattr(plugin, "Config") and plugin.Config.__module__ == "uvicorn.config":
            plugin.Config = secured(plugin.Config)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        before = outcomes.get(report.nodeid)
        said = "" if report.outcome == "passed" else str(report.longrepr)[-2000:]
        outcome = report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
        outcomes[report.nodeid] = [f"{before[0]}, {outcome}", before[1] + said] if before else [outcome, said]


def pytest_sessionfinish():
    pathlib.Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(outcomes))


def pytest_unconfigure():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
