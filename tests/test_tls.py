"""TLS with a self-signed certificate, as dispy's users make it: towards nodes, from nodes, and for the page."""

import socket
import ssl

from . import environment, lab, wire


class Tls(lab.LabTest):
    def setUp(self):
        super().setUp()
        self.certificate = lab.certificate(self.folder())

    def secure(self, *options, **kwargs):
        return self.admin('--certfile', self.certificate, *options, certfile=self.certificate, **kwargs)

    def test_node(self):
        """Asked over UDP, the node answers over TLS; then it is polled and controlled over TLS, and the page is served
        over TLS."""
        node = self.node('open', certfile=self.certificate)
        admin = self.secure('--secret', 'open', '--ping_interval', 600)
        self.assertEqual(admin.scheme, 'https')
        admin.wait_node(node, timeout=5, state='ready', name=node.name)
        self.assertTrue(admin.get('/api/about')['tls'])
        self.assertTrue(admin.control('cpus', [node], cpus=1)[node.id]['ok'])
        self.assertEqual(node.managed(), 1)
        self.assertIn('<html', admin.request('GET', '/').text.lower())

    def test_every_python(self):
        """ssl.wrap_socket is gone, contexts differ: each Python of this machine as dispyadmin's."""
        node = self.node('open', certfile=self.certificate)
        for version, python in sorted(environment.PYTHONS.items()):
            if version >= (3, 6):
                with self.subTest(python=version):
                    admin = self.secure('--secret', 'open', python=python)
                    admin.wait_node(node, state='ready')
                    admin.close()
                    self.assertNotIn('Warning', admin.output())

    def test_separate_key(self):
        base = self.certificate[:-len('.pem')]
        node = self.node('open', certfile=base + '.pem.crt', extra=['--keyfile', base + '.pem.key'])
        admin = self.admin('--certfile', base + '.pem.crt', '--keyfile', base + '.pem.key', '--secret', 'open',
                           certfile=self.certificate)
        admin.wait_node(node, state='ready')

    def test_other_certificate(self):
        """Another's certificate is not trusted: no secret goes there, and the reason says what is wrong."""
        other = lab.certificate(self.folder(), 'other')
        node = self.node('open', certfile=other)
        admin = self.secure('--secret', 'open', '--node', node.id)
        shown = admin.wait_node(node, state='unreachable', reason=lambda text: text and 'certfile' in text)
        self.assertFalse(shown['controllable'])

    def test_mixed(self):
        """TLS at one side only is said, in both directions."""
        plain, secure = self.node('open'), self.node('open', certfile=self.certificate)
        admin = self.secure('--secret', 'open', '--node', plain.id)
        admin.wait_node(secure, state='ready')
        admin.wait_node(plain, state='unreachable', reason=bool)
        admin.close()
        admin = self.admin('--secret', 'open', '--node', secure.id)
        admin.wait_node(plain, state='ready')
        admin.wait_node(secure, state='unreachable', reason=bool)

    def test_plain_node_never_sees_tls(self):
        """It would take it for gigabytes to come: it is asked in clear until it is known to use TLS, and then no more."""
        plain, secure = self.fake('open', port=0), self.fake('open', port=0, certfile=self.certificate)
        admin = self.secure('--secret', 'open', '--node', plain.id)
        admin.wait_node(plain, state='unreachable', reason=lambda text: text and 'does not use TLS' in text)
        self.assertFalse(admin.add(plain)['ok'])
        self.assertFalse(admin.control('cpus', [plain], cpus=1)[plain.id]['ok'])
        self.assertGreaterEqual(len(plain.codes), 3)
        self.assertEqual(set(plain.codes), {b'0' * 40})      # and no auth code
        self.assertTrue(admin.add(secure)['ok'])
        self.assertTrue(admin.control('cpus', [secure], cpus=1)[secure.id]['ok'])

    def test_plain_request_to_the_page(self):
        """A browser that speaks no TLS, or nothing at all, holds nobody up."""
        admin = self.secure()
        held = socket.create_connection((admin.host, admin.port), 5)
        self.addCleanup(held.close)
        with socket.create_connection((admin.host, admin.port), 5) as sock:
            sock.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
            try:
                answer = sock.recv(1000)
            except ConnectionResetError:
                answer = b''
            self.assertFalse(answer.startswith(b'HTTP/1.1 200'))
        self.assertEqual(admin.get('/api/nodes')['nodes'], [])
        self.assertNotIn('Traceback', admin.output())

    def test_silent_connection_to_the_info_port(self):
        """Connections that never begin the handshake do not keep a node's announcement out."""
        admin = self.secure('--secret', 'open')
        for _ in range(50):
            self.addCleanup(socket.create_connection(self.info_target(), 5).close)
        node = self.fake('open', certfile=self.certificate, port=0)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.certificate)
        with context.wrap_socket(socket.create_connection(self.info_target(), 5, (node.address, 0))) as sock:
            wire.send_message(sock, wire.encode(b'NODE_INFO:', wire.announcement(node.address, node.port, node.sign)))
        admin.wait_node(node, timeout=5, state='ready')

    def test_bad_files(self):
        base = self.certificate[:-len('.pem')]
        for options, word in ((['--certfile', base + '.pem.crt'], '--certfile'),                          # no key in it
                              (['--certfile', self.certificate, '--keyfile', self.write('x')], '--keyfile'),
                              (['--certfile', self.certificate, '--keyfile',
                                lab.certificate(self.folder(), 'b') + '.key'], '--keyfile')):
            status, out, err = self.run_script(*options)
            self.assertIn(status, (1, 2), err)
            self.assertEqual(out, '')
            self.assertEqual(len(err.strip().splitlines()), 1, err)
            self.assertIn(word, err)
