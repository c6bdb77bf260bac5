"""Why is a node not there?  Each cause made for real, and the fix that is told over HTTP, on the command line, on the
page."""

import http.server
import socket
import threading

from . import environment, lab, test_page, wire

QUICK = 6                        # seconds for the diagnosis of one address and port, on a busy machine
SECRET, CLIENT_SECRET = 'admin-secret-of-the-test', 'client-secret-of-the-test'
STATES = {'ok', 'warning', 'failed', 'skipped'}


class Speaker:
    """A server that is no dispynode: it says something as soon as someone connects, or never says anything."""

    def __init__(self, address, port, says=b''):
        self.says, self.held = says, []
        self.listener = socket.socket(wire.family_of(address))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen(16)
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.held.append(sock)
            if self.says:
                sock.sendall(self.says)

    def close(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        self.thread.join(wire.TIMEOUT)
        for sock in self.held:
            sock.close()


class WebServer:
    """A web server of the standard library."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def __init__(self, address, port):
        self.server = http.server.HTTPServer((address, port), self.Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(wire.TIMEOUT)


class DiagnoseTest(lab.LabTest):
    def setUp(self):
        super().setUp()
        self.port = self.info_port + 1

    def ask(self, admin, host, port=None, seconds=QUICK):
        """The diagnosis that the server makes; every answer has the same shape, shows no secret, and comes in time."""
        clock = lab.FairClock(admin.pid)
        began = clock()
        answer = admin.request('POST', '/api/diagnose', {'host': host, 'port': port} if port else {'host': host})
        self.assertEqual(answer.status, 200, answer.text)
        self.assertLess(clock() - began, seconds)
        self.no_secret(answer.text)
        reply = answer.json
        self.assertEqual(set(reply), {'host', 'port', 'steps', 'cure', 'fix', 'nodes'})
        self.assertEqual(reply['fix'], reply['cure'])
        for step in reply['steps']:
            self.assertEqual(set(step), {'step', 'state', 'message'})
            self.assertIn(step['state'], STATES)
            self.assertRegex(step['message'], r'^\S.*[.?]$')
        self.assertEqual(reply['steps'][-1]['step'], 'table')
        return reply

    def command(self, where, *options, seconds=QUICK, **kwargs):
        """{step: (state, message)}, the last line, and the exit status of --diagnose."""
        status, out, err = self.run_script('--diagnose', where, *options, timeout=seconds, **kwargs)
        self.assertEqual(err, '')
        self.no_secret(out)
        lines = out.splitlines()
        steps = {}
        for line in lines[:-1]:
            mark, state, step, message = line.split(None, 3)
            self.assertEqual(mark, {'ok': '+', 'warning': '!', 'failed': 'x', 'skipped': '-'}[state])
            steps[step] = state, message
        self.assertEqual(status, 3 if lines[-1].startswith('Fix: ') else 0, out)
        return steps, lines[-1], status

    def no_secret(self, text):
        for secret in (SECRET, CLIENT_SECRET):
            self.assertNotIn(secret, text)

    def check(self, reply, *words, **states):
        """The fix has these words (none: no problem), and these steps are in these states."""
        found = {step['step']: step['state'] for step in reply['steps']}
        self.assertEqual({step: found.get(step) for step in states}, states, reply)
        if not words:
            self.assertIsNone(reply['cure'])
        for word in words:
            self.assertIn(word, reply['cure'] or '', reply)

    def message(self, reply, step):
        return ' '.join(each['message'] for each in reply['steps'] if each['step'] == step)

    def certificate(self, name='dispy'):
        return lab.certificate(self.folder(), name)


class Secrets(DiagnoseTest):
    def test_real_nodes(self):
        """One of each kind, asked of one server and on the command line."""
        fine, other, bare, client, both, plain = self.together(
            lambda: self.node(SECRET), lambda: self.node('quite another'), lambda: self.node(),
            lambda: self.node(client_secret=CLIENT_SECRET), lambda: self.node(SECRET, client_secret=SECRET),
            lambda: self.node(SECRET, packages=environment.node_packages('4.15.2', psutil=False)))
        admin = self.admin('--secret', SECRET)
        for node in (fine, other, bare, client, both, plain):
            admin.wait_node(node)
        cases = (
            (fine, (), dict(connect='ok', tls='skipped', protocol='ok', version='ok', secret='ok', psutil='ok')),
            (other, ('--admin_secret', 'others', other.id), dict(version='ok', secret='failed', psutil='skipped')),
            (bare, ('--admin_secret', bare.id), dict(secret='warning', psutil='ok')),
            (client, ('--admin_secret', client.id), dict(secret='failed', psutil='skipped')),
            (both, ('--admin_secret', 'differs', both.id), dict(secret='failed')),
            (plain, ('psutil', plain.id), dict(secret='ok', psutil='warning')),
        )
        for node, words, states in cases:
            with self.subTest(node.id):
                reply = self.ask(admin, node.address, node.port)
                self.check(reply, *words, **states)
                self.assertEqual(reply['nodes'], [node.id])
                self.assertIn('4.15.2', self.message(reply, 'version'))
                self.assertIn('listed as %s' % node.id, self.message(reply, 'table'))
                steps, last, status = self.command(node.id, '--secret', SECRET)
                self.assertEqual({step: steps[step][0] for step in states}, states)
                self.assertEqual(steps['version'], ('ok', 'It runs dispy 4.15.2.'))   # asked, as there is no table
                self.assertEqual(status, 3 if words else 0)
                self.assertEqual(last, 'Fix: %s' % reply['fix'] if words else 'No problem found.')
        self.assertIn('client secret', self.message(self.ask(admin, both.id), 'secret'))
        steps, last, status = self.command(client.id, '--secret', CLIENT_SECRET)
        self.assertEqual((steps['secret'][0], status), ('warning', 3))
        self.assertIn('client secret', steps['secret'][1])

    def test_releases(self):
        """Nodes of other releases tell theirs, too."""
        nodes = self.together(*[lambda packages=packages: self.node(SECRET, packages=packages)
                                for packages in environment.node_matrix()])
        for node in nodes:
            with self.subTest(packages=node.packages.required, python=node.packages.version):
                steps, _, _ = self.command(node.id, '--secret', SECRET)
                self.assertEqual(steps['version'], ('ok', 'It runs dispy %s.' % node.packages.required[0].split('==')[1]))

    def test_no_code_to_an_impostor(self):
        """A host that shows another's sign gets no auth code, and the rows stay as they are."""
        node, impostor = self.fake(SECRET), self.fake(SECRET)
        admin = self.admin('--secret', SECRET)
        admin.add(node)
        admin.wait_node(node, state='ready')
        impostor.sign = node.sign
        reply = self.ask(admin, impostor.address)
        self.check(reply, node.id, secret='warning')
        self.assertEqual(set(impostor.codes), {b'0' * 40})
        self.assertEqual(set(admin.nodes()), {node.id})
        self.assertEqual(admin.node(node)['addresses'], [node.id])

    def test_alias(self):
        """The second address of a node is told as that."""
        first, second = self.address(), self.address()
        self.node(SECRET, address=first, extra=['-i', second])
        admin = self.admin('--secret', SECRET)
        ids = {'%s:%d' % (address, self.port) for address in (first, second)}
        lab.wait_for(lambda: ids in [set(node['addresses']) for node in admin.nodes().values()], what='both addresses')
        for address in (first, second):
            reply = self.ask(admin, address)
            self.check(reply, connect='ok', secret='ok', table='ok')

    def test_unlisted(self):
        """A node that is fine and not in the table: the fix is to add it; the diagnosis itself lists nothing."""
        node = self.fake(SECRET)
        admin = self.admin('--secret', SECRET)
        reply = self.ask(admin, node.address)
        self.check(reply, 'Add', node.id, secret='ok', table='warning')
        self.assertEqual(admin.nodes(), {})
        self.assertTrue(admin.add(node)['ok'])
        self.check(self.ask(admin, node.id), table='ok')
        real = self.node(SECRET, info_port=self.free_ports())  # it announces itself elsewhere, and tells its release here
        reply = self.ask(admin, real.id)
        self.check(reply, 'Add', real.id, version='ok', secret='ok', table='warning')
        self.assertEqual(set(admin.nodes()), {node.id})


class Tls(DiagnoseTest):
    def test_one_side(self):
        certificate = self.certificate()
        secure, plain = self.together(lambda: self.node(SECRET, certfile=certificate), lambda: self.node(SECRET))
        steps, last, status = self.command(secure.id, '--secret', SECRET, '--certfile', certificate)
        self.assertEqual((steps['tls'][0], steps['version'][0], steps['secret'][0], status), ('ok', 'ok', 'ok', 0))
        steps, last, _ = self.command(secure.id, '--secret', SECRET)
        self.assertEqual(steps['tls'][0], 'failed')
        self.assertIn('Start dispyadmin with the --certfile', last)
        steps, last, _ = self.command(plain.id, '--secret', SECRET, '--certfile', certificate, seconds=2 * QUICK)
        self.assertEqual(steps['tls'][0], 'failed')
        self.assertIn('Start dispynode at %s with the same --certfile' % plain.id, last)
        steps, last, _ = self.command(secure.id, '--secret', SECRET, '--certfile', self.certificate('other'))
        self.assertEqual(steps['tls'][0], 'failed')
        self.assertIn('the same --certfile', last)
        self.assertEqual(steps['secret'][0], 'skipped')

    def test_every_python(self):
        """With TLS and without, on each Python of this machine: the same findings, and no warning."""
        certificate = self.certificate()
        secure, plain = self.fake(SECRET, certfile=certificate), self.fake(SECRET)
        for version, python in sorted(environment.PYTHONS.items()):
            if version < (3, 6):
                continue
            with self.subTest(python=version):
                options = '--secret', SECRET
                self.assertEqual(self.command(plain.id, *options, python=python)[2], 0)
                self.assertEqual(self.command(secure.id, '--certfile', certificate, *options, python=python)[2], 0)
                self.assertEqual(self.command(secure.id, *options, python=python)[0]['tls'][0], 'failed')
                steps = self.command(secure.id, '--certfile', self.certificate('other'), *options, python=python)[0]
                self.assertIn('another certificate', steps['tls'][1])

    def test_labelled_rows(self):
        """Found by their announcements, such nodes are rows that say what is wrong, not silence."""
        certificate = self.certificate()
        admin = self.admin('--secret', SECRET)
        secure = self.node(SECRET, certfile=certificate)
        admin.wait_node(secure, timeout=30, state='unreachable', reason=lambda text: text and '--certfile' in text)
        reply = self.ask(admin, secure.id)
        self.check(reply, '--certfile', tls='failed', table='warning')
        self.assertEqual(reply['nodes'], [secure.id])
        secure.close()
        admin.close()
        admin = self.admin('--secret', SECRET, '--certfile', certificate, certfile=certificate)
        plain = self.node(SECRET)
        admin.wait_node(plain, timeout=30, state='unreachable', reason=lambda text: text and '--certfile' in text)
        self.check(self.ask(admin, plain.id, seconds=2 * QUICK), '--certfile', tls='failed')

    def test_unknown_release_row(self):
        """A node of a release to come, whose answers cannot be read, is a row that names its release."""
        node = self.fake(SECRET, mode='garbage', port=0)
        admin = self.admin('--secret', SECRET)
        lab.wait_for(lambda: node.ping(self.info_target(), version='7.1.0') or admin.node(node), what='a row')
        shown = admin.node(node)
        self.assertEqual((shown['state'], shown['version'], shown['controllable']), ('unreachable', '7.1.0', False))
        self.assertIn('dispy 7.1.0', shown['reason'])
        node.mode = 'normal'                         # and when it can be read after all, it is a node like others
        lab.wait_for(lambda: node.ping(self.info_target(), version='7.1.0') or admin.node(node)['state'] == 'ready', 30,
                     'it is read')
        reply = self.ask(admin, node.id)
        self.check(reply, secret='ok', version='warning')
        self.assertIn('7.1.0', self.message(reply, 'version'))


class Places(DiagnoseTest):
    """Nothing there, or something else."""

    def test_closed(self):
        address = self.address()
        admin = self.admin()
        reply = self.ask(admin, address)
        self.check(reply, 'Start dispynode at %s:%d' % (address, self.port), '-i', connect='failed', table='skipped')
        self.assertEqual(reply['nodes'], [])
        self.assertEqual(self.command('%s:%d' % (address, self.port))[2], 3)

    def test_other_programs(self):
        silent, first, web = self.address(), self.address(), self.address()
        self.start(Speaker, silent, self.port)
        self.start(Speaker, first, self.port, b'SSH-2.0-Some_Server\r\n')
        self.start(WebServer, web, self.port)
        admin = self.admin('--secret', SECRET)
        for address, said in ((silent, 'says nothing'), (first, 'SSH-2.0-Some_Server'), (web, 'another program')):
            with self.subTest(said):
                reply = self.ask(admin, address, seconds=2 * QUICK)
                self.check(reply, 'dispynode', address, connect='ok', protocol='failed', secret='skipped')
                self.assertIn(said.lower(), self.message(reply, 'protocol').lower())
                self.assertEqual(reply['nodes'], [])
                self.assertEqual(admin.nodes(), {})

    def test_program_that_takes_one_connection(self):
        """It says nothing, and is gone when it is tried again."""
        address = self.address()
        listener = self.start(socket.socket)
        listener.bind((address, self.port))
        listener.listen(1)

        def take_one():
            sock, _ = listener.accept()
            listener.close()
            sock.recv(100)
            sock.close()
        thread = threading.Thread(target=take_one)
        thread.start()
        self.addCleanup(thread.join, 10)
        status, out, err = self.run_script('--diagnose', '%s:%d' % (address, self.port))
        self.assertEqual((status, 'Traceback' in err), (3, False), err)
        self.assertIn('another program', out)

    def test_what_it_says_is_only_text(self):
        address = self.address()
        self.start(Speaker, address, self.port, b'\x1b[2J<b>\xff\x00' + b'x' * 5000)
        status, out, _ = self.run_script('--diagnose', '%s:%d' % (address, self.port))
        self.assertEqual(status, 3)
        self.assertTrue(out.isascii() if hasattr(out, 'isascii') else True)
        self.assertNotIn('\x1b', out)

    def test_hostile_answers(self):
        """What a node must not do neither hangs the diagnosis nor breaks it."""
        admin = self.admin('--secret', SECRET)
        for mode in ('silent', 'reset', 'garbage', 'huge', 'new_sign', 'slow'):
            with self.subTest(mode):
                node = self.fake(SECRET, mode=mode)
                reply = self.ask(admin, node.id, seconds=25)
                self.assertTrue(reply['cure'])
        self.assertNotIn('Traceback', admin.output())
        self.assertNotIn('unexpected', admin.output())

    def test_other_port_pair(self):
        """dispynode has the ports of the other releases, or those of --node_port."""
        old = self.node(SECRET, info_port=61590)
        steps, last, status = self.command('%s:9701' % old.address, '--secret', SECRET)
        self.assertEqual((steps['connect'][0], steps['elsewhere'][0]), ('failed', 'warning'))
        self.assertIn(old.id, last)
        self.assertIn('--node_port 61591', last)
        steps, last, status = self.command(old.address, '--secret', SECRET)       # both pairs are asked without a port
        self.assertEqual(status, 0)
        node = self.node(SECRET)
        reply = self.ask(self.admin('--secret', SECRET), node.address, 9701)
        self.check(reply, node.id, connect='failed', elsewhere='warning')
        self.assertEqual(reply['nodes'], [node.id])

    def test_loopback_only(self):
        """It runs on this machine, but listens where nobody else reaches it."""
        node = self.node(SECRET, address='127.0.0.1')
        asked = self.address()
        reply = self.ask(self.admin('--secret', SECRET), asked)
        self.check(reply, '127.0.0.1 only', '-i %s' % asked, connect='failed', elsewhere='warning')
        self.assertEqual(reply['nodes'], [node.id])

    def test_no_answer(self):
        """An address that swallows packets: bounded time, and the firewall is named."""
        reply = self.ask(self.admin(), '192.0.2.1', seconds=2 * QUICK)
        self.check(reply, 'firewall', '192.0.2.1', str(self.port))

    def test_unknown_name(self):
        reply = self.ask(self.admin(), 'no-such-host.invalid', seconds=15)
        self.check(reply, 'IP address', 'no-such-host.invalid', name='failed', connect='skipped')
        self.assertEqual(self.command('no-such-host.invalid', seconds=15)[2], 3)

    def test_ipv6(self):
        node = self.fake(SECRET, address='::1')
        self.check(self.ask(self.admin('--secret', SECRET, '--node', node.id), '[::1]'), connect='ok', secret='ok')


class Requests(DiagnoseTest):
    def test_bad_input(self):
        admin = self.admin()
        for body, word in (({}, 'host'), ({'host': ''}, 'host'), ({'host': 5}, 'host'), ({'host': 'a b'}, 'host'),
                           ({'host': '224.0.0.1'}, 'host'), ({'host': 'h', 'port': 0}, 'port'),
                           ({'host': 'h', 'port': '1'}, 'port'), ({'host': 'h:1', 'port': 2}, 'port'),
                           ({'host': 'h', 'secret': 'x'}, 'secret')):
            with self.subTest(body):
                answer = admin.request('POST', '/api/diagnose', body)
                self.assertEqual(answer.status, 400)
                self.assertIn(word, answer.json['error'])
        self.assertEqual(admin.request('GET', '/api/diagnose').status, 405)

    def test_nobody_waits(self):
        """While diagnoses hang, others are answered; more of them than run at a time come in their turn."""
        address = self.address()
        self.start(Speaker, address, self.port)
        admin, answers = self.admin(), []
        threads = [threading.Thread(target=lambda: answers.append(admin.request('POST', '/api/diagnose', {'host': address})))
                   for _ in range(6)]
        for thread in threads:
            thread.start()
        clock = lab.FairClock(admin.pid)
        began = clock()
        for _ in range(10):
            self.assertEqual(admin.request('GET', '/api/nodes').status, 200)
        self.assertLess(clock() - began, 2)
        for thread in threads:
            thread.join(40)
        self.assertLessEqual({answer.status for answer in answers}, {200, 400})
        self.assertEqual(len(answers), 6)
        self.assertLess(lab.threads_of(admin.pid), 30)

    def test_command_beside_a_server(self):
        """It takes no port of nodes, so a dispyadmin that runs goes on, as does one that starts at that moment."""
        node = self.node(SECRET)
        admin = self.admin('--secret', SECRET, '--info_port', self.info_port)
        admin.wait_node(node, state='ready')
        self.assertEqual(self.command(node.id, '--secret', SECRET, '--info_port', self.info_port)[2], 0)
        self.assertEqual(admin.node(node)['state'], 'ready')

    def test_usage(self):
        for value in ('', 'a b', 'host:0', 'host:65536', '::1]:5'):
            status, out, err = self.run_script('--diagnose=' + value)
            self.assertEqual((status, out, len(err.splitlines())), (2, '', 1), err)
            self.assertIn('--diagnose', err)
        self.assertIn('--diagnose', self.run_script('--help')[1])


class Page(test_page.PageTest):
    """What the page shows of it."""

    def wait_cure(self, key):
        self.wait('document.querySelector("#%s .cure:not(:empty)")' % key, 'a cure', 20)
        return self.text('#%s .cure' % key)

    def test_find_nodes(self):
        node = self.fake(SECRET)
        self.open(self.admin('--secret', SECRET))
        self.click('diagnose')
        self.assertIn('host', self.text('add-error'))
        self.type('add-host', node.address)
        self.click('diagnose')
        self.assertIn('Add', self.wait_cure('diagnosis'))
        self.assertEqual(self.element('add-host').get_attribute('value'), node.address)
        states = self.js('Array.from(document.querySelectorAll("#diagnosis li")).map(li => li.dataset.state)')
        self.assertIn('ok', states)
        self.assertEqual(self.js('document.querySelectorAll("#diagnosis li svg use").length'), len(states))
        self.assertIn('Secret, ok:', self.text('diagnosis'))
        self.click('add-node')
        self.outcome(node.id)
        self.click('#diagnosis .quiet')
        self.assertFalse(self.element('diagnosis').is_displayed())
        self.assertEqual(self.js('document.activeElement.id'), 'diagnose')

    def test_sizes(self):
        address = self.address()
        self.open(self.admin('--secret', SECRET))
        self.type('add-host', address)
        self.type('add-port', str(self.info_port + 1))
        self.click('diagnose')
        self.wait_cure('diagnosis')
        for width in (360, 768, 1400):
            self.browser.size(width, 900)
            self.assertLessEqual(self.js('document.documentElement.scrollWidth'), width)
            self.assertTrue(self.element('diagnose').is_displayed())
        self.browser.size(1400, 1000)

    def test_why(self):
        """On the view of a node that is locked, and one that is lost; not on that of a good one."""
        good, locked = self.fake(SECRET), self.fake('another')
        admin = self.admin('--secret', SECRET)
        for node in (good, locked):
            admin.add(node)
        self.open(admin, 'admin_node.html?host=' + good.id)
        self.wait('!document.querySelector("#node").hidden', 'the node view')
        self.assertFalse(self.element('node-why').is_displayed())
        self.open(admin, 'admin_node.html?host=' + locked.id)
        self.wait('!document.querySelector("#node-why").hidden', 'Why?')
        self.element('node-why').send_keys('\n')
        self.assertIn('--admin_secret', self.wait_cure('node-diagnosis'))
        good.close()
        admin.wait_node(good, state='unreachable')
        self.open(admin, 'admin_node.html?host=' + good.id)
        self.wait('!document.querySelector("#node-why").hidden', 'Why?')
        self.assertFalse(self.element('node-diagnosis').is_displayed())
        self.click('node-why')
        self.assertIn('Start dispynode', self.wait_cure('node-diagnosis'))

    def test_what_programs_say_is_text(self):
        address = self.address()
        self.start(Speaker, address, self.info_port + 1, b'<img src=x onerror=alert(1)>\n')
        self.open(self.admin())
        self.type('add-host', address)
        self.click('diagnose')
        self.wait_cure('diagnosis')
        self.assertIn('<img src=x', self.text('diagnosis'))
        self.assertEqual(self.js('document.querySelectorAll("#diagnosis img").length'), 0)
