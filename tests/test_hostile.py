"""Attacks from the network: each against the real script in a process of its own, with a good node that has to be shown,
polled and controlled after it."""

import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import dispyadmin

from . import environment, lab, test_console, test_page, wire

GROWTH = 80                      # MiB that an attack may make it take, at most
ASKED = 60                       # connections that a sender can make it open to one address within seconds
NO_CODE = b'0' * 40


def ping(sign=None, tag=b'PING:', **fields):
    value = dict(wire.announcement('127.0.0.1', 9701, sign or wire.new_sign()), scheduler_ip_addr=None)
    value.update(fields)
    return wire.encode(tag, value)


class NetworkTest(lab.HostileTest):
    def bad(self, address=None, **kwargs):
        """A fake node that notes what it is sent."""
        return self.start(lab.Watched, address or self.address(), kwargs.pop('port', self.info_port + 1),
                          kwargs.pop('secret', 'open'), **kwargs)

    def send(self, data, source=None):
        wire.datagram(data, self.info_target(), source or self.address())

    def tell(self, data, source=None):
        """The bytes over a connection to the info port; whether it was taken whole."""
        with socket.create_connection(self.info_target(), 5, (source or self.address(), 0)) as sock:
            try:
                sock.sendall(data)
                return True
            except OSError:
                return False

    def keep_sending(self, target, source, messages, pause=0.001):
        """Datagrams one after another, slow enough that each is heard by itself."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            for message in messages:
                sock.sendto(message, target)
                time.sleep(pause)


# ---- bytes ----------------------------------------------------------------------------------------------------------

def bombs(trace):
    """What makes pickle's own reader run something, allocate without measure, stall or crash."""
    command = b'touch ' + trace.encode()
    plain = dict(wire.announcement('127.0.0.1', 9701, wire.new_sign()))
    return {
        'a command': b"cposix\nsystem\n(S'" + command + b"'\ntR.",
        'a command in protocol 4': b'\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c' + bytes([len(command)]) + command
                                   + b'\x85R.',
        'eval': b"c__builtin__\neval\n(S'__import__(\"os\").system(\"" + command + b"\")'\ntR.",
        'an instance': b"(iposix\nsystem\n(S'" + command + b"'\no.",
        'a gigabyte by a memo index': b'\x80\x02Nr\xff\xff\xff\x07.',
        'many high memo indexes': b'\x80\x02' + b''.join(b'Nr' + struct.pack('<I', 2 ** 31 - i) for i in range(300)) + b'.',
        'a bytearray of 2 GB': b'\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.',
        'nested tuples as a key': b'\x80\x02})' + b'\x85' * 1900 + b'K\x01s.',
        'integers that collide': pickle.dumps({i * (2 ** 61 - 1): None for i in range(1, 120)}, 2),
        'a list doubled 200 times': b'\x80\x02]q\x00' + b'(h\x00h\x00lq\x00' * 200 + b'.',
        'a dict that holds itself': b'\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.',
        'an integer of 2 GB': b'\x80\x02\x8b\xff\xff\xff\x7f.',
        'an integer of -1 bytes': b'\x80\x02\x8b\xff\xff\xff\xff.',
        'an integer of many digits': b'L' + b'9' * 1900 + b'L\n.',
        'text of 2**63 bytes': b'\x80\x04\x8d' + b'\xff' * 7 + b'\x7fa.',
        'bytes of 4 GB': b'\x80\x04B\xff\xff\xff\xffa.',
        'a frame of 2**64 bytes': b'\x80\x04\x95' + b'\xff' * 8 + b'N.',
        'a string of parentheses': b'S' + b'(' * 1900 + b'\n.',
        'a string of signs': b"S''" + b'-' * 1900 + b'1\n.',
        'a string of powers': b"S''+9**9**9**9\n.",
        'an odd escape': b"S'\\\x1b\\d'\n.",
        'marks': b'(' * 2000 + b'.',
        'lists in lists': b']' * 1900 + b'a' * 1899 + b'.',
        'a persistent id': b'Pabc\n.',
        'an out-of-band buffer': b'\x80\x05\x97\x98.',
        'an address of an interface without end': wire.encode(b'', dict(plain, ip_addr='fe80::1%' + '9' * 20)),
        'an address with a zone of many signs': wire.encode(b'', dict(plain, ip_addr='fe80::1%\x1b[2J\x00\n')),
        'an address of digits': wire.encode(b'', dict(plain, ip_addr='\u00b2.\u0663.1.1')),
        'a port of many digits': wire.encode(b'', dict(plain, port=10 ** 30)),
        'a port that is true': wire.encode(b'', dict(plain, port=True)),
        'a port of 0': wire.encode(b'', dict(plain, port=0)),
        'a negative port': wire.encode(b'', dict(plain, port=-1)),
        'a sign in capitals': wire.encode(b'', dict(plain, sign='A' * 40)),
        'a sign of other digits': wire.encode(b'', dict(plain, sign='\u0663' * 40)),
        'a sign with a line end': wire.encode(b'', dict(plain, sign='a' * 40 + '\n')),
        'a release of many digits': wire.encode(b'', dict(plain, version='4.' + '9' * 1000)),
        'a release that is a list': wire.encode(b'', dict(plain, version=['4.15.2'])),
        'no dict': wire.encode(b'', [plain]),
        'nothing': b'',
    }


class Bytes(NetworkTest):
    def test_bombs_in_datagrams_and_connections(self):
        trace = self.folder() + '/trace'
        admin, node = self.watched()
        growth = memory_before(admin), GROWTH
        for what, bomb in bombs(trace).items():
            began, said = node.clock(), len(admin.err)
            for tag in (b'PING:', b'NODE_INFO:', b'TERMINATED:', b'PULSE:', b'', b'\x80:'):
                self.send(tag + bomb)
                self.send(tag + bomb, node.address)
                self.tell(struct.pack('>I', len(tag + bomb)) + tag + bomb)
            admin.get('/api/nodes')
            with self.subTest(what):
                self.assertLess(node.clock() - began, 3)
                self.assertFalse(os.path.exists(trace))
                self.assertNotIn('Traceback', '\n'.join(admin.err[said:]))
        self.check_alive(admin, node, growth=growth)

    def test_a_flood_of_one_bomb_leaves_the_listener_hearing(self):
        """A message that costs the listener a pause would make it deaf with some messages a second."""
        admin, node = self.watched()
        for what, bomb in bombs('/nonexistent').items():
            for number in range(20):
                self.send(b'PING:' + bomb, '127.0.0.1')
        late = self.bad(secret='open')
        late.ping(self.info_target())
        admin.wait_node(late, timeout=5, state='ready')
        self.check_alive(admin, node)

    def test_bombs_as_answers(self):
        """What a node answers goes through the same reader, with more bytes."""
        trace = self.folder() + '/trace'
        bad = self.bad()
        admin, node = self.watched()
        growth = memory_before(admin), GROWTH
        self.assertTrue(admin.add(bad)['ok'])
        answers = dict(bombs(trace))
        answers['many integers that collide'] = pickle.dumps({i * (2 ** 61 - 1): None for i in range(1, 900)}, 2)
        answers['16 KB of empty lists'] = b'\x80\x02(' + b']' * 16000 + b't.'
        answers['one text a thousand times'] = (b'\x80\x02X\x00\x30\x00\x00' + b'x' * 12288 + b'q\x00('
                                                + b'h\x00' * 1000 + b't.')
        for what, answer in answers.items():
            with self.subTest(what):
                bad.raw = struct.pack('>I', len(answer)) + answer
                began = node.clock()
                for path, body in (('/api/poll', {'now': True, 'nodes': [bad.id]}),
                                   ('/api/cpus', {'cpus': 1, 'nodes': [bad.id]})):
                    result = admin.post(path, body)['results'][0]
                    self.assertFalse(result['ok'], result)
                self.assertLess(node.clock() - began, 3)
                self.assertFalse(os.path.exists(trace))
        bad.raw = None
        self.check_alive(admin, node, growth=growth)
        admin.post('/api/poll', {'now': True, 'nodes': [bad.id]})
        admin.wait_node(bad, state='ready')             # it was none of dispyadmin's that broke

    def test_lengths(self):
        """A length is looked at before anything is read or kept for it."""
        bad = self.bad()
        admin, node = self.watched()
        growth = memory_before(admin), GROWTH
        self.assertTrue(admin.add(bad)['ok'])
        message = ping(port=node.port)
        for size in (0, 1, 2 ** 14 + 1, 2 ** 24, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1):
            with self.subTest(size=size):
                head = struct.pack('>I', size)
                self.tell(head + message)
                bad.raw = head + message
                self.assertFalse(admin.post('/api/poll', {'now': True, 'nodes': [bad.id]})['results'][0]['ok'])
                if size > 2 ** 20:       # it does not read on
                    self.assertFalse(self.tell(head + b'x' * (64 << 20)), 'it took 64 MB')
        for size in (1, 2, 3):           # half a length
            self.tell(b'\x00' * size)
            bad.raw = b'\x00' * size
            admin.post('/api/poll', {'now': True, 'nodes': [bad.id]})
        self.check_alive(admin, node, growth=growth)

    def test_a_byte_now_and_then_towards_the_listener(self):
        """One deadline for a message: the senders are cut off, and another node is heard meanwhile."""
        admin, node = self.watched()
        message = ping(port=node.port)
        data = struct.pack('>I', len(message)) + message
        files = lab.open_files_of(admin.pid)
        socks = [socket.create_connection(self.info_target(), 5) for _ in range(400)]
        for sock in socks:
            self.addCleanup(sock.close)
        began, at = node.clock(), 0
        late = self.bad()
        with socket.create_connection(self.info_target(), 5, (late.address, 0)) as sock:
            wire.send_message(sock, wire.encode(b'NODE_INFO:', wire.announcement(late.address, late.port, late.sign)))
        admin.wait_node(late, timeout=3, state='ready')
        while socks:
            if node.clock() - began > 9:
                self.fail('%d connections are held after 9 s' % len(socks))
            for sock in list(socks):
                try:
                    sock.sendall(data[at:at + 1])
                    sock.setblocking(False)
                    if sock.recv(1) == b'':
                        raise ConnectionResetError
                except BlockingIOError:
                    sock.setblocking(True)
                except OSError:
                    sock.close()
                    socks.remove(sock)
            at += 1
            time.sleep(0.3)
        self.assertGreater(node.clock() - began, 2)              # a slow but honest node has time
        lab.wait_for(lambda: lab.open_files_of(admin.pid) < files + 10, 5, 'the connections are closed')
        self.check_alive(admin, node)

    def test_a_byte_now_and_then_from_a_node(self):
        """One deadline for an exchange, however it is spread."""
        slow = [self.bad(mode='normal') for _ in range(4)]
        admin, node = self.watched()
        for other in slow:
            self.assertTrue(admin.add(other)['ok'])
        slow[0].mode = 'slow'                                # a byte each half second
        for other in slow[1:]:
            other.mode = 'slow'
        since = node.clock()
        for other in slow:
            admin.wait_node(other, timeout=12, state='unreachable')
        self.assertLess(node.clock() - since, 10)
        self.assertLess(node.longest_gap(since), 2.2)
        self.check_alive(admin, node)


def memory_before(admin):
    """Memory before the attack, when all that is needed once has been loaded."""
    for path in ('/', '/api/nodes', '/page.js', '/api/about'):
        admin.request('GET', path)
    return lab.memory_of(admin.pid)


# ---- numbers --------------------------------------------------------------------------------------------------------

class Many(NetworkTest):
    def test_many_from_one_sender(self):
        """20,000 ports of one address: few wait at any time, and another sender has its turn."""
        admin, node = self.watched()
        growth = memory_before(admin), GROWTH
        source = self.address()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            for number in range(20000):
                sock.sendto(ping(port=1 + number % 65535, sign='%040x' % number), self.info_target())
                if number % 100 == 99:
                    time.sleep(0.005)
        late = self.bad()
        # again and again, as the kernel may have dropped the first
        lab.wait_for(lambda: late.ping(self.info_target()) or late.id in admin.nodes(), 5, 'another sender is heard')
        admin.wait_node(late, timeout=5, state='ready')
        self.check_alive(admin, node, growth=growth)
        self.assertEqual(set(admin.nodes()), {node.id, late.id})

    def test_waiting_addresses_are_bounded(self):
        """In this process, with a poller that does nothing: what waits is bounded in all and for each sender."""
        settings = dispyadmin.read_settings(['--info_port', '0', '--http_port', '0'], {})
        admin = dispyadmin.Admin(settings)
        self.addCleanup(admin.discard)
        heard = admin.listener._understand
        for number in range(5000):
            heard(ping(port=1 + number, ip_addr='10.1.2.3'), '10.1.2.3', False)
        self.assertLess(sum(admin.poller.load()[0].values()), 300, 'from one sender')
        for number in range(50000):
            heard(b'PING:' + pickle.dumps({'ip_addr': 'x', 'port': 9701, 'sign': '%040x' % number}, 2),
                  '10.%d.%d.%d' % (number >> 16, number >> 8 & 255, number & 255), False)
        self.assertLess(sum(admin.poller.load()[0].values()), 10000)
        self.assertEqual(admin.table.ids(), [])

    def test_asked_a_bounded_number_of_times(self):
        """An address that fails when it is asked is not asked again for each datagram that names it."""
        stranger, flaky = self.bad(mode='new_sign', name='stranger'), self.bad(mode='reset', name='flaky')
        admin, node = self.watched()
        for bad in (stranger, flaky):
            with self.subTest(bad.name):
                self.keep_sending(self.info_target(), bad.address,
                                  [ping(ip_addr=bad.address, port=bad.port) for _ in range(2000)])
                self.assertGreater(bad.connections, 0)
                self.assertLess(bad.connections, ASKED)
        self.check_alive(admin, node)

    def test_forged_restarts_of_a_known_node(self):
        """Announcements in its name with other signs, and of its end, do not make it be asked without measure."""
        admin, node = self.watched()
        for tag, sign in ((b'PING:', None), (b'TERMINATED:', node.sign), (b'TERMINATED:', None)):
            with self.subTest(tag=tag, known=bool(sign)):
                before = node.connections
                self.keep_sending(self.info_target(), node.address,
                                  [ping(sign, tag, ip_addr=node.address, port=node.port) for _ in range(2000)])
                self.assertLess(node.connections - before, ASKED)
        self.check_alive(admin, node)

    def test_row_that_shows_a_new_sign_at_each_question(self):
        """It was a node once; now it is asked at the pace of one that fails, and its signs are not kept."""
        bad = self.bad()
        admin, node = self.watched()
        self.assertTrue(admin.add(bad)['ok'])
        bad.mode = 'new_sign'
        lab.wait_for(lambda: admin.node(bad)['state'] != 'ready', what='it does not count as a good node')
        since, before = node.clock(), bad.connections
        self.keep_sending(self.info_target(), bad.address,
                          [ping(ip_addr=bad.address, port=bad.port) for _ in range(2000)])
        self.assertLess(bad.connections - before, ASKED)
        self.assertLess(node.longest_gap(since), 2.2)
        self.check_alive(admin, node)

    def test_signs_are_given_back(self):
        """The table keeps no sign of conversations that failed."""
        table = dispyadmin.NodeTable()
        node_id = '10.0.0.1:9701'
        table.add('10.0.0.1', 9701)
        for number in range(1000):
            for turn in range(3):
                table.may_send(node_id, '%040x' % (number * 3 + turn))
            table.failed(node_id, 'It shows a new sign each time it is asked.')
        self.assertLess(len(table._owners), 20)

    def test_releases(self):
        """The releases asked for are few, the known ones are among them, and names of hosts that are none add nothing."""
        ear = self.start(Ear, self.info_port + 1)
        admin, node = self.watched('--ping_interval', 1)
        for number in range(3000):
            self.send(ping(version='9.%d.%d' % (number // 100, number % 100), port=1 + number), '127.0.0.1')
        real = self.bad()
        real.ping(self.info_target(), version='4.98.1')
        admin.wait_node(real, state='ready', version='4.98.1')
        lab.wait_for(lambda: '4.98.1' in ear.releases(), what=lambda: 'the release of a node that answered: %s'
                     % sorted(ear.releases()))
        self.assertLess(len(ear.releases()), 60)
        self.assertLessEqual(set(dispyadmin.DISPY_RELEASES), ear.releases())
        self.check_alive(admin, node)

    def test_bad_messages_are_logged_once_for_each_sender(self):
        admin, node = self.watched()
        for _ in range(50):
            self.send(b'PING:\x80\x02Q.', '127.0.0.99')
        for number in range(5000):       # senders without end make no log without end
            self.send(b'PING:\x80\x02Q.', '127.99.%d.%d' % (number // 250, 1 + number % 250))
        admin.get('/api/nodes')
        self.check_alive(admin, node)
        lines = [line for line in admin.err if '127.0.0.99 ' in line]
        self.assertEqual(len(lines), 1, lines)
        self.assertLess(len(admin.err), 2500, 'lines in the log')


class Ear:
    """The releases that discovery names, heard at the node port."""

    def __init__(self, port):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.sock.bind(('', port))
        self.heard, self.closing = [], False
        self.thread = threading.Thread(target=self.hear, daemon=True)
        self.thread.start()

    def hear(self):
        while not self.closing:
            data = self.sock.recv(4000)
            if data.startswith(b'NODE_INFO:'):
                self.heard.append(pickle.loads(data[10:])['version'])

    def releases(self):
        return set(self.heard)

    def close(self):
        self.closing = True
        wire.datagram(b'', ('127.0.0.1', self.sock.getsockname()[1]))
        self.thread.join(5)
        self.sock.close()


# ---- who speaks -----------------------------------------------------------------------------------------------------

class Impersonation(NetworkTest):
    def check_codes(self, impostor, *nodes):
        """It was asked, and was sent nothing that is made from a sign of a node."""
        self.assertGreater(len(impostor.codes), 0)
        secret = {wire.auth_code(word, node.sign) for node in nodes for word in ('', 'open')}
        self.assertEqual(set(impostor.codes) & secret, set())
        self.assertEqual(set(impostor.codes), {NO_CODE})

    def test_sign_of_a_known_node(self):
        """Others that announce it get no code and no row; they are shown among the node's addresses, not without end."""
        admin, node = self.watched()
        impostors = [self.bad(name='impostor', secret='other') for _ in range(30)]
        for number, impostor in enumerate(impostors):
            impostor.sign = node.sign
            impostor.info['cpus'] = 3
            impostor.ping(self.info_target())
            with socket.create_connection(self.info_target(), 5, (impostor.address, 0)) as sock:
                wire.send_message(sock, wire.encode(b'NODE_INFO:', wire.announcement(impostor.address, impostor.port,
                                                                                     node.sign)))
            if number < 5:
                admin.wait_node(node, addresses=lambda shown: impostor.id in shown)
        lab.wait_for(lambda: all(impostor.codes for impostor in impostors), what='all are asked')
        rows = admin.nodes()
        self.assertEqual({row['name'] for row in rows.values()}, {'good'})
        self.assertEqual(set(rows), {node.id})
        self.assertLess(len(rows[node.id]['addresses']), 31)
        for impostor in impostors:
            self.check_codes(impostor, node)
        self.check_alive(admin, node)
        for impostor in impostors:       # controls went to the node alone
            self.assertEqual(impostor.asked('SET_CPUS'), [])
            self.check_codes(impostor, node)

    def test_sign_of_a_node_that_is_lost(self):
        """Not even when the node has gone: it comes back with the same sign after a broken cable."""
        admin, node = self.watched()
        impostor = self.bad(secret='other')
        impostor.sign = node.sign
        node.mode = 'reset'
        admin.wait_node(node, state='unreachable')
        for _ in range(3):
            asked = len(impostor.codes)
            impostor.ping(self.info_target())
            lab.wait_for(lambda: len(impostor.codes) > asked or impostor.id in str(admin.nodes()),
                         what='the impostor is asked')
        self.check_codes(impostor, node)
        self.assertEqual(set(admin.nodes()), {node.id})
        node.mode = 'normal'
        admin.wait_node(node, timeout=20, state='ready')
        self.check_codes(impostor, node)
        self.check_alive(admin, node)

    def test_row_that_takes_to_the_sign_of_another(self):
        """Known under a sign of its own, then it shows another's: locked, with a reason, and without a code."""
        admin, node = self.watched()
        impostor = self.bad(name='impostor')
        self.assertTrue(admin.add(impostor)['ok'])
        own = {NO_CODE} | {wire.auth_code(word, impostor.sign) for word in ('', 'open')}
        impostor.sign = node.sign
        shown = admin.wait_node(impostor, state='locked', controllable=False)
        self.assertIn(node.id, shown['reason'])
        result = admin.control('cpus', [impostor], cpus=1)[impostor.id]
        self.assertFalse(result['ok'])
        impostor.ping(self.info_target())
        self.check_alive(admin, node)
        self.assertLessEqual(set(impostor.codes), own)
        self.assertEqual(admin.node(impostor)['state'], 'locked')

    def test_address_of_an_impostor_can_be_a_node_later(self):
        """An address that once showed another's sign, and now has a node with its own, is found."""
        admin, node = self.watched()
        other = self.bad(name='other')
        own, other.sign = other.sign, node.sign
        other.ping(self.info_target())
        admin.wait_node(node, addresses=lambda shown: other.id in shown)
        other.sign = own
        for _ in range(3):
            other.ping(self.info_target())
            time.sleep(0.1)
        admin.wait_node(other, timeout=5, state='ready', name='other')
        self.assertEqual(admin.node(node)['addresses'], [node.id])
        self.check_alive(admin, node)

    def test_forged_end(self):
        """TERMINATED from another host, or in the node's name: the node is asked before that is believed."""
        admin, node = self.watched()
        states = []
        for source in (self.address(), node.address):
            for sign in (node.sign, wire.new_sign()):
                for claimed in (node.address, source):
                    self.send(ping(sign, b'TERMINATED:', ip_addr=claimed, port=node.port), source)
                    states.append(admin.node(node)['state'])
        since = time.monotonic()
        while time.monotonic() - since < 2:
            states.append(admin.node(node)['state'])
            time.sleep(0.02)
        self.assertEqual(set(states), {'ready'})
        self.assertEqual(set(admin.nodes()), {node.id})
        self.check_alive(admin, node)

    def test_one_spelling_for_each_address(self):
        """One row, however its address is written; what is no address is refused."""
        admin, node = self.watched()
        six = self.bad('::1', port=self.free_ports())
        octets = node.address.split('.')
        for host in ('::ffff:' + node.address, '::FFFF:%s' % node.address,
                     '::ffff:%02x%02x:%02x%02x' % tuple(map(int, octets))):
            result = admin.post('/api/nodes', {'host': host, 'port': node.port})['results'][0]
            self.assertEqual((result['id'], result['ok']), (node.id, True), host)
            self.send(ping(node.sign, ip_addr=host, port=node.port), node.address)
        for host in ('::1', '0:0:0:0:0:0:0:1', '::0001', '0000::1', '::0.0.0.1'):
            answer = admin.request('POST', '/api/nodes', {'host': host, 'port': six.port})
            self.assertEqual(answer.status, 200, (host, answer.text))
            self.assertEqual(answer.json['results'][0]['id'], six.id, host)
        for host in ('127.0.0.01', '0127.0.0.1', '0x7f.0.0.1', '2130706433', '127.1', '1.2.3', '::ffff:127.0.0.01',
                     'fe80::1%' + '9' * 20, 'fe80::1%a\x00b', 'fe80::1%\x1b[2J', 'fe80::1%<b>', '\u0661.1.1.1',
                     '::1%\n', '127.0.0.1\x00', '[::1', '::1]', 'fe80::1%%', '1.2.3.4.5', '%', 'fe80::1%\ud800'):
            with self.subTest(host):
                answer = admin.request('POST', '/api/nodes', {'host': host, 'port': node.port})
                if answer.status != 400:         # a zone may be one that this machine just has not
                    self.assertEqual((answer.status, answer.json['results'][0]['ok']), (200, False), answer.text)
        self.assertEqual(set(admin.nodes()), {node.id, six.id})
        self.check_alive(admin, node)


# ---- nodes that misbehave -------------------------------------------------------------------------------------------

class Neighbours(NetworkTest):
    def test_hundreds_of_bad_nodes_delay_nobody(self):
        """They were all good; then they fall silent, become slow, reset or talk nonsense, all at once."""
        modes = ('silent', 'slow', 'reset', 'garbage', 'huge', 'new_sign')
        bad = [self.bad() for _ in range(300)]
        admin, node = self.watched()
        others = [self.bad(name='good too') for _ in range(3)]
        for other in others + bad:
            other.ping(self.info_target())
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['ready'] == 304, 30,
                     lambda: 'all are ready: %s' % admin.get('/api/nodes')['totals'])
        for other in others:
            other.clock = node.clock
        since = node.clock()
        for number, other in enumerate(bad):
            other.mode = modes[number % len(modes)]
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['ready'] == 4, 30, 'the bad ones are known')
        self.check_alive(admin, node)
        time.sleep(max(0, since + 10 - node.clock()))
        for good in [node] + others:     # judged from their side; each is due every second
            self.assertLess(good.longest_gap(since), 2.2)
            self.assertEqual(admin.node(good)['state'], 'ready')
        late = self.bad(name='late')
        late.ping(self.info_target())
        admin.wait_node(late, timeout=5, state='ready')
        self.check_log(admin)

    def test_five_hundred_nodes_with_256_files(self):
        """More slowly than with more, but all of them: found, polled, controlled; and the page is served meanwhile."""
        port = self.info_port + 1
        cluster = self.start(Simulated, 500, port, self.info_port, 'open')
        admin = self.admin('--secret', 'open', '--poll_interval', 5,
                           before=['sh', '-c', 'ulimit -n 256; exec "$@"', 'sh'])
        ready, announced = [0], []

        def all_ready():
            """As real nodes do, these announce themselves again and again: who is not heard once is heard later."""
            if not announced or time.monotonic() - announced[-1] > 10:
                announced.append(time.monotonic())
                cluster.say('announce %s 1' % self.admin_address)
            ready[0] = admin.get('/api/nodes')['totals']['ready']
            return ready[0] == 500
        lab.wait_for(all_ready, 60, lambda: 'all are ready: %d; %s' % (ready[0], admin.err[-3:]))
        idle = [socket.create_connection((admin.host, admin.port), 5) for _ in range(150)]
        for sock in idle:
            self.addCleanup(sock.close)
        cluster.log()
        asked = set()

        def all_asked(first, count):
            asked.update(name for name, _ in cluster.log() if name >= first)
            return len(asked) == count
        lab.wait_for(lambda: all_asked('', 500), 25, lambda: 'all are asked: %d' % len(asked))
        self.check_quick(admin)
        ids = sorted(admin.nodes())
        results = admin.control('cpus', ids, cpus=3)
        self.assertEqual({(result['ok'], result.get('cpus')) for result in results.values()}, {(True, 3)})
        cluster.say('silent 400')                # now most places are taken by those that never answer
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['unreachable'] >= 300, 60,
                     lambda: 'they are seen to be silent: %s' % admin.get('/api/nodes')['totals'])
        cluster.log()
        asked.clear()
        lab.wait_for(lambda: all_asked('sim00400', 100), 25, lambda: 'those that answer are asked: %d' % len(asked))
        self.assertLessEqual(lab.open_files_of(admin.pid), 256)
        self.check_log(admin)
        self.assertLess(len(admin.err), 2500)


class Simulated:
    """The simulated cluster, in a process of its own, and what it is told."""

    def __init__(self, count, port, info_port, secret):
        self.popen = subprocess.Popen([sys.executable, '-m', 'tests.simulated', '--count', str(count), '--port',
                                       str(port), '--info_port', str(info_port), '--secret', secret],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=environment.ROOT)
        if not self.popen.stdout.readline().startswith(b'simulated'):
            self.close()
            raise AssertionError('the simulated nodes do not start')

    def say(self, line):
        self.popen.stdin.write(line.encode() + b'\n')
        self.popen.stdin.flush()

    def log(self):
        """[(name, time)] of who was asked since the last time."""
        self.say('log')
        entries = []
        for line in iter(self.popen.stdout.readline, b'end\n'):
            if not line:
                raise AssertionError('the simulated nodes ended')
            if line.startswith(b'sim0'):
                name, when = line.decode().split()
                entries.append((name, float(when)))
        return entries

    def close(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stdout.close()


# ---- texts ----------------------------------------------------------------------------------------------------------

NAMES = (
    '<img src=x onerror="window.pwned=1;document.title=\'pwned\'">',
    '<script>window.pwned=1</script>',
    '"><svg onload=window.pwned=1>',
    "' onmouseover='window.pwned=1' x='",
    '<iframe srcdoc="<script>parent.pwned=1</script>">',
    'javascript:window.pwned=1',
    '${window.pwned=1}{{constructor.constructor("window.pwned=1")()}}',
    '__proto__',
    '</style><style>*{display:none}',
    '\x1b]0;pwned\x07\x1b[2J\x1b[31mred',
    'a\r\n2026-01-01 00:00:00,000 error: forged line',
    'end\u202egnp.exe',
    'nul\x00nul',
    'half\ud800pair',
    '\u2028\u2029separators\x85',
    'x' * 5000,
    '&lt;b&gt;&#x3c;i>',
)
CONTROL = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]')


class Texts(NetworkTest):
    def named(self, admin):
        """Nodes with all these names, and other texts like them."""
        nodes = []
        for number, name in enumerate(NAMES):
            node = self.bad(name=name)
            node.info['scheduler_ip'] = name[:300]
            node.protocol = 2 + number % 3
            result = admin.add(node)
            self.assertTrue(result['ok'], (name, result))
            nodes.append(node)
            self.send(ping(node.sign, version='<b>' + name[:100], ip_addr=name[:60], port=node.port), node.address)
        return nodes

    def test_log(self):
        """With -d: one line for each thing that happened, nothing that moves a cursor, no line that a node wrote."""
        admin, node = self.watched('-d')
        nodes = self.named(admin)
        for name in NAMES:
            self.send(name.encode('utf-8', 'surrogatepass')[:1500], self.address())
            self.send(b'PING:c' + name.encode('utf-8', 'surrogatepass')[:1500] + b'\nx\n.', self.address())
            self.send(b'PING:S' + name.encode('utf-8', 'surrogatepass')[:1500] + b'\n.', self.address())
            self.send(b'PING:I' + name.encode('utf-8', 'surrogatepass')[:1500] + b'\n.', self.address())
        nodes[0].raw = b'\x00\x00\x00\x28' + b'\x1b[2J\n2026 error: forged line'.ljust(40)
        admin.post('/api/poll', {'now': True})
        for other in nodes:
            other.close()
        admin.post('/api/poll', {'now': True})
        self.check_alive(admin, node)
        admin.close()
        self.assertGreater(len(admin.err), 20)
        for line in admin.out + admin.err:
            self.assertIsNone(CONTROL.search(line), ascii(line))
            self.assertLess(len(line), 600)
        for line in admin.err:
            self.assertRegex(line, r'^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (debug|info|warning): ')
        for line in admin.out:
            self.assertFalse(line.startswith('2026'), line)

    def test_console(self):
        terminal = self.start(test_console.Terminal, '-i', self.admin_address, '--info_port', self.info_port,
                              '--node_port', self.info_port + 1, '--poll_interval', 1, '--secret', 'open')
        terminal.expect(r'dispyadmin \S+: http://')
        nodes = [self.bad(name=name) for name in NAMES]
        for node in nodes:
            node.ping(self.info_target())
        counted = '%d nodes, %d ready' % (len(nodes), len(nodes))
        text = lab.wait_for(lambda: terminal.say('nodes', counted)
                            if counted in terminal.say('nodes', r'\d+ nodes?\b') else None,
                            what=lambda: 'all nodes: %r' % terminal.text)
        lines = [line for line in text.replace('\r', '').split('\n') if line]
        for line in lines:
            self.assertIsNone(CONTROL.search(line), ascii(line))
        self.assertEqual(len([line for line in lines if line.startswith('127.')]), len(NAMES))
        self.assertFalse([line for line in lines if line.startswith('2026-01-01 00:00:00,000 error')])
        self.assertIsNone(CONTROL.search(terminal.text.replace('\r', '')))

    def test_json(self):
        """What an answer holds is text without control characters, and harmless even when taken for HTML."""
        admin, node = self.watched()
        self.named(admin)
        answer = admin.request('GET', '/api/nodes')
        self.assertEqual(answer.headers['Content-Type'], 'application/json')
        for row in answer.json['nodes']:
            for value in row.values():
                if isinstance(value, str):
                    self.assertIsNone(CONTROL.search(value), ascii(value))
                    self.assertLessEqual(len(value), 400)
                    value.encode('utf-8')
            self.assertIn(row['version'], (None, '4.15.2'))
        self.check_alive(admin, node)


class Page(test_page.PageTest, NetworkTest):
    def test_names_in_a_browser(self):
        """The table, the details, the outcome of a control and the address line: no text becomes markup or script."""
        admin, good = self.watched()
        nodes = Texts.named(self, admin)
        self.open(admin)
        self.wait('document.querySelectorAll("#rows tr").length >= %d' % len(nodes), 'all rows')
        for node, name in zip(nodes[:9], NAMES):
            self.wait_cell(node, 'name', name)
        odd = 'img, script, iframe, svg[onload], [onmouseover], [onerror], style, b, a[href^="javascript:" i]'

        def check():
            self.assertIsNone(self.js('window.pwned'))
            self.assertNotIn('pwned', self.driver.title)
            self.assertEqual(self.js('Array.from(document.querySelectorAll(arguments[0]))'
                                     '.filter(e => !e.closest("head") && e.outerHTML.includes("pwned"))'
                                     '.map(e => e.outerHTML)', odd), [])
            self.assertEqual(self.js('document.querySelectorAll("#rows img, #rows script, #rows iframe, #rows style, '
                                     '#rows b").length'), 0)
        check()
        self.type('filter', '<img')
        self.wait('document.querySelectorAll("#rows tr").length < %d' % len(nodes), 'the filter is at work')
        check()
        for node in nodes[:4]:
            self.driver.get(admin.url + 'admin_node.html?host=' + node.id)
            self.wait("document.querySelector('#freshness').textContent !== ''", 'a first answer')
            check()
        for place in ('admin_node.html?host=<img src=x onerror=window.pwned=1>', '?<script>window.pwned=1</script>',
                      '#<img src=x onerror=window.pwned=1>', 'admin_node.html?host=javascript:window.pwned=1',
                      'admin_node.html#"><svg onload=window.pwned=1>'):
            self.driver.get('about:blank')
            self.driver.get(admin.url + place)
            self.wait("document.querySelector('#freshness').textContent !== ''", 'a first answer')
            check()
        self.browser.errors()            # a row that is not there is a 404, which the browser's console tells
        self.check_alive(admin, good)


# ---- other hosts ----------------------------------------------------------------------------------------------------

PORT = 9700                      # every host has its own ports


class Hosts(NetworkTest):
    """Hosts in network namespaces: on loopback all addresses are one host's."""

    def setUp(self):
        super().setUp()
        lab.need_namespaces()

    def host_admin(self, head, *options):
        return self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, '--ping_interval', 600, '--info_port',
                          PORT, *options, namespace=head)

    def host_fake(self, host, **kwargs):
        return self.start(lambda: host.call(lambda: lab.Watched(host.address, PORT + 1, 'open', **kwargs)))

    def test_fifty_thousand_that_do_not_exist(self):
        """Forged senders, each of which swallows what is sent to it: the worst that a flood can be."""
        head, one, two, attacker = self.start(lab.Segment, 4).hosts
        head.ip('route', 'add', '10.78.0.0/16', 'via', attacker.address)     # where it forwards nothing
        admin, node = self.host_admin(head), self.host_fake(one, name='good')
        node.clock = lab.FairClock(admin.pid)
        self.assertTrue(admin.add(node)['ok'])
        growth = memory_before(admin), GROWTH
        raw = attacker.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self.addCleanup(raw.close)
        flooding = threading.Thread(target=self.flood, args=(raw, head.address, 50000))
        since = node.clock()
        flooding.start()
        self.addCleanup(flooding.join)
        self.check_alive(admin, node, quick=0.2)             # in the middle of it
        late = self.node('open', address=two.address, namespace=two, info_port=PORT)
        flooding.join()
        admin.post('/api/scan', {})
        admin.wait_node(late, timeout=20, state='ready')
        self.assertTrue(admin.control('cpus', [late], cpus=1)[late.id]['ok'])
        self.assertEqual(late.managed(), 1)
        self.assertEqual(set(admin.nodes()), {node.id, late.id})
        self.assertLess(node.longest_gap(since), 2.5)
        self.check_alive(admin, node, growth=growth)

    @staticmethod
    def flood(raw, target, count):
        goal, where = socket.inet_aton(target), (target, 0)
        for number in range(count):
            sign = '%040x' % number
            data = b'PING:' + pickle.dumps({'ip_addr': target, 'port': 9701, 'sign': sign, 'version': '4.15.2'}, 2)
            source = struct.pack('>BBBB', 10, 78, number >> 8 & 255, number & 255)
            packet = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 28 + len(data), 0, 0, 64, 17, 0, source, goal)
            raw.sendto(packet + struct.pack('>HHHH', 9700, PORT, 8 + len(data), 0) + data, where)
            if number % 50 == 49:
                time.sleep(0.006)

    def test_third_hosts_and_names(self):
        """An announcement speaks for where it came from: no third host is connected to, no name is asked for."""
        head, attacker, third = self.start(lab.Segment, 3).hosts
        head.etc_file('resolv.conf', 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n')

        def names():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(('127.0.0.1', 53))
            sock.setblocking(False)
            return sock
        resolver = head.call(names)
        self.addCleanup(resolver.close)
        admin = self.host_admin(head, '-d')
        victim, evil = self.host_fake(third, name='victim'), self.host_fake(attacker, name='evil')
        octets = third.address.split('.')
        claims = [third.address, third.address6, '::ffff:' + third.address, '.'.join('%03d' % int(o) for o in octets),
                  '0x0a.77.1.3', '%d' % struct.unpack('>I', socket.inet_aton(third.address))[0],
                  third.address6 + '%eth0', 'third-host.example', 'localhost', head.address, '127.0.0.1', '0.0.0.0',
                  '255.255.255.255', '224.0.0.1', 'fe80::1%eth0', 'fe80::1%' + '9' * 20, '', 'a' * 5000]
        victims_port = [PORT + 1, PORT + 3]

        def attack():
            for claim in claims:
                for port in victims_port:
                    for tag in (b'PING:', b'NODE_INFO:', b'TERMINATED:'):
                        message = ping(None, tag, ip_addr=claim, port=port)
                        wire.datagram(message[:2000], (head.address, PORT), attacker.address)
                        with socket.create_connection((head.address, PORT), 5) as sock:
                            wire.send_message(sock, message)
        attacker.call(attack)
        lab.wait_for(lambda: evil.connections, what='the speaker itself is asked')
        admin.wait_node(evil, state='ready')
        self.assertEqual(victim.connections, 0)
        with self.assertRaises(BlockingIOError):
            self.fail('a name was asked for: %r' % resolver.recv(1000))
        rows = admin.nodes()
        silent = rows.pop('%s:%d' % (attacker.address, PORT + 3), None)  # listed when what named another came connected
        if silent:
            self.assertEqual(silent['state'], 'unreachable')
        self.assertEqual(set(rows), {evil.id})               # whatever it claims, the rows are of its own address
        self.assertTrue(admin.add(victim)['ok'])             # by hand it is
        self.check_alive(admin, victim)

    def test_impostor_on_another_host(self):
        """A real node's sign, announced by another host, over datagrams and connections."""
        head, one, two = self.start(lab.Segment, 3).hosts
        real = self.node('open', address=one.address, namespace=one, info_port=PORT)
        admin = self.host_admin(head)
        admin.wait_node(real, state='ready')
        impostor = self.host_fake(two, name='impostor')
        impostor.sign = one.call(lambda: wire.node_sign(real.address, real.port))

        def attack():
            for claim in (two.address, real.address):
                message = ping(impostor.sign, b'NODE_INFO:', ip_addr=claim, port=PORT + 1)
                wire.datagram(message, (head.address, PORT), two.address)
                with socket.create_connection((head.address, PORT), 5) as sock:
                    wire.send_message(sock, message)
                wire.datagram(ping(impostor.sign, b'TERMINATED:', ip_addr=claim, port=PORT + 1), (head.address, PORT),
                              two.address)
        two.call(attack)
        admin.wait_node(real, addresses=lambda shown: impostor.id in shown)
        two.call(attack)
        self.assertTrue(admin.control('cpus', [real], cpus=1)[real.id]['ok'])
        self.assertEqual(real.managed(), 1)
        self.assertEqual(set(admin.nodes()), {real.id})
        self.assertGreater(len(impostor.codes), 0)
        self.assertEqual(set(impostor.codes), {NO_CODE})
        self.check_log(admin)

    def test_one_spelling_of_a_link_local_address(self):
        """With the interface's name or its number: one row."""
        head, one = self.start(lab.Segment, 2).hosts
        found = re.search(r'inet6 (fe80::\S+)/', one.ip('-6', 'address', 'show', 'dev', 'eth0'))
        index = head.call(lambda: socket.if_nametoindex('eth0'))
        address = found.group(1)

        def make():
            node = lab.Watched('::', PORT + 1, 'open', name='linked')
            node.address = address + '%eth0'
            return node
        node = self.start(lambda: one.call(make))
        admin = self.host_admin(head)
        for host in ('%s%%eth0' % address, '%s%%%d' % (address, index), '%s%%eth0' % address.upper().replace('%ETH0', '')):
            result = admin.post('/api/nodes', {'host': host, 'port': PORT + 1})['results'][0]
            self.assertEqual((result['ok'], result['id']), (True, '[%s%%eth0]:%d' % (address, PORT + 1)), result)
        node.address = address + '%eth0'
        self.assertEqual(len(admin.nodes()), 1)
        self.check_alive(admin, node)


class TlsFlood(NetworkTest):
    def test_connections_that_end_before_the_handshake(self):
        """With TLS: hundreds that send some bytes and reset, or stay silent, leave the listener hearing."""
        certfile = lab.certificate(self.folder())
        node = self.start(lab.Watched, self.address(), self.info_port + 1, 'open', name='good', certfile=certfile)
        admin = self.admin('--secret', 'open', '--certfile', certfile, certfile=certfile, env=lab.RESET_IN_TLS)
        self.assertTrue(admin.add(node)['ok'])
        files = lab.open_files_of(admin.pid)
        silent = [socket.create_connection(self.info_target(), 5) for _ in range(100)]
        silent += [socket.create_connection((admin.host, admin.port), 5) for _ in range(100)]
        for sock in silent:
            self.addCleanup(sock.close)
        for target in (self.info_target(), (admin.host, admin.port)):
            for number in range(300):
                with socket.create_connection(target, 5) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    sock.sendall((b'', b'\x16\x03\x01', b'GET / HTTP/1.1\r\n\r\n', b'\x00' * 100)[number % 4])
        late = self.start(lab.Watched, self.address(), self.info_port + 1, 'open', name='late', certfile=certfile)
        with wire.connect(self.info_target()[0], self.info_port, certfile) as sock:
            wire.send_message(sock, wire.encode(b'NODE_INFO:', wire.announcement(late.address, late.port, late.sign)))
        admin.wait_node(late, timeout=4, state='ready')
        self.check_alive(admin, node)
        lab.wait_for(lambda: lab.open_files_of(admin.pid) < files + len(silent) + 20, what='the others are closed')
