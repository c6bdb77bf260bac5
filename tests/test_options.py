"""The command line: every option, its default, and one clear line for what is wrong with it."""

import os
import signal
import socket
import sys
import time

import dispyadmin

from . import environment, lab, wire

PLANS = 0.3                      # seconds that a socket of the tests waits where nothing should come


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


class Usage(lab.LabTest):
    """What is wrong is said in one line that names the option; exit status 2; never a traceback."""

    def check(self, options, *words, status=2):
        with self.subTest(options=options):
            code, out, err = self.run_script(*options)
            self.assertNotIn('Traceback', err)
            self.assertIn(code, status if isinstance(status, tuple) else (status,), err)
            self.assertEqual(len(lines(err)), 1, err)
            for word in words:
                self.assertIn(word, err)
            self.assertEqual(out, '')

    def test_numbers(self):
        for option in ('--http_port', '--info_port', '--node_port'):
            for value in ('x', '-1', '65536', '1.5', ''):
                self.check([option + '=' + value], option)
        self.check(['--node_port', '0'], '--node_port')
        for option in ('--poll_interval', '--ping_interval'):
            for value in ('x', '0', '-5', 'nan', 'inf', '1e400', ''):
                self.check([option + '=' + value], option)

    def test_hosts(self):
        self.check(['-i', 'no-such-host.invalid'], 'no-such-host.invalid', status=(1, 2))
        self.check(['-i', '192.0.2.77'], '192.0.2.77', status=1)       # an address of no interface here
        self.check(['-i', ''], '--host')
        self.check(['--http_host', 'no-such-host.invalid'], 'no-such-host.invalid', status=(1, 2))
        self.check(['--http_host='], '--http_host')
        self.check(['--http_name='], '--http_name')

    def test_nodes(self):
        for value in ('', ':80', 'host:', 'host:x', 'host:0', 'host:65536', '[::1', '::1]:5', 'a b',
                      'no-such-host.invalid:0'):
            self.check(['--node', value], '--node')

    def test_files(self):
        missing = os.path.join(self.folder(), 'missing')
        self.check(['--secret', '@' + missing], '--secret', missing)
        self.check(['--http_token', missing], '--http_token', missing)
        self.check(['--config', missing], missing)
        self.check(['--certfile', missing], '--certfile', missing, status=(1, 2))
        self.check(['--certfile', self.write('no certificate')], '--certfile', status=(1, 2))
        self.check(['--keyfile', self.write('no key')], '--keyfile')    # without a certificate
        self.check(['--secret', '@' + os.path.dirname(missing)], '--secret')
        self.check(['--http_token', self.write('\n')], '--http_token')  # an empty token would let everyone in
        self.check(['--save_config', os.path.join(missing, 'file')], '--save_config')

    def test_unknown(self):
        self.check(['--no_such_option'], '--no_such_option')
        self.check(['stray'], 'stray')
        self.check(['--http_port'], '--http_port')

    def test_secret_without_terminal(self):
        """There is nobody to ask."""
        self.check(['--secret', '-'], '--secret')

    def test_http_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen(1)
            port = taken.getsockname()[1]
            self.check(['--info_port', '0', '--http_host', '127.0.0.1', '--http_port', str(port)], str(port), status=1)

    def test_info_port_in_use(self):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as taken:
                taken.bind(('', self.info_port))
                if kind == socket.SOCK_STREAM:
                    taken.listen(1)
                self.check(['-i', self.admin_address, '--info_port', str(self.info_port)], str(self.info_port),
                           status=1)


class Information(lab.LabTest):
    def test_version(self):
        status, out, err = self.run_script('--version')
        self.assertEqual((status, err), (0, ''))
        self.assertRegex(out, r'^dispyadmin \d+(\.\d+)*$')

    def test_help(self):
        for option in ('-h', '--help'):
            status, out, err = self.run_script(option)
            self.assertEqual((status, err), (0, ''))
            for word in ('--save_config', '--config', '-d', '--secret', '-i', '--host', '--http_host', '--http_port',
                         '--info_port',
                         '--node_port', '--poll_interval', '--ping_interval', '--ipv4_udp_multicast', '--keyfile',
                         '--certfile', '--node',
                         '--http_token', '--http_name', '--version', 'DISPYADMIN_SECRET', '@FILE'):
                self.assertIn(word, out)
            for default in ('8181', '9700', '9701', '60'):
                self.assertIn(default, out)
            self.assertRegex(out, r'(?is)secret.*(process|other users)')    # why not on the command line

    def test_about(self):
        admin = self.admin('--secret', 'one', '--ping_interval', 7)
        about = admin.get('/api/about')
        self.assertEqual(about['ping_interval'], 7)
        self.assertEqual(about['secrets'], 1)
        self.assertFalse(about['tls'])
        self.assertIn(self.info_port + 1, about['node_ports'])
        self.assertIn(self.info_port, [port['port'] for port in about['info_ports']])
        self.assertIn(self.admin_address, str(about['hosts']))
        status, out, err = self.run_script('--version')
        self.assertEqual('dispyadmin ' + about['version'], out)


class Running(lab.LabTest):
    def test_ready_line_comes_alone_on_standard_output(self):
        admin = self.admin()
        self.assertEqual(len(admin.out), 1)
        self.assertEqual(admin.get('/api/nodes')['nodes'], [])

    def test_interval(self):
        self.assertEqual(self.admin('--poll_interval', 1).get('/api/nodes')['poll_interval'], 1)

    def test_ends_cleanly(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                silent = self.fake(mode='silent')       # an exchange that hangs does not hold the end up
                admin = self.admin()
                self.addCleanup(admin.close)
                silent.ping(self.info_target())
                lab.wait_for(lambda: silent.connections, 10, 'the node is asked')
                self.assertLess(admin.seconds_to_end(number), 1.5)     # a second, and a bit
                self.assertEqual(admin.wait(), 0)
                self.assertNotIn('Traceback', admin.output())
                silent.close()

    def test_ends_cleanly_while_starting(self):
        """A signal that comes early ends it too, without a traceback."""
        for delay in (0.02, 0.1, 0.2):
            admin = self.admin(wait=False)
            time.sleep(delay)                       # the moment is what is tested
            admin.signal(signal.SIGTERM)
            self.assertIn(admin.wait(10), (0, -signal.SIGTERM))
            self.assertNotIn('Traceback', admin.output())

    def test_runs_without_terminal(self):
        admin = self.admin()                        # standard input is at its end already
        node = self.fake()
        node.ping(self.info_target())
        admin.wait_node(node, state='ready')
        self.assertTrue(admin.running())

    def test_http_host(self):
        for host in ('127.0.0.1', '::1', self.address()):
            admin = self.admin('--http_host', host, '--info_port', 0)
            self.assertEqual(admin.host, host)
            self.assertEqual(admin.get('/api/nodes')['nodes'], [])

    def test_localhost_by_default(self):
        admin = self.admin()
        with self.assertRaises(OSError):
            socket.create_connection((self.address(), admin.port), 2)

    def test_debug(self):
        quiet, loud = self.admin(), self.admin('-d', '--info_port', 0)
        node = self.fake()
        for admin in (quiet, loud):
            admin.post('/api/nodes', {'host': node.address, 'port': node.port})
        lab.wait_for(lambda: node.id in '\n'.join(loud.err) and len(loud.err) > len(quiet.err), what='debug messages')

    def test_module_is_importable_and_silent(self):
        """Nothing starts on import."""
        process = self.start(lab.Process, [sys.executable, '-W', 'error', '-c',
                                           'import dispyadmin; print(dispyadmin.__version__)'],
                             cwd=environment.ROOT)
        self.assertEqual(process.wait(), 0, process.output())
        self.assertEqual(len(process.out), 1)


class Ports(lab.LabTest):
    def test_reply_port_of_others(self):
        for options in (('--reply_port', 9700), ('--reply_port', 61591), ('--reply_port', 9702),
                        ('--reply_port', 12345, '--http_port', 12345)):
            status, _, err = self.run_script(*options)
            self.assertEqual(status, 2, err)
            self.assertIn('--reply_port', err)
        settings = dispyadmin.read_settings(['-i', self.address(), '--info_port', '0', '--http_port', '9707'], {})
        admin = dispyadmin.Admin(settings)                           # the page has it: another one is taken
        self.addCleanup(admin.discard)
        self.assertNotEqual(admin.listener.reply_port, 9707)

    def bindable(self, port):
        """A client could take the port: UDP without SO_REUSEADDR first, as clients do."""
        try:
            for kind, reuse in ((socket.SOCK_DGRAM, 0), (socket.SOCK_STREAM, 1)):
                with socket.socket(socket.AF_INET, kind) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                    sock.bind(('', port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen(1)
            return True
        except OSError:
            return False

    def test_explicit_port_is_held(self):
        self.admin()
        for _ in range(20):
            self.assertFalse(self.bindable(self.info_port))
            time.sleep(PLANS / 10)

    def test_clients_port_left_alone(self):
        self.admin('--info_port', 0)
        for _ in range(20):
            self.assertTrue(self.bindable(self.info_port))
            self.assertTrue(self.bindable(9700))
            time.sleep(PLANS / 10)

    def test_found_without_info_port(self):
        """It asks, from a port of its own."""
        node = self.node('open')
        self.admin('--info_port', 0, '--secret', 'open').wait_node(node, state='ready')

    def test_node_port(self):
        """--node gives the port, --node_port what is taken without."""
        node, other = self.fake(), self.fake(port=self.free_ports())
        admin = self.admin('--node', node.address, '--node', other.id)
        admin.wait_node(node, state='ready')
        admin.wait_node(other, state='ready')


class Secrets(lab.LabTest):
    SECRET = 'Tr0ub4dor & täglich'

    def check(self, *options, **kwargs):
        node = self.fake(self.SECRET)
        admin = self.admin('-d', *options, **kwargs)
        self.assertTrue(admin.add(node)['ok'])
        admin.wait_node(node, state='ready', controllable=True)
        self.assertEqual(admin.control('cpus', [node], cpus=3)[node.id]['cpus'], 3)
        pages = ''.join(admin.request('GET', path).text for path in ('/', '/api/nodes', '/api/about',
                                                                     '/api/nodes/' + node.id))
        code = wire.auth_code(self.SECRET, node.sign).decode()
        for text in (pages, admin.output()):
            self.assertNotIn(self.SECRET, text)
            self.assertNotIn(code, text)
        return admin

    def test_command_line(self):
        self.check('--secret', self.SECRET)

    def test_file(self):
        for ending in ('', '\n', '\r\n'):
            self.check('--secret', '@' + self.write(self.SECRET + ending)).close()

    def test_environment(self):
        self.check(env={'DISPYADMIN_SECRET': self.SECRET})

    def test_credential(self):
        """What systemd hands to a service is taken where nothing else is given; an empty one is none."""
        folder = os.path.dirname(self.write(self.SECRET + '\n', 'secret', 0o400))
        self.check(env={'CREDENTIALS_DIRECTORY': folder}).close()
        other = os.path.dirname(self.write('other', 'secret'))
        self.check('--secret', self.SECRET, env={'CREDENTIALS_DIRECTORY': other}).close()
        self.check('--secret', self.SECRET, env={'CREDENTIALS_DIRECTORY': os.path.join(folder, 'missing')}).close()
        self.check(env={'DISPYADMIN_SECRET': self.SECRET,
                        'CREDENTIALS_DIRECTORY': os.path.dirname(self.write('\n', 'secret'))}).close()
        name = self.write('[DEFAULT]\nsecret = %s\n' % self.SECRET, 'admin.cfg')
        self.check('--config', name, env={'CREDENTIALS_DIRECTORY': other})

    def test_credential_token(self):
        """So is the token of the page, which is checked as one of --http_token is."""
        folder = os.path.dirname(self.write('a-token-of-browsers\n', 'token'))
        admin = self.admin('--http_host', self.admin_address, '--http_name', 'page.example.org',
                           env={'CREDENTIALS_DIRECTORY': folder})
        admin.token = 'a-token-of-browsers'
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Host': 'page.example.org'}).status, 200)
        admin.token = 'another-token-of-browsers'
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Host': 'page.example.org'}).status, 401)
        status, _, err = self.run_script(env={'CREDENTIALS_DIRECTORY': os.path.dirname(self.write('short\n', 'token'))})
        self.assertEqual(status, 2)
        self.assertIn('8 to 200', err)

    def test_command_line_beats_environment(self):
        self.check('--secret', self.SECRET, env={'DISPYADMIN_SECRET': 'other'})

    def test_process_list(self):
        """Neither a file's name nor the environment shows the secret to other users."""
        for kwargs in ({'options': ('--secret', '@' + self.write(self.SECRET))},
                       {'env': {'DISPYADMIN_SECRET': self.SECRET}}):
            admin = self.check(*kwargs.pop('options', ()), **kwargs)
            with open('/proc/%d/cmdline' % admin.pid, 'rb') as file:
                self.assertNotIn(self.SECRET.encode(), file.read())
            admin.close()


class GivenNodes(lab.LabTest):
    def test_rows_from_the_start(self):
        """--node is a row at once: unreachable until the node answers, with what to do."""
        address = self.address()
        admin = self.admin('--secret', 'open', '--node', '%s:%d' % (address, self.info_port + 1))
        node = admin.wait_node('%s:%d' % (address, self.info_port + 1), state='unreachable', reason=bool)
        self.assertIsNone(node['update_time'])
        self.fake('open', address=address)
        admin.wait_node(node['id'], state='ready', reason=None)

    def test_name(self):
        node = self.fake(address='127.0.0.1')
        admin = self.admin('--node', 'localhost:%d' % node.port)
        admin.wait_node(node, state='ready')
        self.assertEqual(len(admin.nodes()), 1)

    def test_ipv6(self):
        node = self.fake(address='::1')
        self.admin('--node', '[::1]:%d' % node.port).wait_node(node, state='ready')

    def test_name_that_does_not_resolve(self):
        """The name may resolve tomorrow: no reason to end."""
        admin = self.admin('--node', 'no-such-host.invalid')
        self.assertEqual(admin.get('/api/nodes')['totals']['ready'], 0)
        lab.wait_for(lambda: 'no-such-host.invalid' in admin.output() + str(admin.nodes()), what='it is named')
        self.assertTrue(admin.running())
