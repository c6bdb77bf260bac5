"""Node table, schedule and conversations by themselves: no sockets, no threads, a clock that the test turns."""

import json
import math
import socket
import struct
import unittest
from unittest import mock

import dispyadmin
from dispyadmin import Answer, Announcement, Info, Known, NodeError, NodeTable, Schedule

A, B, C = '10.0.0.1:9701', '10.0.0.2:9701', '[fd00::1]:9701'
SIGN, OTHER = 'a' * 40, 'b' * 40
REQUEST = dispyadmin.write_message(b'NODE_INFO:', {'sign': 'c' * 40})


def info(**fields):
    values = dict(name='n1', cpus=4, max_cpus=8, busy=1, serve=-1, clients_done=0, jobs_done=10, cpu_time=2.5,
                  scheduler_ip=None, service_start=None, service_stop=None, service_end=None, avail_info=None)
    values.update(fields)
    return Info(**values)


def opened(sign=SIGN, **fields):
    return Answer(Known(sign, 'X', 0, True), info(**fields))


def locked(sign=SIGN, tried=1):
    return Answer(Known(sign, None, tried), None)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Table(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.table = NodeTable(self.clock)

    def meet(self, node_id, answer):
        """What happens when an address that announced itself has been asked."""
        self.table.may_send(node_id, answer.known.sign)
        return self.table.answered(node_id, answer, create=True)

    def view(self, node_id):
        return self.table.get(node_id).view

    def changes(self, since):
        snapshot = self.table.snapshot(since)
        return sorted(published.view['id'] for published in snapshot.nodes), snapshot.removed, snapshot.full

    def test_states(self):
        cases = [(opened(), 'ready', None), (opened(cpus=0), 'stopped', 'No CPUs assigned'),
                 (opened(serve=0), 'stopped', 'clients to serve is 0'),
                 (opened(service_start=2000.0), 'stopped', 'Accepts jobs from'),
                 (opened(service_start=500.0), 'ready', None),
                 (opened(service_stop=500.0), 'stopped', 'Stopped accepting jobs'),
                 (opened(service_end=500.0), 'stopped', 'Stopped accepting jobs'),
                 (opened(service_stop=1500.0, service_end=500.0), 'ready', None),   # dispynode's own rule
                 (locked(), 'locked', '--admin_secret')]
        for answer, state, reason in cases:
            with self.subTest(answer=answer):
                self.setUp()
                self.meet(A, answer)
                view = self.view(A)
                self.assertEqual(view['state'], state)
                self.assertEqual(view['controllable'], state in ('ready', 'stopped'))
                self.assertEqual(view['reason'], None) if reason is None else self.assertIn(reason, view['reason'])

    def test_lost_node_keeps_its_details_and_comes_back(self):
        self.assertEqual(self.meet(A, opened()), 'found')
        self.clock.now += 60
        self.assertEqual(self.table.failed(A, 'No answer.'), 'lost')
        view = self.view(A)
        self.assertEqual((view['state'], view['reason'], view['cpus'], view['update_time']),
                         ('unreachable', 'No answer.', 4, 1000.0))
        self.assertIsNone(self.table.failed(A, 'No answer.'))
        self.assertEqual(self.table.answered(A, opened()), 'back')
        self.assertEqual(self.view(A)['update_time'], 1060.0)

    def test_addresses_of_a_row_that_has_never_answered(self):
        """It has shown its sign; what shows the same is its other address, also when it does not answer to the end."""
        self.table.add('10.0.0.1', 9701)
        self.table.add('10.0.0.2', 9701)
        self.assertTrue(self.table.may_send(A, SIGN))
        self.assertEqual(self.table.answered(B, locked()), 'alias')
        self.table.failed(A, 'No answer.')
        self.assertEqual((self.table.row(B), self.view(A)['addresses']), (A, [A, B]))

    def test_totals_follow_every_change(self):
        self.meet(A, opened())
        self.meet(B, opened(OTHER, cpus=2, busy=2, jobs_done=5, cpu_time=1.0))
        self.assertEqual(dict(self.table.snapshot().totals),
                         dict(nodes=2, ready=2, stopped=0, locked=0, unreachable=0, cpus=6, busy=3, jobs_done=15,
                              cpu_time=3.5, drifted=0, draining=0, drained=0))
        self.table.failed(B, 'No answer.')      # its CPUs are gone, the work that it did is not
        self.assertEqual(dict(self.table.snapshot().totals),
                         dict(nodes=2, ready=1, stopped=0, locked=0, unreachable=1, cpus=4, busy=1, jobs_done=15,
                              cpu_time=3.5, drifted=0, draining=0, drained=0))
        self.table.forget(A)
        self.table.forget(B)
        self.assertEqual(set(self.table.snapshot().totals.values()), {0})

    def test_changes_since(self):
        start = self.table.snapshot().sequence
        self.meet(A, opened())
        middle = self.table.snapshot().sequence
        self.meet(B, opened(OTHER))
        self.assertEqual(self.changes(start), ([A, B], [], False))
        self.assertEqual(self.changes(middle), ([B], [], False))
        self.table.forget(A)
        self.assertEqual(self.changes(middle), ([B], [A], False))
        last = self.table.snapshot().sequence
        self.assertEqual(self.changes(last), ([], [], False))
        for unknown in (None, 0, last + 1, start - 1):
            self.assertEqual(self.changes(unknown), ([B], [], True))
        self.meet(A, opened())
        self.assertEqual(self.changes(middle), ([A, B], [], False))   # it is back, so it is not removed

    def test_readers_keep_what_they_were_given(self):
        self.meet(A, opened())
        before = self.table.get(A)
        self.table.answered(A, opened(cpus=1))
        self.assertEqual((before.view['cpus'], self.view(A)['cpus']), (4, 1))
        self.assertEqual(json.loads(before.json())['cpus'], 4)
        self.assertIs(before.json(), before.json())

    def test_second_address_with_the_same_sign_is_the_same_row_and_gets_no_code(self):
        self.meet(A, opened())
        self.assertFalse(self.table.may_send(C, SIGN))
        self.assertEqual(self.meet(C, locked()), 'alias')
        self.assertEqual(self.table.ids(), [A])
        self.assertEqual(self.view(A)['addresses'], [A, C])
        self.assertEqual(self.table.heard(C, Announcement('PING', None, 9701, SIGN, None)), ('same', A))

    def test_address_that_is_a_node_of_its_own_now_is_no_other_address_any_more(self):
        self.meet(A, opened())
        self.meet(C, locked())
        self.assertEqual(self.meet(C, opened(OTHER)), 'found')
        self.assertEqual((self.view(A)['addresses'], self.view(C)['addresses']), ([A], [C]))
        self.assertEqual(self.table.row(C), C)

    def test_what_goes_wrong_in_a_change_leaves_all_as_it_was(self):
        self.meet(A, opened())
        before = self.table.snapshot()
        with mock.patch('dispyadmin.idle_reason', side_effect=ZeroDivisionError):
            for change in (lambda: self.table.answered(A, opened(cpus=1)), lambda: self.meet(B, opened(OTHER)),
                           lambda: self.table.keep(A, added=True)):
                self.assertRaises(ZeroDivisionError, change)
        self.assertEqual(self.table.snapshot(), before)
        self.assertEqual(self.table.changes(), 0)

    def test_two_addresses_that_are_asked_at_the_same_time(self):
        self.assertTrue(self.table.may_send(A, SIGN))
        self.assertFalse(self.table.may_send(C, SIGN))
        self.meet(C, locked())
        self.assertEqual(self.table.ids(), [])
        self.meet(A, opened())
        self.assertEqual(self.view(A)['addresses'], [A, C])

    def test_sign_is_free_again_when_its_first_address_failed(self):
        self.table.may_send(A, SIGN)
        self.table.failed(A, 'No answer.')
        self.assertTrue(self.table.may_send(B, SIGN))

    def test_known_row_that_shows_the_sign_of_another_is_locked(self):
        self.meet(A, opened())
        self.meet(B, opened(OTHER))
        self.assertFalse(self.table.may_send(B, SIGN))
        self.table.answered(B, locked())
        self.assertEqual(self.view(B)['state'], 'locked')
        self.assertIn('Same sign as ' + A, self.view(B)['reason'])
        self.assertEqual(self.view(A)['state'], 'ready')

    def test_restart(self):
        self.meet(A, opened())
        self.meet(C, locked())
        self.assertEqual(self.table.answered(A, opened(OTHER, jobs_done=0)), 'restarted')
        self.assertEqual(self.table.drop_aliases(A), [C])
        self.assertEqual(self.view(A)['addresses'], [A])
        self.assertTrue(self.table.may_send(B, SIGN))     # the old sign is nobody's now

    def test_answer_from_before_the_secret_does_not_lock_again(self):
        self.meet(A, locked(tried=1))
        self.table.answered(A, opened())
        self.table.answered(A, locked(tried=1))
        self.assertEqual(self.view(A)['state'], 'ready')

    def test_terminated(self):
        self.meet(A, opened())
        self.assertEqual(self.table.heard(A, Announcement('TERMINATED', None, 9701, OTHER, None))[0], 'changed')
        self.assertFalse(self.table.look(A).is_ending)
        self.table.heard(A, Announcement('TERMINATED', None, 9701, SIGN, None))
        self.assertEqual(self.view(A)['state'], 'ready')   # it is asked before that is believed
        self.table.answered(A, opened())
        self.assertTrue(self.table.look(A).is_ending)
        self.table.failed(A, 'Connection refused.')
        self.assertIn('as it announced', self.view(A)['reason'])

    def test_an_insane_time_spoils_no_total(self):
        self.meet(A, opened())
        self.meet(B, opened(OTHER, cpu_time=2.0 ** 62))
        for turn in range(50):
            self.table.answered(A, opened(cpu_time=turn * 1.5))
        self.table.answered(B, opened(OTHER, cpu_time=1.0))
        self.assertEqual(self.table.snapshot().totals['cpu_time'], 74.5)

    def test_forgotten_node_is_not_brought_back_by_a_late_answer(self):
        self.meet(A, opened())
        self.table.forget(A)
        self.assertIsNone(self.table.answered(A, opened()))
        self.assertEqual(self.table.ids(), [])


class ScheduleTest(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.schedule = Schedule(60, self.clock, rand=lambda: 0.5)

    def due(self, seconds=0.0):
        self.clock.now += seconds
        return self.schedule.take(self.clock.now, 100, 100)

    def test_interval(self):
        self.schedule.add(A)
        self.assertEqual(self.due(), ([A], []))
        self.schedule.finished(A, True)
        self.assertEqual(self.due(29.9), ([], []))
        self.assertEqual(self.due(0.2), ([A], []))       # once at a random time, so that nodes are spread
        self.schedule.finished(A, True)
        self.assertEqual(self.due(59.8), ([], []))
        self.assertEqual(self.due(0.2), ([A], []))

    def test_a_node_keeps_its_place_in_the_interval(self):
        """Whenever else it was asked, and however late: nodes that once were spread stay so."""
        self.schedule.add(A)
        self.due()
        self.schedule.finished(A, True)
        place = self.clock.now + 30
        self.clock.now += 5
        for ask in (self.schedule.ask_now, self.schedule.ask_soon, lambda node_id: self.schedule.ask_in(node_id, 0)) * 5:
            ask(A)
            self.clock.now += 1.1
            self.assertEqual(self.due(), ([A], []))
            self.schedule.finished(A, True)
        for early in (0.01, 0.0, 0.2, 0.1, -1.0, -20.0):
            self.clock.now = place - 2.5
            self.assertEqual(self.due(), ([], []))
            self.clock.now = place - early
            self.assertEqual(self.schedule.take(max(place, self.clock.now), 9, 9), ([A], []))
            self.schedule.finished(A, True)
            place += 60
        self.clock.now = place + 3600 + 7        # the machine slept
        self.assertEqual(self.due(), ([A], []))
        self.schedule.finished(A, True)
        self.clock.now = place + 3659
        self.assertEqual(self.due(), ([], []))
        self.assertEqual(self.due(1.1), ([A], []))

    def test_taken_early_after_a_new_interval(self):
        self.schedule.add(A)
        self.due()
        self.schedule.finished(A, True)
        self.schedule.interval = 20
        self.clock.now += 9.8
        self.assertEqual(self.schedule.take(self.clock.now + 0.25, 9, 9), ([A], []))
        self.schedule.finished(A, True)
        self.assertEqual(self.due(19), ([], []))
        self.assertEqual(self.due(1.3), ([A], []))

    def test_growing_pauses_up_to_a_minute(self):
        self.schedule.add(A)
        pauses = []
        for _ in range(8):
            self.assertEqual(sum(self.due(), []), [A])
            self.schedule.finished(A, False)
            pauses.append(self.schedule.next_look() - self.clock.now)
            self.clock.now += pauses[-1]
        self.assertEqual(pauses, [2, 4, 8, 16, 32, 60, 60, 60])

    def test_missed_time_is_made_up_for_once(self):
        self.schedule.add(A)
        self.due()
        self.schedule.finished(A, True)
        self.assertEqual(self.due(3600), ([A], []))
        self.schedule.finished(A, True)
        self.assertEqual(self.due(), ([], []))

    def test_failing_nodes_are_kept_apart(self):
        for node_id in (A, B):
            self.schedule.add(node_id)
        self.due()
        self.schedule.finished(A, False)
        self.schedule.finished(B, True)
        self.clock.now += 100
        self.assertEqual(self.schedule.take(self.clock.now, 10, 0), ([B], []))
        self.assertEqual(self.schedule.take(self.clock.now, 0, 10), ([], [A]))

    def test_now(self):
        self.schedule.add(A)
        self.due()
        self.schedule.ask_now(A)             # while it is being asked: once more afterwards
        self.schedule.finished(A, True)
        self.assertEqual(self.due(), ([A], []))
        self.schedule.finished(A, True)
        self.schedule.ask_now(A)
        self.assertEqual(self.due(), ([A], []))
        self.schedule.finished(A, True)
        self.assertEqual(self.due(), ([], []))

    def test_shorter_interval_counts_at_once(self):
        self.schedule.add(A)
        self.due()
        self.schedule.finished(A, True)
        self.schedule.interval = 5
        self.assertEqual(self.due(2.6), ([A], []))

    def test_announcements_do_not_set_the_pace(self):
        """Anybody can send them, in anybody's name."""
        self.schedule.add(A)
        asked = 0
        for _ in range(1000):
            self.clock.now += 0.01
            for node_id in sum(self.schedule.take(self.clock.now, 10, 10), []):
                asked += 1
                self.schedule.finished(node_id, True)
            self.schedule.ask_soon(A)
        self.assertGreater(asked, 9)
        self.assertLess(asked, 14)

    def test_announced_while_it_is_asked(self):
        """It is asked again as soon as that is over, whatever came of it."""
        self.schedule.add(A)
        self.due()
        self.schedule.ask_soon(A)
        self.schedule.finished(A, False)
        self.assertEqual(self.due(), ([], [A]))

    def test_removed(self):
        self.schedule.add(A)
        self.schedule.remove(A)
        self.assertEqual(self.due(), ([], []))
        self.schedule.finished(A, True)
        self.assertEqual(self.schedule.next_look(), math.inf)

    def test_lateness(self):
        """Of the node that waits longest; not of those that are being asked, failed, were removed, or come later."""
        self.assertEqual(self.schedule.lateness(), 0)
        self.schedule.add(A)
        self.clock.now += 5
        self.schedule.add(B)
        self.assertEqual(self.schedule.lateness(), 5)
        self.schedule.remove(A)
        self.clock.now += 1
        self.assertEqual(self.schedule.lateness(), 1)
        self.assertEqual(self.due(), ([B], []))
        self.assertEqual(self.due(100), ([], []))
        self.assertEqual(self.schedule.lateness(), 0)
        self.schedule.finished(B, True)              # at 30 s from now
        self.assertEqual(self.schedule.lateness(), 0)
        self.clock.now += 40
        self.assertEqual(self.schedule.lateness(), 10)
        self.schedule.ask_now(B)
        self.assertEqual(self.schedule.lateness(), 0)
        self.due()
        self.schedule.finished(B, False)
        self.clock.now += 1000
        self.assertEqual(self.schedule.lateness(), 0)

    def test_few_polls_begin_together_too(self):
        for interval, count, tick in ((1, 100, 0.5), (1, 1000, 0.25), (10, 100, 1), (60, 1, 1), (10, 10000, 0.25)):
            schedule = dispyadmin.Schedule(interval)
            for number in range(count):
                schedule.add('127.0.0.1:%d' % number)
            self.assertEqual(schedule.tick, tick)

    def test_many_changes_leave_no_heap_of_stale_entries(self):
        self.schedule.add(A)
        for _ in range(10000):
            self.schedule.ask_now(A)
        self.assertLess(len(self.schedule._heaps[0]), 1000)
        self.assertEqual(self.due(), ([A], []))


class Conversations(unittest.TestCase):
    """The generators against a node that is a function: request -> reply."""

    def run_with(self, steps, node):
        request = next(steps)
        try:
            while True:
                code, message = request[:40].decode(), request[44:]
                request = steps.send(node(code, message))
        except StopIteration as end:
            return end.value

    def node(self, signs, secret='X', admin=True):
        """A node that shows these signs one after another, staying with the last."""
        self.asked = []

        def reply(code, message):
            self.asked.append((code, message.partition(b':')[0]))
            sign = signs[0] if len(signs) == 1 else signs.pop(0)
            if secret is not None and code == dispyadmin.auth_code(secret, sign).decode():
                if message.startswith(b'SERVICE_TIME:'):
                    return dispyadmin.pickle.dumps(-1, 2) if admin else b''
                return dispyadmin.pickle.dumps({'busy': 0, 'cpus': 2, 'max_cpus': 2, 'name': 'n'}, 2)
            return sign.encode()
        return reply

    def ask(self, node, known=dispyadmin.STRANGER, secrets=('', 'W', 'X'), may_send=lambda sign: True):
        return self.run_with(dispyadmin.ask_info(REQUEST, known, secrets, may_send), node)

    def test_no_code_is_sent_before_the_sign_is_shown(self):
        answer = self.ask(self.node([SIGN]))
        self.assertEqual((answer.known.sign, answer.known.secret, answer.known.admin), (SIGN, 'X', True))
        self.assertEqual(self.asked[0][0], '0' * 40)

    def test_no_code_for_the_sign_of_another_address(self):
        answer = self.ask(self.node([SIGN]), may_send=lambda sign: False)
        self.assertIsNone(answer.known.secret)
        self.assertEqual(self.asked, [('0' * 40, b'NODE_INFO')])

    def test_known_node_costs_one_exchange(self):
        answer = self.ask(self.node([SIGN]), Known(SIGN, 'X', 0, True))
        self.assertEqual((answer.known.secret, len(self.asked)), ('X', 1))

    def test_restarted_node_is_opened_again(self):
        answer = self.ask(self.node([OTHER]), Known(SIGN, 'X', 0, True))
        self.assertEqual((answer.known.sign, answer.known.secret), (OTHER, 'X'))

    def test_secrets_that_did_not_open_it_are_not_tried_again(self):
        answer = self.ask(self.node([SIGN], secret='Z'))
        self.assertEqual((answer.known.secret, answer.known.tried, len(self.asked)), (None, 3, 4))
        answer = self.ask(self.node([SIGN], secret='Z'), Known(SIGN, None, 3, False))
        self.assertEqual((answer.known.tried, len(self.asked)), (3, 1))
        answer = self.ask(self.node([SIGN], secret='Z'), Known(SIGN, None, 3, False), ('', 'W', 'X', 'Z'))
        self.assertEqual((answer.known.secret, len(self.asked)), ('Z', 3))

    def test_node_without_admin_secret(self):
        answer = self.ask(self.node([SIGN], secret='X', admin=False))
        self.assertEqual((answer.known.secret, answer.known.admin), ('X', False))
        answer = self.ask(self.node([SIGN], secret='', admin=False))
        self.assertEqual((answer.known.secret, answer.known.admin), ('', False))

    def test_new_sign_at_each_question_is_asked_a_bounded_number_of_times(self):
        with self.assertRaises(NodeError):
            self.ask(self.node(['%040x' % i for i in range(100)], secret=None))
        self.assertLess(len(self.asked), 10)

    def test_node_that_answers_any_code_is_none(self):
        with self.assertRaises(NodeError):
            self.ask(lambda code, message: dispyadmin.pickle.dumps({'busy': 0, 'cpus': 2}, 2))


class Addresses(unittest.TestCase):
    def test_one_spelling_for_each(self):
        for text, shown in (('10.0.0.1', '10.0.0.1'), ('::ffff:10.0.0.1', '10.0.0.1'), ('FD00:0:0::1', 'fd00::1'),
                            ('fe80::1%lo', 'fe80::1%lo'), ('fe80::1%1', 'fe80::1%lo'), ('fd00::1%lo', 'fd00::1')):
            self.assertEqual(dispyadmin.canonical(text), shown)
        for text in ('010.0.0.1', '10.0.0', 'host', '', '1.2.3.4.5', '0x7f.1', ':::', '10.0.0.1/8'):
            with self.assertRaises(ValueError):
                dispyadmin.canonical(text)

    def test_hosts_and_ports(self):
        for text, parts in (('h', ('h', None)), ('h:1', ('h', 1)), ('10.0.0.1:9701', ('10.0.0.1', 9701)),
                            ('[::1]:9701', ('::1', 9701)), ('[::1]', ('::1', None)), ('::1', ('::1', None)),
                            ('fe80::1%eth0', ('fe80::1%eth0', None))):
            self.assertEqual(dispyadmin.split_host_port(text), parts)
        for text in ('', 'a b', 'h:0', 'h:70000', 'h:x', '[::1', '10.0.0.256', '-h', 'h/x'):
            with self.subTest(text):
                with self.assertRaises(ValueError):
                    dispyadmin.split_host_port(text)

    def test_ids(self):
        for node_id in (A, C, '[fe80::1%eth0]:9701'):
            self.assertEqual(dispyadmin.format_id(*dispyadmin.split_id(node_id)), node_id)

    def test_broadcast_addresses(self):
        def found(prefix, kernel=None, flags=dispyadmin._HAS_BROADCAST):
            attributes = {dispyadmin._LOCAL: socket.inet_aton('10.1.2.3')}
            if kernel:
                attributes[dispyadmin._BROADCAST] = socket.inet_aton(kernel)
            tables = {dispyadmin._GET_LINKS: [(struct.pack('=IiII', 0, 7, flags | dispyadmin._UP, 0), {})],
                      dispyadmin._GET_ADDRESSES: [(struct.pack('=BBBBi', socket.AF_INET, prefix, 0, 0, 7), attributes)]}
            with mock.patch('dispyadmin._kernel_table', lambda kind, head_size: tables[kind]):
                interface, = dispyadmin.list_interfaces()
            return interface.broadcast
        self.assertEqual(found(20, '10.1.15.255'), '10.1.15.255')
        self.assertEqual(found(20), '10.1.15.255')
        self.assertIsNone(found(32))
        self.assertIsNone(found(24, flags=0))


if __name__ == '__main__':
    unittest.main()
