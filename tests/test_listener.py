import os
import socket
import stat
from contextlib import ExitStack

import pytest

from whoami_router.listener import CannotListen, Listener, open_listener
from whoami_router.settings import Inherited, Tcp, Unix


def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_system_chooses_port_zero():
    with open_listener(Tcp("127.0.0.1", 0)) as listener:
        port = listener.address.port
        assert port > 0
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_port_is_free_at_once_after_connections_that_we_closed():
    with open_listener(Tcp("127.0.0.1", 0)) as listener:
        address = listener.address
        with socket.create_connection(listener.socket.getsockname()) as client:
            listener.socket.accept()[0].close()  # the side that closes first waits (TIME_WAIT)
            assert client.recv(1) == b""
    with open_listener(address) as listener:
        assert listener.address == address


def test_port_in_use_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(CannotListen, match="in use"),
        open_listener(Tcp("127.0.0.1", other.getsockname()[1])),
    ):
        pass


def test_unknown_host_is_said():
    with (
        pytest.raises(CannotListen, match=r"not known|resolution"),
        open_listener(Tcp("nowhere.invalid", 9009)),
    ):
        pass


@pytest.mark.parametrize("address", [Tcp("a..b", 0), Tcp("a" * 64, 0), Inherited(10**20)])
def test_impossible_address_is_said(address):
    with pytest.raises(CannotListen), open_listener(address):
        pass


def test_any_user_may_connect_to_the_unix_socket_and_it_is_removed_at_the_end(tmp_path):
    path = tmp_path / "sock"
    umask = os.umask(0o077)
    try:
        with open_listener(Unix(path)) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert listener.address == Unix(path)
            assert connects(path)
            assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert not path.exists()


def test_stale_socket_of_a_crash_is_replaced(tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    with open_listener(Unix(path)):
        assert connects(path)


def test_socket_in_use_is_left_alone(tmp_path):
    path = tmp_path / "sock"
    with open_listener(Unix(path)):
        with pytest.raises(CannotListen, match="another process"), open_listener(Unix(path)):
            pass
        assert connects(path)


def test_socket_of_a_process_that_hangs_is_in_use_at_once(tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as hung, ExitStack() as waiting:
        hung.bind(str(path))
        hung.listen(0)
        full = False
        while not full:
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(0)
            full = client.connect_ex(str(path)) != 0
        with pytest.raises(CannotListen, match="another process"), open_listener(Unix(path)):
            pass


def test_abstract_socket_has_a_name_to_show():
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0whoami-router-test-{os.getpid()}")
        assert str(Listener(abstract, None).address).startswith("unix:@whoami-router-test-")


def test_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotListen, match="not a socket"), open_listener(Unix(path)):
        pass
    assert path.read_text() == "data"


def test_socket_of_a_successor_is_not_removed(tmp_path):
    path = tmp_path / "sock"
    with open_listener(Unix(path)):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


def test_unix_socket_is_reachable_until_it_is_removed_or_replaced(tmp_path):
    path = tmp_path / "sock"
    with open_listener(Unix(path)) as listener:
        assert listener.reachable()
        path.unlink()
        assert not listener.reachable()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            assert not listener.reachable()


def test_what_cannot_be_removed_is_always_reachable(tmp_path):
    with open_listener(Tcp("127.0.0.1", 0)) as listener:
        assert listener.reachable()
    path = tmp_path / "sock"
    with socket.create_server(str(path), family=socket.AF_UNIX) as activated:
        path.unlink()  # whoever made it may do so, and connects in another way
        with open_listener(Inherited(os.dup(activated.fileno()))) as listener:
            assert listener.reachable()


@pytest.mark.parametrize("path", ["missing/sock", "x" * 200])
def test_impossible_path_is_said(tmp_path, path):
    with pytest.raises(CannotListen), open_listener(Unix(tmp_path / path)):
        pass


def test_inherited_socket_is_used():
    with socket.create_server(("127.0.0.1", 0)) as parent:
        address = parent.getsockname()
        with open_listener(Inherited(os.dup(parent.fileno()))) as listener:
            assert listener.socket.getsockname() == address
        assert parent.getsockname() == address


def test_descriptor_that_does_not_listen_is_said():
    with (
        socket.socket() as idle,
        pytest.raises(CannotListen, match="does not listen"),
        open_listener(Inherited(idle.fileno())),
    ):
        pass


def test_descriptor_that_is_no_socket_is_said(tmp_path):
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(CannotListen),
        open_listener(Inherited(file.fileno())),
    ):
        pass


def test_closed_descriptor_is_said():
    with pytest.raises(CannotListen), open_listener(Inherited(987)):
        pass
