"""Every node is found, shown and polled: at a second address, behind silent hosts, in a flood, and whatever it tells."""

import math
import os
import socket
import threading
import time

import dispyadmin

from . import lab, wire

MOST_TIME = 253402214400         # the last day of the year 9999


class SecondAddress(lab.LabTest):
    """A node that answers searches from one address of its machine and listens at another (dispynode -i)."""

    def setUp(self):
        super().setUp()
        # dispyadmin takes what a machine of its own says of another of its addresses: so these hosts are not its own
        lab.need_namespaces()
        segment = self.start(lab.Segment, 3)
        self.head, self.host, self.third = segment.hosts
        self.first, self.second = self.host.address, segment.network + '77'
        self.host.ip('address', 'add', self.second + '/24', 'dev', 'eth0')
        self.node_at = self.host.call(lambda: self.start(wire.FakeNode, self.second, 9701, 'open', name='second'))

    def announce(self, named=None, sign=None, source=None, host=None, port=9701):
        """What dispynode sends when it is searched for: a connection from the machine's first address."""
        message = wire.announcement(named or self.second, port, sign or self.node_at.sign)

        def call():
            with socket.create_connection((self.head.address, 9707), 10, (source or self.first, 0)) as sock:
                wire.send_message(sock, wire.encode(b'NODE_INFO:', message))
                sock.shutdown(socket.SHUT_WR)
                return sock.recv(1)
        return (host or self.host).call(call)

    def admin_at_head(self, *options):
        return self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, *options, namespace=self.head)

    def test_listed_with_what_helps(self):
        admin = self.admin_at_head()
        self.announce()
        shown = admin.wait_node(self.first + ':9701', state='unreachable', announces=self.second + ':9701')
        self.assertIn(self.second + ':9701', shown['reason'])
        self.assertIn('--node', shown['reason'])
        self.assertEqual(self.node_at.connections, 0)              # an announcement makes it connect to no other host
        result = admin.post('/api/nodes', {'host': self.second})['results'][0]
        self.assertTrue(result['ok'], result)
        admin.wait_node(self.node_at, state='ready', announces=None)
        self.assertEqual(list(admin.nodes()), [self.node_at.id])
        self.announce()                                            # as it does at each search
        lab.wait_for(lambda: len(self.node_at.asked('NODE_INFO')) > 3, what='polls')
        self.assertEqual(list(admin.nodes()), [self.node_at.id])

    def test_the_address_that_was_given_before(self):
        """The row of the first address learns of the other one, and goes only because it has never answered."""
        admin = self.admin_at_head('--node', self.first)
        admin.wait_node(self.first + ':9701', state='unreachable', announces=None)
        self.announce()
        admin.wait_node(self.first + ':9701', state='unreachable', announces=self.second + ':9701')
        admin.post('/api/nodes', {'host': self.second})
        lab.wait_for(lambda: list(admin.nodes()) == [self.node_at.id], what=lambda: 'one row: %s' % admin.nodes())

    def set_at_first(self, *options):
        """(dispyadmin, the node at the first address, which has been set and is gone)."""
        other = self.host.call(lambda: wire.FakeNode(self.first, 9701, 'open', name='first'))
        admin = self.admin_at_head(*options)
        self.assertTrue(admin.add(other)['ok'])
        self.assertTrue(admin.control('cpus', [other], cpus=2)[other.id]['ok'])
        other.close()
        return admin, other

    def check_stays(self, admin, other):
        """Its row stays, with what was set, when the node that it announces is added."""
        admin.wait_node(other, state='unreachable')
        self.announce()
        admin.wait_node(other, announces=self.node_at.id)
        self.assertTrue(admin.add(self.node_at)['ok'])
        admin.wait_node(self.node_at, state='ready')
        self.assertEqual(admin.node(other)['wanted'], {'cpus': {'cpus': 2}})

    def test_a_row_that_has_answered_stays(self):
        self.check_stays(*self.set_at_first())

    def test_what_was_set_stays_over_a_restart(self):
        """A row that has not answered since is no row that may go."""
        state = os.path.join(self.folder(), 'state.json')
        admin, other = self.set_at_first('--state', state)
        admin.close()
        self.check_stays(self.admin_at_head('--state', state), other)

    def test_two_addresses_that_announce_a_third(self):
        extra = self.first.rpartition('.')[0] + '.78'
        self.host.ip('address', 'add', extra + '/24', 'dev', 'eth0')
        admin = self.admin_at_head()
        for source in (self.first, extra):
            self.announce(source=source)
            admin.wait_node(source + ':9701', announces=self.node_at.id)
        self.assertTrue(admin.add(self.node_at)['ok'])
        lab.wait_for(lambda: list(admin.nodes()) == [self.node_at.id], what=lambda: 'one row: %s' % admin.nodes())

    def test_one_host_does_not_take_all_rows(self):
        admin = self.admin_at_head()
        for port in range(20000, 20070):
            self.announce(sign=wire.new_sign(), source=self.third.address, host=self.third, port=port)
        self.announce()
        admin.wait_node(self.first + ':9701', announces=self.node_at.id)
        self.assertLessEqual(len(admin.nodes()), 1 + dispyadmin.MAX_UNASKED_EACH)

    def test_loopback_address_of_another_machine(self):
        """It is none that we could add: that is this machine's own."""
        admin = self.admin_at_head('--node', self.first)
        admin.wait_node(self.first + ':9701', state='unreachable')
        self.announce(named='127.0.1.1')
        self.announce(named='::1')
        self.announce(source=self.second)                          # comes after them
        admin.wait_node(self.node_at, state='ready')
        self.assertIsNone(admin.node(self.first + ':9701')['announces'])

    def test_diagnosis_from_the_command_line(self):
        done = threading.Event()

        def answer_searches():
            """As dispynode does: each search that is heard is answered from the first address."""
            with self.host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as ear:
                ear.bind(('255.255.255.255', 9701))
                ear.settimeout(0.1)
                while not done.is_set():
                    try:
                        ear.recv(2000)
                        self.announce()
                    except OSError:
                        pass
        thread = threading.Thread(target=answer_searches)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(done.set)
        status, out, err = self.run_script('--secret', 'open', '--diagnose', self.first, namespace=self.head)
        self.assertEqual(status, 3, err)
        self.assertIn(self.second + ':9701', out.splitlines()[-1])

    def test_diagnosis_beside_one_that_runs(self):
        """That one has the reply port, the only one that a firewall lets in: --diagnose hears nothing, and asks it."""
        token, port = self.write('token-of-the-head'), self.free_ports()
        admin = self.admin_at_head('--http_port', port, '--http_name', 'head.example', '--http_token', token)
        admin.token = 'token-of-the-head'
        self.announce()                                            # to port 9707 alone
        admin.wait_node(self.first + ':9701', announces=self.node_at.id)

        def diagnose(*options):
            status, out, _ = self.run_script('--diagnose', self.first, '--http_port', port, *options, namespace=self.head)
            self.assertEqual(status, 3, out)
            return out.splitlines()[-1]
        self.assertIn(self.node_at.id, diagnose('--http_token', token))
        # one that does not tell changes nothing, as one that does not run
        self.assertIn('Start dispynode at %s:' % self.first, diagnose())
        admin.close()
        self.assertIn('Start dispynode at %s:' % self.first, diagnose('--http_token', token))

    def test_no_third_host(self):
        """Whoever names another host makes dispyadmin connect there by no announcement, however it comes."""
        victim = self.third.call(lambda: self.start(wire.FakeNode, self.third.address, 9701, 'open', name='victim'))
        admin = self.admin_at_head()
        for sign in (wire.new_sign(), victim.sign):
            self.announce(self.third.address, sign)
            message = wire.announcement(self.third.address, 9701, sign)
            self.host.call(lambda: wire.datagram(wire.encode(b'PING:', message), (self.head.address, 9700), self.first))
        admin.wait_node(self.first + ':9701', state='unreachable', announces=victim.id)
        self.announce()                                            # heard after the others
        admin.wait_node(self.first + ':9701', announces=self.node_at.id)
        self.assertEqual(victim.connections, 0)

    def test_end_in_the_name_of_another(self):
        """That a node ends is believed only from where it is."""
        admin = self.admin_at_head()
        self.assertTrue(admin.add(self.node_at)['ok'])
        message = {'ip_addr': self.second, 'port': 9701, 'sign': self.node_at.sign}
        self.host.call(lambda: wire.datagram(wire.encode(b'TERMINATED:', message), (self.head.address, 9700), self.first))
        polls = len(self.node_at.asked('NODE_INFO'))
        lab.wait_for(lambda: len(self.node_at.asked('NODE_INFO')) > polls + 1, what='polls')
        self.node_at.close()
        shown = admin.wait_node(self.node_at, state='unreachable')
        self.assertNotIn('announced', shown['reason'])


class Listed(lab.LabTest):
    """Hosts of --node."""

    def swallower(self, address, port):
        """An address that takes connections into its queue and never answers."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(0)
        self.addCleanup(sock.close)
        for _ in range(2):       # its queue is full then
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((address, port))
            self.addCleanup(client.close)
        return address

    def test_silent_hosts_delay_nobody(self):
        port = self.info_port + 1
        silent = [self.swallower(self.address(), port) for _ in range(5)]
        honest = self.fake('open')
        options = []
        for address in silent + [honest.address]:
            options += ['--node', address]
        admin = self.admin('--secret', 'open', *options)
        admin.wait_node(honest, state='ready')
        # It is shown before the first of the silent ones has been given up.
        reasons = {admin.node('%s:%d' % (address, port))['reason'] for address in silent}
        self.assertEqual(reasons, {'It has not answered yet.'})

    def test_announced_is_asked_at_once(self):
        """A host that was started later than dispyadmin is polled when it says that it is there."""
        address = self.address()
        admin = self.admin('--secret', 'open', '--node', address, '--poll_interval', 3600)
        admin.wait_node('%s:%d' % (address, self.info_port + 1), state='unreachable',
                        reason=lambda text: 'not answered yet' not in text)
        node = self.fake('open', address)
        began = time.monotonic()
        node.ping(self.info_target())
        admin.wait_node(node, state='ready')
        self.assertLess(time.monotonic() - began, 10)              # not at the next round of 30 s

    def test_listed_without_announcement(self):
        """Its row is in the schedule, so that it is asked with growing pauses and not every 30 s."""
        address = self.address()
        admin = self.admin('--secret', 'open', '--node', address)
        admin.wait_node('%s:%d' % (address, self.info_port + 1), state='unreachable')
        node = self.fake('open', address)
        admin.wait_node(node, state='ready', timeout=20)


class Flood(lab.HostileTest):
    PORT = 9701

    def setUp(self):
        super().setUp()
        lab.need_namespaces()
        self.head, self.host = self.start(lab.Segment, 2).hosts
        # All of 10.78.0.0/16 is this one host: it sends from each address, and none takes a connection.
        self.host.ip('route', 'add', 'local', '10.78.0.0/16', 'dev', 'lo')
        self.head.ip('route', 'add', '10.78.0.0/16', 'via', self.host.address)

    def swallow(self):
        """Take connections at all addresses of the host into a queue that is full, so that nothing answers."""
        ear = socket.socket()
        self.addCleanup(ear.close)
        ear.bind(('0.0.0.0', self.PORT))
        ear.listen(0)
        for _ in range(2):
            client = socket.socket()
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect_ex((self.host.address, self.PORT))

    def announce_all(self, count):
        for number in range(count):
            address = '10.78.%d.%d' % (number // 250, number % 250 + 1)
            message = dict(wire.announcement(address, self.PORT, wire.new_sign()), scheduler_ip_addr=None)
            wire.datagram(wire.encode(b'PING:', message), (self.head.address, 9700), address)

    def test_new_node(self):
        """3,000 announcements of addresses that swallow connections: an honest node that announces itself by UDP is shown
        while most of them have still to be waited for."""
        admin = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, namespace=self.head)
        self.host.call(self.swallow)
        lab.wait_for(lambda: admin.get('/api/about')['info_ports'][0]['state'] == 'own addresses',
                     what='it hears announcements')
        self.host.call(lambda: self.announce_all(3000))
        honest = self.head.call(lambda: self.start(wire.FakeNode, self.head.address, 9703, 'open', name='honest'))
        self.head.call(lambda: honest.ping((self.head.address, 9700)))
        admin.wait_node(honest, state='ready', timeout=10)
        waiting = sum(float(line.split()[-1]) for line in admin.request('GET', '/metrics').text.splitlines()
                      if line.startswith(('dispyadmin_waiting_conversations{', 'dispyadmin_open_exchanges{')))
        self.assertGreater(waiting, 1000)                          # the flood is not over
        self.check_log(admin)


LIES = {
    'service_start': [0, 0.0, -1, 1, 10 ** 15, 10 ** 18, 2 ** 63, float('inf'), -float('inf'), float('nan'), 'soon', [],
                      True],
    'cpus': [70000, 65537, -1, -70000, 2 ** 31, 2 ** 63, 1.5, 'many', None, True, float('nan')],
    'busy': [70000, -1, 2 ** 40, 2.5, 'all', None, False],
    'max_cpus': [0, -1, 70000, 2 ** 40, 3.0, 'all', None],
    'serve': [-2, 2 ** 31, 2 ** 63, 0.5, 'none', None],
    'clients_done': [-1, 2 ** 63, 1.5, 'x', None],
    'cpu_time': [-1, float('nan'), float('inf'), 10 ** 30, 'x', None],
    'avail_info': [0, 'full', [], {}, wire.DispyNodeAvailInfo(float('nan'), -1, 2 ** 70, 1000),
                   wire.DispyNodeAvailInfo('a', 'b', 'c', None)],
    'name': ['', 'x' * 10000, '\u202e\x1b[2J', 7, None, []],
    'scheduler_ip': ['x' * 10000, 7, [], '\n'],
}
for _key in ('service_stop', 'service_end'):
    LIES[_key] = LIES['service_start']


class Lies(lab.HostileTest):
    """A node that is opened, and then lies: its own row may show nothing, and nothing else may come of it."""

    def test_each_field_at_each_extreme(self):
        admin, good = self.watched('--state', self.folder() + '/state.json', '--keep')
        liar = self.fake('open', name='liar', cpus=8)
        self.assertTrue(admin.add(liar)['ok'])
        for control, values in (('cpus', {'cpus': 4}), ('clients', {'clients': 5}),
                                ('service_time', {'control': 'stop', 'time': '23:59'})):
            admin.control(control, [liar], **values)
        honest = dict(liar.info)
        for field, values in LIES.items():
            for value in values:
                with self.subTest(field=field, value=value):
                    liar.info = dict(honest, **{field: value})
                    self.check_told(admin, liar)
        liar.info = honest
        admin.control('drain', [good], then='stay')
        admin.wait_node(good, cpus=0, drain=lambda drain: drain and drain['idle'])
        admin.control('cancel_drain', [good])
        admin.wait_node(good, cpus=4, drain=None)
        self.check_log(admin)

    def check_told(self, admin, liar):
        polls = len(liar.asked('NODE_INFO'))
        admin.post('/api/poll', {'now': True, 'nodes': [liar.id]})
        self.assertGreater(len(liar.asked('NODE_INFO')), polls)
        node = admin.get('/api/nodes/' + liar.id)                  # its row is there
        for key in ('service_start', 'service_stop', 'service_end'):
            self.assertTrue(node[key] is None or 1 <= node[key] <= MOST_TIME, node[key])
        for key in ('cpus', 'max_cpus', 'busy'):
            self.assertTrue(node[key] is None or 0 <= node[key] <= 65536, node[key])
        for key, values in (('cpus', {'cpus': 4}), ('service_time', {'control': 'end', 'time': '23:58'})):
            answer = admin.post('/api/' + key, dict(values, nodes=[liar.id], preview=True))
            self.assertEqual(len(answer['results']), 1)
        for path in ('/metrics', '/api/nodes', '/api/events', '/api/history'):
            self.assertEqual(admin.request('GET', path).status, 200)
        self.assertFalse(any(isinstance(value, float) and not math.isfinite(value) for value in node.values()))
