"""--on_event: a program is run when something happens to nodes. Real nodes that are killed and started again; floods and
slow programs."""

import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
import unittest

import dispyadmin

from . import lab

# Appends what it reads, as a line of JSON, to the file named by its first argument, with its other arguments and what of
# its environment matters.
NOTE = '''
import json, os, sys
note = dict(json.load(sys.stdin), arguments=sys.argv[2:], secret=os.environ.get('DISPYADMIN_SECRET'),
            group=os.getpgid(0), pid=os.getpid())
with open(sys.argv[1], 'a') as file:
    file.write(json.dumps(note) + '\\n')
'''


def event(kind, node_id, number=1):
    return dispyadmin.Event(number, time.time(), kind, (node_id,), 1, '%s %s.' % (node_id, kind))


def alive(pid):
    """Whether a process runs: it exists and is no zombie."""
    try:
        with open('/proc/%d/stat' % pid) as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


class AlertTest(lab.LabTest):
    def setUp(self):
        super().setUp()
        self.notes = os.path.join(self.folder(), 'notes; touch $(HOME) *')

    def command(self, *arguments, code=NOTE):
        return ' '.join(shlex.quote(str(word)) for word in [sys.executable, self.write(code, 'note.py'), self.notes]
                        + list(arguments))

    def told(self):
        """What the program has been told so far."""
        try:
            with open(self.notes) as file:
                return [json.loads(line) for line in file.read().splitlines()]
        except FileNotFoundError:
            return []

    def wait_told(self, kind, node, timeout=20):
        return lab.wait_for(lambda: next((note for note in self.told() if note['kind'] == kind and node.id in note['nodes']),
                                         None), timeout, lambda: '%s of %s in %s' % (kind, node.id, self.told()))


class RealNodes(AlertTest):
    def test_lost_restarted_back(self):
        """A real node is killed, started again, stopped by its system and goes on."""
        node = self.node('open')
        admin = self.admin('--on_event', self.command('a  b', '$(id)', '; ls', '*', '"', 'ü'),
                           env={'DISPYADMIN_SECRET': 'open'})
        admin.wait_node(node, state='ready')
        self.assertEqual(self.told(), [])            # found is none of the three
        began = time.time()
        node.kill()
        note = self.wait_told('lost', node)
        self.assertEqual((note['nodes'], note['count']), ([node.id], 1))
        self.assertTrue(began - 1 <= note['time'] <= time.time())
        self.assertIn(node.id, note['message'])
        self.assertIn('refused', note['message'])
        self.assertEqual(note['arguments'], ['a  b', '$(id)', '; ls', '*', '"', 'ü'])
        self.assertIsNone(note['secret'])
        self.assertEqual(note['group'], note['pid'])  # a process group of its own
        again = self.node('open', address=node.address)
        self.wait_told('restarted', again)
        os.kill(again.pid, signal.SIGSTOP)
        try:
            admin.wait_node(again, state='unreachable')
        finally:
            os.kill(again.pid, signal.SIGCONT)
        self.wait_told('back', again)
        self.assertEqual({note['kind'] for note in self.told()}, {'lost', 'restarted', 'back'})
        self.assertNotIn('Traceback', admin.output())

    def test_other_kinds(self):
        node = self.fake('open')
        admin = self.admin('--secret', 'open', '--on_event', self.command(), '--event', 'found', '--event', 'drifted')
        admin.add(node)
        self.wait_told('found', node)
        admin.control('cpus', [node], cpus=2)
        node.info['cpus'] = 1
        self.assertIn('has changed', self.wait_told('drifted', node)['message'])
        node.close()
        admin.wait_node(node, state='unreachable')
        self.assertEqual({note['kind'] for note in self.told()}, {'found', 'drifted'})


class Programs(AlertTest):
    """What programs may do, without harm to anything else."""

    def lost(self, *options, code):
        """dispyadmin that has just lost a node, and will run this program."""
        node = self.fake('open')
        admin = self.admin('--secret', 'open', '-d', '--on_event', self.command(code=code), *options)
        admin.add(node)
        node.close()
        admin.wait_node(node, state='unreachable')
        return admin, node

    def test_fails(self):
        """What it prints is in the log at debug, made harmless; that it fails is warned of."""
        admin, node = self.lost(code='import sys; print("\\x1b[2Jout\\n" * 3); print("problem", file=sys.stderr); '
                                     'sys.exit(3)')
        lab.wait_for(lambda: 'ended with status 3' in admin.output(), what=lambda: admin.output())
        self.assertIn('warning: --on_event: the command ended with status 3', admin.output())
        self.assertIn('debug: --on_event, lost: \ufffd[2Jout', admin.output())
        self.assertIn('debug: --on_event, lost: problem', admin.output())
        self.assertNotIn('\x1b', admin.output())

    def test_prints_without_end(self):
        admin, node = self.lost(code='import os\nfor i in range(20000): os.write(1, b"x" * 65536)')
        base = lab.memory_of(admin.pid)
        lab.wait_for(lambda: '--on_event, lost: xxx' in admin.output(), 60, 'its end')
        self.assertLess(lab.memory_of(admin.pid, 'VmHWM') - base, 30)
        self.assertLess(len(max(admin.err, key=len)), 5000)

    def test_does_not_read_and_leaves_a_child(self):
        """It is over when it has ended itself, and what it leaves behind ends with it."""
        admin, node = self.lost(code='''
import os, subprocess, sys
os.close(0)
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
''')
        pid = lab.wait_for(self.told, what=lambda: admin.output())[0]
        lab.wait_for(lambda: not alive(pid), what='the end of its child')
        self.assertNotIn('--on_event: the command', admin.output())

    def test_ends_with_the_program(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                self.notes = os.path.join(self.folder(), 'notes')
                admin, node = self.lost(code='''
import os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "w") as file:
    file.write("[%d, %d]" % (os.getpid(), child.pid))
child.wait()
''')
                pids = lab.wait_for(self.told, what=lambda: admin.output())[0]
                self.assertLess(admin.seconds_to_end(number), 1.5)
                self.assertEqual(admin.wait(), 0)
                lab.wait_for(lambda: not any(map(alive, pids)), 5, 'their end')
                self.assertNotIn('Traceback', admin.output())

    def test_one_that_ignores_signals_ends_too(self):
        admin, node = self.lost(code='''
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
time.sleep(600)
''')
        pid = lab.wait_for(self.told, what=lambda: admin.output())[0]
        admin.signal(signal.SIGTERM)
        self.assertEqual(admin.wait(10), 0)
        lab.wait_for(lambda: not alive(pid), 5, 'its end')

    def test_gone_meanwhile(self):
        """The program was removed after the start: said, and all else goes on."""
        node = self.fake('open')
        program = self.write('#!/bin/sh\n', 'program', 0o700)
        admin = self.admin('--secret', 'open', '--on_event', program)
        os.remove(program)
        admin.add(node)
        node.close()
        lab.wait_for(lambda: 'cannot be run' in admin.output(), what=lambda: admin.output())
        self.assertEqual(admin.request('GET', '/api/nodes').status, 200)


class Limits(unittest.TestCase):
    """The worker itself, in this process."""

    def setUp(self):
        self.folder = lab.LabTest.folder(self)
        self.notes = os.path.join(self.folder, 'notes')
        self.addCleanup(self.restore, dispyadmin.ALERT_TIME, dispyadmin.GATHER_TIME, dispyadmin.ALERT_PAUSE)

    @staticmethod
    def restore(*values):
        dispyadmin.ALERT_TIME, dispyadmin.GATHER_TIME, dispyadmin.ALERT_PAUSE = values

    def alerts(self, code=NOTE, kinds=()):
        path = os.path.join(self.folder, 'note.py')
        with open(path, 'w') as file:
            file.write(code)
        alerts = dispyadmin.Alerts(' '.join(map(shlex.quote, [sys.executable, path, self.notes])), kinds)
        alerts.start()
        self.addCleanup(alerts.join, time.monotonic() + 60)
        self.addCleanup(alerts.end)
        return alerts

    told = AlertTest.told

    def test_slow_one_is_ended_with_its_children(self):
        dispyadmin.ALERT_TIME, dispyadmin.GATHER_TIME, dispyadmin.ALERT_PAUSE = 1.0, 0.0, 0.0
        alerts = self.alerts('''
import os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "a") as file:
    file.write("[%d, %d]\\n" % (os.getpid(), child.pid))
child.wait()
''')
        with self.assertLogs('dispyadmin', 'WARNING') as log:
            alerts.take(event('lost', '10.0.0.1:9701'))
            alerts.take(event('back', '10.0.0.1:9701'))
            lab.wait_for(lambda: len(self.told()) == 2, what='the second run')
            lab.wait_for(lambda: alerts.failed == 2, what='the end of the second run')
        for pid in sum(self.told(), []):
            lab.wait_for(lambda: not alive(pid), what='their end')
        self.assertEqual(len(log.output), 2, log.output)   # once for each kind of event
        self.assertIn('took more than 1 seconds', log.output[0])

    def test_flood(self):
        """2,000 nodes that are lost within seconds make few runs; every one is told; none is told twice."""
        dispyadmin.GATHER_TIME, dispyadmin.ALERT_PAUSE = 0.2, 0.5
        alerts = self.alerts()
        ids = ['10.0.%d.%d:9701' % divmod(number, 250) for number in range(2000)]
        for number, node_id in enumerate(ids):
            alerts.take(event('lost', node_id, number))
            if number % 500 == 499:
                lab.wait_for(lambda: alerts.runs >= min(2, number // 500), what='a run')
        lab.wait_for(lambda: sum(note['count'] for note in self.told()) == 2000,
                     what=lambda: [note['count'] for note in self.told()])
        notes = self.told()
        self.assertLessEqual(len(notes), 5)
        for note in notes:
            self.assertEqual(len(note['nodes']), min(note['count'], dispyadmin.MAX_ALERT_NODES))
            self.assertEqual(note['kind'], 'lost')
        self.assertIn('nodes are lost; the last: 10.0.7.249:9701 lost.', notes[-1]['message'])
        told = [node_id for note in notes for node_id in note['nodes']]
        self.assertEqual(len(told), len(set(told)))

    def test_order_is_kept(self):
        """What is told last of each node is what happened last to it, however the events were gathered."""
        dispyadmin.GATHER_TIME, dispyadmin.ALERT_PAUSE = 0.3, 0.0
        alerts = self.alerts()
        happened = [('lost', 1), ('lost', 2), ('back', 1), ('lost', 3), ('lost', 1), ('back', 2), ('restarted', 3),
                    ('back', 1), ('lost', 2), ('lost', 1)]
        for kind, number in happened:
            alerts.take(event(kind, '10.0.0.%d:9701' % number))
        lab.wait_for(lambda: sum(note['count'] for note in self.told()) == len(happened), what=self.told)
        self.assertLess(len(self.told()), len(happened))
        for number in (1, 2, 3):
            node_id = '10.0.0.%d:9701' % number
            self.assertEqual([note['kind'] for note in self.told() if node_id in note['nodes']],
                             [kind for kind, of in happened if of == number])

    def test_bounded(self):
        """A program that never ends, and nodes that come and go without end: a bounded queue, quick to fill."""
        alerts = self.alerts('import time; time.sleep(600)')
        clock = lab.FairClock()
        began = clock()
        with self.assertLogs('dispyadmin', 'WARNING') as log:
            for number in range(20000):
                alerts.take(event(('lost', 'back')[number % 2], '10.0.0.%d:9701' % (number // 2 % 5)))
        self.assertLess(clock() - began, 5)
        self.assertLessEqual(len(alerts._waiting), dispyadmin.MAX_ALERTS)
        self.assertLessEqual(sum(len(alert.nodes) for alert in alerts._waiting), dispyadmin.MAX_ALERT_IDS)
        self.assertEqual(len(log.output), 1)

    def test_nobody_waits_for_the_log(self):
        """While a warning is written, however slowly, events are taken."""
        alerts, stuck = self.alerts('import time; time.sleep(600)'), []

        class Slow(logging.Handler):
            def emit(self, record):
                other = threading.Thread(target=alerts.take, args=(event('lost', '10.0.0.1:9701'),), daemon=True)
                other.start()
                other.join(10)
                stuck.append(other.is_alive())
        handler = Slow(logging.WARNING)
        dispyadmin.logger.addHandler(handler)
        self.addCleanup(dispyadmin.logger.removeHandler, handler)
        for number in range(3 * dispyadmin.MAX_ALERTS):
            alerts.take(event(('lost', 'back')[number % 2], '10.0.0.1:9701'))
        self.assertEqual(stuck, [False])

    def test_more_than_a_pipe_holds(self):
        """A program that reads late is told all of it; one that does not read at all is none that fails."""
        code = 'import sys, time; time.sleep(0.3); print(len(sys.stdin.read()))'
        self.assertEqual(dispyadmin.run_program([sys.executable, '-c', code], b'x' * 1000000, threading.Event()),
                         (None, b'1000000\n'))
        self.assertEqual(dispyadmin.run_program(['/bin/true'], b'x' * 1000000, threading.Event()), (None, b''))

    def test_no_thread_and_no_descriptor_stays(self):
        dispyadmin.GATHER_TIME = dispyadmin.ALERT_PAUSE = 0.0
        before = lab.open_files_of(os.getpid())
        alerts = self.alerts()
        for number in range(5):
            alerts.take(event('lost', '10.0.0.1:9701', number))
            lab.wait_for(lambda: len(self.told()) == number + 1, what='the program is told')
        alerts.end()
        alerts.join(time.monotonic() + 5)
        self.assertNotIn('alerts', [thread.name for thread in threading.enumerate()])
        self.assertEqual(lab.open_files_of(os.getpid()), before)


class Usage(lab.LabTest):
    def check(self, status, options, *words):
        with self.subTest(options=options):
            code, out, err = self.run_script('--info_port', 0, *options)
            self.assertEqual((code, out, len(err.splitlines())), (status, '', 1), err)
            for word in words + ('--',):
                self.assertIn(word, err)

    def test_wrong(self):
        self.check(1, ['--on_event', 'no-such-program-here -x'], '--on_event', 'no-such-program-here')
        self.check(1, ['--on_event', self.write('', 'not-executable')], '--on_event')
        self.check(1, ['--on_event', self.folder()], '--on_event')
        self.check(2, ['--on_event', '"open'], '--on_event', 'quotation')
        self.check(2, ['--on_event='], '--on_event')
        self.check(2, ['--on_event', '""'], '--on_event')
        self.check(2, ['--on_event', '/bin/true', '--event', 'lots'], '--event', 'lost')
        self.check(2, ['--event', 'lost'], '--on_event')

    def test_saved(self):
        """In a configuration, too."""
        path = os.path.join(self.folder(), 'saved.cfg')
        command = "/bin/echo 'a  b' \"c;d\" %s"
        self.assertEqual(self.run_script('--save_config', path, '--on_event', command, '--event', 'lost', '--event',
                                         'found')[0], 0)
        settings = dispyadmin.read_settings(['--config', path], {})
        self.assertEqual((settings.on_event, settings.events), (command, ['lost', 'found']))
        self.assertEqual(dispyadmin.find_program(settings.on_event), ['/bin/echo', 'a  b', 'c;d', '%s'])
