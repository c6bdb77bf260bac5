"""Under load and fault: errors in every loop, many starts in one process, clocks that step, a pause of the whole program,
an interface that goes and comes."""

import concurrent.futures
import itertools
import gc
import logging
import os
import signal
import threading
import time
import urllib.request
import warnings

import dispyadmin

from . import environment, lab, wire

# Starts dispyadmin with what the environment variable FAULTS names broken: each raises once, at the second call (the first
# time that the loop is under way), or always.
WRAPPER = '''
import os, sys, time

what, mark = os.environ.pop('FAULTS'), ''
if what.startswith('marked '):
    mark = ' \\x1b[2J\\r\\n2026-01-01 00:00:00,000 error: forged'
    what = what[7:]
if what.startswith('clock='):
    real, name = time.time, what[6:]

    def stepped():
        with open(name) as file:
            return real() + float(file.read())
    time.time = stepped
import dispyadmin

def broken(cls, name, always):
    real, count = getattr(cls, name), [0]
    def method(*args, **kwargs):
        count[0] += 1
        if always and count[0] > 1 or count[0] == (1 if cls.__name__ == 'Seeker' else 2):
            raise RuntimeError('injected into %s.%s' % (cls.__name__, name) + mark)
        return real(*args, **kwargs)
    setattr(cls, name, staticmethod(method) if isinstance(cls.__dict__.get(name), staticmethod) else method)

if not what.startswith('clock='):
    for place in what.split(','):
        cls, _, name = place.partition('.')
        broken(getattr(dispyadmin, cls), name.rstrip('!'), name.endswith('!'))
sys.exit(dispyadmin.main())
'''

ONCE = ('Listener.turn', 'Announcer.turn', 'Poller.turn', 'WebServer.turn',
        'Listener._understand', 'Listener._accept', 'Listener._take_all', 'Admin._heard', 'Admin._meet',
        'Admin._tell', 'Admin._due_talks', 'NodeTable.failed', 'Admin.info_steps', 'Announcer._ask_from',
        'Talk.begin', 'Talk.watch', 'Talk.receive', 'Schedule.take',
        'NodeTable.answered', 'NodeTable.heard', 'NodeTable.look', 'NodeTable.may_send', 'Poller._launch',
        'Poller.advance', 'Poller._step', 'Poller._expire', 'WebServer._accept', 'RequestHandler.setup',
        'RequestHandler._read_target', 'RequestHandler._send', 'Seeker.turn', 'Inbound.__init__')


class FaultTest(lab.HostileTest):
    def broken(self, what, *options, **kwargs):
        """dispyadmin with these faults, and options."""
        return self.admin('--secret', 'open', *options, script=self.write(WRAPPER, 'wrapper.py'),
                          env={'PYTHONPATH': environment.ROOT, 'FAULTS': what}, **kwargs)


class Errors(FaultTest):
    def test_each_loop_goes_on(self):
        """An error in the middle of each loop's work: logged once, and after it all is found, polled and controlled."""
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for place, future in [(place, pool.submit(self.one_fault, place)) for place in ONCE]:
                with self.subTest(place):
                    future.result()

    def one_fault(self, place):
        info_port, address = self.free_ports(), self.address()
        target = address, info_port
        node, late, other = made = [lab.Watched(self.address(), info_port + 1, 'open') for _ in range(3)]
        admin = self.broken(place, '--node', node.id, '--info_port', info_port, '--node_port', info_port + 1,
                            address=address)
        ports = itertools.cycle(range(other.port, other.port + 8))
        try:
            def injected():
                """Keep everything busy until the fault has been met."""
                port = next(ports)           # at most of them nothing listens: they stay new
                for kind in (b'PING:', b'NODE_INFO:'):
                    message = wire.encode(kind, wire.announcement(other.address, port, other.sign))
                    wire.datagram(message, target, other.address)
                    try:
                        with wire.connect(*target) as sock:
                            wire.send_message(sock, message)
                    except OSError:
                        pass
                try:
                    admin.request('POST', '/api/scan', {}, timeout=3)
                    admin.request('GET', '/api/nodes', timeout=3)
                except OSError:
                    pass                 # it was this request
                except Exception as error:
                    if type(error).__module__ != 'http.client':
                        raise
                return 'injected' in admin.output()
            lab.wait_for(injected, 15, lambda: 'the fault: ' + admin.output())
            late.ping(target)
            for shown in (node, late):
                lab.wait_for(lambda: late.ping(target) or (admin.node(shown) or {}).get('state') == 'ready',
                             12, lambda: 'found: %s %s' % (admin.nodes(), admin.output()[-3000:]))
                polls = len(shown.asked('NODE_INFO'))
                lab.wait_for(lambda: len(shown.asked('NODE_INFO')) >= polls + 2, 8, 'it is polled')
                result = admin.control('cpus', [shown], cpus=2)[shown.id]
                self.assertTrue(result['ok'], result)
            self.assertTrue(admin.running())
            lines = admin.output().split('\n')
            self.assertEqual(len([line for line in lines if line.strip().startswith('RuntimeError')]), 1, lines)
        finally:
            lab.finish(admin)
            for fake in made:
                fake.close()

    def test_what_an_error_says(self):
        """The text of an error may be the network's: it cannot add lines or move the cursor. Nor does it hold a secret."""
        secret = 'a-secret-of-this-test'
        for place in ('Listener._understand!', 'Admin.take', 'Schedule.finished', 'NodeTable.answered',
                      'NodeTable.may_send', 'Talk.receive', 'Poller._end', 'RequestHandler._reply'):
            with self.subTest(place):
                node = self.start(lab.Watched, self.address(), self.info_port + 1, secret)
                admin = self.broken('marked ' + place, '--secret', '@' + self.write(secret), '--node', node.id)
                wire.datagram(b'PING:N.', self.info_target())
                wire.datagram(b'PING:N.', self.info_target())

                def met():
                    try:
                        admin.request('GET', '/api/nodes', timeout=3)
                    except OSError:
                        pass
                    return 'injected' in admin.output()
                lab.wait_for(met, 10, lambda: 'the fault: ' + admin.output())
                lab.finish(admin)
                for line in admin.err:
                    self.assertFalse([c for c in line if c < ' '], ascii(line))
                    self.assertFalse(line.startswith('2026-01-01'), line)
                    self.assertNotIn(secret, line)
                    self.assertNotIn(wire.auth_code(secret, node.sign).decode(), line)
                lab.finish(node)

    def test_error_that_stays(self):
        """Logged once, however often it comes back; it eats no processor time, and all other work goes on."""
        for place in ('Announcer.turn!', 'Listener._understand!', 'Seeker.turn!', 'NodeTable.heard!', 'Inbound.__init__!'):
            with self.subTest(place):
                node = self.start(lab.Watched, self.address(), self.info_port + 1, 'open')
                admin = self.broken(place)
                self.assertTrue(admin.add(node)['ok'])
                for _ in range(20):
                    wire.datagram(wire.encode(b'PING:', wire.announcement('127.0.0.1', 5, wire.new_sign())),
                                  self.info_target())
                    with wire.connect(*self.info_target()) as sock:
                        wire.send_message(sock, b'PING:N.')
                before, began = self.seconds_of(admin.pid), time.monotonic()
                while time.monotonic() - began < 2:
                    wire.datagram(wire.encode(b'PING:', wire.announcement('127.0.0.1', 5, wire.new_sign())),
                                  self.info_target())
                    time.sleep(0.05)
                self.assertLess(self.seconds_of(admin.pid) - before, 1)
                self.assertTrue(admin.control('cpus', [node], cpus=2)[node.id]['ok'])
                self.assertLessEqual(admin.output().count('unexpected error'), 1)
                self.check_quick(admin)
                lab.finish(admin)
                lab.finish(node)

    def test_error_within_an_operation(self):
        """What was intended and did not come about is not remembered; the next operation has its turn."""
        node = self.start(lab.Watched, self.address(), self.info_port + 1, 'open', cpus=8)
        admin = self.broken('PlanRunner._converse')
        self.assertTrue(admin.add(node)['ok'])
        self.assertTrue(admin.control('cpus', [node], cpus=3)[node.id]['ok'])
        result = admin.control('cpus', [node], cpus=2)[node.id]
        self.assertEqual((result['ok'], 'unexpected' in result['message']), (False, True), result)
        self.assertEqual((admin.node(node)['wanted'], node.info['cpus']), ({'cpus': {'cpus': 3}}, 3))
        self.assertTrue(admin.control('cpus', [node], cpus=5)[node.id]['ok'])
        self.assertEqual(admin.node(node)['wanted'], {'cpus': {'cpus': 5}})

    def test_error_of_one_node(self):
        """What cannot be understood of one node's answers is logged once and delays no other."""
        nodes = [self.start(lab.Watched, self.address(), self.info_port + 1, 'open') for _ in range(3)]
        admin = self.broken('NodeTable.answered!')
        for node in nodes:
            admin.request('POST', '/api/nodes', {'host': node.address, 'port': node.port}, timeout=5)
        since = time.monotonic()
        self.check_quick(admin)
        lab.wait_for(lambda: time.monotonic() - since > 3, 5)
        self.assertLess(admin.output().count('Traceback'), 3, admin.output()[:3000])

    @staticmethod
    def seconds_of(pid):
        with open('/proc/%d/stat' % pid) as file:
            fields = file.read().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Lifetime(FaultTest):
    def test_a_hundred_starts(self):
        """Started and ended 100 times in this process: no thread, socket or file is left."""
        node = self.start(lab.Watched, self.address(), self.info_port + 1, 'open')
        settings = dispyadmin.read_settings(
            ['-i', self.admin_address, '--info_port', str(self.info_port), '--node_port', str(self.info_port + 1),
             '--http_port', '0', '--node', node.id, '--secret', 'open', '--poll_interval', '1'], {})

        clock = lab.FairClock()

        def once(number):
            admin = dispyadmin.Admin(settings)
            server = dispyadmin.WebServer(admin, settings, 16)
            for part in (admin, server):
                part.start()
            try:
                if number % 10 == 0:
                    lab.wait_for(lambda: admin.table.get(node.id) and admin.table.get(node.id).view['state'] == 'ready',
                                 what='the node is shown')
                    with urllib.request.urlopen(server.url('localhost') + 'api/nodes', timeout=10) as answer:
                        answer.read()
                    wire.connect('127.0.0.1', server.port).close()
                    held = wire.connect('127.0.0.1', server.port)     # one that is open at the end
                    self.addCleanup(held.close)
            finally:
                for part in (admin, server):
                    part.end()
                began, deadline = clock(), time.monotonic() + 20
                for part in (server, admin):
                    part.join(deadline)
                self.assertLess(clock() - began, 5, 'start %d: some thread does not end: %s'
                                % (number, [thread.name for thread in threading.enumerate()]))
        logger = logging.getLogger('dispyadmin')
        level = logger.level
        logger.setLevel(logging.ERROR)
        self.addCleanup(logger.setLevel, level)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            once(0)
            files, threads = self.state()
            for number in range(1, 101):
                once(number)
            held = 10
            lab.wait_for(lambda: len(self.state()[1]) <= len(threads), 5,
                         lambda: 'threads end: %s' % [thread.name for thread in threading.enumerate()])
            gc.collect()
        after, _ = self.state()
        self.assertLessEqual(len(after), len(files) + held, after)
        self.assertEqual([str(warning.message) for warning in caught], [])
        self.assertTrue(node.asked('NODE_INFO'))

    @staticmethod
    def state():
        """(open files, threads) of this process; those of the fake node come and go."""
        files = []
        for name in os.listdir('/proc/self/fd'):
            try:
                files.append(os.readlink('/proc/self/fd/' + name))
            except OSError:
                pass
        threads = [thread for thread in threading.enumerate() if 'serve' not in thread.name]
        return files, threads

    def test_ends_under_attack(self):
        """SIGTERM while clients hold connections, nodes are silent and operations wait: it ends within seconds."""
        admin, node = self.watched(env={'PYTHONFAULTHANDLER': '1'})
        silent = self.start(lab.Watched, self.address(), self.info_port + 1, 'open', mode='silent')
        held = [wire.connect(admin.host, admin.port) for _ in range(50)]
        held += [wire.connect(*self.info_target()) for _ in range(50)]
        body = ('{"host": "%s", "port": %d}' % (silent.address, silent.port)).encode()
        for sock in held[:20]:
            sock.sendall(b'POST /api/nodes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
                         b'Content-Length: %d\r\n\r\n' % len(body) + body)
        for sock in held:
            self.addCleanup(sock.close)
        lab.wait_for(lambda: silent.connections, what='the silent node is asked')

        def storm():
            # Linux hands a signal to a thread that is starting another one: then it does not interrupt the main thread.
            try:
                while True:
                    wire.connect(admin.host, admin.port).close()
            except OSError:
                pass             # it has ended
        threading.Thread(target=storm, daemon=True).start()
        try:
            self.assertLess(admin.seconds_to_end(signal.SIGTERM), 3)
        except AssertionError:
            admin.signal(signal.SIGABRT)         # it says where each thread is
            admin.wait()
            self.fail('not in time: ' + admin.output())
        self.assertEqual(admin.wait(), 0)
        self.check_ended(admin)

    def check_ended(self, admin):
        self.assertNotIn('Traceback', admin.output())
        self.assertNotIn('unexpected', admin.output())


class Clock(FaultTest):
    def test_steps_of_a_day(self):
        """Forward and back, twice: polls, discovery, controls and changes on the page go on as if nothing was."""
        node = self.start(lab.Watched, self.address(), self.info_port + 1, 'open')
        offset = self.write('0')
        admin = self.broken('clock=' + offset)
        node.clock = lab.FairClock(admin.pid)
        self.assertTrue(admin.add(node)['ok'])
        lates = []
        for days in (1, 0, -1, 0):
            sequence = admin.get('/api/nodes')['sequence']
            before = admin.get('/api/nodes')['time']
            since = node.clock()
            os.replace(self.write(str(days * 86400)), offset)
            lab.wait_for(lambda: abs(admin.get('/api/nodes')['time'] - before) > 80000, what='the clock has stepped')
            node.terminated(self.info_target())              # it is not closed: closely watched, not for a day
            node.info['jobs_done'] += 1
            admin.wait_node(node, timeout=4, jobs_done=node.info['jobs_done'], state='ready')
            changed = admin.get('/api/nodes?since=%d' % sequence)
            self.assertFalse(changed['full'])
            self.assertEqual([row['id'] for row in changed['nodes'] if row['id'] == node.id], [node.id])
            self.check_alive(admin, node)
            self.assertLess(node.longest_gap(since), 2.5)
            late = self.start(lab.Watched, self.address(), self.info_port + 1, 'open')
            lates.append(late)
            late.ping(self.info_target())
            admin.wait_node(late, timeout=4, state='ready')
        for other in lates:
            self.assertEqual(admin.node(other)['state'], 'ready')

    def test_announced_end_and_a_clock_that_goes_back(self):
        """A node that announced its end and still answers is watched closely for seconds, not until the clock is back."""
        now, monotonic = [1e9], [0.0]
        table = dispyadmin.NodeTable(lambda: now[0], lambda: monotonic[0])
        answer = dispyadmin.Answer(dispyadmin.Known('a' * 40, None, 1), None)
        node_id = '10.0.0.1:9701'
        table.may_send(node_id, 'a' * 40)
        table.answered(node_id, answer, create=True)
        table.heard(node_id, dispyadmin.Announcement('TERMINATED', None, 9701, 'a' * 40, None))
        self.assertTrue(table.look(node_id).is_ending)
        now[0] -= 86400
        for _ in range(100):
            now[0] += 0.5
            monotonic[0] += 0.5
            table.answered(node_id, answer)
        self.assertFalse(table.look(node_id).is_ending)

    def test_suspended(self):
        """The whole program stands still for ten poll intervals: afterwards each node is asked once, and none is lost."""
        nodes = [self.start(lab.Watched, self.address(), self.info_port + 1, 'open') for _ in range(40)]
        admin = self.admin('--secret', 'open')
        for node in nodes:
            node.ping(self.info_target())
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['ready'] == 40, what='all are ready')
        lab.wait_for(lambda: min(len(node.times) for node in nodes) >= 5, what='all are polled at their pace')
        admin.signal(signal.SIGSTOP)
        try:
            for _ in range(20):
                for node in nodes[:10]:
                    node.ping(self.info_target())
                time.sleep(0.5)
            counts = [len(node.times) for node in nodes]
        finally:
            admin.signal(signal.SIGCONT)
        since = time.monotonic()
        lab.wait_for(lambda: all(len(node.times) > count for node, count in zip(nodes, counts)), 2, 'each is asked')
        time.sleep(max(0, since + 2.4 - time.monotonic()))
        asked = [len([t for t in node.times if since <= t < since + 2.4]) for node in nodes]
        self.assertLessEqual(max(asked), 4, asked)           # at once, and then in the pace of one second: none is made up
        self.assertLessEqual(sum(asked), 40 * 3.5, asked)
        self.assertEqual(admin.get('/api/nodes')['totals']['ready'], 40)
        self.assertFalse([line for line in admin.err if 'lost' in line], admin.err[-5:])
        self.check_alive(admin, nodes[0])


class Interfaces(FaultTest):
    def setUp(self):
        super().setUp()
        lab.need_namespaces()

    def test_lost_and_back(self):
        """The interface goes, with its address, and comes back with another, beside a new one: no restart is needed."""
        left, right = self.start(lab.Segment, 3), self.start(lab.Segment, 1)
        head, one, two = left.hosts
        three = right.hosts[0]
        first, third = self.together(
            lambda: self.node('open', address=one.address, namespace=one, info_port=9700),
            lambda: self.node('open', address=three.address, namespace=three, info_port=9700))
        admin = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, '--ping_interval', 600, namespace=head)
        admin.wait_node(first, state='ready')
        self.assertIsNone(admin.node(third))
        pid = admin.pid
        head.ip('link', 'set', 'eth0', 'down')
        head.ip('address', 'flush', 'dev', 'eth0')
        admin.wait_node(first, timeout=15, state='unreachable')
        self.check_quick(admin, 0.3)
        head.ip('address', 'add', left.network + '77/24', 'broadcast', '+', 'dev', 'eth0')
        head.ip('link', 'set', 'eth0', 'up')
        right.plug(head, 9, 'eth1')                          # an address that came later
        second = self.node('open', address=two.address, namespace=two, info_port=9700)
        # the ping interval is ten minutes: what is found is found for the new addresses, or by its announcement
        for node in (first, second, third):
            admin.wait_node(node, timeout=40, state='ready')
            self.assertTrue(admin.control('cpus', [node], cpus=1)[node.id]['ok'])
            self.assertEqual(node.managed(), 1)
        wanted = {left.network + '77', right.network + '9'}
        lab.wait_for(lambda: wanted <= {entry['address'] for entry in admin.get('/api/about')['asks']}, 15,
                     lambda: 'both are asked from: %s' % admin.get('/api/about')['asks'])
        self.assertEqual(admin.pid, pid)
        self.check_log(admin)
        self.assertLess(len(admin.err), 40)                  # what failed meanwhile is said once
