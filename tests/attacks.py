"""Programs that try to be judged right without being right, or to do harm. The table in docs/sandbox.md is written from this one.

Each is judged by `assert f(1) == 2` unless it is a script, which gets "1 2" to print "3". None passes.
"""

from dataclasses import dataclass

from mlops_tasks.evaluation.sandbox import Verdict


@dataclass(frozen=True)
class Attack:
    """A program, and the verdicts that it may get."""

    name: str
    solution: str
    verdicts: tuple[Verdict, ...]
    is_script: bool = False


def _attack(name: str, solution: str, *verdicts: Verdict, is_script: bool = False) -> Attack:
    return Attack(name, solution, verdicts, is_script)


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
    _attack("a value of 10⁵ levels", "def f(x):\n    a = ()\n    for _ in range(10**5): a = (a,)\n    return a", "failed"),
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
