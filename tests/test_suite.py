"""The test runner itself: it ends with all that it has started when a signal comes, and whatever started it."""

import glob
import os
import re
import shutil
import signal
import sys
import time
import uuid

from . import environment, lab

SOON = 20                        # seconds: cleanups have 8, and the machine is busy
MARK = 'DISPYADMIN_TEST_RUN'

# Tests that last. What they start ignores signals, and some of it has lost its parent and its session.
LASTING = '''
import os, sys, time
from . import lab
CODE = """import signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)"""

class Lasting(lab.LabTest):
    @classmethod
    def tearDownClass(cls):
        print('the cleanup of the class')

    def test_first(self):
        pass

    def test_lasts(self):
        self.addCleanup(print, 'the cleanup of the test')
        folder = self.folder()
        program = self.start(lab.Process, ['sh', '-c', 'setsid sh -c "sleep 600 & sleep 600" & exec "$@"', 'sh',
                                           sys.executable, '-c', CODE])
        lab.wait_for(lambda: program.out)
        with open(os.environ['STARTED'], 'a') as file:
            file.write(folder + chr(10))
        for number in range(2):
            with self.subTest(number):
                time.sleep(600)

    def test_not_reached(self):
        print('not to be seen')
'''
SHORT = '''
import unittest
class Short(unittest.TestCase):
    def test(self):
        print('not to be seen')
'''
HANGING = '''
import os, time, unittest
class Hanging(unittest.TestCase):
    def hang(self):
        with open(os.environ['STARTED'], 'a') as file:
            file.write('hanging' + chr(10))
        time.sleep(600)

    def test(self):
        self.addCleanup(self.hang)
        self.hang()
'''
# What a program inherits that a test starts.
INHERITING = '''
from . import lab
class Inheriting(lab.LabTest):
    def test(self):
        program = self.start(lab.Process, ['cat', '/proc/self/status'])
        self.assertEqual(program.wait(), 0)
        for name in ('SigBlk', 'SigIgn'):
            self.assertIn(name + ':' + chr(9) + '0' * 16, program.out)
'''
BLOCKED = '''
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
os.execv(sys.argv[1], sys.argv[1:])
'''


class Run(lab.LabTest):
    """python3 -m tests in a folder with some modules of its own."""

    def begin(self, *names, before=(), limit=None, **modules):
        """Start it with modules of these texts, and perhaps another limit for cleanups; names are those to run."""
        root, self.mark = self.folder(), uuid.uuid4().hex
        self.started = os.path.join(root, 'started')
        os.mkdir(os.path.join(root, 'tests'))
        for name in ('__init__', '__main__', 'environment', 'lab', 'wire'):
            shutil.copy(os.path.join(environment.ROOT, 'tests', name + '.py'), os.path.join(root, 'tests'))
        for name, text in modules.items():
            with open(os.path.join(root, 'tests', 'test_%s.py' % name), 'w') as file:
                file.write(text)
        if limit:
            self.write_limit(os.path.join(root, 'tests', '__main__.py'), limit)
        env = dict(os.environ, STARTED=self.started, HOME=root, **{MARK: self.mark})
        return self.start(lab.Process, list(before) + [sys.executable, '-m', 'tests', '--prepared'] + list(names),
                          cwd=root, env=env)

    def write_limit(self, path, limit):
        with open(path) as file:
            text, count = re.subn('^CLEANUP_TIMEOUT = .*', 'CLEANUP_TIMEOUT = %d' % limit, file.read(), flags=re.MULTILINE)
        self.assertEqual(count, 1)
        with open(path, 'w') as file:
            file.write(text)

    def wait_started(self, run, count):
        """Wait for that many tests to last; what they wrote."""
        def lines():
            self.assertTrue(run.running(), run.output())
            if os.path.exists(self.started):
                with open(self.started) as file:
                    found = file.read().splitlines()
                return found if len(found) == count else None
        return lab.wait_for(lines, 2 * lab.START_TIMEOUT, run.output)

    def processes(self):
        """All that has the mark in its environment; zombies have none."""
        found = []
        for path in glob.glob('/proc/[0-9]*/environ'):
            try:
                with open(path, 'rb') as file:
                    found += [path] if self.mark.encode() in file.read() else []
            except OSError:
                pass
        return found

    def check_end(self, run, status, counts):
        """It ends soon, with all processes."""
        self.assertEqual(run.wait(SOON), status, run.output())
        self.assertEqual(self.processes(), [])
        self.assertEqual(run.out[-1], counts, run.output())


class Ending(Run):
    def test_signals(self):
        """A signal ends the tests that run, with their cleanups; what was not run has not passed."""
        for number, names in ((signal.SIGINT, ()), (signal.SIGINT, ['test_b']), (signal.SIGTERM, ()),
                              (signal.SIGTERM, ['test_b']), (signal.SIGHUP, ['test_b'])):
            with self.subTest(signal=number, names=names):
                run = self.begin(*names, a=LASTING, b=LASTING, c=SHORT)
                folders = self.wait_started(run, len(names) or 2)
                lab.wait_for(lambda: len(self.processes()) > 4 * len(folders), what='what they start')
                run.signal(number)
                self.check_end(run, 128 + number, '%d passed, %d failed, 0 skipped' % ((1, 1) if names else (2, 3)))
                self.assertEqual([folder for folder in folders if os.path.exists(folder)], [])
                for line in ('the cleanup of the test', 'the cleanup of the class'):
                    self.assertEqual(run.output().count(line), len(folders), run.output())
                self.assertNotIn('not to be seen', run.output())

    def test_cleanups_that_hang(self):
        """They have a limit, and a second signal does not wait for them."""
        for names in ((), ['test_a']):
            with self.subTest(names=names):
                run = self.begin(*names, a=HANGING)
                self.wait_started(run, 1)
                run.signal(signal.SIGINT)
                self.check_end(run, 130, '0 passed, 1 failed, 0 skipped')
        run = self.begin(limit=600, a=HANGING)
        for hanging in (1, 2):
            self.wait_started(run, hanging)
            run.signal(signal.SIGINT)
        self.check_end(run, 130, '0 passed, 1 failed, 0 skipped')

    def test_orphans(self):
        """What tests leave behind ends with the last of them."""
        text = 'import os\nos.system("setsid sleep 600 &")\n' + SHORT
        for names in ((), ['test_a']):
            self.check_end(self.begin(*names, a=text), 0, '1 passed, 0 failed, 0 skipped')


class Background(Run):
    def test_signals_are_set_back(self):
        """Started by nohup, by the & of a shell, or with signals blocked: what tests start knows nothing of it."""
        for before in (['sh', '-c', 'trap "" INT QUIT TERM HUP PIPE USR1; exec "$@"', 'sh'],
                       [sys.executable, '-c', BLOCKED]):
            for names in ((), ['test_a']):
                with self.subTest(before=before, names=names):
                    self.check_end(self.begin(*names, before=before, a=INHERITING), 0, '1 passed, 0 failed, 0 skipped')

    def test_interrupted_there(self):
        run = self.begin(before=['sh', '-c', 'trap "" INT; exec "$@"', 'sh'], a=LASTING)
        self.wait_started(run, 1)
        run.signal(signal.SIGINT)
        self.check_end(run, 130, '1 passed, 1 failed, 0 skipped')


class Clock(lab.LabTest):
    def test_fair(self):
        """It goes while nothing is to be computed, and stands while others compute instead."""
        everywhere = os.sched_getaffinity(0)
        here = min(everywhere)
        self.addCleanup(os.sched_setaffinity, 0, everywhere)
        os.sched_setaffinity(0, {here})
        for _ in range(3):       # on the same processor
            other = self.start(lab.Process, [sys.executable, '-c', 'print(1, flush=True)\nwhile True: pass'])
            lab.wait_for(lambda: other.out)
        clock = lab.FairClock()
        at, began = time.monotonic(), clock()
        time.sleep(1)
        self.assertGreater(clock() - began, 0.8)
        self.assertLessEqual(clock() - began, time.monotonic() - at)
        at, began, used = time.monotonic(), clock(), time.process_time()
        while time.process_time() - used < 0.5:
            pass
        fair, elapsed = clock() - began, time.monotonic() - at
        self.assertGreater(elapsed, 1)
        self.assertGreater(fair, 0.45)
        self.assertLess(fair, 0.6 * elapsed)
