#!/usr/bin/env python3
"""A small cluster of simulated nodes on loopback, and dispyadmin on it: for a first look, a picture, work on the page.

    python3 tests/demo.py [--nodes 18] [--http_port 8181]

Nodes run jobs that nobody sent, and take all controls. There is one in every state that a node can be in. When
dispyadmin.py is changed, dispyadmin is started again; Ctrl-C ends all of it. With --picture FILE it writes a picture of the
page and ends (see --help; that needs what the tests need for a browser).
"""

import argparse
import http.client
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

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
from tests import wire  # noqa: E402  (this file is run by its path, too)

SCRIPT = os.path.join(ROOT, 'dispyadmin.py')
SECRET = 'demo'
HEAD = '127.20.0.1'
RACKS = 3
GIB = 2 ** 30
START_TIME = 10.0                # seconds in which dispyadmin has to answer
READY_TIME = 30.0                # seconds in which all rows have to be what they shall
MEAN_TIME = 60.0                 # seconds that a job takes
LOOK_TIME = 0.5                  # seconds between looks at dispyadmin.py
PING_TIME = 10                   # seconds between the announcements of a node
LONG_JOB = 3600.0                # seconds that jobs last where a drain shall stay to be seen
OLDER = {2: '4.14.0', 6: '4.11.0', 11: '4.12.4'}     # the releases of some nodes
UNKNOWN_RELEASE = '5.0.0'        # of the one that dispyadmin does not understand
CONTROLS = {'start_time': 'service_start', 'stop_time': 'service_stop', 'end_time': 'service_end'}


class Node(wire.FakeNode):
    """A node that works: jobs come, take their time, and go."""

    def __init__(self, address, port, name, load, chosen, release=wire.VERSION, **kwargs):
        self.lock = threading.Lock()             # guards jobs, info and the random numbers
        self.release = release
        self.load = load                         # how much of its CPUs is busy in the mean
        self.rand, self.jobs = random.Random(chosen.random()), []
        self.cpus = chosen.choice((8, 16, 16, 32))
        self.memory = 4 * self.cpus * GIB
        super().__init__(address, port, name=name, cpus=self.cpus, **kwargs)
        self.info.update(cpus=self.cpus, jobs_done=chosen.randrange(200, 2000), clients_done=chosen.randrange(3, 20),
                         scheduler_ip=HEAD)
        self.info['cpu_time'] = self.info['jobs_done'] * chosen.uniform(30, 90)
        self.disk = chosen.randrange(40, 400) * GIB
        now = time.time()                        # as if it had run for a while
        self.jobs = [(now - chosen.uniform(0, 60), now + chosen.uniform(0, 60)) for _ in range(round(load * self.cpus))]

    def work(self, now):
        """One second passes."""
        with self.lock:
            info = self.info
            for job in [job for job in self.jobs if job[1] <= now]:
                self.jobs.remove(job)
                info['jobs_done'] += 1
                info['cpu_time'] += 0.97 * (job[1] - job[0])
            serves = ((info['service_start'] or 0) <= now < (info['service_stop'] or info['service_end'] or now + 1) and
                      info['serve'] != 0)
            begun = self.load * self.cpus / MEAN_TIME    # in a second, in the mean
            while serves and self.free() > 0 and self.rand.random() < begun / (1 + begun):
                self.jobs.append((now, now + self.rand.uniform(0.2, 1.8) * MEAN_TIME))

    def free(self):
        return self.info['cpus'] - len(self.jobs)

    def announce(self, target):
        """As a node does that starts, or is idle; these do it while they run jobs, too."""
        if not self.closing:
            self.ping(target, version=self.release)

    def outcome(self, tag, value):
        with self.lock:
            if tag == 'NODE_INFO':
                return self.told()
            if tag == 'SET_CPUS':
                asked = value['cpus']
                cpus = self.cpus if asked is None else asked if asked >= 0 else self.cpus + asked
                if not 0 <= cpus <= self.cpus:
                    return -1
                self.info['cpus'] = cpus
                return {'cpus': cpus}
            if tag == 'SERVICE_TIME' and value['control'] in CONTROLS:
                self.info[CONTROLS[value['control']]] = None if value['time'] == '0' else at(value['time'])
                if (self.info['service_end'] or time.time() + 1) <= time.time():
                    threading.Timer(1.0, self.close).start()
                return {key: self.info[key] for key in CONTROLS.values()}
        return super().outcome(tag, value)

    def told(self):
        """Full information, with what is available while these jobs run."""
        busy, info = len(self.jobs), dict(self.info)
        info.update(busy=busy, cpus=self.free())
        if info['avail_info'] is not None:
            load = busy / self.cpus
            info['avail_info'] = wire.DispyNodeAvailInfo(
                max(0.0, min(100.0, 100 * (1 - 0.97 * load) + self.rand.uniform(-1, 1))),
                int(self.memory * (0.94 - 0.6 * load - self.rand.uniform(0, 0.01))), self.disk,
                100.0 if load < 0.8 else 96.5)
        return info

    def restart(self):
        """The program is started again: a new sign, and all CPUs."""
        with self.lock:
            self.sign, self.jobs = wire.new_sign(), []
            self.info.update(cpus=self.cpus, jobs_done=0, clients_done=0, cpu_time=0.0, service_start=None,
                             service_stop=None, service_end=None)


def at(clock):
    """Unix time of HH:MM today, or of now (None)."""
    if clock is None:
        return time.time()
    hour, minute = map(int, clock.split(':'))
    return time.mktime(time.localtime()[:3] + (hour, minute, 0, 0, 0, -1))


def free_port(addresses, wanted):
    """`wanted` if it is free at all these addresses for TCP and UDP, else any that is."""
    for port in [wanted] + [0] * 20:
        socks = []
        try:
            for address in addresses:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    socks.append(socket.socket(socket.AF_INET, kind))
                    if kind == socket.SOCK_STREAM:
                        socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    socks[-1].bind((address, port))
                    port = socks[-1].getsockname()[1]
            return port
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise SystemExit('demo: no port is free at %s' % ', '.join(addresses))


class Admin:
    """dispyadmin as a process of its own, which is started again when its file changes."""

    def __init__(self, options):
        self.options = options
        self.http_port = 0
        self.popen = None

    def start(self):
        """Start it, and wait for the address that it prints."""
        self.changed = os.stat(SCRIPT).st_mtime
        self.popen = subprocess.Popen([sys.executable, SCRIPT] + self.options, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE)
        line = self.popen.stdout.readline().decode()
        found = re.search(r'http://\S+:(\d+)/', line)
        if not found:
            self.end()
            raise SystemExit('demo: dispyadmin does not start')
        self.http_port = int(found.group(1))
        self.url = found.group()
        if '--http_port=0' in self.options:      # the same one, when it is started again
            self.options[self.options.index('--http_port=0')] = '--http_port=%d' % self.http_port

    def is_old(self):
        """Whether the file is another than the one that runs."""
        try:
            return os.stat(SCRIPT).st_mtime != self.changed
        except OSError:
            return False                         # it is being written

    def end(self):
        if self.popen is None:
            return
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(5)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.popen.stdout.close()
        self.popen = None

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection('localhost', self.http_port, timeout=30)
        try:
            connection.request(method, path, body and json.dumps(body), {'Content-Type': 'application/json'})
            answer = json.loads(connection.getresponse().read().decode())
        finally:
            connection.close()
        if 'error' in answer:
            raise SystemExit('demo: %s %s: %s' % (method, path, answer['error']))
        return answer

    def wait(self, test):
        """The nodes by id, as soon as test(nodes) holds."""
        deadline = time.monotonic() + READY_TIME
        while True:
            nodes = {node['id']: node for node in self.request('GET', '/api/nodes')['nodes']}
            if test(nodes) or time.monotonic() > deadline:
                return nodes
            time.sleep(0.1)


class Demo:
    """Nodes, dispyadmin, and what has been done to them."""

    def __init__(self, options):
        self.folder = tempfile.mkdtemp(prefix='dispyadmin-demo-')
        self.stopping = threading.Event()
        chosen = random.Random(7)                # the same cluster each time
        count = options.nodes
        addresses = ['127.20.%d.%d' % (1 + number * RACKS // count, 11 + number % -(-count // RACKS))
                     for number in range(count)]
        port = free_port([HEAD] + addresses, 9701)
        names = ['%s-%s' % ('gpu' if address.startswith('127.20.%d.' % RACKS) else 'cpu', '-'.join(address.split('.')[2:]))
                 for address in addresses]
        self.nodes = []
        for number, (address, name) in enumerate(zip(addresses, names)):
            secrets = {'secret': SECRET}
            if number == 4:
                secrets = {'secret': 'of somebody else'}
            elif number == count - 2:
                secrets = {'client_secret': ''}  # it has no admin secret
            release = UNKNOWN_RELEASE if number == count - 1 else OLDER.get(number, wire.VERSION)
            load = chosen.choice((0.1, 0.4, 0.7, 0.8, 0.9))
            self.nodes.append(Node(address, port, name, load, chosen, release, **secrets))
        self.nodes[6].info['avail_info'] = None  # psutil is missing there
        self.nodes[9].jobs = [(began, began + LONG_JOB) for began, _ in self.nodes[9].jobs[:5] or [(time.time(), 0)]]
        self.nodes[-1].mode = 'garbage'          # what it answers is not understood
        self.info_port = free_port([HEAD], 9700)
        self.worker = threading.Thread(target=self.work, daemon=True)
        self.worker.start()
        self.admin = Admin(['-i', HEAD, '--info_port=%d' % self.info_port, '--node_port=%d' % port,
                            '--http_port=%d' % options.http_port, '--poll_interval=2',
                            '--state', os.path.join(self.folder, 'state.json'), '--group', 'cpu=cpu-*',
                            '--group', 'gpu=gpu-*', '--secret', '@' + self.write(SECRET)] +
                           ['--node=%s' % node.id for node in self.nodes[:-1]])

    def write(self, text):
        """The name of a file with this text."""
        name = os.path.join(self.folder, 'secret')
        with open(name, 'w') as file:
            file.write(text)
        return name

    def work(self):
        seconds = 0
        while not self.stopping.wait(1.0):
            seconds += 1
            for number, node in enumerate(self.nodes):
                node.work(time.time())
                if (seconds + number) % PING_TIME == 0:
                    node.announce((HEAD, self.info_port))

    def start(self):
        """Start all, and make each state that a node can be in."""
        self.admin.start()
        nodes, admin = self.nodes, self.admin
        admin.wait(lambda found: all(node.id in found and found[node.id]['state'] != 'unreachable' for node in nodes[:-1]))
        for node in nodes:
            node.announce((HEAD, self.info_port))
        admin.request('POST', '/api/cpus', {'nodes': [nodes[1].id, nodes[2].id, nodes[7].id], 'cpus': 6})
        later = time.localtime(time.time() + 2 * 3600)
        admin.request('POST', '/api/service_time', {
            'nodes': [nodes[3].id], 'control': 'start' if later.tm_hour >= 2 else 'stop', 'time': '%02d:00' % later.tm_hour
            if later.tm_hour >= 2 else '00:00'})
        admin.request('POST', '/api/cpus', {'nodes': [nodes[8].id], 'cpus': 0})
        admin.request('POST', '/api/drain', {'nodes': [nodes[9].id], 'then': 'end'})
        nodes[7].restart()                       # it has drifted
        nodes[5].close()                         # it is lost
        admin.wait(lambda found: found[nodes[7].id]['drift'] and found[nodes[5].id]['state'] == 'unreachable' and
                   nodes[-1].id in found and all(node['version'] for node in found.values()))

    def run(self):
        """Until a signal comes."""
        print('dispyadmin on %d simulated nodes: %s' % (len(self.nodes), self.admin.url), flush=True)
        print('The admin secret of most nodes is %s. Ctrl-C ends it.' % SECRET, flush=True)
        while not self.stopping.wait(LOOK_TIME):
            changed, popen = self.admin.is_old(), self.admin.popen
            if not changed and (popen is None or popen.poll() is None):
                continue                         # it runs, or cannot until its file is changed once more
            print('%s: started again' % ('dispyadmin.py has changed' if changed else 'dispyadmin has ended'), flush=True)
            self.admin.end()
            try:
                self.admin.start()
            except SystemExit as error:
                print('%s; it is tried again when dispyadmin.py changes' % error, flush=True)

    def picture(self, options):
        """Write a picture of the page."""
        from tests import lab                    # needs more than the standard library
        width, height = (int(number) for number in options.size.split('x'))
        browser = lab.Browser(width, height, options.dark)
        try:
            browser.size(width, height)
            page = 'admin_node.html?host=%s' % self.nodes[0].id if options.view == 'node' else 'admin.html'
            browser.driver.get(self.admin.url + page)
            drawn = 'return document.querySelector("#rows > tr") || document.querySelector("#node-title").textContent'
            lab.wait_for(lambda: browser.driver.execute_script(drawn), what='the page is drawn')
            time.sleep(options.after)
            if options.history:
                browser.driver.execute_script('document.querySelector(".past").open = true')
                lab.wait_for(lambda: browser.driver.execute_script('return !!document.querySelector(".past svg")'),
                             what='the charts are drawn')
            browser.driver.save_screenshot(options.picture)
        finally:
            browser.close()
        if shutil.which('pngquant'):             # a quarter of the size, and nobody sees it
            subprocess.check_call(['pngquant', '--force', '--strip', '--speed', '1', '--output', options.picture, '256',
                                   options.picture])
        else:
            print('demo: the picture is larger than it has to be; there is no pngquant', flush=True)

    def end(self):
        self.stopping.set()
        self.admin.end()
        for node in self.nodes:
            node.close()
        self.worker.join(5)
        shutil.rmtree(self.folder, ignore_errors=True)


def nodes_wanted(text):
    number = int(text)
    if not 12 <= number <= 200:
        raise argparse.ArgumentTypeError('must be from 12 to 200')
    return number


def main():
    parser = argparse.ArgumentParser(prog='tests/demo.py', description=__doc__.splitlines()[0])
    parser.add_argument('--nodes', type=nodes_wanted, default=18, metavar='N', help='how many nodes (default: 18)')
    parser.add_argument('--http_port', type=int, default=8181, metavar='PORT', help='port of the page (0: any that is free)')
    parser.add_argument('--picture', metavar='FILE', help='write a picture of the page (PNG), then end')
    parser.add_argument('--view', choices=('cluster', 'node'), default='cluster', help='what is on the picture')
    parser.add_argument('--history', action='store_true', help='with the history of the cluster unfolded')
    parser.add_argument('--size', default='1400x900', metavar='WxH', help='its size in pixels (default: 1400x900)')
    parser.add_argument('--dark', action='store_true', help='as it is shown where the system is set to dark')
    parser.add_argument('--after', type=float, default=3, metavar='SEC',
                        help='seconds that the page is shown before (default: 3); charts need some minutes')
    options = parser.parse_args()

    def interrupted(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupted)
    demo = Demo(options)
    try:
        demo.start()
        if options.picture:
            demo.picture(options)
        else:
            demo.run()
    except KeyboardInterrupt:
        pass
    finally:
        demo.end()
    return 0


if __name__ == '__main__':
    sys.exit(main())
