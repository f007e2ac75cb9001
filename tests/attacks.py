"""Programs that try to be judged right without being right, or to do harm. The table in docs/sandbox.md is written from this one.

Each is judged by `assert f(1) == 2` unless it says otherwise; a script gets "1 2" to print "3". None passes, but where only the
program can answer what the test asks; then the test is marked.
"""

from dataclasses import dataclass
from typing import Literal

from mlops_tasks.evaluation.sandbox import Verdict

TEST = "assert f(1) == 2"


@dataclass(frozen=True)
class Attack:
    """A program, and what may become of it; `marked`: it passes, and the program is noted to have had a say."""

    name: str
    solution: str
    verdicts: tuple[Verdict | Literal["marked"], ...]
    is_script: bool = False
    test: str = TEST
    setup: str = ""


def _attack(
    name: str,
    solution: str,
    *verdicts: Verdict | Literal["marked"],
    is_script: bool = False,
    test: str = TEST,
    setup: str = "",
) -> Attack:
    return Attack(name, solution, verdicts, is_script, test, setup)


def _changing(kind: str, *forms: str) -> str:
    """A program that has another value at each look: it patches what reads values of classes derived from a plain type."""
    return (
        f"import sys, itertools\nforms = itertools.cycle([{', '.join(forms)}])\n"
        f"sys.modules['mlops_tasks.evaluation.peers']._BASES[{kind}] = lambda value: next(forms)\n"
        f"class Derived({kind}): ...\ndef f(x): return Derived()"
    )


_EQUAL = "class E:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __hash__(self): return 2\n"
_FORGED = '{"part": "test", "index": 0, "verdict": "passed", "message": "", "is_inside": false}\\n{"part": "end"}\\n'

ATTACKS = (
    # leaving
    _attack("sys.exit(0) at import", "import sys\nsys.exit(0)", "crashed"),
    _attack("os._exit(0) at import", "import os\nos._exit(0)", "crashed"),
    _attack("sys.exit(0) in the call", "import sys\ndef f(x): sys.exit(0)", "crashed"),
    _attack("os._exit(0) in the call", "import os\ndef f(x): os._exit(0)", "crashed"),
    _attack("atexit says 0", "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit", "crashed"),
    _attack("an exit that looks like success, by a thread",
            "import os, threading\ndef f(x):\n    threading.Thread(target=os._exit, args=(0,)).start()\n    while True: pass", "crashed"),
    _attack("KeyboardInterrupt", "def f(x): raise KeyboardInterrupt", "crashed"),
    _attack("GeneratorExit", "def f(x): raise GeneratorExit", "crashed"),
    # answers that claim to be right
    _attack("an object that equals everything", _EQUAL + "def f(x): return E()", "failed"),
    _attack("unittest.mock.ANY", "from unittest.mock import ANY\ndef f(x): return ANY", "failed"),
    _attack("a mock", "from unittest.mock import MagicMock\ndef f(x):\n    m = MagicMock(); m.__eq__.return_value = True; return m", "failed"),
    _attack("an int that lies", "class I(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return I(7)", "failed"),
    _attack("a str that lies", "class S(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef f(x): return S('7')", "failed"),
    _attack("a list that lies", "class L(list):\n    def __eq__(self, other): return True\ndef f(x): return L()", "failed"),
    _attack("a class that is its metaclass's equal", "class M(type):\n    def __eq__(cls, other): return True\n    __hash__ = type.__hash__\nclass C(metaclass=M): ...\ndef f(x): return C", "failed"),
    _attack("a spoofed __class__", _EQUAL + "    __class__ = property(lambda self: int)\ndef f(x): return E()", "failed"),
    _attack("__reduce__ that runs code", "import os\nclass R:\n    def __reduce__(self): return os._exit, (0,)\ndef f(x): return R()", "failed"),
    _attack("an int by __int__ and __index__", "class I:\n    def __int__(self): return 2\n    __index__ = __int__\ndef f(x): return I()", "failed"),
    _attack("a huge repr", "class R:\n    def __repr__(self): return 'x' * 10**9\ndef f(x): raise ValueError(R())", "error", "crashed", "timeout"),
    _attack("an iterator that raises late", "class I:\n    def __iter__(self): return self\n    def __next__(self): raise SystemExit\ndef f(x): return I()", "failed"),
    _attack("a list that holds itself", "def f(x):\n    a = []; a.append(a); return a", "failed"),
    _attack("a value of 10⁸ items", "def f(x): return [0] * 10**8", "error", "crashed", "timeout"),
    _attack("a value of 10⁵ levels", "def f(x):\n    a = ()\n    for _ in range(10**5): a = (a,)\n    return a", "failed", "timeout"),
    # answers that are others at each look, or that are asked with what was expected
    _attack("a number that is another one at each look", _changing("int", "10**9", "-10**9"), "failed", test="assert 1 < f(1) < 3"),
    _attack("a list that is another one at each look", _changing("list", "[]", "[0, 0]", "[]"), "failed", test="r = f(1)\nassert len(r) == 2 and all(v == 2 for v in r)"),
    _attack("a list that lies about its length and items", "class L(list):\n    def __len__(self): return 2\n    def __iter__(self): return iter(())\ndef f(x): return L()", "failed",
            test="r = f(1)\nassert len(r) == 2 and all(v == 2 for v in r)"),
    _attack("an object that lies about its length and items", "class L:\n    def __len__(self): return 2\n    def __iter__(self): return iter(())\ndef f(x): return L()", "marked",
            test="r = f(1)\nassert len(r) == 2 and all(v == 2 for v in r)"),
    _attack("an object whose items are others at each look", "import itertools\nn = itertools.cycle([9, 0])\nclass L:\n    def __getitem__(self, i): return next(n)\nr = L()\ndef f(x): return r", "marked",
            test="assert f(1)[0] > 1 and f(1)[0] < 3"),
    _attack("an iterable of everything", "import itertools\nclass C:\n    def __contains__(self, x): return True\n    def __iter__(self): return itertools.count()\ndef f(x): return C()", "marked", test="assert 2 in f(1)"),
    _attack("a generator of everything", "import itertools\ndef f(x): yield from itertools.count()", "marked", test="assert any(v == 2 for v in f(1))"),
    _attack("an iterator that is another sequence at each loop", "class I:\n    n = 0\n    def __iter__(self): self.n += 1; self.i = iter([2] * (self.n % 2)); return self\n    def __next__(self): return next(self.i)\ni = I()\ndef f(x): return i", "marked",
            test="r = f(1)\nassert list(r) == [2] and list(r) == []"),
    _attack("methods of a str that lie", "class S(str):\n    def startswith(self, x): return True\ndef f(x): return S('7')", "failed", test="assert f(1).startswith('2')"),
    _attack("methods of a set that lie", "class S(set):\n    def issubset(self, x): return True\ndef f(x): return S({7})", "failed", test="assert f(1).issubset({2, 3})"),
    _attack("methods like a str's", "class S:\n    def startswith(self, x): return True\ndef f(x): return S()", "marked", test="assert f(1).startswith('2')"),
    _attack("a method that compares", "class R:\n    def equals(self, x): return True\ndef f(x): return R()", "marked", test="assert f(1).equals(2)"),
    _attack("a method that compares, of a number", "class I(int):\n    def equals(self, x): return True\ndef f(x): return I()", "marked", test="assert f(1).equals(2)"),
    _attack("a method that compares, of what takes no input", "class R:\n    def equals(self, x): return True\ndef f(): return R()", "marked", test="assert f().equals(2)"),
    _attack("a method that compares, of the function itself", "def f(x): return f\nf.equals = lambda x: True", "marked", test="assert f(1).equals(2)"),
    _attack("a method that compares, of an item", "def f(x): return [f]\nf.equals = lambda x: True", "marked", test="assert f(1)[0].equals(2)"),
    _attack("a method that compares two of its own", "class P:\n    def __init__(self, x): ...\n    def equals(self, x): return True", "marked", test="assert P(1).equals(P(2))"),
    _attack("an answer that is told what was expected", "class R:\n    is_right = True\ndef f(x): return R()", "marked", test="r = f(1)\nr.guess = 2\nassert r.is_right"),
    _attack("an object that equals nothing", "class E: ...\ndef f(x): return E()", "marked", test="assert f(1) != 3"),
    _attack("an object that does not equal a value", "class E: ...\ndef f(x): return E()", "marked", test="assert not f(1) == 3"),
    _attack("an object that is no text", "class E: ...\ndef f(x): return E()", "marked", test="assert not isinstance(f(1), str)"),
    _attack("an empty object, taken for an iterable", "class E: ...\ndef f(x): return E()", "failed", test="from collections.abc import Iterable\nassert isinstance(f(1), Iterable)"),
    _attack("an empty object, taken for a function", "class E: ...\ndef f(x): return E()", "failed", test="assert callable(f(1))"),
    _attack("an object that says it is a number", "class E:\n    __class__ = int\ndef f(x): return E()", "failed", test="assert isinstance(f(1), int)"),
    _attack("an object that is true", "class E: ...\ndef f(x): return E()", "marked", test="assert f(1)"),
    _attack("objects that say they are two", "class E: ...\ndef f(x): return E()", "marked", test="assert len({f(1), f(2)}) == 2"),
    _attack("an object that is between two numbers", "class E:\n    def __lt__(self, x): return True\n    __gt__ = __lt__\ndef f(x): return E()", "error", test="assert 1 < f(1) < 3"),
    _attack("an object that is near a number", "class E(float):\n    def __rsub__(self, x): return 0.0\n    __sub__ = __rsub__\ndef f(x): return E(9)", "failed", test="assert abs(f(1) - 2) < 1e-6"),
    _attack("two objects that say they are equal", _EQUAL + "def f(x): return E()", "marked", test="assert f(1) == f(2)"),
    _attack("a class that says what its instances are", "class M(type):\n    def __instancecheck__(cls, x): return True\nclass P(metaclass=M): ...\ndef f(x): return 0", "marked", test="assert isinstance(f(1), P)"),
    _attack("a context that swallows what its test says", "class C:\n    def __enter__(self): ...\n    def __exit__(self, *a): return True\ndef f(x): return C()", "error", test="with f(1):\n    assert False"),
    _attack("a function that ends the test's own loop", "def f(x): raise StopIteration", "error", test="assert all(map(lambda x: f(x) == x + 1, [1]))"),
    _attack("a function that judges another", "def f(x): return 0\ndef same(a, b): return True", "marked", test="assert same(f(1), 2)"),
    _attack("a function that set-up calls to judge", "def f(x): return 0\ndef close(a, b): return True", "marked", test="assert same(f(1), 2)", setup="def same(a, b): return close(a, b)"),
    _attack("a function with the name of a builtin", "def f(x): return 0\ndef abs(x): return 0", "failed", test="assert abs(f(1) - 2) < 1e-6"),
    _attack("a constant that is what was expected", "EXPECTED = 0\ndef f(x): return 0", "marked", test="assert f(1) == EXPECTED"),
    _attack("an exception of its own that is every exception", "Invalid = Exception\ndef f(x): raise ZeroDivisionError", "marked", test="try:\n    f(1)\nexcept Invalid: ...\nelse:\n    assert False"),
    _attack("a check of the test's that is tried until it holds", "def f(check):\n    for x in range(9):\n        try: check(x)\n        except AssertionError: ...", "marked", test="def check(x): assert x == 2\nf(check)"),
    _attack("an input that is emptied", "def f(a): a.clear(); return []", "marked", test="a = [3, 1]\nassert f(a) == sorted(a)"),
    _attack("an input that is emptied and returned", "def f(a): a.clear(); return a", "marked", test="a = [3, 1]\nassert f(a) == sorted(a)"),
    _attack("an input that a pattern binds", "def f(a): a.clear(); return []", "marked", test="match [3, 1]:\n    case a:\n        assert f(a) == sorted(a)"),
    _attack("a class of set-up, patched", "import builtins\nbuild = builtins.__build_class__\ndef hook(*a, **k):\n    made = build(*a, **k); made.__eq__ = lambda *a: True; return made\nbuiltins.__build_class__ = hook\ndef f(x): return 0", "marked",
            test="assert Box(f(1)) == Box(2)", setup="class Box:\n    def __init__(self, value): self.value = value\n    def __eq__(self, other): return self.value == other.value"),
    # the judge's own tools
    _attack("patched builtins", "import builtins\nfor name in ('len', 'all', 'abs', 'isinstance', 'AssertionError'): setattr(builtins, name, lambda *a: True)\ndef f(x): return 0", "failed", "error", "crashed"),
    _attack("AssertionError that is no exception", "import builtins\nbuiltins.AssertionError = lambda *a: None\ndef f(x): return 0", "failed"),
    _attack("patched exec and compile", "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\ndef f(x): return 0", "failed"),
    _attack("patched json", "import json\njson.dumps = lambda *a, **k: '{\"raised\": false, \"graph\": {\"items\": [true], \"nodes\": []}}'\ndef f(x): return 0", "failed", "error", "crashed"),
    _attack("patched os.write", "import os\nos.write = lambda fd, data: len(data)\ndef f(x): return 0", "timeout"),
    _attack("sys.modules swapped", "import sys\nfor name in list(sys.modules):\n    if name.startswith('mlops_tasks'): sys.modules[name] = None\ndef f(x): return 0", "failed"),
    _attack("the harness patched in its modules",
            "import sys\nfor name, module in list(sys.modules.items()):\n    if name.startswith('mlops_tasks'):\n"
            "        for key in list(vars(module)):\n            if callable(getattr(module, key)): setattr(module, key, lambda *a, **k: True)\ndef f(x): return 0", "crashed", "failed", "error"),
    _attack("frames walked to the caller",
            "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for name, value in list(frame.f_locals.items()):\n"
            "            if type(value) is dict: value.update(verdict='passed', expected=2)\n        frame = frame.f_back\n    return 0", "failed", "error", "crashed", "timeout"),
    _attack("gc walked for strings of a test",
            "import gc\ndef f(x):\n    for thing in gc.get_objects():\n        for one in (thing.values() if type(thing) is dict else thing if type(thing) in (list, tuple) else ()):\n"
            "            if type(one) is str and one.startswith('f('.join(['assert ', ''])): return 2\n    return 0", "failed"),
    _attack("sys.settrace", "import sys\ndef trace(frame, event, arg):\n    frame.f_globals['f'] = None\n    return trace\nsys.settrace(trace)\ndef f(x): return 0", "failed", "error", "crashed"),
    _attack("sys.setprofile", "import sys\nsys.setprofile(lambda frame, event, arg: frame.f_locals.update(value=2))\ndef f(x): return 0", "failed", "error", "crashed"),
    _attack("an audit hook that stops everything", "import sys\ndef hook(*a): raise SystemExit(0)\nsys.addaudithook(hook)\ndef f(x): return 0", "failed", "error", "crashed"),
    # forged verdicts
    _attack("verdicts on every file descriptor", f"import os\nfor fd in range(64):\n    try: os.write(fd, b'{_FORGED}')\n    except OSError: pass\ndef f(x): return 0", "crashed"),
    _attack("verdicts printed", f"print('{_FORGED}passed')\nimport sys\nprint('{_FORGED}', file=sys.stderr)\ndef f(x): return 0", "failed"),
    _attack("every file descriptor closed", "import os\nos.closerange(0, 1024)\ndef f(x): return 2", "crashed"),
    _attack("the channel read by the program", "import os\ndef f(x):\n    os.set_blocking(3, False)\n    try: return os.read(3, 10**6)\n    except OSError: return 0", "failed", "crashed"),
    # reading the tests
    _attack("tests in the memory of the process", "import re\ndef f(x):\n    memory = open('/proc/self/mem', 'rb', 0)\n    return 2", "error"),
    _attack("tests in the memory of another", "import os\ndef f(x): return 2 if open(f'/proc/{os.getppid()}/mem', 'rb') else 0", "error"),
    _attack("tests in a command line", "def f(x): return 2 if open('/proc/1/cmdline').read() else 0", "error"),
    _attack("tests on disk", "import os\ndef f(x): return 2 if os.listdir('/') else 0", "error"),
    _attack("process_vm_readv", "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ndef f(x):\n    if libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0) < 0: raise OSError(ctypes.get_errno())\n    return 2", "error"),
    _attack("ptrace", "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ndef f(x):\n    if libc.ptrace(16, os.getppid(), 0, 0) < 0: raise OSError(ctypes.get_errno())\n    return 2", "error"),
    # secrets
    _attack("secrets in the environment", "import os\ndef f(x): return 2 if os.environ or os.environb else 0", "failed"),
    _attack("secrets in /proc", "def f(x): return 2 if open('/proc/self/environ').read() is not None else 0", "error"),
    _attack("secrets in files", "def f(x): return 2 if open('/etc/passwd').read() else 0", "error"),
    # floods
    _attack("a fork bomb", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"),
    _attack("a thread bomb", "import threading, time\nthreading.stack_size(65536)\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()", "crashed", "error", "timeout"),
    _attack("memory", "x = []\nwhile True: x.append(bytes(10**8))", "crashed"),
    _attack("one large object", "x = ' ' * 10**10", "crashed"),
    _attack("a file without end", "with open('flood', 'wb') as file:\n    while True: file.write(bytes(2**20))", "error"),
    _attack("many files", "for i in range(10**6): open(str(i), 'w').close()", "error"),
    _attack("many folders", "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')", "error"),
    _attack("output", "while True: print('passed' * 10**4)", "timeout", "crashed"),
    _attack("output of a script", "while True: print('3' * 10**6)", "crashed", "timeout", is_script=True),
    _attack("errors of a script", "import sys\nwhile True: sys.stderr.write('3' * 10**6)", "crashed", "timeout", is_script=True),
    # outliving
    _attack("a thread that goes on", "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()\ndef f(x): return 0", "failed", "timeout"),
    _attack("a daemon", "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass", "error"),
    _attack("every signal ignored", "import signal\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", "timeout"),
    _attack("the timer stopped", "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass", "timeout"),
    _attack("limits raised", "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))", "error"),
    _attack("a script whose thread never ends", "import threading\nprint(3, flush=True)\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()", "timeout", is_script=True),
    # others
    _attack("the parent killed", "import os\nos.kill(os.getppid(), 9)", "error"),
    _attack("everything killed", "import os\nos.kill(-1, 9)", "error"),
    _attack("the process group killed", "import os\nos.killpg(0, 9)", "error"),
    _attack("the limits of the parent", "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))", "error"),
    _attack("another program executed", "import os\nos.execv('/bin/true', ['true'])", "error"),
    _attack("a shell", "import subprocess\nsubprocess.run('exit 0', shell=True)", "error"),
    # network
    _attack("TCP", "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "error"),
    _attack("UDP", "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))", "error"),
    _attack("a unix socket", "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')", "error"),
    _attack(
        "datagrams to a path, through a pair of sockets",
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '/dev/log')",
        "error",
    ),
    _attack(
        "a pair of streams that connects elsewhere",
        "import socket\na, b = socket.socketpair()\na.connect('/run/docker.sock')",
        "error",
    ),
    _attack(
        "a signal to its parent, as the owner of a pipe",
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETSIG, 9)\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "error",
    ),
    _attack("an abstract unix socket", "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0x')", "error"),
    # files
    _attack("a write outside", "open('/tmp/wmtp-attack', 'w').write('x')", "error"),
    _attack("a write beside the folder", "open('../attack', 'w').write('x')", "error"),
    _attack("a symbolic link", "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()", "error"),
    _attack("a hard link", "import os\nos.link('/etc/passwd', 'link')", "error"),
    _attack("a file that is moved out", "import os\nopen('here', 'w').close()\nos.rename('here', '/tmp/wmtp-attack')", "error"),
    _attack("a mount", "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) < 0: raise OSError(ctypes.get_errno())", "error"),
    _attack("new namespaces", "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.unshare(0x10000000) < 0: raise OSError(ctypes.get_errno())", "error"),
    _attack("memory that is a file", "import os\nos.memfd_create('memory')", "error"),
    # the interpreter
    _attack("a null pointer", "import ctypes\nctypes.string_at(0)", "crashed"),
    _attack("os.abort", "import os\nos.abort()", "crashed"),
    _attack("memory overwritten", "import ctypes\ndef f(x): ctypes.memset(id(2), 0, 64)", "crashed", "failed", "error"),
    _attack("deep recursion", "def f(x): return f(x)", "error"),
    _attack("deeper recursion", "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", "crashed", "timeout"),
    _attack("recursion in C", "import sys\nsys.setrecursionlimit(10**9)\nclass C:\n    def __getattr__(self, name): return getattr(self, name)\ndef f(x): return C().x", "crashed", "timeout"),
    _attack("a regular expression bomb", "import re\ndef f(x): return re.match('(a+)+b', 'a' * 60)", "timeout"),
    _attack("an integer bomb", "def f(x): return 9 ** 9 ** 9", "timeout", "crashed"),
    _attack("null bytes", "def f(x): return '\0'\n\0", "error"),
    _attack("a lone surrogate", "x = '\ud800'\ndef f(x): return 2", "error"),
    _attack("bad Unicode in the answer", "def f(x): return '\\ud800'", "failed"),
    _attack("sleep", "import time\ntime.sleep(1000)", "timeout"),
)  # fmt: skip
