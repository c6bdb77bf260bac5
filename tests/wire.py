"""How the tests talk to nodes themselves, apart from dispyadmin: a client that asks a real node at its own side, and a
fake node for what a
real one cannot be made to do. Pickle is fine here: every node is one that the tests started.
"""

import hashlib
import heapq
import itertools
import os
import pickle
import selectors
import socket
import ssl
import struct
import sys
import threading
import time
import types

# Nodes pickle one class of their own by its name; this stands in for it, so that no dispy is needed to read and write
# it.
if 'dispy' not in sys.modules:
    sys.modules['dispy'] = types.ModuleType('dispy')


class DispyNodeAvailInfo(object):
    def __init__(self, cpu, memory, disk, swap):
        self.cpu, self.memory, self.disk, self.swap = cpu, memory, disk, swap


DispyNodeAvailInfo.__module__ = 'dispy'
sys.modules['dispy'].DispyNodeAvailInfo = DispyNodeAvailInfo

TIMEOUT = 10                     # seconds for one exchange
VERSION = '4.15.2'


def new_sign():
    return hashlib.sha1(os.urandom(20)).hexdigest()


def auth_code(secret, sign):
    return hashlib.sha1((secret + sign).encode()).hexdigest().encode()


def encode(tag, value=None):
    return tag + (b'' if value is None else pickle.dumps(value, 2))


def unpickle(data):
    """Python 3.6 and 3.7 refuse protocol 5; what nodes send says the same in protocol 4."""
    return pickle.loads(b'\x80\x04' + data[2:] if data[:2] == b'\x80\x05' else data, encoding='utf-8')


def family_of(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET


def connect(address, port, certfile=None, keyfile=None, timeout=TIMEOUT):
    sock = socket.create_connection((address, port), timeout)
    if certfile:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(certfile)
        sock = context.wrap_socket(sock)
    return sock


def read_exactly(sock, size):
    data = b''
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError('%d of %d bytes' % (len(data), size))
        data += more
    return data


def read_message(sock):
    return read_exactly(sock, struct.unpack('>I', read_exactly(sock, 4))[0])


def send_message(sock, data):
    sock.sendall(struct.pack('>I', len(data)) + data)


def exchange(sock, auth, data):
    """Send one request to a node and close; the answer's bytes."""
    with sock:
        sock.sendall(auth)
        send_message(sock, data)
        return read_message(sock)


def node_sign(address, port, **tls):
    answer = exchange(connect(address, port, **tls), b'0' * 40, encode(b'NODE_INFO:', {'sign': new_sign()}))
    if len(answer) != 40:
        raise ValueError('a node that answers everyone: %r' % answer[:60])
    return answer.decode('ascii')


def node_info(address, port, secret, **tls):
    """What the node says of itself to the holder of its secret: the dict of its NODE_INFO."""
    answer = exchange(connect(address, port, **tls), auth_code(secret, node_sign(address, port, **tls)),
                      encode(b'NODE_INFO:', {'sign': new_sign()}))
    if len(answer) == 40:
        raise ValueError('the secret does not open %s:%d' % (address, port))
    return unpickle(answer)


def announcement(address, port, sign, version=VERSION):
    return {'ip_addr': address, 'port': port, 'sign': sign, 'version': version}


def datagram(data, target, source=None):
    """Send one datagram, to a broadcast address too."""
    with socket.socket(family_of(target[0]), socket.SOCK_DGRAM) as sock:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if source:
            sock.bind((source, 0))
        sock.sendto(data, target)


class FakeNode:
    """A scriptable node in threads of the test. `mode` decides how it takes a connection:

    normal       as dispynode does
    silent       accepts and never answers
    reset        accepts and resets
    garbage      answers bytes that are no message of the protocol
    huge         announces an answer of 4 GB
    slow         answers a byte in half a second
    new_sign     shows a new sign at each question
    refuse       answers -1 to every control

    `requests` lists what came in as (tag, opened, value): opened is True where the auth code was right.
    With a `crowd` (of mode normal) it is served by that one's thread.
    """

    def __init__(self, address, port=0, secret='', cpus=4, mode='normal', name='fake', client_secret='', certfile=None,
                 crowd=None):
        self.address, self.secret, self.client_secret = address, secret, client_secret
        self.name, self.mode, self.sign = name, mode, new_sign()
        self.protocol = 2                # of pickle, in answers
        self.info = {'name': name, 'cpus': cpus, 'max_cpus': cpus, 'busy': 0, 'serve': -1, 'clients_done': 0,
                     'jobs_done': 0,
                     'cpu_time': 0.0, 'scheduler_ip': None, 'service_start': None, 'service_stop': None,
                     'service_end': None,
                     'avail_info': DispyNodeAvailInfo(50.0, 2 ** 30, 2 ** 34, 100.0)}
        self.requests = []
        self.codes = []                  # every auth code that was sent here
        self.connections = 0
        self.tls = None
        if certfile:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certfile)
        self.held = []
        self.closing = False
        self.listener = socket.socket(family_of(address))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen(256)
        self.port = self.listener.getsockname()[1]
        self.crowd, self.thread = crowd, None
        if crowd:
            crowd.add(self)
        else:
            self.thread = threading.Thread(target=self.accept, daemon=True)
            self.thread.start()

    @property
    def id(self):
        return ('[%s]:%d' if ':' in self.address else '%s:%d') % (self.address, self.port)

    def close(self):
        """Stop as a killed program does: refuse connections, say nothing."""
        self.closing = True
        if self.crowd:
            self.crowd.remove(self)
            return
        try:
            self.listener.shutdown(socket.SHUT_RDWR)     # wakes accept()
        except OSError:
            pass
        self.listener.close()
        for sock in self.held:
            sock.close()
        self.thread.join(TIMEOUT)

    def ping(self, target, source=None, **changes):
        """Announce itself, to (address, port)."""
        message = dict(announcement(self.address, self.port, self.sign), scheduler_ip_addr=None, **changes)
        datagram(encode(b'PING:', message), target, source or self.address)

    def terminated(self, target, source=None):
        message = {'ip_addr': self.address, 'port': self.port, 'sign': self.sign}
        datagram(encode(b'TERMINATED:', message), target, source or self.address)

    def asked(self, tag):
        """The values of the requests with this tag that the node accepted."""
        return [value for seen, opened, value in list(self.requests) if seen == tag and opened]

    def accept(self):
        while not self.closing:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        try:
            sock.settimeout(TIMEOUT)
            if self.mode == 'silent':
                self.held.append(sock)
                return
            if self.mode == 'reset':
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                sock.close()
                return
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
            with sock:
                auth = read_exactly(sock, 40)
                self.codes.append(auth)
                tag, _, body = read_message(sock).partition(b':')
                if self.mode == 'garbage':
                    send_message(sock, b'\x80\x05no message at all' * 5)
                elif self.mode == 'huge':
                    sock.sendall(b'\xff' * 4 + b'x' * 1000)
                else:
                    answer = self.answer(tag.decode('ascii'), auth,
                                         unpickle(body) if body else None)
                    if self.mode == 'slow':
                        for byte in struct.pack('>I', len(answer)) + answer:
                            time.sleep(0.5)
                            sock.sendall(bytes([byte]))
                    else:
                        send_message(sock, answer)
        except (OSError, EOFError):
            sock.close()

    def answer(self, tag, auth, value):
        admin = bool(self.secret) and self.secret != self.client_secret and auth == auth_code(self.secret, self.sign)
        reader = not self.secret and auth == auth_code(self.client_secret, self.sign)
        opened = admin or reader
        if self.mode == 'new_sign':
            self.sign, opened = new_sign(), False
        self.requests.append((tag, opened, value))
        if tag == 'NODE_INFO' and not opened:
            return self.sign.encode('ascii')
        if reader and tag in ('SET_CPUS', 'SERVICE_TIME', 'SERVE_CLIENTS'):     # it has no admin secret
            return b'NAK (invalid request)' if tag == 'SET_CPUS' else b''
        return pickle.dumps(self.outcome(tag, value) if opened else -1, self.protocol)

    def outcome(self, tag, value):
        info = self.info
        if tag == 'NODE_INFO':
            return info
        if self.mode == 'refuse':
            return -1
        if tag == 'SET_CPUS':
            cpus = value['cpus']
            managed = info['max_cpus'] if cpus is None else cpus if cpus >= 0 else info['max_cpus'] + cpus
            if not 0 <= managed <= info['max_cpus']:
                return -1
            info['cpus'] = managed - info['busy']
            return {'cpus': managed}
        if tag == 'SERVICE_TIME' and value['control'] in ('start_time', 'stop_time', 'end_time'):
            key = 'service_' + value['control'].partition('_')[0]
            info[key] = None if value['time'] == '0' else time.time()
            return {name: info[name] for name in ('service_start', 'service_stop', 'service_end')}
        if tag == 'SERVE_CLIENTS':
            info['serve'] = value['serve']
            return {'serve': value['serve']}
        return -1


class Crowd:
    """One thread that serves many fake nodes: a thread for each connection costs more than all the rest.

    A node may have `pause(tag)`: seconds until it takes a request up. What its answer() raises closes the connection.
    """

    def __init__(self):
        self.selector, self.later, self.order = selectors.DefaultSelector(), [], itertools.count()
        self.parts, self.closing, self.lock = {}, False, threading.Lock()       # the lock guards `later`
        self.ear, self.mouth = socket.socketpair()
        self.mouth.setblocking(False)
        self.selector.register(self.ear, selectors.EVENT_READ, lambda sock: sock.recv(100))
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def add(self, node):
        node.listener.setblocking(False)
        self.selector.register(node.listener, selectors.EVENT_READ, lambda sock: self.accept(node, sock))

    def remove(self, node):
        """Close the node's listener, in the thread that may be using it; wait until that is done."""
        done = threading.Event()

        def close():
            try:
                self.selector.unregister(node.listener)
                node.listener.close()
            except (KeyError, ValueError):
                pass             # closed before
            done.set()
        if threading.current_thread() is self.thread:
            close()
        else:
            self.call_in(0, close)
            done.wait(TIMEOUT)

    def call_in(self, seconds, call, *args):
        with self.lock:
            heapq.heappush(self.later, (time.monotonic() + seconds, next(self.order), call, args))
        self.wake()

    def wake(self):
        if threading.current_thread() is not self.thread:
            try:
                self.mouth.send(b'x')
            except BlockingIOError:
                pass             # it has been woken already

    def close(self):
        self.closing = True
        self.wake()
        self.thread.join(TIMEOUT)

    def run(self):
        while not self.closing:
            with self.lock:
                wait = self.later[0][0] - time.monotonic() if self.later else None
            for key, _ in self.selector.select(wait):
                key.data(key.fileobj)
            while True:
                with self.lock:
                    if not self.later or self.later[0][0] > time.monotonic():
                        break
                    _, _, call, args = heapq.heappop(self.later)
                call(*args)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()
        self.mouth.close()

    def accept(self, node, listener):
        try:
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                node.connections += 1
                self.selector.register(sock, selectors.EVENT_READ, lambda sock: self.read(node, sock))
        except OSError:          # no more
            pass

    def read(self, node, sock):
        """Take what has come of a request; it is taken up when it is whole."""
        before = self.parts.pop(sock, b'')
        try:
            more = sock.recv(65536)
        except OSError:
            more = b''
        data = before + more
        if more and (len(data) < 44 or len(data) < 44 + struct.unpack('>I', data[40:44])[0]):
            self.parts[sock] = data
            return
        self.selector.unregister(sock)
        if not more:
            sock.close()
            return
        node.codes.append(data[:40])
        tag, _, body = data[44:].partition(b':')
        tag = tag.decode('ascii')
        self.call_in(getattr(node, 'pause', lambda tag: 0)(tag), self.reply, node, sock, tag, data[:40],
                     unpickle(body) if body else None)

    @staticmethod
    def reply(node, sock, tag, auth, value):
        with sock:
            if node.closing:     # it was killed meanwhile
                return
            try:
                sock.settimeout(1)
                send_message(sock, node.answer(tag, auth, value))
            except (OSError, EOFError):
                pass
