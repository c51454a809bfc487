"""Fixtures: one server that is shared by all tests that do not stop it, and its clients."""

import os

import pytest

pytest.register_assert_rewrite("support", "raw_http", "zip_fixtures")

import support  # noqa: E402

# The SDK reads settings from the environment. A proxy could not reach the server, and the other settings are meant
# for a different server.
for name in [name for name in os.environ if name.startswith("ACONTEXT_") or name.lower().endswith("_proxy")]:
    del os.environ[name]

# The servers that a test has started with `start_server`.
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
            assert not server.has_exited(), f"the server exited before the end of the tests:\n{server.log()}"
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
def other_client(server):
    """A client of another project."""
    _, key = support.new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture
def fresh_client(server):
    """A client of a new, empty project."""
    _, key = support.new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture(scope="module")
def home():
    """A directory with the data directory of the servers that the tests of a module start in turn."""
    with support.temporary_home() as home:
        yield home


@pytest.fixture
def start_server(home, request):
    """A function that starts a server on `home`. Servers that still run at the end of the test are stopped."""
    servers = request.node.stash.setdefault(SERVERS, [])

    def start(directory=home, **options):
        server = support.Server(directory, **options)
        servers.append(server)
        return server.wait_until_ready()

    yield start
    for server in servers:
        server.close()
