"""What administrators do, and what becomes of it: outcomes, preview, undo, events, drift, drains, groups, the state file."""

import concurrent.futures
import getpass
import json
import math
import os
import re
import time
import unittest
from unittest import mock

import dispyadmin
from dispyadmin import (Actor, Change, Group, InputError, Journal, NodeClock, NodeTable, Plan, Seen, SetClients, SetCpus,
                        SetServiceTime, SetStep)

from . import lab
from .test_jobs import JobsTest
from .test_table import info

DAY = 86400


def seen(shown, clock_, ours):
    return Seen('10.0.0.1:9701', shown, clock_, ours, {})


def clock(seconds):
    return time.strftime('%H:%M', time.localtime(seconds))


class Values(unittest.TestCase):
    def test_zones(self):
        noon = 1767182400.0                          # 2025-12-31 12:00 UTC
        for clock_, hours in (('12:00', 0), ('13:00', 1), ('17:30', 5.5), ('23:00', 11), ('02:00', 14), ('04:00', -8)):
            zone = dispyadmin.zone_of(clock_, noon + 31)
            self.assertEqual(zone, hours * 3600, clock_)
            self.assertEqual(NodeClock(zone, None).clock(noon), clock_)
            self.assertEqual(NodeClock(zone, None).clock(NodeClock(zone, 7200).today(clock_, noon - 3600)), clock_)

    def test_moments(self):
        """A time has its day where that is not today at the node."""
        noon = 1767182400.0                          # Wednesday
        clock_ = NodeClock(int(5.5 * 3600), None)
        for seconds, words in ((noon, '17:30'), (noon + 6.4 * 3600, '23:54'), (noon + 6.6 * 3600, 'tomorrow 00:06'),
                               (noon - 20 * 3600, 'yesterday 21:30'), (noon + 3 * DAY, 'Sat 17:30'),
                               (noon + 30 * DAY, '2026-01-30 17:30'), (None, 'none')):
            self.assertEqual(clock_.moment(seconds, noon), words)
        self.assertEqual(NodeClock(0, 12 * 3600).moment(noon, noon), 'yesterday 12:00')       # its clock is ahead

    def test_drift_of_cpus(self):
        for cpus, now, drifted in ((4, 4, False), (4, 8, True), ('all', 8, False),
                                   ('all', 7, True), (-2, 6, False), (-2, 8, True)):
            text = SetCpus(cpus).drift(seen(info(cpus=now, max_cpus=8), dispyadmin.OWN_CLOCK, 0))
            self.assertEqual(text is not None, drifted, (cpus, now, text))

    def test_drift_of_clients(self):
        for clients, now, drifted in ((-1, -1, False), (-1, 0, True), (0, 0, False), (0, -1, True), (5, 5, False),
                                      (5, 2, False), (5, -1, True), (5, 6, True)):
            text = SetClients(clients).drift(seen(info(serve=now), dispyadmin.OWN_CLOCK, 0))
            self.assertEqual(text is not None, drifted, (clients, now, text))

    def test_drift_of_times(self):
        zone = int(5.75 * 3600)                      # of no machine that runs this, likely
        clock_ = NodeClock(zone, None)
        now = 20000 * DAY + 12 * 3600 - zone         # noon there
        six = now + 6 * 3600
        wanted = SetServiceTime('stop', '18:00').of(1, six)
        for shown, words in ((six, None), (six + DAY, None), (six - 3600, None), (None, 'none, should be 18:00'),
                             (six - 7200, '16:00, should be 18:00'), (six - DAY, 'stand still'),
                             (six - 9 * DAY, 'stand still')):
            text = wanted.drift(seen(info(service_stop=shown), clock_, now))
            self.assertEqual(text is None, words is None, (shown, text))
            self.assertIn(words or '', text or '')
        over = seen(info(service_stop=six), clock_, six + 3600)         # but it is still the same day
        self.assertIsNone(wanted.drift(over))
        cleared = SetServiceTime('end', None)
        self.assertIsNone(cleared.drift(seen(info(), clock_, now)))
        self.assertIn('should be cleared', cleared.drift(seen(info(service_end=six), clock_, now)))

    def test_drift_by_summer_time(self):
        """dispynode moves its times by 24 hours a day: an hour apart is drift where the node's zone is known to be ours."""
        now = 20000 * DAY + 12 * 3600
        ours = dispyadmin.own_zone(now)
        six = now - (now + ours) % DAY + 18 * 3600
        wanted = SetServiceTime('stop', '18:00').of(1, six)
        later = seen(info(service_stop=six + 3600), NodeClock(ours, None), now)
        self.assertIn('19:00, should be 18:00', wanted.drift(later))
        self.assertIsNone(wanted.drift(seen(info(service_stop=six), NodeClock(ours, None), now)))

    def test_groups(self):
        group = Group('rack1', ['10.1.0.0/16', 'gpu*', '192.168.0.7', 'fd00::/8'])
        for address, name, inside in (('10.1.2.3', None, True), ('10.2.0.1', 'x', False), ('10.2.0.1', 'GPU-3', True),
                                      ('192.168.0.7', '', True), ('fd00::1', None, True), ('fe80::1%eth0', None, False)):
            self.assertEqual(group.has(address, name), inside, (address, name))

    def test_state_that_makes_no_sense(self):
        node = {'added': True, 'wanted': {}, 'drain': None, 'zone': None}
        good = {'dispyadmin': 1, 'forgotten': ['10.0.0.1:9701'], 'nodes': {'10.0.0.2:9701': node}}       # of version 1.0
        self.assertEqual(len(dispyadmin.parse_state(json.dumps(good).encode())[0]), 1)
        drain = {'since': 1.0, 'then': 'end', 'restore': 4, 'idle': None, 'by': 'root'}
        for change in ({'dispyadmin': 2}, {'forgotten': ['nowhere']}, {'forgotten': 7}, {'nodes': []},
                       {'nodes': {'x': node}},
                       {'nodes': {'10.0.0.2:9701': {}}},
                       {'nodes': {'10.0.0.2:9701': dict(node, zone='x')}},
                       {'nodes': {'10.0.0.2:9701': dict(node, wanted={'cpus': {'action': 'x', 'asked': {}, 'value': 1}})}},
                       {'nodes': {'10.0.0.2:9701': dict(
                           node, wanted={'cpus': {'action': 'cpus', 'asked': {'cpus': 'x'}, 'value': 1}})}},
                       {'nodes': {'10.0.0.2:9701': dict(
                           node, wanted={'serve': {'action': 'cpus', 'asked': {'cpus': 1}, 'value': 1}})}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, then='x'))}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, restore='x'))}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, since=math.nan))}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, idle={}))}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, by=['root']))}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, by='\x1b[2J'))}},
                       {'nodes': {'10.0.0.2:9701': dict(
                           node, wanted={'cpus': {'action': 'cpus', 'asked': {'cpus': 1}, 'value': math.inf}})}},
                       {'nodes': {'10.0.0.2:9701': dict(node, drain=dict(drain, more=1))}}):
            with self.subTest(change), self.assertRaises((ValueError, KeyError, TypeError, AttributeError, InputError)):
                dispyadmin.parse_state(json.dumps(dict(good, **change)).encode())


class JournalTest(unittest.TestCase):
    BY = Actor('console', 'anna', None)

    def plan(self, journal, ids):
        plan = Plan(journal.number(), SetStep(SetCpus(1)), ids, self.BY)
        journal.begin(plan)
        undo = dispyadmin.Undo((('cpus', None, SetCpus(1)),), (('cpus', 2),))
        return plan, [Change(node_id, 'done', 2, 1, '', undo) for node_id in ids]

    def end(self, journal, plan, changes):
        for change in changes:
            journal.change(plan, change)
        journal.end(plan)

    def test_numbers_are_not_given_again(self):
        first = Journal(lambda: 1000.0)
        numbers = [first.number() for _ in range(100)]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertGreater(Journal(lambda: 1001.0).number(), numbers[-1])

    def test_bounded(self):
        """The oldest that are over go; one that runs stays, however long it takes."""
        journal = Journal()
        running, changes = self.plan(journal, ['10.0.0.1:9701'])
        for _ in range(2 * dispyadmin.MAX_EVENTS):
            self.end(journal, self.plan(journal, [])[0], [])
        self.assertLessEqual(len(journal.plans()), dispyadmin.MAX_EVENTS + 1)
        self.assertIs(journal.plan(running.number), running)
        large = ['10.%d.%d.%d:9701' % (i >> 16, i >> 8 & 255, i & 255) for i in range(dispyadmin.MAX_CHANGES)]
        self.end(journal, *self.plan(journal, large))
        self.end(journal, *self.plan(journal, large))
        self.assertLessEqual(sum(len(plan.changes) for plan in journal.plans()), dispyadmin.MAX_CHANGES)
        self.end(journal, running, changes)
        self.assertEqual(journal.plans()[-1], running)

    def test_what_was_set_by_two_at_once(self):
        """Neither loses what the other set."""
        table = NodeTable()
        table.add('10.0.0.1', 9701)
        keys = ['key%d' % number for number in range(100)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: table.edit('10.0.0.1:9701', {key: SetCpus(1)}), keys))
        self.assertEqual(sorted(table.look('10.0.0.1:9701').desired), sorted(keys))


class OperationsTest(JobsTest):
    def cluster(self, count=2, *options, **kwargs):
        nodes = self.together(*[lambda: self.node('open', **kwargs)] * count)
        admin = self.admin('--secret', 'open', *options)
        for node in nodes:
            admin.wait_node(node, state='ready')
        return admin, nodes

    def post(self, admin, path, nodes, **values):
        """The whole answer to a control of nodes."""
        return admin.post('/api/' + path, dict(values, nodes=[node.id for node in nodes]))

    def events(self, admin, kind):
        return [event for event in admin.get('/api/events')['events'] if event['kind'] == kind]


class Outcomes(OperationsTest):
    def test_events_tell_who_did_what(self):
        admin, (first, second) = self.cluster()
        other = self.fake('other')
        admin.add(other)
        machine = first.info()['max_cpus']
        answer = self.post(admin, 'cpus', [first, second, other], cpus=1)
        event = self.events(admin, 'action')[0]
        self.assertEqual((event['action'], event['asked'], event['operation']), ('cpus', {'cpus': 1}, answer['operation']))
        self.assertEqual(event['by'], {'address': '127.0.0.1', 'user': getpass.getuser(), 'via': None})
        self.assertEqual(event['outcomes'], {'done': 2, 'locked': 1})
        changes = {change['id']: change for change in event['changes']}
        self.assertEqual((changes[first.id]['before'], changes[first.id]['after']), (machine, 1))
        self.assertIsNone(changes[other.id]['after'])
        line = [line for line in admin.err if '"action": "cpus"' in line][-1]
        said = json.loads(line[line.index('{'):])
        self.assertEqual((said['user'], said['done'], said['locked'], said['count']), (getpass.getuser(), 2, 1, 3))
        self.assertEqual({event['kind'] for event in admin.get('/api/events')['events']}, {'found', 'action'})

    def test_events_of_nodes(self):
        admin, (node,) = self.cluster(1)
        node.kill()
        admin.wait_node(node, state='unreachable')
        self.assertEqual(self.events(admin, 'lost')[0]['nodes'], [node.id])
        again = self.node('open', address=node.address)
        admin.wait_node(again, state='ready', timeout=20)
        self.assertEqual(self.events(admin, 'restarted')[0]['nodes'], [node.id])
        times = [event['time'] for event in admin.get('/api/events')['events']]
        self.assertEqual(times, sorted(times, reverse=True))

    def test_many_nodes_found_at_one_time_are_one_event(self):
        admin = self.admin('--secret', 'open')
        nodes = [self.fake('open') for _ in range(30)]
        for node in nodes:
            node.ping(self.info_target())
        lab.wait_for(lambda: admin.get('/api/nodes')['totals']['ready'] == 30, what='all are there')
        found = self.events(admin, 'found')
        self.assertLess(len(found), 6)
        self.assertEqual({node_id for event in found for node_id in event['nodes']}, {node.id for node in nodes})

    def test_progress(self):
        """While a node keeps all waiting, those that are done are counted."""
        admin, nodes = self.cluster(2)
        silent = self.fake('open')
        admin.add(silent)
        silent.mode = 'silent'
        with lab.concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.post, admin, 'cpus', nodes + [silent], cpus=1, label='mine')

            def found():
                running = [o for o in admin.get('/api/operations')['operations'] if o['label'] == 'mine']
                return running and running[0]['done'] == 2 and not running[0]['ended'] and running[0]
            self.assertEqual(lab.wait_for(found, what='two of three are done')['nodes'], 3)
            self.assertEqual(future.result()['results'][2]['outcome'], 'unreachable')

    def test_preview_asks_no_node(self):
        admin, (node, one) = self.cluster()
        self.post(admin, 'cpus', [one], cpus=1)
        other = self.fake('other')
        admin.add(other)
        machine = node.info()['max_cpus']
        results = self.post(admin, 'cpus', [node, one, other], cpus=1, preview=True)['results']
        self.assertEqual([(r['ok'], r.get('before'), r.get('after'), r.get('same')) for r in results],
                         [(True, machine, 1, False), (True, 1, 1, True), (False, None, None, None)])
        self.assertEqual(node.managed(), machine)
        result, = self.post(admin, 'cpus', [node], cpus=99, preview=True)['results']
        self.assertIn('has %d CPUs' % machine, result['message'])
        results = self.post(admin, 'service_time', [node], control='stop', time='18:00', preview=True)['results']
        self.assertEqual((results[0]['before'], results[0]['after']), (None, '18:00'))

    def test_bad_requests(self):
        admin, (node,) = self.cluster(1)
        for path, body, word in (('cpus', {'nodes': [node.id], 'cpus': 1, 'preview': 'yes'}, 'preview'),
                                 ('cpus', {'nodes': [node.id], 'cpus': 1, 'label': 'a b'}, 'label'),
                                 ('cpus', {'cpus': 1}, 'nodes'), ('cpus', {'group': 'x', 'cpus': 1}, 'group'),
                                 ('undo', {'operation': 999}, 'operation'), ('undo', {'operation': 'x'}, 'operation'),
                                 ('drain', {'nodes': [node.id], 'then': 'x'}, 'then'),
                                 ('drain', {'nodes': [node.id], 'note': 7}, 'note'),
                                 ('drain', {'nodes': [node.id], 'note': 'a\nb'}, 'note')):
            with self.subTest(body):
                answer = admin.request('POST', '/api/' + path, body)
                self.assertEqual(answer.status, 400)
                self.assertTrue(answer.json['error'].startswith(word), answer.json)


class Undo(OperationsTest):
    def undo(self, admin, answer):
        return {result['id']: result for result in admin.post('/api/undo', {'operation': answer['operation']})['results']}

    def test_cpus_that_differed(self):
        admin, (first, second) = self.cluster()
        machine = first.info()['max_cpus']
        self.post(admin, 'cpus', [second], cpus=1)
        answer = self.post(admin, 'cpus', [first, second], cpus=0)
        self.assertEqual((first.managed(), second.managed(), answer['undo']), (0, 0, True))
        self.undo(admin, answer)
        self.assertEqual((first.managed(), second.managed()), (machine, 1))
        self.assertEqual(admin.request('POST', '/api/undo', {'operation': answer['operation']}).status, 400)     # once

    def test_clients(self):
        admin, (node,) = self.cluster(1)
        answer = self.post(admin, 'clients', [node], clients=3)
        self.assertEqual(node.info()['serve'], 3)
        self.undo(admin, answer)
        self.assertEqual(node.info()['serve'], -1)

    def test_service_times_of_other_zones(self):
        """What a node had is set back to the minute, in whatever zone its clock is."""
        for zone in ('UTC', 'Asia/Kolkata', 'America/New_York'):
            with self.subTest(zone):
                node = self.node('open', env={'TZ': zone})
                admin = self.admin('--secret', 'open')
                admin.wait_node(node, state='ready')
                later = time.time() + 7200
                wanted = time.strftime('%H:%M', time.gmtime(later))
                answer = self.post(admin, 'service_time', [node], control='stop', time=wanted)
                had = node.info()['service_stop']
                self.undo(admin, answer)
                self.assertIsNone(node.info()['service_stop'])
                answer = self.post(admin, 'service_time', [node], control='stop', time=wanted)
                answer = self.post(admin, 'service_time', [node], control='stop', time=None)
                self.assertIsNone(node.info()['service_stop'])
                result = self.undo(admin, answer)[node.id]
                self.assertTrue(result['ok'], result)
                apart = (node.info()['service_stop'] - had) % DAY
                self.assertLess(min(apart, DAY - apart), 90)
                admin.close()

    def test_zone_that_is_not_known(self):
        """It was cleared in the first place, by somebody who never set it from here."""
        node = self.node('open', env={'TZ': 'Asia/Kolkata'})
        first = self.admin('--secret', 'open')
        first.wait_node(node, state='ready')
        self.post(first, 'service_time', [node], control='stop', time=clock(time.time() + 3600))
        had = node.info()['service_stop']
        first.close()
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, service_stop=had)
        answer = self.post(admin, 'service_time', [node], control='stop', time=None)
        self.undo(admin, answer)
        apart = (node.info()['service_stop'] - had) % DAY
        self.assertLess(min(apart, DAY - apart), 90)

    def test_says_where_it_could_not(self):
        admin, (first, second) = self.cluster()
        answer = self.post(admin, 'cpus', [first, second], cpus=0)
        second.kill()
        results = self.undo(admin, answer)
        self.assertTrue(results[first.id]['ok'])
        self.assertEqual(results[second.id]['outcome'], 'unreachable')


class Drift(OperationsTest):
    def restart(self, node):
        node.kill()
        return self.node('open', address=node.address)

    def test_restarted_node(self):
        admin, (node,) = self.cluster(1)
        self.post(admin, 'cpus', [node], cpus=1)
        self.post(admin, 'clients', [node], clients=5)
        self.post(admin, 'service_time', [node], control='stop', time=clock(time.time() + 7200))
        self.assertIsNone(admin.node(node)['drift'])
        node = self.restart(node)
        machine = node.info()['max_cpus']
        shown = admin.wait_node(node, timeout=20, drift=lambda drift: drift and len(drift) == 3)
        self.assertIn('CPUs: %d, should be 1.' % machine, shown['drift'])
        self.assertEqual(shown['wanted']['cpus'], {'cpus': 1})
        self.assertEqual(admin.get('/api/nodes')['totals']['drifted'], 1)
        lab.wait_for(lambda: self.events(admin, 'drifted'), what='an event')
        result = admin.post('/api/reapply', {})['results'][0]
        self.assertTrue(result['ok'], result)
        said = node.info()
        self.assertEqual((node.managed(), said['serve']), (1, 5))
        self.assertIsNotNone(said['service_stop'])
        admin.wait_node(node, drift=None)

    def test_kept(self):
        admin, (node,) = self.cluster(1, '--keep')
        self.post(admin, 'cpus', [node], cpus=1)
        node = self.restart(node)
        lab.wait_for(lambda: node.managed() == 1, 20, 'set again by itself')

    def test_kept_in_vain(self):
        """What a node refuses is not set again and again."""
        keeper = dispyadmin.Reconciler(None, True, None)
        clock = [1000.0]
        with mock.patch('dispyadmin.time.monotonic', lambda: clock[0]):
            times = []
            for _ in range(40000):
                clock[0] += dispyadmin.KEEP_INTERVAL
                if keeper._may_try('10.0.0.1:9701'):
                    times.append(clock[0])
        gaps = [later - earlier for earlier, later in zip(times, times[1:])]
        self.assertEqual(gaps[:7], [30, 60, 120, 240, 480, 960, 1920])
        self.assertLessEqual(max(gaps), dispyadmin.LONGEST_KEEP_PAUSE)

    def test_taken_as_it_is(self):
        admin, (node,) = self.cluster(1)
        self.post(admin, 'cpus', [node], cpus=1)
        node = self.restart(node)
        admin.wait_node(node, timeout=20, drift=lambda drift: drift)
        self.post(admin, 'accept', [node])
        self.assertIsNone(admin.node(node)['drift'])
        self.assertIsNone(admin.node(node)['wanted'])

    def test_undone_is_no_longer_wanted(self):
        admin, (node,) = self.cluster(1)
        answer = self.post(admin, 'cpus', [node], cpus=0)
        admin.post('/api/undo', {'operation': answer['operation']})
        self.assertIsNone(admin.node(node)['wanted'])


class Drains(OperationsTest):
    def busy(self, *options):
        """(dispyadmin, a node with a running job, its client)."""
        node = self.node('open')
        admin = self.admin('--secret', 'open', '--info_port', 0, *options)
        admin.wait_node(node, state='ready')
        client = self.client(self.address(), self.info_port, 1, 6, node.address)
        admin.wait_node(node, timeout=25, busy=1)
        return admin, node, client

    def test_waits_for_the_job_and_gives_back(self):
        admin, node, client = self.busy()
        machine = node.info()['max_cpus']
        self.assertTrue(self.post(admin, 'drain', [node], then='restore')['results'][0]['ok'])
        self.assertEqual(node.managed(), 0)
        shown = admin.wait_node(node, drain=lambda drain: drain)
        self.assertEqual((shown['drain']['then'], shown['drain']['restore'],
                         shown['drain']['busy']), ('restore', machine, 1))
        self.assertIsNone(shown['drift'])
        lab.wait_for(self.has_printed(client, 'done'), 60, 'the job is done')
        admin.wait_node(node, timeout=30, drain=None)
        self.assertEqual(node.managed(), machine)
        self.assertEqual(self.events(admin, 'drained')[0]['nodes'], [node.id])

    def test_ends_it_there(self):
        admin, node, client = self.busy()
        self.post(admin, 'drain', [node], then='end')
        self.assertTrue(node.running())
        lab.wait_for(self.has_printed(client, 'done'), 60, 'the job is done')
        lab.wait_for(lambda: not node.running(), 60, 'dispynode ends')

    def test_does_not_end_there(self):
        """A dispynode whose Stop came before any client has lost its schedule, and does not end: that is said."""
        admin, (node,) = self.cluster(1)
        self.post(admin, 'service_time', [node], control='stop', time='now')
        lab.wait_for(lambda: any('AttributeError' in line for line in node.out + node.err), what='its schedule fails')
        self.post(admin, 'drain', [node], then='end')
        told = lab.wait_for(lambda: self.events(admin, 'drained'), 60, 'the event')[0]
        self.assertIn('does not exit', told['message'])
        self.assertTrue(node.running())
        self.assertTrue(admin.node(node)['drain']['idle'])
        result, = self.post(admin, 'service_time', [node], control='end', time='now')['results']
        self.assertIn('does not exit', result['message'])
        node.kill()
        admin.wait_node(node, state='unreachable', drain=None)

    def test_cancel(self):
        admin, node, _ = self.busy()
        machine = node.info()['max_cpus']
        self.post(admin, 'drain', [node], then='end')
        self.assertTrue(self.post(admin, 'cancel_drain', [node])['results'][0]['ok'])
        self.assertEqual(node.managed(), machine)
        self.assertIsNone(admin.node(node)['drain'])

    def test_given_cpus_while_drained(self):
        """What is set at a drained node is what it gets on its return; it stays drained, and says so."""
        admin, (node,) = self.cluster(1)
        self.post(admin, 'drain', [node], then='stay')
        admin.wait_node(node, timeout=20, drain=lambda drain: drain and drain['idle'])
        result, = self.post(admin, 'cpus', [node], cpus=1, preview=True)['results']
        self.assertIn('Stays drained', result['message'])
        answer = self.post(admin, 'cpus', [node], cpus=1)
        self.assertIn('Stays drained', answer['results'][0]['message'])
        self.assertTrue(answer['results'][0]['ok'])
        self.assertEqual((admin.node(node)['drain']['restore'], node.managed()), (1, 0))
        self.assertTrue(self.post(admin, 'return', [node])['results'][0]['ok'])
        self.assertEqual((admin.node(node)['drain'], node.managed()), (None, 1))

    def test_stay_and_restart(self):
        """It stays without jobs, also when somebody starts it again, and when dispyadmin is."""
        state = os.path.join(self.folder(), 'state.json')
        admin, (node,) = self.cluster(1, '--state', state)
        self.post(admin, 'drain', [node], then='stay')
        admin.wait_node(node, timeout=20, drain=lambda drain: drain and drain['idle'])
        node.kill()
        admin.wait_node(node, state='unreachable')
        node = self.node('open', address=node.address)
        self.assertGreater(node.managed(), 0)
        lab.wait_for(lambda: node.managed() == 0, 30, 'its CPUs are taken again')
        admin.wait_node(node, timeout=20, state='stopped', drain=lambda drain: drain and drain['idle'])
        admin.close()
        again = self.admin('--secret', 'open', '--state', state)
        self.assertEqual(again.wait_node(node, state='stopped', timeout=20)['drain']['then'], 'stay')
        self.post(again, 'cancel_drain', [node])
        self.assertEqual(node.managed(), node.info()['max_cpus'])


class State(OperationsTest):
    def test_over_a_restart(self):
        state = os.path.join(self.folder(), 'state.json')
        node, gone = self.node('open'), self.fake('open')
        admin = self.admin('--secret', 'open', '--state', state, '--info_port', 0, '-i', self.address())
        self.assertTrue(admin.add(node)['ok'])
        self.assertTrue(admin.add(gone)['ok'])
        admin.delete('/api/nodes/' + gone.id)
        self.post(admin, 'cpus', [node], cpus=1)
        admin.signal(15)
        self.assertEqual(admin.wait(), 0)
        with open(state) as file:
            text = file.read()
        self.assertNotIn('open', text)
        self.assertEqual(os.stat(state).st_mode & 0o777, 0o600)
        again = self.admin('--secret', 'open', '--state', state, '--info_port', 0, '-i', self.address())
        shown = again.wait_node(node, state='ready', timeout=20)
        self.assertEqual(shown['wanted'], {'cpus': {'cpus': 1}})
        self.assertIsNone(again.node(gone))
        self.assertEqual(os.listdir(os.path.dirname(state)), ['state.json'])

    def test_nothing_set_is_dropped_for_another_address(self):
        """--node with a name: what was set at an address that is silent now stays when another one answers."""
        first, second = '127.0.0.2:9701', '127.0.0.3:9701'
        admin = mock.Mock(table=NodeTable(), node_ports=[9701], forgotten={})
        admin.add_row = admin.table.add
        admin.ask = lambda node_id, tell, create: tell(None if node_id == second else 'No answer.')
        with mock.patch('dispyadmin.resolve', return_value=['127.0.0.2', '127.0.0.3']):
            for kept, shown in (({}, False), ({'desired': {'cpus': SetCpus(1)}}, True),
                                ({'added': True}, True)):
                with self.subTest(kept):
                    admin.table.add('127.0.0.2', 9701)
                    admin.table.keep(first, **kept)
                    seeker = dispyadmin.Seeker([('head', None)], admin)
                    seeker._seek(('head', None))
                    self.assertFalse(seeker._missing)
                    self.assertEqual(admin.table.get(first) is not None, shown)

    def test_damaged_file_is_set_aside(self):
        for data in ('', '{', '[]', '{"dispyadmin": 1}', '{"dispyadmin": 1, "nodes": [], "forgotten": []}', 'x' * 1000):
            with self.subTest(data):
                state = self.write(data, 'state.json')
                admin = self.admin('--state', state)
                self.assertIn('is damaged', '\n'.join(admin.err))
                admin.close()
                kept = [name for name in os.listdir(os.path.dirname(state)) if 'damaged' in name]
                with open(os.path.join(os.path.dirname(state), kept[0])) as file:
                    self.assertEqual(file.read(), data)

    def test_place_that_cannot_be_written(self):
        nowhere = os.path.join(self.folder(), 'none', 'state')
        for name, word in ((self.folder(), 'a directory, a pipe or a device'),
                           ('/dev/null', 'a directory, a pipe or a device'), (nowhere, 'cannot be written')):
            status, _, err = self.run_script('--state', name)
            self.assertEqual(status, 1, err)
            self.assertRegex(err, '--state .*%s' % word)


class Groups(OperationsTest):
    def test_totals_and_actions(self):
        nodes = self.together(lambda: self.node('open', name='gpu-1'), lambda: self.node('open', name='other'))
        admin = self.admin('--secret', 'open', '--group', 'gpus=gpu-*', '--group', 'net=127.0.0.0/8',
                           '--group', 'none=10.9.9.9')
        for node in nodes:
            admin.wait_node(node, state='ready')
        self.assertEqual(admin.node(nodes[0])['groups'], ['gpus', 'net'])
        groups = admin.get('/api/nodes')['groups']
        self.assertEqual([(name, totals['nodes'], totals['ready']) for name, totals in groups.items()],
                         [('gpus', 1, 1), ('net', 2, 2), ('none', 0, 0)])
        self.assertEqual(groups['net']['cpus'], admin.get('/api/nodes')['totals']['cpus'])
        results = admin.post('/api/cpus', {'group': 'gpus', 'cpus': 1})['results']
        self.assertEqual([(r['id'], r['ok']) for r in results], [(nodes[0].id, True)])
        self.assertEqual((nodes[0].managed(), nodes[1].managed()), (1, nodes[1].info()['max_cpus']))
        answer = admin.request('POST', '/api/cpus', {'group': 'none', 'cpus': 1})
        self.assertEqual((answer.status, answer.json['error']), (400, 'group: no node is in none'))

    def test_bad_options(self):
        for values, word in ((['x'], 'NAME=PATTERN'), (['=y'], 'NAME=PATTERN'),
                             (['a b=y'], 'NAME=PATTERN'), (['a=b', 'a=c'], 'twice'),
                             (['a=10.1.0.0/99'], '10.1.0.0/99 is no network')):
            options = [word for value in values for word in ('--group', value)]
            status, _, err = self.run_script(*options)
            self.assertEqual(status, 2)
            self.assertTrue(re.search(word, err), err)
