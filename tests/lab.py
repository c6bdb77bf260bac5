"""The laboratory: real nodes, dispyadmin itself, hosts in network namespaces, a browser. Everything that a test starts
here ends with it."""

import atexit
import concurrent.futures
import contextlib
import ctypes
import glob
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from . import environment, wire

START_TIMEOUT = 20               # seconds until a program answers, on a machine that is busy with other tests
STATE_TIMEOUT = 15               # seconds until dispyadmin shows what a node did
REQUEST_TIMEOUT = 100            # seconds until it answers, whatever has been sent to it


class FairClock:
    """Monotonic seconds, without those for which other programs have the processors: it stands, or nearly, while a thread
    of the test or of one of these processes waits for one. So a limit means the same on a machine that is busy."""

    def __init__(self, *pids):
        self.pids, self.lock, self.waits = (os.getpid(),) + pids, threading.Lock(), {}
        self.at = self.now = time.monotonic()
        self()

    def __call__(self):
        with self.lock:
            at, before, lost = time.monotonic(), self.waits, 0
            self.waits = {}
            for pid in self.pids:
                waits = self.waits_of(pid)
                self.waits.update(waits)
                lost += max([wait - before.get(path, 0) for path, wait in waits.items()], default=0)
            self.now += max(at - self.at - lost, (at - self.at) / 4)         # never quite: something may hang
            self.at = at
            return self.now

    @staticmethod
    def waits_of(pid):
        """{thread: seconds that it has waited for a processor}; proc(5) calls it the time spent on a run queue."""
        waits = {}
        for path in glob.glob('/proc/%d/task/*/schedstat' % pid):
            try:
                with open(path) as file:
                    waits[path] = int(file.read().split()[1]) / 1e9
            except OSError:
                pass
        return waits


# For a program whose TLS connections are reset: where that comes early, Python's own wrap_socket() leaves a socket to the
# garbage collector. All other warnings are errors.
RESET_IN_TLS = {'PYTHONWARNINGS': 'error,ignore:unclosed <ssl.SSLSocket:ResourceWarning'}


def wait_for(predicate, timeout=STATE_TIMEOUT, what='condition'):
    """Ask until the answer is true, and return it; `what` may be a callable, for what was seen last. The time is fair to
    all programs of the test."""
    clock = FairClock(*Process.pids)
    began, deadline = clock.now, time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            left = began + timeout - clock()
            if left <= 0:
                raise AssertionError('not within %d s: %s' % (timeout, what() if callable(what) else what))
            deadline = time.monotonic() + left
        time.sleep(0.05)


class Process:
    """A program of the test: its output is collected, and it is ended by its id."""

    pids = set()                 # of those that run

    def __init__(self, command, namespace=None, env=None, cwd=None):
        self.command = namespace.prefix + command if namespace else command
        self.out, self.err, self.closed = [], [], False
        self.popen = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE,
                                      env=env, cwd=cwd, start_new_session=True)
        self.pid = self.popen.pid
        self.pids.add(self.pid)
        self.readers = [threading.Thread(target=self.read, args=pair, daemon=True)
                        for pair in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def read(stream, lines):
        with stream:
            for line in stream:
                lines.append(line.decode('utf-8', 'replace').rstrip('\n'))

    def output(self):
        return '\n'.join(self.out + self.err)

    def running(self):
        return self.popen.poll() is None

    def signal(self, number):
        self.popen.send_signal(number)

    def seconds_to_end(self, number):
        """Send a signal; the seconds, by a fair clock, until it has ended."""
        clock = FairClock(self.pid)
        began = clock.now
        self.signal(number)
        wait_for(lambda: clock() and not self.running(), what='the end of %s' % self.command)
        return clock() - began

    def wait(self, timeout=STATE_TIMEOUT):
        """The exit status; all output has been read then."""
        status = self.popen.wait(timeout)
        for reader in self.readers:
            reader.join(timeout)
        return status

    def kill(self):
        """End it and its children at once, as the kernel does when memory runs out."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()
        self.pids.discard(self.pid)
        self.closed = True

    def close(self):
        if self.closed:          # the id may be another process's by now
            return
        if self.running():
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(3)
            except subprocess.TimeoutExpired:
                pass
        self.kill()              # what it left behind
        for reader in self.readers:
            reader.join(3)


def fake_time(text, zone=None, python=environment.MAIN):
    """The environment of a program whose clock is another one: see faketime(1).

    Where it is of Python 3.10 or older, the clock for time limits is not: newer ones cannot sleep like that with
    Debian's faketime 0.9.10.
    """
    found = [path for folder in ('/usr/lib*', '/usr/lib*/*', '/usr/local/lib')
             for path in glob.glob(folder + '/faketime/libfaketime.so.1')]
    if not found:
        raise unittest.SkipTest('no libfaketime')
    environ = {'LD_PRELOAD': found[0], 'FAKETIME': text}
    if python < (3, 11):
        environ.update(FAKETIME_DONT_FAKE_MONOTONIC='1', DONT_FAKE_MONOTONIC='1')
    return dict(environ, TZ=zone) if zone else environ


class Node(Process):
    """A real dispynode, ready to be asked."""

    def __init__(self, address, info_port, secret='', packages=None, name='', client_secret='', namespace=None,
                 folder=None, extra=(),
                 certfile=None, ping_interval=10, debug=False, env=None, psutil=True):
        packages = packages or environment.node_packages('4.15.2')
        library = environment.require(packages)
        path = library if psutil else os.path.join(environment.ROOT, 'tests', 'without_psutil') + os.pathsep + library
        self.address, self.port, self.secret, self.client_secret = address, info_port + 1, secret, client_secret
        self.name, self.namespace, self.packages = name or 'node-' + address, namespace, packages
        self.tls = {'certfile': certfile} if certfile else {}
        # One folder below another: dispynode changes the mode of its folder's parent.
        self.folder = os.path.join(folder or tempfile.mkdtemp(prefix='dispynode-'), 'files')
        os.makedirs(self.folder)
        command = [packages.python, '-W', 'ignore', os.path.join(library, 'dispy', 'dispynode.py'), '--daemon',
                   '--clean', '-i', address,
                   '-p', str(info_port), '--dest_path_prefix', self.folder, '--name', self.name]
        for option, value in (('--admin_secret', secret), ('--secret', client_secret), ('--certfile', certfile),
                              ('--ping_interval', ping_interval)):
            command += [option, str(value)] if value else []
        super().__init__(command + list(extra) + (['-d'] if debug else []), namespace,
                         dict(os.environ, PYTHONPATH=path, PYTHONUNBUFFERED='1', **(env or {})))
        try:
            wait_for(self.answers, START_TIMEOUT, lambda: 'dispynode at %s answers: %s' % (self.id, self.output()))
        except BaseException:
            self.close()
            raise

    @property
    def id(self):
        return ('[%s]:%d' if ':' in self.address else '%s:%d') % (self.address, self.port)

    def answers(self):
        if not self.running():
            raise AssertionError('dispynode ended: %s' % self.output())
        try:
            self.inside(wire.exchange, b'0' * 40, wire.encode(b'NODE_INFO:', {'sign': wire.new_sign()}))
            return True
        except (OSError, EOFError):
            return False

    def inside(self, function, *args):
        """Call with a connection to the node, made in the node's namespace."""
        def call():
            return function(wire.connect(self.address, self.port, **self.tls), *args)
        return self.namespace.call(call) if self.namespace else call()

    def info(self, secret=None):
        """What the node itself says: full information, for the holder of its secret."""
        secret = self.secret or self.client_secret if secret is None else secret

        def call():
            return wire.node_info(self.address, self.port, secret, **self.tls)
        return self.namespace.call(call) if self.namespace else call()

    def managed(self):
        info = self.info()
        return info['cpus'] + info['busy']

    def close(self):
        super().close()
        shutil.rmtree(os.path.dirname(self.folder), ignore_errors=True)


def read_rest(sock):
    """All that comes until the other side closes, gently or not."""
    data = b''
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


class Answer:
    """One HTTP answer."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode('utf-8')

    @property
    def json(self):
        def constant(name):
            raise AssertionError('%s in an answer' % name)
        return json.loads(self.text, parse_constant=constant)


class Admin(Process):
    """dispyadmin in a process of its own, ready to be asked over HTTP."""

    def __init__(self, *options, python=sys.executable, namespace=None, env=None, cwd=None, script=environment.SCRIPT,
                 wait=True,
                 certfile=None, before=()):
        self.namespace, self.certfile = namespace, certfile
        self.host = self.port = self.token = None
        environ = dict(os.environ, PYTHONUNBUFFERED='1', PYTHONDEVMODE='1', PYTHONWARNINGS='error')
        environ.pop('DISPYADMIN_SECRET', None)
        environ.update(env or {})
        options = [str(option) for option in options]
        if not any(option.startswith('--http_port') for option in options):
            options += ['--http_port', '0']
        super().__init__(list(before) + [python, script] + options, namespace, environ, cwd)
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def wait_ready(self, timeout=START_TIMEOUT):
        """Wait for the line on standard output that names the address."""
        def ready():
            if not self.running():
                self.wait()
                raise AssertionError('dispyadmin ended with status %s: %s' % (self.popen.returncode, self.output()))
            return re.search(r'^dispyadmin \S+: (https?)://(\[.+\]|[^/:]+):(\d+)/(?:\S*[?]token=(\S+))?$',
                             '\n'.join(self.out), re.MULTILINE)
        found = wait_for(ready, timeout, lambda: 'the line with the address: %s' % self.output())
        self.scheme, host, port, self.token = found.groups()
        self.host, self.port = host.strip('[]'), int(port)

    @property
    def url(self):
        return '%s://%s:%d/' % (self.scheme, '[%s]' % self.host if ':' in self.host else self.host, self.port)

    def connection(self, timeout=REQUEST_TIMEOUT):
        """An HTTP connection, made in dispyadmin's namespace."""
        def make():
            connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
            if self.certfile:
                connection.sock = wire.connect(self.host, self.port, self.certfile, timeout=timeout)
            else:
                connection.connect()
            return connection
        return self.namespace.call(make) if self.namespace else make()

    def request(self, method, path, body=None, headers=None, timeout=REQUEST_TIMEOUT):
        """Any request; an Answer. A body that is no bytes is sent as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode('utf-8')
            headers.setdefault('Content-Type', 'application/json')
        elif method == 'DELETE':
            headers.setdefault('Content-Type', 'application/json')
        if self.token:
            headers.setdefault('Authorization', 'Bearer ' + self.token)
        connection = self.connection(timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def good(self, method, path, body=None):
        answer = self.request(method, path, body)
        if answer.status != 200:
            raise AssertionError('%s %s: %d %s' % (method, path, answer.status, answer.text))
        return answer.json

    def get(self, path):
        return self.good('GET', path)

    def post(self, path, body):
        return self.good('POST', path, body)

    def delete(self, path):
        return self.good('DELETE', path)

    def nodes(self):
        """{id: node} of the whole table."""
        return {node['id']: node for node in self.get('/api/nodes')['nodes']}

    def node(self, key):
        return self.nodes().get(getattr(key, 'id', key))

    def wait_node(self, key, timeout=STATE_TIMEOUT, **fields):
        """Wait until the node (an object with an id, or the id) is shown with these values; the node as shown. A value
        may be a test."""
        key = getattr(key, 'id', key)

        def fits(node):
            return node and all(value(node[name]) if callable(value) else node[name] == value
                                for name, value in fields.items())

        def look():
            self.seen = self.nodes()
            return self.seen.get(key) if fits(self.seen.get(key)) else None
        return wait_for(look, timeout, lambda: '%s with %s; seen: %s; said: %s' % (
            key, fields, json.dumps(self.seen.get(key, sorted(self.seen)), sort_keys=True), '\n'.join(self.err[-8:])))

    def add(self, node):
        """Add by address and port, which waits for the outcome; its result."""
        return self.post('/api/nodes', {'host': node.address, 'port': node.port})['results'][0]

    def control(self, path, nodes, **values):
        """Post a control for nodes; the results by id."""
        answer = self.post('/api/' + path, dict(values, nodes=[getattr(node, 'id', node) for node in nodes]))
        return {result['id']: result for result in answer['results']}


_started = []                    # what still runs


def finish(made):
    made.close()
    if made in _started:         # not before: what is interrupted in the middle is finished at the end
        _started.remove(made)


@atexit.register
def finish_all():
    """unittest runs no cleanups when it is interrupted outside of a test."""
    while _started:
        with contextlib.suppress(Exception):     # the others end all the same
            _started.pop().close()


_given, _given_lock = set(), threading.Lock()     # ports that free_ports() has looked at


class LabTest(unittest.TestCase):
    """A test with addresses and ports of its own: two runs at once, or two modules, do not meet."""

    maxDiff = None
    _block = '127.%d.%d.' % (10 + os.getpid() % 240, random.SystemRandom().randrange(256))
    _next = iter(range(1, 255))
    _lock = threading.Lock()

    def setUp(self):
        self.info_port = self.free_ports()
        self.admin_address = self.address()

    @classmethod
    def address(cls):
        """A loopback address that nobody else uses."""
        with cls._lock:
            try:
                return LabTest._block + str(next(LabTest._next))
            except StopIteration:
                head, middle = LabTest._block.split('.')[1:3]
                LabTest._block = '127.%s.%d.' % (head, (int(middle) + 1) % 256)
                LabTest._next = iter(range(1, 255))
                return LabTest._block + str(next(LabTest._next))

    @staticmethod
    def free_ports():
        """An info port N such that N and N + 1 are free for TCP and UDP; below the range that the kernel gives out."""
        while True:
            port = random.SystemRandom().randrange(10000, 30000, 2)
            with _given_lock:
                if port in _given:       # looking at it would take it, for a moment, from who has it
                    continue
                _given.add(port)
            try:
                for number in (port, port + 1):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        with socket.socket(socket.AF_INET, kind) as sock:
                            sock.bind(('', number))
                return port
            except OSError:
                continue

    def folder(self):
        path = tempfile.mkdtemp(prefix='dispyadmin-test-')
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return path

    def write(self, text, name='file', mode=0o600):
        path = os.path.join(self.folder(), name)
        with open(path, 'w') as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def start(self, make, *args, **kwargs):
        made = make(*args, **kwargs)
        _started.append(made)
        self.addCleanup(finish, made)
        return made

    def node(self, secret='', address=None, **kwargs):
        """A real node that dispyadmin of this test finds."""
        return self.start(Node, address or self.address(), kwargs.pop('info_port', self.info_port), secret, **kwargs)

    def together(self, *makers):
        """Start several programs at once: each takes a second or two to be ready."""
        with concurrent.futures.ThreadPoolExecutor(len(makers)) as pool:
            return [future.result() for future in [pool.submit(maker) for maker in makers]]

    def fake(self, secret='', address=None, **kwargs):
        kwargs.setdefault('port', self.info_port + 1)
        return self.start(wire.FakeNode, address or self.address(), secret=secret, **kwargs)

    def admin(self, *options, **kwargs):
        """dispyadmin on this test's ports, polling each second; options come behind and win."""
        defaults = ['-i', kwargs.pop('address', self.admin_address), '--info_port', self.info_port, '--node_port',
                    self.info_port + 1,
                    '--poll_interval', 1, '--ping_interval', 5]
        return self.start(Admin, *(defaults + list(options)), **kwargs)

    def run_script(self, *options, timeout=START_TIMEOUT, **kwargs):
        """Run dispyadmin until it ends by itself; (status, stdout, stderr). No lab defaults."""
        process = self.start(Admin, *options, wait=False, **kwargs)
        wait_for(lambda: not process.running(), timeout, lambda: 'the end with %s: %s' % (options, process.output()))
        return process.wait(), '\n'.join(process.out), '\n'.join(process.err)

    def info_target(self):
        """Where a node of this test sends its announcements."""
        return self.admin_address, self.info_port


def certificate(folder, name='dispy'):
    """A self-signed certificate and its key in one file, made as dispy's users make it."""
    path = os.path.join(folder, name + '.pem')
    if not shutil.which('openssl'):
        raise unittest.SkipTest('no openssl')
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=' + name,
                    '-keyout', path + '.key', '-out', path + '.crt'], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, timeout=60)
    with open(path, 'w') as whole:
        for part in ('.key', '.crt'):
            with open(path + part) as file:
                whole.write(file.read())
    os.chmod(path, 0o600)
    return path


# ---- attacks: what must hold while they last and afterwards ------------------------------------------------------------

QUICK = 0.1                      # seconds in which the page is answered, in the middle of 20 requests


def memory_of(pid, field='VmRSS'):
    """MiB that a process has now (VmHWM: had at most)."""
    with open('/proc/%d/status' % pid) as file:
        return int(re.search(r'^%s:\s+(\d+) kB' % field, file.read(), re.MULTILINE).group(1)) / 1024


def open_files_of(pid):
    return len(os.listdir('/proc/%d/fd' % pid))


def threads_of(pid):
    return len(os.listdir('/proc/%d/task' % pid))


class Watched(wire.FakeNode):
    """A fake node that notes when it was asked, by its clock; `raw` (bytes) is sent instead of an answer."""

    def __init__(self, *args, **kwargs):
        self.times, self.raw, self.clock = [], None, time.monotonic
        super().__init__(*args, **kwargs)

    def serve(self, sock):
        self.times.append(self.clock())
        raw = self.raw
        if raw is None:
            super().serve(sock)
            return
        with sock:
            try:
                sock.settimeout(wire.TIMEOUT)
                self.codes.append(wire.read_exactly(sock, 40))
                wire.read_message(sock)
                sock.sendall(raw)
            except (OSError, EOFError):
                pass

    def longest_gap(self, since):
        """Seconds between two questions, at most, from a time of its clock until now."""
        now = self.clock()
        if since > now:
            raise AssertionError('a time of another clock; take it from clock() of the node')
        times = [since] + sorted(t for t in self.times if t > since) + [now]
        return max(b - a for a, b in zip(times, times[1:]))


class HostileTest(LabTest):
    """dispyadmin in a process of its own, with a good node that has to be seen, polled and controlled after all."""

    def watched(self, *options, **kwargs):
        """(admin, the good node, whose clock is fair to both)."""
        node = self.start(Watched, self.address(), self.info_port + 1, 'open', name='good')
        admin = self.admin('--secret', 'open', *options, **kwargs)
        node.clock = FairClock(admin.pid)
        self.assertTrue(admin.add(node)['ok'])
        admin.wait_node(node, state='ready')
        return admin, node

    def check_alive(self, admin, node, quick=QUICK, growth=None):
        """The good node is shown, polled and controlled, the page is quick, and nothing unexpected was met."""
        polls = len(node.asked('NODE_INFO'))
        cpus = node.info['cpus'] % 4 + 1
        result = admin.control('cpus', [node], cpus=cpus)[node.id]
        self.assertTrue(result['ok'], result)
        self.assertEqual(node.asked('SET_CPUS')[-1], {'cpus': cpus})
        self.assertEqual(node.info['cpus'], cpus)
        admin.wait_node(node, state='ready', cpus=cpus)
        wait_for(lambda: len(node.asked('NODE_INFO')) >= polls + 3, 10, 'polls at the good node')
        self.check_quick(admin, quick)
        self.check_log(admin)
        if growth is not None:
            base, most = growth
            self.assertLess(memory_of(admin.pid, 'VmHWM') - base, most, 'MiB that it took')

    def check_quick(self, admin, quick=QUICK):
        times, clock = [], FairClock(admin.pid)
        for path in ('/api/nodes', '/', '/api/nodes', '/api/about') * 5:
            began = clock()
            self.assertEqual(admin.request('GET', path).status, 200)
            times.append(clock() - began)
        self.assertLess(sorted(times)[len(times) // 2], quick)

    def check_log(self, admin):
        self.assertTrue(admin.running())
        log = admin.output()
        self.assertNotIn('Traceback', log)
        self.assertNotIn('unexpected', log)


# ---- network namespaces ------------------------------------------------------------

CLONE_NEWNET = 0x40000000        # linux/sched.h


def ip(*words):
    done = subprocess.run(['ip'] + list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    if done.returncode:
        raise AssertionError('ip %s: %s' % (' '.join(words), done.stdout.decode().strip()))
    return done.stdout.decode()


class Namespace:
    """One host: a network namespace with its own loopback interface, and whatever is plugged in."""

    def __init__(self, name):
        self.name = name
        self.prefix = ['ip', 'netns', 'exec', name]
        self.address = self.address6 = None
        ip('netns', 'add', name)
        try:
            self.ip('link', 'set', 'lo', 'up')
        except BaseException:
            self.close()
            raise

    def ip(self, *words):
        return ip('-n', self.name, *words)

    def call(self, function):
        """Call in a thread that has entered the namespace; sockets made there stay in it."""
        def enter():
            with open('/var/run/netns/' + self.name) as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), 'setns ' + self.name)
            return function()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(enter).result()

    def hosts_file(self, text):
        """What programs in this namespace read as /etc/hosts."""
        os.makedirs('/etc/netns/' + self.name, exist_ok=True)
        with open('/etc/netns/%s/hosts' % self.name, 'w') as file:
            file.write(text)

    def etc_file(self, name, text):
        """What programs in this namespace read as /etc/NAME."""
        os.makedirs('/etc/netns/' + self.name, exist_ok=True)
        with open('/etc/netns/%s/%s' % (self.name, name), 'w') as file:
            file.write(text)

    def close(self):
        subprocess.run(['ip', 'netns', 'del', self.name], stderr=subprocess.DEVNULL, timeout=30)
        shutil.rmtree('/etc/netns/' + self.name, ignore_errors=True)


class Segment:
    """Hosts on one bridge. The bridge has a namespace of its own, so nothing of this touches the machine's network."""

    # No two segments of one run have the same network or the same names: a router stands between any two of them.
    _numbers = itertools.cycle(random.SystemRandom().sample(range(1, 255), 254))

    def __init__(self, hosts, prefix=24):
        number = next(self._numbers)
        tag = 'da%d-%x' % (os.getpid() % 100000, number)
        self.network, self.prefix_length, self.spaces, self.hosts = '10.77.%d.' % number, prefix, [], []
        self.network6 = 'fd77:%x::' % number
        try:
            self.bridge = self.make(tag + 'b')
            # Without a querier a snooping bridge forgets who listens to a multicast group.
            self.bridge.ip('link', 'add', 'name', 'bridge0', 'type', 'bridge', 'mcast_snooping', '0')
            self.bridge.ip('link', 'set', 'dev', 'bridge0', 'up')
            for index in range(1, hosts + 1):
                host = self.make('%sh%d' % (tag, index))
                self.plug(host, index)
                self.hosts.append(host)
        except BaseException:
            self.close()
            raise

    def make(self, name):
        space = Namespace(name)
        self.spaces.append(space)
        return space

    def plug(self, host, index, device='eth0'):
        """A cable from the host to the bridge, with an IPv4 and an IPv6 address."""
        port = 'p%d%s' % (index, device)
        self.bridge.ip('link', 'add', port, 'type', 'veth', 'peer', 'name', device, 'netns', host.name)
        self.bridge.ip('link', 'set', port, 'master', 'bridge0', 'up')
        host.address, host.address6 = self.network + str(index), self.network6 + '%x' % index
        host.ip('address', 'add', '%s/%d' % (host.address, self.prefix_length), 'broadcast', '+', 'dev', device)
        host.ip('link', 'set', device, 'addrgenmode', 'eui64', 'up')
        host.ip('address', 'add', host.address6 + '/64', 'dev', device, 'nodad')
        # dispynode and clients resolve nothing outside; a default route is what a real host has.
        if not host.ip('route', 'show', 'default'):
            host.ip('route', 'add', 'default', 'dev', device)
        wait_for(lambda: 'tentative' not in host.ip('-6', 'address', 'show', 'dev', device), 10,
                 'IPv6 addresses are settled')

    def close(self):
        for space in reversed(self.spaces):
            space.close()


def need_namespaces():
    """Skip where network namespaces cannot be made."""
    if os.name != 'posix' or os.geteuid():
        raise unittest.SkipTest('network namespaces need root')
    if not shutil.which('ip'):
        raise unittest.SkipTest('no ip program (iproute2)')
    try:
        Namespace('da%d-try' % os.getpid()).close()
    except AssertionError as error:
        raise unittest.SkipTest('no network namespaces: %s' % error)


# ---- the browser ------------------------------------------------------------

def chromium_paths():
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    return browser, shutil.which('chromedriver')


class Browser:
    """Chromium without a window. Everything else is on `driver` (selenium)."""

    def __init__(self, width=1400, height=1000, dark=False):
        path = environment.require(environment.SELENIUM)
        binary, driver = chromium_paths()
        if not binary or not driver:
            raise unittest.SkipTest('no chromium and chromedriver')
        if path not in sys.path:
            sys.path.insert(0, path)
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        self.folder = tempfile.mkdtemp(prefix='browser-')       # short: it makes sockets there
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for word in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
                     '--disable-extensions',
                     '--disable-background-networking', '--window-size=%d,%d' % (width, height),
                     # Else it waits for its maker's servers before it loads anything, where there is a route but no answer.
                     '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.*, EXCLUDE 10.*, EXCLUDE [*]',
                     '--user-data-dir=' + self.folder):
            options.add_argument(word)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        try:
            # What it writes to the folder for temporary files stays there when it is killed.
            service = Service(driver, env=dict(os.environ, TMPDIR=self.folder))
            self.driver = webdriver.Chrome(options=options, service=service)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        if dark:
            self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia',
                                        {'features': [{'name': 'prefers-color-scheme', 'value': 'dark'}]})

    def size(self, width, height):
        """The size of what the page sees, also below the smallest window."""
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                    {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False})

    def errors(self):
        """What the console of the browser complains of."""
        return [entry['message'] for entry in self.driver.get_log('browser') if entry['level'] in ('SEVERE', 'WARNING')]

    def close(self):
        try:
            self.driver.quit()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
