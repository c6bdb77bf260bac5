"""Fuzz with seeded inputs: the codec against pickle, the datagram handler, the HTTP server; and guided by coverage where
atheris installs. A failure names its seed and its input."""

import collections
import contextlib
import io
import json
import os
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import dispyadmin

from . import environment, lab, test_codec, wire

SEED = int(os.environ.get('FUZZ_SEED', '20260101'))
VALUES = 60000                   # inputs for the codec
DATAGRAMS = 100000               # to the script's UDP port, and as many to the handler
REQUESTS = 20000                 # to the HTTP server
GUIDED = 60                      # seconds of coverage-guided fuzzing
NEWEST = min(pickle.HIGHEST_PROTOCOL, 5)

INFO = {'busy': 1, 'serve': -1, 'clients_done': 2, 'jobs_done': 40, 'cpu_time': 63.1, 'scheduler_ip': '10.0.0.1',
        'avail_info': None, 'name': 'n17 \u00e9\u4e2d', 'service_start': None, 'service_stop': 1.5e9,
        'service_end': 1767218400,
        'cpus': 3, 'max_cpus': 8, 'list': [1, (2, (3,), ()), {}, [], True, False, -0.0, 2 ** 40, -2 ** 90]}
# What pickles are made of, so that changes make other pickles rather than noise.
PIECES = [b'(', b'.', b'0', b'1', b'2', b'F1.5\n', b'I5\n', b'I01\n', b'J\xff\xff\xff\xff', b'K\x05', b'L9L\n',
          b'M\x05\x05', b'N',
          b'Pid\n', b'Q', b'R', b"S'a'\n", b"S'\\x41\\\\'\n", b'T\x02\x00\x00\x00ab', b'U\x02ab', b'Va\\u00e9\n',
          b'X\x01\x00\x00\x00k', b'a',
          b'b', b'cdispy\nDispyNodeAvailInfo\n', b'cos\nsystem\n', b'd', b'e', b'g0\n', b'h\x00', b'i',
          b'j\x00\x00\x00\x00', b'l', b'o',
          b'p0\n', b'q\x00', b'r\x00\x00\x00\x00', b'r\xff\xff\xff\x7f', b's', b't', b'u', b'}', b']', b')',
          b'G' + struct.pack('>d', 0.1),
          b'G\x7f\xf8\x00\x00\x00\x00\x00\x00', b'\x80\x02', b'\x80\x04', b'\x81', b'\x85', b'\x86', b'\x87', b'\x88',
          b'\x89', b'\x8a\x01\x05',
          b'\x8a\x00', b'\x8b\x01\x00\x00\x00\x05', b'B\x01\x00\x00\x00x', b'C\x01x', b'\x8c\x01k',
          b'\x8d\x01' + b'\x00' * 7 + b'k', b'\x8e',
          b'\x8f', b'\x90', b'\x91', b'\x92', b'\x93', b'\x94', b'\x95' + b'\x10' + b'\x00' * 7, b'\x96', b'\x97',
          b'\x98', b'\xff' * 4]


def avail_info(protocol):
    return pickle.dumps(wire.DispyNodeAvailInfo(50.0, 2 ** 30, 2 ** 34, 100.0), protocol)


def seeds():
    found = [pickle.dumps(INFO, protocol) for protocol in range(NEWEST + 1)]     # 0 and 1: they are refused
    found += [avail_info(protocol) for protocol in range(2, NEWEST + 1)]
    found += [pickle.dumps(dict(wire.announcement('127.0.0.1', 9701, 'ab' * 20), scheduler_ip_addr=None), protocol)
              for protocol in range(2, NEWEST + 1)]
    found += [pickle.dumps(-1, 2), pickle.dumps({'cpus': 3}, 2)]
    return found


def changed(rand, data, others, pieces=PIECES):
    """The data with bytes changed, pieces put in, cut out, doubled, or joined with others."""
    data = bytearray(data)
    for _ in range(rand.choice((1, 1, 2, 3, 8))):
        at = rand.randrange(len(data) + 1)
        kind = rand.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] = rand.randrange(256)
        elif kind == 1 and data:
            data[at % len(data)] ^= 1 << rand.randrange(8)
        elif kind <= 3:
            data[at:at] = rand.choice(pieces)
        elif kind == 4:
            del data[at:at + rand.randrange(1, 20)]
        elif kind == 5:
            data[at:at] = data[rand.randrange(len(data) + 1):][:rand.randrange(1, 40)]
        elif kind == 6:
            other = rand.choice(others)
            data[at:] = other[rand.randrange(len(other) + 1):]
        else:
            data[at:at + rand.choice((1, 2, 4, 8))] = bytes(rand.choice((0, 0x7f, 0x80, 0xff))
                                                            for _ in range(rand.choice((1, 2, 4, 8))))
    return bytes(data)


def made_up(rand):
    """Pieces one after another, most of them balanced enough to be read for a while."""
    return b'\x80\x02' + b''.join(rand.choice(PIECES) for _ in range(rand.randrange(1, 30))) + b'.'


class PlainUnpickler(pickle._Unpickler):
    """The library's reader in Python, whose memo is a dict: for inputs that the program has accepted."""

    class AvailInfo(dict):
        def __setstate__(self, state):
            self.update(state)

    def find_class(self, module, name):
        if (module, name) == ('dispy', 'DispyNodeAvailInfo'):
            return self.AvailInfo
        raise pickle.UnpicklingError('%s.%s' % (module, name))


class Codec(lab.LabTest):
    def test_reader_against_pickle(self):
        """It raises WireError or reads what pickle reads; at once, and never more than was sent."""
        rand = random.Random(SEED)
        basis, read, slowest = seeds(), 0, (0, b'')
        for number in range(VALUES):
            if number % 4 == 0:
                data = made_up(rand)
            elif number % 4 == 1:
                data = pickle.dumps(test_codec.plain_value(rand), rand.randrange(2, NEWEST + 1))
            else:
                data = changed(rand, rand.choice(basis), basis)
            began = time.process_time()
            try:
                value = dispyadmin.read_value(data)
            except dispyadmin.WireError:
                value = None
            except Exception as error:
                self.fail('seed %d, input %d: %r of %r' % (SEED, number, error, data))
            else:
                read += 1
                self.check(data, value)
            slowest = max(slowest, (time.process_time() - began, data))
            if number % 50 == 0 and len(data) < 4000:
                basis.append(data)
        self.assertGreater(read, VALUES // 5)
        self.assertLess(slowest[0], 1, slowest)

    def check(self, data, value):
        self.assertLess(len(repr(value)), 50 * len(data) + 50, data)
        if re.search(b'[STU]', data):    # byte strings, which the program takes for text in either of two encodings
            return
        try:
            expected = PlainUnpickler(io.BytesIO(data), encoding='latin-1').load()
        except Exception:
            return                       # it is stricter about what follows no rule anyway
        self.assertEqual(repr(value), repr(expected), data)

    def test_replies(self):
        """What is made of a reply is sane, whatever the reply is."""
        rand = random.Random(SEED + 1)
        basis, understood = seeds(), 0
        odd = [None, True, -1, 2 ** 31, 2 ** 63, -2 ** 70, 1e308, float('inf'), float('nan'), '', 'x' * 300, '\x00\x1b',
               [], {}, (1,),
               '\ud800', 0.5, -0.0]
        for number in range(VALUES // 2):
            if number % 2:
                value = {key: rand.choice(odd) if rand.randrange(3) == 0 else part for key, part in INFO.items()}
                value['avail_info'] = rand.choice(odd + [{'cpu': rand.choice(odd), 'memory': rand.choice(odd)}])
                try:
                    data = pickle.dumps(value, 2)
                except UnicodeEncodeError:
                    continue
            else:
                data = changed(rand, rand.choice(basis), basis)
            try:
                info = dispyadmin.read_info(data)
                dispyadmin.read_control(data)
            except dispyadmin.WireError:
                continue
            except Exception as error:
                self.fail('seed %d, input %d: %r of %r' % (SEED, number, error, data))
            if isinstance(info, str):
                continue
            understood += 1
            text = json.dumps(info, allow_nan=False)
            self.assertNotIn('\x00', text)
            for name in ('cpus', 'max_cpus', 'busy', 'clients_done', 'jobs_done'):
                part = getattr(info, name)
                self.assertTrue(part is None or type(part) is int and 0 <= part <= 2 ** 63, (name, part))
            for name in ('name', 'scheduler_ip'):
                part = getattr(info, name)
                self.assertTrue(part is None or isinstance(part, str) and part.isprintable() and len(part) <= 400, part)
        self.assertGreater(understood, VALUES // 50)


# ---- datagrams --------------------------------------------------------------------------------------------------------

def datagrams(rand, count, addresses, port, sign):
    """Announcements that are nearly right, and what is nearly an announcement."""
    basis = [tag + data for tag in (b'PING:', b'NODE_INFO:', b'TERMINATED:', b'PULSE:', b'') for data in seeds()]
    claims = addresses + ['', '::1', '::ffff:127.0.0.1', 'fe80::1%lo', 'fe80::1%99999999999999999999', '010.0.0.1',
                          '1.2.3', 'host',
                          '255.255.255.255', '0.0.0.0', 'x' * 70, 'fe80::1%\x00', '%', '::%1', '\u0661.1.1.1', None, 5,
                          [], {}]
    signs = [sign, 'ab' * 20, 'AB' * 20, '', 'a' * 39, 'a' * 40 + '\n', None, 5]
    versions = ['4.15.2', '4.11.0', '9.9.9', '4', '', 'x', None, 4.15, '4.15.2\n', '4.' * 400, '\u0664.15.2']
    ports = [port, 1, 65535, 0, -1, 65536, 2 ** 70, True, None, '9701', 9.5]
    for _ in range(count):
        kind = rand.randrange(10)
        if kind < 5:
            value = {'ip_addr': rand.choice(claims), 'port': rand.choice(ports), 'version': rand.choice(versions),
                     'sign': '%040x' % rand.randrange(2 ** 160) if rand.randrange(2) else rand.choice(signs),
                     'scheduler_ip_addr': None}
            for _ in range(rand.randrange(2)):
                value.pop(rand.choice(sorted(value)))
            yield (rand.choice((b'PING:', b'PING:', b'NODE_INFO:', b'TERMINATED:', b'PONG:', b'ping:', b'PING', b':'))
                   + pickle.dumps(value, rand.randrange(NEWEST + 1)))
        elif kind < 8:
            yield changed(rand, rand.choice(basis), basis)[:3000]
        elif kind == 8:
            yield b'PING:' + made_up(rand)
        else:
            yield bytes(rand.randrange(256) for _ in range(rand.randrange(60)))


class Datagrams(lab.HostileTest):
    def test_the_script(self):
        """To the real script's port, each of them taken; among them the good node's own address and sign."""
        admin, node = self.watched()
        base = lab.memory_of(admin.pid)
        rand = random.Random(SEED + 2)
        addresses = [self.address() for _ in range(30)] + [node.address]
        socks = []
        for address in addresses + ['127.0.0.1']:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.addCleanup(sock.close)
            sock.bind((address, 0))
            socks.append(sock)
        dropped, since = self.queue()[1], node.clock()
        for number, data in enumerate(datagrams(rand, DATAGRAMS, addresses, self.info_port + 1, node.sign)):
            socks[rand.randrange(len(socks))].sendto(data, self.info_target())
            if number % 1000 == 999:
                lab.wait_for(lambda: self.queue()[0] < 300000, 30, 'they are taken')
            if number % 20000 == 19999:
                self.assertEqual(admin.request('GET', '/api/nodes').status, 200)
        lab.wait_for(lambda: self.queue()[0] == 0, 30, 'all are taken')
        self.assertEqual(self.queue()[1], dropped, 'the kernel dropped some')
        self.assertLess(node.longest_gap(since), 3)
        self.assertEqual(set(admin.nodes()), {node.id})
        late = self.start(lab.Watched, self.address(), self.info_port + 1, 'open')
        late.ping(self.info_target())
        admin.wait_node(late, timeout=10, state='ready')
        self.check_alive(admin, node, growth=(base, 80))

    def queue(self):
        """(bytes that wait, datagrams dropped) at the info port."""
        waiting = dropped = 0
        for name in ('/proc/net/udp', '/proc/net/udp6'):
            with open(name) as file:
                for line in file.read().splitlines()[1:]:
                    fields = line.split()
                    if fields[1].endswith(':%04X' % self.info_port):
                        waiting += int(fields[4].split(':')[1], 16)
                        dropped += int(fields[-1])
        return waiting, dropped

    def test_the_handler(self):
        """In this process: nothing but a log of bad messages comes of any datagram; what waits and is kept is bounded."""
        settings = dispyadmin.read_settings(['--info_port', '0', '--http_port', '0'], {})
        admin = dispyadmin.Admin(settings)
        self.addCleanup(admin.discard)
        rand = random.Random(SEED + 3)
        addresses = ['10.0.%d.%d' % (number // 250, 1 + number % 250) for number in range(3000)] + ['fe80::5%lo',
                                                                                                    '127.0.0.1']
        heard = collections.Counter()
        hear = admin.listener.hear

        def count(address, announcement, connected):
            heard[announcement.tag] += 1
            hear(address, announcement, connected)
        admin.listener.hear = count
        dispyadmin.logger.disabled = True
        self.addCleanup(setattr, dispyadmin.logger, 'disabled', False)
        for number, data in enumerate(datagrams(rand, DATAGRAMS, addresses[:20], 9701, 'cd' * 20)):
            try:
                admin.listener._understand(data, rand.choice(addresses), bool(rand.randrange(2)))
            except Exception as error:
                self.fail('seed %d, datagram %d: %r of %r' % (SEED, number, error, data))
        self.assertGreater(min(heard[tag] for tag in ('PING', 'NODE_INFO', 'TERMINATED')), 500, heard)
        self.assertLess(sum(admin.poller.load()[0].values()), 10000)
        self.assertEqual(admin.table.ids(), [])
        self.assertLess(len(admin.announcer.releases), 60)

    def test_connections(self):
        """The same over TCP, cut and glued anywhere."""
        admin, node = self.watched()
        rand = random.Random(SEED + 4)
        addresses = [node.address, self.address()]
        for number, data in enumerate(datagrams(rand, 3000, addresses, self.info_port + 1, node.sign)):
            sock = socket.create_connection(self.info_target(), 10, (rand.choice(addresses), 0))
            with sock:
                whole = struct.pack('>I', len(data) + rand.choice((0, 0, 0, 1, -1, 2 ** 31, 10 ** 4)) & 0xffffffff) + data
                sock.sendall(whole[:rand.randrange(len(whole) + 1)] if rand.randrange(3) == 0 else whole)
        self.check_alive(admin, node)
        # What connects and names another address gets a row that says so; no other does.
        self.assertEqual({node_id for node_id, shown in admin.nodes().items() if not shown['announces']}, {node.id})
        self.assertLessEqual(len(admin.nodes()), 65)


# ---- HTTP -------------------------------------------------------------------------------------------------------------

HTTP_PIECES = [b'\r\n', b'\r\n\r\n', b'\n', b'\r', b'\x00', b'\xff', b' ', b'\t', b':', b'HTTP/1.1', b'HTTP/0.9',
               b'HTTP/1.0', b'HTTP/2.0',
               b'GET', b'POST', b'DELETE', b'HEAD', b'Host: ', b'localhost', b'Content-Length: 5\r\n',
               b'Content-Length: -1\r\n',
               b'Content-Length: 99999999\r\n', b'Transfer-Encoding: chunked\r\n', b'Connection: keep-alive\r\n',
               b'Expect: 100-continue\r\n',
               b'Cookie: dispyadmin-1=x\r\n', b'Authorization: Bearer \xff\r\n', b'Origin: http://[\r\n', b'?token=',
               b'?since=', b'%00', b'%',
               b'/../', b'//', b'/api/nodes', b'/api/cpus', b'{', b'}', b'[', b'"', b'\\u', b'null', b'1e999', b'NaN',
               b'Range: bytes=0-1\r\n',
               b'X' * 300 + b': y\r\n', b'Upgrade: h2c\r\n', b'If-None-Match: *\r\n', b'Content-Type: application/json\r\n']
PATHS = ['/', '/page.js', '/page.css', '/admin.html', '/api/nodes', '/api/nodes?since=1', '/api/nodes/{id}', '/api/about',
         '/api/history',
         '/api/cpus',
         '/api/clients', '/api/service_time', '/api/poll', '/api/secret', '/api/scan', '/api/nodes/%00', '/no', '*',
         'http://localhost/']
STATUSES = {100, 200, 204, 303, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 431, 501, 505}


def http_request(rand, node_id):
    """A request that is right or nearly so. It names no host to be looked for: that takes the time of a look-up."""
    odd = [None, True, -1, 0, 1, 2 ** 70, 1.5, '', 'x', 'all', 'now', 'start', '12:00', '25:00', [], {}, [[]], [node_id],
           [node_id, 1],
           'x' * 5000, '\x00', '\ud800', {'a': 1}, [node_id] * 50, ['1.2.3.4:5']]
    method = rand.choice(['GET'] * 5 + ['POST'] * 6 + ['HEAD', 'DELETE', 'PUT', 'OPTIONS', 'TRACE', 'get', 'PATCH', 'X'])
    path = rand.choice(PATHS).format(id=node_id if method != 'DELETE' else '1.2.3.4:5')
    body = b''
    if method in ('POST', 'PUT', 'DELETE') and rand.randrange(5):
        fields = rand.sample(['nodes', 'cpus', 'clients', 'control', 'time', 'interval', 'now', 'secret', 'x'],
                             rand.randrange(5))
        value = {field: rand.choice(odd) for field in fields}
        if rand.randrange(2):
            value['nodes'] = [node_id]
        if value.get('interval') and path == '/api/poll':
            value['interval'] = -5           # it stays what the checks count on
        body = json.dumps(value).encode()
    lines = ['%s %s HTTP/1.1' % (method, path), 'Host: ' + rand.choice(['localhost'] * 8 + ['evil.example', '', '[::1]',
                                                                                            '127.0.0.1:1'])]
    if body or method == 'POST':
        lines += ['Content-Type: application/json', 'Content-Length: %d' % (len(body) + rand.choice([0] * 10 + [1, -1, 50]))]
    if rand.randrange(10):
        lines.append('Authorization: Bearer token-of-fuzz')
    for _ in range(rand.randrange(3)):
        lines.append(rand.choice(['Connection: close', 'Connection: keep-alive', 'Accept: */*',
                                  'Origin: http://localhost', 'X: y', 'Via: x',
                                  'Cookie: a=b', 'Authorization: Bearer x', 'Transfer-Encoding: chunked',
                                  'Forwarded: for=1']))
    return '\r\n'.join(lines + ['', '']).encode() + body


class Http(lab.HostileTest):
    def test_requests(self):
        """Right and wrong ones, alone and several on a connection: an answer with a known status, or an end."""
        # whose a connection is the kernel does not tell of one that is half closed already
        admin, node = self.watched('--http_token', self.write('token-of-fuzz'))
        base = lab.memory_of(admin.pid)
        self.statuses, self.failures, self.lock = collections.Counter(), [], threading.Lock()
        since = node.clock()
        workers = [threading.Thread(target=self.send_many, args=(admin, node, number)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(self.failures, [])
        trouble = [line for line in admin.err if line.startswith('    ')][-30:]
        self.assertLessEqual(set(self.statuses), STATUSES, '%s\n%s' % (self.statuses, '\n'.join(trouble)))
        self.assertGreater(self.statuses[200], REQUESTS // 20, self.statuses)
        self.assertGreater(self.statuses[400], REQUESTS // 50, self.statuses)
        self.assertLess(node.longest_gap(since), 3)
        node.info['cpus'] = 4
        self.check_alive(admin, node, growth=(base, 100))

    def send_many(self, admin, node, number):
        """A quarter of the requests, counted by their answers: after some of them the connection ends."""
        rand = random.Random(SEED + 10 + number)
        sent = 0
        while sent < REQUESTS // 4:
            requests = []
            for _ in range(rand.choice((1, 1, 2, 5, 20))):
                request = http_request(rand, node.id)
                if rand.randrange(3) == 0:
                    request = changed(rand, request, [http_request(rand, node.id)], HTTP_PIECES)
                    if b'"host"' in request or b'interval' in request:
                        continue
                requests.append(request)
            data = b''.join(requests)
            try:
                sent += self.exchange(admin, data)
            except Exception as error:
                self.failures.append((SEED, number, sent, repr(error), data[:3000]))
                return

    def exchange(self, admin, data):
        with socket.create_connection((admin.host, admin.port), 30) as sock:
            with contextlib.suppress(OSError):   # it was closed at what came first
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)    # so that half a request ends too
            answer = b''
            with contextlib.suppress(ConnectionResetError):
                for more in iter(lambda: sock.recv(1 << 16), b''):
                    answer += more
        statuses = re.findall(br'HTTP/1\.1 (\d\d\d) ', answer)
        with self.lock:
            self.statuses.update(map(int, statuses))
        return len(statuses)


# ---- guided by coverage -------------------------------------------------------------------------------------------------

GUIDE = '''
import resource, sys
import atheris
with atheris.instrument_imports(include=['dispyadmin']):
    import dispyadmin

def one(data):
    for read in (dispyadmin.read_value, dispyadmin.read_info, dispyadmin.read_control, dispyadmin.read_announcement,
                 lambda rest: dispyadmin.read_announcement(b'PING:' + rest)):
        try:
            read(data)
        except dispyadmin.WireError:
            pass

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
atheris.Setup(sys.argv, one)
atheris.Fuzz()
'''

# It does not install for every Python; a test that cannot be there is not one that is skipped.
if os.path.isdir(environment.folder_of(environment.ATHERIS)):
    class Guided(lab.LabTest):
        def test_reader(self):
            """What the reader's own branches lead to: no error but WireError, no input that takes long or much memory."""
            corpus = self.folder()
            for number, data in enumerate(seeds() + PIECES):
                with open(os.path.join(corpus, str(number)), 'wb') as file:
                    file.write(data)
            found = self.folder()
            process = self.start(lab.Process, [
                sys.executable, self.write(GUIDE, 'guide.py'), '-max_total_time=%d' % GUIDED, '-seed=%d' % (SEED % 2 ** 31),
                '-max_len=2000', '-timeout=2', '-rss_limit_mb=1000', '-artifact_prefix=%s/' % found,
                '-print_final_stats=1', corpus],
                env=dict(os.environ, PYTHONPATH=os.pathsep.join([environment.folder_of(environment.ATHERIS),
                                                                 environment.ROOT])))
            try:
                status = process.wait(GUIDED + 60)
            except subprocess.TimeoutExpired:
                self.fail(process.output()[-3000:])
            inputs = [open(os.path.join(found, name), 'rb').read() for name in os.listdir(found)]
            self.assertEqual((status, inputs), (0, []), process.output()[-3000:])
            runs = re.search(r'number_of_executed_units: (\d+)', process.output())
            self.assertGreater(int(runs.group(1)), 10000, process.output()[-1000:])
