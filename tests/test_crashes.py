"""dispyadmin is killed at random moments of operations that run, and started again on its state file: each node has what the
last answered operation set, or is shown as drained with what it will get back. None is at 0 CPUs without a drain."""

import collections
import json
import os
import random
import signal
import threading
import time

from . import environment, lab, model, wire

MOMENTS = 200                    # at which dispyadmin is killed, in all
WORLDS = 8                       # dispyadmins at the same time
NODES = 4                        # of each
LONGEST = 0.5                    # seconds from the request to the signal
SLOW = (0, 0, 0.01, 0.05, 0.2)   # seconds that a control takes at a node
SETTLE_TIME = 40                 # seconds until all is as it should be after a start, on a machine that is busy
# A script is compiled at each start, a module is not.
LAUNCH = 'import sys\nsys.path.insert(0, %r)\nimport dispyadmin\nsys.exit(dispyadmin.main())\n'


class Expected(collections.namedtuple('Expected', 'has wanted drained')):
    """A node as it should be: the CPUs that it has (had, where it is drained), those that are set, whether it is drained."""

    __slots__ = ()

    @property
    def target(self):
        """The CPUs that it has when it is not drained."""
        return self.has if self.wanted is None else self.wanted

    def after(self, name, value=None, before=None):
        """What an operation makes of it; `before` is what it was before the one that is undone, whose name is `value`."""
        if name == 'cpus':
            return self._replace(wanted=value, has=self.has if self.drained else value)
        if name == 'drain':
            return self._replace(drained=True)
        if name == 'return':
            return self._replace(drained=False, has=self.target if self.drained else self.has)
        if value == 'cpus':
            return self._replace(wanted=before.wanted, has=self.has if self.drained else before.target)
        return before if self.drained != before.drained else self


class World:
    """One dispyadmin after the other on one state file, and its nodes."""

    def __init__(self, test, seed, crowd, script):
        self.rng, self.script, self.log = random.Random(seed), script, []
        self.state = os.path.join(test.folder(), 'state.json')
        info_port, host = test.free_ports(), test.address()
        self.options = ['-i', host, '--info_port', info_port, '--node_port', info_port + 1, '--poll_interval', 1, '--secret',
                        'open', '--state', self.state]
        self.nodes = [model.Dispynode(test.address(), info_port + 1, 'open', name='n%d' % number, crowd=crowd)
                      for number in range(NODES)]
        self.expected = {node.id: Expected(model.MAX_CPUS, None, False) for node in self.nodes}
        self.admin = self.last = None            # last: (number, name, what was expected before) of what can be undone

    def launch(self):
        self.admin, self.last = lab.Admin(*self.options, script=self.script, env={'PYTHONDEVMODE': ''}), None

    def add(self):
        self.launch()
        for node in self.nodes:
            assert self.admin.add(node)['ok'], self.admin.output()
        lab.wait_for(lambda: set(self.kept()) == set(self.expected), what='the nodes are written down')

    def choose(self):
        """(name, value, body of the request, ids of its nodes) of an operation."""
        name = self.rng.choice(['cpus', 'drain', 'drain', 'return', 'return', 'undo'])
        ids = self.rng.sample(sorted(self.expected), self.rng.randrange(1, NODES + 1))
        if name == 'undo' and self.last:
            return 'undo', self.last[1], {'operation': self.last[0]}, sorted(self.last[2])
        cpus = self.rng.randrange(1, model.MAX_CPUS)
        return ('drain', None, {'nodes': ids, 'then': 'stay'}, ids) if name in ('undo', 'drain') else (
            'cpus', cpus, {'nodes': ids, 'cpus': cpus}, ids) if name == 'cpus' else ('return', None, {'nodes': ids}, ids)

    def foreseen(self, name, value, ids):
        """{id: Expected} after an operation."""
        before = self.last[2] if name == 'undo' else {}
        return {node_id: self.expected[node_id].after(name, value, before.get(node_id)) for node_id in ids}

    def operate(self):
        """An operation that is answered."""
        name, value, body, ids = self.choose()
        after = self.foreseen(name, value, ids)
        self.log.append((name, body))
        answer = self.admin.request('POST', '/api/' + name, body)
        if answer.status == 400:                 # there is nothing to undo
            assert name == 'undo', answer.text
            return
        assert answer.status == 200, answer.text
        for result in answer.json['results']:
            assert result['outcome'] == 'done' or result['outcome'] == 'refused' and name in ('return', 'undo'), result
        self.last = answer.json['operation'], name, {node_id: self.expected[node_id] for node_id in ids}
        self.expected.update(after)
        if name == 'undo':
            self.last = None
        for node_id in ids:
            self.check(node_id, [self.expected[node_id]])

    def check(self, node_id, allowed):
        """Wait until a node is one of these, at its side and as shown; which."""
        node = next(node for node in self.nodes if node.id == node_id)

        def fits():
            shown = self.seen = self.admin.node(node_id)
            if not shown or shown['state'] not in ('ready', 'stopped') or shown['drain'] and shown['drain']['pending']:
                return None
            wanted = (shown['wanted'] or {}).get('cpus', {}).get('cpus')
            for expected in allowed:
                if expected.drained != bool(shown['drain']) or node.managed != shown['cpus']:
                    continue
                if expected.drained and node.managed == 0 and shown['drain']['restore'] == expected.target:
                    return expected
                if not expected.drained and node.managed == expected.has:
                    return expected._replace(wanted=wanted)       # it may be written down, and not yet sent
            return None
        return lab.wait_for(fits, SETTLE_TIME, lambda: '%s is one of %s; it has %d CPUs, and is shown as %s' % (
            node_id, allowed, node.managed, self.seen))

    def crash(self):
        """An operation in the middle of which dispyadmin is killed; what it was."""
        name, value, body, ids = self.choose()
        after, answers = self.foreseen(name, value, ids), []
        moment = self.rng.random() ** 2 * LONGEST
        number = self.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])

        def ask():
            try:
                answers.append(self.admin.request('POST', '/api/' + name, body).status)
            except (OSError, lab.http.client.HTTPException):
                pass
        self.log.append((number.name, moment, name, body))
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(moment)
        is_answered = answers == [200]
        self.admin.signal(number)
        self.admin.wait(30)
        thread.join()
        output = self.admin.output()
        assert 'Traceback' not in output and 'unexpected' not in output, output
        self.admin.close()
        time.sleep(max(SLOW) + 0.1)              # what was sent arrives
        self.check_file()
        return {node_id: [after[node_id]] if is_answered else [after[node_id], self.expected[node_id]] for node_id in ids}

    def kept(self):
        with open(self.state) as file:
            return json.load(file)['nodes']

    def check_file(self):
        """Whoever is at 0 CPUs is drained, and will get what can be."""
        kept = self.kept()
        for node in self.nodes:
            drain = kept[node.id]['drain']
            assert node.managed or drain, '%s is at 0 CPUs, and nothing is written of it' % node.id
            assert not drain or drain['had'], drain

    def live(self):
        """Start, look whether all is as it should be, do something, and be killed in the middle of more."""
        for node in self.nodes:
            node.slow = self.rng.choice(SLOW)
        for _ in range(self.rng.randrange(3)):
            self.operate()
        allowed = self.crash()
        self.launch()
        for node_id in self.expected:
            self.expected[node_id] = self.check(node_id, allowed.get(node_id, [self.expected[node_id]]))


class Crashes(lab.LabTest):
    def test_random_moments(self):
        crowd = self.start(wire.Crowd)
        script = self.write(LAUNCH % environment.ROOT, 'launch.py')
        worlds, failures = [World(self, seed, crowd, script) for seed in range(WORLDS)], []

        def run(world):
            try:
                world.add()
                for _ in range(MOMENTS // WORLDS):
                    world.live()
            except Exception as error:
                failures.append('%s: %s\n%s' % (type(error).__name__, error, '\n'.join(map(str, world.log[-12:]))))
            finally:
                world.admin.close()
        threads = [threading.Thread(target=run, args=(world,)) for world in worlds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for node in [node for world in worlds for node in world.nodes]:
            node.close()
        self.assertEqual(failures, [], '\n\n'.join(failures))
