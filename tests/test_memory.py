"""What the journal, plans, events and forgotten nodes keep has a bound, and that is the one that stands at the constants."""

import collections
import gc
import itertools
import re
import sys
import types
import unittest

import dispyadmin
from dispyadmin import (Actor, Change, DrainStep, ForgetStep, Journal, Plan, SetClients, SetCpus, SetServiceTime, SetStep,
                        Turn)

from . import environment

LONG_ID = '[fd77:1::%d:5678:%d:def0:%d]:9701'
MOST_OF_SETTING = 500            # bytes: a Setting that nothing but an undo keeps
MOST_OF_PLAN = 2000              # bytes: a plan, its event and its step
BY = Actor('127.0.0.1', 'root')
INFO = dispyadmin.NO_INFO._replace(cpus=8, max_cpus=8, busy=0, serve=-1, name='node', service_start=1.7e9,
                                   service_stop=1.7e9)


def told(constant):
    """Bytes that the comment at a constant of the module says are kept, at most: what stands before "bytes", multiplied."""
    with open(environment.SCRIPT, encoding='utf-8') as file:
        product = re.search(r'^%s = .*?#.*?([0-9 *]+) bytes' % constant, file.read(), re.MULTILINE).group(1)
    bytes_ = 1
    for factor in product.split('*'):
        bytes_ *= int(factor)
    return bytes_


def ids(count, form='10.%d.%d.%d:9701'):
    """Ids as a request brings them: no two are one object."""
    return [form % (i >> 16, i >> 8 & 255, i & 255) for i in range(count)]


def size(*roots):
    """The bytes of these objects and of all that they keep, but classes, functions and modules."""
    found, left, most = 0, list(roots), set()
    no_data = type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType
    while left:
        each = left.pop()
        if id(each) not in most and not isinstance(each, no_data):
            most.add(id(each))
            found += sys.getsizeof(each)
            left += gc.get_referents(each)
    return found


class Memory(unittest.TestCase):
    def run_plan(self, journal, step, nodes, after=INFO):
        """What is kept when the runner has done a step at nodes, which all took it."""
        plan = Plan(journal.number(), step, nodes, BY)
        journal.begin(plan)
        for node_id in plan.ids:
            turn = Turn(plan, node_id, None)
            seen = dispyadmin.Seen(node_id, INFO, dispyadmin.OWN_CLOCK, 1.7e9, {})
            turn.before, turn.edit = INFO, step.intend(seen, plan.number)
            seen = seen._replace(desired=dispyadmin.merged({}, turn.edit))
            for setting in step.choose(seen, turn.edit)[0] if step.asks_node else ():
                if setting.key in turn.edit:
                    turn.edit[setting.key] = setting.of(plan.number, float(len(node_id)))
            message = plan.share(step.describe(INFO, seen, ()) + ' ')
            journal.change(plan, Change(node_id, 'done', 8, 4, message, turn.undo(after)))
        journal.end(plan)
        return plan

    @staticmethod
    def steps():
        return [SetStep(SetCpus(4)), SetStep(SetClients(4)), SetStep(SetServiceTime('stop', '12:00')), DrainStep(BY)]

    def test_operations(self):
        """60 operations on 5,000 nodes, and many more: what is kept is bounded by the changes, and does not grow."""
        kept = []
        for count in (60, 75):
            journal = Journal()
            for step, _ in zip(itertools.cycle(self.steps()), range(count)):
                self.run_plan(journal, step, ids(5000))
            self.assertEqual(sum(len(plan.changes) for plan in journal.plans()), dispyadmin.MAX_CHANGES)
            kept.append(size(journal))
            self.assertLess(kept[-1], told('MAX_CHANGES'))
        self.assertLess(kept[1], kept[0] * 1.05)

    def test_each_step(self):
        """What one change takes, at most: the caps hold for each kind of step."""
        each = told('MAX_CHANGES') / dispyadmin.MAX_CHANGES
        for step in self.steps():
            with self.subTest(step=step.title):
                journal = Journal()
                self.run_plan(journal, step, ids(5000))
                self.assertLess(size(journal) / 5000, each)

    def test_what_was_set_is_kept_to_be_undone(self):
        """Accepting keeps the settings of a node that nothing else keeps then: five at most."""
        base = [SetCpus(4), SetClients(4)] + [SetServiceTime(control, '12:00') for control in dispyadmin.SERVICE_TIMES]
        journal = Journal()
        plan = Plan(journal.number(), dispyadmin.AcceptStep(), ids(5000), BY)
        journal.begin(plan)
        for number, node_id in enumerate(plan.ids):
            desired = {setting.key: setting.of(plan.number - 1, 1.7e9 + number) for setting in base}
            turn = Turn(plan, node_id, None)
            turn.before, turn.replaced = INFO, desired
            turn.edit = plan.step.intend(dispyadmin.Seen(node_id, INFO, dispyadmin.OWN_CLOCK, 1.7e9, desired), plan.number)
            journal.change(plan, Change(node_id, 'done', None, None, plan.share('Keeps them.'), turn.undo(None)))
        journal.end(plan)
        each = told('MAX_CHANGES') / dispyadmin.MAX_CHANGES
        self.assertLess(size(journal) / 5000, each + len(base) * MOST_OF_SETTING)

    def test_forgets(self):
        """1,000 forgets at once are one event and one plan; one by one they are a thousand small ones."""
        journal = Journal()
        self.run_plan(journal, ForgetStep(), ids(1000))
        self.assertEqual([(event.count, len(event.nodes)) for event in journal.events()],
                         [(1000, dispyadmin.MAX_EVENT_NODES)])
        self.assertLess(size(journal), 1000 * told('MAX_CHANGES') / dispyadmin.MAX_CHANGES)
        journal = Journal()
        for node_id in ids(2000):
            self.run_plan(journal, ForgetStep(), [node_id])
        self.assertEqual((len(journal.events()), len(journal.plans())), (dispyadmin.MAX_EVENTS, dispyadmin.MAX_EVENTS))
        self.assertLess(size(journal), dispyadmin.MAX_EVENTS * MOST_OF_PLAN)

    def test_events(self):
        """As many as are kept, each with as many ids as it keeps, which nothing else keeps."""
        times = itertools.count(0, 10)
        journal = Journal(clock=lambda: float(next(times)))
        for number in range(dispyadmin.MAX_EVENTS + 100):
            journal.record('lost', ids(2 * dispyadmin.MAX_EVENT_NODES, LONG_ID), 'node%d does not answer.' % number)
        self.assertEqual(len(journal.events()), dispyadmin.MAX_EVENTS)
        self.assertLess(size(journal), told('MAX_EVENT_NODES'))
        journal = Journal(clock=lambda: 1000.0)   # the same of all nodes within a moment is one
        for node_id in ids(20000):
            journal.record('lost', [node_id], 'It does not answer.')
        self.assertEqual([(event.count, len(event.nodes)) for event in journal.events()],
                         [(20000, dispyadmin.MAX_EVENT_NODES)])
        self.assertLess(size(journal), 100 * dispyadmin.MAX_EVENT_NODES + MOST_OF_PLAN)

    def test_forgotten(self):
        nothing = types.SimpleNamespace(forget=lambda node_id: True, remove=lambda node_id: None)
        admin = types.SimpleNamespace(forgotten=collections.OrderedDict(), table=nothing, history=nothing,
                                      _unschedule=lambda node_id: None)
        for node_id in ids(2 * dispyadmin.MAX_FORGOTTEN, LONG_ID):
            dispyadmin.Admin.forget(admin, node_id)
        self.assertEqual(len(admin.forgotten), dispyadmin.MAX_FORGOTTEN)
        self.assertLess(size(admin.forgotten), told('MAX_FORGOTTEN'))
