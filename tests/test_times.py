"""What dispyadmin says that dispynode makes of service times, at real nodes of the newest and the oldest release: the part
Settings in dispyadmin.py states each rule once, and foresees by it."""

import contextlib
import datetime
import os
import random
import socket
import time
import unittest
from unittest import mock

import dispyadmin
from dispyadmin import DIED, ENDED, IDLE, NodeClock, SetServiceTime, Times

from . import environment, lab, wire
from .test_operations import OperationsTest

PYTHON = min(environment.PYTHONS.keys() - {(2, 7)})
RELEASES = ('4.15.2', '4.11.0')
SEQUENCES = 25                   # at each node
STEP = 20                        # minutes between the times that are set: none comes while the test runs
CONTROLS = dispyadmin.SERVICE_TIMES
TAKEN_TIME = 3                   # seconds in which a node's schedule looks at a time


class TimedNode:
    """A real node whose clock shows this time (UTC) when it starts; asked as dispyadmin asks, without it."""

    def __init__(self, test, release, clock='12:00', zone='UTC', day=None, used=False):
        day = day or datetime.datetime.utcnow().date()
        hours, minutes = map(int, clock.split(':'))
        at = datetime.datetime(day.year, day.month, day.day, hours, minutes, tzinfo=datetime.timezone.utc).timestamp()
        self.ahead, self.release, self.used = int(at - time.time()), release, used
        self.packages = environment.node_packages(release, PYTHON)
        port = test.free_ports()
        self.node = test.node('open', info_port=port, packages=self.packages,
                              env=lab.fake_time('%+d' % self.ahead, zone, PYTHON))
        self.clock = NodeClock(0, self.ahead)
        if used:
            client = test.client(test.address(), port, 1, 0.1, self.node.address, packages=self.packages)
            lab.wait_for(lambda: self.info().clients_done or self.info().scheduler_ip, 40, client.output)
            lab.wait_for(lambda: not client.running(), 40, client.output)

    def now(self):
        return time.time() + self.ahead

    def info(self):
        value = self.node.info()
        return dispyadmin.NO_INFO._replace(**{key: value[key] for key in (
            'service_start', 'service_stop', 'service_end', 'clients_done', 'scheduler_ip')})

    def times(self):
        return dispyadmin.times_of(self.info())

    def send(self, setting):
        """Send a SetServiceTime; the Times of the reply, or None when it refuses."""
        sign = self.node.inside(lambda sock: wire.exchange(sock, b'0' * 40, wire.encode(
            b'NODE_INFO:', {'sign': wire.new_sign()})))
        answer = wire.unpickle(self.node.inside(lambda sock: wire.exchange(
            sock, wire.auth_code('open', sign.decode()), setting.message())))
        return None if answer == -1 else Times(*[answer['service_' + control] for control in CONTROLS])

    def clear(self):
        for control in reversed(CONTROLS):
            self.send(SetServiceTime(control, None))

    def accepts(self):
        """Whether it accepts jobs now: a client that looks for nodes is answered by those that do."""
        with socket.socket() as ear:
            ear.bind((self.node.address, 0))
            ear.listen(5)
            ear.settimeout(0.7)
            message = {'version': self.release, 'ip_addrs': [self.node.address], 'port': ear.getsockname()[1], 'sign': ''}

            def say(sock):
                with sock:
                    sock.sendall(b'0' * 40)
                    wire.send_message(sock, wire.encode(b'PING:', message))
            for _ in range(2):
                self.node.inside(say)
                with contextlib.suppress(socket.timeout):
                    ear.accept()[0].close()
                    return True
        return False


def same(one, other):
    return all(map(dispyadmin.same_minute, one, other))


class TimesTest(OperationsTest):
    def nodes(self, *used):
        return self.together(*[lambda release=release, is_used=is_used: TimedNode(self, release, used=is_used)
                               for release in RELEASES for is_used in used])

    def seen(self, node):
        return dispyadmin.Seen('', node.info(), node.clock, time.time(), {})


class Rules(TimesTest):
    def test_controls_in_any_order(self):
        """change_times, run_schedule and accepts_jobs say what comes of each control of random ones."""
        nodes = self.nodes(True, False)
        for failure in self.together(*[lambda node=node: self.try_all(node) for node in nodes]):
            self.assertEqual(failure, [])

    def try_all(self, node):
        rng, failures = random.Random(11), []
        for _ in range(SEQUENCES):
            node.clear()
            done = []
            for _ in range(rng.randrange(1, 5)):
                minutes = rng.choice([None, 'now'] + [n * STEP for n in range(-12, 13) if n])
                text = minutes if minutes in (None, 'now') else node.clock.clock(node.now() // 3600 * 3600 + minutes * 60)
                setting = SetServiceTime(rng.choice(CONTROLS), text)
                done.append((setting.control, text))
                problem = self.try_one(node, setting)
                if problem:
                    failures.append((node.release, node.used, done, problem))
                    break
        return failures

    def try_one(self, node, setting):
        """None, or what was foreseen and came otherwise. What would end it, or its schedule, is left out."""
        seen = self.seen(node)
        at = setting.unix(seen)
        changed = dispyadmin.change_times(seen.times, setting.control, at)
        after, fate = dispyadmin.foresee_times(seen.info, [(setting.control, at)], seen.now)
        if fate != IDLE:
            return None
        answer = node.send(setting)
        if changed is None or answer is None:
            return None if changed is answer else ('refused', changed, answer)
        deadline = time.monotonic() + TAKEN_TIME
        while not same(node.times(), after) and time.monotonic() < deadline:
            time.sleep(0.05)
        shown = node.times()
        if not same(shown, after):
            return ('times', seen.times, after, shown)
        # The reply is made before its schedule looks at the times.
        if not same(answer, changed):
            return ('reply', seen.times, changed, answer)
        expected = dispyadmin.accepts_jobs(after, node.now())
        return None if node.accepts() == expected else ('accepts', after, expected)

    def test_schedules_that_die_and_programs_that_end(self):
        """A Stop that has come ends the schedule of a node that no client has used; End does nothing there."""
        for node in self.nodes(True, False):
            with self.subTest(release=node.release, used=node.used):
                seen = self.seen(node)
                stop = SetServiceTime('stop', '11:00')
                after, fate = dispyadmin.foresee_times(seen.info, [('stop', stop.unix(seen))], seen.now)
                self.assertEqual(fate, IDLE if node.used else DIED)
                node.send(stop)
                lab.wait_for(lambda: same(node.times(), after), 10, lambda: (after, node.times()))
                self.assertEqual(dispyadmin.has_lost_schedule(node.info(), node.now()), not node.used)
                self.assertEqual(node.accepts(), dispyadmin.accepts_jobs(after, node.now()))
                if node.used:
                    node.clear()
                seen = self.seen(node)
                steps = [(setting.control, setting.unix(seen)) for setting in SetServiceTime('end', 'now').steps(seen)]
                self.assertEqual(dispyadmin.foresee_times(seen.info, steps, seen.now)[1], ENDED if node.used else DIED)
                for setting in SetServiceTime('end', 'now').steps(seen):
                    node.send(setting)
                if node.used:
                    lab.wait_for(lambda: not node.node.running(), 15, 'dispynode exits')
                else:
                    time.sleep(TAKEN_TIME)
                    self.assertTrue(node.node.running())

    def test_order_of_times(self):
        """Whatever a node has, order_times brings it to what it should have, alive, and as open as the times say."""
        for failure in self.together(*[lambda node=node: self.order_all(node) for node in self.nodes(True)]):
            self.assertEqual(failure, [])

    def order_all(self, node):
        rng, failures = random.Random(12), []
        noon = node.now() // 3600 * 3600
        for _ in range(SEQUENCES):
            seconds = node.now() % 60        # as dispynode makes them of HH:MM
            wanted = Times(*[rng.choice([None, noon + rng.choice([n for n in range(-9, 10) if n]) * STEP * 60 + seconds])
                             for _ in CONTROLS])
            seen = self.seen(node)
            sent = dispyadmin.order_times(seen.info, wanted, seen.now)
            if sent is None:
                continue
            foreseen, fate = dispyadmin.foresee_times(seen.info, sent, seen.now)
            for control, at in sent:
                node.send(SetServiceTime(control, at and node.clock.clock(at)))
                time.sleep(0.1)
            try:
                lab.wait_for(lambda: same(node.times(), foreseen), TAKEN_TIME)
            except AssertionError:
                failures.append((node.release, seen.times, wanted, sent, foreseen, node.times()))
                continue
            if not all(map(dispyadmin.same_time, node.times(), wanted)) or not node.node.running() or fate != IDLE:
                failures.append((node.release, seen.times, wanted, sent, node.times(), fate))
            elif node.accepts() != dispyadmin.accepts_jobs(node.times(), node.now()):
                failures.append((node.release, wanted, node.times(), 'accepts'))
        return failures


class SummerTime(TimesTest):
    """In Berlin clocks go from 02:00 to 03:00 on 29 March 2026, and from 03:00 to 02:00 on 25 October."""

    ZONE = 'Europe/Berlin'
    EVES = ((datetime.date(2026, 3, 28), 1, '20:00'), (datetime.date(2026, 10, 24), 2, '18:00'))  # hours ahead; then

    def setUp(self):
        super().setUp()
        before = os.environ.get('TZ')

        def restore():
            os.environ.pop('TZ', None) if before is None else os.environ.update(TZ=before)
            time.tzset()
        self.addCleanup(restore)

    def live_in(self, zone):
        os.environ['TZ'] = zone
        time.tzset()

    def test_daily_times_move_by_an_hour(self):
        """dispynode adds 24 hours; so the time that was 19:00 is another one the day after, and that is drift."""
        for release in RELEASES:
            for day, hours, then in self.EVES:
                with self.subTest(release=release, day=day):
                    node = TimedNode(self, release, '%d:00' % (21 - hours), self.ZONE, day, used=True)     # 21:00 there
                    node.send(SetServiceTime('start', '19:00'))
                    lab.wait_for(lambda: node.times().start and node.times().start > node.now(), 10, node.times)
                    start = node.times().start
                    self.live_in(self.ZONE)
                    self.assertEqual(time.strftime('%d %H:%M', time.localtime(start)), '%d %s' % (day.day + 1, then))
                    for zone, drift in ((self.ZONE, then), ('UTC', None)):
                        self.live_in(zone)       # of dispyadmin
                        clock = NodeClock(hours * 3600 if zone == 'UTC' else dispyadmin.own_zone(start), node.ahead)
                        with mock.patch('dispyadmin.time.time', lambda: start):
                            seen = dispyadmin.Seen('', node.info(), clock, start - node.ahead, {})
                            said = SetServiceTime('start', '19:00').drift(seen)
                        if drift:
                            self.assertEqual(said, 'Start: %s, should be 19:00.' % then)
                        else:
                            self.assertIsNone(said)      # of another zone it is not known when its summer begins
                    self.live_in('UTC')

    def test_time_of_a_day_on_which_clocks_change(self):
        """dispynode counts from its midnight by the clock of now: what is set before the change is an hour off after it."""
        for release in RELEASES:
            for day, hours, _ in self.EVES:
                with self.subTest(release=release, day=day):
                    node = TimedNode(self, release, '%d:30' % (24 - hours), self.ZONE, day)  # 00:30 of the next day there
                    answer = node.send(SetServiceTime('stop', '12:00'))
                    self.live_in(self.ZONE)
                    now = node.now()
                    with mock.patch('dispyadmin.time.time', lambda: now):
                        for clock in (NodeClock(None, node.ahead), NodeClock(hours * 3600, node.ahead)):
                            self.assertLess(abs(clock.today('12:00', now - node.ahead) - answer.stop), 60)
                    self.live_in('UTC')


if __name__ == '__main__':
    unittest.main()
