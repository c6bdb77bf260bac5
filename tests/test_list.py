"""--list: the table of a dispyadmin that runs, or of what is found without one; each form and each exit status."""

import csv
import errno
import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from unittest import mock

import dispyadmin

from . import environment, lab

ANSWER, SOME_DO_NOT, NO_NODES, CANNOT, USAGE = 0, 3, 4, 1, 2
ODD = 'a,"b"\n=c\x1b[2J\u202e'        # what no name should be


class ListTest(lab.LabTest):
    def list(self, *options, python=sys.executable, env=None, **kwargs):
        """(exit status, standard output, standard error) of --list."""
        environ = dict(dict(os.environ, PYTHONWARNINGS='error'), **(env or {}))
        environ.pop('DISPYADMIN_SECRET', None)
        done = subprocess.run([python, environment.SCRIPT, '--list'] + [str(option) for option in options], env=environ,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **kwargs)
        err = done.stderr.decode('utf-8', 'replace')
        self.assertNotIn('Traceback', err)
        return done.returncode, done.stdout.decode('utf-8'), err

    def of(self, admin, *options, **kwargs):
        """--list of this dispyadmin."""
        return self.list('--http_port', admin.port, *options, **kwargs)

    def cluster(self, *secrets, options=(), **kwargs):
        """(dispyadmin with the secret 'open', a fake node for each of these secrets), in the order of addresses."""
        admin = self.admin('--secret', 'open', *options)
        nodes = [self.fake(secret, **kwargs) for secret in secrets]
        for node in nodes:
            admin.add(node)
        return admin, nodes


class Running(ListTest):
    def test_table(self):
        admin, (node, other) = self.cluster('open', 'another', name='worker-7')
        status, out, err = self.of(admin)
        self.assertEqual(status, SOME_DO_NOT)
        title, first, second = out.splitlines()
        self.assertEqual(re.split(' {2,}', title), ['NODE', 'NAME', 'STATE', 'CPUS', 'BUSY', 'FREE CPU', 'FREE MEMORY',
                                                    'VERSION', 'REASON'])
        self.assertEqual(re.split(' {2,}', first), [node.id, 'worker-7', 'ready', '4', '0', '50 %', '1.0 GiB'])
        self.assertTrue(second.startswith(other.id) and 'locked' in second and second.endswith('of its own.'), second)
        self.assertEqual(title.index('STATE'), first.index('ready'))
        self.assertIn('as told by the dispyadmin at http://localhost:%d/: 2 nodes, 1 ready, 1 locked' % admin.port, err)

    def test_real_node(self):
        """What is told of a real one is what it says itself."""
        node = self.node('open', name='real')
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        status, out, _ = self.of(admin, '--json')
        shown, = json.loads(out)
        info = node.info()
        self.assertEqual((status, shown['id'], shown['name'], shown['max_cpus'], shown['version']),
                         (ANSWER, node.id, 'real', info['max_cpus'], '4.15.2'))
        row, = csv.DictReader(io.StringIO(self.of(admin, '--csv')[1]))
        self.assertEqual((row['name'], row['max_cpus'], row['controllable'], row['service_start']),
                         ('real', str(info['max_cpus']), 'true', ''))
        self.assertGreater(int(row['memory_available']), 2 ** 20)

    def test_exit_statuses(self):
        admin = self.admin('--secret', 'open')
        self.assertEqual(self.of(admin)[0], NO_NODES)
        node = self.fake('open')
        admin.add(node)
        self.assertEqual(self.of(admin)[0], ANSWER)
        node.info['cpus'] = 0                    # stopped, and answers
        admin.wait_node(node, state='stopped')
        self.assertEqual(self.of(admin)[0], ANSWER)
        node.close()
        admin.wait_node(node, state='unreachable')
        self.assertEqual(self.of(admin)[0], SOME_DO_NOT)

    def test_order(self):
        """By address, as a number."""
        admin, nodes = self.cluster(*['open'] * 12)
        _, out, _ = self.of(admin, '--json')
        self.assertEqual([node['id'] for node in json.loads(out)], [node.id for node in nodes])

    def test_names_of_strangers(self):
        """They cannot write on the terminal, add lines, or become formulas."""
        admin = self.admin('--secret', 'open')
        for name in (ODD, '=1+2', '@x', 'w' * 300, '\u6f22\u5b57'):
            admin.add(self.fake('open', name=name))
        status, out, _ = self.of(admin)
        self.assertEqual(status, ANSWER)
        self.assertEqual(len(out.splitlines()), 6)
        self.assertTrue(all(text.isprintable() for text in out.splitlines()), out)
        wide = out.splitlines()[-1]              # two places for each of its characters
        self.assertEqual(wide.index('ready') + 2, out.splitlines()[0].index('STATE'))
        rows = list(csv.DictReader(io.StringIO(self.of(admin, '--csv')[1])))
        self.assertEqual([row['name'] for row in rows[1:3]], ["'=1+2", "'@x"])
        self.assertTrue(rows[0]['name'].startswith('a,"b"') and rows[0]['name'].isprintable(), rows[0])
        text = self.of(admin, '--json')[1]
        self.assertTrue(all(line.isprintable() for line in text.splitlines()))
        self.assertEqual(json.loads(text)[4]['name'], '\u6f22\u5b57')

    def test_old_terminal(self):
        """On Python 3.6 in the C locale, what cannot be written is replaced, and nothing fails."""
        admin, _ = self.cluster('open', name='caf\u00e9-\u6f22')
        for version, python in sorted(environment.PYTHONS.items())[:2]:
            if version >= (3, 6):
                for form in ((), ('--json',), ('--csv',)):
                    with self.subTest(version=version, form=form):
                        status, out, err = self.of(admin, *form, python=python,
                                                   env={'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'})
                        self.assertEqual(status, ANSWER, err)
                        self.assertIn('caf', out)

    def test_reader_that_goes(self):
        admin, _ = self.cluster(*['open'] * 3)
        done = subprocess.run(
            ['/bin/bash', '-c', '"$@" | true; echo ${PIPESTATUS[0]}', 'sh', sys.executable, environment.SCRIPT, '--list',
             '--http_port', str(admin.port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.stdout.decode().strip(), str(ANSWER))
        self.assertNotIn('Error', done.stderr.decode())

    def test_nothing_is_changed(self):
        """The one that runs is asked, and nobody else."""
        admin, (node,) = self.cluster('open')
        before, events = len(node.requests), len(admin.get('/api/events')['events'])
        admin.post('/api/poll', {'interval': 60})
        lab.wait_for(lambda: len(node.requests) >= before, what='it is polled')
        self.of(admin)
        self.assertEqual(len(admin.get('/api/events')['events']), events + 1)


class Access(ListTest):
    TOKEN = 'token-for-the-list'

    def test_token(self):
        """Where one is needed: the right one, none, another."""
        token = self.write(self.TOKEN + '\n', 'token')
        admin = self.admin('--secret', 'open', '--http_host', '0.0.0.0', '--http_token', token)
        admin.token = self.TOKEN
        admin.add(self.fake('open'))
        place = ('--http_host', '0.0.0.0', '--http_port', admin.port)
        self.assertEqual(self.list(*place, '--http_token', token)[0], ANSWER)
        status, out, err = self.list(*place)
        self.assertEqual((status, out), (CANNOT, ''))
        self.assertIn('--http_token FILE', err)
        status, out, err = self.list(*place, '--http_token', self.write('another-token', 'other'))
        self.assertEqual((status, out), (CANNOT, ''))
        self.assertIn('does not take the token', err)
        self.assertNotIn('another-token', err)

    def test_tls(self):
        """With the certificate, and on this machine without."""
        certificate = lab.certificate(self.folder())
        admin = self.admin('--secret', 'open', '--certfile', certificate, certfile=certificate)
        admin.add(self.fake('open', certfile=certificate))
        for options in (('--certfile', certificate), ()):
            with self.subTest(options):
                status, out, err = self.of(admin, *options)
                self.assertEqual(status, ANSWER, err)
                self.assertIn('ready', out)
                self.assertIn('https://', err)
        other = lab.certificate(self.folder(), 'other')
        status, out, err = self.of(admin, '--certfile', other)
        self.assertEqual((status, out), (CANNOT, ''))
        self.assertIn('--certfile', err)

    def test_no_dispyadmin(self):
        """Another program at the port: a web server, and one that speaks no HTTP."""
        class Web(http.server.BaseHTTPRequestHandler):
            body = b'<h1>It works</h1>'

            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(self.body)

            def log_message(self, *_):
                pass
        web = http.server.HTTPServer(('127.0.0.1', 0), Web)
        self.addCleanup(web.server_close)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(web.shutdown)
        lie = {'id': '10.0.0.1:9701', 'ip_addr': '10.0.0.1', 'port': 9701, 'state': 'ready', 'avail_info': None}
        for body in (Web.body, b'{}', b'[' * 100000, b'{"nodes": 7}', json.dumps({'nodes': [lie]}).encode(),
                     json.dumps({'nodes': [dict(lie, id='10.0.0.1:9701\n\x1b[2J')]}).encode(),
                     json.dumps({'nodes': [dict(dict.fromkeys(dispyadmin.VIEW_KEYS), announces='there', **lie)]}).encode()):
            Web.body = body
            with self.subTest(body[:60]):
                status, out, err = self.list('--http_host', '127.0.0.1', '--http_port', web.server_port)
                self.assertEqual((status, out), (CANNOT, ''), err)
                self.assertIn('is not dispyadmin', err)
        for mode in ('garbage', 'reset'):
            with self.subTest(mode):
                node = self.fake('open', address='127.0.0.1', port=0, mode=mode)
                status, out, err = self.list('--http_host', '127.0.0.1', '--http_port', node.port, env=lab.RESET_IN_TLS)
                self.assertEqual((status, out), (CANNOT, ''), err)
                self.assertIn('--http_port', err)

    def test_reset_at_once(self):
        """Whatever ends a connection that was made is not "nothing runs there", however early it comes."""
        node = self.fake('open', address='127.0.0.1', port=0, mode='reset')
        settings = dispyadmin.read_settings(['--list', '--http_host', '127.0.0.1', '--http_port', str(node.port)], {})
        before = node.connections
        for _ in range(100):                     # in more than half of these, connect() itself says it
            with self.assertRaisesRegex(dispyadmin.StartError, 'is not dispyadmin'):
                dispyadmin.ask_running(settings)
        self.assertGreaterEqual(node.connections - before, 100)

        class Refusing(socket.socket):
            def setsockopt(self, level, *rest):  # as macOS does when the connection is over
                if level == socket.IPPROTO_TCP:
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                super().setsockopt(level, *rest)
        with mock.patch('socket.socket', Refusing), self.assertRaisesRegex(dispyadmin.StartError, 'is not dispyadmin'):
            dispyadmin.ask_running(settings)

    def test_how_connecting_fails(self):
        """Refused or out of reach: nothing runs there. Ended: something does."""
        settings = dispyadmin.read_settings(['--list', '--http_host', '127.0.0.1', '--http_port', '9'], {})
        for number in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EADDRNOTAVAIL,
                       errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE):
            with self.subTest(errno.errorcode[number]), mock.patch(
                    'socket.create_connection', side_effect=OSError(number, os.strerror(number))):
                if number in (errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE):
                    with self.assertRaisesRegex(dispyadmin.StartError, 'is not dispyadmin'):
                        dispyadmin.ask_running(settings)
                else:
                    self.assertEqual(dispyadmin.ask_running(settings), ('127.0.0.1:9', None))
        for error in (socket.timeout('timed out'), socket.gaierror(socket.EAI_NONAME, 'not known')):
            with self.subTest(error), mock.patch('socket.create_connection', side_effect=error):
                self.assertEqual(dispyadmin.ask_running(settings), ('127.0.0.1:9', None))

    def test_options_that_do_not_go_together(self):
        for options, word in ((('--json', '--csv'), 'one form'), (('--http_port', 'x'), 'http_port')):
            status, out, err = self.list(*options)
            self.assertEqual((status, out), (USAGE, ''))
            self.assertIn(word, err)
        status, _, err = self.run_script('--json')
        self.assertEqual(status, USAGE)
        self.assertIn('--list', err)


class Alone(ListTest):
    """No dispyadmin runs: nodes are searched for."""

    def alone(self, *options):
        return self.list('--http_port', self.free_ports(), '-i', self.admin_address, '--node_port', self.info_port + 1,
                         *options)

    def test_found_by_asking(self):
        nodes = self.together(lambda: self.node('open', name='first'), lambda: self.node('other', name='second'))
        status, out, err = self.alone('--secret', 'open', '--json')
        shown = {node['id']: node for node in json.loads(out)}
        self.assertEqual(status, SOME_DO_NOT, err)
        self.assertEqual([shown[node.id]['state'] for node in nodes], ['ready', 'locked'])
        self.assertEqual(shown[nodes[0].id]['name'], 'first')
        self.assertIn('no dispyadmin runs at', err)

    def test_named(self):
        """Those of --node are told of whether they answer or not."""
        node, gone = self.fake('open'), self.fake('open')
        gone.close()
        status, out, _ = self.alone('--secret', 'open', '--node', node.id, '--node', gone.id, '--csv')
        rows = {row['id']: row for row in csv.DictReader(io.StringIO(out))}
        self.assertEqual((status, rows[node.id]['state'], rows[gone.id]['state']), (SOME_DO_NOT, 'ready', 'unreachable'))

    def test_none(self):
        status, out, err = self.alone('--secret', 'open')
        self.assertEqual((status, len(out.splitlines())), (NO_NODES, 1))
        self.assertIn('0 nodes', err)
        self.assertEqual(self.alone('--json')[:2], (NO_NODES, '[]\n'))

    def test_nothing_is_kept(self):
        """The state file and the program of --on_event are those of the dispyadmin that serves."""
        folder = self.folder()
        node, state = self.fake('open'), os.path.join(folder, 'state.json')
        status, _, _ = self.alone('--secret', 'open', '--node', node.id, '--state', state, '--keep',
                                  '--on_event', 'touch ' + os.path.join(folder, 'told'), '--event', 'found')
        self.assertEqual(status, ANSWER)
        self.assertEqual(os.listdir(folder), [])
        self.assertEqual({tag for tag, _, _ in node.requests}, {'NODE_INFO', 'SERVICE_TIME'})
        self.assertEqual([value['control'] for value in node.asked('SERVICE_TIME')], ['none'])     # sets nothing
