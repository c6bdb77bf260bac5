"""The HTTP interface: shapes, bad input, access, and that no client holds another up. Fake nodes: what nodes do is
tested elsewhere."""

import base64
import concurrent.futures
import contextlib
import gzip
import hashlib
import http.client
import http.server
import json
import math
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

import dispyadmin

from . import lab, wire

NODE_KEYS = {'id', 'ip_addr', 'port', 'name', 'version', 'state', 'controllable', 'reason', 'cpus', 'max_cpus', 'busy',
             'avail_info', 'clients_done',
             'jobs_done', 'cpu_time', 'serve', 'scheduler_ip', 'service_start', 'service_stop', 'service_end',
             'first_seen', 'update_time',
             'addresses'}
TOTALS = {'nodes', 'ready', 'stopped', 'locked', 'unreachable', 'cpus', 'busy', 'jobs_done', 'cpu_time'}


class HttpTest(lab.LabTest):
    def shown(self, *options, secret='open', **kwargs):
        """dispyadmin that shows one open fake node."""
        node = self.fake(secret, **kwargs)
        admin = self.admin('--secret', secret, *options)
        admin.add(node)
        admin.wait_node(node, state='ready')
        return admin, node

    def raw(self, admin, data, timeout=10):
        """Send bytes, read all that comes."""
        with socket.create_connection((admin.host, admin.port), timeout) as sock:
            sock.sendall(data)
            return lab.read_rest(sock)


class Nodes(HttpTest):
    def test_node(self):
        before = time.time()
        admin, node = self.shown(cpus=6, name='fäke <b>1</b>')
        node.info.update(cpus=4, busy=2, clients_done=3, jobs_done=11, cpu_time=12.5, scheduler_ip='10.1.2.3',
                         service_stop=2e9,
                         service_start=1e9, service_end=3e9)
        shown = admin.wait_node(node, busy=2)
        self.assertLessEqual(NODE_KEYS, set(shown))
        fixed = NODE_KEYS - {'first_seen', 'update_time', 'version', 'avail_info', 'addresses'}
        self.assertEqual({key: shown[key] for key in fixed}, {
            'id': node.id, 'ip_addr': node.address, 'port': node.port, 'name': 'fäke <b>1</b>', 'state': 'ready',
            'controllable': True,
            'reason': None, 'cpus': 6, 'max_cpus': 6, 'busy': 2, 'clients_done': 3, 'jobs_done': 11, 'cpu_time': 12.5,
            'serve': -1,
            'scheduler_ip': '10.1.2.3', 'service_start': 1e9, 'service_stop': 2e9, 'service_end': 3e9,
            })
        self.assertEqual(shown['avail_info'], {'cpu': 50.0, 'memory': 2 ** 30, 'disk': 2 ** 34, 'swap': 100.0})
        self.assertTrue(before - 1 <= shown['first_seen'] <= shown['update_time'] <= time.time() + 1)
        one = admin.get('/api/nodes/' + node.id)
        self.assertLessEqual(NODE_KEYS, set(one))
        quoted = admin.get('/api/nodes/' + node.id.replace(':', '%3A'))
        self.assertEqual(quoted['id'], node.id)

    def test_list(self):
        admin, node = self.shown(cpus=6)
        locked = self.fake('other', name='locked')
        locked.ping(self.info_target())
        admin.wait_node(locked, state='locked', controllable=False, cpus=None, busy=None, reason=bool)
        whole = admin.get('/api/nodes')
        self.assertLessEqual({'sequence', 'time', 'poll_interval', 'totals', 'full', 'nodes', 'removed'}, set(whole))
        self.assertEqual(whole['poll_interval'], 1)
        self.assertLess(abs(whole['time'] - time.time()), 5)
        self.assertLessEqual(TOTALS, set(whole['totals']))
        counted = TOTALS - {'jobs_done', 'cpu_time'}
        self.assertEqual({key: whole['totals'][key] for key in counted},
                         {'nodes': 2, 'ready': 1, 'stopped': 0, 'locked': 1, 'unreachable': 0, 'cpus': 6, 'busy': 0})

    def test_since(self):
        admin = self.admin('--secret', 'open', '--poll_interval', 86400)     # none is polled, and changed, meanwhile
        first, second = self.fake('open'), self.fake('open')
        for node in (first, second):
            admin.add(node)
        sequence = admin.get('/api/nodes')['sequence']
        nothing = admin.get('/api/nodes?since=%d' % sequence)
        self.assertEqual((nothing['nodes'], nothing['removed'], nothing['full']), ([], [], False))
        admin.control('cpus', [first], cpus=1)
        changed = admin.get('/api/nodes?since=%d' % sequence)
        self.assertEqual([node['id'] for node in changed['nodes']], [first.id])
        self.assertEqual(changed['totals']['nodes'], 2)         # totals are always of all
        admin.delete('/api/nodes/' + second.id)
        changed = admin.get('/api/nodes?since=%d' % changed['sequence'])
        self.assertEqual((changed['removed'], changed['nodes']), ([second.id], []))
        for unknown in (sequence + 10 ** 9,):                   # of another start
            everything = admin.get('/api/nodes?since=%d' % unknown)
            self.assertTrue(everything['full'])
            self.assertEqual([node['id'] for node in everything['nodes']], [first.id])
        self.assertTrue(admin.get('/api/nodes')['full'])

    def test_since_survives_no_restart(self):
        """A sequence number of an earlier start is not taken for one of this."""
        admin, node = self.shown()
        sequence = admin.get('/api/nodes')['sequence']
        admin.close()
        admin = self.admin('--secret', 'open')
        admin.add(node)
        answer = admin.get('/api/nodes?since=%d' % sequence)
        self.assertTrue(answer['full'])
        self.assertEqual([row['id'] for row in answer['nodes']], [node.id])

    def test_no_insane_number(self):
        admin, node = self.shown()
        node.info.update(cpu_time=math.nan, jobs_done=-math.inf, busy='many', clients_done=[1], service_stop=math.inf,
                         scheduler_ip=5,
                         avail_info=wire.DispyNodeAvailInfo(math.nan, -1, 'x', 1e308))
        shown = admin.wait_node(node, cpu_time=None)            # reading it fails on NaN (see Answer.json)
        self.assertIsNone(shown['jobs_done'])
        self.assertIsNone(shown['service_stop'])
        self.assertIsNone(shown['scheduler_ip'])
        self.assertIsNone(shown['clients_done'])
        self.assertIsNone((shown['avail_info'] or {'cpu': None})['cpu'])

    def test_add(self):
        node = self.fake('open')
        admin = self.admin('--secret', 'open')
        results = admin.post('/api/nodes', {'host': node.address, 'port': node.port})['results']
        self.assertEqual([(result['id'], result['ok']) for result in results], [(node.id, True)])
        self.assertEqual(admin.node(node)['state'], 'ready')    # at once: it has waited for the outcome

    def test_add_with_default_port(self):
        node = self.fake('open')
        admin = self.admin('--secret', 'open')
        for body in ({'host': node.address}, {'host': node.address, 'port': None}):
            self.assertTrue(admin.post('/api/nodes', body)['results'][0]['ok'])
        self.assertEqual(list(admin.nodes()), [node.id])

    def test_add_by_name(self):
        node = self.fake(address='127.0.0.1')
        admin = self.admin()
        results = admin.post('/api/nodes', {'host': 'localhost', 'port': node.port})['results']
        self.assertIn(node.id, [result['id'] for result in results if result['ok']])
        admin.wait_node(node, state='ready')

    def test_add_fails(self):
        """A node that does not answer adds no row, and the message says what happened."""
        admin = self.admin()
        for host in (self.address(), 'no-such-host.invalid'):
            results = admin.post('/api/nodes', {'host': host})['results']
            self.assertFalse(results[0]['ok'])
            self.assertIn(host, results[0]['message'] + results[0]['id'])
        silent = self.fake(mode='silent', port=0)
        self.assertFalse(admin.add(silent)['ok'])
        self.assertEqual(admin.nodes(), {})

    def test_add_what_is_no_node(self):
        admin = self.admin()
        for mode in ('garbage', 'huge', 'reset'):
            node = self.fake(mode=mode, port=0)
            result = admin.add(node)
            self.assertFalse(result['ok'], mode)
            self.assertGreater(len(result['message']), 10)
        result = admin.post('/api/nodes', {'host': admin.host, 'port': admin.port})['results'][0]      # a web server
        self.assertFalse(result['ok'])
        self.assertEqual(admin.nodes(), {})

    def test_add_locked(self):
        """It is there and answers: a row, and the message says what is missing."""
        node = self.fake('other')
        admin = self.admin()
        result = admin.add(node)
        self.assertEqual(admin.node(node)['state'], 'locked')
        self.assertIn('secret', result['message'].lower())

    def test_forget(self):
        admin, node = self.shown()
        self.assertIsInstance(admin.delete('/api/nodes/' + node.id), dict)
        self.assertIsNone(admin.node(node))
        self.assertEqual(admin.request('GET', '/api/nodes/' + node.id).status, 404)
        self.assertEqual(admin.request('DELETE', '/api/nodes/' + node.id).status, 404)
        node.ping(self.info_target())                           # it comes back when it shows itself again
        admin.wait_node(node, state='ready')

    def test_ipv6(self):
        node = self.fake('open', address='::1')
        admin = self.admin('--secret', 'open')
        self.assertTrue(admin.post('/api/nodes', {'host': '::1', 'port': node.port})['results'][0]['ok'])
        self.assertEqual(list(admin.nodes()), ['[::1]:%d' % node.port])
        self.assertEqual(admin.get('/api/nodes/%5B::1%5D:{}'.format(node.port))['ip_addr'], '::1')
        self.assertTrue(admin.post('/api/nodes', {'host': '[::1]', 'port': node.port})['results'][0]['ok'])
        self.assertEqual(len(admin.nodes()), 1)


class Changes(unittest.TestCase):
    def test_lists_while_nodes_change(self):
        """Nodes change, go, and come back: every list, whole or since a number, is true."""
        rand = random.Random(4)
        table = dispyadmin.NodeTable()
        addresses = ['127.0.%d.%d' % (n // 250, n % 250) for n in range(1500)]
        readers = [(None, {}) for _ in range(3)]
        for turn in range(60):
            for address in rand.sample(addresses, rand.choice([0, 1, 5, 300, 1000])):
                table.add(address, 9701)
                table.failed(address + ':9701', 'No answer, turn %d.' % turn)
            for address in rand.sample(addresses, rand.choice([0, 0, 3])):
                table.forget(address + ':9701')
            for number in rand.sample(range(3), rand.choice([1, 2])):
                since, known = readers[number]
                snapshot = table.snapshot(since)
                listed = [json.loads(node.json()) for node in snapshot.nodes]
                self.assertEqual(len({node['id'] for node in listed}), len(listed))
                known = {} if snapshot.full else known
                known.update((node['id'], node) for node in listed)
                for node_id in snapshot.removed:
                    known.pop(node_id, None)
                self.assertEqual(known, {node.id: node.view for node in table.snapshot().nodes})
                readers[number] = snapshot.sequence, known
        self.assertGreater(len(table.ids()), 1200)


class Compression(HttpTest):
    def check(self, admin, path, method='GET', body=None):
        plain = admin.request(method, path, body)
        self.assertNotIn('Content-Encoding', plain.headers)
        for accepted in ('gzip', 'deflate, gzip;q=1.0, *;q=0.5', 'gzip, deflate, br, zstd', 'x-gzip;q=0.5'):
            packed = admin.request(method, path, body, {'Accept-Encoding': accepted})
            self.assertEqual(packed.headers['Content-Encoding'], 'gzip', accepted)
            self.assertIn('Accept-Encoding', packed.headers['Vary'])
            self.assertEqual(int(packed.headers['Content-Length']), len(packed.body))
            text = gzip.decompress(packed.body)
            self.assertLess(len(packed.body), len(plain.body))
        for refused in ('identity', 'gzip;q=0', 'gzip;q=0.000', 'br', 'sevenzip'):
            self.assertNotIn('Content-Encoding', admin.request(method, path, body, {'Accept-Encoding': refused}).headers)
        return plain.body, text

    def test_what_the_page_loads(self):
        admin = self.admin()
        for path in ('/', '/page.js', '/page.css'):
            self.assertEqual(*self.check(admin, path))

    def test_nodes(self):
        admin, _ = self.shown('--poll_interval', '600')
        for _ in range(4):
            admin.add(self.fake('open'))
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['ready'] == 5)
        plain, packed = [json.loads(data.decode()) for data in self.check(admin, '/api/nodes')]
        self.assertEqual(plain.pop('time') > 0, packed.pop('time') > 0)
        self.assertEqual(plain, packed)
        self.assertEqual(len(packed['nodes']), 5)

    def test_lists_can_be_read_in_slices(self):
        """What the page relies on for large lists: `nodes` comes last, each begins with its id, and nothing has spaces."""
        admin, _ = self.shown('--poll_interval', '600')
        admin.add(self.fake('open'))
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['ready'] == 2)
        text = admin.request('GET', '/api/nodes').text
        head, _, nodes = text.partition(',"nodes":[')
        self.assertTrue(nodes.endswith('}]}'), nodes[-40:])
        self.assertEqual(nodes.count('},{"id":'), 1)
        self.assertTrue(nodes.startswith('{"id":"'))
        self.assertNotIn('nodes', json.loads(head + '}'))

    def test_results(self):
        admin = self.admin()
        ids = ['10.0.0.%d:9701' % n for n in range(50)]
        plain, packed = self.check(admin, '/api/cpus', 'POST', {'nodes': ids, 'cpus': 1})
        plain, packed = json.loads(plain.decode()), json.loads(packed.decode())
        self.assertEqual(plain['results'], packed['results'])
        self.assertEqual(len(packed['results']), 50)

    def test_small_answers_stay_as_they_are(self):
        admin, _ = self.shown()
        answer = admin.request('GET', '/api/nodes', headers={'Accept-Encoding': 'gzip'})
        self.assertNotIn('Content-Encoding', answer.headers)


class Controls(HttpTest):
    """What a node's answer becomes; that real nodes do it is seen in test_nodes."""

    def test_results(self):
        admin, node = self.shown(cpus=8)
        result = admin.control('cpus', [node], cpus=-2)[node.id]
        self.assertEqual((result['ok'], result['cpus']), (True, 6))
        self.assertEqual(node.asked('SET_CPUS'), [{'cpus': -2}])
        result = admin.control('cpus', [node], cpus='all')[node.id]
        self.assertEqual((result['ok'], result['cpus']), (True, 8))
        result = admin.control('clients', [node], clients=5)[node.id]
        self.assertEqual((result['ok'], result['serve']), (True, 5))
        result = admin.control('service_time', [node], control='stop', time='now')[node.id]
        self.assertTrue(result['ok'])
        self.assertEqual(result['service_stop'], node.info['service_stop'])
        self.assertEqual(node.asked('SERVICE_TIME')[-1], {'control': 'stop_time', 'time': None})
        admin.control('service_time', [node], control='stop', time=None)
        self.assertEqual(node.asked('SERVICE_TIME')[-1], {'control': 'stop_time', 'time': '0'})
        admin.control('service_time', [node], control='start', time='7:05')
        self.assertEqual(node.asked('SERVICE_TIME')[-1]['control'], 'start_time')
        self.assertRegex(node.asked('SERVICE_TIME')[-1]['time'], '^0?7:05$')
        self.assertEqual(admin.node(node)['service_start'], node.info['service_start'])     # shown at once

    def test_refused(self):
        """A sentence that says why: dispyadmin knows the machine's CPUs."""
        admin, node = self.shown(cpus=8)
        result = admin.control('cpus', [node], cpus=12)[node.id]
        self.assertFalse(result['ok'])
        self.assertIn('8', result['message'])
        self.assertIn('12', result['message'])
        node.mode = 'refuse'
        for path, values in (('clients', {'clients': 1}), ('service_time', {'control': 'end', 'time': '10:00'}),
                             ('cpus', {'cpus': 1})):
            result = admin.control(path, [node], **values)[node.id]
            self.assertFalse(result['ok'])
            self.assertGreater(len(result['message']), 10)
        self.assertEqual(admin.node(node)['state'], 'ready')

    def test_each_node_has_its_outcome(self):
        admin, good = self.shown(cpus=8)
        locked, dead = self.fake('other'), self.fake('open')
        for node in (locked, dead):
            admin.add(node)
        dead.close()
        unknown = '%s:%d' % (self.address(), good.port)
        results = admin.control('cpus', [good, locked, dead, unknown], cpus=3)
        self.assertEqual({key: result['ok'] for key, result in results.items()},
                         {good.id: True, locked.id: False, dead.id: False, unknown: False})
        self.assertIn('secret', results[locked.id]['message'].lower())
        self.assertEqual(len({result['message'] for result in results.values()}), 4)
        self.assertNotIn('SET_CPUS', [tag for tag, _, _ in locked.requests])

    def test_many_nodes(self):
        """500 nodes, 10 of them dead: the others are done in a few seconds, and the answer says which failed."""
        nodes = [self.fake('open', cpus=8, port=0) for _ in range(500)]
        admin = self.admin('--secret', 'open', '--poll_interval', 60)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(admin.add, nodes))
        self.assertEqual(admin.get('/api/nodes')['totals']['ready'], 500)
        dead = nodes[::50]
        for node in dead:
            node.mode = 'silent'
        clock = lab.FairClock(admin.pid)
        began = clock()
        results = admin.control('cpus', nodes, cpus=3)
        took = clock() - began
        self.assertEqual({key for key, result in results.items() if not result['ok']}, {node.id for node in dead})
        self.assertEqual({node.info['cpus'] for node in nodes if node not in dead}, {3})
        self.assertLess(took, 20)
        self.assertLess(len(json.dumps(results)), 500 * 400)

    def test_secret(self):
        admin, _ = self.shown()
        node, other = self.fake('second', port=0), self.fake('third', port=0)
        for each in (node, other):
            admin.add(each)
        results = admin.post('/api/secret', {'secret': 'second'})['results']
        self.assertEqual([(result['id'], result['ok']) for result in results], [(node.id, True)])
        self.assertEqual(admin.node(node)['state'], 'ready')
        self.assertEqual(admin.node(other)['state'], 'locked')
        self.assertEqual(admin.post('/api/secret', {'secret': 'nobody'})['results'], [])
        self.assertNotIn('second', admin.request('GET', '/api/nodes').text)

    def test_poll(self):
        admin = self.admin('--poll_interval', 60)
        node = self.fake()
        admin.add(node)
        node.info['jobs_done'] = 77
        admin.post('/api/poll', {'now': True})
        admin.wait_node(node, jobs_done=77)
        node.info['jobs_done'] = 78
        admin.post('/api/poll', {'now': True, 'nodes': [node.id]})
        admin.wait_node(node, jobs_done=78)
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 60)      # "Now" leaves the interval alone
        admin.post('/api/poll', {'interval': 5})
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 5)
        node.info['jobs_done'] = 79
        admin.wait_node(node, jobs_done=79)

    def test_scan(self):
        heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(heard.close)
        heard.bind(('', self.info_port + 1))
        heard.settimeout(10)
        admin = self.admin('--ping_interval', 600)
        heard.recv(2000)                    # at start
        heard.settimeout(0.5)
        try:
            while True:
                heard.recv(2000)
        except socket.timeout:
            pass
        heard.settimeout(10)
        admin.post('/api/scan', {})
        self.assertTrue(heard.recv(2000).startswith(b'NODE_INFO:'))


class BadInput(HttpTest):
    """400 with a sentence that names the field, and nothing is sent to any node."""

    def setUp(self):
        super().setUp()
        self.server, self.target = self.shown('--poll_interval', 600)
        self.before = len(self.target.requests)

    def check(self, path, body, word, status=400):
        with self.subTest(path=path, body=body):
            answer = self.server.request('POST', path, body, {'Content-Type': 'application/json'})
            self.assertEqual(answer.status, status, answer.text)
            self.assertEqual(set(answer.json), {'error'})
            self.assertIn(word, answer.json['error'])
            self.assertGreater(len(answer.json['error']), 10)
            self.assertEqual(len(self.target.requests), self.before)

    def test_nodes_list(self):
        for path, rest in (('/api/cpus', {'cpus': 1}), ('/api/clients', {'clients': 1}),
                           ('/api/service_time', {'control': 'stop', 'time': 'now'})):
            for nodes in (None, 'x', self.target.id, {}, [], [1], [None], [[self.target.id]], [self.target.id, 5]):
                self.check(path, dict(rest, nodes=nodes), 'nodes')
            self.check(path, rest, 'nodes')

    def test_cpus(self):
        for value in (None, 'x', '', 1.5, True, [], {}, '3', 'ALL!'):
            self.check('/api/cpus', {'nodes': [self.target.id], 'cpus': value}, 'cpus')
        self.check('/api/cpus', {'nodes': [self.target.id]}, 'cpus')

    def test_clients(self):
        for value in (None, 'x', 1.5, True, -2, [], '3'):
            self.check('/api/clients', {'nodes': [self.target.id], 'clients': value}, 'clients')
        self.check('/api/clients', {'nodes': [self.target.id]}, 'clients')

    def test_service_time(self):
        for value in ('24:00', '12:60', '-1:00', '1200', '12', 'noon', '', '12:5', '12:00:00', ' 12:00', '１２:00', 5,
                      True, [], 0):
            self.check('/api/service_time', {'nodes': [self.target.id], 'control': 'stop', 'time': value}, 'time')
        for value in ('pause', '', None, 5, [], 'stop_time', 'STOP'):
            self.check('/api/service_time', {'nodes': [self.target.id], 'control': value, 'time': 'now'}, 'control')
        self.check('/api/service_time', {'nodes': [self.target.id], 'time': 'now'}, 'control')
        self.check('/api/service_time', {'nodes': [self.target.id], 'control': 'stop'}, 'time')

    def test_add(self):
        for value in ('', ' ', None, 5, [], {}, 'a b', 'a/b', 'x' * 300, 'a\nb', 'a\x00b'):
            self.check('/api/nodes', {'host': value}, 'host')
        for value in (0, -1, 65536, 'x', 1.5, True, [], '', 10 ** 9):
            self.check('/api/nodes', {'host': self.target.address, 'port': value}, 'port')
        self.check('/api/nodes', {}, 'host')

    def test_poll(self):
        for value in (4, 0, -1, 'x', None, True, []):
            self.check('/api/poll', {'interval': value}, 'interval')
        self.check('/api/poll', {}, 'interval')
        self.check('/api/poll', {'now': 'yes'}, 'now')
        self.check('/api/poll', {'now': True, 'nodes': 'x'}, 'nodes')
        self.check('/api/poll', b'{"interval": NaN}', '')
        self.check('/api/poll', b'{"interval": Infinity}', '')
        self.check('/api/poll', b'{"interval": 1e999}', '')

    def test_secret(self):
        for value in (None, 5, [], ''):
            self.check('/api/secret', {'secret': value}, 'secret')
        self.check('/api/secret', {}, 'secret')

    def test_unknown_field(self):
        """A misspelt field is not left out silently."""
        self.check('/api/nodes', {'host': self.target.address, 'prot': 5}, 'prot')

    def test_no_json(self):
        for body in (b'', b'{', b'[]', b'5', b'null', b'"x"', b'\xff', b'{"nodes": ["\xff"]}', b'[' * 100000,
                     b'{"a":' * 50000, b'{} {}', b'{"cpus": 1%s}' % (b'0' * 5000)):
            for path in ('/api/cpus', '/api/nodes', '/api/secret', '/api/poll'):
                answer = self.server.request('POST', path, body, {'Content-Type': 'application/json'})
                self.assertEqual(answer.status, 400, (path, body[:20], answer.text))
                self.assertEqual(set(answer.json), {'error'})
        self.assertEqual(len(self.target.requests), self.before)

    def test_since(self):
        for value in ('x', '-1', '1.5', '1e3'):
            answer = self.server.request('GET', '/api/nodes?since=' + value)
            self.assertEqual(answer.status, 400, value)
            self.assertIn('since', answer.json['error'])

    def test_statuses(self):
        for method, path, status in (('GET', '/api/no', 404), ('POST', '/api/no', 404), ('GET', '/no', 404),
                                     ('GET', '/api/nodes/x', 404),
                                     ('GET', '/api/nodes/1.2.3.4:5', 404), ('GET', '/api/', 404),
                                     ('GET', '/api/cpus', 405), ('DELETE', '/api/nodes', 405),
                                     ('PUT', '/api/nodes', 405), ('POST', '/', 405), ('GET', '/api/scan', 405),
                                     ('PATCH', '/api/cpus', 405), ('OPTIONS', '/api/no', 404), ('GET', '*', 404),
                                     ('POST', '/api/health', 405)):
            answer = self.server.request(method, path, {} if method == 'POST' else None)
            self.assertEqual(answer.status, status, (method, path))
            self.assertEqual(set(answer.json), {'error'})
            if status == 405:
                self.assertTrue(answer.headers['Allow'])

    def test_content_type(self):
        for kind in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data', '', 'text/json',
                     'application/jsonx'):
            answer = self.server.request('POST', '/api/cpus', b'{"nodes": ["%s"], "cpus": 1}' % self.target.id.encode(),
                                         {'Content-Type': kind})
            self.assertEqual(answer.status, 415, kind)
        self.assertEqual(self.server.request('DELETE', '/api/nodes/' + self.target.id,
                                             headers={'Content-Type': 'text/plain'}).status, 415)
        self.assertEqual(self.server.request('POST', '/api/poll', b'{"now": true}',
                                             {'Content-Type': 'application/json; charset=utf-8'}).status, 200)

    def test_length(self):
        head = b'POST /api/poll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
        for line, statuses in ((b'', {411}), (b'Content-Length: x\r\n', {400, 411}),
                               (b'Content-Length: -1\r\n', {400, 411, 413}),
                               (b'Content-Length: 99999999999999999999\r\n', {400, 413}),
                               (b'Content-Length: 200000000\r\n', {413}),
                               (b'Transfer-Encoding: chunked\r\n', {411, 400, 501}),
                               (b'Content-Length: 2\x1d\r\n', {400}),
                               (b'Content-Length: 2\r\nContent-Length: 3\r\n', {400}),
                               (b'Content-Length: 2\r\nTransfer-Encoding: chunked\r\n', {400, 411, 501})):
            answer = self.raw(self.server, head + line + b'Connection: close\r\n\r\n{}')
            self.assertIn(int(answer.split()[1]), statuses, (line, answer[:200]))
        answer = self.raw(self.server, b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'x' * 200000 + b'\r\n\r\n')
        self.assertIn(int((answer or b'x 431').split()[1]), (400, 413, 414, 431))
        answer = self.raw(self.server, b'GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n' % (b'x' * 200000))
        self.assertIn(int((answer or b'x 414').split()[1]), (400, 414, 431))

    def test_many_ids_fit(self):
        """20,000 ids are a body that is taken."""
        ids = ['[2001:db8:1111:2222:3333:4444:5555:%x]:51348' % number for number in range(20000)]
        answer = self.server.request('POST', '/api/cpus', {'nodes': ids, 'cpus': 1})
        self.assertEqual(answer.status, 200)
        self.assertEqual(len(answer.json['results']), 20000)


class Access(HttpTest):
    def test_host_header(self):
        admin, _ = self.shown('--http_name', 'cluster.example', '--http_name', 'Other.example')
        port = admin.port
        for host, status in (('localhost', 200), ('localhost:%d' % port, 200), ('127.0.0.1:%d' % port, 200),
                             ('[::1]:%d' % port, 200),
                             ('LOCALHOST', 200), ('cluster.example', 200), ('cluster.example:8443', 200),
                             ('other.example', 200),
                             ('evil.example', 421), ('evil.example:%d' % port, 421), ('localhost.evil.example', 421),
                             ('cluster.example.evil.example', 421), ('192.0.2.1', 421), ('', 421),
                             ('localhost@evil.example', 421)):
            for path in ('/', '/api/nodes'):
                self.assertEqual(admin.request('GET', path, headers={'Host': host}).status, status, (host, path))
            # a whole URL counts instead of Host
            for own in ('evil.example', 'localhost'):
                answer = admin.request('GET', 'http://%s/api/nodes' % host, headers={'Host': own})
                self.assertEqual(answer.status, status, (host, own))
                answer = admin.request('POST', 'HTTPS://%s/api/scan?x' % host, {}, {'Host': own, 'Origin': 'http://' + own})
                self.assertEqual(answer.status, 421 if status == 421 else 200 if own == host.lower() else 403, (host, own))
        for path in ('http://localhost', 'http://localhost?x=1', 'http://localhost:%d/' % port, 'http://[::1]//'):
            answer = admin.request('GET', path, headers={'Host': 'cluster.example'})
            self.assertEqual((answer.status, 'dispyadmin' in answer.text), (200, True), path)
        answer = self.raw(admin, b'GET /api/nodes HTTP/1.1\r\nConnection: close\r\n\r\n')
        self.assertIn(int(answer.split()[1]), (400, 421))
        self.assertIn('error', admin.request('GET', '/api/nodes', headers={'Host': 'evil.example'}).json)

    def test_origin(self):
        admin, node = self.shown('--http_name', 'cluster.example')
        own = 'http://localhost:%d' % admin.port
        for origin, status in ((own, 200), ('http://evil.example', 403), ('null', 403), ('http://localhost:1', 403),
                               ('', 403),
                               (own + '.evil.example', 403)):
            headers = {'Origin': origin, 'Host': 'localhost:%d' % admin.port}
            answer = admin.request('POST', '/api/cpus', {'nodes': [node.id], 'cpus': 2}, headers)
            self.assertEqual(answer.status, status, origin)
        self.assertEqual(len(node.asked('SET_CPUS')), 1)
        # behind a proxy that speaks TLS
        headers = {'Origin': 'https://cluster.example', 'Host': 'cluster.example'}
        self.assertEqual(admin.request('POST', '/api/scan', {}, headers).status, 200)

    def test_other_user(self):
        """On loopback: open to the user who runs it and to root; others need the token."""
        if os.geteuid():
            self.skipTest('another user needs root')
        token = self.write('let-me-in-7b1f', 'token')
        admin, _ = self.shown('--http_token', token, '--http_host', '127.0.0.1')
        code = ('import sys, urllib.request as r, urllib.error as e\n'
                'try: print(r.urlopen(r.Request(sys.argv[1] + "api/nodes", headers='
                "dict(h.split(': ') for h in sys.argv[2:]))).status)\n"
                'except e.HTTPError as x: print(x.code, x.read().decode())')

        def ask(*headers):
            # A Python that another user can start: that of the tests may be in root's home.
            return subprocess.run(['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '/usr/bin/python3',
                                   '-I', '-c', code,
                                   'http://127.0.0.1:%d/' % admin.port] + list(headers), stdout=subprocess.PIPE,
                                  timeout=30).stdout.decode()
        self.assertRegex(ask(), r'^40[13] \{"error"')
        self.assertRegex(ask('Authorization: Bearer wrong'), r'^40[13]')
        self.assertEqual(ask('Authorization: Bearer let-me-in-7b1f').strip(), '200')
        self.assertEqual(admin.request('GET', '/api/nodes').status, 200)       # root needs none

    def remote(self, *options):
        """dispyadmin that listens on all addresses."""
        return self.admin('--http_host', '0.0.0.0', *options)

    def test_token_is_needed_beyond_loopback(self):
        admin = self.remote()
        admin.host = '127.0.0.1'
        token, admin.token = admin.token, None
        self.assertGreaterEqual(len(token), 20)
        for path in ('/', '/api/nodes', '/api/about', '/page.js', '/admin.html'):
            answer = admin.request('GET', path)
            if path.startswith('/api'):
                self.assertIn(answer.status, (401, 403))
                self.assertIn('error', answer.json)
            self.assertNotIn(token, answer.text)
        for wrong in ('', 'x', token[:-1], token + 'x', token.upper() + '!', 'ü'):
            bearer = ('Bearer ' + wrong).encode()
            self.assertIn(admin.request('GET', '/api/nodes', headers={'Authorization': bearer}).status, (400, 401, 403))
            self.assertIn(admin.request('GET', '/api/nodes?token=' + wrong.encode().hex()).status, (401, 403))
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Authorization': 'Bearer ' + token}).status, 200)
        self.assertNotIn(token, '\n'.join(admin.err))
        self.assertTrue(any('TLS' in line or 'clear' in line for line in admin.err), admin.err)    # the warning

    def test_token_becomes_cookie(self):
        admin = self.remote()
        admin.host = '127.0.0.1'
        token, admin.token = admin.token, None
        answer = admin.request('GET', '/?token=' + token)
        cookie = answer.headers['Set-Cookie']
        self.assertIn('HttpOnly', cookie)
        self.assertIn('SameSite=Strict', cookie)
        self.assertIn(answer.status, (200, 302, 303, 307))
        if answer.status != 200:            # so that the token leaves the address bar
            self.assertNotIn('token', answer.headers['Location'])
            self.assertFalse(answer.headers['Location'].startswith(('http', '/')))      # relative, for proxies
        pair = cookie.split(';')[0]
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Cookie': pair}).status, 200)
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Cookie': 'other=1; ' + pair}).status, 200)
        self.assertIn(admin.request('GET', '/api/nodes', headers={'Cookie': pair + 'x'}).status, (401, 403))

    def test_token_from_file(self):
        admin = self.remote('--http_token', self.write('my-own-token\n', 'token'))
        admin.host, admin.token = '127.0.0.1', None
        self.assertIn(admin.request('GET', '/api/nodes').status, (401, 403))
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Authorization': 'Bearer my-own-token'}).status,
                         200)
        self.assertNotIn('my-own-token', '\n'.join(admin.out + admin.err))

    def test_headers(self):
        admin, _ = self.shown()
        for path in ('/', '/admin.html', '/page.css', '/page.js', '/api/nodes', '/api/no', '/no'):
            headers = admin.request('GET', path).headers
            self.assertEqual(headers['X-Content-Type-Options'], 'nosniff', path)
            self.assertEqual(headers['Referrer-Policy'], 'no-referrer', path)
            policy = headers['Content-Security-Policy']
            self.assertIn("default-src 'none'", policy)
            self.assertIn("frame-ancestors 'none'", policy)
            self.assertNotIn('unsafe', policy)
            self.assertNotIn('Python', headers.get('Server', ''))
        self.assertIn('no-store', admin.request('GET', '/api/nodes').headers['Cache-Control'])
        self.assertEqual(admin.request('GET', '/api/nodes').headers['Content-Type'].split(';')[0], 'application/json')

    def test_no_files(self):
        """Nothing but the routes: the server reads no file."""
        admin, _ = self.shown()
        for path in ('/../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '/..%2f..%2fetc/passwd', '//etc/passwd',
                     '/dispyadmin.py', '/.git/config',
                     '/page.js/../dispyadmin.py', '/\\..\\', '/%00', '/api/nodes/../../etc/passwd', '/etc/passwd',
                     '/setup.cfg'):
            answer = self.raw(admin,
                              b'GET ' + path.encode() + b' HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
            self.assertIn(int(answer.split()[1]), (400, 404), path)
            self.assertNotIn(b'root:', answer)


class Server(HttpTest):
    def test_page(self):
        admin, _ = self.shown()
        page = admin.request('GET', '/')
        self.assertEqual(page.headers['Content-Type'].lower(), 'text/html; charset=utf-8')
        for path in ('/admin.html', '/admin_node.html?host=x'):
            answer = admin.request('GET', path)
            self.assertIn(answer.status, (200, 301, 302, 303, 307, 308))
        for name in ('page.css', 'page.js'):
            self.assertIn(name, page.text)
            self.assertEqual(admin.request('GET', '/' + name).status, 200)
        everything = page.text + admin.request('GET', '/page.js').text + admin.request('GET', '/page.css').text
        # nothing from another host, no absolute path: it works below any path of a proxy
        self.assertEqual(re.findall(r'(?:src|href|action)="(?:/|https?:)[^"]*"', page.text), [])
        self.assertEqual([url for url in re.findall(r'https?://[^\s"\'<>)]*', everything)
                          if not url.startswith('http://www.w3.org/')], [])
        script, = re.findall('<script>(.*?)</script>', page.text, re.DOTALL)      # one, and no other may run
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self.assertIn("script-src 'self' 'sha256-%s';" % digest, page.headers['Content-Security-Policy'])
        self.assertEqual(page.text.count('<script'), 2)
        self.assertNotRegex(page.text, r'\son[a-z]+="')
        self.assertNotIn('innerHTML', everything)

    def test_head(self):
        """As GET on everything that can be got, without the body."""
        admin, node = self.shown('--http_token', self.write('token-of-head'), '--poll_interval', 600)
        paths = [route.path for route in dispyadmin.ROUTES if 'GET' in route.methods]
        self.assertGreater(len(paths), 10)
        for path in paths + ['/api/nodes/' + node.id, '/no', '/api/cpus', '/?token=token-of-head', '/?token=wrong']:
            whole, head = admin.request('GET', path), admin.request('HEAD', path)
            self.assertEqual((head.status, head.body), (whole.status, b''), path)
            for name in ('Content-Type', 'Location', 'Set-Cookie', 'Allow'):
                self.assertEqual(head.headers[name], whole.headers[name], path)
            self.assertEqual('Content-Length' in head.headers, 'Content-Length' in whole.headers)

    def test_options(self):
        """What goes with an address, for those who may ask; no other site is told that it may."""
        admin = self.admin('--http_name', 'cluster.example')
        for path, allowed in (('/', 'GET, HEAD, OPTIONS'), ('/page.js', 'GET, HEAD, OPTIONS'),
                              ('/api/cpus', 'OPTIONS, POST'), ('/api/nodes', 'GET, HEAD, OPTIONS, POST'),
                              ('/api/nodes/x', 'DELETE, GET, HEAD, OPTIONS'),
                              ('//api/scan?x', 'OPTIONS, POST'), ('*', 'DELETE, GET, HEAD, OPTIONS, POST')):
            preflight = {'Origin': 'http://evil.example', 'Access-Control-Request-Method': 'POST',
                         'Access-Control-Request-Headers': 'content-type'}
            for headers in ({}, preflight, dict(preflight, Origin='http://cluster.example')):
                answer = admin.request('OPTIONS', path, headers=headers)
                self.assertEqual((answer.status, answer.headers['Allow'], answer.body), (204, allowed, b''), path)
                self.assertEqual([name for name in answer.headers if name.lower().startswith('access-control')
                                  or name.lower() in ('content-length', 'content-type')], [])      # RFC 9110, 8.6
            self.assertEqual(admin.request('OPTIONS', path, headers={'Authorization': 'Bearer x'}).status, 401)
            self.assertEqual(admin.request('OPTIONS', path, headers={'Host': 'evil.example'}).status, 421)

    def test_port_that_is_taken(self):
        """One line that says by whom it may be, here by what dispy's own web server does."""
        web = http.server.HTTPServer(('', 0), http.server.BaseHTTPRequestHandler)
        self.addCleanup(web.server_close)
        status, out, err = self.run_script('--http_port', web.server_port)
        self.assertEqual((status, out, len(err.splitlines())), (1, '', 1))
        for word in ('--http_port %d' % web.server_port, 'another --http_port', 'dispyadmin may run already',
                     'dispyscheduler --httpd'):
            self.assertIn(word, err)

    def test_keep_alive(self):
        admin, _ = self.shown()
        connection = admin.connection()
        self.addCleanup(connection.close)
        sock = connection.sock
        for path in ['/api/nodes', '/', '/api/no', '/api/nodes'] * 5:
            connection.request('GET', path)
            connection.getresponse().read()
            self.assertIs(connection.sock, sock)

    def test_body_is_read_before_the_next_request(self):
        """A refused request's body is not taken for a request."""
        admin, _ = self.shown()
        body = b'GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n'
        for path, kind in ((b'/api/no', b'application/json'), (b'/api/cpus', b'text/plain'),
                           (b'/api/cpus', b'application/json')):
            answer = self.raw(admin,
                              b'POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n'
                              % (path, kind, len(body))
                              + body + b'GET /api/about HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
            self.assertNotIn(b'smuggled', answer)
            self.assertLessEqual(answer.count(b'HTTP/1.1 '), 2)

    def test_body_of_a_request_that_has_none_is_not_a_request(self):
        """A proxy that reuses connections would mix up its users."""
        admin, _ = self.shown()
        body = b'DELETE /api/nodes/x HTTP/1.1\r\nHost: localhost\r\n\r\n'
        for method in (b'GET', b'HEAD', b'OPTIONS'):
            answer = self.raw(admin, b'%s /page.css HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n'
                              % (method, len(body)) + body)
            self.assertEqual(answer.count(b'HTTP/1.1 '), 1, answer[-500:])

    def test_requests_through_a_proxy_need_the_token(self):
        """The kernel tells whose the connection is, and that is the proxy's."""
        admin, _ = self.shown('--http_name', 'cluster.example.org')
        token, admin.token = admin.token, None
        self.assertTrue(token)      # so that there is a way in
        for headers in ({'Host': 'cluster.example.org'}, {'X-Forwarded-For': '10.0.0.9'}, {'Via': '1.1 proxy'}):
            self.assertEqual(admin.request('GET', '/api/nodes', headers=headers).status, 401, headers)
            headers['Authorization'] = 'Bearer ' + token
            self.assertEqual(admin.request('GET', '/api/nodes', headers=headers).status, 200, headers)

    def test_ends_within_a_second_with_operations_under_way(self):
        admin, _ = self.shown()
        silent = self.fake('open', mode='silent', port=0)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for _ in range(6):
                pool.submit(admin.request, 'POST', '/api/nodes', {'host': silent.address, 'port': silent.port})
            lab.wait_for(lambda: silent.connections, what='the dead node is asked')
            self.assertLess(admin.seconds_to_end(signal.SIGTERM), 1.5)
            self.assertEqual(admin.wait(), 0)

    def test_clients_do_not_hold_each_other_up(self):
        """A hundred half-open requests, slow bodies and actions on dead nodes; another client is served meanwhile."""
        admin, node = self.shown()
        silent = self.fake('open', mode='silent', port=0)
        starts = (b'', b'GET /api/no', b'GET / HTTP/1.1\r\nHost: localh',
                  b'POST /api/cpus HTTP/1.1\r\nHost: localhost\r\n'
                  b'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"nod')
        for number in range(300):
            sock = socket.create_connection((admin.host, admin.port), 10)
            self.addCleanup(sock.close)
            sock.sendall(starts[number % len(starts)])
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            waiting = [pool.submit(admin.request, 'POST', '/api/nodes', {'host': silent.address, 'port': silent.port})
                       for _ in range(30)]
            lab.wait_for(lambda: silent.connections, what='the dead node is asked')
            times, clock = [], lab.FairClock(admin.pid)
            for _ in range(20):
                began = clock()
                self.assertEqual(admin.get('/api/nodes')['totals']['ready'], 1)
                times.append(clock() - began)
            self.assertLess(sorted(times)[10], 0.1)
            self.assertLess(max(times), 1)
            self.assertTrue(admin.control('cpus', [node], cpus=2)[node.id]['ok'])
            for future in waiting:
                self.assertFalse(future.result().json['results'][0]['ok'])

    def test_reset(self):
        """Clients that go away in the middle leave no trace on standard error."""
        admin, _ = self.shown()
        for data in (b'', b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n', b'\x16\x03\x01\x02\x00\x01', b'\x00' * 100,
                     b'GET\r\n\r\n', b'X' * 100000):
            sock = socket.create_connection((admin.host, admin.port), 10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            sock.sendall(data)
            sock.close()
        self.assertEqual(admin.request('GET', '/api/nodes').status, 200)
        self.assertNotIn('Traceback', admin.output())

    def test_no_warning(self):
        """-X dev -W error: nothing is left open, nothing is deprecated."""
        node = self.fake('open')
        admin = self.admin('--secret', 'open', env={'PYTHONWARNINGS': 'error', 'PYTHONDEVMODE': '1'})
        self.assertTrue(admin.add(node)['ok'])
        admin.request('GET', '/')
        admin.signal(15)
        self.assertEqual(admin.wait(), 0)
        self.assertEqual([line for line in admin.err if 'Warning' in line], [])


class Health(HttpTest):
    def test_anybody_may_ask(self):
        """By any name, without the token; and is told nothing else."""
        admin = self.admin('--http_host', '0.0.0.0', '--http_name', 'cluster.example')
        admin.host, token, admin.token = '127.0.0.1', admin.token, None
        for headers in ({}, {'Host': 'evil.example'}, {'Host': ''}, {'X-Forwarded-For': '10.1.2.3'}, {'Origin': 'null'}):
            for path in ('/api/health', '//api/health', '/api/health?token=' + token, 'http://evil.example/api/health'):
                answer = admin.request('GET', path, headers=headers)
                self.assertEqual((answer.status, answer.json), (200, {'ok': True}), (headers, path))
                self.assertNotIn('Set-Cookie', answer.headers)
            self.assertEqual(admin.request('HEAD', '/api/health', headers=headers).status, 200)
        self.assertEqual(admin.request('GET', '/api/health/').status, 401)

    @contextlib.contextmanager
    def running(self, prepare, *options):
        """A function that asks for the health of a dispyadmin in this process, whose threads were prepared by another."""
        settings = dispyadmin.read_settings(
            ['-i', self.admin_address, '--info_port', '0', '--http_port', '0', '--http_host', '127.0.0.1', '--on_event',
             'true'] + [str(option) for option in options], {})
        admin = dispyadmin.Admin(settings)
        server = dispyadmin.WebServer(admin, settings, 16)
        workers = list(admin._workers) + [server]
        prepare(admin, workers)
        for part in (admin, server):
            part.start()
        connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=10)

        def ask():
            connection.request('GET', '/api/health')
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read().decode())
        try:
            yield ask
        finally:
            connection.close()
            dead = [worker for worker in workers if not worker.is_alive()]
            for worker in workers:
                worker.end()
            for worker in workers:
                worker.join(time.monotonic() + 5)
            for worker in dead:
                worker.finish()

    def test_dead_threads(self):
        """Each of them: an error that is no Exception ends it."""
        names = []
        for number in range(8):
            def prepare(_, workers, number=number):
                worker = workers[number]
                turns = iter([worker.turn] * (worker.name == 'http'))     # which has to accept the one who asks
                names.append(worker.name)
                worker.turn = lambda: next(turns, sys.exit)()
                self.assertEqual(len(workers), 8)
            with self.running(prepare) as ask:
                lab.wait_for(lambda: ask() == (503, {'ok': False}), what=names[-1] + ' has died')
        self.assertEqual(sorted(names), ['alerts', 'announcer', 'history', 'http', 'listener', 'poller', 'reconciler',
                                         'seeker'])

    def test_poller_that_hangs(self):
        """All its nodes are being asked, and none is late: but it has no turn."""
        def prepare(admin, _):
            self.poller = admin.poller
        with self.running(prepare) as ask:
            self.assertEqual(ask(), (200, {'ok': True}))
            hung, ended = threading.Event(), threading.Event()
            self.addCleanup(ended.set)
            self.poller.turn = lambda: (hung.set(), ended.wait(20))
            self.poller.wake()
            self.assertTrue(hung.wait(10))
            self.assertEqual(ask(), (200, {'ok': True}))
            self.poller.last_turn -= dispyadmin.LONGEST_TURN + dispyadmin.LATE_TIME
            self.assertEqual(ask(), (503, {'ok': False}))
            ended.set()

    def test_late_polls(self):
        """None is taken any more: after a minute, or three intervals if that is more."""
        for interval, limit in ((1, 60), (20, 60), (30, 90)):
            def prepare(admin, _):
                self.schedule = admin.schedule
                self.schedule.take = lambda now, room, slow_room: ([], [])
                self.schedule.add('127.0.0.1:1')
            with self.running(prepare, '--poll_interval', interval) as ask:
                for late, status in ((0, 200), (limit - 5, 200), (limit + 1, 503)):
                    self.schedule._clock = lambda late=late: time.monotonic() + late
                    self.assertEqual(ask(), (status, {'ok': status == 200}), (interval, late))
                self.schedule.remove('127.0.0.1:1')
                self.assertEqual(ask(), (200, {'ok': True}))
