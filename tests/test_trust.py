"""What is set at nodes can be trusted: where two features meet, when answers are late or lost, when programs are killed."""

import json
import os
import socket
import threading
import time
from unittest import mock

import dispyadmin

from . import lab, wire
from .test_operations import OperationsTest


class Slow(wire.FakeNode):
    """A fake node whose answers to controls wait for `gate`, are lost (`lose`) or come of nothing (`ignore`); with `dies`
    nothing listens any more after one."""

    def __init__(self, *args, **kwargs):
        self.gate, self.lose, self.ignore, self.dies = threading.Event(), False, False, False
        self.gate.set()
        self.waiting = threading.Event()
        super().__init__(*args, **kwargs)

    def answer(self, tag, auth, value):
        if tag not in ('SET_CPUS', 'SERVICE_TIME', 'SERVE_CLIENTS') or (value or {}).get('control') == 'none':
            return super().answer(tag, auth, value)
        self.waiting.set()
        self.gate.wait(30)
        answer = b'' if self.ignore else super().answer(tag, auth, value)
        if self.dies:
            self.listener.shutdown(socket.SHUT_RDWR)
        if self.lose or self.ignore:
            raise EOFError('lost')
        return answer

    def managed(self):
        return self.info['cpus'] + self.info['busy']


class TrustTest(OperationsTest):
    def fakes(self, count, *options):
        nodes = [self.start(Slow, self.address(), self.info_port + 1, 'open', cpus=8, name='n%d' % i) for i in range(count)]
        admin = self.admin('--secret', 'open', *options)
        for node in nodes:
            self.assertTrue(admin.add(node)['ok'])
        return [admin] + nodes

    def beside(self, call):
        """Call in a thread of its own; its result is asked for with join()."""
        with_result = []
        thread = threading.Thread(target=lambda: with_result.append(call()))
        thread.start()
        self.addCleanup(thread.join)
        return lambda: (thread.join(40), with_result[0])[1]


class Meeting(TrustTest):
    def test_drain_of_one_while_a_control_waits_for_another(self):
        admin, one, slow = self.fakes(2)
        slow.gate.clear()
        result = self.beside(lambda: self.post(admin, 'cpus', [one, slow], cpus=4))
        self.assertTrue(slow.waiting.wait(10))
        lab.wait_for(lambda: one.managed() == 4, what='the quick one is set')
        self.assertTrue(self.post(admin, 'drain', [one], then='stay')['results'][0]['ok'])
        slow.gate.set()
        self.assertTrue(all(r['ok'] for r in result()['results']))
        shown = admin.wait_node(one, cpus=0, drain=lambda drain: drain)
        self.assertEqual((one.managed(), shown['drain']['restore']), (0, 4))
        self.post(admin, 'return', [one])
        self.assertEqual((one.managed(), admin.node(one)['drain']), (4, None))

    def test_later_value_is_remembered(self):
        admin, one, slow = self.fakes(2)
        slow.gate.clear()
        result = self.beside(lambda: self.post(admin, 'cpus', [one, slow], cpus=4))
        self.assertTrue(slow.waiting.wait(10))
        lab.wait_for(lambda: one.managed() == 4, what='the quick one is set')
        self.post(admin, 'cpus', [one], cpus=2)
        slow.gate.set()
        result()
        self.assertEqual((admin.node(one)['wanted'], one.managed()), ({'cpus': {'cpus': 2}}, 2))

    def test_two_drains(self):
        """The second remembers what the node had before the first."""
        admin, node = self.fakes(1)
        node.gate.clear()
        first = self.beside(lambda: self.post(admin, 'drain', [node], then='stay'))
        self.assertTrue(node.waiting.wait(10))
        second = self.beside(lambda: self.post(admin, 'drain', [node], then='stay', note='again'))
        lab.wait_for(lambda: admin.node(node)['drain'] and admin.node(node)['drain']['note'] == 'again', what='the second')
        node.gate.set()
        first(), second()
        self.assertEqual(admin.node(node)['drain']['restore'], 8)
        self.post(admin, 'return', [node])
        self.assertEqual(node.managed(), 8)

    def test_forget_in_the_middle(self):
        admin, one, slow = self.fakes(2)
        slow.gate.clear()
        result = self.beside(lambda: self.post(admin, 'cpus', [one, slow], cpus=4))
        self.assertTrue(slow.waiting.wait(10))
        forgotten = self.beside(lambda: admin.delete('/api/nodes/' + slow.id))
        slow.gate.set()
        self.assertTrue(all(r['ok'] for r in result()['results'] + forgotten()['results']))
        self.assertIsNone(admin.node(slow))
        self.assertEqual(admin.node(one)['wanted'], {'cpus': {'cpus': 4}})

    def test_id_that_is_none(self):
        """It is unknown; the others are set, and it holds nobody up."""
        admin, one, two = self.fakes(2)
        for _ in range(2):
            ids = [one.id, 'bogus', '1.2.3.4:5', two.id]
            results = admin.post('/api/cpus', {'nodes': ids, 'cpus': 4})['results']
            self.assertEqual([r['outcome'] for r in results], ['done', 'unknown', 'unknown', 'done'])
        self.assertEqual((one.managed(), two.managed()), (4, 4))

    def test_forget_refuses_a_drained_node(self):
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node], then='stay')
        for answer in (self.post(admin, 'forget', [node]), admin.delete('/api/nodes/' + node.id)):
            self.assertFalse(answer['results'][0]['ok'])
            self.assertIn('Return it first', answer['results'][0]['message'])
        self.assertTrue(admin.node(node)['drain'])


class Lost(TrustTest):
    def test_reply_is_lost(self):
        """The next poll decides: it was taken."""
        admin, node = self.fakes(1)
        node.lose = True
        result, = self.post(admin, 'cpus', [node], cpus=3)['results']
        self.assertEqual((result['ok'], result['cpus']), (True, 3))
        shown = admin.wait_node(node, cpus=3, state='ready')
        self.assertEqual(shown['wanted'], {'cpus': {'cpus': 3}})
        self.assertEqual(len(node.asked('SET_CPUS')), 1)

    def test_reply_is_lost_and_not_taken(self):
        admin, node = self.fakes(1)
        node.ignore = True
        result, = self.post(admin, 'cpus', [node], cpus=3)['results']
        self.assertEqual((result['ok'], result['outcome']), (False, 'unreachable'))
        self.assertIn('did not take it', result['message'])
        self.assertEqual((node.managed(), admin.node(node)['wanted']), (8, None))
        node.ignore = False
        self.assertTrue(self.post(admin, 'cpus', [node], cpus=3)['results'][0]['ok'])

    def test_reply_is_lost_and_the_node_too(self):
        """It says so, remembers what was sent, and the first answer decides."""
        for taken in (True, False):
            with self.subTest(taken=taken):
                admin, node = self.fakes(1)
                node.lose, node.dies, node.ignore = True, True, not taken
                result, = self.post(admin, 'cpus', [node], cpus=3)['results']
                self.assertEqual((result['ok'], result['outcome']), (False, 'unreachable'))
                self.assertEqual(admin.node(node)['wanted'], {'cpus': {'cpus': 3}})
                again = self.start(Slow, node.address, node.port, 'open', cpus=8, name='again')
                again.sign, again.info['cpus'] = node.sign, node.managed()
                admin.wait_node(node, state='ready', drift=None, wanted={'cpus': {'cpus': 3}} if taken else None)
                self.assertEqual(again.managed(), 3 if taken else 8)
                admin.close()

    def test_never_reached(self):
        """Nothing of it is remembered."""
        admin, node = self.fakes(1)
        node.close()
        admin.wait_node(node, state='unreachable')
        for path, values in (('cpus', {'cpus': 3}), ('drain', {'then': 'stay'}), ('clients', {'clients': 3})):
            result, = self.post(admin, path, [node], **values)['results']
            self.assertEqual(result['outcome'], 'unreachable')
        shown = admin.node(node)
        self.assertEqual((shown['wanted'], shown['drain']), (None, None))

    def test_reply_is_lost_and_another_secret(self):
        """What cannot be looked at any more has taken nothing that we know of."""
        admin, node = self.fakes(1)

        def restart(tag, value, plain=node.outcome):
            if tag != 'NODE_INFO':
                node.secret, node.sign = 'another', wire.new_sign()
                raise EOFError('lost')
            return plain(tag, value)
        node.outcome = restart
        result, = self.post(admin, 'drain', [node], then='stay')['results']
        self.assertEqual((result['ok'], result['outcome']), (False, 'locked'), result)
        self.assertIsNone(admin.node(node)['drain'])

    def test_redo_with_replies_that_make_no_sense(self):
        """What a look has shown is not sent again; what waits behind it has its turn."""
        admin, node = self.fakes(1)
        self.post(admin, 'cpus', [node], cpus=4)
        self.post(admin, 'clients', [node], clients=5)
        accepted = self.post(admin, 'accept', [node])
        undone = admin.post('/api/undo', {'operation': accepted['operation']})
        before = len(node.asked('SET_CPUS'))
        node.outcome, plain = (lambda tag, value: [plain(tag, value), 'nonsense'][tag == 'SET_CPUS']), node.outcome
        admin.post('/api/undo', {'operation': undone['operation']})
        self.assertLessEqual(len(node.asked('SET_CPUS')), before + 1)
        self.assertTrue(self.post(admin, 'clients', [node], clients=3)['results'][0]['ok'])

    def test_accept_gives_up_what_was_left_open(self):
        """A late turn does not bring back what was accepted meanwhile."""
        admin, node = self.fakes(1)
        answer = self.post(admin, 'cpus', [node], cpus=2)
        node.ignore = node.dies = True
        self.assertFalse(admin.post('/api/undo', {'operation': answer['operation']})['results'][0]['ok'])
        self.assertTrue(self.post(admin, 'accept', [node])['results'][0]['ok'])
        node.close()
        again = self.start(Slow, node.address, node.port, 'open', cpus=8, name='n0')
        again.sign, again.info = node.sign, node.info
        admin.wait_node(node, state='ready', timeout=40)
        self.assertTrue(self.post(admin, 'clients', [again], clients=3)['results'][0]['ok'])
        self.assertEqual(admin.node(node)['wanted'], {'serve': {'clients': 3}})

    def test_return_whose_reply_is_lost(self):
        """Not taken back: it is pending, and done with the next answers."""
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node], then='stay')
        node.ignore = True
        result, = self.post(admin, 'return', [node])['results']
        self.assertEqual((result['outcome'], admin.node(node)['drain']['pending']), ('pending', True))
        node.ignore = False
        admin.wait_node(node, timeout=30, drain=None)
        self.assertEqual(node.managed(), 8)

    def test_clients_that_were_not_taken(self):
        """Fewer than were asked for may be what is left of them; here they are not."""
        admin, node = self.fakes(1)
        self.assertTrue(self.post(admin, 'clients', [node], clients=5)['results'][0]['ok'])
        node.ignore = True
        result, = self.post(admin, 'clients', [node], clients=10)['results']
        self.assertFalse(result['ok'])
        self.assertEqual(admin.node(node)['wanted'], {'serve': {'clients': 5}})

    def test_return_is_pending(self):
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node], then='stay')
        node.close()
        admin.wait_node(node, state='unreachable')
        result, = self.post(admin, 'cancel_drain', [node])['results']
        self.assertEqual(result['outcome'], 'pending')
        self.assertTrue(admin.node(node)['drain']['pending'])
        again = self.start(Slow, node.address, node.port, 'open', cpus=8, name='again')
        again.info['cpus'] = 0
        lab.wait_for(lambda: again.managed() == 8, 30, 'it gets its CPUs back')
        admin.wait_node(node, drain=None, state='ready')

    def test_end_is_sent_once(self):
        admin, node = self.fakes(1)
        node.lose = True
        self.post(admin, 'service_time', [node], control='end', time='now')
        admin.wait_node(node, state=lambda state: state != 'unreachable')
        time_ = [value for value in node.asked('SERVICE_TIME') if value['control'] == 'end_time']
        self.assertEqual(len(time_), 1)

    def test_unreadable_reply_is_no_lost_node(self):
        admin, node = self.fakes(1)
        node.outcome, plain = lambda tag, value: 'nonsense' if tag == 'SET_CPUS' else plain(tag, value), node.outcome
        result, = self.post(admin, 'cpus', [node], cpus=3)['results']
        self.assertFalse(result['ok'])
        self.assertEqual(admin.node(node)['state'], 'ready')


class UndoAgain(TrustTest):
    def undo(self, admin, answer, **values):
        return admin.post('/api/undo', dict(values, operation=answer['operation']))

    def test_only_what_nobody_changed_since(self):
        admin, one, two = self.fakes(2)
        answer = self.post(admin, 'cpus', [one, two], cpus=4)
        self.post(admin, 'cpus', [two], cpus=2)
        results = {r['id']: r for r in self.undo(admin, answer)['results']}
        self.assertTrue(results[one.id]['ok'])
        self.assertIn('changed since', results[two.id]['message'].lower())
        self.assertEqual((one.managed(), two.managed()), (8, 2))

    def test_unreached_keep_their_undo(self):
        admin, one, two = self.fakes(2)
        answer = self.post(admin, 'cpus', [one, two], cpus=4)
        two.close()
        admin.wait_node(two, state='unreachable')
        self.undo(admin, answer)
        again = self.start(Slow, two.address, two.port, 'open', cpus=8, name='again')
        again.info['cpus'], again.sign = 4, two.sign
        admin.wait_node(two, state='ready')
        results = self.undo(admin, answer)['results']
        self.assertEqual([(r['id'], r['ok']) for r in results], [(two.id, True)])
        self.assertEqual((one.managed(), again.managed()), (8, 8))

    def test_redo(self):
        admin, node = self.fakes(1)
        answer = self.post(admin, 'cpus', [node], cpus=4)
        titles, values = [], []
        for _ in range(4):
            answer = self.undo(admin, answer)
            titles.append(admin.get('/api/operations')['operations'][0]['title'])
            values.append(node.managed())
        self.assertEqual(titles, ['Undo: Set CPUs to 4', 'Redo: Set CPUs to 4'] * 2)
        self.assertEqual(values, [8, 4, 8, 4])

    def test_set_cpus_at_a_drained_node(self):
        """It stays drained, and gets on its return what it had."""
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node], then='stay')
        answer = self.post(admin, 'cpus', [node], cpus=4)
        self.undo(admin, answer)
        self.assertEqual((node.managed(), admin.node(node)['drain']['restore']), (0, 8))
        self.post(admin, 'return', [node])
        self.assertEqual(node.managed(), 8)

    def test_redo_at_a_drained_node(self):
        """The 0 CPUs that are sent for the drain are not what it gets on its return."""
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node], then='stay')
        answer = self.post(admin, 'cpus', [node], cpus=4)
        for _ in range(2):
            answer = self.undo(admin, answer)
        self.assertEqual((node.managed(), admin.node(node)['drain']['restore']), (0, 4))
        self.post(admin, 'return', [node])
        self.assertEqual(node.managed(), 4)

    def test_set_at_a_drained_node_that_has_returned(self):
        """It had no CPUs because it was drained: it gets those that it had before."""
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node], then='stay')
        answer = self.post(admin, 'cpus', [node], cpus=4)
        self.post(admin, 'return', [node])
        self.assertEqual(node.managed(), 4)
        self.undo(admin, answer)
        self.assertEqual((node.managed(), admin.node(node)['wanted']), (8, None))

    def test_during_a_drain(self):
        """What the node gets on its return is what it had before the operation that is undone."""
        admin, node = self.fakes(1)
        answer = self.post(admin, 'cpus', [node], cpus=4)
        self.post(admin, 'drain', [node], then='stay')
        self.undo(admin, answer)
        self.assertEqual((node.managed(), admin.node(node)['drain']['restore']), (0, 8))
        self.post(admin, 'return', [node])
        self.assertEqual(node.managed(), 8)

    def test_drain_beneath_a_redo(self):
        """What others changed of the drained node's CPUs does not keep the drain from being undone."""
        admin, node = self.fakes(1)
        answer = self.post(admin, 'cpus', [node], cpus=4)
        drained = self.post(admin, 'drain', [node], then='stay')
        for _ in range(2):
            answer = self.undo(admin, answer)
        self.assertTrue(self.undo(admin, drained)['results'][0]['ok'])
        self.assertEqual((node.managed(), admin.node(node)['drain']), (4, None))

    def test_drain_and_forget(self):
        admin, one, two = self.fakes(2)
        answer = self.post(admin, 'drain', [one, two], then='stay')
        self.undo(admin, answer)
        self.assertEqual([n.managed() for n in (one, two)], [8, 8])
        admin.wait_node(one, drain=None)
        self.post(admin, 'cpus', [one], cpus=3)
        answer = self.post(admin, 'forget', [one, two])
        self.assertEqual(admin.nodes(), {})
        self.assertEqual(len([e for e in admin.get('/api/events')['events'] if e.get('action') == 'forget']), 1)
        self.undo(admin, answer)
        admin.wait_node(one, state='ready', wanted={'cpus': {'cpus': 3}})
        admin.wait_node(two, state='ready', wanted=None)

    def test_preview(self):
        """Every request that changes nodes says beforehand what it would do, and sends nothing."""
        admin, one, two = self.fakes(2)
        answer = self.post(admin, 'cpus', [one], cpus=4)
        self.post(admin, 'drain', [two], then='stay')
        seen = [len(node.requests) for node in (one, two)]
        for path, values in (('cpus', {'cpus': 2}), ('clients', {'clients': 2}), ('drain', {}), ('return', {}),
                             ('cancel_drain', {}), ('forget', {}), ('reapply', {}), ('accept', {}),
                             ('service_time', {'control': 'stop', 'time': '12:00'})):
            plan = self.post(admin, path, [one, two], preview=True, **values)
            self.assertEqual(sorted(plan), ['danger', 'results', 'text', 'title'], path)
            self.assertEqual(len(plan['results']), 2)
            self.assertTrue(all(r['message'] for r in plan['results']))
        self.assertIn('--state', self.post(admin, 'drain', [one], preview=True)['text'])
        plan = self.undo(admin, answer, preview=True)
        self.assertIn('8 CPUs', plan['results'][0]['message'])
        tags = {tag for node, count in zip((one, two), seen) for tag, _, _ in node.requests[count:]}
        self.assertLessEqual(tags, {'NODE_INFO'})
        self.assertEqual((one.managed(), two.managed()), (4, 0))


class Written(TrustTest):
    def test_before_it_is_sent(self):
        state = os.path.join(self.folder(), 'state.json')
        admin, node = self.fakes(1, '--state', state)
        node.gate.clear()
        self.beside(lambda: admin.request('POST', '/api/drain', {'nodes': [node.id]}) if admin.running() else None)
        self.assertTrue(node.waiting.wait(10))
        with open(state) as file:
            self.assertEqual(json.load(file)['nodes'][node.id]['drain']['had'], 8)
        node.gate.set()
        admin.wait_node(node, cpus=0)

    def test_place_that_cannot_be_written_any_more(self):
        folder = self.folder()
        state = os.path.join(folder, 'state.json')
        admin, node = self.fakes(1, '--state', state)
        os.rename(folder, folder + '.away')
        self.addCleanup(os.rename, folder + '.away', folder)
        result, = self.post(admin, 'drain', [node])['results']
        self.assertEqual(result['outcome'], 'refused')
        self.assertIn('--state', result['message'])
        self.assertEqual((node.managed(), admin.node(node)['drain'], node.asked('SET_CPUS')), (8, None, []))

    def test_redo_of_a_drain_that_cannot_be_written(self):
        folder = self.folder()
        admin, node = self.fakes(1, '--state', os.path.join(folder, 'state.json'))
        answer = self.post(admin, 'drain', [node])
        answer = admin.post('/api/undo', {'operation': answer['operation']})
        admin.wait_node(node, drain=None)
        os.rename(folder, folder + '.away')
        self.addCleanup(os.rename, folder + '.away', folder)
        result, = admin.post('/api/undo', {'operation': answer['operation']})['results']
        self.assertEqual(result['outcome'], 'refused')
        self.assertEqual((node.managed(), admin.node(node)['drain']), (8, None))

    def test_second_with_one_file(self):
        state = os.path.join(self.folder(), 'state.json')
        admin, node = self.fakes(1, '--state', state)
        self.post(admin, 'cpus', [node], cpus=3)
        status, _, err = self.run_script('--state', state, '--info_port', 0, '-i', self.address())
        self.assertEqual(status, 1, err)
        self.assertIn('used by another dispyadmin', err)
        self.assertEqual(admin.node(node)['wanted'], {'cpus': {'cpus': 3}})

    def test_file_that_is_always_another(self):
        """What is opened is never what the name stands for then: a sentence, and no descriptor is left open."""
        name = os.path.join(self.folder(), 'state.json')
        before = os.listdir('/proc/self/fd')
        for stat in (lambda path: os.lstat('/'), lambda path: os.lstat(path + '.gone')):
            file = dispyadmin.StateFile(name)
            with mock.patch('dispyadmin.os.stat', stat), self.assertRaisesRegex(dispyadmin.StartError, '^--state '):
                file.open()
            file.close()
        self.assertEqual(os.listdir('/proc/self/fd'), before)

    def test_symbolic_link_and_fifo(self):
        folder = self.folder()
        target, link = os.path.join(folder, 'target'), os.path.join(folder, 'link')
        os.symlink(target, link)
        admin, node = self.fakes(1, '--state', link)
        self.post(admin, 'cpus', [node], cpus=3)
        admin.close()
        self.assertTrue(os.path.islink(link))
        with open(target) as file:
            self.assertIn(node.id, file.read())
        os.mkfifo(os.path.join(folder, 'fifo'))
        status, _, err = self.run_script('--state', os.path.join(folder, 'fifo'), '--info_port', 0, '-i', self.address())
        self.assertEqual(status, 1, err)
        self.assertIn('a directory, a pipe or a device', err)

    def test_what_is_left_without_a_file(self):
        admin, node = self.fakes(1)
        self.post(admin, 'drain', [node])
        admin.signal(15)
        self.assertEqual(admin.wait(), 0)
        self.assertIn(node.id, admin.output())

    def test_file_of_1_0(self):
        state = self.write(json.dumps({'dispyadmin': 1, 'forgotten': [], 'nodes': {'%s:%d' % (self.address(), 9): {
            'added': True, 'zone': 3600, 'wanted': {'cpus': {'action': 'cpus', 'asked': {'cpus': 2}, 'value': 2}},
            'drain': {'since': 1.0, 'then': 'stay', 'restore': 4, 'idle': None, 'by': 'root'}}}}), 'state.json')
        with open(state) as file:
            value = json.load(file)
        one, = value['nodes'].values()
        other = '%s:%d' % (self.address(), 9)              # 1.0.0 believed a node that said it had so many
        value['nodes'][other] = dict(one, wanted={}, drain=dict(one['drain'], restore=70000))
        with open(state, 'w') as file:
            json.dump(value, file)
        admin = self.admin('--state', state)
        self.assertEqual((len(admin.nodes()), admin.node(other)['drain']['restore']), (2, None))
        shown = next(node for node in admin.nodes().values() if node['id'] != other)
        self.assertEqual((shown['wanted'], shown['drain']['restore'], shown['drain']['by']),
                         ({'cpus': {'cpus': 2}}, 2, 'root'))
        self.assertEqual(os.listdir(os.path.dirname(state)), ['state.json'])


class Clocks(OperationsTest):
    def test_node_with_a_wrong_clock(self):
        """What it answers to "now" tells its clock; its state goes by that, and it is said that the clock is off."""
        node = self.node('open', env=lab.fake_time('+3h'))
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready', notes=[])
        self.post(admin, 'service_time', [node], control='end', time=None)
        self.post(admin, 'service_time', [node], control='start', time='now')
        shown = admin.node(node)
        self.assertTrue(any('3 h ahead' in note for note in shown['notes']), shown['notes'])
        self.post(admin, 'service_time', [node], control='start', time=None)
        admin.wait_node(node, state='ready')
        past = time.strftime('%H:%M', time.localtime(time.time() + 2.5 * 3600))   # for the node; for us it is to come
        self.post(admin, 'service_time', [node], control='stop', time=past)
        admin.wait_node(node, state='stopped')

    def test_end_now_with_a_later_stop(self):
        """dispynode would move End to tomorrow: what stands in the way is cleared, and it ends."""
        admin, (node,) = self.cluster(1)
        later = time.strftime('%H:%M', time.localtime(time.time() + 7200))
        if later < time.strftime('%H:%M'):
            later = '23:59'
        self.post(admin, 'service_time', [node], control='stop', time=later)
        result, = self.post(admin, 'service_time', [node], control='end', time='now')['results']
        self.assertTrue(result['ok'], result)
        lab.wait_for(lambda: not node.running(), 20, 'dispynode exits')

    def test_end_now_that_ends_nothing(self):
        """A schedule that has died does nothing at End. What was cleared for it is in the record, and undone."""
        admin, (node,) = self.cluster(1)
        for stop in ('00:00', '23:59'):                 # the first one ends the schedule of a node that no client has used
            self.assertTrue(self.post(admin, 'service_time', [node], control='stop', time=stop)['results'][0]['ok'])
            time.sleep(2)                               # it looks at its times
        before = node.info()['service_stop']
        answer = self.post(admin, 'service_time', [node], control='end', time='now')
        self.assertFalse(answer['results'][0]['ok'], answer)
        self.assertTrue(node.running())
        self.assertIsNone(node.info()['service_stop'])
        result, = admin.post('/api/undo', {'operation': answer['operation']})['results']
        self.assertTrue(result['ok'], result)
        self.assertLess(abs(node.info()['service_stop'] - before), 90)
        self.assertIsNone(node.info()['service_end'])

    def test_start_now_alone(self):
        """dispynode moves Start to tomorrow, and accepts no jobs until then: the preview and the outcome say so."""
        admin, (node,) = self.cluster(1)
        preview, = self.post(admin, 'service_time', [node], control='start', time='now', preview=True)['results']
        result, = self.post(admin, 'service_time', [node], control='start', time='now')['results']
        for said in (preview, result):
            self.assertIn('Accepts jobs from tomorrow', said['message'])
        self.assertEqual(admin.wait_node(node, state='stopped')['service_start'], node.info()['service_start'])

    def test_undo_restores_all_three(self):
        admin, (node,) = self.cluster(1)
        late = time.strftime('%H:%M', time.localtime(time.time() + 7200))
        self.post(admin, 'service_time', [node], control='start', time='00:01')
        self.post(admin, 'service_time', [node], control='stop', time=late)
        before = node.info()
        answer = self.post(admin, 'service_time', [node], control='stop', time=None)
        self.assertIn('tomorrow', answer['results'][0]['message'])            # Start was moved
        self.assertTrue(admin.post('/api/undo', {'operation': answer['operation']})['results'][0]['ok'])
        after = node.info()
        for key in ('service_start', 'service_stop', 'service_end'):
            self.assertEqual(after[key] is None, before[key] is None, key)
            if after[key] is not None:
                self.assertLess(min((after[key] - before[key]) % 86400, (before[key] - after[key]) % 86400), 90)

    def test_undo_never_ends_dispynode(self):
        admin, (node,) = self.cluster(1)
        late = time.strftime('%H:%M', time.localtime(time.time() + 120))
        self.post(admin, 'service_time', [node], control='end', time=late)
        answer = self.post(admin, 'service_time', [node], control='end', time=None)
        end = node.info()['service_end']
        self.assertIsNone(end)
        lab.wait_for(lambda: time.strftime('%H:%M', time.localtime(time.time() + 55)) >= late, 90, 'its hour is near')
        results = admin.post('/api/undo', {'operation': answer['operation']})['results']
        self.assertIn('Left out', results[0]['message'])
        self.assertTrue(node.running())
        self.assertIsNone(node.info()['service_end'])
