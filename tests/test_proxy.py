"""dispyadmin behind proxies and tunnels: nginx itself, with what an administrator may write, and the headers of others."""

import http.cookiejar
import json
import os
import re
import shutil
import socket
import unittest
import urllib.request

import dispyadmin

from . import environment, lab
from .test_page import PageTest

NAME = 'cluster.example.org'
TOKEN = 'a-token-for-the-proxy'

# What each sends by itself.
# nginx: as Host the host and port of proxy_pass (proxy_set_header in nginx.org/en/docs/http/ngx_http_proxy_module.html).
# Apache: as Host those of ProxyPass, and three headers ("Reverse Proxy Request Headers" in
# httpd.apache.org/docs/2.4/mod/mod_proxy.html).  Caddy: Host as it came, and three headers ("Defaults" in
# caddyserver.com/docs/caddyfile/directives/reverse_proxy).
# So did nginx 1.22, Apache 2.4 and Caddy 2.6 when they were tried.
FORWARDED = {'X-Forwarded-For': '10.1.2.3', 'X-Forwarded-Host': NAME}
PROXIES = {
    'nginx': {'Host': 'localhost:{port}'},
    'nginx to an address': {'Host': '127.0.0.1:{port}'},
    'nginx, Host $host': {'Host': NAME},
    'Apache': dict(FORWARDED, Host='localhost:{port}', **{'X-Forwarded-Server': NAME}),
    'Caddy': dict(FORWARDED, Host=NAME, **{'X-Forwarded-Proto': 'https'}),
    'Caddy at a port': dict(FORWARDED, Host=NAME + ':8443', **{'X-Forwarded-Proto': 'https'}),
}
OWN_ORIGINS = ('https://' + NAME, 'http://%s:8080' % NAME, 'http://' + NAME.upper())
FOREIGN_ORIGINS = ('https://evil.example', 'null', '', 'https://%s.evil.example' % NAME, 'https://evil-' + NAME,
                   'https://a.' + NAME, 'https://%s@evil.example' % NAME, 'https://evil.example/' + NAME,
                   'https://%s:443@evil.example' % NAME, 'https://evil.example#@' + NAME, 'file://' + NAME,
                   'chrome-extension://' + NAME, NAME, '//' + NAME, 'https://%s/' % NAME, 'https://%s:x' % NAME,
                   'https://[%s]x' % NAME, 'https://' + NAME[:-1])


class Nginx(lab.Process):
    """A real nginx with these lines in its server block, on a free port."""

    SERVER = 'server {\n  listen %s:%d;\n  server_name _;\n%s\n}'
    CONFIG = ('daemon off;\nmaster_process off;\nworker_processes 1;\npid %(folder)s/pid;\nerror_log stderr;\n'
              'events { worker_connections 64; }\n'
              'http {\n  access_log off;\n%(paths)s\n%(server)s\n}\n')
    PATHS = ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi')

    def __init__(self, folder, lines, port):
        self.host, self.port = '127.0.0.1', port
        config = os.path.join(folder, 'nginx.conf')
        paths = '\n'.join('  %s_temp_path %s/%s;' % (name, folder, name) for name in self.PATHS)
        with open(config, 'w') as file:
            file.write(self.CONFIG % {'folder': folder, 'paths': paths, 'server': self.SERVER % (self.host, port, lines)})
        super().__init__(['nginx', '-p', folder, '-e', 'stderr', '-c', config])
        try:
            lab.wait_for(self.answers, what=lambda: 'nginx answers: ' + self.output())
        except BaseException:
            self.close()
            raise

    def answers(self):
        if not self.running():
            raise AssertionError('nginx ended: ' + self.output())
        try:
            socket.create_connection((self.host, self.port), 5).close()
            return True
        except OSError:
            return False


class Proxied(lab.Admin):
    """dispyadmin as it is seen through a proxy: the same requests, to another port and below a path."""

    def __init__(self, nginx, path='', token=None):
        self.host, self.port, self.path, self.token = nginx.host, nginx.port, path, token
        self.namespace = self.certfile = None

    def request(self, method, path, body=None, headers=None, timeout=40):
        return super().request(method, self.path + path, body, dict({'Host': NAME}, **headers or {}), timeout)


class ProxyTest(lab.LabTest):
    def shown(self, *options):
        """(dispyadmin with a name for a proxy, one open node)."""
        node = self.fake('open')
        admin = self.admin('--secret', 'open', '--http_name', NAME, *options)
        admin.token = admin.token or TOKEN
        admin.add(node)
        admin.wait_node(node, state='ready')
        return admin, node

    def check_origin(self, server, node, headers, status):
        """A control with these headers is carried out at the node, or refused."""
        before = node.info['cpus']
        answer = server.request('POST', '/api/cpus', {'nodes': [node.id], 'cpus': before % 4 + 1}, headers)
        self.assertEqual(answer.status, status, (headers, answer.text))
        self.assertEqual(node.info['cpus'], before % 4 + 1 if status == 200 else before, headers)
        if status != 200:
            self.assertIn('Origin', answer.json['error'])

    def nginx(self, lines):
        if not shutil.which('nginx'):
            self.skipTest('no nginx')
        return self.start(Nginx, self.folder(), lines, self.free_ports())

    @staticmethod
    def last_action(admin):
        """The newest event of what somebody did."""
        return next(event for event in admin.get('/api/events')['events'] if event['kind'] == 'action')


class Headers(ProxyTest):
    """Each proxy by the headers that it sends."""

    def test_every_request_works(self):
        admin, node = self.shown()
        for proxy, headers in PROXIES.items():
            headers = {name: value.format(port=admin.port) for name, value in headers.items()}
            with self.subTest(proxy):
                for path in ('/', '/page.js', '/page.css', '/api/nodes', '/api/about', '/api/nodes/' + node.id):
                    self.assertEqual(admin.request('GET', path, headers=headers).status, 200, path)
                for origin in OWN_ORIGINS:
                    self.check_origin(admin, node, dict(headers, Origin=origin), 200)
                for origin in FOREIGN_ORIGINS:
                    self.check_origin(admin, node, dict(headers, Origin=origin), 403)
                answer = admin.request('DELETE', '/api/nodes/1.2.3.4:5', None, dict(headers, Origin='https://evil.example'))
                self.assertEqual(answer.status, 403)
                answer = admin.request('DELETE', '/api/nodes/1.2.3.4:5', None, dict(headers, Origin='https://' + NAME))
                self.assertEqual(answer.status, 404)

    def test_everybody_needs_the_token(self):
        """A proxy may run as our own user and add no header: the kernel tells nothing then, on no Host."""
        admin, _ = self.shown()
        self.assertIn('/?token=' + admin.token, admin.out[0])
        token, admin.token = admin.token, None
        for headers in list(PROXIES.values()) + [{}, {'Host': 'localhost'}, {'Host': '[::1]:{port}'}]:
            headers = {name: value.format(port=admin.port) for name, value in headers.items()}
            for path in ('/', '/page.js', '/api/nodes', '/metrics'):
                self.assertEqual(admin.request('GET', path, headers=headers).status, 401, (headers, path))
            headers['Authorization'] = 'Bearer ' + token
            self.assertEqual(admin.request('GET', '/api/nodes', headers=headers).status, 200, headers)

    def test_list_needs_the_token_too(self):
        token = self.write(TOKEN, 'token')
        admin, _ = self.shown('--http_token', token)
        self.assertNotIn('token=', '\n'.join(admin.out))    # it is in the file
        status, out, err = self.run_script('--list', '--http_port', admin.port)
        self.assertEqual((status, out), (1, ''))
        self.assertIn('--http_token FILE', err)
        status, out, err = self.run_script('--list', '--http_port', admin.port, '--http_token', token)
        self.assertEqual(status, 0, err)
        self.assertIn('ready', out)

    def asked_by(self, admin, headers, host=NAME):
        """`by` of the event that a request with these headers makes; its line of the log says the same."""
        lines = self.lines_of_scans(admin)
        self.assertEqual(admin.request('POST', '/api/scan', {}, dict(headers, Host=host)).status, 200)
        by = self.last_action(admin)['by']
        lab.wait_for(lambda: len(self.lines_of_scans(admin)) > len(lines), what='a line in the log')
        line = self.lines_of_scans(admin)[-1]
        logged = json.loads(line[line.index('{'):])
        self.assertEqual((logged['by'], logged['user'], logged['via']), (by['address'], by['user'], by['via']))
        return by

    @staticmethod
    def lines_of_scans(admin):
        return [line for line in admin.err if '"action": "scan"' in line]

    def test_client_is_told_by_the_proxy(self):
        """The last address of X-Forwarded-For, else X-Real-IP, else Forwarded; what is none of a host is nobody's."""
        admin, _ = self.shown()
        for headers, address in (
                ({'X-Forwarded-For': '10.1.2.3'}, '10.1.2.3'),
                ({'X-Forwarded-For': '1.1.1.1, 2.2.2.2 ,10.1.2.3'}, '10.1.2.3'),
                ({'X-Forwarded-For': '10.1.2.3:50123'}, '10.1.2.3'),
                ({'X-Forwarded-For': '2001:DB8::1'}, '2001:db8::1'),
                ({'X-Forwarded-For': '[2001:db8::1]:4711'}, '2001:db8::1'),
                ({'X-Forwarded-For': '::ffff:10.1.2.3'}, '10.1.2.3'),
                ({'X-Forwarded-For': 'fe80::1%<b>'}, 'fe80::1'),
                ({'X-Forwarded-For': '10.1.2.3', 'X-Real-IP': '10.9.9.9', 'Forwarded': 'for=10.8.8.8'}, '10.1.2.3'),
                ({'X-Real-IP': '10.1.2.3', 'Forwarded': 'for=10.8.8.8'}, '10.1.2.3'),
                ({'Forwarded': 'for=10.1.2.3'}, '10.1.2.3'),
                ({'Forwarded': 'for=1.1.1.1;proto=http, For="[2001:db8::1]:4711";by=10.0.0.1;proto=https'}, '2001:db8::1'),
                ({'Forwarded': 'proto=https; for="10.1.2.3:80"; by="10.0.0.1"'}, '10.1.2.3'),
                ({'Forwarded': 'for=";evil, for=10.1.2.3'}, '10.1.2.3')):
            with self.subTest(headers):
                self.assertEqual(self.asked_by(admin, headers), {'address': address, 'user': None, 'via': '127.0.0.1'})
        for headers in ({}, {'X-Forwarded-For': 'unknown'}, {'X-Forwarded-For': '10.1.2.3, '}, {'X-Real-IP': 'root'},
                        {'X-Forwarded-For': '10.1.2.3, x'}, {'X-Forwarded-For': '10.1.2.300'},
                        {'X-Forwarded-For': '<b>10.1.2.3</b>'}, {'X-Forwarded-For': 'unknown', 'X-Real-IP': '10.1.2.3'},
                        {'X-Forwarded-For': '1' * 5000}, {'Forwarded': 'for=_hidden'},
                        {'Forwarded': 'by=10.1.2.3'}, {'Forwarded': 'for='}, {'Forwarded': 'for="[10.1.2.3"'},
                        {'X-Forwarded-For': '', 'Cookie': 'a=b'}, {'X-Forwarded-Host': '10.1.2.3'}, {'Via': '1.1 10.1.2.3'}):
            with self.subTest(headers):
                self.assertEqual(self.asked_by(admin, headers), {'address': '127.0.0.1', 'user': None, 'via': None})

    def test_lines_of_a_header(self):
        """Some proxies add a line of their own behind the client's."""
        admin, _ = self.shown()
        with socket.create_connection((admin.host, admin.port), 10) as sock:
            sock.sendall(('POST /api/scan HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: 10.9.9.9\r\nX-Forwarded-For: 10.1.2.3\r\n'
                          'Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 2\r\n'
                          'Connection: close\r\n\r\n{}' % (NAME, admin.token)).encode())
            self.assertTrue(lab.read_rest(sock).startswith(b'HTTP/1.1 200'))
        self.assertEqual(self.last_action(admin)['by']['address'], '10.1.2.3')

    def test_who_drains(self):
        """The proxy is named where a sentence says who it was, and in the log of requests."""
        admin, node = self.shown('-d')
        headers = {'Host': NAME, 'X-Forwarded-For': '10.1.2.3'}
        body = {'nodes': [node.id], 'then': 'stay'}
        self.assertEqual(admin.request('POST', '/api/drain', body, headers).status, 200)
        self.assertEqual(admin.node(node)['drain']['by'], '10.1.2.3 (via 127.0.0.1)')
        line = 'http 10.1.2.3 (via 127.0.0.1) POST /api/drain'
        lab.wait_for(lambda: line in admin.output(), what='a line for the request')

    def test_headers_without_a_proxy(self):
        """They change nothing about who it is, and open nothing."""
        admin = self.admin('--http_token', self.write(TOKEN))
        user = dispyadmin.user_name(os.geteuid())
        for name, value in (('X-Forwarded-For', '10.1.2.3'), ('X-Real-IP', '10.1.2.3'), ('Forwarded', 'for=10.1.2.3')):
            admin.token = None
            self.assertEqual(admin.request('GET', '/api/nodes', headers={name: value}).status, 401)
            admin.token = TOKEN
            self.assertEqual(self.asked_by(admin, {name: value}, 'localhost'),
                             {'address': '127.0.0.1', 'user': user, 'via': None})
        admin.token = None
        self.assertEqual(admin.request('GET', '/api/nodes').status, 200)


class Tunnels(lab.LabTest):
    def test_two_clusters_on_one_localhost(self):
        """Cookies do not tell ports apart: two logins, in one jar, live beside each other."""
        # the tunnels keep the ports of both heads, 8181, out of sight
        heads = [self.start(lab.Admin, '-i', self.admin_address, '--info_port', 0, '--http_host', host, '--http_port', port,
                            '--http_name', 'localhost')
                 for port in [self.free_ports()] for host in (self.address(), self.address())]
        self.assertEqual(heads[0].port, heads[1].port)
        tunnels = [self.start(Nginx, self.folder(), '  location / { proxy_pass http://%s:%d; }' % (head.host, head.port),
                              self.free_ports()) for head in heads]
        jar = http.cookiejar.CookieJar()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar))
        urls = ['http://localhost:%d/' % tunnel.port for tunnel in tunnels]
        for url, head in zip(urls, heads):
            self.assertIn('page.js', opener.open(url + '?token=' + head.token, timeout=20).read().decode())
        for url, head in list(zip(urls, heads)) * 2:
            with opener.open(url + 'api/about', timeout=20) as answer:
                self.assertEqual(json.loads(answer.read().decode())['hosts'], [self.admin_address])
        self.assertEqual(len({cookie.name for cookie in jar}), 2)

    def test_cookie_for_tls_alone(self):
        """A browser that speaks TLS to the proxy keeps the login for TLS: the proxy's word counts where one may be in front."""
        header = 'X-Forwarded-Proto'
        for options, headers, secure in (((), {}, False), ((), {header: 'https'}, False),
                                         (('--http_name', NAME), {}, False), (('--http_name', NAME), {header: 'http'}, False),
                                         (('--http_name', NAME), {header: 'https, http'}, False),
                                         (('--http_name', NAME), {header: 'https'}, True),
                                         (('--http_name', NAME), {header: 'HTTPS'}, True),
                                         (('--http_name', NAME), {header: 'http, https'}, True)):
            with self.subTest(options=options, headers=headers):
                admin = self.admin('--http_token', self.write(TOKEN), *options)
                answer = admin.request('GET', '/?token=' + TOKEN, headers=headers)
                self.assertEqual(answer.status, 303)
                attributes = answer.headers['Set-Cookie'].split('; ')[1:]
                self.assertEqual(attributes, ['HttpOnly', 'SameSite=Strict'] + ['Secure'] * secure)
                admin.close()

    def test_name_of_the_cookie(self):
        """The same after a restart with the same token, another with another."""
        def name(token):
            admin = self.admin('--http_token', self.write(token))
            answer = admin.request('GET', '/?token=' + token)
            admin.close()
            return answer.headers['Set-Cookie'].partition('=')[0]
        self.assertEqual(name(TOKEN), name(TOKEN))
        self.assertNotEqual(name(TOKEN), name(TOKEN + 'x'))
        self.assertRegex(name(TOKEN), r'^dispyadmin-[0-9a-f]{12}$')


# What an administrator may write: (lines of a server block, the page's path with and without its last slash).
BELOW = {
    'both with a slash': 'location /dispy/ { proxy_pass http://127.0.0.1:{port}/; {more} }',
    'location without a slash': 'location /dispy { proxy_pass http://127.0.0.1:{port}/; {more} }',
    'by name': 'location /dispy/ { proxy_pass http://localhost:{port}/; {more} }',
}
WAYS = {'as it is': '', 'Host $host': 'proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;'}


def lines_of(text, admin, more=''):
    return text.replace('{port}', str(admin.port)).replace('{more}', more)


class RealNginx(ProxyTest):
    def check(self, through, node):
        """Everything works for the page that is seen at this address."""
        for path in ('/', '/admin.html', '/admin_node.html?host=x', '/page.js', '/page.css', '/api/nodes', '/metrics',
                     '/api/nodes/' + node.id, '/api/nodes/' + node.id.replace(':', '%3A')):
            self.assertEqual(through.request('GET', path).status, 200, path)
        self.assertEqual(through.request('HEAD', '/page.js').body, b'')
        for origin in ('https://' + NAME, 'http://%s:%d' % (NAME, through.port)):
            headers = {'Origin': origin, 'Host': NAME if 'https' in origin else '%s:%d' % (NAME, through.port)}
            self.check_origin(through, node, headers, 200)
            self.check_origin(through, node, dict(headers, Origin='https://evil.example'), 403)
        self.assertEqual(through.request('DELETE', '/api/nodes/[::1]:5').status, 404)
        token, through.token = through.token, None
        self.assertEqual(through.request('GET', '/').status, 401)
        login = through.request('GET', '/?token=' + token)
        self.assertEqual(login.status, 303)
        pair = login.headers['Set-Cookie'].partition(';')[0]
        self.assertEqual(through.request('GET', '/api/nodes', headers={'Cookie': pair}).status, 200)
        self.assertEqual(through.request('GET', '/api/nodes', headers={'Cookie': pair + 'x'}).status, 401)
        through.token = token

    def test_at_the_root(self):
        admin, node = self.shown()
        for way, more in WAYS.items():
            with self.subTest(way):
                nginx = self.nginx(lines_of('location / { proxy_pass http://localhost:{port}; {more} }', admin, more))
                self.check(Proxied(nginx, token=admin.token), node)

    def test_below_a_path(self):
        admin, node = self.shown()
        for kind, lines in BELOW.items():
            for way, more in WAYS.items():
                with self.subTest(kind=kind, way=way):
                    self.check(Proxied(self.nginx(lines_of(lines, admin, more)), '/dispy', admin.token), node)

    def readme(self):
        """The example of README.rst for nginx."""
        with open(os.path.join(environment.ROOT, 'README.rst'), encoding='utf-8') as file:
            text = file.read()
        example = re.search(r'\n\n((?:    .*\n)*    location .*\n(?:    .*\n|\n)*?    \}\n)', text).group(1)
        return re.sub(r'(?m)^    ', '', example)

    def test_example_of_the_readme(self):
        admin, node = self.shown()
        example = self.readme()
        self.assertIn('127.0.0.1:%d' % dispyadmin.HTTP_PORT, example)
        nginx = self.nginx(example.replace('127.0.0.1:%d' % dispyadmin.HTTP_PORT, '127.0.0.1:%d' % admin.port))
        through = Proxied(nginx, '/dispy', admin.token)
        self.check(through, node)
        # a client cannot make up who it is, and the largest body that dispyadmin takes passes
        self.assertEqual(through.request('POST', '/api/scan', {}, {'X-Forwarded-For': '10.9.9.9'}).status, 200)
        self.assertEqual(self.last_action(admin)['by'], {'address': '127.0.0.1', 'user': None, 'via': '127.0.0.1'})
        ids = ['[2001:db8:1111:2222:3333:4444:5555:%x%%enp0s31f6]:51348' % number for number in range(20000)]
        self.assertEqual(len(through.post('/api/cpus', {'nodes': ids, 'cpus': 1})['results']), 20000)


class Page(PageTest, ProxyTest):
    """The page below a path of a real nginx, in a real browser."""

    def test_below_a_path(self):
        """With the slash and without, login by ?token= included; it asks and sets where it is."""
        admin, node = ProxyTest.shown(self, '--http_name', '127.0.0.1')
        for kind, lines in BELOW.items():
            nginx = self.nginx(lines_of(lines, admin))
            self.server = admin
            for address in ('/dispy', '/dispy/', '/dispy/admin.html', '/dispy/admin_node.html'):
                with self.subTest(kind=kind, address=address):
                    url = 'http://127.0.0.1:%d' % nginx.port
                    self.driver.delete_all_cookies()
                    self.driver.get(url + address)
                    lab.wait_for(lambda: 'A token is needed' in self.js('document.body.innerText'), what='what is missing')
                    self.browser.errors()                # the refused request is meant
                    self.driver.get(url + address + '?token=%s&host=%s#x' % (admin.token, node.id))
                    self.wait("document.querySelector('#freshness') && document.querySelector('#freshness').textContent",
                              'an answer')
                    self.assertNotIn(admin.token, self.driver.current_url)
                    path = '/dispy/' if address == '/dispy' else address
                    self.assertEqual(self.driver.current_url.partition('?')[0].partition('#')[0], url + path)
                    self.driver.get(url + address)
                    self.wait("document.querySelector('#freshness') && document.querySelector('#freshness').textContent",
                              'an answer with the cookie')
                    self.assertEqual(self.driver.current_url, url + path)
                    # a blocked script or a file that is looked for elsewhere shows here
                    self.assertEqual(self.browser.errors(), [])
            self.driver.get(url + '/dispy')
            self.wait('document.querySelectorAll("#rows tr").length === 1', 'the row')
            self.select(node)
            cpus = node.info['cpus'] % 4 + 1
            self.type('cpus', str(cpus))
            self.click('cpus-set')
            self.wait_cell(node, 'cpus', str(cpus))
            self.assertEqual(node.info['cpus'], cpus)
            nginx.close()

    def test_who_it_was(self):
        admin, _ = ProxyTest.shown(self, '--http_name', '127.0.0.1')
        admin.request('POST', '/api/scan', {}, {'Host': NAME, 'X-Forwarded-For': '10.1.2.3'})
        self.server = admin
        self.driver.get(admin.url + '?token=' + admin.token)
        self.wait("document.querySelector('#freshness').textContent !== ''", 'a first answer')
        self.click('events-button')
        self.wait('document.querySelector("#events-list").innerText.includes("10.1.2.3 (via 127.0.0.1)")', 'who it was')


if __name__ == '__main__':
    unittest.main()
