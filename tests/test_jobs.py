"""A real dispy client that computes real jobs, while dispyadmin looks on and while both share the head node's port."""

import os

from . import environment, lab

CLIENT = '''
import sys, time
import dispy, dispy.config

def compute(seconds):
    import time
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds

if __name__ == '__main__':
    port, host, secret, jobs, seconds = sys.argv[1:6]
    seconds, nodes = float(seconds), sys.argv[6:] or ['*']
    dispy.config.DispyPort = int(port)
    cluster = dispy.JobCluster(compute, nodes=nodes, host=host, secret=secret, ping_interval=5, reentrant=True)
    print('started', flush=True)
    done = [cluster.submit(seconds) for _ in range(int(jobs))]
    for job in done:
        assert job() == seconds, job.exception
        print('done %s' % job.ip_addr, flush=True)
    cluster.close()
    print('closed', flush=True)
'''


class JobsTest(lab.LabTest):
    def client(self, host, port, jobs, seconds, *nodes, secret='', namespace=None):
        """A program that submits jobs and waits for them; in a folder of its own, where it may leave its files."""
        packages = environment.node_packages('4.15.2')
        library = environment.require(packages)
        folder = self.folder()
        path = os.path.join(folder, 'client.py')
        with open(path, 'w') as file:
            file.write(CLIENT)
        command = [packages.python, '-W', 'ignore', path, str(port), host, secret, str(jobs),
                   str(seconds)] + list(nodes)
        return self.start(lab.Process, command, namespace, dict(os.environ, PYTHONPATH=library, PYTHONUNBUFFERED='1'),
                          folder)

    @staticmethod
    def has_printed(client, word):
        return lambda: [line for line in client.out if line.startswith(word)]


class Jobs(JobsTest):
    def test_figures_move(self):
        """busy while it computes; then jobs done, CPU time and clients done; totals too."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--info_port', 0)        # the client has the port
        before = admin.wait_node(node, state='ready', busy=0, jobs_done=0, clients_done=0, cpu_time=0)
        client = self.client(self.address(), self.info_port, 4, 1.5, node.address)
        busy = admin.wait_node(node, timeout=25, busy=lambda value: value > 0)
        self.assertTrue(busy['scheduler_ip'])
        self.assertEqual(busy['cpus'], before['max_cpus'])              # managed, not free
        self.assertGreater(admin.get('/api/nodes')['totals']['busy'], 0)
        lab.wait_for(self.has_printed(client, 'closed'), 60, lambda: 'the client is done: ' + client.output())
        after = admin.wait_node(node, timeout=25, jobs_done=4, busy=0, clients_done=1)
        self.assertGreater(after['cpu_time'], 4 * 1.5 * 0.8)
        totals = admin.get('/api/nodes')['totals']
        self.assertEqual((totals['jobs_done'], totals['busy']), (4, 0))
        self.assertAlmostEqual(totals['cpu_time'], after['cpu_time'], 2)
        info = node.info()
        self.assertEqual((info['jobs_done'], info['clients_done']), (4, 1))

    def test_fewer_cpus_than_jobs(self):
        """Running jobs outlive a cut: busy above managed, until they are done."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--info_port', 0)
        machine = admin.wait_node(node, state='ready')['max_cpus']
        client = self.client(self.address(), self.info_port, machine, 6, node.address)
        admin.wait_node(node, timeout=25, busy=machine)
        result = admin.control('cpus', [node], cpus=0)[node.id]
        self.assertTrue(result['ok'], result)
        shown = admin.wait_node(node, cpus=0)
        self.assertEqual((shown['busy'], shown['state']), (machine, 'stopped'))
        self.assertEqual(node.managed(), 0)
        lab.wait_for(self.has_printed(client, 'closed'), 60, lambda: 'the client is done: ' + client.output())
        admin.wait_node(node, timeout=25, busy=0, cpus=0, jobs_done=machine)

    def test_end_stops_running_jobs(self):
        """dispynode does not just end the jobs: the program ends itself, and dispyadmin shows that."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--info_port', 0)
        machine = admin.wait_node(node, state='ready')['max_cpus']
        self.client(self.address(), self.info_port, machine, 300, node.address)
        admin.wait_node(node, timeout=25, busy=machine)
        result = admin.control('service_time', [node], control='end', time='now')[node.id]
        self.assertTrue(result['ok'], result)
        lab.wait_for(lambda: not node.running(), 40, lambda: 'the node ends: ' + node.output())
        admin.wait_node(node, state='unreachable', controllable=False)

    def test_last_client_ends_the_node(self):
        """One more client, then the program ends; dispyadmin says so."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--info_port', 0)
        admin.wait_node(node, state='ready')
        self.assertTrue(admin.control('clients', [node], clients=1)[node.id]['ok'])
        client = self.client(self.address(), self.info_port, 1, 0.1, node.address)
        lab.wait_for(self.has_printed(client, 'closed'), 60, lambda: 'the client is done: ' + client.output())
        lab.wait_for(lambda: not node.running(), 30, 'the node ends')
        admin.wait_node(node, state='unreachable', clients_done=lambda value: value is not None)


class HeadNode(JobsTest):
    """dispyadmin and clients on one host, both with the default port: a client has it within 30 s, and every node
    stays shown."""

    def setUp(self):
        super().setUp()
        lab.need_namespaces()
        segment = self.start(lab.Segment, 3)
        self.head, hosts = segment.hosts[0], segment.hosts[1:]
        self.targets = self.together(*[lambda host=host: self.node('open', address=host.address, namespace=host,
                                                                   info_port=9700, debug=True)
                                       for host in hosts])
        self.server = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, '--ping_interval', 5,
                                 namespace=self.head)
        for node in self.targets:
            self.server.wait_node(node, state='ready')

    def said(self, client):
        """What the client and the nodes said last."""
        return '\n--\n'.join(each.output()[-3000:] for each in [client] + self.targets)

    def compute(self, seconds):
        client = self.client(self.head.address, 9700, 4, seconds, namespace=self.head)
        clock, lost = lab.FairClock(client.pid, self.server.pid), []
        began = clock()

        def look():
            clock()              # while the client is there
            states = {node['id']: node['state'] for node in self.server.get('/api/nodes')['nodes']}
            lost.extend(node.id for node in self.targets if states.get(node.id) != 'ready')
            return self.has_printed(client, 'done')() or not client.running()
        lab.wait_for(look, 60, lambda: 'a first job is done: ' + self.said(client))
        took = clock() - began
        lab.wait_for(self.has_printed(client, 'closed'), 60, lambda: 'the client is done: ' + self.said(client))
        self.assertEqual(lost, [])
        self.assertLess(took, 30 + 10)             # 30 s for the port, then its own start and the job
        return client

    def test_client_computes(self):
        """Whatever moment of dispyadmin's turn a client meets: at once, and again a while later."""
        for done in (4, 8):
            self.compute(0.5)
            lab.wait_for(lambda: self.server.get('/api/nodes')['totals']['jobs_done'] == done, 15,
                         lambda: 'all jobs are counted: %s' % self.server.get('/api/nodes')['totals'])

    def test_admin_starts_while_client_runs(self):
        """The client keeps its port; dispyadmin finds the nodes by asking, busy ones too."""
        self.server.close()
        client = self.client(self.head.address, 9700, 4, 12, namespace=self.head)
        lab.wait_for(lambda: sum(node.info()['busy'] for node in self.targets) == 4, 30,
                     lambda: 'jobs run: ' + self.said(client))
        server = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, '--ping_interval', 5,
                            namespace=self.head)
        for node in self.targets:
            server.wait_node(node, state='ready', busy=2)
        lab.wait_for(self.has_printed(client, 'closed'), 90, lambda: 'the client is done: ' + self.said(client))
        lab.wait_for(lambda: server.get('/api/nodes')['totals']['jobs_done'] == 4, 15, 'all jobs are counted')

    def test_two_admins(self):
        """A second one on the same host does not take the first one's nodes away."""
        second = self.start(lab.Admin, '--secret', 'open', '--poll_interval', 1, '--ping_interval', 5,
                            namespace=self.head)
        for node in self.targets:
            second.wait_node(node, state='ready')
            self.server.wait_node(node, state='ready')
