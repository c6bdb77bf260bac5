"""Measure dispyadmin on this machine, beside upstream's and beside the least that asking a node can cost.

    python3 tests/bench.py [PART...] [--list] [--json FILE] [--plot FILE]

Thousands of simulated nodes (see tests/simulated.py) are asked over loopback. CPU is what the process itself was given,
user and system; polls are counted at the nodes. Figures mean something on a machine that does nothing else. A missed
target is marked and fails nothing: this is no test.
"""

import argparse
import contextlib
import datetime
import gzip
import http.client
import importlib.util
import json
import os
import platform
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import dispyadmin  # noqa: E402
from tests import environment, lab, simulated, wire  # noqa: E402
from tests.__main__ import isolated  # noqa: E402

SECRET = 'bench'
FILES = 1024                     # descriptors that dispyadmin has: the usual limit of a login
UPSTREAM = environment.node_packages('4.15.2', (3, 11))
MATPLOTLIB = environment.Packages(sys.executable, sys.version_info[:2], ('matplotlib',), ())
ROUNDS = 3                       # a figure of CPU is the median of so many
ENOUGH = 20000                   # polls for one figure of CPU ...
LONG_ENOUGH = 10                 # ... or so many seconds
WATCH = 60                       # seconds of what is watched for a given time
PART_TIME = 1500                 # seconds after which a part is given up


# ---- what is measured ------------------------------------------------------------------------------------------------

def cpu_of(pid):
    """Seconds of CPU that all threads of a process have had."""
    with open('/proc/%d/stat' % pid) as file:
        fields = file.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Nodes:
    """The simulated nodes, in a process of their own."""

    def __init__(self, count):
        self.count, self.info_port = count, lab.LabTest.free_ports()
        self.port = self.info_port + 1
        self.popen = subprocess.Popen([sys.executable, '-m', 'tests.simulated', '--count', str(count), '--secret', SECRET,
                                       '--port', str(self.port), '--info_port', str(self.info_port)], cwd=ROOT,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.line()

    def line(self):
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError('the simulated nodes ended')
        return line.decode().split()

    def say(self, text):
        self.popen.stdin.write(text.encode() + b'\n')
        self.popen.stdin.flush()

    def polls(self):
        self.say('count')
        return int(self.line()[0])

    def log(self):
        """{name: times} of the polls since the last time."""
        self.say('log')
        found = {}
        for name, when in iter(self.line, ['end']):
            found.setdefault(name, []).append(float(when))
        return found

    def announce(self, seconds, *numbers):
        """Announce all nodes, or those with these numbers; when the last one had."""
        self.say('announce 127.0.0.1 %s %s' % (seconds, ' '.join(map(str, numbers))))
        return float(self.line()[1])

    def ids(self, first=0, last=None):
        return ['%s:%d' % (simulated.address_of(number), self.port)
                for number in range(first, self.count if last is None else last)]

    def close(self):
        self.popen.stdin.close()
        self.popen.stdout.close()
        self.popen.wait(20)


class Admin(lab.Admin):
    """dispyadmin as users run it, with the usual limit of open files."""

    def __init__(self, *options):
        super().__init__(*options, env={'DISPYADMIN_SECRET': SECRET, 'PYTHONDEVMODE': '', 'PYTHONWARNINGS': ''},
                         before=['sh', '-c', 'ulimit -n %d; exec "$@"' % FILES, 'sh'])

    def cpu(self):
        return cpu_of(self.pid)


class Upstream:
    """The dispyadmin of dispy, which opens a connection to every node at once and needs descriptors for that."""

    def __init__(self, nodes, interval):
        library = environment.folder_of(UPSTREAM)
        command = [UPSTREAM.python, '-W', 'ignore', os.path.join(library, 'dispy', 'dispyadmin.py'), '-i', '127.0.0.1',
                   '--secret', SECRET, '--info_port', str(nodes.info_port), '--node_port', str(nodes.port),
                   '--http_port', str(lab.LabTest.free_ports()), '--poll_interval', str(interval)]
        self.popen = subprocess.Popen(['sh', '-c', 'ulimit -n $(ulimit -Hn); exec "$@"', 'sh'] + command,
                                      env=dict(os.environ, PYTHONPATH=library), stdin=subprocess.PIPE,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        lab.wait_for(lambda: self.listens(nodes.info_port), 20, 'upstream listens')

    @staticmethod
    def listens(port):
        with contextlib.suppress(OSError):
            socket.create_connection(('127.0.0.1', port), 1).close()
            return True

    def cpu(self):
        return cpu_of(self.popen.pid)

    def close(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()


class Reader:
    """A reader of the table over one connection, which asks for what has changed, as the page does."""

    def __init__(self, admin):
        self.connection, self.sequence = admin.connection(120), None

    def request(self, method, path, body=None):
        """The value that is answered."""
        self.connection.request(method, path, None if body is None else json.dumps(body),
                                {'Content-Type': 'application/json'})
        response = self.connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise RuntimeError('%s %s: %d %s' % (method, path, response.status, data[:200]))
        return json.loads(data.decode())

    def ask(self):
        value = self.request('GET', '/api/nodes' + ('?since=%d' % self.sequence if self.sequence else ''))
        self.sequence = value['sequence']
        return value

    def wait(self, condition, seconds, pause=0.25):
        """Seconds until the totals are as wanted; None when they are not within the time."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if condition(self.ask()['totals']):
                return time.monotonic() - began
            time.sleep(pause)
        return None

    def close(self):
        self.connection.close()


@contextlib.contextmanager
def strangers(count, interval):
    """(nodes, dispyadmin that knows nothing of them)."""
    with contextlib.closing(Nodes(count)) as nodes:
        options = ['-i', '127.0.0.1', '--info_port', nodes.info_port, '--node_port', nodes.port]
        with contextlib.closing(Admin(*options + ['--poll_interval', interval])) as admin:
            yield nodes, admin


@contextlib.contextmanager
def cluster(count, interval):
    """(nodes, dispyadmin that has found all of them and asks each at a time of its own)."""
    with strangers(count, interval) as (nodes, admin):
        with contextlib.closing(Reader(admin)) as reader:
            for _ in range(3):
                nodes.announce(max(1, count / 2500))
                if reader.wait(lambda totals: totals['ready'] == count, 20) is not None:
                    break
            else:
                raise RuntimeError('not all nodes were found: %s' % reader.ask()['totals'])
        time.sleep(interval + 1)
        yield nodes, admin


def cost(program, nodes, seconds):
    """(microseconds of CPU for each poll, polls) over this time."""
    polls, cpu = nodes.polls(), program.cpu()
    time.sleep(seconds)
    polls, cpu = nodes.polls() - polls, program.cpu() - cpu
    return cpu / max(1, polls) * 1e6, polls


def one_core(pid):
    """Put a process, with all its threads, on the first of the cores that there are."""
    for thread in os.listdir('/proc/%d/task' % pid):
        os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})


def cost_of_ours(count, interval, together=False):
    with cluster(count, interval) as (nodes, admin):
        if together:
            one_core(nodes.popen.pid)
            one_core(admin.pid)
        rate = count / interval
        return cost(admin, nodes, max(LONG_ENOUGH, 2 * interval, min(ENOUGH / rate, 4 * LONG_ENOUGH)))[0]


def cost_of_upstream(count, interval):
    """(microseconds, nodes that it asked)."""
    with contextlib.closing(Nodes(count)) as nodes, contextlib.closing(Upstream(nodes, interval)) as upstream:
        nodes.announce(count / 250)      # slowly: of a crowd it loses some
        time.sleep(interval + 2)
        nodes.log()
        microseconds, _ = cost(upstream, nodes, max(LONG_ENOUGH, 3 * interval))
        return microseconds, len(nodes.log())


def cost_of_loop(count, timeout=0, together=False):
    """Microseconds for each poll. Where the kernel puts the two processes matters more than all else here: `together` on
    one core no sleeping core has to be woken for each exchange, which in a virtual machine costs half of it."""
    with contextlib.closing(Nodes(count)) as nodes:
        cores = os.sched_getaffinity(0)
        if together:
            one_core(nodes.popen.pid)
            cores = {min(cores)}
        return role('bare', nodes.port, count, timeout, *cores)['microseconds']


# ---- roles: what runs in processes of its own -----------------------------------------------------------------------

def sequence_of(data):
    """The sequence number at the head of an answer, without reading all of it."""
    return int(re.search(br'"sequence": *(\d+)', data[:2000]).group(1))


def start_role(name, *words):
    return subprocess.Popen([sys.executable, os.path.abspath(__file__), '--role', name] + list(map(str, words)),
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)


def role(name, *words):
    """Run it until its end; what it found."""
    return end_role(start_role(name, *words), PART_TIME)


def end_role(process, seconds=120):
    """Its input ends, and so does it, when it has done what it has to; what it found."""
    found = process.communicate(b'', timeout=seconds)[0]
    if process.returncode:
        raise RuntimeError('%s ended with status %d' % (process.args[3], process.returncode))
    return json.loads(found.decode())


def be_bare(port, count, timeout, *cores):
    """Ask each node in turn, as simply as can be."""
    os.sched_setaffinity(0, map(int, cores))
    count = int(count)
    codes = [simulated.code_of(number, SECRET) for number in range(count)]
    places = [(simulated.address_of(number), int(port)) for number in range(count)]
    message = simulated.framed(wire.encode(b'NODE_INFO:', {'sign': '0' * 40}))
    timeout = float(timeout) or None
    polls, began, cpu = 0, time.monotonic(), time.process_time()
    while polls < ENOUGH and (polls < count or time.monotonic() - began < LONG_ENOUGH):
        for place, code in zip(places, codes):
            sock = socket.socket()
            sock.settimeout(timeout)
            sock.connect(place)
            sock.sendall(code + message)
            data = sock.recv(4096)
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], 'big'):
                data += sock.recv(4096)
            sock.close()
        polls += count
    return {'microseconds': (time.process_time() - cpu) / polls * 1e6}


def input_ends(seconds):
    """Wait so long, or until the end of the input."""
    return bool(select.select([0], [], [], seconds)[0])


def be_busy(host, port, node_port):
    """Polls of all and controls of a thousand, in turns, one each five seconds."""
    ids = ['%s:%s' % (simulated.address_of(number), node_port) for number in range(1000)]
    turns, next_turn = 0, time.monotonic()
    while not input_ends(max(0.0, next_turn - time.monotonic())):
        next_turn += 5
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        path, body = (('/api/poll', {'now': True}), ('/api/cpus', {'nodes': ids, 'cpus': 4 + turns % 4}))[turns % 2]
        connection.request('POST', path, json.dumps(body), {'Content-Type': 'application/json'})
        connection.getresponse().read()
        connection.close()
        turns += 1
    return {'turns': turns}


def be_pages(host, port, count, interval):
    """So many pages, each on a connection of its own, opened one after another in the interval."""
    count, interval = int(count), float(interval)
    connections = [http.client.HTTPConnection(host, int(port), timeout=60) for _ in range(count)]
    sequences, sizes, began, turn = [None] * count, [], time.monotonic(), 0
    while not input_ends(max(0, began + turn * interval / count - time.monotonic())):
        number = turn % count
        query = '' if sequences[number] is None else '?since=%d' % sequences[number]
        connections[number].request('GET', '/api/nodes' + query, headers={'Accept-Encoding': 'gzip'})
        data = connections[number].getresponse().read()
        sizes.append(len(data))
        packed = data[:2] == b'\x1f\x8b'     # its head is enough: this process takes CPU from those that are measured
        sequences[number] = sequence_of(zlib.decompressobj(31).decompress(data, 2000) if packed else data)
        turn += 1
    return {'requests': turn, 'bytes': statistics.mean(sizes), 'late': time.monotonic() - began - turn * interval / count}


ROLES = {'bare': be_bare, 'busy': be_busy, 'pages': be_pages}


# ---- the report -----------------------------------------------------------------------------------------------------

class Report:
    """Figures as they come, then the table."""

    def __init__(self):
        self.rows, self.curve, self.machine = [], {}, machine()

    def add(self, what, measured, target='', ok=True):
        self.rows.append({'figure': what, 'target': target, 'measured': measured, 'ok': bool(ok)})
        outcome = '' if not target else 'ok' if ok else 'MISSED'
        print('  %-72s %-10s %-24s %s' % (what, target, measured, outcome), flush=True)

    def most(self, what, value, limit, form='%.2f'):
        """A figure with an upper limit; None is what did not come to an end."""
        self.add(what, 'never' if value is None else form % value, '≤ ' + form % limit, value is not None and value <= limit)

    def table(self):
        """The figures in reStructuredText."""
        rows = [('figure', 'target', 'measured')]
        rows += [(row['figure'], row['target'] or '\\', row['measured'] + ('' if row['ok'] else ' **missed**'))
                 for row in self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        rule = '  '.join('=' * width for width in widths)
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return '\n'.join([self.machine, '', rule, lines[0], rule] + lines[1:] + [rule])

    def plot(self, path):
        """The scaling curve, as SVG."""
        sys.path.insert(0, environment.folder_of(MATPLOTLIB))
        import matplotlib
        matplotlib.use('svg')
        matplotlib.rcParams.update({'svg.hashsalt': 'dispyadmin', 'font.family': 'DejaVu Sans', 'font.size': 10})
        from matplotlib import pyplot
        figure, axes = pyplot.subplots(figsize=(7.2, 3.6), facecolor='white')
        colors = {'dispyadmin': '#0b63b0', 'upstream': '#b3541e', 'bare loop': '#6b7280'}
        for name, points in self.curve.items():
            counts = sorted(points)
            axes.plot(counts, [points[count] for count in counts], marker='o', markersize=4, linewidth=1.8,
                      color=colors[name])
            axes.annotate(name, (counts[-1], points[counts[-1]]), xytext=(9, 0), textcoords='offset points',
                          va='center', color=colors[name])
        counts = sorted({count for points in self.curve.values() for count in points})
        axes.set(xscale='log', xlabel='nodes', ylabel='CPU for one poll, µs')
        axes.set_xticks(counts)
        axes.set_xticklabels(['{:,}'.format(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(axis='y', color='#e5e7eb')
        axes.spines[['top', 'right']].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, format='svg', metadata={'Date': None})


def machine():
    """One line on what this runs on."""
    with open('/proc/cpuinfo') as file:
        model = re.search(r'^model name\s*: (.*)$', file.read(), re.MULTILINE)
    with open('/proc/meminfo') as file:
        memory = int(re.search(r'^MemTotal:\s+(\d+)', file.read(), re.MULTILINE).group(1)) / 2 ** 20
    return '%s, %d cores, %.0f GiB; Linux %s; Python %s; %s' % (
        model.group(1) if model else platform.machine(), os.cpu_count(), memory, platform.release().partition('-')[0],
        platform.python_version(), datetime.date.today())


def number(value):
    return '{:,}'.format(value)


def quantile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))]


# ---- the parts ------------------------------------------------------------------------------------------------------

def measure_cpu(report):
    """CPU of one poll, beside upstream and a bare loop"""
    for count, interval, slow in ((1000, 1, 1), (5000, 2, 5)):
        found = {'dispyadmin': [], 'bare loop': [], 'bare loop with a timeout': [], 'upstream': [],
                 'dispyadmin, on one core with the nodes': [], 'bare loop, on one core with the nodes': []}
        asked = []
        for _ in range(ROUNDS):
            found['dispyadmin'].append(cost_of_ours(count, interval))
            found['bare loop'].append(cost_of_loop(count))
            found['bare loop with a timeout'].append(cost_of_loop(count, 4))
            found['dispyadmin, on one core with the nodes'].append(cost_of_ours(count, interval, together=True))
            found['bare loop, on one core with the nodes'].append(cost_of_loop(count, together=True))
            if has_upstream():
                microseconds, nodes = cost_of_upstream(count, slow)
                found['upstream'].append(microseconds)
                asked.append(nodes)
            print('   ', {name: round(values[-1]) for name, values in found.items() if values}, flush=True)
        medians = {name: statistics.median(values) for name, values in found.items() if values}
        for name, value in medians.items():
            more = '; it asked %s' % number(min(asked)) if name == 'upstream' else ''
            report.add('CPU of one poll, %s nodes: %s' % (number(count), name), '%.0f µs%s' % (value, more))
        ours = medians['dispyadmin']
        if 'upstream' in medians:
            report.most('... dispyadmin / upstream', ours / medians['upstream'], 0.5)
        report.most('... dispyadmin / bare loop', ours / medians['bare loop'], 2.5)
        # There no core has to be woken, which is most of what the loop costs.
        where = ', on one core with the nodes'
        ratio = medians['dispyadmin' + where] / medians['bare loop' + where]
        report.add('... dispyadmin / bare loop' + where, '%.2f' % ratio)


def measure_scaling(report):
    """CPU of one poll from 100 to 10,000 nodes"""
    curve = report.curve = {'dispyadmin': {}, 'bare loop': {}}
    for count, interval in ((100, 1), (300, 1), (1000, 1), (3000, 3), (10000, 10)):
        curve['dispyadmin'][count] = statistics.median(cost_of_ours(count, interval) for _ in range(ROUNDS))
        curve['bare loop'][count] = cost_of_loop(count)
        report.add('CPU of one poll, %s nodes each %d s: dispyadmin; bare loop' % (number(count), interval),
                   '%.0f µs; %.0f µs' % (curve['dispyadmin'][count], curve['bare loop'][count]))
    for count, interval in ((100, 1), (1000, 1), (5000, 5)) if has_upstream() else ():
        curve.setdefault('upstream', {})[count], asked = cost_of_upstream(count, interval)
        report.add('CPU of one poll, %s nodes: upstream' % number(count),
                   '%.0f µs; it asked %s' % (curve['upstream'][count], number(asked)))
    ours = curve['dispyadmin'].values()
    report.most('greatest / least CPU of one poll of dispyadmin, 100 to 10,000 nodes', max(ours) / min(ours), 1.3)


def gaps(log, names, begin, end, interval):
    """Seconds between two polls of one node. What lies before the first one and after the last one counts when it is
    longer than the interval; else it says nothing."""
    found = []
    for name in names:
        times = log.get(name, [])
        found += [b - a for a, b in zip(times, times[1:])]
        edges = [times[0] - begin, end - times[-1]] if times else [end - begin]
        found += [edge for edge in edges if edge > interval]
    return found


def measure_freshness(report):
    """10,000 nodes each 10 s: when each is asked"""
    interval, seconds = 10, WATCH
    names = ['sim%05d' % number for number in range(10000)]
    with cluster(10000, interval) as (nodes, admin):
        time.sleep(interval)
        nodes.log()
        began = time.monotonic()
        time.sleep(seconds)
        first = nodes.log()
        ended = time.monotonic()
        steady = gaps(first, names, began, ended, interval)
        report.most('gaps between polls of a node, 99 %, in intervals', quantile(steady, 0.99) / interval, 1.2)
        report.add('... longest', '%.2f' % (max(steady) / interval))
        slots = [0] * (seconds * 2)
        for when in [when for times in first.values() for when in times]:
            slots[min(len(slots) - 1, max(0, int((when - began) * 2)))] += 1
        report.add('polls in the busiest half second / mean', '%.2f' % (max(slots) / statistics.mean(slots)))

        nodes.say('silent 2000')
        with contextlib.closing(Reader(admin)) as reader:
            seen = reader.wait(lambda totals: totals['unreachable'] >= 2000, 50, pause=0.5)
        time.sleep(max(0, ended + seconds - time.monotonic()))
        second = {name: first.get(name, [])[-1:] + times for name, times in nodes.log().items()}
        report.add('2,000 fall silent: all are shown unreachable after', 'never' if seen is None else '%.1f s' % seen)
        others = gaps(second, names[2000:], ended, time.monotonic(), interval)
        report.most('... gaps of the 8,000 others, 99 %, in intervals', quantile(others, 0.99) / interval, 1.5)
        report.add('... longest', '%.2f' % (max(others) / interval))
        nodes.say('silent 0')
        with contextlib.closing(Reader(admin)) as reader:
            seen = reader.wait(lambda totals: totals['ready'] == 10000, 90, pause=1)
            report.add('... they answer again: all are shown ready after', 'never' if seen is None else '%.1f s' % seen)
            before, began = nodes.polls(), time.monotonic()
            reader.request('POST', '/api/poll', {'now': True})
            took = time.monotonic() - began
            report.add('Now, 10,000 nodes: answered after', '%.1f s; %s polls/s' % (
                took, number(round((nodes.polls() - before) / took))))


def measure_discovery(report):
    """5,000 nodes announce themselves within two seconds"""
    count = 5000
    with strangers(count, 60) as (nodes, admin), contextlib.closing(Reader(admin)) as reader:
        last = nodes.announce(2)
        reader.wait(lambda totals: totals['ready'] == count, last + 10 - time.monotonic())
        took = time.monotonic() - last
        found = reader.ask()['totals']['ready']
        report.add('in the table 10 s after 5,000 announced themselves within 2 s', number(found), number(count),
                   found == count)
        report.add('... all there after', '%.1f s' % took if found == count else 'not in that time')


def measure_bulk(report):
    """A control of 5,000 nodes"""
    count = 5000
    with cluster(count, 10) as (nodes, admin), contextlib.closing(Reader(admin)) as reader:
        # With the interval of 60 s that is usual, few of the silent ones are known when the control comes.
        reader.request('POST', '/api/poll', {'interval': 60})
        for silent, limit in ((0, 5), (100, 15)):
            nodes.say('silent %d' % silent)
            nodes.polls()                # it has been taken in
            began = time.monotonic()
            answer = reader.request('POST', '/api/cpus', {'nodes': nodes.ids(), 'cpus': 4 + silent // 100})
            took = time.monotonic() - began
            good = sum(result['ok'] for result in answer['results'])
            right = len(answer['results']) == count and good == count - silent
            what = 'control of 5,000 nodes' + (', %d of them silent' % silent if silent else '')
            report.add(what, '%.1f s; %s ok' % (took, number(good)), '≤ %d s' % limit, took <= limit and right)


def timed(reader, query, headers=None):
    """(ms, bytes of the body as they came) of asking for nodes."""
    began = time.monotonic()
    reader.connection.request('GET', '/api/nodes' + query, None, headers or {})
    data = reader.connection.getresponse().read()
    return (time.monotonic() - began) * 1000, data


def measure_http(report):
    """The page's requests at 10,000 nodes, while polls go on, and each five seconds Now, or a control of a thousand"""
    with cluster(10000, 10) as (nodes, admin), contextlib.closing(Reader(admin)) as reader:
        busy = start_role('busy', admin.host, admin.port, nodes.port)
        reader.ask()
        times, sizes = [], []
        for _ in range(3000):
            took, data = timed(reader, '?since=%d' % reader.sequence)
            reader.sequence = sequence_of(data)
            times.append(took)
            sizes.append(len(data))
            time.sleep(0.005)
        report.most('GET since the newest: median, ms', statistics.median(times), 3)
        report.most('... 99 %, ms', quantile(times, 0.99), 30)
        report.add('... longest, ms; median bytes', '%.0f; %d' % (max(times), statistics.median(sizes)))
        for what, headers in (('plain', {}), ('with gzip', {'Accept-Encoding': 'gzip'})):
            times = []
            for _ in range(9):
                took, data = timed(reader, '', headers)
                times.append(took)
                packed = data[:2] == b'\x1f\x8b'
                whole = json.loads((gzip.decompress(data) if packed else data).decode())
                if len(whole['nodes']) != 10000:
                    raise RuntimeError('a full snapshot of %d nodes' % len(whole['nodes']))
                time.sleep(0.5)
            report.most('full snapshot %s: median, ms' % what, statistics.median(times), 300, '%.0f')
            report.add('... bytes', number(len(data)), 'packed' if headers else '', packed == bool(headers))
        end_role(busy)
        measure_pages(report, admin)


def load(admin):
    """The part of a core that dispyadmin uses."""
    cpu = admin.cpu()
    time.sleep(WATCH)
    return (admin.cpu() - cpu) / WATCH


def measure_pages(report, admin):
    """50 pages, each of which asks every 10 s."""
    time.sleep(2)
    alone = load(admin)
    pages = start_role('pages', admin.host, admin.port, 50, 10)
    time.sleep(10)                       # each has its first, full snapshot
    within = load(admin)
    found = end_role(pages)
    report.most('50 pages at 10 s: CPU more than without, of a core', within - alone, 0.1)
    report.add('... polling alone; bytes of an answer; seconds late', '%.2f; %s; %.1f' % (
        alone, number(round(found['bytes'])), max(0, found['late'])))


def measure_memory(report):
    """Memory at 10,000 nodes, and over an hour's worth of polls"""
    with cluster(10000, 1) as (nodes, admin), contextlib.closing(Reader(admin)) as reader:
        reader.ask()
        report.most('memory at 10,000 nodes, MB', rss(admin.pid), 120, '%.0f')
        report.add('... at most', '%.0f' % rss(admin.pid, 'VmHWM'))
        until, group, samples = nodes.polls() + 60 * nodes.count, 0, []
        deadline = time.monotonic() + 600
        while nodes.polls() < until and time.monotonic() < deadline:
            change(nodes, reader, group)
            group = (group + 1) % 10
            for _ in range(4):
                samples.append(rss(admin.pid))
                time.sleep(1)
        quarter = len(samples) // 4
        first, last = statistics.mean(samples[:quarter]), statistics.mean(samples[-quarter:])
        report.most('growth over 600,000 polls, while 100 nodes come and 100 go each 4 s, %', (last / first - 1) * 100, 5)
        report.add('... first quarter, last quarter, at most, MB',
                   '%.0f, %.0f, %.0f' % (first, last, rss(admin.pid, 'VmHWM')))
        report.add('... nodes in the table at the end, and known to be away', '%s, %s' % tuple(
            number(reader.ask()['totals'][key]) for key in ('nodes', 'unreachable')))


def measure_history(report):
    """The last hours of 10,000 nodes in memory, and what a sample of them takes"""
    ids, now = ['%s:9701' % simulated.address_of(number) for number in range(10000)], [0.0]
    table = dispyadmin.NodeTable()
    for number, node_id in enumerate(ids):
        known = dispyadmin.Known('%040x' % number, SECRET)
        info = dispyadmin.NO_INFO._replace(cpus=8, busy=number % 9, avail_info=(50.5, number * 2 ** 22, 2 ** 40, 100.0))
        table.may_send(node_id, known.sign)
        table.answered(node_id, dispyadmin.Answer(known, info), create=True)

    def sample():
        now[0] += dispyadmin.CLUSTER_INTERVAL
        began = time.process_time()
        history.sample()
        return (time.process_time() - began) * 1e3

    tracemalloc.start()
    history = dispyadmin.History(table, steady=lambda: now[0])
    for _ in range(dispyadmin.CLUSTER_SAMPLES):
        sample()
    report.most('history of 10,000 nodes after four hours, MB', tracemalloc.get_traced_memory()[0] / 1e6, 16, '%.1f')
    tracemalloc.stop()
    every = dispyadmin.SAMPLE_INTERVAL // dispyadmin.CLUSTER_INTERVAL
    times = sorted(sample() for _ in range(10 * every))
    report.most('... CPU for a sample of the cluster, each 10 s, ms', statistics.median(times[:-10]), 10, '%.1f')
    report.most('... and of each node, each 60 s, ms', statistics.median(times[-10:]), 30, '%.1f')
    began = time.process_time()
    for node_id in ids[:100]:
        dispyadmin.encode_json(history.node(node_id))
    report.most('... for the history of one node in JSON, ms', (time.process_time() - began) * 10, 5, '%.1f')


def change(nodes, reader, group):
    """A hundred nodes go and are forgotten, the hundred before them come back."""
    nodes.say('dead %d %d' % (group * 100, group * 100 + 100))
    for node_id in nodes.ids(group * 100, group * 100 + 100):
        with contextlib.suppress(RuntimeError):      # it is not there: it was not back yet
            reader.request('DELETE', '/api/nodes/' + node_id)
    before = (group + 9) % 10 * 100
    nodes.announce(0.5, before, before + 100)


def rss(pid, field='VmRSS'):
    """MB, of a million bytes."""
    return lab.memory_of(pid, field) * 2 ** 20 / 1e6


def measure_page(report):
    """The page in a browser, at 10,000 nodes"""
    if importlib.util.find_spec('tests.bench_page') is None:
        print('  tests/bench_page.py is not there', flush=True)
        return
    from tests import bench_page
    with cluster(10000, 10) as (nodes, admin):
        for row in bench_page.measure(admin.url):
            report.add(row[0], row[2], row[1], row[3])


def measure_start(report):
    """From exec to the first connection"""
    times = []
    for _ in range(7):
        port, began = lab.LabTest.free_ports(), time.monotonic()
        popen = subprocess.Popen([sys.executable, environment.SCRIPT, '--http_port', str(port)], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            while not Upstream.listens(port) and time.monotonic() - began < 20:
                time.sleep(0.001)
            times.append(time.monotonic() - began)
        finally:
            popen.kill()
            popen.wait()
    report.most('start to listening, s', statistics.median(times), 0.3)


def measure_idle(report):
    """10 nodes at the usual interval"""
    with contextlib.closing(Nodes(10)) as nodes, contextlib.closing(Admin(
            *['--node=' + node_id for node_id in nodes.ids()])) as admin:
        with contextlib.closing(Reader(admin)) as reader:
            reader.wait(lambda totals: totals['ready'] == 10, 20)
        time.sleep(10)
        report.most('idle with 10 nodes, % of a core', load(admin) * 100, 0.5)


PARTS = {'cpu': measure_cpu, 'scaling': measure_scaling, 'freshness': measure_freshness, 'discovery': measure_discovery,
         'bulk': measure_bulk, 'http': measure_http, 'memory': measure_memory, 'history': measure_history,
         'page': measure_page, 'start': measure_start, 'idle': measure_idle}


# ---- the program ----------------------------------------------------------------------------------------------------

def has_upstream():
    return UPSTREAM.python is not None and os.path.isdir(environment.folder_of(UPSTREAM))


def prepare(options):
    """Install what is missing: inside its namespace the benchmark has no network."""
    os.makedirs(environment.FOLDER, exist_ok=True)
    wanted = [UPSTREAM] * bool(UPSTREAM.python) + [MATPLOTLIB] * bool(options.plot)
    wanted += [environment.SELENIUM] * ('page' in options.parts)
    for packages in wanted:
        try:
            environment.install(packages)
        except environment.SetupError as error:
            print('set-up: %s' % error, flush=True)


def out_of_time(signum, frame):
    raise RuntimeError('not done after %d s' % PART_TIME)


def run(options):
    report, status = Report(), 0
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(encoding='utf-8')
    signal.signal(signal.SIGALRM, out_of_time)
    print(report.machine, flush=True)
    for name in options.parts:
        print('\n%s: %s' % (name, PARTS[name].__doc__), flush=True)
        signal.alarm(PART_TIME)
        try:
            PARTS[name](report)
        except Exception as error:       # the other parts are of use without it
            print('  %s: %s: %s' % (name, type(error).__name__, error), flush=True)
            status = 1
        signal.alarm(0)
    print('\n' + report.table(), flush=True)
    if options.json:
        with open(options.json, 'w') as file:
            json.dump({'machine': report.machine, 'rows': report.rows, 'curve': report.curve}, file, indent=1)
    if options.plot and report.curve:
        report.plot(options.plot)
    return status


def main():
    if sys.argv[1:2] == ['--role']:
        print(json.dumps(ROLES[sys.argv[2]](*sys.argv[3:])))
        return 0
    parser = argparse.ArgumentParser(prog='bench.py', description=__doc__.splitlines()[0])
    parser.add_argument('parts', nargs='*', metavar='PART', help='of %s (default: all)' % ', '.join(PARTS))
    parser.add_argument('--list', action='store_true', help='say what the parts measure')
    parser.add_argument('--json', metavar='FILE', type=os.path.abspath, help='write the figures there')
    parser.add_argument('--plot', metavar='FILE', type=os.path.abspath, help='draw the scaling curve there, as SVG')
    parser.add_argument('--isolated', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error('no such part: %s' % ' '.join(unknown))
    if options.list:
        print('\n'.join('%-10s %s' % (name, part.__doc__) for name, part in PARTS.items()))
        return 0
    options.parts = options.parts or list(PARTS)
    if not options.isolated:
        prepare(options)
        command = isolated() + [sys.executable, os.path.abspath(__file__), '--isolated'] + sys.argv[1:]
        os.execvp(command[0], command)
    return run(options)


if __name__ == '__main__':
    sys.exit(main())
