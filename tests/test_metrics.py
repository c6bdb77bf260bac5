"""GET /metrics: read by prometheus_client's own parser and checked by promtool; values equal those of the list of nodes."""

import gzip
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import dispyadmin

from . import environment, lab, wire

LIVE = {'dispy_node_cpus': 'cpus', 'dispy_node_max_cpus': 'max_cpus', 'dispy_node_busy_cpus': 'busy',
        'dispy_node_service_start_timestamp_seconds': 'service_start',
        'dispy_node_service_stop_timestamp_seconds': 'service_stop',
        'dispy_node_service_end_timestamp_seconds': 'service_end'}
KEPT = {'dispy_node_clients_done_total': 'clients_done', 'dispy_node_jobs_done_total': 'jobs_done',
        'dispy_node_cpu_seconds_total': 'cpu_time', 'dispy_node_last_answer_timestamp_seconds': 'update_time'}
AVAILABLE = {'dispy_node_available_cpu_ratio': ('cpu', 100), 'dispy_node_available_memory_bytes': ('memory', 1),
             'dispy_node_available_disk_bytes': ('disk', 1), 'dispy_node_available_swap_ratio': ('swap', 100)}
HOSTILE = ('quote " end', 'back\\slash', 'a\\', '\\"', 'new\nline', '} 1', 'dispy_node_up{node="forged"} 1', 'täg 日本', "#")


def parse(text):
    """{(name of a sample, labels sorted): value}, as the parser of prometheus_client reads it."""
    path = environment.require(environment.PROMETHEUS)
    if path not in sys.path:
        sys.path.insert(0, path)
    from prometheus_client import parser
    samples = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def of_node(samples, name, node_id):
    return samples.get((name, (('node', node_id),)))


def promtool():
    """The path of Prometheus' own tool."""
    path = shutil.which('promtool')
    if not path:
        raise unittest.SkipTest('no promtool (package prometheus)')
    return path


class MetricsTest(lab.LabTest):
    def scrape(self, admin):
        answer = admin.request('GET', '/metrics')
        self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(answer.headers['Content-Type'], 'text/plain; version=0.0.4; charset=utf-8')
        return answer.text

    def check_with_promtool(self, text):
        done = subprocess.run([promtool(), 'check', 'metrics'], input=text.encode('utf-8'), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual((done.returncode, done.stdout.decode()), (0, ''))

    def check_values(self, text, nodes):
        """The samples of these nodes (JSON by id) are what the list shows."""
        samples = parse(text)
        ids = {dict(labels)['node'] for name, labels in samples if name == 'dispy_node_up'}
        self.assertEqual(ids, set(nodes))
        for node_id, node in nodes.items():
            with self.subTest(node=node_id, state=node['state']):
                self.check_node(samples, node_id, node)
        return samples

    def check_node(self, samples, node_id, node):
        answers = node['state'] != 'unreachable'
        self.assertEqual(of_node(samples, 'dispy_node_up', node_id), int(answers))
        self.assertEqual({state: samples['dispy_node_state', (('node', node_id), ('state', state))]
                          for state in dispyadmin.STATES},
                         {state: int(state == node['state']) for state in dispyadmin.STATES})
        labels = (('name', node['name'] or ''), ('node', node_id), ('version', node['version'] or ''))
        self.assertEqual(samples['dispy_node_info', labels], 1)
        for name, key in KEPT.items():
            self.assertEqual(of_node(samples, name, node_id), node[key], name)
        for name, key in LIVE.items():
            self.assertEqual(of_node(samples, name, node_id), node[key] if answers else None, name)
        for name, (key, share) in AVAILABLE.items():
            value = (node['avail_info'] or {}).get(key) if answers else None
            self.assertEqual(of_node(samples, name, node_id), None if value is None else value / share, name)
        serve = math.inf if node['serve'] == -1 else node['serve']
        self.assertEqual(of_node(samples, 'dispy_node_clients_to_serve', node_id), serve if answers else None)
        self.assertEqual(of_node(samples, 'dispy_node_controllable', node_id),
                         int(node['controllable']) if answers else None)


class Format(MetricsTest):
    def settled(self, *options, **kwargs):
        """dispyadmin that asks nobody by itself in the time of a test."""
        return self.admin('--poll_interval', 600, *options, **kwargs)

    def test_empty(self):
        text = self.scrape(self.settled())
        self.check_with_promtool(text)
        samples = parse(text)
        self.assertEqual(samples['dispy_nodes', (('state', 'ready'),)], 0)
        self.assertNotIn('dispy_node_', text)

    def test_nodes_in_every_state(self):
        """Values equal those of the list, also with names that try to leave their quotes; promtool has nothing to say."""
        made = [self.fake('open', name=name, cpus=1 + number) for number, name in enumerate(HOSTILE)]
        made[0].info.update(cpus=0, busy=1, clients_done=3, jobs_done=2 ** 40, cpu_time=1234.5678, service_start=1e9,
                            service_stop=2e9, service_end=3e9, serve=7)
        made[1].info.update(serve=0)
        made[2].info.update(avail_info=None)
        made[3].info.update(avail_info=wire.DispyNodeAvailInfo(float('nan'), 2 ** 50, None, 33.25))
        made += [self.fake('other'), self.fake('', client_secret='')]
        admin = self.settled('--secret', 'open', '--group', 'some=' + made[0].address)
        lost = self.fake('open', name='lost')
        for node in made + [lost]:
            self.assertTrue(admin.add(node)['ok'])
        lost.close()
        admin.post('/api/poll', {'now': True, 'nodes': [lost.id]})
        nodes = admin.nodes()
        self.assertEqual({node['state'] for node in nodes.values()}, set(dispyadmin.STATES))
        text = self.scrape(admin)
        self.assertEqual(nodes, admin.nodes())
        self.check_with_promtool(text)
        samples = self.check_values(text, nodes)
        totals = admin.get('/api/nodes')['totals']
        for state in dispyadmin.STATES:
            self.assertEqual(samples['dispy_nodes', (('state', state),)], totals[state])
        self.assertEqual((samples['dispy_cpus', ()], samples['dispy_busy_cpus', ()]), (totals['cpus'], totals['busy']))
        in_groups = [dict(labels) for name, labels in samples if name == 'dispy_node_in_group']
        self.assertEqual(in_groups, [{'node': made[0].id, 'group': 'some'}])
        self.assertNotIn('forged', {dict(labels).get('node') for _, labels in samples})

    def test_own(self):
        """What it tells of itself is true."""
        node = self.fake('open')
        admin = self.admin('--secret', 'open', '--on_event', '/bin/true')
        admin.add(node)
        polls = len(node.asked('NODE_INFO'))
        lab.wait_for(lambda: len(node.asked('NODE_INFO')) >= polls + 3, what='polls')
        samples = parse(self.scrape(admin))
        self.assertGreaterEqual(samples['dispyadmin_polls_total', ()], 2)
        self.assertEqual(samples['dispyadmin_polls_failed_total', ()], 0)
        self.assertGreaterEqual(samples['dispyadmin_exchange_duration_seconds_count', ()],
                                samples['dispyadmin_polls_total', ()])
        self.assertTrue(0 < samples['dispyadmin_exchange_duration_seconds_sum', ()] < 5)
        self.assertEqual(samples['dispyadmin_poll_interval_seconds', ()], 1)
        self.assertEqual(samples['dispyadmin_events_total', (('kind', 'found'),)], 1)
        self.assertEqual(samples['dispyadmin_events_total', (('kind', 'lost'),)], 0)
        self.assertEqual(samples['dispyadmin_info_port_held', (('port', str(self.info_port)),)], 1)
        self.assertEqual(samples['dispyadmin_alerts_total', ()], 0)
        version = dispyadmin.__version__
        self.assertEqual(samples['dispyadmin_build_info', (('python', sys.version.split()[0]), ('version', version))], 1)
        self.assertAlmostEqual(samples['process_start_time_seconds', ()], time.time(), delta=60)
        self.assertGreater(samples['process_cpu_seconds_total', ()], 0)
        if sys.platform.startswith('linux'):
            self.assertAlmostEqual(samples['process_resident_memory_bytes', ()] / 2 ** 20, lab.memory_of(admin.pid),
                                   delta=20)
            self.assertAlmostEqual(samples['process_open_fds', ()], lab.open_files_of(admin.pid), delta=4)
            self.assertAlmostEqual(samples['dispyadmin_threads', ()], lab.threads_of(admin.pid), delta=4)
        node.close()
        admin.wait_node(node, state='unreachable')
        samples = parse(self.scrape(admin))
        self.assertGreater(samples['dispyadmin_polls_failed_total', ()], 0)
        self.assertGreater(samples['dispyadmin_exchanges_failed_total', ()], 0)
        self.assertEqual(samples['dispyadmin_events_total', (('kind', 'lost'),)], 1)

    def test_open_and_waiting(self):
        """Exchanges that hang are seen."""
        admin = self.admin('--secret', 'open')
        for _ in range(3):
            self.fake(mode='silent').ping(self.info_target())

        def open_ones():
            samples = parse(self.scrape(admin))
            return sum(value for (name, _), value in samples.items() if name == 'dispyadmin_open_exchanges') == 3
        lab.wait_for(open_ones, 4, 'three open exchanges')

    def test_packed(self):
        admin = self.settled()
        for _ in range(3):
            admin.add(self.fake())
        answer = admin.request('GET', '/metrics', headers={'Accept-Encoding': 'gzip'})
        self.assertEqual(answer.headers['Content-Encoding'], 'gzip')
        parse(gzip.decompress(answer.body).decode('utf-8'))
        head = admin.request('HEAD', '/metrics')
        self.assertEqual((head.status, head.body), (200, b''))
        self.assertEqual(admin.request('POST', '/metrics', {}).status, 405)

    def test_access(self):
        """The rules are those of all requests: as a Prometheus elsewhere asks, with the token as bearer."""
        token = 'a-token-for-all-scrapes'
        admin = self.settled('--http_host', '0.0.0.0', '--http_token', self.write(token))
        for authorization, status in ((None, 401), ('Bearer wrong-token', 401), ('Bearer ' + token, 200)):
            headers = {'Authorization': authorization} if authorization else {}
            self.assertEqual(admin.request('GET', '/metrics', headers=headers).status, status)
        bad = admin.request('GET', '/metrics', headers={'Authorization': 'Bearer ' + token, 'Host': 'evil.example'})
        self.assertEqual(bad.status, 421)

    def test_no_secret(self):
        node = self.fake('s3cret-of-nodes')
        admin = self.settled('--secret', 's3cret-of-nodes', '--http_token', self.write('t0ken-of-page'))
        admin.add(node)
        text = self.scrape(admin)
        self.assertIn('dispy_node_state{node="%s",state="ready"} 1' % node.id, text)
        for secret in ('s3cret', 't0ken', node.sign, wire.auth_code('s3cret-of-nodes', node.sign).decode()):
            self.assertNotIn(secret, text)

    def test_each_metric_in_one_piece(self):
        """HELP and TYPE come before its samples."""
        admin = self.settled()
        admin.add(self.fake())
        seen, current = [], None
        for line in self.scrape(admin).splitlines():
            found = re.match(r'# (HELP|TYPE) (\S+) .', line)
            if found and found.group(1) == 'HELP':
                current = found.group(2)
                self.assertNotIn(current, seen)
                seen.append(current)
            elif found:
                self.assertEqual(found.group(2), current)
            else:
                self.assertRegex(line, r'^%s(_sum|_count)?(\{.*\})? \S+$' % current)


class Many(unittest.TestCase):
    COUNT = 10000

    def test_ten_thousand(self):
        """Written and packed in well below a second; all there."""
        settings = dispyadmin.read_settings(['--info_port', '0', '--http_port', '0'], {})
        admin = dispyadmin.Admin(settings)
        self.addCleanup(admin.discard)
        for number in range(self.COUNT):
            node_id = '10.%d.%d.%d:9701' % (number >> 16, number >> 8 & 255, number & 255)
            info = dispyadmin.NO_INFO._replace(
                name='node%d' % number, avail_info=(50.5, number << 20, 2 ** 40, 99.0), cpus=8, busy=3, max_cpus=8, serve=-1,
                clients_done=5, jobs_done=number, cpu_time=1.5)
            known = dispyadmin.Known('%040x' % number, 'x', admin=True)
            admin.table.answered(node_id, dispyadmin.Answer(known, info), create=True)
        times, clock = [], lab.FairClock()
        for _ in range(3):
            began = clock()
            text = dispyadmin.write_metrics(admin)
            packed = gzip.compress(text.encode('utf-8'), 1)
            times.append(clock() - began)
        print('%d nodes: %.0f ms, %.1f MB, packed %.2f MB' % (self.COUNT, 1000 * min(times), len(text) / 1e6,
                                                              len(packed) / 1e6))
        self.assertLess(min(times), 0.9)
        self.assertEqual(text.count('\ndispy_node_up{'), self.COUNT)
        self.assertIn('\ndispy_node_available_memory_bytes{node="10.0.39.15:9701"} %d\n' % (9999 << 20), text)


class RealNodes(MetricsTest):
    def test_real_node(self):
        """A real node with its own figures; when it is killed, it is down."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--poll_interval', 2)
        admin.wait_node(node, state='ready', version='4.15.2')

        def same():
            """Between two looks at the list that are the same, the metrics are, too."""
            before, text, after = admin.nodes(), self.scrape(admin), admin.nodes()
            return (text, before) if before == after else None
        text, nodes = lab.wait_for(same, what='no poll between')
        samples = self.check_values(text, nodes)
        self.assertIsNotNone(of_node(samples, 'dispy_node_available_memory_bytes', node.id))
        self.check_with_promtool(text)
        node.signal(signal.SIGKILL)
        admin.wait_node(node, state='unreachable')
        samples = parse(self.scrape(admin))
        self.assertEqual(of_node(samples, 'dispy_node_up', node.id), 0)
        self.assertIsNone(of_node(samples, 'dispy_node_cpus', node.id))
        self.assertEqual(of_node(samples, 'dispy_node_jobs_done_total', node.id), 0)


class Prometheus(MetricsTest):
    CONFIG = '''
scrape_configs:
  - job_name: dispy
    authorization:
      credentials_file: %s
    static_configs:
      - targets: ["%s:%d"]
'''

    def test_scraped(self):
        """The configuration in README: a real Prometheus scrapes with the token, and finds the node up."""
        program = shutil.which('prometheus')
        if not program:
            raise unittest.SkipTest('no prometheus (package prometheus)')
        token = 'a-token-for-all-scrapes'
        admin = self.admin('--http_host', '0.0.0.0', '--http_token', self.write(token))
        self.assertEqual(admin.request('GET', '/metrics').status, 401)
        admin.token = token
        node = self.fake(name='a "quoted" name')
        admin.add(node)
        config = self.write('global: {scrape_interval: 1s}\n' + self.CONFIG % (
            self.write(token), self.address(), admin.port))
        subprocess.run([promtool(), 'check', 'config', config], check=True, stdout=subprocess.DEVNULL, timeout=30)
        address = self.address()
        server = self.start(lab.Process, [
            program, '--config.file=' + config, '--storage.tsdb.path=' + os.path.join(self.folder(), 'data'),
            '--web.listen-address=%s:9090' % address])

        def scraped():
            done = subprocess.run([promtool(), 'query', 'instant', 'http://%s:9090' % address,
                                   'dispy_node_up * on(node) group_left(name) dispy_node_info'],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
            self.said = done.stdout.decode()
            return 'node="%s"' % node.id in self.said and r'name="a \"quoted\" name"' in self.said and '=> 1 @' in self.said
        lab.wait_for(scraped, 30, lambda: 'a sample in Prometheus: %s %s' % (self.said, server.output()))
