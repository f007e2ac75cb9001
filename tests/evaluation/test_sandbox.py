"""Hostile programs, each run for real. None of them may pass, hang, or leave anything behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import below, is_gone

from mlops_tasks.errors import UserError, WmtpError
from mlops_tasks.evaluation import sandbox as module
from mlops_tasks.evaluation.confinement import landlock_version
from mlops_tasks.evaluation.sandbox import IoTest, Outcome, Program, Sandbox, wall_limit

TEST = "assert f(1) == 2"
RIGHT = "def f(x): return x + 1\n"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=2) as running:
        yield running


def run(sandbox: Sandbox, solution: str, *tests: str, seconds: float = 2.0, setup: str = "") -> Outcome:
    (outcome,) = sandbox.run([Program(solution, tests or (TEST,), setup, seconds)])
    return outcome


def test_a_right_program_passes_and_a_wrong_one_fails(sandbox: Sandbox) -> None:
    assert run(sandbox, RIGHT) == Outcome("passed", "", 1, 1, pytest.approx(0.05, abs=0.5))
    wrong = run(sandbox, "def f(x): return x", TEST, "assert f(1) == 1", "assert f(2) == 2")
    assert (wrong.verdict, wrong.message, wrong.tests_passed, wrong.num_tests) == (
        "failed",
        "test 1: AssertionError",
        2,
        3,
    )


@pytest.mark.skipif(not landlock_version(), reason="needs a kernel with Landlock")
@pytest.mark.parametrize(
    "place", ["/proc/self/environ", "/proc/{parent}/environ", "/etc/passwd", "/etc", "/proc", "/root", "/tmp", __file__]
)
def test_a_program_reads_nothing_of_this_machine(sandbox: Sandbox, place: str) -> None:
    outcome = run(
        sandbox,
        "import os\ndef f(place):\n    place = place.replace('{parent}', str(os.getppid()))\n"
        "    return os.listdir(place) if os.path.isdir(place) else open(place).read()",
        f"assert f({place!r})",
    )
    assert (outcome.verdict, outcome.message[:24]) == ("error", "test 1: PermissionError:")


def test_a_program_reads_what_python_needs(sandbox: Sandbox) -> None:
    code = "import email.message, json, sqlite3, zoneinfo\ndef f(x): return x + len(__import__('os').listdir())\n"
    assert run(sandbox, code, "assert f(1) == 1").passed


def test_it_says_what_keeps_programs_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Sandbox(num_workers=1) as running:
        assert running.protections[:3] == ("seccomp", "resource limits", "no capabilities")
        assert f"programs are kept in by {', '.join(running.protections)}" in caplog.text


def test_outcomes_are_in_the_order_of_the_programs(sandbox: Sandbox) -> None:
    slow = "sum(range(2_000_000))\n" + RIGHT
    programs = [Program(slow if index % 3 == 0 else RIGHT, (f"assert f({index}) == 5",)) for index in range(12)]
    assert [outcome.passed for outcome in sandbox.run(programs)] == [index == 4 for index in range(12)]


@pytest.mark.parametrize(
    ("solution", "verdict", "message"),
    [
        ("import sys\nsys.exit(0)", "crashed", "solution: SystemExit: 0"),
        ("import os\nos._exit(0)", "crashed", "solution: the process ended with status 0"),
        ("def f(x):\n    import os\n    os._exit(0)", "crashed", "test 1: the process ended with status 0"),
        ("import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit", "crashed", "solution: SystemExit"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "solution: killed by SIGSEGV"),
        ("x = ' ' * 10**10", "crashed", "solution: MemoryError"),
        ("x = []\nwhile True: x.append(bytes(10**8))", "crashed", "solution: MemoryError"),
        ("def f(x): return f(x)", "error", "test 1: RecursionError"),
        ("while True: pass", "timeout", "solution: more than 2.0 s of CPU time"),
        ("print('passed')\nimport sys\nprint('passed', file=sys.stderr)", "error", "test 1: NameError"),
        ("input()", "error", "solution: EOFError"),
        ("import os\nos.kill(os.getppid(), 9)", "error", "solution: PermissionError"),
        ("import os\nos.killpg(0, 9)", "error", "solution: PermissionError"),
        ("import os\nos.fork()", "error", "solution: PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "error", "solution: PermissionError"),
        ("import os\nos.execv('/bin/true', ['true'])", "error", "solution: PermissionError"),
        ("open('../here.txt', 'w')", "error", "solution: PermissionError"),
        ("import os\nos.mkdir('../here')", "error", "solution: PermissionError"),
        ("import os\nos.remove('/etc/hostname')", "error", "solution: PermissionError"),
        ("import os\nos.memfd_create('memory')", "error", "solution: PermissionError"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))", "error", "solution: ValueError"),
        ("import resource, os\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))", "error", "solution: PermissionError"),
        ("x = 'a\udc80'\n" + RIGHT, "error", "solution: UnicodeEncodeError"),
    ],
)  # fmt: skip
def test_a_hostile_program_gets_its_verdict(sandbox: Sandbox, solution: str, verdict: str, message: str) -> None:
    outcome = run(sandbox, solution)
    assert outcome.verdict == verdict
    assert outcome.message.startswith(message)
    assert outcome.tests_passed == 0


def test_a_program_that_sleeps_is_ended_by_the_clock(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WALL_FACTOR", 1.5)
    started = time.monotonic()
    outcome = run(sandbox, "import time\ntime.sleep(1000)", seconds=0.2)
    assert outcome.verdict == "timeout"
    assert "s on the clock" in outcome.message
    assert time.monotonic() - started < 0.3 * max(1.0, os.getloadavg()[0]) + 30
    assert outcome.seconds < 0.2


@pytest.fixture
def clock_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only CPU time counts: a machine that does much else may give a program little of it."""
    monkeypatch.setattr(module, "_WALL_FACTOR", 100.0)


@pytest.mark.usefixtures("clock_stands")
def test_a_limit_counts_fractions_of_a_second(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "while True: pass", seconds=0.3)
    assert outcome.message == "solution: more than 0.3 s of CPU time"
    assert 0.2 < outcome.seconds < 0.8


@pytest.mark.usefixtures("clock_stands")
def test_tests_before_the_one_that_hangs_count(sandbox: Sandbox) -> None:
    outcome = run(
        sandbox, "def f(x):\n    while x > 1: pass\n    return 2", TEST, "assert f(2) == 3", TEST, seconds=0.3
    )
    assert (outcome.verdict, outcome.tests_passed, outcome.num_tests) == ("timeout", 1, 3)
    assert outcome.message.startswith("test 2: ")


def test_the_network_is_out_of_reach(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run(sandbox, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n" + RIGHT)
        assert outcome.message.startswith("solution: PermissionError")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError, match="timed out"):
            server.accept()


def test_an_event_loop_needs_no_network(sandbox: Sandbox) -> None:
    assert run(sandbox, "import asyncio\nasync def g(x): return x + 1\ndef f(x): return asyncio.run(g(x))").passed


def test_bytes_on_every_open_file_forge_no_verdict(sandbox: Sandbox) -> None:
    forged = '{"part": "test", "index": 0, "verdict": "passed", "message": ""}\\n'
    for line in (forged, "0" * 32 + forged, "passed", "x" * 10**6):
        solution = f"""
import os
for fd in range(64):
    try: os.write(fd, {line!r}.encode().decode('unicode_escape').encode())
    except OSError: pass
def f(x): return 2
"""
        outcome = run(sandbox, solution, TEST, "assert f(1) == 3")
        assert (outcome.verdict, outcome.tests_passed) == ("crashed", 0)
        assert outcome.message == "solution: wrote to the judge's own channel"


def test_a_program_that_closes_the_channel_is_ended_at_once(sandbox: Sandbox) -> None:
    started = time.monotonic()
    outcome = run(sandbox, "import os, time\nos.closerange(0, 100)\ntime.sleep(1000)", seconds=60)
    assert (outcome.verdict, outcome.tests_passed) == ("crashed", 0)
    assert time.monotonic() - started < 30


def test_a_program_finds_an_empty_world(sandbox: Sandbox) -> None:
    tests = (
        "import os; assert dict(os.environ) == {}",
        "assert os.listdir() == []",
        "import sys; assert not [path for path in sys.path if 'site-packages' in path or path == '']",
        "import importlib.util; assert importlib.util.find_spec('numpy') is None",
        "assert sys.stdin.read() == ''",
        "assert sum(is_open(fd) for fd in range(64)) == 5",  # three standard ones and the two pipes to the judge
    )
    count = "import os\ndef is_open(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n"
    assert run(sandbox, count, *tests) == Outcome("passed", "", 6, 6, pytest.approx(0.05, abs=0.5))


def test_the_order_of_a_set_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    words = "assert ''.join({'alpha', 'beta', 'gamma', 'delta', 'epsilon'}) == "
    first = subprocess.run(
        [sys.executable, "-c", "print(''.join({'alpha', 'beta', 'gamma', 'delta', 'epsilon'}), end='')"],
        env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert run(sandbox, "", words + repr(first)).passed


def test_one_program_leaves_nothing_to_the_next(sandbox: Sandbox) -> None:
    run(sandbox, "import math\nmath.pi = 3\nimport builtins\nbuiltins.len = None", "assert True")
    assert run(sandbox, "import math", "assert math.pi > 3.14 and len('ab') == 2").passed


RIGHT_UNDER_LOAD = (
    "def f(x): return x + 1",
    "def f(x):\n    print('passed' * 10**4)\n    return x + 1",
    "def f(x): return sum(range(2_000_000)) * 0 + x + 1",
    "import time\ndef f(x):\n    time.sleep(0.2)\n    return x + 1",
    "import sys\nsys.setrecursionlimit(10**5)\ndef g(n): return n and 1 + g(n - 1)\ndef f(x): return g(20000) - 19999 + x",
    "from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n    with ThreadPoolExecutor(8) as pool: return sum(pool.map(int, '1' * 8)) - 7 + x",
    "import threading\nthreading.stack_size(2**26)\ndef f(x):\n    found = []\n    t = threading.Thread(target=lambda: found.append(x + 1))\n    t.start()\n    t.join()\n    return found[0]",
    "def f(x): return len(str([0] * 10**6)) * 0 + x + 1",
    "import asyncio\nasync def g(x): return x + 1\ndef f(x): return asyncio.run(g(x))",
)  # fmt: skip


def test_a_hundred_of_a_hundred_right_programs_pass_under_load(sandbox: Sandbox) -> None:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        programs = [Program(solution, (TEST,), limit_seconds=1.0) for solution in RIGHT_UNDER_LOAD * 10]
        troubles = [outcome for outcome in sandbox.run(programs) if not outcome.passed]
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert troubles == []


@pytest.mark.skipif(landlock_version() < 3, reason="needs a Landlock that guards truncation")
def test_a_program_has_a_folder_of_its_own_that_is_empty_each_time(sandbox: Sandbox) -> None:
    if "no folder to write to" in sandbox.protections:
        pytest.skip("this system grants no mount namespace")
    solution = """
import os, pathlib
def f(x):
    found = os.listdir()
    pathlib.Path('a').mkdir()
    pathlib.Path('a/b').write_text('x' * 10**6)
    os.rename('a/b', 'c')
    os.remove('c')
    return found
"""
    assert run(sandbox, solution, "assert f(1) == []").passed
    assert run(sandbox, solution, "assert f(1) == []").passed
    flood = "open('a', 'wb').write(bytes(17 * 2**20))"
    assert run(sandbox, flood).message.startswith("solution: OSError: [Errno 27] File too large")


def test_the_clock_s_limit_follows_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert wall_limit(3.0) == 12.0
    monkeypatch.setattr(os, "getloadavg", lambda: (5.0 * cores, 0.0, 0.0))
    assert wall_limit(3.0) == 60.0


def test_a_sandbox_leaves_neither_process_nor_folder() -> None:
    with Sandbox(num_workers=2) as running:
        assert run(running, RIGHT).passed
        processes = [worker._process.pid for worker in running._workers]
        folder = Path(str(running._folder and running._folder.name))
        assert folder.is_dir()
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not folder.exists()


def tree_at_work(worker: int, deadline: float) -> list[int]:
    """The processes of a worker once it runs a program: nursery, program and judge, and itself in its namespaces."""
    found: list[int] = []
    while len(found) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        found = below(worker)
    return found


def test_a_worker_that_is_killed_takes_its_program_along_and_is_an_error() -> None:
    with Sandbox(num_workers=1) as running:
        worker = running._workers[0]._process.pid
        deadline = time.monotonic() + 60
        found: list[int] = []

        def kill() -> None:
            found.extend(tree_at_work(worker, deadline))
            os.kill(worker, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(WmtpError, match="A sandbox worker ended with status -9"):
            running.run([Program("import time\ntime.sleep(1000)", (TEST,), limit_seconds=5)] * 3)
        killer.join()
    assert len(found) >= 3
    while not all(is_gone(pid) for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_nursery_that_is_killed_ends_its_program_and_not_the_judging() -> None:
    with Sandbox(num_workers=1) as running:
        deadline = time.monotonic() + 60
        worker = running._workers[0]._process.pid
        assert run(running, RIGHT).passed
        nursery = below(worker)[-1]

        def kill() -> None:
            tree_at_work(worker, deadline)
            os.kill(nursery, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        asleep, right = running.run(
            [Program("import time\ntime.sleep(1000)", (TEST,), limit_seconds=100), Program(RIGHT, (TEST,))]
        )
        killer.join()
        assert (asleep.verdict, asleep.message[:16]) == ("crashed", "solution: killed")
        assert right.passed
        os.kill(below(running._workers[0]._process.pid)[-1], signal.SIGKILL)
        assert run(running, RIGHT).passed, "it was not this program that ended the nursery"
        assert run(running, "def f(x): return x").verdict == "failed"


def test_a_judge_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "judge.py"
    script.write_text(
        "from mlops_tasks.evaluation.sandbox import *\nwith Sandbox(1) as s:\n print(s._workers[0]._process.pid, flush=True)\n"
        " s.run([Program('import time; time.sleep(1000)', ('assert 1',), limit_seconds=1000)])\n"
    )
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as judge:
        assert judge.stdout is not None
        worker = int(judge.stdout.readline())
        found = tree_at_work(worker, deadline)
        judge.kill()
    while not all(is_gone(pid) for pid in (worker, *found)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_limits_of_the_shell_may_be_lower_than_ours() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)); resource.setrlimit(resource.RLIMIT_CPU, (50, 50))\n"
        "from mlops_tasks.evaluation.sandbox import *\n"
        "with Sandbox(1) as s: print(s.run([Program('x = 1', ('assert x == 1',), limit_seconds=1000)])[0].verdict)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "passed\n"
    )


def test_a_system_that_cannot_confine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_supported", lambda: False)
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(module.platform, "machine", lambda: "arm64")
    with pytest.raises(UserError, match="cannot be confined on Darwin arm64"), Sandbox():
        pass


def test_a_machine_that_does_not_confine_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START", altered("confinement.Confinement.apply = lambda *a: None"))
    with (
        pytest.raises(UserError, match="Programs are not confined on this machine: test 1: AssertionError"),
        Sandbox(1),
    ):
        pass


def test_a_child_that_cannot_be_confined_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = "OSError(38, 'prctl(22): Function not implemented')"
    monkeypatch.setattr(
        module, "_START", altered(f"confinement.Confinement.apply = lambda *a: (_ for _ in ()).throw({error})")
    )
    with pytest.raises(UserError, match=r"could not be confined: .*prctl\(22\)"), Sandbox(1):
        pass


def altered(change: str) -> str:
    """How a worker starts, with a change to the module `confinement` or `namespaces` first."""
    return module._START.replace("del sys.path[0]; ", f"from mlops_tasks.evaluation import confinement, namespaces; {change}; del sys.path[0]; ")  # fmt: skip


def test_without_namespaces_programs_are_confined_and_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "namespaces._refusal = lambda: 'unshare: Operation not permitted'"
    monkeypatch.setattr(module, "_START", altered(refused))
    with Sandbox(1) as running:
        assert "no namespaces (unshare: Operation not permitted)" in running.protections
        assert "no folder to write to" in running.protections
        assert "write to a folder" not in running.allowances
        assert run(running, RIGHT).passed
        assert run(running, "open('here', 'w')").message.startswith("solution: PermissionError")
        assert run(running, "import os\nos.kill(os.getppid(), 9)").message.startswith("solution: PermissionError")


def test_unsafe_runs_programs_where_nothing_else_can_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "is_supported", lambda: False)
    with Sandbox(1, unsafe=True) as running:
        assert running.protections == ("resource limits", "no namespaces (unsafe)")
        assert running.allowances == ("what this user may",)
        assert "programs run as your user, with your files and network" in caplog.text
        assert run(running, RIGHT).passed
        assert run(running, "while True: pass", seconds=0.3).verdict == "timeout"
        assert script(running, ADDS + "print(a + b)").passed


def test_unsafe_changes_nothing_where_programs_can_be_confined() -> None:
    with Sandbox(1, unsafe=True) as running:
        assert "seccomp" in running.protections


ADDS = "a, b = map(int, input().split())\n"


def script(sandbox: Sandbox, solution: str, *io_tests: IoTest, seconds: float = 2.0) -> Outcome:
    tests = io_tests or (IoTest("1 2\n", "3\n"),)
    (outcome,) = sandbox.run([Program(solution, io_tests=tests, limit_seconds=seconds)])
    return outcome


@pytest.mark.parametrize(
    "solution",
    [
        ADDS + "print(a + b)",
        ADDS + "print(a + b)\nexit()",
        ADDS + "import sys, os\nprint(a + b)\nsys.stdout.flush()\nos._exit(0)",
        ADDS + "if __name__ == '__main__':\n    raise SystemExit(print(a + b))",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
        "import os\nos.write(1, b'%d' % sum(map(int, os.read(0, os.fstat(0).st_size).split())))",
        "import sys\nwith sys.stdin as i, sys.stdout as o: o.write(str(sum(map(int, next(i).split()))))",
        "import atexit, io, sys\n" + ADDS + "sys.stdout = io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(a + b)",
        "import io, os\nclass Out(io.IOBase):\n    def flush(self): os.write(1, b'3')\nout = Out(); out.me = out",
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
        "def main():\n    f = lambda n: n and 1 + f(n - 1)\n    print(f(20000) - 19997)\nthreading.Thread(target=main).start()",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return max(n, sorted([n], key=lambda n: n and f(n - 1))[0])\n"
        "print(f(10000) - 9997)",
    ],
)  # fmt: skip
def test_a_right_script_passes(sandbox: Sandbox, solution: str) -> None:
    assert script(sandbox, solution) == Outcome("passed", "", 1, 1, pytest.approx(0.05, abs=1))


@pytest.mark.parametrize(
    ("solution", "verdict", "message"),
    [
        (ADDS + "print(a * b)", "failed", "test 1: another output"),
        ("print(3)\nraise ValueError('no')", "error", "test 1: ValueError: no"),
        ("print(3)\nraise SystemExit(4)", "error", "test 1: the process ended with status 4"),
        ("print(3)\nraise SystemExit('bad')", "error", "test 1: bad"),
        ("print(3", "error", "test 1: SyntaxError: '(' was never closed"),
        ("while True: pass", "timeout", "test 1: more than 0.4 s of CPU time"),
        ("while True: print('3' * 10**6)", "crashed", "test 1: printed more than 16 MiB"),
        ("import ctypes\nprint(3, flush=True)\nctypes.string_at(0)", "crashed", "test 1: killed by SIGSEGV"),
    ],
)
def test_a_script_gets_its_verdict(sandbox: Sandbox, solution: str, verdict: str, message: str) -> None:
    outcome = script(sandbox, solution, seconds=0.4)
    assert (outcome.verdict, outcome.message, outcome.tests_passed) == (verdict, message, 0)


def test_each_run_of_a_script_has_its_own_limit_and_the_rest_goes_on(sandbox: Sandbox) -> None:
    solution = "n = int(input())\nwhile n == 2: pass\nsum(range(5_000_000))\nprint(n)"
    outcome = script(sandbox, solution, *(IoTest(str(n), str(n)) for n in (1, 2, 3)), seconds=0.6)
    assert (outcome.verdict, outcome.tests_passed, outcome.num_tests) == ("timeout", 2, 3)
    assert outcome.message.startswith("test 2: ")
