"""Attacks from the browser's side: who may ask, and clients that hold, lie, flood or look for what is not theirs. The real
script in a process of its own, with a good node that nobody without access controls."""

import ast
import base64
import hashlib
import inspect
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import unittest.mock

import dispyadmin

from . import environment, lab, wire

SECRET = 'open'
NOBODY = 65534
ROUTES = [('GET', '/'), ('GET', '/admin.html'), ('GET', '/admin_node.html?host=x'), ('GET', '/page.js'),
          ('GET', '/page.css'), ('GET', '/api/nodes'), ('GET', '/api/nodes?since=1'), ('GET', '/api/nodes/{node}'),
          ('GET', '/api/about'), ('GET', '/api/history'), ('HEAD', '/api/nodes'),
          ('DELETE', '/api/nodes/{node}'), ('POST', '/api/nodes'),
          ('POST', '/api/secret'), ('POST', '/api/poll'), ('POST', '/api/scan'), ('POST', '/api/cpus'),
          ('POST', '/api/service_time'), ('POST', '/api/clients'), ('GET', '/no'), ('GET', '/api/no'), ('PUT', '/')]
HEAD = b'POST /api/cpus HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'


class HttpTest(lab.HostileTest):
    def raw(self, admin, data, timeout=25, end=False):
        """Send bytes (and the end of sending), read all that comes."""
        with socket.create_connection((admin.host, admin.port), timeout) as sock:
            try:
                sock.sendall(data)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass             # it has been refused already
            return lab.read_rest(sock)

    def connect(self, admin, count, data=b''):
        """That many connections, each with these bytes sent."""
        socks = []
        for _ in range(count):
            sock = socket.create_connection((admin.host, admin.port), 60)
            self.addCleanup(sock.close)
            if data:
                sock.sendall(data)
            socks.append(sock)
        return socks

    @staticmethod
    def waiting(admin):
        """How many connections it has yet to accept."""
        with open('/proc/net/tcp') as file:
            lines = [line.split() for line in file.read().splitlines()[1:]]
        return sum(int(fields[4].split(':')[1], 16) for fields in lines
                   if fields[3] == '0A' and fields[1].endswith(':%04X' % admin.port))

    def remote(self, *options):
        """dispyadmin beyond loopback; the token is not sent by itself."""
        admin, node = self.watched_with_token('--http_host', '0.0.0.0', *options)
        return admin, node

    def watched_with_token(self, *options, **kwargs):
        node = self.start(lab.Watched, self.address(), self.info_port + 1, SECRET, name='good')
        admin = self.admin('--secret', SECRET, *options, **kwargs)
        if admin.host == '0.0.0.0':
            admin.host = '127.0.0.1'
        self.assertTrue(admin.add(node)['ok'])
        admin.wait_node(node, state='ready')
        return admin, node

    def check_untouched(self, node):
        """Nobody has controlled it."""
        self.assertEqual([tag for tag, _, value in node.requests
                          if tag != 'NODE_INFO' and (value or {}).get('control') != 'none'], [])


class Token(HttpTest):
    def test_every_address_needs_it(self):
        admin, node = self.remote()
        token, admin.token = admin.token, None
        self.assertGreater(len(token), 20)
        for method, path in ROUTES:
            path = path.format(node=node.id)
            answer = admin.request(method, path, {'nodes': [node.id], 'cpus': 1} if method == 'POST' else None)
            self.assertEqual(answer.status, 401, (method, path))
            self.assertNotIn(token, answer.text + str(answer.headers))
            self.assertNotIn('good', answer.text)
        cookie = admin.request('GET', '/?token=' + token).headers['Set-Cookie'].partition('=')[0]
        wrong = [token[:-1], token + 'x', token.swapcase(), token[1:], '', ' ', 'x' * 60000, '\xfc\xff',
                 token[:10] + '\x00', '%s,%s' % (token, token), '"%s"' % token, '*', 'null', 'None']
        for text in wrong:
            for headers in ({'Authorization': 'Bearer ' + text}, {'Authorization': 'Basic ' + text},
                            {'Authorization': text}, {'Cookie': '%s=%s' % (cookie, text)},
                            {'X-Forwarded-For': '127.0.0.1', 'Authorization': 'Bearer ' + text}):
                self.assertIn(admin.request('POST', '/api/cpus', {'nodes': [node.id], 'cpus': 1}, headers).status,
                              (401, 400, 431), (text[:80], headers.keys()))
        for path in ('/api/nodes?token=' + token, '/page.js?token=' + token, '/api/about?token=' + token,
                     '/?token=' + token[:-1], '/?token=', '/?token=%s' % ('x' * 200), '/?token=%C3%A4%00'):
            self.assertEqual(admin.request('GET', path).status, 401, path)
        self.assertEqual(admin.request('POST', '/?token=' + token, {}).status, 401)
        self.check_untouched(node)
        admin.token = token
        self.check_alive(admin, node)
        admin.close()
        self.assertNotIn(token, '\n'.join(admin.err))

    def test_tokens_are_compared_in_constant_time(self):
        access = unittest.mock.Mock()
        access.token = 'the-token'
        with unittest.mock.patch.object(dispyadmin.hmac, 'compare_digest', return_value=True) as compare:
            self.assertTrue(dispyadmin.Access.is_token(access, 'another'))
        self.assertEqual(sorted(compare.call_args[0]), [b'another', b'the-token'])
        self.assertFalse(dispyadmin.Access.is_token(access, 'the-toke'))
        self.assertTrue(dispyadmin.Access.is_token(access, 'the-token'))
        for text in ('', '\xfc', '\ud800', 'x' * 100000):
            self.assertFalse(dispyadmin.Access.is_token(access, text))
        tree = ast.parse(inspect.getsource(dispyadmin))
        for node in ast.walk(tree):      # and nowhere by == or in
            if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops):
                names = {getattr(part, 'attr', None) for part in ast.walk(node)}
                self.assertNotIn('token', names, 'line %d' % node.lineno)

    def test_warning_beyond_loopback(self):
        """Said in one line at start, and only where it is so."""
        certfile = lab.certificate(self.folder())
        for options, certificate, lines in ((('--http_host', '0.0.0.0'), None, 1), (('--http_host', '127.0.0.1'), None, 0),
                                            ((), None, 0),
                                            (('--http_host', '0.0.0.0', '--certfile', certfile), certfile, 0)):
            admin = self.admin(*options, certfile=certificate)
            admin.signal(15)
            self.assertEqual(admin.wait(), 0)
            said = [line for line in admin.err if 'warning' in line and ('TLS' in line or 'clear' in line)]
            self.assertEqual(len(said), lines, (options, admin.err))


class Users(HttpTest):
    """On loopback: the user who runs it and root; the kernel tells whose connection it is."""

    CODE = ('import socket, sys\n'
            's = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)\n'
            's.sendall(sys.stdin.buffer.read())\n'
            'data = b""\n'
            'while True:\n'
            '    more = s.recv(65536)\n'
            '    if not more: break\n'
            '    data += more\n'
            'sys.stdout.buffer.write(data)\n')

    def setUp(self):
        super().setUp()
        if os.geteuid() or not shutil.which('setpriv') or not os.path.exists('/usr/bin/python3'):
            self.skipTest('other users need root, setpriv and a Python that they can start')

    def ask(self, admin, uid, method='GET', path='/api/nodes', body=b'', host=None, **headers):
        """The status and the answer for a user with this id."""
        lines = ['%s %s HTTP/1.1' % (method, path), 'Host: localhost', 'Connection: close',
                 'Content-Type: application/json', 'Content-Length: %d' % len(body)]
        lines += ['%s: %s' % (name.replace('_', '-'), value) for name, value in headers.items()]
        done = subprocess.run(['setpriv', '--reuid=%d' % uid, '--regid=%d' % uid, '--clear-groups', '/usr/bin/python3',
                               '-I', '-c', self.CODE, host or admin.host, str(admin.port)],
                              input='\r\n'.join(lines + ['', '']).encode() + body, stdout=subprocess.PIPE,
                              timeout=40)
        return int(done.stdout.split()[1]), done.stdout

    @staticmethod
    def listens(admin, host):
        try:
            socket.create_connection((host, admin.port), 5).close()
            return True
        except OSError:
            return False

    def test_other_users(self):
        token = 'a-token-for-others'
        admin, node = self.watched('--http_host', 'localhost', '--http_token', self.write(token + '\n'))
        body = b'{"nodes": ["%s"], "cpus": 1}' % node.id.encode()
        for uid in (NOBODY, 12345):
            for method, path in ROUTES:
                status, answer = self.ask(admin, uid, method, path.format(node=node.id), body if method == 'POST' else b'')
                self.assertEqual(status, 401, (uid, method, path))
                self.assertNotIn(b'"good"', answer)
            for headers in ({'X_Forwarded_For': '127.0.0.1'}, {'X_Remote_User': 'root'}, {'Authorization': 'Bearer x'},
                            {'Forwarded': 'for=127.0.0.1'}, {'X_Forwarded_User': 'root'}, {'Cookie': 'uid=0'}):
                self.assertEqual(self.ask(admin, uid, **headers)[0], 401, headers)
            if self.listens(admin, '::1'):
                self.assertEqual(self.ask(admin, uid, host='::1')[0], 401)
        self.check_untouched(node)
        self.assertEqual(self.ask(admin, NOBODY, Authorization='Bearer ' + token)[0], 200)
        self.assertEqual(self.ask(admin, 0)[0], 200)
        self.check_alive(admin, node)

    def test_run_by_another_user(self):
        """Open to that user and to root, not to a third."""
        script = self.readable_script()
        node = self.start(lab.Watched, self.address(), self.info_port + 1, SECRET, name='good')
        admin = self.admin('--secret', SECRET, python='/usr/bin/python3', script=script, before=self.as_user(54321))
        self.assertIsNone(admin.token)
        self.assertTrue(admin.add(node)['ok'])               # root
        self.assertEqual(self.ask(admin, 54321)[0], 200)
        for uid in (12345, NOBODY):
            self.assertEqual(self.ask(admin, uid)[0], 401)
        self.check_alive(admin, node)

    def test_run_by_nobody(self):
        """The kernel gives this id to users of other namespaces, too: it is nobody's, and there is a link with the token."""
        script = self.readable_script()
        admin = self.admin(python='/usr/bin/python3', script=script, before=self.as_user(NOBODY))
        token, admin.token = admin.token, None
        self.assertTrue(token)
        self.assertEqual(self.ask(admin, NOBODY)[0], 401)
        self.assertEqual(self.ask(admin, NOBODY, Authorization='Bearer ' + token)[0], 200)
        self.assertEqual(admin.request('GET', '/api/nodes').status, 200)     # root
        body = b'{}'
        self.assertEqual(self.ask(admin, NOBODY, 'POST', '/api/scan', body, Authorization='Bearer ' + token)[0], 200)
        event = next(event for event in admin.get('/api/events')['events'] if event['kind'] == 'action')
        self.assertEqual(event['by'], {'address': '127.0.0.1', 'user': None, 'via': None})

    def test_user_of_another_namespace(self):
        """One whom we do not see, whatever its id is there, is no user of ours."""
        admin = self.admin('--http_host', '127.0.0.1')
        done = subprocess.run(['setpriv', '--reuid=12345', '--regid=12345', '--clear-groups', 'unshare', '--user',
                               '--map-root-user', '/usr/bin/python3', '-I', '-c', self.CODE, admin.host, str(admin.port)],
                              input=b'GET /api/nodes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
                              stdout=subprocess.PIPE, timeout=40)
        self.assertEqual(int(done.stdout.split()[1]), 401)

    @staticmethod
    def as_user(uid):
        return ['setpriv', '--reuid=%d' % uid, '--regid=%d' % uid, '--clear-groups']

    def readable_script(self):
        """The script where every user may read it."""
        script = os.path.join(self.folder(), 'dispyadmin.py')
        os.chmod(os.path.dirname(script), 0o755)
        shutil.copy(environment.SCRIPT, script)
        os.chmod(script, 0o644)
        return script

    def test_a_connection_that_its_user_has_left(self):
        """What was sent before the sender closed, when the kernel knows no user any more, opens nothing."""
        admin, node = self.watched('--http_host', '127.0.0.1')
        body = b'{"nodes": ["%s"], "cpus": 1}' % node.id.encode()
        code = ('import os, socket, sys\n'
                'data = sys.stdin.buffer.read()\n'
                'for i in range(200):\n'
                '    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)\n'
                '    s.sendall(data)\n'
                '    s.shutdown(socket.SHUT_WR) if i % 2 else s.close()\n')
        subprocess.run(['setpriv', '--reuid=%d' % NOBODY, '--regid=%d' % NOBODY, '--clear-groups', '/usr/bin/python3',
                        '-I', '-c', code, admin.host, str(admin.port)],
                       input=HEAD + b'Content-Length: %d\r\n\r\n' % len(body) + body, timeout=60, check=True)
        self.check_quick(admin)
        self.check_untouched(node)
        self.check_alive(admin, node)


class Requests(HttpTest):
    def test_foreign_pages(self):
        """Another site's page: by its own name that leads here, by its origin, or by what a form can send."""
        admin, node = self.watched('--http_name', 'cluster.example')
        here = 'localhost:%d' % admin.port
        body = {'nodes': [node.id], 'cpus': 1}
        for host in ('evil.example', 'evil.example:%d' % admin.port, 'localhost.evil.example', 'evil-localhost',
                     '127.0.0.1.nip.io',
                     '192.0.2.1', '[2001:db8::1]', '0x7f.1', '2130706433', '127.1', 'localhost:80:80',
                     'localhost@evil.example',
                     'evil.example/localhost', 'localhost\tevil', '', ' ', ':%d' % admin.port, '[::1',
                     'localhost,evil.example',
                     'cluster.example.evil', 'xn--localhost', 'localhost%00.evil.example'):
            for method, path in ROUTES[:12]:
                answer = admin.request(method, path.format(node=node.id), body if method == 'POST' else None, {'Host': host})
                self.assertEqual(answer.status, 421, (host, path))
                self.assertNotIn('"good"', answer.text)
        for lines in (b'', b'Host: localhost\r\nHost: evil.example\r\n', b'Host: evil.example\r\nHost: localhost\r\n',
                      b'X: y\r\n Host: localhost\r\n'):
            answer = self.raw(admin, b'GET /api/nodes HTTP/1.1\r\nConnection: close\r\n' + lines + b'\r\n')
            self.assertIn(int(answer.split()[1]), (400, 421), lines)
        for origin in ('http://evil.example', 'null', '', 'http://localhost', 'http://localhost:1', 'file://',
                       'http://' + here + '.evil',
                       'http://evil.example#' + here, 'http://evil.example/' + here, 'http://%s@evil.example' % here,
                       'http://evil.example?' + here, 'chrome-extension://abcdef', 'http://[::1',
                       'http://127.0.0.1:%d' % admin.port):
            for path, values in (('/api/cpus', body), ('/api/scan', {}), ('/api/secret', {'secret': 'x'})):
                answer = admin.request('POST', path, values, {'Origin': origin, 'Host': here})
                self.assertEqual(answer.status, 403, (origin, path))
            answer = admin.request('DELETE', '/api/nodes/' + node.id, None, {'Origin': origin, 'Host': here})
            self.assertEqual(answer.status, 403, origin)
        text = b'{"nodes": ["%s"], "cpus": 1}' % node.id.encode()
        for kind in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', '',
                     'application/json-x',
                     'text/plain; application/json', 'text/plain;charset=application/json', 'application/ json', '*/*',
                     'application/csp-report'):
            self.assertEqual(admin.request('POST', '/api/cpus', text, {'Content-Type': kind}).status, 415, kind)
        for method in ('GET', 'PUT', 'PATCH', 'OPTIONS', 'TRACE', 'CONNECT', 'HEAD', 'PROPFIND', 'post'):
            answer = admin.request(method, '/api/cpus', text, {'Content-Type': 'application/json',
                                                               'X-HTTP-Method-Override': 'POST'})
            self.assertIn(answer.status, (204,) if method == 'OPTIONS' else (405, 501, 400), method)
            self.assertNotIn('Access-Control-Allow-Origin', answer.headers)
        self.check_untouched(node)
        self.assertIn(node.id, admin.nodes())
        self.check_alive(admin, node)

    def test_headers_of_every_answer(self):
        """The same protection on all of them, errors of the standard library's reader included."""
        admin, node = self.remote('--http_name', 'cluster.example')
        bearer = b'Authorization: Bearer %s\r\n' % admin.token.encode()
        good = b' HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
        post = b'POST /api/cpus' + good + bearer
        json_kind = b'Content-Type: application/json\r\n'
        cases = {
            (200, 'page'): b'GET /' + good + bearer + b'\r\n',
            (200, 'json'): b'GET /api/nodes' + good + bearer + b'\r\n',
            (200, 'script'): b'GET /page.js' + good + bearer + b'\r\n',
            (200, 'head'): b'HEAD /' + good + bearer + b'\r\n',
            (204, 'options'): b'OPTIONS /' + good + bearer + b'\r\n',
            (200, 'health'): b'GET /api/health HTTP/1.1\r\nConnection: close\r\n\r\n',
            (303, 'token'): b'GET /?token=' + admin.token.encode() + good + b'\r\n',
            (400, 'body'): post + json_kind + b'Content-Length: 2\r\n\r\n{}',
            (400, 'line'): b'GET / x y HTTP/1.1\r\n\r\n',
            (400, 'version'): b'GET / HTTP/x\r\n\r\n',
            (505, 'version'): b'GET / HTTP/3.0\r\n\r\n',
            (400, 'length'): post + json_kind + b'Content-Length: -1\r\n\r\n',
            (401, 'page'): b'GET /' + good + b'\r\n',
            (401, 'json'): b'GET /api/nodes' + good + b'\r\n',
            (401, 'wrong token'): b'GET /?token=x' + good + b'\r\n',
            (403, 'origin'): post + json_kind + b'Origin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}',
            (404, 'json'): b'GET /no' + good + bearer + b'\r\n',
            (405, 'json'): b'PUT /' + good + bearer + b'Content-Length: 0\r\n\r\n',
            (411, 'json'): post + json_kind + b'\r\n',
            (411, 'chunked'): post + json_kind + b'Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n',
            (413, 'json'): post + json_kind + b'Content-Length: 99999999\r\n\r\n',
            (414, 'uri'): b'GET /' + b'x' * 70000 + good + b'\r\n',
            (415, 'json'): post + b'Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}',
            (421, 'json'): b'GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n',
            (431, 'long'): b'GET /' + good + b'X: ' + b'x' * 70000 + b'\r\n\r\n',
            (431, 'many'): b'GET /' + good + b'X: y\r\n' * 200 + b'\r\n',
            (501, 'method'): b'TRACE /' + good + bearer + b'\r\n',
        }
        script = re.search('<script>(.*?)</script>', dispyadmin.PAGE_HTML, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for (status, what), data in cases.items():
            with self.subTest(status=status, what=what):
                head, _, body = self.raw(admin, data).partition(b'\r\n\r\n')
                lines = head.decode('latin-1').split('\r\n')
                self.assertEqual(int(lines[0].split()[1]), status)
                headers = {}
                for line in lines[1:]:
                    name, _, value = line.partition(': ')
                    self.assertNotIn(name.lower(), headers)
                    headers[name.lower()] = value
                policy = dict(part.strip().partition(' ')[::2] for part in headers['content-security-policy'].split(';'))
                self.assertEqual(policy['default-src'], "'none'")
                self.assertEqual(policy['frame-ancestors'], "'none'")
                self.assertEqual(policy['base-uri'], "'none'")
                self.assertEqual(policy['form-action'], "'none'")
                self.assertEqual(policy['script-src'], "'self' 'sha256-%s'" % digest)
                self.assertNotIn('unsafe', headers['content-security-policy'])
                self.assertEqual(headers['x-content-type-options'], 'nosniff')
                self.assertEqual(headers['x-frame-options'], 'DENY')
                self.assertEqual(headers['referrer-policy'], 'no-referrer')
                self.assertIn('no-store', headers['cache-control'])
                self.assertNotIn('access-control-allow-origin', headers)
                self.assertNotIn('Python', headers.get('server', ''))
                self.assertNotIn(b'Traceback', body)
                self.assertNotIn(SECRET.encode() + b'"', body)
                if status >= 400:
                    self.assertIn(headers['content-type'].split(';')[0], ('application/json', 'text/html'))
        self.check_alive(admin, node)

    def test_paths(self):
        """The server reads no file: nothing but its routes is there."""
        admin, node = self.watched()
        ups = ['../' * 8, '..%2f' * 8, '%2e%2e/' * 8, '..%5c' * 8, '....//' * 8, '%252e%252e%252f' * 8, '..%c0%af' * 8,
               '/.' * 8 + '/']
        places = ['etc/passwd', 'proc/self/environ', 'proc/self/cmdline', 'dispyadmin.py', 'README.rst', '.git/config']
        paths = ['/%s%s' % (up, place) for up in ups for place in places] + ['/' + place for place in places]
        paths += ['/page.js/../../dispyadmin.py', '/page.js/', '/page.js%00', '/page.js%20', '//page.js/..', '/PAGE.JS',
                  '/api/../',
                  '/api/nodes/..%2f..%2fetc%2fpasswd', '/api/nodes/%00', '/api/nodes/%ff%fe', '/api/nodes/' + 'x' * 5000,
                  'file:///etc/passwd', 'http://localhost/etc/passwd', '*', '/?', '/%', '/%zz', '/;/', '\\\\host\\share',
                  '/api/nodes/%0d%0aSet-Cookie:%20a=b', '/\u00e9'.encode().decode('latin-1'), '/%0d%0aX:%20y', '/__class__',
                  '/api/nodes/__init__', '/api/__proto__', '/.', '/..', '/~root', '/static/']
        for path in paths:
            answer = self.raw(admin,
                              b'GET ' + path.encode('latin-1')
                              + b' HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
            status = int(answer.split()[1])
            self.assertIn(status, (400, 404) if path not in ('/?',) else (200,), path)
            self.assertNotIn(b'root:', answer)
            self.assertNotIn(b'import ', answer)
            self.assertNotIn(b'Set-Cookie', answer.partition(b'\r\n\r\n')[0])
        self.check_alive(admin, node)

    def test_bodies_that_lie(self):
        """Less, more, negative, absent, twice, in chunks: refused, and what is left over is never a request."""
        token = 'a-token-for-halves'     # a connection that is half closed does not show whose it is
        admin, node = self.watched('--http_token', self.write(token))
        growth = lab.memory_of(admin.pid)
        text = b'{"nodes": ["%s"], "cpus": 1}' % node.id.encode()
        inner = HEAD + b'Content-Length: %d\r\n\r\n' % len(text) + text
        for lines, body in ((b'Content-Length: -1', text), (b'Content-Length: -%d' % len(text), text),
                            (b'Content-Length: +%d' % len(text), text), (b'Content-Length: 0x1d', text),
                            (b'Content-Length: %d, %d' % (len(text), len(text)), text), (b'Content-Length: 1e3', text),
                            (b'Content-Length: %d\r\nContent-Length: 5' % len(text), text), (b'Content-Length: ', text),
                            (b'Content-Length: 1048577000', text), (b'Content-Length: ' + b'9' * 5000, text),
                            (b'Content-Length: \xb2', text), (b'Content-Length: 1_0', text),
                            (b'Transfer-Encoding: chunked', b'%x\r\n%s\r\n0\r\n\r\n' % (len(text), text)),
                            (b'Transfer-Encoding: chunked', b'ffffffffffffffff\r\n' + text),
                            (b'Transfer-Encoding: identity', text), (b'Transfer-Encoding: x\r\nContent-Length: 5', text),
                            (b'Content-Length: 5\r\nTransfer-Encoding: chunked', b'0\r\n\r\n' + inner)):
            answer = self.raw(admin, HEAD + lines + b'\r\n\r\n' + body)
            self.assertIn(int(answer.split()[1]), (400, 411, 413, 501), lines[:60])
            self.assertEqual(answer.count(b'HTTP/1.1 '), 1, lines[:60])
        head = HEAD + b'Authorization: Bearer %s\r\n' % token.encode()
        self.assertEqual(int(self.raw(admin, head + b'\r\n', end=True).split()[1]), 411)
        answer = self.raw(admin, head + b'Content-Length: %d\r\n\r\n' % (len(text) + 5) + text, end=True)
        self.assertIn(int((answer or b'x 400').split()[1]), (400,))
        for start in (b'GET /api/about', b'HEAD /', b'OPTIONS /api/cpus', b'GET /no', b'PUT /', b'POST /no', b'TRACE /',
                      b'DELETE /api/nodes'):
            for length in (b'Content-Length: %d' % len(inner), b'Transfer-Encoding: chunked'):
                answer = self.raw(admin, start + b' HTTP/1.1\r\nHost: localhost\r\n' + length + b'\r\n\r\n' + inner)
                self.assertEqual(answer.count(b'HTTP/1.1 '), 1, (start, length))
        answer = self.raw(admin,
                          b'GET /api/about HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: %d\r\n\r\n'
                          % len(inner) + inner)
        self.assertEqual(answer.count(b'HTTP/1.1 '), 1)
        self.check_untouched(node)
        self.check_alive(admin, node, growth=(growth, 60))

    def test_largest_body(self):
        """20,000 ids are taken, at 1 MiB and a bit it ends; many at once are served."""
        admin, node = self.watched()
        growth = lab.memory_of(admin.pid)
        ids = ['[2001:db8:1111:2222:3333:4444:5555:%x]:51348' % number for number in range(19999)] + [node.id]
        results = admin.post('/api/cpus', {'nodes': ids, 'cpus': 2})['results']
        self.assertEqual((len(results), sum(result['ok'] for result in results)), (20000, 1))
        self.assertEqual(admin.request('POST', '/api/cpus', {'nodes': ids + ['x'], 'cpus': 2}).status, 400)
        self.assertEqual(admin.request('POST', '/api/cpus', b' ' * (2 << 20),
                                       {'Content-Type': 'application/json'}).status, 413)
        for body in (b'[' * 500000, b'{"a":' * 200000, b'{"nodes": [' + b'"",' * 300000, b'1' * 1000000,
                     b'"' + b'\\u0000' * 150000):
            began = node.clock()
            self.assertEqual(admin.request('POST', '/api/cpus', body, {'Content-Type': 'application/json'}).status, 400)
            self.assertLess(node.clock() - began, 3)
        self.check_alive(admin, node, growth=(growth, 150))


class Load(HttpTest):
    def bounded(self, admin, node, act, memory=100):
        """Hold an attack, and ask meanwhile: another client is served, the node polled; then it is over."""
        growth = lab.memory_of(admin.pid)
        files, threads = lab.open_files_of(admin.pid), lab.threads_of(admin.pid)
        since = node.clock()
        socks = act()
        self.check_alive(admin, node)
        self.assertLess(lab.threads_of(admin.pid) - threads, 600)
        self.assertLess(lab.open_files_of(admin.pid) - files, 700)
        self.assertLess(node.longest_gap(since), 2.5)
        self.assertLess(lab.memory_of(admin.pid, 'VmHWM') - growth, memory, 'MiB')
        return socks

    def test_idle_and_half_open(self):
        """300 of each kind at once, then three times as many connections as there are places."""
        admin, node = self.watched()
        body = b'Content-Length: 1000\r\n\r\n{"nod'
        starts = (b'', b'G', b'GET /api/nodes HTTP/1.1\r\n', b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ', HEAD + body,
                  b'GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n')
        self.bounded(admin, node, lambda: [self.connect(admin, 50, start) for start in starts])
        self.bounded(admin, node, lambda: self.connect(admin, 1500))

    def test_a_byte_now_and_then(self):
        """A request has one deadline, whatever trickles in; each is closed in time."""
        admin, node = self.watched()
        files = lab.open_files_of(admin.pid)
        request = b'GET /api/nodes HTTP/1.1\r\nHost: localhost\r\nX: ' + b'y' * 1000
        socks = self.connect(admin, 60, b'G') + self.connect(admin, 60, HEAD + b'Content-Length: 500\r\n\r\n')
        began, at = node.clock(), 1
        while socks and node.clock() - began < 25:
            for sock in list(socks):
                try:
                    sock.sendall(request[at:at + 1])
                    sock.setblocking(False)
                    if not sock.recv(4096):
                        raise ConnectionResetError
                    sock.setblocking(True)
                except BlockingIOError:
                    sock.setblocking(True)
                except OSError:
                    socks.remove(sock)
            at += 1
            time.sleep(0.5)
            if at == 6:
                self.check_alive(admin, node)
        self.assertEqual(len(socks), 0, 'still open')
        lab.wait_for(lambda: lab.open_files_of(admin.pid) < files + 10, 10, 'all are closed')

    def test_huge_headers(self):
        """Before anybody has shown a token: what a connection may make it keep is small."""
        admin, node = self.watched()
        line = b'X-%d: ' + b'x' * 60000 + b'\r\n'

        def send():
            socks = self.connect(admin, 60, b'GET / HTTP/1.1\r\nHost: localhost\r\n')
            for number in range(95):
                for sock in socks:
                    try:
                        sock.sendall(line % number)
                    except OSError:
                        pass
            return socks
        self.bounded(admin, node, send, memory=150)

    def test_answers_that_nobody_reads(self):
        """Requests without end on connections that are never read: they hold neither threads nor descriptors for long."""
        admin, node = self.watched()
        ask = b'GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n' * 200
        threads = lab.threads_of(admin.pid)

        def send():
            socks = []
            for _ in range(900):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                self.addCleanup(sock.close)
                sock.settimeout(10)
                try:
                    sock.connect((admin.host, admin.port))
                    sock.setblocking(False)
                    sock.send(ask)
                except OSError:
                    pass
                socks.append(sock)
            return socks
        since = node.clock()
        growth = lab.memory_of(admin.pid)
        socks = send()
        lab.wait_for(lambda: self.waiting(admin) == 0, 60, 'all are accepted')
        self.assertLess(lab.threads_of(admin.pid) - threads, 600)
        self.assertLess(lab.memory_of(admin.pid, 'VmHWM') - growth, 600)
        lab.wait_for(lambda: lab.threads_of(admin.pid) - threads < 100, 40, lambda: 'the threads end: %d'
                     % lab.threads_of(admin.pid))
        self.assertLess(node.longest_gap(since), 3)
        for sock in socks:
            sock.close()
        self.check_alive(admin, node)

    def test_all_places_taken_by_slow_operations(self):
        """A hundred and fifty requests that wait for a node which never answers."""
        admin, node = self.watched()
        silent = self.start(lab.Watched, self.address(), self.info_port + 1, 'open', mode='silent')
        body = b'{"host": "%s", "port": %d}' % (silent.address.encode(), silent.port)
        data = (b'POST /api/nodes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
                b'Content-Length: %d\r\n\r\n' % len(body) + body)
        self.bounded(admin, node, lambda: self.connect(admin, 150, data))

    def test_connections_come_and_go(self):
        """Thousands that are reset at once, at every moment."""
        admin, node = self.watched()

        def storm():
            for number in range(1500):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\x01\0\0\0\0\0\0\0')
                sock.connect((admin.host, admin.port))
                sock.sendall((b'', b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n', b'\x16\x03\x01', HEAD)[number % 4] or b'\n')
                sock.close()
        workers = [threading.Thread(target=storm) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.check_alive(admin, node)
        lab.wait_for(lambda: lab.threads_of(admin.pid) < 30, 10, 'the threads have ended')


class Secrets(HttpTest):
    """None in an answer, the page, a log, a traceback, a cookie, an event or the title of the process."""

    WORDS = ('first-secret-7d1f', 'second-secret-55ab', 'node-secret-\u00fc-90cc')

    def codes(self, nodes):
        return [wire.auth_code(word, node.sign).decode() for word in self.WORDS for node in nodes]

    def check_texts(self, nodes, texts, *more):
        for word in list(self.WORDS) + self.codes(nodes) + list(more):
            for where, text in texts.items():
                self.assertNotIn(word, text, where)
                self.assertNotIn(word.encode('unicode-escape').decode(), text, where)

    def test_nowhere(self):
        token = 'the-token-1a2b3c4d'
        nodes = [self.start(lab.Watched, self.address(), self.info_port + 1, word) for word in self.WORDS]
        bad = self.start(lab.Watched, self.address(), self.info_port + 1, self.WORDS[0], mode='garbage')
        admin = self.admin('-d', '--secret', '@' + self.write(self.WORDS[0] + '\n'), '--http_token',
                           self.write(token + '\n'),
                           '--http_host', '0.0.0.0', env={'DISPYADMIN_SECRET': 'environment-secret-11'})
        admin.host = '127.0.0.1'
        texts = {}

        def ask(method, path, body=None, headers=None, bearer=True):
            admin.token = token if bearer else None
            answer = admin.request(method, path, body, headers)
            texts['%s %s %d' % (method, path, len(texts))] = answer.text + str(answer.headers)
            return answer
        for node in nodes + [bad]:
            ask('POST', '/api/nodes', {'host': node.address, 'port': node.port})
        for word in self.WORDS:
            self.assertEqual(ask('POST', '/api/secret', {'secret': word}).status, 200)
            ask('POST', '/api/secret', {'secret': word}, {'Origin': 'http://evil.example'})
            ask('POST', '/api/secret', {'secret': word}, {'Host': 'evil.example'})
            ask('POST', '/api/secret', {'secret': word}, {'Content-Type': 'text/plain'})
            ask('POST', '/api/secret', {'secret': [word]})
            ask('POST', '/api/secret', {'secret': {word: word}})
            ask('POST', '/api/secret', {'secret': 'x', 'secrte': word})
            ask('POST', '/api/secret', ('{"secret": "%s"' % word).encode())
            ask('POST', '/api/secret', {'secret': word}, bearer=False)
            ask('PUT', '/api/secret', {'secret': word})
        for node in nodes:
            self.assertTrue(ask('POST', '/api/cpus', {'nodes': [node.id], 'cpus': 1}).json['results'][0]['ok'])
            ask('POST', '/api/cpus', {'nodes': [node.id], 'cpus': 1000})
        for path in ('/', '/page.js', '/page.css', '/api/nodes', '/api/about', '/api/events', '/metrics',
                     '/api/nodes/' + nodes[0].id,
                     '/api/nodes/' + bad.id):
            ask('GET', path)
            ask('GET', path, bearer=False)
        login = ask('GET', '/?token=' + token, bearer=False)
        self.assertEqual(login.status, 303)
        for path in ('/admin.html?token=%s&x=1', '/admin_node.html?x=1&token=%s', '/api/nodes?token=%s', '/no?token=%s'):
            ask('GET', path % token)
            ask('GET', path % (token + 'x'), bearer=False)
        nodes[0].close()
        admin.token = token
        lab.wait_for(lambda: admin.node(nodes[0])['state'] == 'unreachable', what='a node is lost')
        ask('GET', '/api/nodes')
        self.check_texts(nodes + [bad], texts, 'environment-secret-11')
        for where, text in texts.items():
            self.assertNotIn(token, re.sub(r'Set-Cookie: .*', '', text), where)
        cookie = login.headers['Set-Cookie']
        self.assertRegex(cookie, r'; HttpOnly; SameSite=Strict')
        with open('/proc/%d/comm' % admin.pid) as file:
            texts = {'comm': file.read()}
        with open('/proc/%d/cmdline' % admin.pid) as file:
            texts['cmdline'] = file.read()
        for task in os.listdir('/proc/%d/task' % admin.pid):
            try:
                with open('/proc/%d/task/%s/comm' % (admin.pid, task)) as file:
                    texts['thread ' + task] = file.read()
            except OSError:
                pass             # it has ended
        admin.close()
        texts['log'] = admin.output()
        self.assertGreater(len(admin.err), 50)               # -d it is
        self.check_texts(nodes + [bad], texts, token, 'environment-secret-11')

    WRAPPER = '''
import os, sys, dispyadmin

def broken(*args, **kwargs):
    raise RuntimeError('injected')

where = os.environ.pop('FAULTS')
if where == 'operation':
    dispyadmin.Admin.add_secret = lambda self, secret, **by: broken(secret)
elif where == 'conversation':
    real, count = dispyadmin.read_info, [0]
    def read_info(reply):
        count[0] += 1
        if count[0] > 1:
            broken(reply)
        return real(reply)
    dispyadmin.read_info = read_info
elif where == 'request':
    dispyadmin.read_json = broken
elif where == 'access':
    dispyadmin.Access._trusts = broken
    dispyadmin.Access.is_token = broken
sys.exit(dispyadmin.main())
'''

    def test_tracebacks(self):
        """An unexpected error where secrets are at hand tells of itself, and not of them."""
        script = self.write(self.WRAPPER, 'wrapper.py')
        word, token = self.WORDS[0], 'the-token-1a2b3c4d'
        for where in ('operation', 'conversation', 'request', 'access'):
            with self.subTest(where):
                node = self.start(lab.Watched, self.address(), self.info_port + 1, word)
                admin = self.admin('-d', '--secret', '@' + self.write(word + '\n'),
                                   '--http_token', self.write(token + '\n'), script=script,
                                   env={'PYTHONPATH': environment.ROOT, 'FAULTS': where})
                headers = {'Authorization': 'Bearer ' + token}
                answers = [admin.request('POST', '/api/nodes', {'host': node.address, 'port': node.port}, headers),
                           admin.request('POST', '/api/secret', {'secret': word}, headers),
                           admin.request('GET', '/?token=' + token)]
                lab.wait_for(lambda: 'injected' in admin.output(), 10, lambda: 'the error is logged: ' + admin.output())
                self.assertTrue(admin.running())
                admin.close()
                texts = {str(number): answer.text + re.sub('Set-Cookie.*', '', str(answer.headers))
                         for number, answer in enumerate(answers)}
                texts['log'] = admin.output()
                self.check_texts([node], texts, token)
                self.assertNotIn('injected', texts['0'] + texts['1'] + texts['2'])
