"""python3 -m tests [NAME...]: set up what the tests need, run them, end with `N passed, N failed, N skipped`.

Without names every test module runs in a process of its own, a few at a time: most tests wait for nodes, and a module
that hangs fails alone.
With CI=true in the environment a skipped test counts as a failed one.
"""

import argparse
import concurrent.futures
import glob
import os
import re
import signal
import subprocess
import sys
import time
import unittest

from . import environment

HERE = os.path.dirname(os.path.abspath(__file__))
MODULE_TIMEOUT = 600             # seconds for one module
AT_ONCE = 2                      # most tests wait, but those of speed want a core of their own
TAIL = re.compile(r'^(\d+) passed, (\d+) failed, (\d+) skipped$', re.MULTILINE)


def tail(passed, failed, skipped):
    return '%d passed, %d failed, %d skipped' % (passed, failed, skipped)


def run_here(names):
    """Run named modules, classes or cases in this process; (passed, failed, skipped)."""
    loader = unittest.TestLoader()
    full = [name if name.startswith('tests.') else 'tests.' + name.replace('tests/', '').replace('.py', '')
            for name in names]
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(loader.loadTestsFromNames(full))
    bad = [case for case, _ in result.failures + result.errors] + result.unexpectedSuccesses
    failed = len({getattr(case, 'test_case', case).id() for case in bad})       # a case once, whatever its subtests
    skipped = len(result.skipped)
    passed = max(0, result.testsRun - failed - skipped)
    if os.environ.get('CI', '').lower() in ('true', '1'):
        for case, reason in result.skipped:
            print('FAIL (skipped in CI): %s: %s' % (case, reason))
        failed, skipped = failed + skipped, 0
    return passed, failed, skipped


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


def run_module(name, prefix):
    """One module in a process of its own; (name, seconds, output, counts)."""
    began = time.monotonic()
    command = prefix + [sys.executable] + environment.STRICT + ['-m', 'tests', '--prepared', name]
    process = subprocess.Popen(command, cwd=environment.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output = process.communicate(timeout=MODULE_TIMEOUT)[0].decode('utf-8', 'replace')
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)      # its cleanups run (see below)
        try:
            output = process.communicate(timeout=30)[0].decode('utf-8', 'replace')
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0].decode('utf-8', 'replace')
        output += '\n%s: no end after %d s\n0 passed, 1 failed, 0 skipped\n' % (name, MODULE_TIMEOUT)
    found = TAIL.findall(output)
    counts = tuple(int(number) for number in found[-1]) if found else (0, 1, 0)
    return name, time.monotonic() - began, TAIL.sub('', output).strip(), counts


def run_all():
    prefix = isolated()
    names = sorted(os.path.basename(path)[:-3] for path in glob.glob(os.path.join(HERE, 'test_*.py')))
    totals = (0, 0, 0)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run_module, name, prefix) for name in names]):
            name, seconds, output, counts = future.result()
            print('\n===== %s: %s (%d s)\n%s' % (name, tail(*counts), seconds, output), flush=True)
            totals = tuple(a + b for a, b in zip(totals, counts))
    return totals


def interrupted(signum, frame):
    raise KeyboardInterrupt      # so that SIGTERM too unwinds through the tests' cleanups


def main():
    parser = argparse.ArgumentParser(prog='python3 -m tests', description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help='module, class or case, e.g. test_http or test_http.Access')
    parser.add_argument('--prepared', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    if not options.prepared:
        for reason in environment.prepare():
            print(reason, flush=True)
        if options.names:
            command = isolated() + [sys.executable] + environment.STRICT + ['-m', 'tests', '--prepared'] + options.names
            os.execvp(command[0], command)
    began = time.monotonic()
    counts = run_here(options.names) if options.names else run_all()
    print('\n%d s, Python %s' % (time.monotonic() - began, sys.version.split()[0]))
    print(tail(*counts), flush=True)
    return 1 if counts[1] else 0


if __name__ == '__main__':
    sys.exit(main())
