"""Real dispynode programs: found, shown, polled, lost and found again; and each control, seen at the node's side."""

import datetime
import os
import pickle
import signal
import socket
import time

from . import environment, lab, wire

HOUR = datetime.timedelta(hours=1)

# The nodes of these tests live in a time zone where it is ten in the morning: a time of day that is past there can end
# a node at once, and dispyadmin must send times as they are typed, in the node's zone.
SHIFT = 10 - datetime.datetime.utcnow().hour
ZONE = {'TZ': 'LAB%+d' % -SHIFT}         # POSIX counts hours west of Greenwich


def node_clock(moment=None):
    """HH:MM on a wall of the node's place; of now plus a timedelta, or of a Unix time."""
    if isinstance(moment, datetime.timedelta):
        moment = time.time() + moment.total_seconds()
    return (datetime.datetime.utcfromtimestamp(moment) + SHIFT * HOUR).strftime('%H:%M')


class Discovery(lab.LabTest):
    def test_started_before(self):
        """Nodes that run already are found by asking."""
        node = self.node('open')
        self.admin('--secret', 'open', '--ping_interval', 600).wait_node(node, timeout=5, state='ready')

    def test_started_after(self):
        """Nodes that start later are found by their own announcement."""
        admin = self.admin('--secret', 'open', '--ping_interval', 600)
        node = self.node('open')
        shown = admin.wait_node(node, timeout=5, state='ready')
        self.assertEqual(shown['version'], '4.15.2')
        self.assertIn(node.address, str(shown['addresses']))

    def test_scan_on_demand_and_at_interval(self):
        """A node that announces nothing by itself is found by the next question."""
        for options in (('--ping_interval', 600), ('--ping_interval', 2)):
            port = self.free_ports()
            admin = self.admin('--ping_interval', 600, '--info_port', port, '--secret', 'open', *options)
            # It announces itself at the port that belongs to its own, and that is another.
            node = self.node('open')
            if options[1] == 600:
                admin.post('/api/scan', {})
            admin.wait_node(node, timeout=8, state='ready')
            node.close()
            admin.close()

    def test_forgotten_comes_back(self):
        node = self.node('open')
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        admin.delete('/api/nodes/' + node.id)
        self.assertIsNone(admin.node(node))
        admin.wait_node(node, timeout=20, state='ready')       # at the next announcement, or the next question

    def test_mixed_cluster(self):
        """Every release and Python that this machine can run, side by side: shown right, and a control works on
        each."""
        nodes = self.together(*[lambda packages=packages: self.node('open', packages=packages)
                                for packages in environment.node_matrix()])
        admin = self.admin('--secret', 'open', '--ping_interval', 600)
        for node in nodes:
            with self.subTest(packages=node.packages.required, python=node.packages.version):
                shown = admin.wait_node(node, state='ready', name=node.name)
                info = node.info()
                self.assertEqual((shown['max_cpus'], shown['cpus'], shown['busy']), (info['max_cpus'], info['cpus'], 0))
                self.assertEqual('dispy==' + str(shown['version']), node.packages.required[0])
                self.assertEqual(shown['serve'], -1)
                if info['avail_info'] is None:                  # no psutil there
                    self.assertIsNone(shown['avail_info'])
                else:
                    self.assertAlmostEqual(shown['avail_info']['memory'] / info['avail_info'].memory, 1, delta=0.5)
                    self.assertTrue(0 <= shown['avail_info']['cpu'] <= 100)
        results = admin.control('cpus', nodes, cpus=1)
        for node in nodes:
            with self.subTest(packages=node.packages.required, python=node.packages.version):
                self.assertTrue(results[node.id]['ok'], results[node.id])
                self.assertEqual(node.managed(), 1)
        self.assertEqual(len(admin.nodes()), len(nodes))

    def test_two_on_one_host(self):
        """Known by address and port: two rows, each controlled by itself."""
        first = self.node('open')
        second = self.node('open', address=first.address, info_port=self.free_ports())
        admin = self.admin('--secret', 'open', '--node', second.id)
        for node in (first, second):
            admin.wait_node(node, state='ready')
        admin.control('cpus', [second], cpus=1)
        self.assertEqual((first.managed(), second.managed()), (first.info()['max_cpus'], 1))
        second.kill()
        admin.wait_node(second, state='unreachable')
        self.assertEqual(admin.node(first)['state'], 'ready')

    def test_two_addresses_of_one_node(self):
        """One sign at two addresses that both show it: one row with two addresses."""
        first, second = self.address(), self.address()
        node = self.node('open', address=first, extra=['-i', second])
        admin = self.admin('--secret', 'open')

        def one_row():
            rows = list(admin.nodes().values())
            shown = str([row['addresses'] for row in rows])
            return rows if first in shown and second in shown else None
        rows = lab.wait_for(one_row, what=lambda: 'both addresses: %s' % admin.nodes())
        self.assertEqual(len(rows), 1)
        self.assertEqual(rows[0]['state'], 'ready')
        admin.control('cpus', [rows[0]['id']], cpus=1)
        self.assertEqual(node.managed(), 1)

    def test_announced_over_tcp(self):
        """NODE_INFO and PING that come over TCP are heard (nodes with --scheduler_host)."""
        for tag in (b'NODE_INFO:', b'PING:'):
            node = self.fake('open', port=0)
            admin = self.admin('--secret', 'open', '--info_port', self.info_port)
            with socket.create_connection(self.info_target(), 5, (node.address, 0)) as sock:
                wire.send_message(sock, wire.encode(tag, wire.announcement(node.address, node.port, node.sign)))
            admin.wait_node(node, state='ready')
            admin.close()

    def test_new_release(self):
        """A version that no list has is heard in a PING, shown, and asked with from then on."""
        heard = self.start(Ear, self.info_port + 1)
        node = self.fake('open', port=0)
        admin = self.admin('--secret', 'open', '--ping_interval', 1)
        node.ping(self.info_target(), version='4.99.7')
        admin.wait_node(node, state='ready', version='4.99.7')
        wanted = {'4.11.0', '4.11.1', '4.12.0', '4.12.1', '4.12.2', '4.12.3', '4.12.4', '4.13.0', '4.14.0', '4.15.0',
                  '4.15.1', '4.15.2', '4.99.7'}
        lab.wait_for(lambda: wanted <= heard.versions(), what=lambda: 'a question for each release: %s'
                     % sorted(heard.versions()))


class Ear:
    """What comes to the node port as datagrams."""

    def __init__(self, port):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.sock.bind(('', port))
        self.sock.setblocking(False)
        self.messages = []

    def versions(self):
        try:
            while True:
                tag, _, body = self.sock.recv(2000).partition(b':')
                self.messages.append(pickle.loads(body))
        except BlockingIOError:
            return {message['version'] for message in self.messages}

    def close(self):
        self.sock.close()


class Polling(lab.LabTest):
    def test_stays_fresh(self):
        """What changes at the node by other hands is seen here, at the poll interval."""
        node = self.node('open')
        admin = self.admin('--secret', 'open')
        first = admin.wait_node(node, state='ready')
        sign = wire.node_sign(node.address, node.port)
        for tag, value in ((b'SET_CPUS:', {'cpus': 1}), (b'SERVE_CLIENTS:', {'serve': 9})):
            wire.exchange(wire.connect(node.address, node.port), wire.auth_code('open', sign), wire.encode(tag, value))
        shown = admin.wait_node(node, timeout=4, cpus=1, serve=9)
        self.assertGreater(shown['update_time'], first['update_time'])
        self.assertEqual(shown['first_seen'], first['first_seen'])

    def test_killed(self):
        """Unreachable within one poll; the last details stay, with their age; back by itself when it is back."""
        node = self.node('open')
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        admin.control('cpus', [node], cpus=1)
        node.kill()
        gone = admin.wait_node(node, timeout=5, state='unreachable', reason=bool)
        self.assertEqual((gone['cpus'], gone['name'], gone['controllable']), (1, node.name, False))
        self.assertLess(gone['update_time'], time.time())
        result = admin.control('cpus', [node], cpus=2)[node.id]
        self.assertFalse(result['ok'])
        again = self.node('open', address=node.address)
        back = admin.wait_node(again, timeout=10, state='ready', reason=None)
        self.assertEqual(back['cpus'], again.managed())
        self.assertGreater(back['update_time'], gone['update_time'])

    def test_back_without_announcement(self):
        """It is asked again with growing pauses."""
        node = self.fake('open')
        admin = self.admin('--secret', 'open')
        node.ping(self.info_target())
        admin.wait_node(node, state='ready')
        node.close()
        admin.wait_node(node, timeout=5, state='unreachable')
        back = self.fake('open', address=node.address, port=node.port)
        admin.wait_node(back, timeout=20, state='ready')

    def test_hanging(self):
        """SIGSTOP: the machine accepts connections, the program says nothing. Nobody else is held up."""
        node, other = self.together(lambda: self.node('open'), lambda: self.node('open'))
        admin = self.admin('--secret', 'open')
        for each in (node, other):
            admin.wait_node(each, state='ready')
        node.signal(signal.SIGSTOP)
        try:
            admin.wait_node(node, timeout=25, state='unreachable')
            shown = admin.node(other)
            self.assertEqual(shown['state'], 'ready')
            self.assertLess(time.time() - shown['update_time'], 4)
        finally:
            node.signal(signal.SIGCONT)
        admin.wait_node(node, timeout=30, state='ready')

    def test_restarted(self):
        """A new sign is matched by itself with the secrets known; locked when the secret is another; open again with
        it."""
        node = self.node('open')
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        admin.control('cpus', [node], cpus=1)
        node.kill()
        node = self.node('open', address=node.address)
        admin.wait_node(node, timeout=10, state='ready', cpus=node.managed())
        node.kill()
        node = self.node('changed', address=node.address)
        admin.wait_node(node, timeout=10, state='locked', controllable=False)
        results = admin.post('/api/secret', {'secret': 'changed'})['results']
        self.assertEqual([result['id'] for result in results if result['ok']], [node.id])
        admin.wait_node(node, state='ready')

    def test_terminated(self):
        """A node that ends says so: it is unreachable at once, though the next poll is far."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--poll_interval', 600)
        admin.wait_node(node, state='ready')
        node.signal(signal.SIGTERM)
        node.wait()
        gone = admin.wait_node(node, timeout=5, state='unreachable')
        self.assertIn('exited', gone['reason'])

    def test_terminated_is_checked(self):
        """Anybody can send it; a node that still answers stays."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--poll_interval', 600)
        admin.wait_node(node, state='ready')
        sign = wire.node_sign(node.address, node.port)
        message = wire.encode(b'TERMINATED:', {'ip_addr': node.address, 'port': node.port, 'sign': sign})
        for source in (node.address, self.address()):
            wire.datagram(message, self.info_target(), source)
        admin.post('/api/poll', {'now': True})
        before = admin.node(node)['update_time']
        admin.post('/api/poll', {'now': True})
        admin.wait_node(node, state='ready', update_time=lambda value: value > before)

    def test_interval_set(self):
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--poll_interval', 600)
        first = admin.wait_node(node, state='ready')
        self.assertEqual(admin.node(node)['update_time'], first['update_time'])
        admin.post('/api/poll', {'interval': 5})
        admin.wait_node(node, timeout=8, update_time=lambda value: value > first['update_time'])


class Secrets(lab.LabTest):
    def test_states(self):
        """Right secret, wrong secret, none, a client secret only, both the same."""
        right, wrong, none, client, same = self.together(
            lambda: self.node('open'), lambda: self.node('other'), lambda: self.node(''),
            lambda: self.node('', client_secret='theirs'),
            lambda: self.node('both', client_secret='both'))
        admin = self.admin('--secret', 'open')
        admin.wait_node(right, state='ready', controllable=True, reason=None)
        for node in (wrong, client, same):
            shown = admin.wait_node(node, state='locked', controllable=False, reason=bool)
            for key in ('cpus', 'max_cpus', 'busy', 'avail_info', 'jobs_done'):
                self.assertIsNone(shown[key])
        # without an admin secret a node tells everything and lets nobody control it
        shown = admin.wait_node(none, state='ready', controllable=False, reason=bool, name=none.name)
        self.assertEqual(shown['max_cpus'], none.info()['max_cpus'])
        results = admin.control('cpus', [right, wrong, none, client], cpus=1)
        self.assertEqual([results[node.id]['ok'] for node in (right, wrong, none, client)], [True, False, False, False])
        self.assertEqual(none.managed(), none.info()['max_cpus'])
        for node in (wrong, none, client):
            self.assertGreater(len(results[node.id]['message']), 10)

    def test_one_at_a_time(self):
        """A new secret opens other nodes and leaves the open ones alone."""
        first, second = self.together(lambda: self.node('one'), lambda: self.node('two'))
        admin = self.admin()
        for node in (first, second):
            admin.wait_node(node, state='locked')
        for node, secret in ((first, 'one'), (second, 'two')):
            results = admin.post('/api/secret', {'secret': secret})['results']
            self.assertEqual([(result['id'], result['ok']) for result in results], [(node.id, True)])
            self.assertEqual(admin.node(node)['state'], 'ready')
        self.assertEqual(admin.node(first)['state'], 'ready')
        third = self.node('one')                        # those known are tried on nodes that come later
        admin.wait_node(third, state='ready')

    def test_code_goes_only_where_the_sign_was_shown(self):
        """A host that announces another node's sign gets no auth code made from it."""
        node = self.node('open')
        thief = self.fake('x')
        thief.sign = wire.node_sign(node.address, node.port)
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        for target in (thief.address, node.address):        # in its own name, and in the node's
            message = wire.announcement(target, thief.port, thief.sign)
            wire.datagram(wire.encode(b'PING:', message), self.info_target(), thief.address)
        admin.post('/api/nodes', {'host': thief.address, 'port': thief.port})
        lab.wait_for(lambda: thief.requests, what='the other host is asked for its sign')
        admin.post('/api/poll', {'now': True})
        shown = admin.wait_node(node, state='ready')
        self.assertEqual(shown['ip_addr'], node.address)
        code = wire.auth_code('open', thief.sign)
        self.assertNotIn(code, thief.codes)
        self.assertEqual(admin.control('cpus', [node], cpus=1)[node.id]['ok'], True)
        self.assertNotIn(code, thief.codes)
        self.assertEqual(node.managed(), 1)


class Controls(lab.LabTest):
    """Each one verified at the node."""

    def setUp(self):
        super().setUp()
        self.target = self.node('open', env=ZONE)
        self.server = self.admin('--secret', 'open', '--poll_interval', 600)
        self.server.wait_node(self.target, state='ready')
        self.machine = self.target.info()['max_cpus']

    def apply(self, path, **values):
        return self.server.control(path, [self.target], **values)[self.target.id]

    def test_cpus(self):
        for asked, managed in ((1, 1), (0, 0), ('all', self.machine), (-1, self.machine - 1),
                               (self.machine, self.machine),
                               (-self.machine, 0)):
            with self.subTest(cpus=asked):
                result = self.apply('cpus', cpus=asked)
                self.assertEqual((result['ok'], result['cpus']), (True, managed), result)
                self.assertEqual(self.target.managed(), managed)
                shown = self.server.node(self.target)
                self.assertEqual(shown['cpus'], managed)
                self.assertEqual(shown['state'], 'ready' if managed else 'stopped')
                self.assertEqual(bool(shown['reason']), not managed)

    def test_too_many_cpus(self):
        for asked in (self.machine + 1, -self.machine - 1):
            result = self.apply('cpus', cpus=asked)
            self.assertFalse(result['ok'])
            self.assertIn(str(self.machine), result['message'])
            self.assertEqual(self.target.managed(), self.machine)

    def test_clients(self):
        for asked in (3, 0, -1):
            result = self.apply('clients', clients=asked)
            self.assertEqual((result['ok'], result['serve']), (True, asked), result)
            self.assertEqual(self.target.info()['serve'], asked)
            shown = self.server.node(self.target)
            self.assertEqual((shown['serve'], shown['state']), (asked, 'ready' if asked else 'stopped'))

    def times(self):
        info = self.target.info()
        return [info['service_' + name] for name in ('start', 'stop', 'end')]

    def shown_times(self):
        shown = self.server.node(self.target)
        return [shown['service_' + name] for name in ('start', 'stop', 'end')]

    def test_service_times(self):
        """Start, stop and end at a time of day of the node, read as its own zone's; cleared again."""
        for control, wait in (('start', HOUR), ('end', 6 * HOUR), ('stop', 4 * HOUR)):
            with self.subTest(control=control):
                result = self.apply('service_time', control=control, time=node_clock(wait))
                self.assertTrue(result['ok'], result)
                value = self.target.info()['service_' + control]
                self.assertEqual(node_clock(value), node_clock(wait))
                self.assertEqual(result['service_' + control], value)
                self.assertEqual(self.shown_times(), self.times())
        self.assertEqual(self.server.node(self.target)['state'], 'stopped')      # before its start
        for control in ('start', 'stop', 'end'):
            self.assertTrue(self.apply('service_time', control=control, time=None)['ok'])
            self.assertIsNone(self.target.info()['service_' + control])
        self.assertEqual(self.shown_times(), [None] * 3)
        self.assertEqual(self.server.node(self.target)['state'], 'ready')

    def test_now(self):
        result = self.apply('service_time', control='stop', time='now')
        self.assertTrue(result['ok'], result)
        self.assertLess(abs(self.target.info()['service_stop'] - time.time()), 120)
        self.server.wait_node(self.target, state='stopped', reason=bool,
                              service_stop=self.target.info()['service_stop'])
        self.assertTrue(self.apply('service_time', control='stop', time=None)['ok'])
        self.server.wait_node(self.target, state='ready')

    def test_disorder_is_refused(self):
        self.assertTrue(self.apply('service_time', control='end', time=node_clock(HOUR))['ok'])
        before = self.times()
        result = self.apply('service_time', control='stop', time=node_clock(2 * HOUR))
        self.assertFalse(result['ok'])
        self.assertGreater(len(result['message']), 10)
        self.assertEqual(self.times(), before)

    def test_last_client_ends_the_node(self):
        """serve counts down to the end of the program; that it can be set is test_clients. Here: several nodes in one
        action."""
        others = [self.node('open') for _ in range(2)]
        for node in others:
            self.server.wait_node(node, state='ready')
        everyone = [self.target] + others
        results = self.server.control('clients', everyone, clients=4)
        self.assertEqual({result['ok'] for result in results.values()}, {True})
        self.assertEqual([node.info()['serve'] for node in everyone], [4, 4, 4])


class Hostile(lab.LabTest):
    """Nodes that misbehave delay nobody, and are named as what they are."""

    def test_bad_neighbours(self):
        good = self.node('open')
        bad = [self.fake('open', mode=mode) for mode in ('silent', 'reset', 'garbage', 'huge', 'slow', 'new_sign') * 5]
        admin = self.admin('--secret', 'open')
        admin.wait_node(good, state='ready')
        for node in bad:
            node.ping(self.info_target())
        lab.wait_for(lambda: all(node.connections for node in bad), 30, 'all are asked')
        since = admin.node(good)['update_time']
        admin.wait_node(good, timeout=4, update_time=lambda value: value > since)
        self.assertEqual(admin.get('/api/nodes')['totals']['ready'], 1)
        self.assertTrue(admin.control('cpus', [good], cpus=1)[good.id]['ok'])
        self.assertEqual(good.managed(), 1)
        self.assertNotIn('Traceback', admin.output())

    def test_pickle_runs_nothing(self):
        """The datagram that runs a command in the program that this one replaces."""
        trace = self.folder() + '/trace'
        evil = b"cposix\nsystem\n(S'touch %s'\ntR." % trace.encode()
        good = self.node('open')
        admin = self.admin('--secret', 'open')
        for tag in (b'PING:', b'NODE_INFO:', b'TERMINATED:', b'PONG:', b''):
            wire.datagram(tag + evil, self.info_target(), good.address)
            with socket.create_connection(self.info_target(), 5) as sock:
                wire.send_message(sock, tag + evil)
        admin.wait_node(good, state='ready')
        self.assertFalse(os.path.exists(trace))
