"""Nodes that are opened and then lie: each field of a reply, and of each control's reply, at each extreme and in each wrong
type. The row of such a node may show nothing; nothing else may come of it, whatever is done to it."""

import concurrent.futures
import csv
import io
import json
import os
import pickle
import signal

from . import lab, wire
from .model import Dispynode
from .test_metrics import parse

MOST_TIME = 253402214400         # the last day of the year 9999
EACH = 97                        # of so many nodes one is added by a request, the others announce themselves
PYTHON_2 = 'a byte string of Python 2'   # stands in a reply for that, whose bytes are no text
TIMES = ('service_start', 'service_stop', 'service_end')
AVAILABLE = ('cpu', 'memory', 'disk', 'swap')


def nested(depth, make=list):
    value = make()
    for _ in range(depth):
        value = [value] if make is list else {'x': value}
    return value


def state(*values):
    return wire.DispyNodeAvailInfo(*values)


VALUES = [None, True, False, -1, 0, 1, 70000, 2 ** 31, 10 ** 15, 10 ** 18, 2 ** 63, -2 ** 63, 2 ** 200, 0.5, -0.0, 1e300,
          float('nan'), float('inf'), -float('inf'), '', '7', 'x' * 10000, '\x00\x1b[2J\r\n\x7f', '\ud800', '\u202e"\\{}',
          PYTHON_2, [], [1, 2], nested(6), nested(100), (), ('a', None), {}, nested(6, dict), {'cpus': {'cpus': 1}},
          state(1, 2, 3, 4)]
# The fields in the order in which dispynode writes them.
FIELDS = ('busy', 'serve', 'clients_done', 'jobs_done', 'cpu_time', 'scheduler_ip', 'avail_info', 'name') + TIMES + (
    'cpus', 'max_cpus')
CONTROLS = [('SET_CPUS', 'cpus'), ('SERVE_CLIENTS', 'serve')] + [('SERVICE_TIME', key) for key in TIMES]
# Replies that are no answer at all: a value to pickle, or bytes as they stand; None closes without an answer.
REPLIES = [-1, 0, {}, [], None, True, 'no', 1.5, {'cpus': None}, {'busy': 0, 'cpus': 1}, [{}], nested(200), b'', b'\x80',
           b'NAK (invalid request)', b'\x80\x04.', b'\xff' * 39, b'0' * 40, b'Z' * 40, b'x' * 17000,
           pickle.dumps('x' * 20000, 2), b'\x80\x02}q\x00(X\x04\x00\x00\x00cpus', b'cos\nsystem\n(S"true"\ntR.',
           'cut', 'drop']
CLASS_STATES = [b'N', b'}', b'](K\x01e', b'X\x01\x00\x00\x00xK\x01\x86', b'}U\x03cpuNs', b'}K\x01K\x02s']


def lies():
    """[(tag of the request, what stands in place of the reply)]: ('field', key, value), ('missing', key), ('reply', value),
    ('state', bytes), or ('deed', name)."""
    found = [('NODE_INFO', ('field', key, value)) for key in FIELDS for value in VALUES]
    found += [('NODE_INFO', ('missing', key)) for key in FIELDS]
    found += [('NODE_INFO', ('state', part)) for part in CLASS_STATES]
    for number, key in enumerate(AVAILABLE):
        for value in VALUES:
            parts = [50.0, 2 ** 30, 2 ** 34, 100.0]
            parts[number] = value
            found.append(('NODE_INFO', ('field', 'avail_info', state(*parts))))
    found += [(tag, ('field', key, value)) for tag, key in CONTROLS for value in VALUES[::2]]
    found += [(tag, ('reply', value)) for tag in ('NODE_INFO', 'SET_CPUS', 'SERVICE_TIME', 'SERVE_CLIENTS')
              for value in REPLIES]
    found += [(tag, ('deed', deed)) for tag in ('SET_CPUS', 'SERVICE_TIME', 'SERVE_CLIENTS')
              for deed in ('nothing', 'other', 'of another', 'everything', 'restart', 'lock')]
    return found


class Liar(Dispynode):
    """Honest until `lying`; then `lie` stands in for what it answers to `tag`."""

    def __init__(self, address, port, tag, lie, protocol, crowd):
        self.lying, self.tag, self.lie = False, tag, lie
        super().__init__(address, port, 'open', immortal=True, name='liar', crowd=crowd)
        self.protocol = protocol
        self.info = {key: self.info[key] for key in FIELDS}
        self.honest = dict(self.info)

    def answer(self, tag, auth, value):
        answer = super().answer(tag, auth, value)
        opened = self.requests[-1][1]
        if not (self.lying and opened and tag == self.tag) or value and value.get('control') == 'none':
            return answer
        kind, *what = self.lie
        if kind == 'reply':
            return self.reply(what[0], answer)
        if kind == 'state':
            return self.whole(dict(self.info, avail_info='the state')).replace(
                pickle.dumps('the state', 2)[2:-3], b'cdispy\nDispyNodeAvailInfo\n)\x81' + what[0] + b'b')
        if kind == 'deed':
            return self.whole(self.deed(what[0], value))
        told = dict(self.info) if tag == 'NODE_INFO' else pickle.loads(answer)
        if told == -1:
            return answer
        if kind == 'missing':
            del told[what[0]]
        else:
            told[what[0]] = what[1]
        return self.whole(told)

    def whole(self, value):
        """This value in the node's pickle, or in that of Python 2."""
        data = pickle.dumps(value, 2)
        text = pickle.dumps(PYTHON_2, 2)[2:-3]
        if text in data or b'the state' in data:
            return data.replace(text, b'U\x05\xff\xfe\x80\x1b\x01')
        return pickle.dumps(value, self.protocol)

    def reply(self, value, answer):
        if value == 'cut':
            return answer[:len(answer) // 2]
        if value == 'drop':
            raise EOFError('no answer')
        return value if isinstance(value, bytes) else pickle.dumps(value, self.protocol)

    def deed(self, name, value):
        """What it answers, and does, to a control."""
        if name == 'nothing':                    # it says yes, and stays as it was
            self.info = dict(self.honest)
            return dict(value, service_start=None, service_stop=None, service_end=None)
        if name == 'other':
            self.info.update(cpus=7, serve=3, service_stop=1e9)
            return {'cpus': 7, 'serve': 3, 'service_start': None, 'service_stop': 1e9, 'service_end': None}
        if name == 'of another':
            return {'name': 'other', 'busy': 1, 'cpus': 65536, 'max_cpus': 1, 'sign': wire.new_sign()}
        if name == 'everything':
            return {str(number): number for number in range(300)}
        if name == 'restart':
            self.sign = wire.new_sign()
        if name == 'lock':
            self.secret = 'of tonight'
        return -1


OPERATIONS = [                           # in an order in which each meets what those before it left
    ('cpus', {'cpus': 3}), ('cpus', {'cpus': -2}), ('clients', {'clients': 7}),
    ('service_time', {'control': 'start', 'time': '00:00'}), ('service_time', {'control': 'stop', 'time': '23:58'}),
    ('service_time', {'control': 'end', 'time': '23:59'}), ('service_time', {'control': 'stop', 'time': 'now'}),
    ('service_time', {'control': 'start', 'time': None}), ('service_time', {'control': 'end', 'time': None}),
    ('reapply', {}), ('undo', {}), ('drain', {'then': 'stay', 'note': 'x'}), ('cpus', {'cpus': 'all'}), ('return', {}),
    ('undo', {}), ('return', {}), ('drain', {'then': 'restore'}), ('return', {}),
    ('service_time', {'control': 'end', 'time': 'now'}),
    ('drain', {'then': 'end'}), ('cancel_drain', {}), ('accept', {})]


class Lies(lab.HostileTest):
    def setUp(self):
        super().setUp()
        self.state, crowd = os.path.join(self.folder(), 'state.json'), self.start(wire.Crowd)
        self.good = Dispynode(self.address(), self.info_port + 1, 'open', immortal=True, name='good', crowd=crowd)
        self.liars = [Liar(self.address(), self.info_port + 1, tag, lie, 2 if number % 5 == 0 else 4, crowd)
                      for number, (tag, lie) in enumerate(lies())]
        self.ids = [liar.id for liar in self.liars]

    def launch(self):
        return self.admin('--secret', 'open', '--state', self.state, '--keep', '--poll_interval', 30)

    def list_all(self):
        """Add some by name, and let the others announce themselves."""
        some = self.liars[::EACH]
        for liar in self.liars:
            if liar not in some:
                liar.ping(self.info_target())
        for liar in some:
            self.admin_.add(liar)

    def all_at(self, path, **values):
        """The results at all liars and at the good node, which is never touched by the others, by id."""
        answer = self.admin_.request('POST', '/api/' + path, dict(values, nodes=self.ids + [self.good.id])
                                     if path != 'undo' else dict(values))
        self.assertEqual(answer.status, 200, (path, values, answer.text[:300]))
        results = answer.json['results']
        for result in results:
            self.assertTrue(result['message'].isprintable() and result['message'], result)
            self.assertNotIn('unexpected', result['message'], result)
            self.check_values(result)
        return answer.json, {result['id']: result for result in results}

    def check_values(self, node):
        """What is shown of a node is what can be."""
        for key in ('cpus', 'max_cpus', 'busy'):
            value = node.get(key)
            self.assertTrue(value is None or type(value) is int and 0 <= value <= 65536, (key, value))
        for key in TIMES:
            value = node.get(key)
            self.assertTrue(value is None or 1 <= value <= MOST_TIME, (key, value))
        serve = node.get('serve')
        self.assertTrue(serve is None or type(serve) is int and -1 <= serve < 2 ** 31, serve)

    def do(self, path, values):
        """Preview an operation and do it. The good node among the liars gets it, too."""
        if path == 'undo':
            values = {'operation': self.last['operation']}
            if not self.last['undo']:
                return
        sent, drifted = len(self.good.requests), self.admin_.node(self.good)['drift']
        preview, foreseen = self.all_at(path, preview=True, **values)
        if not drifted:          # else --keep may be setting it again
            self.assertEqual({tag for tag, _, _ in self.good.requests[sent:]} - {'NODE_INFO'}, set())
        self.last, results = self.all_at(path, **values)
        if (path, values.get('control'), values.get('time')) == ('service_time', 'end', 'now'):
            self.assertIn('still runs', results[self.good.id]['message'])        # it is immortal
            return
        if path == 'undo' and self.good.id not in results:
            return                   # it had nothing to give back: only liars showed a time that stood in the way of End
        self.assertEqual(foreseen[self.good.id]['ok'], results[self.good.id]['ok'], results[self.good.id])
        if path not in ('undo', 'return', 'cancel_drain'):
            self.assertEqual(len(results), len(self.ids) + 1)
            self.assertTrue(results[self.good.id]['ok'], (path, results[self.good.id]))

    def check_all(self):
        """Everything that can be read is read, and makes sense."""
        admin = self.admin_
        shown = admin.nodes()
        for node in shown.values():
            self.check_values(node)
            for text in [node['name'] or '', node['reason'] or '', node['scheduler_ip'] or ''] + (node['drift'] or []):
                self.assertTrue(text.isprintable(), text)
        text = admin.request('GET', '/metrics').text
        up = {dict(labels)['node'] for name, labels in parse(text) if name == 'dispy_node_up'}
        self.assertEqual(up, set(shown))
        for path in ('/api/events', '/api/history', '/api/operations', '/api/about', '/api/health'):
            self.assertEqual(admin.request('GET', path).status, 200, path)
            self.assertTrue(admin.get(path), path)
        self.assertEqual(admin.get('/api/health'), {'ok': True})
        self.check_log(admin)
        with open(self.state) as file:
            kept = json.load(file, parse_constant=self.fail)
        self.assertIn(self.good.id, kept['nodes'])
        return shown

    def check_each(self, shown):
        """Each node by itself, with its history."""
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for answer in pool.map(lambda i: self.admin_.request('GET', '/api/nodes/' + i), list(shown)[::7]):
                self.assertEqual(answer.status, 200)
                self.assertIn('history', answer.json)

    def check_lists(self, shown):
        where = ['--http_host', self.admin_.host, '--http_port', self.admin_.port]
        for form in ('json', 'csv', 'table'):
            status, out, err = self.run_script('--list', *(['--' + form] if form != 'table' else []), *where)
            self.assertIn(status, (0, 3), err)
            self.assertNotIn('Traceback', err)
            if form == 'json':
                self.assertEqual({node['id'] for node in json.loads(out, parse_constant=self.fail)}, set(shown))
            elif form == 'csv':
                rows = list(csv.reader(io.StringIO(out)))
                self.assertEqual((len(rows) - 1, {len(row) for row in rows}), (len(shown), {len(rows[0])}))
            for line in out.splitlines():
                self.assertTrue(line.isprintable() or form == 'json', line)

    def test_each_lie(self):
        self.admin_ = self.launch()
        self.assertTrue(self.admin_.add(self.good)['ok'])
        self.list_all()
        lab.wait_for(lambda: len(self.admin_.nodes()) == len(self.liars) + 1, 30, 'all are found')
        self.assertGreater(len(self.liars), 700)
        for path, values in (('cpus', {'cpus': 4}), ('clients', {'clients': 5}),
                             ('service_time', {'control': 'stop', 'time': '23:59'})):
            self.last, results = self.all_at(path, **values)
            self.assertTrue(all(result['ok'] for result in results.values()), path)
        for liar in self.liars:
            liar.honest, liar.lying = dict(liar.info), True
        self.admin_.post('/api/poll', {'now': True})
        self.check_each(self.check_all())
        for path, values in OPERATIONS:
            with self.subTest(path=path, **values):
                self.do(path, values)
                self.assertEqual(self.admin_.request('GET', '/api/health').status, 200)
        shown = self.check_all()
        self.check_each(shown)
        self.check_lists(shown)
        self.restart(shown)
        self.forget_and_add()
        self.recover()

    def restart(self, shown):
        """Killed or ended, it starts again on the file that it wrote of them, and knows what was set."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            kept = {node_id: (node['wanted'], node['drain'] and node['drain']['restore'])
                    for node_id, node in self.admin_.nodes().items()}
            self.admin_.signal(number)
            self.admin_.wait()
            self.check_log_of_ended(self.admin_)
            self.admin_ = self.launch()
            again = self.admin_.nodes()
            for node_id, (wanted, restore) in kept.items():
                if wanted and node_id in again and not again[node_id]['drain']:
                    self.assertEqual(again[node_id]['wanted'], wanted, node_id)
            self.admin_.wait_node(self.good, state=lambda state: state != 'unreachable')
            self.admin_.post('/api/poll', {'now': True})
            self.check_all()

    def check_log_of_ended(self, admin):
        self.assertNotIn('Traceback', admin.output())
        self.assertNotIn('unexpected', admin.output())

    def forget_and_add(self):
        self.all_at('return')
        answer, results = self.all_at('forget')
        self.admin_.post('/api/undo', {'operation': answer['operation']})
        self.all_at('forget')
        self.admin_.add(self.good)
        self.list_all()
        self.admin_.wait_node(self.good, state=lambda state: state != 'unreachable')
        self.check_all()

    def recover(self):
        """Whoever tells the truth again is a good node again."""
        for liar in self.liars:
            liar.info, liar.secret, liar.lying = dict(liar.honest), 'open', False
            liar.info.update(cpus=8, service_start=None, service_stop=None, service_end=None, serve=-1)
        for liar in self.liars:
            liar.sign = wire.new_sign()                            # as dispynode is started again
        self.list_all()
        lab.wait_for(lambda: len(self.admin_.nodes()) == len(self.liars) + 1, 30, 'all are there again')
        self.admin_.post('/api/poll', {'now': True})
        bad = {node_id: node['reason'] for node_id, node in self.admin_.nodes().items() if not node['controllable']}
        self.assertEqual(bad, {})
        _, results = self.all_at('cpus', cpus=2)
        self.assertEqual([r for r in results.values() if not r['ok']], [])
        self.assertEqual({liar.info['cpus'] for liar in self.liars + [self.good]}, {2})
