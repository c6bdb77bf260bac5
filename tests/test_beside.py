"""dispyadmin lives beside every program of dispy on the head node: real ones, each in a network of its own.

dispyadmin hears broadcasts in turns, so what a program meets depends on the moment when it starts. Each kind of program
is started at MOMENTS moments, spread over a turn with jitter, each at a head node of its own. DISPYADMIN_MOMENTS=20 in the
environment takes more of them; DISPYADMIN_SEED=N repeats those of a failure.
"""

import collections
import concurrent.futures
import os
import random
import re
import socket
import subprocess
import time
import traceback

from . import environment, lab, wire
from .test_jobs import JobsTest

MOMENTS = int(os.environ.get('DISPYADMIN_MOMENTS') or 6)
SEED = int(os.environ.get('DISPYADMIN_SEED') or random.SystemRandom().randrange(1, 10 ** 6))
AT_ONCE = 12                     # head nodes at the same time: most programs wait, but two cores have to start them
TURN = 10.0                      # seconds between two searches of dispyadmin
CLIENT_TIME = 30                 # seconds until a client has its port
PROGRAM_TIME = 10                # seconds that a program takes to start on a busy machine, and a short job to run
FOUND_TIME = 5                   # seconds in which nodes are found that answer at once
CLIENT_PORT, OLD_CLIENT_PORT = 9700, 61590
NODE_PORT, REPLY_PORT = 9701, 9707
SHARED_PORTS = (CLIENT_PORT, OLD_CLIENT_PORT)

Socket = collections.namedtuple('Socket', 'kind address port pids')


def sockets(host):
    """What is bound in a namespace: listening TCP and all UDP sockets, as ss tells it."""
    out = subprocess.run(host.prefix + ['ss', '-Hlntup'], stdout=subprocess.PIPE, check=True, timeout=30).stdout.decode()
    found = []
    for line in out.splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(':')
        pids = {int(pid) for pid in re.findall(r'pid=(\d+)', line)}
        found.append(Socket(fields[0], address.strip('[]'), int(port), pids))
    return found


def is_wildcard(address):
    return address in ('0.0.0.0', '*', '::')


def moments():
    """Seconds after dispyadmin's start: one in each equal part of its turn."""
    source = random.Random(SEED)
    return [(part + source.random()) * TURN / MOMENTS for part in range(MOMENTS)]


def forward(router):
    """Make a host a router."""
    def write():
        with open('/proc/sys/net/ipv4/ip_forward', 'w') as file:
            file.write('1')
    router.call(write)


def route(host, network, router):
    """Lead what goes to a network ('default', or '10.77.3.0/24') over a router's address."""
    host.ip('route', 'replace', network, 'via', router, 'dev', 'eth0')


class Site:
    """A head node with dispyadmin, and the hosts of nodes around it. Nobody else is on its network."""

    def __init__(self, test, hosts=1):
        self.test, self.nodes, self.missing, self.programs = test, [], [], []
        self.segment = test.start(lab.Segment, 1 + hosts)
        self.head, self.hosts = self.segment.hosts[0], self.segment.hosts[1:]
        self.address = self.head.address
        self.server = self.began = None

    def add_node(self, host, expected=True, cpus=1, **kwargs):
        """A dispynode that announces itself once, at its start."""
        kwargs.setdefault('address', host.address)
        node = self.test.node('open', info_port=CLIENT_PORT, namespace=host, ping_interval=0,
                              extra=['-c', str(cpus)] + list(kwargs.pop('extra', ())), **kwargs)
        self.nodes += [node] * expected
        return self.begun(node)

    def begun(self, program):
        self.programs.append(program)
        return program

    def start_server(self, *options, ready=True):
        """dispyadmin as an administrator starts it, but that it polls each second."""
        self.began = time.monotonic()
        self.server = self.begun(self.test.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, *options,
                                                 namespace=self.head))
        for node in self.nodes if ready else ():
            self.server.wait_node(node, timeout=2 * lab.STATE_TIMEOUT, state='ready')
        return self.server

    def wait(self, predicate, timeout, what):
        """Wait, and note each node that is not shown as ready meanwhile."""
        def look():
            shown = self.server.nodes()
            for node in self.nodes:
                state = shown.get(node.id, {}).get('state')
                if state != 'ready':
                    age = time.monotonic() - self.began
                    self.missing.append('%s was %s, %.1f s after the start' % (node.id, state, age))
            time.sleep(0.2)
            return predicate()
        return lab.wait_for(look, timeout, what)

    def program(self, name, *options):
        """A program of dispy on the head node."""
        packages = environment.node_packages('4.15.2')
        library = environment.require(packages)
        command = [packages.python, '-W', 'ignore', os.path.join(library, 'dispy', name + '.py'), '--daemon']
        return self.begun(self.test.start(lab.Process, command + list(options), self.head,
                                          dict(os.environ, PYTHONPATH=library, PYTHONUNBUFFERED='1'), self.test.folder()))

    def scheduler(self, *options):
        return self.program('dispyscheduler', '-d', '-i', self.address, '--dest_path_prefix', self.test.folder(), *options)

    def client(self, jobs=4, seconds=0.1, **given):
        return self.begun(self.test.client(given.pop('host', self.address), CLIENT_PORT, jobs, seconds,
                                           namespace=given.pop('namespace', self.head), **given))

    def held(self, program):
        """{(kind, address, port)} of a program on the head node."""
        return {each[:3] for each in sockets(self.head) if program.pid in each.pids}

    def end(self):
        """End its programs, at once: one after the other they take seconds."""
        if self.programs:
            self.test.together(*[program.close for program in self.programs])


class BesideTest(JobsTest):
    def setUp(self):
        super().setUp()
        lab.need_namespaces()
        self.sites = []

    def tearDown(self):
        for site in self.sites:
            site.end()
        super().tearDown()

    def site(self, *args, kind=Site, **kwargs):
        self.sites.append(kind(self, *args, **kwargs))
        return self.sites[-1]

    def has_ended_well(self, client):
        """Whether all its jobs are done; fails when it ended otherwise."""
        def look():
            closed = self.has_printed(client, 'closed')()
            assert closed or client.running(), 'the client ended: ' + client.output()
            return closed
        return look

    def check_scheduler(self, site):
        """dispyscheduler finds the nodes at once, and its clients' jobs run to their end."""
        scheduler = site.scheduler()
        site.wait(lambda: 'Scheduler at' in scheduler.output(), lab.START_TIMEOUT,
                  lambda: 'dispyscheduler starts: ' + scheduler.output())
        for node in site.nodes:
            site.wait(lambda: 'Discovered %s:' % node.address in scheduler.output(), FOUND_TIME,
                      lambda: 'dispyscheduler finds %s: %s' % (node.address, scheduler.output()))
        client = site.client(scheduler=True)
        site.wait(self.has_ended_well(client), 2 * PROGRAM_TIME, lambda: 'jobs are done: %s\n%s' % (
            client.output(), scheduler.output()))
        site.wait(lambda: site.server.get('/api/nodes')['totals']['jobs_done'] == 4, lab.STATE_TIMEOUT, 'jobs are counted')

    def check_relay(self, site):
        """dispynetrelay takes its ports and uses each: a client asks for nodes (9701), a node announces itself (9700)."""
        relay = site.program('dispynetrelay', '-i', site.inner_address)
        wanted = {('udp', '255.255.255.255', CLIENT_PORT), ('udp', '255.255.255.255', NODE_PORT),
                  ('tcp', site.inner_address, NODE_PORT)}
        site.wait(lambda: wanted <= site.held(relay), PROGRAM_TIME,
                  lambda: 'dispynetrelay has its sockets: %s; %s' % (site.held(relay), relay.output()))
        first, second = [host.address for host in site.inner.hosts]
        client = self.relayed_client(site, relay, first, second)
        node = site.add_node(site.inner.hosts[1], expected=False)
        site.wait(self.has_ended_well(client), 2 * PROGRAM_TIME,
                  lambda: 'a job is done at the node that has come: %s\n%s' % (client.output(), relay.output()))
        site.server.wait_node(node, timeout=TURN, state='ready')
        assert relay.running(), relay.output()

    def relayed_client(self, site, relay, first, second):
        """A client behind the relay that has computed at the first node. It asks once, by one datagram, and can be answered
        before it listens, on a busy machine and whatever runs beside the relay: then the next client asks."""
        for last in (False, False, True):
            client = site.client(host=site.outside.address, namespace=site.outside, jobs=2, until=[first, second],
                                 ping_interval=None)
            try:
                site.wait(self.has_printed(client, 'done ' + first), PROGRAM_TIME,
                          lambda: 'a job is done at the node that was there: %s\n%s' % (client.output(), relay.output()))
                return client
            except AssertionError:
                if last:
                    raise
                lab.finish(client)

    def check_client(self, site, ping_interval=5):
        """A client has its port within 30 s, and its jobs run to their end."""
        client = site.client(ping_interval=ping_interval)
        site.wait(self.has_printed(client, 'done'), CLIENT_TIME + PROGRAM_TIME,
                  lambda: 'a first job is done: ' + client.output())
        site.wait(self.has_ended_well(client), PROGRAM_TIME, lambda: 'jobs are done: ' + client.output())
        site.wait(lambda: site.server.get('/api/nodes')['totals']['jobs_done'] == 4, lab.STATE_TIMEOUT, 'jobs are counted')

    def check_shy_client(self, site):
        """So it is with the intervals that clients and nodes have by themselves: each says once, at its start, that it is
        there. What nodes answer before the client has its port is lost to it."""
        self.check_client(site, ping_interval=None)


# ---- programs on the head node, each at every moment ------------------------------------------------------------


class RelaySite(Site):
    """The head node leads from one segment, where a client's host is, to another one, where nodes are."""

    def __init__(self, test):
        super().__init__(test)
        self.outside, self.inner = self.hosts[0], test.start(lab.Segment, 2)
        self.inner.plug(self.head, 9, 'eth1')
        self.inner_address = self.head.address
        forward(self.head)
        route(self.outside, 'default', self.address)
        for host in self.inner.hosts:
            route(host, 'default', self.inner_address)


class Moments(BesideTest):
    def site_with_node(self):
        site = self.site()
        site.add_node(site.hosts[0])
        return site

    def site_with_relay(self):
        site = self.site(kind=RelaySite)
        site.add_node(site.inner.hosts[0])
        return site

    def try_at(self, moment, make, check):
        """Start dispyadmin at a new site, and the program at that moment. What went wrong, or None."""
        site = make()
        try:
            site.start_server()
            time.sleep(max(0.0, site.began + moment - time.monotonic()))
            check(site)
            assert not site.missing, 'not shown all the while: ' + '; '.join(site.missing[:5])
        except Exception as error:
            return error if isinstance(error, AssertionError) else traceback.format_exc()
        finally:
            site.end()

    def test_programs(self):
        """What each program does it does at every moment of dispyadmin's turn, and nodes are shown all the while."""
        kinds = [('dispyscheduler', self.site_with_node, self.check_scheduler),
                 ('dispynetrelay', self.site_with_relay, self.check_relay),
                 ('JobCluster', self.site_with_node, self.check_client),
                 ('JobCluster that asks once', self.site_with_node, self.check_shy_client)]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            tries = [(name, moment, pool.submit(self.try_at, moment, make, check))
                     for moment in reversed(moments()) for name, make, check in kinds]
        for name, _, _ in kinds:
            with self.subTest(name):
                wrong = ['%.1f s after the start: %s' % (moment, future.result()) for kind, moment, future in tries
                         if kind == name and future.result() is not None]
                if wrong:
                    self.fail('%d of %d moments of %s (DISPYADMIN_SEED=%d DISPYADMIN_MOMENTS=%d):\n%s' % (
                        len(wrong), MOMENTS, name, SEED, MOMENTS, '\n'.join(wrong)))


class Order(BesideTest):
    """dispyadmin is started second."""

    def test_scheduler(self):
        """Nodes that start beside both are found by both."""
        site = self.site(hosts=3)
        scheduler = site.scheduler()
        lab.wait_for(lambda: 'Scheduler at' in scheduler.output(), lab.START_TIMEOUT, 'dispyscheduler starts')
        site.start_server()
        for host in site.hosts:
            node = site.add_node(host)
            # It may rest when the node announces itself: then it asks as soon as it hears again.
            site.server.wait_node(node, timeout=TURN, state='ready')
            lab.wait_for(lambda: 'Discovered %s:' % node.address in scheduler.output(), FOUND_TIME,
                         lambda: 'dispyscheduler finds %s: %s' % (node.address, scheduler.output()))
        client = site.client(scheduler=True, until=[node.address for node in site.nodes])
        site.wait(self.has_ended_well(client), 2 * PROGRAM_TIME, lambda: 'jobs are done: %s\n%s' % (
            client.output(), scheduler.output()))
        self.assertEqual(site.missing, [])

    def test_client(self):
        """The client keeps its port; dispyadmin finds the nodes by asking, busy ones too."""
        site = self.site(hosts=2)
        nodes = [site.add_node(host, cpus=2) for host in site.hosts]
        client = site.client(jobs=4, seconds=10, asleep=True)
        lab.wait_for(lambda: sum(node.info()['busy'] for node in nodes) == 4, 30,
                     lambda: 'jobs run: ' + client.output())
        server = site.start_server()
        for node in nodes:
            server.wait_node(node, state='ready', busy=2)
        site.wait(self.has_ended_well(client), 30, lambda: 'jobs are done: ' + client.output())
        self.assertEqual(site.missing, [])
        lab.wait_for(lambda: server.get('/api/nodes')['totals']['jobs_done'] == 4, 15, 'all jobs are counted')


# ---- sockets ------------------------------------------------------------


class Sockets(BesideTest):
    def test_ports(self):
        """At every moment: no program of dispy finds its port taken, and what is sent to an own address is heard."""
        site = self.site()
        server = site.start_server()
        fixed = self.start(lab.Admin, '--secret', 'open', '--info_port', 9750, namespace=site.head)
        always = {('udp', site.address, CLIENT_PORT), ('udp', site.address, OLD_CLIENT_PORT),
                  ('udp', site.head.address6, CLIENT_PORT), ('udp', site.head.address6, OLD_CLIENT_PORT)}
        lab.wait_for(lambda: always <= site.held(server), FOUND_TIME, lambda: 'own addresses: %s' % site.held(server))
        end = time.monotonic() + TURN + 2
        while time.monotonic() < end:
            found = sockets(site.head)
            mine = {each[:3] for each in found if server.pid in each.pids}
            self.assertEqual(always - mine, set())
            self.assertTrue(any(kind == 'tcp' and port == REPLY_PORT for kind, _, port in mine), mine)
            self.assertEqual([each for each in found if each.kind == 'tcp' and each.port in SHARED_PORTS], [])
            own = {each.address for each in found if each.port in SHARED_PORTS}
            self.assertEqual({address for address in own if is_wildcard(address) or
                              address.startswith(('255.', '239.', 'ff', site.segment.network + '255'))}, set())
            self.assertEqual({each.kind for each in found if fixed.pid in each.pids and each.port == 9750}, {'udp', 'tcp'})
            time.sleep(0.1)

    def test_address_comes_and_goes(self):
        """What is sent to a new address is heard; an address that has gone is no longer listened at."""
        site = self.site()
        host, new = site.hosts[0], site.segment.network + '50'
        server = site.start_server()
        fake = host.call(lambda: self.fake('open', host.address, port=NODE_PORT))
        here = {('udp', new, port) for port in SHARED_PORTS}
        site.head.ip('address', 'add', new + '/24', 'dev', 'eth0')
        lab.wait_for(lambda: here <= site.held(server), 15, lambda: 'sockets at it: %s' % site.held(server))
        self.assertIsNone(server.node(fake))
        host.call(lambda: fake.ping((new, CLIENT_PORT)))
        server.wait_node(fake, timeout=FOUND_TIME, state='ready')
        site.head.ip('address', 'del', new + '/24', 'dev', 'eth0')
        lab.wait_for(lambda: not here & site.held(server), 15, lambda: 'no socket there: %s' % site.held(server))
        self.check_log(server)

    def check_log(self, server):
        self.assertTrue(server.running())
        self.assertNotIn('Traceback', server.output())
        self.assertNotIn('unexpected', server.output())

    def test_second_admin(self):
        """A second one on the same host takes another reply port and says so; none takes the other one's nodes away."""
        site = self.site(hosts=2)
        for host in site.hosts:
            site.add_node(host)
        first = site.start_server()
        second = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, namespace=site.head)
        for node in site.nodes:
            second.wait_node(node, state='ready')
        listening = [port for kind, _, port in site.held(second) if kind == 'tcp' and port not in (second.port, REPLY_PORT)]
        self.assertEqual(len(set(listening)), 1, site.held(second))
        self.assertIn(str(REPLY_PORT), second.output())
        self.assertIn(str(listening[0]), second.output())
        self.assertNotIn(str(REPLY_PORT), first.output())
        site.wait(lambda: True, 1, 'a look')
        self.assertEqual(site.missing, [])

    def test_reply_port(self):
        """Given, it is taken or nothing is."""
        site = self.site()
        site.add_node(site.hosts[0])
        first = site.start_server('--reply_port', 9799)
        self.assertIn(9799, {port for kind, _, port in site.held(first) if kind == 'tcp'})
        self.assertNotIn(REPLY_PORT, {port for _, _, port in site.held(first)})
        status, _, err = self.run_script('--reply_port', 9799, namespace=site.head)
        self.assertEqual(status, 1, err)
        self.assertIn('--reply_port', err)
        self.assertIn('9799', err)


# ---- a firewall on the head node ------------------------------------------------------------


def admitted():
    """({(protocol, port)} that dispyadmin needs admitted on the head node, what programs of dispy there need beside that),
    as the README's table tells: rows that speak of clients are for these."""
    with open(os.path.join(environment.ROOT, 'README.rst'), encoding='utf-8') as file:
        table = file.read().partition('What it needs of the network')[2].split('=\n')[2]
    own, others = set(), set()
    for row in table.splitlines():
        cells = [cell.strip() for cell in re.split(r' {2,}', row.strip())]
        if len(cells) == 4 and cells[2] == 'nodes to head node':
            ports = {(protocol, int(port)) for protocol in cells[1].lower().split(', ')
                     for port in re.findall(r'\d+', cells[0])}
            (others if 'client' in cells[3] else own).update(ports)
    # Until the README has a row for them.
    return own, others or {('tcp', CLIENT_PORT), ('tcp', OLD_CLIENT_PORT)}


FIREWALL = '''
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
%s
    }
}
'''


class Firewall(BesideTest):
    """The head node drops what comes in, but for its own connections and the ports of the README's table."""

    def walled_site(self, *ports, hosts=3):
        site = self.site(hosts)
        rules = ''.join('        %s dport %d accept\n' % port for port in sorted(set().union(*ports)))
        subprocess.run(site.head.prefix + ['nft', '-f', '-'], input=(FIREWALL % rules).encode(), check=True, timeout=30)
        return site

    def check_closed(self, site):
        """It is a firewall: what is not admitted does not come in."""
        def listen():
            return socket.create_server((site.address, 9999))
        with site.head.call(listen), self.assertRaises(socket.timeout):
            site.hosts[0].call(lambda: socket.create_connection((site.address, 9999), 1))

    def test_admin(self):
        """With its own ports alone it finds nodes, those that come, and sees that one ends."""
        site = self.walled_site(admitted()[0])
        self.check_closed(site)
        for host in site.hosts[:2]:
            site.add_node(host)
        server = site.start_server(ready=False)
        for node in site.nodes:
            server.wait_node(node, timeout=FOUND_TIME, state='ready')
        ending = site.nodes.pop()
        ending.signal(lab.signal.SIGTERM)
        ending.wait()
        server.wait_node(ending, timeout=FOUND_TIME, state='unreachable')
        server.wait_node(site.add_node(site.hosts[2]), timeout=TURN, state='ready')
        site.wait(lambda: True, 1, 'a look')
        self.assertEqual(site.missing, [])

    def test_announcement_to_the_head_node_alone(self):
        """A node that says its own address to the head node's needs no more than UDP."""
        site = self.walled_site(admitted()[0], hosts=1)
        server = site.start_server()
        fake = site.hosts[0].call(lambda: self.fake('open', site.hosts[0].address, port=NODE_PORT))
        for port in SHARED_PORTS:
            site.hosts[0].call(lambda: fake.ping((site.address, port)))
            server.wait_node(fake, timeout=FOUND_TIME, state='ready')
            server.delete('/api/nodes/' + fake.id)

    def test_client(self):
        """With the client's ports, too, its jobs run, and a node that comes meanwhile is found by asking."""
        site = self.walled_site(*admitted())
        self.check_closed(site)
        for host in site.hosts[:2]:
            site.add_node(host)
        client = site.client(until=[node.address for node in site.nodes], stay=600)
        site.start_server('--ping_interval', 5)
        site.wait(lambda: {'done ' + node.address for node in site.nodes} <= set(client.out), 2 * PROGRAM_TIME,
                  lambda: 'jobs are done: ' + client.output())
        node = site.add_node(site.hosts[2], expected=False)
        site.server.wait_node(node, timeout=lab.STATE_TIMEOUT, state='ready')
        self.assertEqual(site.missing, [])

    def test_scheduler(self):
        """The same ports serve dispyscheduler: clients of the head node itself come in by its loopback interface."""
        site = self.walled_site(*admitted(), hosts=1)
        site.add_node(site.hosts[0])
        site.start_server()
        self.check_scheduler(site)
        self.assertEqual(site.missing, [])


# ---- nodes in another network ------------------------------------------------------------


class Elsewhere(BesideTest):
    """Nodes behind a router: no broadcast passes it. They know the head node (--scheduler_host) and say so to it once."""

    def site_with_router(self, nodes):
        site = self.site()
        router, site.far = site.hosts[0], self.start(lab.Segment, nodes)
        near = router.address
        site.far.plug(router, 200, 'eth1')
        forward(router)
        route(site.head, site.far.network + '0/24', near)
        for host in site.far.hosts:
            route(host, 'default', router.address)
        return site

    def start_nodes(self, site, seconds):
        """Start a node at a time, spread over so many seconds; each is shown soon after."""
        source = random.Random(SEED)
        late = []

        def start(part, host):
            moment = (part + source.random()) * seconds / len(site.far.hosts)
            time.sleep(max(0.0, began + moment - time.monotonic()))
            node = site.add_node(host, extra=['--scheduler_host', site.address])
            try:
                site.server.wait_node(node, timeout=PROGRAM_TIME, state='ready')
            except AssertionError as error:
                late.append('%.1f s: %s' % (moment, error))
        began = time.monotonic()
        self.together(*[lambda pair=pair: start(*pair) for pair in enumerate(site.far.hosts)])
        self.assertEqual(late, [], 'DISPYADMIN_SEED=%d' % SEED)

    def test_moments(self):
        """Whatever moment it chose it is shown, and after a restart of dispyadmin, with --state, it is known."""
        site = self.site_with_router(max(MOMENTS, 12))
        state = os.path.join(self.folder(), 'state')
        site.start_server('--state', state)
        self.start_nodes(site, TURN)
        site.server.close()
        site.start_server('--state', state, ready=False)
        for node in site.nodes:
            site.server.wait_node(node, state='ready', name=node.name)

    def test_beside_client(self):
        """While a client has the port for broadcasts, too."""
        site = self.site_with_router(max(MOMENTS, 6))
        client = site.client(stay=600)
        lab.wait_for(lambda: 'dispy client at' in client.output(), 2 * PROGRAM_TIME,
                     lambda: 'the client has its port: ' + client.output())
        site.start_server()
        self.start_nodes(site, TURN / 4)
        self.assertTrue(client.running(), client.output())


# ---- one web server on port 8181 ------------------------------------------------------------


class PortOfThePage(BesideTest):
    def test_scheduler_is_first(self):
        """dispyadmin says whose port it may be, and what helps."""
        site = self.site()
        scheduler = site.scheduler('--httpd')
        lab.wait_for(lambda: 'Started HTTP server' in scheduler.output(), lab.START_TIMEOUT,
                     lambda: 'the web server of dispyscheduler: ' + scheduler.output())
        status, _, err = self.run_script('--http_port', 8181, namespace=site.head)
        self.assertEqual(status, 1, err)
        self.assertIn('--http_port', err)
        self.assertIn('dispyscheduler', err)
        site.start_server('--http_port', 8182)

    def test_admin_is_first(self):
        """dispyscheduler says it; dispyadmin goes on."""
        site = self.site()
        server = site.start_server('--http_port', 8181)
        scheduler = site.scheduler('--httpd')
        lab.wait_for(lambda: 'Address already in use' in scheduler.output(), lab.START_TIMEOUT,
                     lambda: 'it says so: ' + scheduler.output())
        self.assertEqual(server.port, 8181)
        self.assertEqual(server.nodes(), {})


# ---- nodes that name another address ------------------------------------------------------------


class OtherAddress(BesideTest):
    @staticmethod
    def ear(host):
        """A socket that hears the broadcasts of nodes."""
        def listen():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(('255.255.255.255', CLIENT_PORT))
            sock.settimeout(lab.STATE_TIMEOUT)
            return sock
        return host.call(listen)

    def test_second_address_of_a_machine(self):
        """A node that listens at its machine's second address answers from the first. Both rows tell; adding helps."""
        site = self.site()
        host = site.hosts[0]
        second = site.segment.network + '70'
        host.ip('address', 'add', second + '/24', 'broadcast', '+', 'dev', 'eth0')
        with self.ear(site.head) as ear:
            node = site.add_node(host, address=second)
            while node.address.encode() not in ear.recv(2000):      # it says its address once, two seconds after its start
                pass
        first = '%s:%d' % (host.address, NODE_PORT)
        server = site.start_server(ready=False)
        server.wait_node(first, state='unreachable', announces=node.id, reason=lambda text: second in (text or ''))
        status, out, err = self.run_script('--diagnose', host.address, '--secret', 'open', namespace=site.head)
        self.assertEqual(status, 3, out)
        self.assertIn(second, out)
        self.assertTrue(server.post('/api/nodes', {'host': second})['results'][0]['ok'])
        server.wait_node(node, state='ready')
        lab.wait_for(lambda: server.node(first) is None, lab.STATE_TIMEOUT, 'the first address is no row any more')
        self.assertEqual(err, '', 'a diagnosis beside a running dispyadmin needs no port of its own to be admitted')

    def test_forged_announcement(self):
        """Nobody makes dispyadmin connect to a third host by naming it."""
        site = self.site(hosts=3)
        liar, _, third = site.hosts
        honest, victim = [host.call(lambda host=host: self.fake('open', host.address, port=NODE_PORT))
                          for host in site.hosts[1:]]
        server = site.start_server()
        self.assertTrue(server.add(honest)['ok'])
        told = wire.announcement(third.address, NODE_PORT, victim.sign)

        def connect():
            with socket.create_connection((site.address, REPLY_PORT), wire.TIMEOUT) as sock:
                wire.send_message(sock, wire.encode(b'NODE_INFO:', told))

        def send():
            wire.datagram(wire.encode(b'PING:', dict(told, scheduler_ip_addr=None)), (site.address, CLIENT_PORT))
        for tell in (send, connect):
            liar.call(tell)
            if tell is connect:
                server.wait_node('%s:%d' % (liar.address, NODE_PORT), state='unreachable', announces=victim.id)
            polls = len(honest.asked('NODE_INFO'))
            lab.wait_for(lambda: len(honest.asked('NODE_INFO')) >= polls + 3, 15, 'a good node is polled')
            self.assertEqual(victim.connections, 0)
        self.assertNotIn(victim.id, server.nodes())
