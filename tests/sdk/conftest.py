"""One server for all tests that do not stop it, and what they need around it."""

import os

import pytest

pytest.register_assert_rewrite("support", "wire", "packing")

import support  # noqa: E402

# The SDK takes settings from the environment: a proxy does not reach the server, and the rest is not meant for it.
for name in [name for name in os.environ if name.startswith("ACONTEXT_") or name.lower().endswith("_proxy")]:
    del os.environ[name]

# The servers that a test has started itself.
SERVERS = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for server in dict.fromkeys(item.stash.get(SERVERS, []) + support.Server.running):
            report.sections.append((f"end of {server.log_file.name}", "\n".join(server.log().splitlines()[-15:])))
    return report


@pytest.fixture(scope="session")
def server():
    with support.temporary_home() as home:
        server = support.Server(home)
        try:
            yield server.wait_until_ready()
            assert not server.has_ended(), f"the server did not live as long as the tests:\n{server.log()}"
            server.stop()
        finally:
            server.close()


@pytest.fixture(scope="session")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def disk(client):
    return client.disks.create()


@pytest.fixture(scope="session")
def stranger(server):
    """A client of another project."""
    _, key = support.new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture
def fresh(server):
    """A client of a project that has nothing yet."""
    _, key = support.new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture(scope="module")
def home():
    """A data folder that the tests of a file start their servers on, one after the other."""
    with support.temporary_home() as home:
        yield home


@pytest.fixture
def start(home, request):
    """Starts servers on `home`; what still runs at the end of the test is ended."""
    servers = request.node.stash.setdefault(SERVERS, [])

    def start(folder=home, **how):
        server = support.Server(folder, **how)
        servers.append(server)
        return server.wait_until_ready()

    yield start
    for server in servers:
        server.close()
