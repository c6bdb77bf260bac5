"""The demonstration: a cluster in all states, that takes controls, and is gone afterwards."""

import json
import os
import re
import signal
import sys
import urllib.request

from . import environment, lab

DEMO = os.path.join(environment.ROOT, 'tests', 'demo.py')


class Demo(lab.LabTest):
    def begin(self, *options, **kwargs):
        self.temporary = self.folder()
        demo = self.start(lab.Process, [sys.executable, DEMO, '--http_port', '0'] + list(options),
                          env=dict(os.environ, TMPDIR=self.temporary), cwd=self.folder(), **kwargs)
        line = lab.wait_for(lambda: next((line for line in demo.out if 'http://' in line), None), 60, demo.output)
        return demo, re.search(r'http://\S+/', line).group()

    def nodes(self, url):
        with urllib.request.urlopen(url + 'api/nodes', timeout=10) as answer:
            return {node['id']: node for node in json.loads(answer.read().decode())['nodes']}

    def post(self, url, path, **body):
        request = urllib.request.Request(url + 'api/' + path, json.dumps(body).encode(),
                                         {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read().decode())

    @staticmethod
    def group_of(number):
        """The processes of a group, by their ids."""
        found = []
        for name in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.getpgid(int(name)) == number:
                    found.append(int(name))
            except ProcessLookupError:
                pass
        return found

    def test_oldest_python(self):
        """It runs on the oldest Python too, and as a module."""
        oldest = environment.PYTHONS[min(version for version in environment.PYTHONS if version >= (3, 6))]
        demo = self.start(lab.Process, [oldest, '-m', 'tests.demo', '--http_port', '0', '--nodes', '12'],
                          cwd=environment.ROOT)
        line = lab.wait_for(lambda: next((line for line in demo.out if 'http://' in line), None), 60, demo.output)
        self.assertEqual(len(self.nodes(re.search(r'http://\S+/', line).group())), 12)
        demo.signal(signal.SIGINT)
        self.assertEqual(demo.wait(), 0, demo.output())

    def test_all_states_and_controls(self):
        demo, url = self.begin('--nodes', '15')
        nodes = self.nodes(url)
        self.assertEqual(len(nodes), 15)
        self.assertEqual({node['state'] for node in nodes.values()}, {'ready', 'stopped', 'locked', 'unreachable'})
        shown = list(nodes.values())
        for what in (lambda node: node['drift'], lambda node: node['drain'], lambda node: node['groups'] == ['gpu'],
                     lambda node: node['groups'] == ['cpu'], lambda node: node['busy'] and node['avail_info'],
                     lambda node: node['cpus'] and not node['avail_info'], lambda node: node['version'] == '4.11.0',
                     lambda node: node['reason'] and 'announces dispy 5.0.0' in node['reason'],
                     lambda node: node['state'] == 'ready' and not node['controllable']):
            self.assertTrue(any(map(what, shown)))
        node = next(node for node in shown if node['state'] == 'ready' and node['controllable'] and not node['drift'])
        for path, field, body in (('cpus', 'cpus', {'cpus': 3}), ('clients', 'serve', {'clients': 5})):
            self.assertTrue(self.post(url, path, nodes=[node['id']], **body)['results'][0]['ok'])
            self.assertEqual(self.nodes(url)[node['id']][field], list(body.values())[0])
        self.assertTrue(self.post(url, 'service_time', nodes=[node['id']], control='end', time='now')['results'][0]['ok'])
        lab.wait_for(lambda: self.nodes(url)[node['id']]['state'] == 'unreachable', 30, 'it has ended')
        jobs = sum(node['jobs_done'] or 0 for node in shown)
        lab.wait_for(lambda: sum(node['jobs_done'] or 0 for node in self.nodes(url).values()) > jobs, 60, 'jobs are done')
        group = self.group_of(demo.pid)
        self.assertEqual(len(group), 2)          # the demonstration and dispyadmin
        os.killpg(demo.pid, signal.SIGINT)       # as Ctrl-C on a terminal does
        self.assertEqual(demo.wait(), 0, demo.output())
        self.assertEqual(self.group_of(demo.pid), [])
        self.assertNotIn('Traceback', demo.output())
        self.assertEqual(os.listdir(self.temporary), [])
        with self.assertRaises(OSError):
            self.nodes(url)

    def test_started_again_when_the_file_changes(self):
        """The page's address stays, and so does what was set."""
        folder = self.folder()
        for name in ('dispyadmin.py', 'tests/demo.py', 'tests/wire.py', 'tests/__init__.py'):
            os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
            with open(os.path.join(environment.ROOT, name), 'rb') as old, open(os.path.join(folder, name), 'wb') as new:
                new.write(old.read())
        demo = self.start(lab.Process, [sys.executable, os.path.join(folder, 'tests', 'demo.py'), '--http_port', '0'])
        line = lab.wait_for(lambda: next((line for line in demo.out if 'http://' in line), None), 60, demo.output)
        url = re.search(r'http://\S+/', line).group()
        drifted = [node['id'] for node in self.nodes(url).values() if node['drift']]
        script = os.path.join(folder, 'dispyadmin.py')
        with open(script) as file:
            text = file.read()
        with open(script, 'w') as file:          # half of a change: that is waited out
            file.write('this is no Python\n' + text)
        lab.wait_for(lambda: 'does not start' in demo.output(), 30, demo.output)
        with open(script, 'w') as file:
            file.write(re.sub(r"__version__ = '.*'", "__version__ = '9.9.9'", text))

        def is_new():
            try:
                with urllib.request.urlopen(url + 'api/about', timeout=10) as answer:
                    return b'9.9.9' in answer.read()
            except OSError:
                return False
        lab.wait_for(is_new, 30, demo.output)
        lab.wait_for(lambda: [node['id'] for node in self.nodes(url).values() if node['drift']] == drifted, 30,
                     'drift is kept')
        demo.signal(signal.SIGTERM)
        self.assertEqual(demo.wait(), 0, demo.output())

    def test_bad_options(self):
        for options, word in ((['--nodes', '3'], '12 to 200'), (['--nodes', 'x'], 'nodes')):
            process = self.start(lab.Process, [sys.executable, DEMO] + options)
            self.assertEqual(process.wait(), 2)
            self.assertIn(word, process.output())
