"""python3 -m tests [NAME...]: set up what the tests need, run them, end with `N passed, N failed, N skipped`.

Without names every test module runs in a process of its own, a few at a time: most tests wait for nodes, and a module
that hangs fails alone. Ctrl-C, SIGTERM and SIGHUP end all, with whatever the tests have started; what was not run to its
end counts as failed.
With CI=true in the environment a skipped test counts as a failed one.
"""

import argparse
import ctypes
import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
MODULE_TIMEOUT = 600             # seconds for one module
CLEANUP_TIMEOUT = 8              # seconds for the cleanups of a test that is interrupted
AT_ONCE = 2                      # most tests wait, but those of speed want a core of their own
TAIL = re.compile(r'^(\d+) passed, (\d+) failed, (\d+) skipped$', re.MULTILINE)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_CHILD_SUBREAPER = 36      # linux/prctl.h


def tail(passed, failed, skipped):
    return '%d passed, %d failed, %d skipped' % (passed, failed, skipped)


def take_signals(handler):
    """Handle what ends programs, and set the other signals back, whatever nohup or the & of a shell did to them.

    Programs that the tests start inherit what is ignored or blocked; what is handled here has its default there.
    """
    for number in set(signal.Signals) - {signal.SIGPIPE, signal.SIGXFSZ}:       # for these subprocess does it
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in ENDING:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


# ---- the process in which tests run --------------------------------------------------------------------------------------

class Interrupted(BaseException):
    """A signal came. Unlike KeyboardInterrupt it is the failure of the test, and unittest does the test's cleanups."""


class Result(unittest.TextTestResult):
    """Counts what has passed; `last` is the newest one."""

    passed, last = 0, None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Result.last = self

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self.passed += 1

    def counts(self):
        bad = [case for case, _ in self.failures + self.errors] + self.unexpectedSuccesses
        failed = len({getattr(case, 'test_case', case).id() for case in bad})   # a case once, whatever its subtests
        skipped = len(self.skipped)
        if os.environ.get('CI', '').lower() in ('true', '1'):
            for case, reason in self.skipped:
                print('FAIL (skipped in CI): %s: %s' % (case, reason))
            failed, skipped = failed + skipped, 0
        return self.passed, max(failed, int(self.shouldStop)), skipped


def interrupt(number, frame):
    """End with this test; no further signal disturbs the cleanups."""
    for each in ENDING:
        signal.signal(each, lambda *_: None)
    if Result.last:
        Result.last.failfast = Result.last.shouldStop = True         # no other subtest, no other test
    raise Interrupted(signal.Signals(number).name)


def run_here(names):
    """Run named modules, classes or cases in this process; the exit status."""
    take_signals(interrupt)
    began, counts = time.monotonic(), (0, 1, 0)
    full = [name if name.startswith('tests.') else 'tests.' + name.replace('tests/', '').replace('.py', '')
            for name in names]
    try:
        suite = unittest.TestLoader().loadTestsFromNames(full)
        unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result).run(suite)
    except Interrupted as error:                 # outside of a test
        print('%r while tests are loaded or a class is set up' % error)
    if Result.last:
        counts = Result.last.counts()
    print('\n%d s, Python %s' % (time.monotonic() - began, sys.version.split()[0]))
    print(tail(*counts), flush=True)
    return 1 if counts[1] else 0


# ---- the process that starts and ends those ------------------------------------------------------------------------------

def isolated():
    """What to put before a command so that it has a loopback interface of its own: two runs never meet, default ports
    are free, and what a real
    node broadcasts when it ends (on the default route) stays here. Nothing where this needs rights that the user has
    not."""
    # Addresses that nodes at 127.x.y.z connect from are of the loopback interface too, so this is like one host with
    # many nodes.
    command = ['unshare', '--net', 'sh', '-c',
               'ip link set lo up && ip route add default dev lo src 127.0.0.1 && exec "$@"', 'sh']
    try:
        works = not subprocess.call(command + ['true'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                    timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        works = False
    return command if works else []


def descendants(of):
    """The ids of the processes below one, in whatever session."""
    parents = {}
    for path in glob.glob('/proc/[0-9]*/stat'):
        try:
            with open(path) as file:
                state, parent = file.read().rpartition(')')[2].split()[:2]
        except OSError:
            continue
        if state != 'Z':
            parents[int(path.split('/')[2])] = int(parent)
    found, below = set(), {of}
    while below:
        below = {pid for pid, parent in parents.items() if parent in below}
        found |= below
    return found


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Part:
    """A process with tests, or the set-up, in a session of its own. Its output is kept, unless it is live."""

    def __init__(self, name, command, live=False):
        self.name, self.began, self.told = name, time.monotonic(), False
        self.output = None if live else tempfile.TemporaryFile()     # no pipe: whoever holds it open would be waited for
        self.popen = subprocess.Popen(command, cwd=os.path.dirname(HERE), stdin=None if live else subprocess.DEVNULL,
                                      stdout=self.output, stderr=None if live else subprocess.STDOUT,
                                      start_new_session=True)

    def tell(self):
        """Let it end with its cleanups; what it has started ends at once."""
        started, self.told = descendants(self.popen.pid), True
        os.kill(self.popen.pid, signal.SIGTERM)
        kill(started)

    def check_time(self):
        """End a module that takes too long."""
        seconds = 0 if self.output is None else time.monotonic() - self.began
        if seconds > MODULE_TIMEOUT + CLEANUP_TIMEOUT:
            kill(descendants(self.popen.pid) | {self.popen.pid})
        elif seconds > MODULE_TIMEOUT and not self.told:
            self.tell()

    def report(self):
        """Print what it said; its counts."""
        with self.output:
            self.output.seek(0)
            output = self.output.read().decode('utf-8', 'replace')
        seconds, found = time.monotonic() - self.began, TAIL.findall(output)
        counts = tuple(int(number) for number in found[-1]) if found else (0, 1, 0)
        print('\n===== %s: %s (%d s)\n%s' % (self.name, tail(*counts), seconds, TAIL.sub('', output).strip()), flush=True)
        return counts


class Parts:
    """Starts parts, and ends all that they have started. `signals` are those that came."""

    def __init__(self):
        self.signals, self.running, self.totals = [], {}, (0, 0, 0)
        take_signals(lambda number, frame: self.signals.append(number))
        try:                     # processes whose parent has ended become children of this one
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        except AttributeError:
            pass                 # not Linux

    def start(self, *args, **kwargs):
        part = Part(*args, **kwargs)
        self.running[part.popen.pid] = part
        return part

    def wait(self, most_signals=0, timeout=float('inf')):
        """Whether one of the parts has ended, before a signal or the timeout. Counts it."""
        deadline = time.monotonic() + timeout
        while self.running and len(self.signals) <= most_signals and time.monotonic() < deadline:
            pid, status = os.waitpid(-1, os.WNOHANG)                 # orphans too
            part = self.running.pop(pid, None)
            if part:
                part.popen.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                if part.output:
                    self.totals = tuple(map(sum, zip(self.totals, part.report())))
                return True
            if not pid:
                for part in self.running.values():
                    part.check_time()
                time.sleep(0.05)
        return False

    def run_live(self, command):
        """Run a part that has the terminal for its output; its (id, exit status)."""
        part = self.start('', command, live=True)
        self.wait()
        self.end()
        return part.popen.pid, part.popen.returncode

    def run_all(self, names, command):
        """Run the command with each of these names, a few at a time; what is not run has failed."""
        waiting = sorted(names, reverse=True)
        while (waiting or self.running) and not self.signals:
            while waiting and len(self.running) < AT_ONCE:
                name = waiting.pop()
                self.start(name, command + [name])
            self.wait()
        self.end()
        if waiting:
            print('\nnot run: %s' % ', '.join(reversed(waiting)))
            self.totals = (self.totals[0], self.totals[1] + len(waiting), self.totals[2])

    def end(self):
        """End what runs: after a second signal, or some seconds, without its cleanups."""
        for part in self.running.values():
            part.tell()
        deadline = time.monotonic() + CLEANUP_TIMEOUT
        while self.wait(1, deadline - time.monotonic()):
            pass
        deadline = time.monotonic() + CLEANUP_TIMEOUT
        while (self.running or descendants(os.getpid())) and time.monotonic() < deadline:
            kill(descendants(os.getpid()))
            self.wait(float('inf'), 1) or time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(prog='python3 -m tests', description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help='module, class or case, e.g. test_http or test_http.Access')
    parser.add_argument('--prepared', action='store_true', help=argparse.SUPPRESS)      # without the set-up
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)          # in this process
    options = parser.parse_args()
    if options.here:
        return run_here(options.names)
    parts = Parts()
    from . import environment    # looks for Pythons, which takes a second: signals are handled by now
    if not options.prepared and not parts.signals and environment.missing():
        environment.discard(parts.run_live([sys.executable, '-m', 'tests.environment'])[0])
    began, command = time.monotonic(), isolated() + [sys.executable] + environment.STRICT + ['-m', 'tests', '--here']
    names = options.names or [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(HERE, 'test_*.py'))]
    if options.names and not parts.signals:
        status = parts.run_live(command + names)[1]
        if status not in (0, 1):                 # it came to no count
            print('\n' + tail(0, 1, 0), flush=True)
    else:
        parts.run_all(names, command)
        print('\n%d s, Python %s' % (time.monotonic() - began, sys.version.split()[0]))
        print(tail(*parts.totals), flush=True)
        status = 1 if parts.totals[1] else 0
    return 128 + parts.signals[0] if parts.signals else status


if __name__ == '__main__':
    sys.exit(main())
