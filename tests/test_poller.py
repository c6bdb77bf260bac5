"""The poller by itself, in this process: every way of waiting for sockets, and nodes that do not answer."""

import selectors
import socket
import threading
import time
import unittest.mock

import dispyadmin
from dispyadmin import Answer, NodeError, Talk

from . import lab

REQUEST = dispyadmin.write_message(b'NODE_INFO:', {'sign': 'c' * 40})
WAYS = [getattr(selectors, name) for name in ('SelectSelector', 'PollSelector', 'EpollSelector', 'KqueueSelector')
        if hasattr(selectors, name)]


class PollerTest(lab.LabTest):
    def poller(self, places, way=selectors.DefaultSelector, tls=None):
        with unittest.mock.patch.object(dispyadmin.selectors, 'DefaultSelector', way):
            poller = dispyadmin.Poller(places, tls)
        poller.start()
        self.addCleanup(poller.join, time.monotonic() + 5)
        self.addCleanup(poller.end)
        return poller

    def ask(self, poller, address, port, lane='asked'):
        """Begin to ask; a function that waits for (result, error)."""
        over, outcome = threading.Event(), []
        steps = dispyadmin.ask_info(REQUEST, dispyadmin.STRANGER, ['', 'open'], lambda sign: True)

        def done(result, error):
            outcome.extend([result, error])
            over.set()
        poller.submit(Talk(address, port, steps, done), lane)

        def wait(seconds=20):
            self.assertTrue(over.wait(seconds), 'no outcome in %d s' % seconds)
            return outcome
        return wait

    def silent(self):
        """(address, port) that accepts and never answers."""
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.bind((self.address(), 0))
        sock.listen(64)
        return sock.getsockname()

    def closed(self):
        return self.address(), self.free_ports()


class Waiting(PollerTest):
    def check(self, way, **tls):
        client = dispyadmin.tls_contexts(tls['certfile'], None)[0] if tls else None
        poller = self.poller(64, way, client)
        nodes = [self.fake('open', port=0, **tls) for _ in range(20)]
        garbage, closed = self.fake('open', port=0, mode='garbage', **tls), self.closed()
        waits = [self.ask(poller, node.address, node.port) for node in nodes]
        bad = [self.ask(poller, garbage.address, garbage.port), self.ask(poller, *closed), self.ask(poller, *self.silent())]
        for node, wait in zip(nodes, waits):
            answer, error = wait()
            self.assertIsNone(error)
            self.assertIsInstance(answer, Answer)
            known = answer.known
            self.assertEqual((known.sign, known.secret, known.admin), (node.sign, 'open', True))
        errors = [wait()[1] for wait in bad]
        self.assertTrue(all(errors))
        self.assertIn('refused', str(errors[1]))
        self.assertIsInstance(errors[2], NodeError)
        self.assertIn('No answer within', str(errors[2]))

    def speaks_first(self):
        """(address, port) of a server of another kind, which greets who connects."""
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.bind((self.address(), 0))
        sock.listen(64)

        def greet():
            try:
                connection, _ = sock.accept()
                connection.sendall(b'SSH-2.0-OpenSSH_9.2\r\n')
                self.addCleanup(connection.close)
            except OSError:
                pass
        threading.Thread(target=greet, daemon=True).start()
        return sock.getsockname()

    def test_what_speaks_first_is_no_dispynode(self):
        for way in WAYS:
            with self.subTest(way.__name__):
                error = self.ask(self.poller(16, way), *self.speaks_first())(3)[1]
                self.assertIn('no dispynode', str(error))

    def test_every_way_of_waiting(self):
        for way in WAYS:
            with self.subTest(way.__name__):
                self.check(way)

    def test_every_way_of_waiting_with_tls(self):
        certificate = lab.certificate(self.folder())
        for way in WAYS:
            with self.subTest(way.__name__):
                self.check(way, certfile=certificate)


class Failure(PollerTest):
    def test_each_conversation_ends_when_a_socket_cannot_be_closed(self):
        def close(talk, real=Talk.close):
            real(talk)
            raise OSError('injected')

        nodes = [self.fake('open', port=0) for _ in range(5)]
        with unittest.mock.patch.object(Talk, 'close', close), self.assertLogs('dispyadmin'):
            poller = self.poller(16)
            for wait in [self.ask(poller, node.address, node.port) for node in nodes]:
                self.assertIsInstance(wait()[0], Answer)


class Silence(PollerTest):
    def test_silent_nodes_hold_up_nobody(self):
        """More of them than there are places, none of which was known to be silent: those that answer do not wait until
        the silent ones are given up, and these still have their full time."""
        poller = self.poller(16)
        place, clock = self.silent(), lab.FairClock()
        began = clock()
        silent = [self.ask(poller, *place) for _ in range(40)]
        nodes = [self.fake('open', port=0) for _ in range(20)]
        for wait in [self.ask(poller, node.address, node.port) for node in nodes]:
            self.assertIsNone(wait()[1])
        self.assertLess(clock() - began, dispyadmin.EXCHANGE_TIME)
        for wait in silent:
            self.assertIn('No answer within', str(wait(60)[1]))
        # 12 of the 16 places are for slow ones: 40 of them take four rounds
        self.assertGreater(time.monotonic() - began, 3 * dispyadmin.EXCHANGE_TIME)

    def test_slow_ones_leave_places_to_others(self):
        poller = self.poller(4)
        silent = [self.ask(poller, *self.silent(), lane='asked_slow') for _ in range(6)]
        node = self.fake('open', port=0)
        clock = lab.FairClock()
        began = clock()
        self.assertIsNone(self.ask(poller, node.address, node.port)()[1])
        self.assertLess(clock() - began, dispyadmin.EXCHANGE_TIME / 2)
        for wait in silent:
            self.assertIn('No answer within', str(wait(60)[1]))
