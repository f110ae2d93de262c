"""Runs `mood-submission` as on a system that is not POSIX: `python other_desk.py` with lines of words on standard input.

What Windows lacks is hidden before anything of the package is imported: modules, functions, signals, the files of /proc and
/sys. Files that are open can be neither moved nor deleted. Large libraries are imported first, since their builds for Linux ask
for Linux as they are loaded. `view FOLDER` stands for `view`: it serves a page, fetches it, and ends.
"""

import importlib.abc
import os
import shlex
import signal
import sys
import traceback

import matplotlib.pyplot  # noqa: F401
import nibabel  # noqa: F401
import numpy  # noqa: F401
import scipy  # noqa: F401
import SimpleITK  # noqa: F401
import torch.distributed  # noqa: F401

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix_ipc", "readline")
OF_OS = """fork forkpty register_at_fork fchmod fchown chown lchown chroot confstr ctermid fpathconf pathconf sysconf statvfs
fstatvfs getuid geteuid getgid getegid getgroups getlogin getpgid getpgrp getpriority getsid initgroups killpg lockf major minor
mkfifo mknod nice openpty posix_spawn posix_spawnp sched_getaffinity sched_setaffinity sched_yield setpgid setsid setuid sync
ttyname uname wait wait3 wait4 waitid O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_SYNC O_DIRECTORY EX_OK""".split()
SIGNALS = """SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGWINCH setitimer alarm
pause sigwait pthread_kill pthread_sigmask siginterrupt""".split()
HIDDEN_FOLDERS = ("/proc", "/sys", "/dev/shm")


class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def is_open(path) -> bool:
    """Whether this process has the file open."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    for number in range(3, 200):
        try:
            if os.path.samestat(os.fstat(number), there):
                return True
        except OSError:
            pass
    return False


def refusing_open_files(function):
    def as_on_windows(path, *others, **options):
        if is_open(path):
            raise PermissionError(13, "The process cannot access the file because it is being used", path)
        return function(path, *others, **options)

    return as_on_windows


def hide() -> None:
    """Hide what this file's docstring says."""
    sys.meta_path.insert(0, Refusing())
    for name in MODULES:
        sys.modules.pop(name, None)
    for module, names in ((os, OF_OS), (signal, SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, refusing_open_files(getattr(os, name)))

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(HIDDEN_FOLDERS):
            raise FileNotFoundError(2, "No such file or directory", arguments[0])

    sys.addaudithook(hook)


def view(folder: str) -> int:
    """Serve a page as `view` does, and fetch it."""
    import threading
    import urllib.request
    from pathlib import Path

    from mood_submission.cli.view import server

    serving, address = server(Path(folder), 0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    with urllib.request.urlopen(address) as answer:
        same = answer.read() == (Path(folder) / "index.html").read_bytes()
    serving.shutdown()
    serving.server_close()
    return 0 if same else 1


def main() -> None:
    hide()
    from mood_submission.cli import main as run

    for line in sys.stdin:
        words = shlex.split(line)
        try:
            status = view(words[1]) if words[0] == "view" else run(words)
        except Exception:
            traceback.print_exc()
            status = 99
        print(f"STATUS {words[0]} {status}", flush=True)


if __name__ == "__main__":
    main()
