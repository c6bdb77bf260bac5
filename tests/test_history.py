"""The last hours: what is kept of each sample, what readers get, and the charts that the page draws of it."""

import json
import math
import signal
import struct
import time
import unittest
from unittest import mock

import dispyadmin
from dispyadmin import Answer, History, Known, NodeTable, Timeline

from . import environment, lab, test_jobs, test_page
from .test_table import A, B, C, OTHER, SIGN, info, locked, opened

# dispyadmin with a quicker pace: seconds between two samples of each node, and of the cluster.
WRAPPER = '''
import os, sys
import dispyadmin

dispyadmin.SAMPLE_INTERVAL, dispyadmin.CLUSTER_INTERVAL = [float(word) for word in os.environ.pop('PACE').split()]
sys.exit(dispyadmin.main())
'''
NODE_FIELDS = ('busy', 'cpu', 'memory', 'state')
EMPTY = {'busy': [], 'cpu': [], 'memory': [], 'state': []}


class Turned:
    """A clock that the test turns."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


class Timelines(unittest.TestCase):
    def timeline(self):
        return Timeline(10, 4, ('value',), struct.Struct('<d'))

    def fill(self, timeline, *times):
        """(number of the first slot, values), None for gaps."""
        for now in times:
            timeline.put(now, lambda now=now: {'a': (now,)})
        first, rows = timeline.read('a')
        return first, [value for value, in rows]

    def test_one_value_for_each_slot(self):
        cases = [((), (0, [])),
                 ((100.0,), (10, [100.0])),
                 ((100.0, 104.0, 109.9, 110.0), (10, [100.0, 110.0])),            # too early: not due
                 ((100.0, 119.0, 120.0), (10, [100.0, 119.0, 120.0])),            # late, but in its slot
                 ((100.0, 130.0), (10, [100.0, None, None, 130.0])),              # stood still
                 ((100.0, 110.0, 120.0, 130.0, 140.0), (11, [110.0, 120.0, 130.0, 140.0])),   # the first falls out
                 ((100.0, 110.0, 140.0), (11, [110.0, None, None, 140.0])),
                 ((100.0, 150.0), (12, [None, None, None, 150.0])),               # stood still for longer than is kept
                 ((100.0, 1e9), (10 ** 8 - 3, [None, None, None, 1e9]))]
        for times, expected in cases:
            with self.subTest(times):
                self.assertEqual(self.fill(self.timeline(), *times), expected)

    def test_each_key(self):
        """A key that comes later has no gaps before; one that was left out, or forgotten, begins anew."""
        timeline = self.timeline()
        for now, keys in ((100.0, 'a'), (130.0, 'ab'), (140.0, 'b'), (150.0, 'ab')):
            timeline.put(now, lambda now=now, keys=keys: {key: (now,) for key in keys})
        self.assertEqual(timeline.read('a'), (15, [[150.0]]))
        self.assertEqual(timeline.read('b'), (13, [[130.0], [140.0], [150.0]]))
        timeline.forget('b')
        self.assertEqual(timeline.read('b'), (16, []))


class HistoryTest(unittest.TestCase):
    def setUp(self):
        self.clock, self.steady = Turned(1700000000.0), Turned(5000.0)
        self.table = NodeTable(self.clock)
        self.history = History(self.table, self.clock, self.steady)

    def meet(self, node_id, answer):
        self.table.may_send(node_id, answer.known.sign)
        self.table.answered(node_id, answer, create=True)

    def pass_time(self, seconds):
        self.clock.now += seconds
        self.steady.now += seconds

    def sample(self, times=1):
        """As many samples of the nodes, each after its interval."""
        for _ in range(times):
            self.pass_time(dispyadmin.SAMPLE_INTERVAL)
            self.history.sample()

    def node(self, node_id, *fields):
        shown = self.history.node(node_id)
        json.dumps(shown, allow_nan=False)
        self.assertEqual(len({len(shown[field]) for field in NODE_FIELDS}), 1, shown)
        return [shown[field] for field in fields] if fields else shown


class OfNodes(HistoryTest):
    def test_nothing_yet(self):
        """No sample yet, and a node that came after the last one."""
        expected = dict(EMPTY, interval=60, since=None, time=self.clock.now)
        self.assertEqual(self.node(A), expected)
        self.sample(3)
        self.meet(A, opened())
        self.assertEqual(self.node(A), dict(expected, time=self.clock.now))

    def test_values(self):
        self.meet(A, opened(busy=3, avail_info=(97.4, 2 ** 33, 2 ** 40, 100.0)))
        self.sample()
        first = self.clock.now
        self.meet(A, opened(busy=4, cpus=0, avail_info=None))
        self.sample()
        shown = self.node(A)
        self.assertEqual(shown, {'time': self.clock.now, 'interval': 60, 'since': shown['since'], 'busy': [3, 4],
                                 'cpu': [97, None], 'memory': [2 ** 33, None], 'state': ['ready', 'stopped']})
        self.assertLess(abs(shown['since'] - first), 60)
        self.assertEqual((self.steady.now - (self.clock.now - shown['since'])) % 60, 0)     # the beginning of its slot

    def test_range(self):
        """What half a float, and the other fields, can hold: busy, CPU and memory come back as they were, or nearly so."""
        cases = [(0, 0.0, 0), (1, 0.4, 1), (2, 0.6, 2 ** 20), (64, 50.0, 7 * 2 ** 20), (65533, 99.4, 3 * 2 ** 30 + 12345),
                 (None, 99.6, 2 ** 40), (7, 100.0, 1234567890123), (7, None, 64 * 2 ** 40 - 2 ** 36), (7, 1.0, None)]
        for busy, cpu, memory in cases:
            with self.subTest(busy=busy, cpu=cpu, memory=memory):
                self.setUp()
                self.meet(A, opened(busy=busy, avail_info=(cpu, memory, None, None)))
                self.sample()
                its_busy, its_cpu, its_memory, state = [values[0] for values in self.node(A, *NODE_FIELDS)]
                self.assertEqual((its_busy, state), (busy, 'ready'))
                self.assertEqual(its_cpu, None if cpu is None else math.floor(cpu + 0.5))
                if memory is None:
                    self.assertIsNone(its_memory)
                else:
                    self.assertAlmostEqual(its_memory, memory, delta=max(64, memory / 2000))

    def test_beyond_range(self):
        """The most that can be held, instead of an error or nothing."""
        self.meet(A, opened(busy=2 ** 31, avail_info=(100, 2 ** 62, 2 ** 62, 100)))
        self.sample()
        self.assertEqual(self.node(A, 'busy', 'cpu', 'memory'), [[0xFFFE], [100], [65504 * 2 ** 30]])

    def test_gaps_where_nothing_is_known(self):
        """A lost or locked node keeps its last details in the table; the history does not repeat them."""
        self.meet(A, opened(avail_info=(50.0, 2 ** 30, 0, 0)))
        self.sample()
        self.table.failed(A, 'No answer.')
        self.sample(2)
        self.meet(A, locked(OTHER))
        self.sample()
        self.meet(A, opened(OTHER, busy=0, avail_info=(60.0, 2 ** 31, 0, 0)))
        self.sample()
        self.assertEqual(self.node(A, *NODE_FIELDS), [
            [1, None, None, None, 0], [50, None, None, None, 60], [2 ** 30, None, None, None, 2 ** 31],
            ['ready', 'unreachable', 'unreachable', 'locked', 'ready']])

    def test_only_the_last_hours(self):
        self.meet(A, opened(busy=1))
        self.sample(5)
        self.meet(A, opened(busy=2))
        self.sample(dispyadmin.SAMPLES - 2)
        shown = self.node(A)
        self.assertEqual(shown['busy'], [1, 1] + [2] * (dispyadmin.SAMPLES - 2))
        self.assertLess(abs(self.clock.now - shown['since'] - 60 * (dispyadmin.SAMPLES - 1)), 60)

    def test_standstill_is_a_gap(self):
        self.meet(A, opened())
        self.sample()
        self.pass_time(3 * 60)
        self.sample()
        self.assertEqual(self.node(A, 'busy', 'state'), [[1, None, None, None, 1],
                                                         ['ready', None, None, None, 'ready']])
        self.pass_time(10 * 86400)
        self.sample()
        self.assertEqual(self.node(A, 'busy')[0][-2:], [None, 1])
        self.assertEqual(len(self.node(A, 'busy')[0]), dispyadmin.SAMPLES)

    def test_clock_is_set(self):
        """What was seen before is dated by the clock as it is now: nothing is lost, and nothing lies in the future."""
        self.meet(A, opened())
        self.sample(3)
        since = self.node(A)['since']
        for step in (7200.0, -86400.0):
            self.clock.now += step
            since += step
            self.sample()
            self.assertAlmostEqual(self.node(A)['since'], since, 2)
            self.assertNotIn(None, self.node(A, 'busy')[0])

    def test_forgotten_node(self):
        """A node that comes then does not inherit what it did; it begins anew itself."""
        self.meet(A, opened(busy=1))
        self.meet(B, opened(OTHER, busy=2))
        self.sample(2)
        self.table.forget(A)
        self.sample()
        self.assertEqual(self.node(A, *NODE_FIELDS), [[], [], [], []])
        self.meet(C, opened('c' * 40, busy=3))
        self.sample(2)
        self.meet(A, opened(busy=4))
        self.sample()
        self.assertEqual([self.node(node_id, 'busy')[0] for node_id in (A, B, C)], [[4], [2] * 6, [3, 3, 3]])

    def test_node_with_another_id(self):
        """It shows the sign of a node at another address: it has no row of its own any more, and no history."""
        self.table.add(*dispyadmin.split_id(B))
        self.meet(A, opened())
        self.sample()
        self.table.answered(B, opened(), create=True)
        self.sample()
        self.assertEqual(self.node(B, 'state'), [[]])
        self.assertEqual(self.node(A, 'state'), [['ready', 'ready']])

    def test_bounded(self):
        """Nodes that come and go: as much is kept as there are nodes at once, of each a record for each sample at most."""
        for number in range(300):
            ids = ['10.1.%d.%d:9701' % (number, last) for last in range(3)]
            for last, node_id in enumerate(ids):
                self.meet(node_id, opened('%038x%02x' % (number, last)))
            self.sample()
            for node_id in ids:
                self.table.forget(node_id)
            self.assertEqual(sum(map(len, self.history._nodes._kept[1].values())), 3 * dispyadmin.NODE_SAMPLE.size)
        self.sample()
        self.assertEqual(self.history._nodes._kept[1], {})
        self.meet(A, opened())
        self.sample(2 * dispyadmin.SAMPLES)
        self.pass_time(10 * 86400)
        self.sample(2)
        self.assertEqual(len(self.history._nodes._kept[1][A]), dispyadmin.SAMPLES * dispyadmin.NODE_SAMPLE.size)

    def test_samples_at_their_pace(self):
        """However often it looks."""
        self.meet(A, opened())
        for _ in range(600):
            self.pass_time(1)
            self.history.sample()
        self.assertIn(len(self.node(A, 'busy')[0]), (10, 11))
        self.assertIn(len(self.history.cluster()['busy']), (60, 61))


class OfTheCluster(HistoryTest):
    FIELDS = ('nodes', 'ready', 'unreachable', 'cpus', 'busy', 'cpu', 'memory')

    def cluster(self, *fields):
        shown = self.history.cluster()
        json.dumps(shown, allow_nan=False)
        return [shown[field] for field in fields] if fields else shown

    def sample(self, times=1):
        for _ in range(times):
            self.pass_time(dispyadmin.CLUSTER_INTERVAL)
            self.history.sample()

    def test_nothing_yet(self):
        shown = self.cluster()
        self.assertEqual(shown, dict({field: [] for field in self.FIELDS}, time=self.clock.now, interval=10, since=None))

    def test_values(self):
        """CPU is the mean and memory the sum of those that tell; nothing known is nothing, not zero."""
        self.sample()
        self.meet(A, opened(cpus=4, busy=1, avail_info=(20.0, 2 ** 30, 0, 0)))
        self.meet(B, opened(OTHER, cpus=8, busy=5, avail_info=(90.0, 2 ** 31, 0, 0)))
        self.meet(C, opened('c' * 40, cpus=0, busy=0, avail_info=None))
        self.sample()
        self.table.failed(B, 'No answer.')
        self.sample()
        self.meet(A, Answer(Known(SIGN, 'X', 0, True), info(avail_info=(None, None, None, None))))
        self.sample()
        self.assertEqual(self.cluster(*self.FIELDS), [
            [0, 3, 3, 3], [0, 2, 1, 1], [0, 0, 1, 1], [0, 12, 4, 4], [0, 6, 1, 1], [None, 55.0, 20.0, None],
            [None, 3 * 2 ** 30, 2 ** 30, None]])

    def test_only_the_last_hours_and_gaps(self):
        self.sample(dispyadmin.CLUSTER_SAMPLES + 5)
        self.assertEqual(len(self.cluster('busy')[0]), dispyadmin.CLUSTER_SAMPLES)
        self.pass_time(20)
        self.sample()
        self.assertEqual(self.cluster('busy', 'cpu'), [
            [0] * (dispyadmin.CLUSTER_SAMPLES - 3) + [None, None, 0], [None] * dispyadmin.CLUSTER_SAMPLES])


class Sampler(unittest.TestCase):
    def test_sleeps_until_the_next_slot(self):
        for now, seconds in ((100.0, 10), (101.0, 9), (109.5, 0.5)):
            history = History(NodeTable(), steady=lambda now=now: now)
            with mock.patch.object(history.stopping, 'wait', return_value=True) as wait:
                history.turn()
            self.assertAlmostEqual(wait.call_args[0][0], seconds)

    def test_goes_on_after_an_error(self):
        """The thread takes samples at its pace, an error is logged, and it ends when it is told to."""
        table, calls = NodeTable(), []

        def snapshot():
            calls.append(None)
            if len(calls) == 1:
                raise RuntimeError('injected')
            return NodeTable.snapshot(table)
        with mock.patch.multiple(dispyadmin, CLUSTER_INTERVAL=0.05, SAMPLE_INTERVAL=0.1), \
                mock.patch.object(table, 'snapshot', snapshot), self.assertLogs('dispyadmin', 'ERROR'):
            history = History(table)
            history.start()
            try:
                lab.wait_for(lambda: len(history.cluster()['nodes']) > 3, 10, 'samples')
            finally:
                history.end()
                history.join(time.monotonic() + 5)
        self.assertFalse(history._thread.is_alive())


class PacedTest(lab.LabTest):
    def paced(self, *options, pace='0.4 0.2', **kwargs):
        """dispyadmin that samples each node, and the cluster, each so many seconds."""
        return self.admin('--secret', 'open', *options, script=self.write(WRAPPER, 'wrapper.py'),
                          env={'PYTHONPATH': environment.ROOT, 'PACE': pace}, **kwargs)

    def history(self, admin, node):
        return admin.get('/api/nodes/' + node.id)['history']

    def wait_history(self, admin, node, what, fits):
        """Wait until fits(the node's history), and return that."""
        def look():
            self.seen = self.history(admin, node)
            return self.seen if fits(self.seen) else None
        return lab.wait_for(look, 30, lambda: '%s: %s' % (what, self.seen))

    def lost_and_back(self, admin, node):
        """A node with a gap in its history; the node that came back."""
        self.wait_history(admin, node, 'values', lambda shown: shown['busy'].count(0) >= 3)
        node.close()
        self.wait_history(admin, node, 'lost', lambda shown: shown['state'].count('unreachable') >= 3)
        again = self.fake('open', address=node.address)
        again.info.update(busy=2, cpus=2)                          # it tells the free ones
        admin.post('/api/poll', {'now': True})
        self.wait_history(admin, again, 'values again', lambda shown: shown['busy'].count(2) >= 3)
        return again


class Http(PacedTest):
    def test_shapes(self):
        """At the usual pace, before there is a value."""
        node = self.fake('open')
        admin = self.admin('--secret', 'open')
        admin.add(node)
        admin.wait_node(node, state='ready')
        cluster, history = admin.get('/api/history'), self.history(admin, node)
        self.assertEqual((cluster['interval'], history['interval']), (10, 60))
        self.assertLessEqual({'time', 'interval', 'since', 'busy', 'cpus', 'cpu', 'memory', 'ready', 'unreachable'},
                             set(cluster))
        self.assertEqual({key: history[key] for key in EMPTY}, EMPTY)
        self.assertIsNone(history['since'])
        self.assertNotIn('history', admin.node(node))            # the list stays as short as it is
        self.assertEqual(admin.request('GET', '/api/nodes/1.2.3.4:5').status, 404)
        self.assertEqual(admin.request('POST', '/api/history', {}).status, 405)

    def test_values(self):
        """A lost node is a gap with its state, and counted as lost in the cluster's."""
        node = self.fake('open', cpus=4)
        admin = self.paced()
        admin.add(node)
        again = self.lost_and_back(admin, node)
        shown = self.history(admin, again)
        at = shown['state'].index('unreachable')
        self.assertEqual([shown[field][at] for field in ('busy', 'cpu', 'memory')], [None, None, None])
        self.assertEqual([shown[field][-1] for field in NODE_FIELDS], [2, 50, 2 ** 30, 'ready'])
        self.assertLess(abs(shown['since'] + 0.4 * len(shown['busy']) - time.time()), 2)
        cluster = admin.get('/api/history')
        self.assertLessEqual({(4, 0, 1, 0), (0, 0, 0, 1), (4, 2, 1, 0)}, set(zip(
            *[cluster[field] for field in ('cpus', 'busy', 'ready', 'unreachable')])))
        self.assertEqual({cpu for cpu in cluster['cpu'] if cpu is not None}, {50.0})
        self.assertIn(None, cluster['cpu'])
        admin.delete('/api/nodes/' + again.id)
        admin.add(again)
        self.wait_history(admin, again, 'begun anew', lambda its: its['busy'] and len(its['busy']) < len(shown['busy']))

    def test_standstill(self):
        """The program was stopped and goes on: a gap, and no burst of samples."""
        admin = self.paced(pace='0.2 0.2')
        lab.wait_for(lambda: len(admin.get('/api/history')['busy']) >= 3, what='values')
        began = time.monotonic()
        admin.signal(signal.SIGSTOP)
        try:
            lab.wait_for(lambda: time.monotonic() - began > 2, what='a while')
        finally:
            admin.signal(signal.SIGCONT)
        shown = lab.wait_for(lambda: [its for its in [admin.get('/api/history')] if its['busy'][-1] is not None
                                      and None in its['busy']], what='a gap')[0]
        self.assertGreaterEqual(shown['busy'].count(None), 7)


class RealNode(test_jobs.JobsTest, PacedTest):
    def test_busy_and_available(self):
        """What a dispynode says while it computes is in its history, and was less before."""
        node = self.node('open')
        admin = self.paced('--info_port', 0)                       # the client has the port
        admin.wait_node(node, state='ready', busy=0)
        self.wait_history(admin, node, 'idle', lambda shown: 0 in shown['busy'])
        machine = node.info()['max_cpus']
        self.client(self.address(), self.info_port, machine, 300, node.address)
        admin.wait_node(node, timeout=25, busy=machine)
        shown = self.wait_history(admin, node, 'busy', lambda its: its['busy'][-1] == machine)
        told = admin.node(node)['avail_info']
        self.assertEqual(told['cpu'] is None, shown['cpu'][-1] is None)
        if told['memory'] is not None:
            self.assertAlmostEqual(shown['memory'][-1], told['memory'], delta=told['memory'] / 2)
            with open('/proc/meminfo') as file:
                whole = int(file.readline().split()[1]) * 1024
            self.assertTrue(0 < shown['memory'][-1] <= whole, (shown['memory'][-1], whole))
        cluster = lab.wait_for(lambda: [its for its in [admin.get('/api/history')] if its['busy'][-1] == machine],
                               what='the cluster is busy')[0]
        self.assertIn(0, cluster['busy'])


class Charts(test_page.PageTest, PacedTest):
    def chart(self, key, where='node-charts'):
        return '#%s [data-chart="%s"]' % (where, key)

    def path(self, key, series, where='node-charts'):
        """The line of a series, as the page drew it."""
        return self.js('(document.querySelector(arguments[0]) || {getAttribute() { return ""; }}).getAttribute("d")',
                       '%s path[data-series="%s"]' % (self.chart(key, where), series))

    def read(self, key, part, where='node-charts'):
        return self.js('document.querySelector(arguments[0]).textContent', '%s %s' % (self.chart(key, where), part))

    def values(self, key, where='node-charts'):
        """What is told of each series: the latest values, or those under the pointer."""
        return self.js('Array.from(document.querySelectorAll(arguments[0])).map(value => value.textContent)',
                       self.chart(key, where) + ' .series b')

    def keys(self, *keys):
        self.actions().send_keys(*keys).perform()

    def point(self, key, share, where='node-charts'):
        """Move the pointer to a place of the chart, from 0 (left) to 1."""
        plot = self.element(self.chart(key, where) + ' .plot')
        self.js('arguments[0].scrollIntoView({block: "center"})', plot)
        self.actions().move_to_element_with_offset(plot, int((share - 0.5) * plot.rect['width']), 0).perform()

    def test_node_view(self):
        """Lines with a gap, labelled axes; values under the pointer, and by keys."""
        from selenium.webdriver.common.keys import Keys
        node = self.fake('open', cpus=4)
        admin = self.paced()
        admin.add(node)
        again = self.lost_and_back(admin, node)
        self.open(admin, 'admin_node.html?host=' + again.id)
        self.wait('document.querySelectorAll("#node-charts path[data-series]").length === 3', 'three lines')
        for key in ('busy', 'cpu', 'memory'):
            self.assertEqual(self.path(key, key).count('M'), 2, key)             # one line for each side of the gap
            self.assertTrue(self.js('document.querySelectorAll(arguments[0]).length', self.chart(key) + ' .unknown'), key)
        labels = self.js('Array.from(document.querySelectorAll(arguments[0])).map(text => text.textContent)',
                         self.chart('cpu') + ' .plot text')
        self.assertLessEqual({'0 %', '50 %', '100 %'}, set(labels))
        self.assertEqual(self.values('busy'), ['2'])                             # the latest, where nobody points
        self.point('busy', 0.99)
        self.assertEqual(self.js('document.querySelectorAll(arguments[0]).length', self.chart('busy') + ' .cursor'), 1)
        self.assertEqual(self.values('busy'), ['2'])
        plot = self.element(self.chart('memory') + ' .plot')
        self.js('arguments[0].focus()', plot)
        self.keys(Keys.HOME)
        self.assertIn('available 1.0 GiB', self.read('memory', '[aria-live]'))
        self.assertRegex(self.read('memory', '[aria-live]'), r'^\d\d:\d\d:\d\d: ')
        said = set()
        for _ in range(200):
            self.keys(Keys.ARROW_RIGHT)
            said.add(self.read('memory', '[aria-live]'))
            if any('unreachable' in text for text in said):
                break
        self.assertTrue([text for text in said if 'unreachable' in text and 'not known' in text], said)
        self.keys(Keys.ESCAPE)
        self.assertEqual(self.js('document.querySelectorAll(arguments[0]).length', self.chart('memory') + ' .cursor'), 0)

    def test_other_node(self):
        """Going on to another node shows that one's; a locked one has no charts."""
        nodes = [self.fake('open', cpus=8, name='node-%d' % number) for number in range(2)]
        stranger = self.fake('other')
        nodes[0].info['busy'], nodes[1].info['busy'] = 3, 5
        admin = self.paced()
        for node in nodes + [stranger]:
            admin.add(node)
        for node in nodes:
            self.wait_history(admin, node, 'values', lambda shown: any(shown['busy']))
        self.open(admin)
        for node, busy in zip(nodes + nodes[:1], '353'):
            self.click('[data-id="%s"] a' % node.id)
            lab.wait_for(lambda: self.values('busy') == [busy], 15, lambda: self.values('busy'))
            self.driver.back()
            self.wait('!document.querySelector("#cluster").hidden', 'the cluster view')
        self.click('[data-id="%s"] a' % stranger.id)
        self.wait('!document.querySelector("#node").hidden', 'the node view')
        self.assertTrue(self.js('document.querySelector("#node-past").hidden'))

    def test_cluster_view(self):
        """Folded away and not asked for; unfolded it leaves the table room, and stays so for the visit."""
        nodes = [self.fake('open', cpus=4) for _ in range(80)]
        nodes[0].info.update(busy=3, cpus=1)
        admin = self.paced()
        for node in nodes:
            admin.add(node)
        lab.wait_for(lambda: 3 in admin.get('/api/history')['busy'], what='values')
        self.browser.size(1400, 1000)
        self.open(admin)
        self.wait('document.querySelectorAll("#rows tr").length > 20', 'rows')
        fresh = 'document.querySelector("#freshness").textContent'
        self.wait('%s !== %s' % (fresh, json.dumps(self.js(fresh))), 'it is drawn again, all in its place')
        asked = 'performance.getEntriesByType("resource").filter(entry => entry.name.includes("api/history")).length'
        self.assertEqual(self.js(asked), 0)
        folded = self.js('document.querySelector("#viewport").clientHeight')
        self.click('#past summary')
        self.wait('document.querySelectorAll("#past-charts path[data-series]").length === 6', 'six lines')
        room = self.js('document.querySelector("#viewport").clientHeight')
        self.assertGreater(room, 400)
        self.assertLess(room, folded)
        self.assertEqual(self.values('busy', 'past-charts'), ['3', '320'])
        self.assertEqual(self.values('nodes', 'past-charts'), ['80', '0'])
        self.js('(document.querySelector("#viewport").scrollTop = 700)')
        last = '''(() => { const box = document.querySelector("#viewport").getBoundingClientRect();
            const at = document.elementFromPoint(box.left + 200, box.bottom - 20).closest("tr");
            return at && at.dataset.id; })()'''
        self.wait(last, 'a row at the lower edge')
        self.click('#past summary')
        self.wait('document.querySelector("#viewport").clientHeight === %d' % folded, 'the whole table')
        self.wait(last, 'a row at the lower edge, which is lower now')
        self.click('#past summary')
        self.wait('sessionStorage.getItem("history") === "open"', 'it is stored')     # by an event after the click
        self.driver.refresh()
        self.wait('document.querySelector("#past").open && document.querySelectorAll("#past-charts [data-series]").length',
                  'still open')

    def test_sizes(self):
        """No sideways scrolling; charts as wide as there is room; drawn anew when that changes."""
        node = self.fake('open')
        admin = self.paced()
        admin.add(node)
        self.wait_history(admin, node, 'values', lambda shown: len(shown['busy']) > 2)
        for path, box in (('', 'past-charts'), ('admin_node.html?host=' + node.id, 'node-charts')):
            self.open(admin, path)
            if not path:
                self.js('(document.querySelector("#past").open = true)')
            for width in (360, 768, 1400):
                self.browser.size(width, 900)
                self.wait('''document.querySelectorAll("#%s path[data-series]").length && Array.from(
                    document.querySelectorAll("#%s .plot")).every(plot => plot.getAttribute("viewBox").split(" ")[2]
                    == Math.round(plot.getBoundingClientRect().width))''' % (box, box), 'charts of this width')
                self.assertLessEqual(self.js('document.documentElement.scrollWidth'), width)
                outside = self.js('''Array.from(document.querySelectorAll("#%s .plot text, #%s figcaption *")).filter(e => {
                    const own = e.getBoundingClientRect(), its = e.closest(".chart").getBoundingClientRect();
                    return own.left < its.left - 1 || own.right > its.right + 1; }).map(e => e.textContent)''' % (box, box))
                self.assertEqual([text for text in outside if text], [], width)
        self.browser.size(1400, 1000)
