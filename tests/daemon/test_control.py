"""Questions to the daemon: who may ask, what an answer looks like, and that nothing that is asked harms anybody."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nftsync.daemon import control
from nftsync.daemon.control import SOCKET, Answer, ControlError, Request, RequestQueue, Server, call
from tests.lab.lab import Lab
from tests.labtools import PATIENCE, Daemon, elements, eventually, needs_root, nft, service

NOBODY = 65534


def echo(question: Request) -> Answer:
    return {"asked": question}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    made = Server(folder, echo)
    yield made
    made.close()


def say(folder: Path, *pieces: bytes, hang_up: bool = False) -> bytes:
    """Say this as it is; returns all that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(folder / SOCKET))
        for piece in pieces:
            connection.sendall(piece)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := connection.recv(65536):
            heard += piece
        return heard


def error(heard: bytes) -> str:
    """Of an answer that is one line and says what is wrong."""
    assert heard.count(b"\n") == 1
    answer = json.loads(heard)
    assert list(answer) == ["error"]
    return str(answer["error"])


@pytest.mark.usefixtures("server")
def test_a_question_and_its_answer_are_one_json_object_each_on_one_line(folder: Path) -> None:
    question = {"command": "explain", "words": ["é", "\n", "2001:db8::1"], "deep": [[{}]]}
    assert call(folder, question) == {"asked": question}
    assert say(folder, b'{"a":', b" 1}\n") == b'{"asked": {"a": 1}}\n'


@pytest.mark.usefixtures("server")
def test_an_answer_may_be_large(folder: Path) -> None:
    text = "x" * 60_000
    assert call(folder, {"text": text}) == {"asked": {"text": text}}


@pytest.mark.usefixtures("server")
def test_the_socket_is_its_owners_alone_whatever_the_umask(folder: Path) -> None:
    assert stat.S_IMODE((folder / SOCKET).stat().st_mode) == 0o600
    before = os.umask(0)
    try:
        Server(folder / "other", echo).close()
        other = Server(folder / "another", echo)
        assert stat.S_IMODE((folder / "another" / SOCKET).stat().st_mode) == 0o600
        other.close()
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_else_is_refused_with_a_sentence(tmp_path: Path, folder: Path, server: Server) -> None:
    assert server
    for each in (folder, *tmp_path.parents, tmp_path):
        if each.is_relative_to("/tmp") and each != Path("/tmp"):  # where tests' folders are
            each.chmod(0o755)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  # in another process
        try:
            os.setgroups([])
            os.setuid(NOBODY)
            call(folder, {})
            os.write(writing, b"it answered")
        except ControlError as fault:
            os.write(writing, str(fault).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.read() == f"{folder / SOCKET}: only root can ask the daemon: use sudo"
    os.waitpid(child, 0)


def test_where_no_daemon_runs_a_sentence_says_so(folder: Path) -> None:
    with pytest.raises(ControlError, match="the daemon does not run: start it with `systemctl start nftsync`"):
        call(folder, {})
    Server(folder, echo).close()
    assert not (folder / SOCKET).exists()
    with pytest.raises(ControlError, match="the daemon does not run"):
        call(folder, {})


def test_the_socket_of_a_daemon_that_was_killed_is_taken_over(folder: Path) -> None:
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(folder / SOCKET))
    with pytest.raises(ControlError, match="the daemon does not run"):
        call(folder, {})
    server = Server(folder, echo)
    try:
        assert call(folder, {}) == {"asked": {}}
    finally:
        server.close()


@pytest.mark.usefixtures("server")
def test_a_second_daemon_is_refused_and_the_first_goes_on_answering(folder: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ControlError, match="another nftsync uses this socket"):
            Server(folder, echo)
    assert call(folder, {"n": 1}) == {"asked": {"n": 1}}
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= files), "nothing stays open"


def test_a_daemon_whom_too_many_ask_keeps_its_socket(folder: Path) -> None:
    folder.mkdir()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(folder / SOCKET))
        listener.listen(0)
        found = 0
        while not found:  # until no more may wait
            asker = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            asker.setblocking(False)
            found = asker.connect_ex(str(folder / SOCKET))
        assert found == errno.EAGAIN
        before = (folder / SOCKET).stat().st_ino
        with pytest.raises(ControlError, match="the daemon is busy with other commands: try again"):
            call(folder, {})
        with pytest.raises(ControlError, match="another nftsync uses this socket"):
            Server(folder, echo)
        assert (folder / SOCKET).stat().st_ino == before


def test_a_folder_that_can_not_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match="file"):
        Server(tmp_path / "file" / "run", echo)
    with pytest.raises(ControlError, match="too long"):
        Server(tmp_path / ("x" * 120), echo)


HOSTILE: dict[str, list[bytes]] = {
    "no JSON": [b"status\n"],
    "no object": [b"[1]\n"],
    "null": [b"null\n"],
    "an empty line": [b"\n"],
    "NUL": [b"\0\0\0\n"],
    "no UTF-8": [b'{"\xff": 1}\n'],
    "deep": [b"[" * 60_000 + b"\n"],
    "no end": [b"x" * 70_000],
    "no end of an object": [b'{"a": "', b"y" * 70_000],
    "two lines": [b"{}\n{}\n"],
    "a huge number": [b'{"a": ' + b"9" * 50_000 + b"}\n"],
}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("pieces", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_question_is_answered_with_an_error_and_the_next_one_is_heard(
    folder: Path, pieces: list[bytes]
) -> None:
    try:
        assert error(say(folder, *pieces)).startswith("the request is not valid: ")
    except (ConnectionResetError, BrokenPipeError):
        assert sum(map(len, pieces)) > 64 * 1024, "only who says too much is hung up on"
    assert call(folder, {}) == {"asked": {}}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("said", [b"", b'{"a"'])
def test_who_hangs_up_at_once_or_halfway_harms_nobody(folder: Path, said: bytes) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(folder / SOCKET))
            connection.sendall(said)
    hung_up = "the request is not valid: the other side closed the connection"
    assert eventually(lambda: error(say(folder, said, hang_up=True)) == hung_up), "when those before have been given up"
    assert call(folder, {}) == {"asked": {}}


def test_who_says_nothing_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    server = Server(folder, echo)
    try:
        assert error(say(folder, b'{"half')) == "the daemon is busy: try again"
    finally:
        server.close()


def test_more_askers_than_there_are_places_hear_that_and_the_others_are_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_WAIT", 0.1)
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(question: Request) -> Answer:
        begun.release()
        go_on.wait(PATIENCE)
        return echo(question)

    server = Server(folder, slow)
    try:
        with ThreadPoolExecutor(control._AT_ONCE) as pool:
            asked = [pool.submit(call, folder, {"n": number}) for number in range(control._AT_ONCE)]
            assert all(begun.acquire(timeout=PATIENCE) for _ in asked)
            assert error(say(folder)) == "the daemon is busy with other commands: try again"
            go_on.set()
            assert [each.result() for each in asked] == [{"asked": {"n": number}} for number in range(control._AT_ONCE)]
        assert eventually(lambda: b"asked" in say(folder, b"{}\n")), "their places are free again"
    finally:
        go_on.set()
        server.close()


def test_too_many_open_files_do_not_end_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]
    real = socket.socket.accept

    def accept(listener: socket.socket) -> Any:
        if faults:
            raise faults.pop()
        return real(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    server = Server(folder, echo)
    try:
        assert call(folder, {}) == {"asked": {}}
        assert not faults
    finally:
        server.close()


def test_too_many_threads_do_not_end_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, real, faults = Server(folder, echo), threading.Thread.start, [RuntimeError("can't start new thread")]

    def start(thread: threading.Thread) -> None:
        if faults:
            raise faults.pop()
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    try:
        with suppress(ConnectionResetError, BrokenPipeError):  # a hang-up is no silence
            assert say(folder, b"{}\n") == b""
        assert not faults
        assert call(folder, {}) == {"asked": {}}
    finally:
        server.close()


def test_closing_ends_its_thread_and_removes_the_socket(folder: Path) -> None:
    server = Server(folder, echo)
    server.close()
    assert not (folder / SOCKET).exists()
    assert "control" not in {thread.name for thread in threading.enumerate()}


# --- the one thread that answers ----------------------------------------------------------------------


def answering(questions: RequestQueue, stop: threading.Event, answer: Any = echo) -> threading.Thread:
    def loop() -> None:
        while not stop.wait(0.001):
            questions.answer(answer)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def test_many_who_ask_at_once_each_get_their_own_answer(folder: Path) -> None:
    stop = threading.Event()
    questions = RequestQueue(lambda: None)
    thread, server = answering(questions, stop), Server(folder, questions.call)
    try:
        with ThreadPoolExecutor(20) as pool:
            numbers = range(200)
            found = list(pool.map(lambda number: call(folder, {"n": number}), numbers))
        assert found == [{"asked": {"n": number}} for number in numbers]
    finally:
        stop.set()
        thread.join()
        server.close()


def test_a_question_wakes_who_answers() -> None:
    woken = threading.Event()
    questions = RequestQueue(woken.set)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(questions.call, {"n": 1})
        assert woken.wait(PATIENCE)
        questions.answer(echo)
        assert asked.result(PATIENCE) == {"asked": {"n": 1}}


def test_a_crowd_that_asks_without_a_pause_does_not_hold_up_who_answers() -> None:
    questions, answered = RequestQueue(lambda: None), list[int]()
    with ThreadPoolExecutor(2) as pool:

        def and_another_comes(question: Request) -> Answer:
            answered.append(question["n"])
            if len(answered) < 100:
                pool.submit(questions.call, {"n": len(answered)})
                assert eventually(lambda: not questions._waiting.empty())
            return {}

        pool.submit(questions.call, {"n": 0})
        assert eventually(lambda: not questions._waiting.empty())
        questions.answer(and_another_comes)
        assert answered == [0]
        questions.answer(lambda _: {})


def test_a_loop_that_does_not_turn_is_busy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    server = Server(folder, RequestQueue(lambda: None).call)
    try:
        with pytest.raises(ControlError, match="the daemon is busy: try again"):
            call(folder, {})
    finally:
        server.close()


def test_what_was_given_up_is_not_done_later_behind_the_back_of_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.1)
    done: list[Request] = []
    questions = RequestQueue(lambda: None)
    with pytest.raises(TimeoutError):
        questions.call({"command": "confirm"})

    def answer(question: Request) -> Answer:
        done.append(question)
        return echo(question)

    def turn() -> bool:
        questions.answer(answer)
        return bool(done)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(control, "PATIENCE", PATIENCE)
        asked = pool.submit(questions.call, {"command": "status"})
        assert eventually(turn)
        assert asked.result(PATIENCE) == {"asked": {"command": "status"}}
    assert done == [{"command": "status"}]


def test_an_answer_that_has_begun_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, woken = threading.Event(), threading.Event()
    real = Future.result

    def result(future: Future[Answer], timeout: float | None = None) -> Answer:
        if not begun.is_set():  # the time is up just after the answer has begun
            assert begun.wait(PATIENCE)
            raise TimeoutError
        return real(future, timeout)

    def answer(question: Request) -> Answer:
        begun.set()
        return echo(question)

    monkeypatch.setattr(Future, "result", result)
    questions, heard = RequestQueue(woken.set), list[Answer]()
    thread = threading.Thread(target=lambda: heard.append(questions.call({"n": 1})))
    thread.start()
    assert woken.wait(PATIENCE)
    questions.answer(answer)
    thread.join(PATIENCE)
    assert heard == [{"asked": {"n": 1}}]


def test_an_answer_that_fails_is_an_error_for_who_asked_and_for_nobody_else(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(question: Request) -> Answer:
        if question["n"] == 0:
            raise ValueError("what was asked makes no sense")
        if question["n"] == 1:
            raise TypeError("unhashable type: 'list'")
        return echo(question)

    stop = threading.Event()
    questions = RequestQueue(lambda: None)
    thread, server = answering(questions, stop, answer), Server(folder, questions.call)
    try:
        with caplog.at_level(logging.ERROR):
            with pytest.raises(ControlError, match="makes no sense"):
                call(folder, {"n": 0})
            assert not caplog.records
            with pytest.raises(ControlError, match="this is a bug: its log has the traceback"):
                call(folder, {"n": 1})
            assert "unhashable" in caplog.text
        assert call(folder, {"n": 2}) == {"asked": {"n": 2}}
    finally:
        stop.set()
        thread.join()
        server.close()


@pytest.mark.parametrize("said", [b"[1]\n", b"x\n", b'{"error": "no"}\n', b"", b"\xff\n"])
def test_an_answer_that_is_none_is_a_sentence(folder: Path, said: bytes) -> None:
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ControlError):
            call(folder, {})
        thread.join()


# --- the daemon itself --------------------------------------------------------------------------------

NONSENSE: tuple[Request, ...] = (
    {}, {"command": []}, {"command": {}}, {"command": None}, {"command": 1}, {"command": "x" * 60_000},
    {"command": "explain"},
    {"command": "explain", "words": [1]}, {"command": "explain", "words": "default/web"},
    {"command": "explain", "words": []},
    {"command": "explain", "words": ["a" * 60_000]}, {"command": "explain", "words": ["a/" + "b" * 60_000]},
    {"command": "explain", "words": ["1" * 60_000 + ":80"]}, {"command": "explain", "words": ["x"] * 10_000},
    {"command": "explain", "words": ["\ud800\0"]},
)  # fmt: skip


@needs_root
def test_no_question_ends_the_daemon_or_its_work(tmp_path: Path) -> None:
    with Lab() as lab, Daemon(lab, tmp_path) as daemon:
        daemon.put(nft(), service("web", "172.30.254.1"))
        daemon.start()
        folder = tmp_path / "run"
        for question in NONSENSE:
            with pytest.raises(ControlError) as raised:
                call(folder, question)
            assert str(raised.value).isprintable()
            assert len(str(raised.value)) < 1000
            assert "bug" not in str(raised.value)
        for pieces in HOSTILE.values():
            with suppress(ConnectionResetError, BrokenPipeError):
                error(say(folder, *pieces))
        daemon.put(service("late", "172.30.254.2", ports=[("TCP", 81)]))
        assert eventually(lambda: "172.30.254.2 . tcp . 81" in elements(lab, "services4"))
        assert call(folder, {"command": "status"})["sync"]["result"] in ("applied", "unchanged")
        assert "Traceback" not in daemon.log()
