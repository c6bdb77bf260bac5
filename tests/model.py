"""What each node should have at its own side, after whatever was done to it: a model of the rules, and a program that runs
random sequences against dispyadmin and compares.

    python3 -m tests.model --seed N --sequences M --steps K --shrink

Sequences run side by side in one dispyadmin, each at a fake node of its own. What fails is printed with its seed; with
--shrink, steps are left out as long as it still fails.
"""

import argparse
import copy
import itertools
import json
import os
import queue
import random
import shutil
import signal
import sys
import tempfile
import threading
import time

from . import lab, wire

DAY = 86400
TIMES = ('start', 'stop', 'end')
KEYS = ('cpus', 'serve') + TIMES
MAX_CPUS = 8                     # of each node
SETTLE_TIME = 40                 # seconds in which everything is as it should be, on a busy machine
AT_ONCE = 16                     # requests
ANY = 'any'                      # time
RESTART = 'dispyadmin'           # the step that all sequences take together


# ---- a fake dispynode that follows the rules of service times -----------------------------------------------------------


class Dispynode(wire.FakeNode):
    """A fake node with the service times of dispynode, which move by themselves, end its schedule, or end it.

    `zone`: seconds that its local time is ahead of this machine's. `used`: whether a client has ever used it. `lose`:
    ("after" or "before" it is taken, tag) of the next request that is lost. `slow`: seconds that
    each control takes. `told`: where it announces itself and its end. An immortal one does not exit.
    """

    def __init__(self, address, port, secret='', cpus=8, used=True, zone=0, told=None, immortal=False, **kwargs):
        self.zone, self.used, self.told, self.immortal = zone, used, told, immortal
        self.slow, self.lose, self.dead, self.exited = 0, None, False, False
        super().__init__(address, port, secret, cpus, **kwargs)
        self.info['clients_done'] = int(used)

    @property
    def managed(self):
        return self.info['cpus'] + self.info['busy']

    def manage(self, cpus):
        """What somebody else sets at its side."""
        self.info['cpus'] = cpus - self.info['busy']

    def jobs(self, busy):
        self.info.update(cpus=self.managed - busy, busy=busy)

    def seen(self):
        """{key: value} of what it has; times are seconds of the day of its clock."""
        found = {'cpus': self.managed, 'serve': self.info['serve']}
        found.update((key, self.of_day(self.info['service_' + key])) for key in TIMES)
        return found

    def of_day(self, at):
        return None if at is None else (at + self.offset(at)) % DAY

    def offset(self, at):
        return time.localtime(at).tm_gmtoff + self.zone

    def pause(self, tag):
        return 0 if tag == 'NODE_INFO' else self.slow

    def answer(self, tag, auth, value):
        self.schedule()
        lost = None
        if self.lose and self.lose[1] == tag:
            lost, self.lose = self.lose[0], None
        if lost == 'before':
            raise EOFError('the request is lost')
        answer = super().answer(tag, auth, value)
        if lost:
            raise EOFError('the reply is lost')
        return answer

    def outcome(self, tag, value):
        if tag != 'SERVICE_TIME':
            return super().outcome(tag, value)
        answer = self.control(value['control'], value['time'])
        if answer != -1:
            self.schedule()
        return answer

    def control(self, control, text):
        """The reply to a control of service times; as they stand before the schedule looks at them."""
        start, stop, end = (self.info['service_' + key] for key in TIMES)
        if control not in ('start_time', 'stop_time', 'end_time'):
            return -1
        if text == '0':
            at = None
        else:
            at = time.time()
            if text is not None:
                hours, minutes = map(int, text.split(':'))
                then = int(at) + self.offset(at)
                at = then - then % DAY + then % 60 + hours * 3600 + minutes * 60 - self.offset(at)
        if at and control == 'start_time':
            if (stop and stop < at) or (end and end < at):
                at -= DAY
        elif at and control == 'stop_time':
            if start and start > at:
                at += DAY
            if end and end < at:
                return -1
        elif at:
            if (start and start > at) or (stop and stop > at):
                at += DAY
        self.info['service_' + control[:-5]] = at
        return {'service_' + key: self.info['service_' + key] for key in TIMES}

    def schedule(self):
        """What its task does with the times before it sleeps again."""
        while not self.dead and not self.exited:
            start, stop, end = (self.info['service_' + key] for key in TIMES)
            soon = int(time.time()) + 60
            if start and start > soon or stop and stop > soon:
                return
            if stop and not self.used:
                self.dead = True             # an exception: nobody is there to be told
                return
            if end and end > soon:
                return
            if end:
                self.exit()
                return
            if not (start or stop):
                return
            for key in TIMES:
                if self.info['service_' + key]:
                    self.info['service_' + key] += DAY

    def exit(self):
        """End by itself, after the reply that is being made."""
        if self.immortal:
            return
        self.exited = True

        def end():
            if not self.closing and self.told:
                self.terminated(self.told)
            self.close()
        self.crowd.call_in(0.01, end)


# ---- the model ----------------------------------------------------------------------------------------------------------

class State:
    """One node as it should be: what it has at its side, and what dispyadmin shows of it.

    `want`: {key: (value, operation that set it)}. `drain`: None, or {had, then, by (the operation), returning}.
    `undos`: {operation: (action, {key: (what was there, what it made)}, what the node had)}.
    """

    def __init__(self):
        self.listed = self.added = self.alive = True
        self.locked = self.dead = False          # dead: its schedule is, so that it cannot be ended
        self.busy, self.waits = 0, False         # waits: what dispyadmin does by itself comes later
        self.has = dict(dict.fromkeys(KEYS), cpus=MAX_CPUS, serve=-1)
        self.want, self.drain, self.undos = {}, None, {}

    # --- rules ---

    @staticmethod
    def target(cpus):
        return MAX_CPUS if cpus == 'all' else cpus if cpus >= 0 else MAX_CPUS + cpus

    def on_return(self):
        """The CPUs that a drained node gets back."""
        return self.target(self.cpus_on_return())

    def cpus_on_return(self):
        return self.want['cpus'][0] if 'cpus' in self.want else self.drain['had']

    def obstacle(self):
        return 'unknown' if not self.listed else 'unreachable' if not self.alive else 'locked' if self.locked else None

    def settle(self):
        """What dispyadmin does by itself at a node that it reaches: it sees to drains."""
        if not self.drain or self.obstacle():
            return
        if not self.drain['returning']:
            self.has['cpus'] = 0
            if self.waits or self.busy or self.drain['then'] == 'stay':
                return
            if self.drain['then'] == 'end' and self.dead:
                self.drain['told'] = True        # to end, and once is enough
                self.has.update(dict.fromkeys(TIMES, ANY))
                return
        if self.drain['then'] == 'end' and not self.drain['returning']:
            self.alive = False
        else:
            self.has['cpus'] = self.on_return()
        self.drain = None

    def drifts(self):
        """Whether something is not as it was set, as far as the model knows."""
        for key, (value, _) in self.want.items():
            has = self.has[key]
            if key == 'cpus' and not self.drain and has != self.target(value):
                return True
            if key == 'serve' and has != value and not 0 <= has < value:
                return True
            if key in TIMES and (has is None if value == 'now' else not same(has, value)):
                return True
        return False

    # --- what is done: each returns the outcome that is expected ---

    def apply(self, number, name, *values):
        return getattr(self, 'do_' + name)(number, *values)

    def record(self, number, action, keys):
        self.undos[number] = action, keys, dict(self.has, cpus=self.drain['had'] if self.drain else self.has['cpus'])

    def set(self, number, key, value):
        """Record and remember a setting."""
        made = value, number
        self.record(number, key, {key: (self.want.get(key), made)})
        self.want[key] = made

    def do_cpus(self, number, cpus):
        if self.obstacle():
            return self.obstacle()
        if not 0 <= self.target(cpus) <= MAX_CPUS:
            return 'refused'
        self.set(number, 'cpus', cpus)
        if not self.drain:
            self.has['cpus'] = self.target(cpus)
        return 'done'

    def do_clients(self, number, clients):
        if self.obstacle():
            return self.obstacle()
        self.set(number, 'serve', clients)
        self.has['serve'] = clients
        return 'done'

    def do_drain(self, number, then):
        if self.obstacle():
            return self.obstacle()
        told = bool(self.drain and self.drain['then'] == then and self.drain.get('told'))
        made = {'had': self.drain['had'] if self.drain else self.has['cpus'], 'then': then, 'by': number,
                'returning': False, 'told': told}
        self.record(number, 'drain', {'drain': (self.drain, made)})
        self.drain = made
        self.settle()
        return 'done'

    def do_return(self, number):
        if not self.listed:
            return 'unknown'
        if not self.drain:
            return self.obstacle() or 'refused'
        made = dict(self.drain, returning=True, by=number)
        if self.obstacle():
            self.record(number, 'return', {'drain': (self.drain, made)})
            self.drain = made
            return 'pending'
        self.record(number, 'return', {'drain': (self.drain, None)})
        self.drain = made
        self.settle()
        return 'done'

    def do_accept(self, number):
        if not self.listed:
            return 'unknown'
        self.record(number, 'accept', {key: (had, None) for key, had in self.want.items()})
        self.want = {}
        return 'done'

    def do_reapply(self, number):
        if not self.listed:
            return 'unknown'
        if self.obstacle():
            return self.obstacle()
        if not self.want and not self.drain:
            return 'refused'
        self.restore(self.want)
        return 'done'

    def restore(self, keys):
        for key in keys:
            value = self.want[key][0]
            if key == 'cpus':
                self.has['cpus'] = 0 if self.drain else self.target(value)
            elif value != 'now' and not (key == 'serve' and 0 <= self.has['serve'] < value):
                self.has[key] = of_clock(value) if key in TIMES else value

    def do_forget(self, number):
        if not self.listed:
            return 'unknown'
        if self.drain:
            return 'refused'
        self.record(number, 'forget', {key: (had, None) for key, had in self.want.items()})
        self.listed = self.added = False
        self.want = {}
        return 'done'

    def do_add(self, number):
        if not self.alive:
            return 'unreachable'
        self.listed = self.added = True
        return 'done'

    def do_undo(self, number, of):
        if of not in self.undos:
            return 'error'
        action, keys, shown = self.undos[of]
        changed = {key: old for key, (old, made) in keys.items()
                   if mark(self.drain if key == 'drain' else self.want.get(key)) == mark(made)}
        if action == 'forget':
            return self.relist(number, of, changed)
        if action == 'relist':
            outcome = self.do_forget(number)
            if outcome == 'done':
                del self.undos[of]
            return outcome
        if not self.listed:
            return 'unknown'
        if not changed:
            return self.obstacle() or 'refused'
        if self.obstacle():
            return self.undo_later(number, of, changed)
        return self.undo_now(number, of, changed, shown, action)

    def relist(self, number, of, changed):
        del self.undos[of]
        self.listed, self.added = True, self.added or not self.listed     # it may have come back by itself
        self.record(number, 'relist', {key: (None, old) for key, old in changed.items()})
        self.want.update(changed)
        return 'done'

    def undo_later(self, number, of, changed):
        if changed.get('drain', 0) is not None:
            return self.obstacle()
        made = dict(self.drain, returning=True, by=number)
        self.record(number, 'undo', {'drain': (self.drain, made)})
        self.drain = made
        del self.undos[of]
        return 'pending'

    def undo_now(self, number, of, changed, shown, action):
        if self.drain and changed.get('cpus', ()) is None:   # it gets on its return what it had before
            changed['drain'] = dict(self.drain, had=shown['cpus'])
        keys = {key: (self.drain if key == 'drain' else self.want.get(key), None) for key in changed}
        del self.undos[of]
        self.record(number, 'undo', keys)
        for key, old in changed.items():
            if key == 'drain':
                if not old:
                    self.drain = dict(self.drain, returning=True)
                elif mark(old) != mark(self.drain):
                    self.drain = dict(old, by=number, returning=False)
                else:
                    self.drain = old
            elif old is None:
                del self.want[key]
            else:
                self.want[key] = (old[0], number)
        for key, old in changed.items():       # accepting sent nothing, so that its undo sends nothing
            keys[key] = keys[key][0], None if old is None else (self.drain if key == 'drain' else self.want[key])
            if key == 'drain' or action == 'accept':
                continue
            if old is not None and old[0] != 'now':
                self.restore([key])
                if key == 'serve':
                    self.has[key] = old[0]
            elif key != 'cpus' or not self.drain:
                self.has[key] = shown[key]
        self.settle()
        return 'done'

    # --- what happens to the node itself ---

    def restart(self, locked=False):
        self.alive, self.locked, self.busy = True, locked, 0
        self.dead = False
        self.has = dict(dict.fromkeys(KEYS), cpus=MAX_CPUS, serve=-1)
        self.has_ended()
        if not self.listed:
            self.listed, self.added = True, False
        self.settle()

    def has_ended(self):
        """A node that was told to end has CPUs: it was started again."""
        if self.drain and self.drain.get('told'):
            self.drain = None

    def restart_of_dispyadmin(self, known):
        """It remembers what is in its file, and no secret that was told to it."""
        self.undos = {}
        self.listed = self.listed and bool(self.added or self.want or self.drain)
        self.locked = self.locked or not known


def mark(value):
    """What makes a part of a desired record the same as another."""
    return None if value is None else (value['by'] if isinstance(value, dict) else value[1])


def of_clock(text):
    """HH:MM as seconds of the day."""
    return None if text is None else int(text[:2]) * 3600 + int(text[3:]) * 60


def same(has, value):
    """Whether a time of the day (seconds or HH:MM) is another one, to the minute."""
    if value == ANY:
        return True
    value = of_clock(value) if isinstance(value, str) else value
    if has is None or value is None:
        return has is value
    apart = (has - value) % DAY
    return min(apart, DAY - apart) <= 150


# ---- sequences ----------------------------------------------------------------------------------------------------------

def random_steps(seed, count):
    """A sequence of steps. They do not depend on what comes of those before, so that any may be left out."""
    rng = random.Random(seed)
    return [RESTART if number % 10 == 9 and number + 1 < count else random_step(rng) for number in range(count)]


def random_operation(rng):
    return rng.choice([
        lambda: ('cpus', rng.choice([0, 1, 2, 3, 5, 8, 9, -1, -3, -9, 'all'])), lambda: ('cpus', rng.randrange(9)),
        lambda: ('clients', rng.choice([-1, 0, 1, 7])), lambda: ('drain', rng.choice(['stay', 'stay', 'restore', 'end'])),
        lambda: ('return',), lambda: ('undo', rng.random()), lambda: ('undo', 0.999), lambda: ('reapply',),
        lambda: ('accept',)])()


def random_step(rng):
    choice = rng.random()
    if choice < 0.42:
        return random_operation(rng)
    if choice < 0.56:
        return ('service_time', rng.choice(TIMES), rng.choice(['now', None] + [rng.randrange(-60, 61) or 5] * 4))
    if choice < 0.68:
        return ('together', tuple(random_operation(rng) for _ in range(rng.choice((2, 2, 3)))), rng.choice((0, 0.05, 0.2)))
    if choice < 0.76:
        return ('lost', rng.choice(('before', 'after')), rng.choice([
            ('cpus', rng.randrange(10)), ('clients', rng.choice([-1, 0, 7])), ('drain', 'stay'), ('return',)]))
    return rng.choice([('forget',), ('add',), ('restart',), ('kill',), ('lock',), ('secret',), ('jobs', 0),
                       ('jobs', rng.randrange(3)), ('somebody', 'cpus', rng.randrange(9)), ('somebody', 'serve', 9)])


class Mismatch(AssertionError):
    """A node is not what it should be."""


class Sequence:
    """A node, what is done to it, and what it should be."""

    def __init__(self, world, seed, address):
        self.world, self.seed, self.address = world, seed, address
        self.other, self.secret_known = 'other-%d' % seed, False
        rng = random.Random(-1 - seed)
        self.used, self.zone = rng.random() < 0.7, rng.choice([0, 0, 0, 5 * 3600 + 1800, -8 * 3600])
        self.node, self.states, self.operations, self.log, self.failure = None, [State()], [], [], None
        self.ages = {}                           # operation -> how many there were before it, of all sequences
        self.start_node()

    def start_node(self, secret='open', port=None):
        self.node = Dispynode(self.address, self.world.port, secret, MAX_CPUS, self.used, self.zone, self.world.told,
                              name='n%d' % self.seed, crowd=self.world.crowd)

    def take_begin(self):
        result = self.world.post('nodes', {'host': self.address, 'port': self.world.port})['results'][0]
        if not result['ok']:
            raise Mismatch('not added: %s' % result)

    @property
    def state(self):
        """One of the states that are possible: they differ in what is remembered, not in what is there."""
        return self.states[0]

    def each(self, call):
        for state in self.states:
            call(state)

    def run(self, steps):
        """Take these steps, until one goes wrong."""
        try:
            for step in steps:
                self.log.append(step)
                self.each(lambda state: setattr(state, 'dead', self.node.dead))
                getattr(self, 'take_' + step[0], self.take)(*(step if not hasattr(self, 'take_' + step[0]) else step[1:]))
                self.compare()
        except Exception as error:
            self.failure = '%s: %s' % (type(error).__name__, error)

    # --- steps ---

    def chosen(self, operation):
        """The operation that is meant by a random number, for an undo."""
        if operation[0] != 'undo':
            return operation
        return 'undo', (self.operations or [1])[int(operation[1] * len(self.operations))]

    def request(self, operation, preview=False):
        """(number, result) of an operation; the result of one that is not accepted has the outcome "error"."""
        name, *values = operation
        body = {'cpus': lambda: {'cpus': values[0]}, 'clients': lambda: {'clients': values[0]},
                'drain': lambda: {'then': values[0]}, 'undo': lambda: {'operation': values[0]},
                'service_time': lambda: {'control': values[0], 'time': values[1]}}.get(name, dict)()
        if name == 'add':
            body = {'host': self.address, 'port': self.world.port}
        elif name != 'undo':
            body['nodes'] = [self.node.id]
        if preview:
            body['preview'] = True
        answer = self.world.request('nodes' if name == 'add' else name, body)
        if answer.status == 400:
            return None, {'outcome': 'error', 'ok': False, 'message': answer.json['error']}
        if answer.status != 200:
            raise Mismatch('%s: %d %s' % (operation, answer.status, answer.text))
        result, = answer.json['results']
        number = answer.json.get('operation')
        if number and not preview:
            self.ages[number] = self.world.count_operation()
            self.operations.append(number)
        return number, result

    def take(self, *operation):
        """One operation; its preview says the same."""
        operation, foreseen = self.chosen(operation), None
        if operation[0] not in ('add', 'undo'):
            _, foreseen = self.request(operation, True)
        number, result = self.request(operation)
        self.note(operation, result)
        left_out = 'Left out' in result['message']           # times that would end dispynode
        if left_out and not result['ok'] and operation[0] in ('undo', 'reapply'):
            return                               # and that was all
        if self.is_too_old(operation, result):
            return
        found, expected = [], set()
        for state in self.states:
            had = {key: state.has[key] for key in TIMES}
            outcome = state.apply(number, *operation)
            expected.add(outcome)
            if left_out:
                state.has.update(had)
            found += [state] if outcome == result['outcome'] else []
        self.states = found or self.states
        self.check_outcome(operation, expected, result)
        if foreseen and foreseen['ok'] != result['ok']:
            raise Mismatch('%s: the preview said %s, and then: %s' % (operation, foreseen, result))

    def is_too_old(self, operation, result):
        """Whether an operation cannot be undone as a thousand came after it."""
        return (operation[0] == 'undo' and 'any more' in result['message'] and
                self.world.operations - self.ages.get(operation[1], 0) > 900)

    def note(self, operation, result):
        self.log.append('    %s -> %s: %s' % (operation, result['outcome'], result['message']))

    def check_outcome(self, operation, expected, result):
        # A locked node of which something is known may refuse by that.
        alike = {'locked'} if self.state.obstacle() == 'locked' and result['outcome'] == 'refused' else set()
        if result['outcome'] not in expected and not alike & set(expected):
            raise Mismatch('%s: expected %s, got %s' % (operation, expected, result))

    def take_service_time(self, control, text):
        """Whether dispynode takes a time is its own affair; what is said, and what it has then, is the same."""
        if isinstance(text, int):                # in ten minutes from now, of its clock
            at = time.time() + text * 600
            minutes = int(self.node.of_day(at)) // 60
            text = '%02d:%02d' % (minutes // 60, minutes % 60)
        operation, obstacle = ('service_time', control, text), self.state.obstacle()
        _, foreseen = self.request(operation, True)
        exited = self.node.exited
        number, result = self.request(operation)
        self.note(operation, result)
        if (control, text) == ('end', 'now') and 'still runs' in result['message'] and self.node.dead and not obstacle:
            self.each(lambda state: state.has.update({key: self.node.seen()[key] for key in TIMES}))
            return
        if obstacle or not result['ok']:
            self.check_outcome(operation, [obstacle or 'refused'], result)
            if not obstacle and control != 'stop':
                raise Mismatch('%s: only a Stop is refused: %s' % (operation, result))
            return
        if (control, text) != ('end', 'now'):
            self.each(lambda state: state.set(number, control, text))
        if self.node.exited and not exited:
            self.each(lambda state: setattr(state, 'alive', False))
            if control != 'end':
                raise Mismatch('%s ended dispynode: %s' % (operation, result))
            if not foreseen['danger'] and not self.zone:
                raise Mismatch('%s: the preview does not warn: %s' % (operation, foreseen))
        elif (control, text) == ('end', 'now'):
            raise Mismatch('dispynode still runs: %s' % result)
        else:
            at = of_clock(text) if text != 'now' else self.node.of_day(time.time())
            self.each(lambda state: state.has.update({control: at}))

    def take_together(self, operations, slow):
        """Several at once: some order of them, one after the other, must have the same outcome."""
        operations = [self.chosen(operation) for operation in operations]
        operations = [operation for operation in operations if not self.has_times(operation)]
        results, self.node.slow = {}, slow
        threads = [threading.Thread(target=lambda i=i, operation=operation: results.update({i: self.request(operation)}))
                   for i, operation in enumerate(operations)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.node.slow = 0
        if len(results) < len(operations):
            raise Mismatch('a request failed')
        found = [results[i] for i in range(len(operations))]
        for operation, (number, result) in zip(operations, found):
            self.note(operation, result)
        self.states = self.possible(operations, found)

    def has_times(self, operation):
        """Whether an operation restores times, which dispynode may take or not."""
        undo = operation[0] == 'undo' and self.state.undos.get(operation[1])
        return bool(undo and set(undo[1]) & set(TIMES)) or operation[0] in ('reapply', 'accept') and bool(
            set(self.state.want) & set(TIMES))

    def possible(self, operations, found):
        """The states that the operations can have led to. What dispyadmin does by itself comes between them, or later."""
        states, old = [], [self.is_too_old(*pair) for pair in zip(operations, [result for _, result in found])]
        for before, order, waits in itertools.product(self.states, itertools.permutations(range(len(operations))),
                                                      (False, True)):
            state = copy.deepcopy(before)
            state.waits = waits
            outcomes = {i: state.apply(found[i][0], *operations[i]) for i in order if not old[i]}
            state.waits = False
            state.settle()
            if all(old[i] or fits(operations[i], outcomes[i], found[i][1]['outcome']) for i in order):
                for number, result in found:
                    if result['outcome'] not in ('done', 'pending'):
                        state.undos.pop(number, None)
                states.append(state)
        if not states:
            raise Mismatch('%s: no order has these outcomes: %s' % (operations, [result['outcome'] for _, result in found]))
        return list({repr(vars(state)): state for state in states}.values())

    def take_lost(self, when, operation):
        """The request, or the reply, is lost on its way; what the node shows then tells which."""
        self.node.lose = when, {'clients': 'SERVE_CLIENTS'}.get(operation[0], 'SET_CPUS')
        number, result = self.request(operation)
        self.note(('lost', when) + operation, result)
        was_lost, self.node.lose = self.node.lose is None, None
        for at, state in enumerate(self.states):
            before = copy.deepcopy(state)
            expected = state.apply(number, *operation)
            # dispyadmin goes on with it by itself
            if was_lost and operation[0] == 'return' and when == 'before' and state.has != before.has:
                expected, made = 'pending', dict(before.drain, returning=True, by=number)
                state.record(number, 'return', {'drain': (before.drain, made)})
            elif was_lost and (expected == 'refused' or when == 'before' and state.has != before.has):
                expected, self.states[at] = 'unreachable', before
            self.check_outcome(operation, [expected], result)

    def take_restart(self, secret='open'):
        self.node.close()
        self.start_node(secret)
        self.node.ping(self.world.told)
        self.each(lambda state: state.restart(secret != 'open' and not self.secret_known))

    def take_lock(self):
        self.take_restart(self.other)

    def take_kill(self):
        self.node.close()
        self.each(lambda state: setattr(state, 'alive', False))

    def take_secret(self):
        if self.seed % 10:                       # 32 secrets are taken in all
            return
        self.world.post('secret', {'secret': self.other})
        self.secret_known = True
        if self.node.secret == self.other:
            self.each(lambda state: (setattr(state, 'locked', False), state.settle()))

    def take_jobs(self, count):
        if self.state.alive:
            self.node.jobs(count)
            self.each(lambda state: (setattr(state, 'busy', count), state.settle()))

    def take_somebody(self, key, value):
        """Somebody sets it without dispyadmin."""
        if not self.state.alive:
            return
        if key == 'cpus':
            self.node.manage(value)
            if value:
                self.each(State.has_ended)
        else:
            self.node.info[key] = value
        self.each(lambda state: (state.has.update({key: value}), state.settle()))

    def dispyadmin_restarted(self):
        self.log.append(RESTART)
        self.secret_known = False
        self.each(lambda state: state.restart_of_dispyadmin(self.node.secret == 'open'))
        self.operations = self.operations[-2:]   # which must be refused

    # --- comparing ---

    def compare(self):
        """Wait until everything is as it should be, in one of the possible states."""
        def fitting():
            return [state for state in self.states if not self.differences(state, self.world.table)]
        if not self.world.wait_until(fitting, SETTLE_TIME):
            raise Mismatch('after %d s: %s; shown: %s' % (
                SETTLE_TIME, [self.differences(state, self.world.table) for state in self.states],
                self.world.table.get(self.node.id)))
        self.states = fitting() or self.states
        wanted = (self.world.table.get(self.node.id) or {}).get('wanted') or {}
        for state in self.states:
            for key, (value, number) in list(state.want.items()):
                if value == 'now':
                    state.want[key] = wanted.get('service_' + key, {'time': 'now'})['time'], number

    @staticmethod
    def as_wanted(key, fields, state):
        """Fields of what is wanted; "now" where an undo has set the time again that it was then."""
        value = state.want.get(key[len('service_'):], (None,))[0] if key.startswith('service_') else None
        if value == 'now' and fields['time'] not in (None, 'now') and same(state.has[fields['control']], fields['time']):
            return dict(fields, time='now')
        return fields

    def differences(self, state, table):
        """[(what, as it should be, as it is)]."""
        found, node, seen = [], table.get(self.node.id), self.node.seen()

        def check(what, expected, value):
            if expected != value:
                found.append((what, expected, value))
        if state.alive:
            for key in KEYS:
                if not (same(seen[key], state.has[key]) if key in TIMES else seen[key] == state.has[key]):
                    found.append(('%s at the node' % key, state.has[key], seen[key]))
        check('runs', state.alive, not self.node.closing)
        check('listed', state.listed, node is not None)
        if node is None or not state.listed:
            return found
        names = {'cpus': ('cpus', lambda value: {'cpus': value}), 'serve': ('serve', lambda value: {'clients': value})}
        names.update((key, ('service_' + key, lambda value, key=key: {'control': key, 'time': value})) for key in TIMES)
        check('wanted', {names[key][0]: names[key][1](value) for key, (value, _) in state.want.items()} or None,
              node['wanted'] and {key: self.as_wanted(key, fields, state) for key, fields in node['wanted'].items()})
        check('state', 'unreachable' if not state.alive else 'locked' if state.locked else None,
              node['state'] if node['state'] in ('unreachable', 'locked') else None)
        drain = node['drain']
        unknown = node['max_cpus'] is None and state.drain and (
            state.cpus_on_return() == 'all' or state.cpus_on_return() < 0)
        on_return = state.drain and (None if unknown else state.on_return())
        check('drain', state.drain and (state.drain['then'], on_return, state.drain['returning']),
              drain and (drain['then'], drain['restore'], drain['pending']))
        if not state.obstacle():
            check('cpus as shown', state.has['cpus'], node['cpus'])
            if not (self.node.dead or self.zone):
                check('drift', state.drifts(), bool(node['drift']))
        return found


def fits(operation, expected, outcome):
    """Whether an outcome is the one expected, where several operations are under way: what is intended is seen before it is
    done, and what was undone is known a moment later."""
    alike = {'reapply': ('done', 'refused', 'unreachable'), 'undo': ('refused', 'error'),
             'return': ('done', 'refused', 'unreachable', 'locked')}.get(operation[0], ())
    return expected == outcome or expected in alike and outcome in alike


class World:
    """One dispyadmin with --state, and all that sequences share."""

    def __init__(self, test=None):
        self.test = test or Alone()
        memory = '/dev/shm' if os.path.isdir('/dev/shm') else None   # a disk would be what all wait for
        self.folder = tempfile.mkdtemp(prefix='dispyadmin-model-', dir=memory)
        self.crowd = wire.Crowd()
        info_port, host = self.test.free_ports(), self.test.address()
        self.port, self.told = info_port + 1, (host, info_port)
        self.options = ['-i', host, '--info_port', info_port, '--node_port', self.port, '--poll_interval', 2,
                        '--secret', 'open', '--state', os.path.join(self.folder, 'state.json')]
        self.lock, self.operations = threading.Lock(), 0
        self.table, self.waiting = {}, []        # waiting: (time of its beginning, test, event)
        self.closing, self.admin = False, self.connect()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def close(self):
        self.closing = True
        self.watcher.join(5)
        self.hang_up()
        self.admin.close()
        self.crowd.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self):
        """Start dispyadmin; its connections are used again."""
        # With a name, as behind a proxy, it does not look through the kernel's connections at each request: thousands
        # to nodes have ended here, where the nodes are at the same machine.
        admin = lab.Admin(*self.options, '--http_name', 'model', env={'PYTHONDEVMODE': ''})
        self.connections = queue.LifoQueue()
        for _ in range(AT_ONCE):
            self.connections.put(None)
        return admin

    def request(self, path, body):
        connections = self.connections
        connection, fine = connections.get(), False
        try:
            connection = connection or self.admin.connection(130)
            connection.request('POST', '/api/' + path, json.dumps(body), {
                'Content-Type': 'application/json', 'Authorization': 'Bearer %s' % self.admin.token})
            answer = connection.getresponse()
            answer, fine = lab.Answer(answer.status, answer.headers, answer.read()), not answer.will_close
            return answer
        finally:
            if not fine and connection:
                connection.close()
            connections.put(connection if fine else None)

    def hang_up(self):
        while not self.connections.empty():
            connection = self.connections.get()
            if connection:
                connection.close()

    def post(self, path, body):
        answer = self.request(path, body)
        if answer.status != 200:
            raise Mismatch('%s %s: %d %s' % (path, body, answer.status, answer.text))
        return answer.json

    def count_operation(self):
        with self.lock:
            self.operations += 1
            return self.operations

    def watch(self):
        """Look at the table as long as somebody waits; one look, and one thread, for all."""
        while not self.closing:
            time.sleep(0.1)
            if not self.waiting:
                continue
            began = time.monotonic()
            try:
                self.table = self.admin.nodes()
            except (OSError, AssertionError):    # it is being restarted
                continue
            with self.lock:
                waiting, self.waiting = self.waiting, []
            for entry in waiting:
                if entry[0] < began and self.passes(entry[1]):
                    entry[2].set()
                else:
                    with self.lock:
                        self.waiting.append(entry)

    @staticmethod
    def passes(test):
        try:
            return test()
        except Exception:        # who waits asks again, and meets it
            return True

    def wait_until(self, test, seconds):
        """Whether a look at the table that begins from now on passes the test."""
        done = threading.Event()
        with self.lock:
            self.waiting.append((time.monotonic(), test, done))
        return done.wait(seconds)

    def restart(self, number):
        self.hang_up()
        self.admin.signal(number)
        self.admin.wait(30)
        self.check_log()
        self.admin.close()
        self.admin = self.connect()

    def check_log(self):
        output = self.admin.output()
        for word in ('Traceback', 'unexpected'):
            if word in output:
                at = output.index(word)
                raise Mismatch('in the log: %s' % output[max(0, at - 300):at + 3000])

    def run(self, seeds, steps):
        """Run these sequences side by side; those that failed. `steps`: {seed: its steps}."""
        sequences = [Sequence(self, seed, self.test.address()) for seed in seeds]
        self.together(sequences, lambda sequence: sequence.run([('begin',)]))
        most = max(map(len, steps.values()))
        cuts = sorted({at for each in steps.values() for at, step in enumerate(each) if step == RESTART})
        for first, last in zip([-1] + cuts, cuts + [most]):
            self.together(sequences, lambda sequence: sequence.run(steps[sequence.seed][first + 1:last]))
            if last < most:
                self.restart(signal.SIGTERM if cuts.index(last) % 2 else signal.SIGKILL)
                for sequence in sequences:
                    sequence.dispyadmin_restarted()
                self.together(sequences, lambda sequence: sequence.run([('nothing',)]))
        self.check_log()
        for sequence in sequences:
            sequence.node.close()
        return [sequence for sequence in sequences if sequence.failure]

    @staticmethod
    def together(sequences, call):
        threads = [threading.Thread(target=call, args=(sequence,)) for sequence in sequences if not sequence.failure]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


Sequence.take_nothing = lambda self: None


class Alone(lab.LabTest):
    """What a test gives to a World, for a program."""

    def __init__(self):
        super().__init__('free_ports')


def report(sequence):
    """What was done, and what went wrong."""
    log = '\n  '.join(map(str, sequence.log))
    return 'seed %d (used %s, zone %s): %s\n  %s' % (sequence.seed, sequence.used, sequence.zone, sequence.failure, log)


def run_once(seeds, steps):
    world = World()
    try:
        return world.run(seeds, steps)
    finally:
        world.close()


def shrink(sequence, steps):
    """Leave out steps as long as it still fails; the shortest Sequence that was found."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size:]
            failed = run_once([sequence.seed], {sequence.seed: fewer}) if fewer else []
            if failed:
                sequence, steps = failed[0], fewer
            else:
                at += size
        size //= 2
    return sequence


def main():
    parser = argparse.ArgumentParser(prog='python3 -m tests.model', description=__doc__.splitlines()[0])
    parser.add_argument('--seed', type=int, default=1, help='of the first sequence; the others follow')
    parser.add_argument('--sequences', type=int, default=300)
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument("--shrink", action="store_true")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.sequences)
    steps = {seed: random_steps(seed, options.steps) for seed in seeds}
    failed = run_once(seeds, steps)
    for sequence in failed:
        print(report(shrink(sequence, steps[sequence.seed]) if options.shrink else sequence), flush=True)
    print('%d of %d sequences failed' % (len(failed), len(seeds)))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
