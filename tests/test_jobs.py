"""A real dispy client that computes real jobs, while dispyadmin looks on."""

import json
import os

from . import environment, lab

CLIENT = '''
import inspect, json, sys, time
import dispy, dispy.config

def compute(seconds):
    import time
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds

def sleep(seconds):
    import time
    time.sleep(seconds)
    return seconds

if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    dispy.config.DispyPort = given['port']
    host = 'host' if 'host' in inspect.signature(dispy.JobCluster).parameters else 'ip_addr'    # that is of old releases
    kind, options = dispy.JobCluster, {host: given['host'], 'ping_interval': given['ping_interval']}
    if given['scheduler']:
        kind = dispy.SharedJobCluster
        options = {'ip_addr': given['host'], 'scheduler_host': given['host'], 'client_port': 0}
    work = sleep if given['asleep'] else compute
    cluster = kind(work, nodes=given['nodes'], secret=given['secret'], reentrant=True, **options)
    print('started', flush=True)
    unused = set(given['until'])
    while True:
        jobs = [cluster.submit(given['seconds']) for _ in range(given['jobs'])]
        for job in jobs:
            assert job() == given['seconds'], job.exception
            unused.discard(job.ip_addr)
            print('done %s' % job.ip_addr, flush=True)
        if not unused:
            break
    time.sleep(given['stay'])
    cluster.close()
    print('closed', flush=True)
'''


class JobsTest(lab.LabTest):
    def client(self, host, port, jobs, seconds, *nodes, secret='', namespace=None, packages=None, **given):
        """A program that submits jobs and waits for them; in a folder of its own, where it may leave its files.

        `scheduler`: through the dispyscheduler of the same host. `until`: addresses; jobs are submitted again until each
        has computed one. `stay`: seconds before it ends, after the last job. `asleep`: jobs take time, but no CPU.
        """
        packages = packages or environment.node_packages('4.15.2')
        library = environment.require(packages)
        folder = self.folder()
        path = os.path.join(folder, 'client.py')
        with open(path, 'w') as file:
            file.write(CLIENT)
        given = dict({'port': port, 'host': host, 'jobs': jobs, 'seconds': seconds, 'nodes': nodes or ['*'],
                      'secret': secret, 'ping_interval': 5, 'scheduler': False, 'until': (), 'stay': 0,
                      'asleep': False}, **given)
        command = [packages.python, '-W', 'ignore', path, json.dumps(given)]
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
