"""The barest machine: without names, IPv6, /proc, standard streams, descriptors, users; and what the operating system says,
as a sentence with what to do."""

import errno
import itertools
import json
import os
import re
import signal
import socket
import ssl
import sys
import unittest.mock

import dispyadmin

from . import environment, lab, wire

# Starts dispyadmin with what the environment variable BROKEN names changed.
WRAPPER = '''
import errno, os, signal, socket, sys

what, argument = os.environ.pop('BROKEN').split()
import dispyadmin

if what == 'family':                 # as a kernel does without it
    real = socket.socket
    class Socket(real):
        def __init__(self, family=socket.AF_INET, *args, **kwargs):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *args, **kwargs)
    socket.socket = Socket
else:                                # a signal comes just when this is called
    place, _, name = argument.rpartition('.')
    owner = getattr(dispyadmin, place) if place else dispyadmin
    real = getattr(owner, name)
    def method(*args, **kwargs):
        os.kill(os.getpid(), getattr(signal, what))
        return real(*args, **kwargs)
    setattr(owner, name, staticmethod(method) if isinstance(owner.__dict__.get(name), staticmethod) else method)
sys.exit(dispyadmin.main())
'''
PYTHONS = sorted({environment.PYTHONS[environment.OLDEST], environment.PYTHONS[environment.NEWEST]})
NO_NAMES = {'hosts': '', 'resolv.conf': '', 'nsswitch.conf': 'hosts: dns\n'}

# What goes before the command: a machine that lacks something.
SHELL = ['sh', '-c']
NO_PROC = ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /proc && exec "$@"', 'sh']
NO_USER = ['unshare', '--mount', 'sh', '-c', 'mount --bind /dev/null /etc/passwd && exec "$@"', 'sh']
NO_FOLDER = SHELL + ['mkdir gone && cd gone && rmdir "$PWD" && exec "$@"', 'sh']
READ_ONLY = ['unshare', '--mount', 'sh', '-c',
             'mount --make-rprivate / && mount -o remount,bind,ro / && ! touch /touched 2>&- && exec "$@"', 'sh']
NO_INTERRUPT = SHELL + ['trap "" INT && exec "$@"', 'sh']
NO_ENVIRONMENT = ['env', '-i']
FEW_FILES = SHELL + ['ulimit -n %d && exec "$@"' % dispyadmin.LEAST_FILES, 'sh']


def closing(*numbers):
    return SHELL + ['exec "$@" ' + ' '.join('%d>&-' % number for number in numbers), 'sh']


TOKEN = 'a-token-of-this-test'
# Where it cannot start it leaves closing sockets to the system; a Python that watches for that would add lines.
UNWATCHED = {'PYTHONDEVMODE': '', 'PYTHONWARNINGS': ''}


class BareTest(lab.LabTest):
    def start_on(self, *options, **kwargs):
        """dispyadmin at a port that is known beforehand, as its first line may have nowhere to go."""
        port = self.free_ports()
        admin = self.admin('--http_port', port, '--http_token', self.write(TOKEN), *options, wait=False, **kwargs)
        admin.scheme, admin.host, admin.port, admin.token = 'http', '127.0.0.1', port, TOKEN

        def served():
            self.assertTrue(admin.running(), admin.output())
            try:
                return admin.request('GET', '/api/about').status == 200
            except OSError:
                return False
        lab.wait_for(served, lab.START_TIMEOUT, lambda: 'the page is served: ' + admin.output())
        return admin

    def check_works(self, admin, node):
        """The page is served, a node is found and polled, and SIGTERM ends it."""
        self.assertIn('page.js', admin.request('GET', '/').text)
        self.assertTrue(admin.add(node)['ok'])
        admin.wait_node(node, state='ready')
        self.check_end(admin)

    def check_end(self, admin):
        admin.signal(signal.SIGTERM)
        self.assertEqual(admin.wait(), 0, admin.output())
        self.assertNotIn('Traceback', admin.output())
        lab.finish(admin)

    def check_refused(self, options, *words, status=2, **kwargs):
        """One sentence, with these words."""
        with self.subTest(options=options):
            code, out, err = self.run_script(*options, **kwargs)
            self.assertNotIn('Traceback', err)
            self.assertEqual((code, out, len(err.splitlines())), (status, '', 1), (out, err))
            for word in words:
                self.assertIn(word, err)

    def broken(self, *what):
        """What starts dispyadmin with this changed: arguments of lab.Admin."""
        return {'script': self.write(WRAPPER, 'wrapper.py'), 'env': {'PYTHONPATH': environment.ROOT,
                                                                     'BROKEN': ' '.join(what)}}

    def space(self, name, **files):
        """A host with nothing but loopback, and these files in /etc."""
        space = self.start(lab.Namespace, 'da%d-%s' % (os.getpid(), name))
        for file, text in files.items():
            space.etc_file(file, text)
        return space


class Localhost(BareTest):
    """It is loopback by definition (RFC 6761), whatever resolver there is."""

    def test_defaults_start_without_names(self):
        lab.need_namespaces()
        for has_ipv6 in (True, False):
            with self.subTest(ipv6=has_ipv6):
                space = self.space('names%d' % has_ipv6, **NO_NAMES)
                if not has_ipv6:
                    space.call(self.switch_off_ipv6)
                admin = self.start(lab.Admin, namespace=space)
                self.assertEqual(admin.host, 'localhost')
                for admin.host in ('127.0.0.1',) + ('::1',) * has_ipv6:
                    self.assertEqual(admin.nodes(), {})
                node = self.fake_in(space)
                self.assertEqual([r['id'] for r in admin.post('/api/nodes', {'host': 'a.localhost'})['results'] if r['ok']],
                                 [node.id])
                status, out, err = self.run_script('--list', '--json', '--http_port', admin.port, namespace=space)
                self.assertEqual(status, 0, err)
                self.assertEqual([shown['id'] for shown in json.loads(out)], [node.id])
                self.assertIn('as told by the dispyadmin at http://localhost:%d/' % admin.port, err)
                self.check_end(admin)
                space.close()

    @staticmethod
    def switch_off_ipv6():
        with open('/proc/sys/net/ipv6/conf/all/disable_ipv6', 'w') as file:
            file.write('1')

    def fake_in(self, space, **kwargs):
        return self.start(lambda: space.call(lambda: wire.FakeNode('127.0.0.1', 9701, **kwargs)))

    def test_no_resolver_is_asked(self):
        with unittest.mock.patch('socket.getaddrinfo', side_effect=AssertionError('a resolver is asked')):
            for name in ('localhost', 'LocalHost', 'localhost.', 'app.localhost', 'a.b.LOCALHOST.'):
                self.assertIn(dispyadmin.resolve(name), (['127.0.0.1', '::1'], ['127.0.0.1']))
            for address in ('127.0.0.1', '::1', '10.1.2.3', '2001:db8::1', '::ffff:10.0.0.1'):
                self.assertEqual(dispyadmin.resolve(address), [dispyadmin.canonical(address)])
            for name in ('localhost.example', 'mylocalhost', 'localhost.localdomain'):
                with self.assertRaises(AssertionError):
                    dispyadmin.resolve(name)
            with unittest.mock.patch('dispyadmin.is_bindable', return_value=False):
                self.assertEqual(dispyadmin.resolve('localhost'), ['127.0.0.1'])


class Machines(BareTest):
    """It starts, serves, finds a node and ends, whatever the machine lacks."""

    def check_on(self, before=(), **kwargs):
        with self.subTest(before=before):
            self.setUp()                 # ports of its own
            self.check_works(self.start_on(before=before, **kwargs), self.fake())

    def test_without_ipv6(self):
        self.check_on(**self.broken('family', 'IPv6'))
        lab.need_namespaces()
        space = self.space('ipv6')
        space.call(Localhost.switch_off_ipv6)
        node = self.start(lambda: space.call(lambda: wire.FakeNode(self.address(), self.info_port + 1)))
        self.check_works(self.start_on(namespace=space), node)
        self.check_refused(['-i', '::1'], '::1', status=1, namespace=space)

    def test_ipv6_node_without_ipv6(self):
        """Its row says what is the matter."""
        admin = self.admin('--node', '[::1]:%d' % (self.info_port + 1), **self.broken('family', 'IPv6'))
        shown = admin.wait_node('[::1]:%d' % (self.info_port + 1), state='unreachable', reason=bool)
        self.assertIn('no IPv6', shown['reason'])

    def test_ipv6_without_proc(self):
        """Whether there is IPv6 is not read from /proc."""
        lab.need_namespaces()
        with unittest.mock.patch('os.path.exists', return_value=False):
            self.assertTrue(dispyadmin.has_ipv6())

    def test_without_what_is_usual(self):
        lab.need_namespaces()
        self.check_on(NO_PROC)
        self.check_on(NO_USER)
        self.check_on(READ_ONLY, cwd='/')
        self.check_on(NO_FOLDER, cwd=self.folder())
        self.check_on(NO_ENVIRONMENT)
        self.check_on(FEW_FILES)

    def test_without_anything(self):
        lab.need_namespaces()
        self.check_on(NO_USER + NO_PROC + NO_FOLDER + NO_INTERRUPT + FEW_FILES + closing(0, 1, 2) + NO_ENVIRONMENT,
                      cwd=self.folder())

    def test_removed_folder(self):
        """Names below it are refused in a sentence."""
        for options in (['--state', 'file'], ['--config', 'file'], ['--save_config', '--state', 'file']):
            self.check_refused(options, 'no such file or folder', status=(1 if options[0] == '--state' else 2),
                               before=NO_FOLDER, cwd=self.folder(), env=UNWATCHED)

    def test_letters(self):
        """In the C locale, and where standard output has ASCII alone: names of nodes, files, secrets."""
        secret, folder = 'Geheimnis \u00e4\u00f6\u00fc', os.path.join(self.folder(), 'Sch\u00e4tze')
        os.mkdir(folder)
        with open(os.path.join(folder, 'secret'), 'w', encoding='utf-8') as file:
            file.write(secret)
        config = os.path.join(folder, 'config')
        with open(config, 'w', encoding='utf-8') as file:
            file.write('[DEFAULT]\nsecret = %s\nstate = %s/state\n' % (secret, folder))
        node = self.fake(secret, name='Knoten \u00fc')
        environments = {'LANG': 'C', 'LC_ALL': ''}, {'LC_ALL': 'POSIX', 'PYTHONIOENCODING': 'ascii'}
        ways = ['--secret', secret], ['--secret', '@%s/secret' % folder], ['--config', config]
        for env, options in itertools.product(environments, ways):
            for python in PYTHONS:
                with self.subTest(python=python, env=env, options=options):
                    admin = self.admin(*options, python=python, env=env)
                    self.assertTrue(admin.add(node)['ok'])
                    admin.wait_node(node, state='ready', name='Knoten \u00fc')
                    status, out, err = self.run_script('--list', '--http_port', admin.port, python=python, env=env)
                    self.assertEqual(status, 0, err)
                    self.assertRegex(out, 'Knoten (\u00fc|[?])')
                    status, out, err = self.run_script('--save_config', *options, python=python, env=env)
                    self.assertEqual((status, err), (0, ''))
                    self.assertIn(options[1].lstrip('@') if options[0] == '--secret' else secret, out)
                    self.check_end(admin)

    def test_few_files(self):
        for number in (12, dispyadmin.LEAST_FILES - 1):
            self.check_refused(['--http_port', 0], 'ulimit -n', 'LimitNOFILE', status=1,
                               before=SHELL + ['ulimit -n %d && exec "$@"' % number, 'sh'])
        for options in (['--list', '--http_port', 1], ['--diagnose', '127.0.0.1'], ['--certfile', __file__]):
            self.check_refused(options, 'ulimit -n', status=1, before=SHELL + ['ulimit -n 12 && exec "$@"', 'sh'])

    def test_fewer_files(self):
        """As few as Python itself can start with, and more: a result, or a sentence."""
        config, secret = self.write('[DEFAULT]\npoll_interval = 17\n'), self.write('open')
        for number in range(4, 13):
            before = SHELL + ['ulimit -n %d && exec "$@"' % number, 'sh']
            if self.run_script('--version', before=before)[0]:
                continue                     # the libraries of Python cannot be read
            for options in (['--config', config, '--save_config'], ['--save_config', os.path.join(self.folder(), 'saved')],
                            ['--secret', '@' + secret, '--http_port', 0], ['--secret', '-'], ['--http_token', secret]):
                status, out, err = self.run_script(*options, before=before)
                self.assertNotIn('Traceback', err)
                self.assertEqual((status == 0, len(err.splitlines())), (not err, 1 if err else 0), (number, options, err))

    def test_no_threads(self):
        with unittest.mock.patch('threading.Thread.start', side_effect=RuntimeError("can't start new thread")):
            with self.assertRaisesRegex(dispyadmin.StartError, 'ulimit -u'):
                dispyadmin.Worker().start()


class Streams(BareTest):
    """Standard streams that are closed."""

    def test_sockets_are_elsewhere(self):
        """What is printed must not go to a node or a browser."""
        for numbers in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
            with self.subTest(closed=numbers):
                self.setUp()             # ports of its own
                admin = self.start_on('-d', before=closing(*numbers))
                for number in numbers:
                    self.assertEqual(os.readlink('/proc/%d/fd/%d' % (admin.pid, number)), os.devnull)
                self.check_works(admin, self.fake())
                if 2 not in numbers:
                    self.assertTrue(admin.err)

    def test_commands(self):
        """--list, --diagnose, --save_config with streams closed, and SIGINT ignored: a result, or a sentence."""
        node = self.fake()
        for numbers in ((), (0,), (1,), (2,), (0, 1, 2)):
            for options, good in ((['--list', '--json', '--node', node.id, '--http_port', 0], 0),
                                  (['--diagnose', node.id], 3), (['--save_config'], 0)):
                with self.subTest(closed=numbers, options=options):
                    status, out, err = self.run_script(*options, before=NO_INTERRUPT + closing(*numbers))
                    lost = 1 in numbers and options[0] != '--diagnose'
                    self.assertEqual(status, 1 if lost else good, err)
                    self.assertNotIn('Traceback', out + err)
                    self.assertEqual(bool(out), 1 not in numbers)
                    if lost and 2 not in numbers:
                        self.assertIn('dispyadmin: %s: there is no standard output' % options[0], err)
                    if options[0] == '--list' and out:
                        self.assertEqual([shown['id'] for shown in json.loads(out)], [node.id])

    def test_full(self):
        for options in (['--save_config'], ['--list', '--http_port', 0, '--node', self.fake().id]):
            status, out, err = self.run_script(*options, before=SHELL + ['exec "$@" >/dev/full', 'sh'])
            self.assertEqual(status, 1, err)
            self.assertIn('No space is left', err)
            self.assertNotIn('Traceback', err)


class Signals(BareTest):
    # Before a signal is waited for, and from then on.
    EARLY = ('build_parser', 'read_settings', 'parse_config', 'read_text', 'start_logging', 'allow_many_files',
             'tls_contexts', 'Listener.__init__', 'open_socket', 'search_sources', 'StateFile.open', 'StateFile.write',
             'WebServer.__init__', 'WebServer._open', 'resolve', 'Wakeup.__init__')
    LATE = ('Console.is_possible', 'Worker.start', 'WebServer.url', 'tell')

    def check_ended(self, place, number, allowed):
        name = signal.Signals(number).name
        with self.subTest(place=place, signal=name):
            folder = self.folder()
            options = ['--config', self.write('[DEFAULT]\n'), '--state', os.path.join(folder, 'state'), '--certfile',
                       self.certificate, '-i', self.admin_address, '--info_port', self.info_port]
            status, out, err = self.run_script(*options, **self.broken(name, place))
            self.assertIn(status, allowed, err)
            self.assertEqual([line for line in err.splitlines() if 'warning' not in line], [])

    def test_while_it_starts(self):
        self.certificate = lab.certificate(self.folder())
        for number in (signal.SIGINT, signal.SIGTERM):
            for place in self.EARLY:
                self.check_ended(place, number, (0, -number))
            for place in self.LATE:
                self.check_ended(place, number, (0,))

    def test_in_a_command(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            for options, place in ((['--list', '--http_port', 0], 'Admin.is_finding'), (['--save_config'], 'write_config'),
                                   (['--diagnose', '127.0.0.1'], 'resolve')):
                with self.subTest(options=options, signal=number):
                    status, out, err = self.run_script(*options, **self.broken(signal.Signals(number).name, place))
                    self.assertEqual((status, out, err), (-number, '', ''))

    def test_while_modules_are_read(self):
        """Nor is there a word of Python's own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            for module in ('argparse', 'http', 'unicodedata', 'termios'):
                with self.subTest(module=module, signal=number):
                    path = self.write('import os, time; os.kill(os.getpid(), %d); time.sleep(10)' % number, module + '.py')
                    status, out, err = self.run_script('--help', env={'PYTHONPATH': os.path.dirname(path)})
                    self.assertEqual((status, out, err), (-number, '', ''))

    def test_ignored_by_the_parent(self):
        """A job in the background is not ended by Ctrl-C."""
        admin = self.admin(before=NO_INTERRUPT)
        with open('/proc/%d/status' % admin.pid) as file:
            ignored = int(re.search(r'^SigIgn:\s+(\w+)', file.read(), re.MULTILINE).group(1), 16)
        self.assertTrue(ignored >> signal.SIGINT - 1 & 1)
        admin.signal(signal.SIGINT)
        self.check_works(admin, self.fake())


class Files(BareTest):
    """With a byte order mark or without, and whatever ends lines."""

    MARKS, ENDS = (b'', b'\xef\xbb\xbf'), (b'\n', b'\r\n', b'\r')

    def forms(self, lines):
        """(bytes, name of a file with them) for these lines, in each form."""
        for mark, end, is_ended in itertools.product(self.MARKS, self.ENDS, (False, True)):
            data = mark + end.join(line.encode('utf-8') for line in lines) + end * is_ended
            path = os.path.join(self.folder(), 'file')
            with open(path, 'wb') as file:
                file.write(data)
            yield data, path

    def test_configuration(self):
        for data, path in self.forms(['[DEFAULT]', '# \u00fc', 'poll_interval = 17', 'secret = t\u00e4glich']):
            with self.subTest(data):
                settings = dispyadmin.read_settings(['--config', path], {})
                self.assertEqual((settings.poll_interval, settings.secret), (17, 't\u00e4glich'))

    def test_secret(self):
        """Its own spaces stay."""
        for data, path in self.forms([' t\u00e4glich \t ', 'second line']):
            with self.subTest(data):
                self.assertEqual(dispyadmin.read_secret('@' + path), ' t\u00e4glich \t ')
                os.rename(path, os.path.join(os.path.dirname(path), 'secret'))
                settings = dispyadmin.read_settings([], {'CREDENTIALS_DIRECTORY': os.path.dirname(path)})
                self.assertEqual(dispyadmin.read_secret(settings.secret), ' t\u00e4glich \t ')

    def test_token(self):
        for data, path in self.forms([TOKEN, 'second line']):
            with self.subTest(data):
                self.assertEqual(dispyadmin.read_token(path), TOKEN)

    def test_empty_credential(self):
        for text in (b'', b'\n', b'\r\n', b'\xef\xbb\xbf', b'\xef\xbb\xbf\r\n'):
            folder = self.folder()
            with open(os.path.join(folder, 'secret'), 'wb') as file:
                file.write(text)
            self.assertEqual(dispyadmin.read_settings([], {'CREDENTIALS_DIRECTORY': folder}).secret, '')

    def test_standard_input(self):
        """As systemd-ask-password and others write it; what comes behind the first line may never end."""
        secret = self.fake('t\u00e4glich ')
        path = os.path.join(self.folder(), 'file')
        for text in (b't\xc3\xa4glich ', b'\xef\xbb\xbft\xc3\xa4glich \r\n', b't\xc3\xa4glich \nmore'):
            with open(path, 'wb') as file:
                file.write(text)
            admin = self.admin('--secret', '-', env={'SECRET': path}, before=SHELL + [
                '{ cat "$SECRET"; test "$(wc -l <"$SECRET")" -eq 0 || sleep 60; } | "$@" & wait', 'sh'])
            self.assertTrue(admin.add(secret)['ok'])
            admin.wait_node(secret, state='ready')
            lab.finish(admin)

    def test_pipes(self):
        config = SHELL + ['printf "[DEFAULT]\\npoll_interval = 17" | "$@"', 'sh']
        slow = ['bash', '-c', '"$@" <(sleep 1; printf "[DEFAULT]\\n"; sleep 1; printf "poll_interval = 17\\n")', 'bash']
        for before, options in ((config, ['--save_config', '--config', '/dev/stdin']),
                                (slow, ['--save_config', '--config'])):
            process = self.start(lab.Process, before + [sys.executable, environment.SCRIPT] + options)
            self.assertEqual(process.wait(), 0, process.err)
            self.assertIn('poll_interval = 17', process.out)

    def test_late_pipe(self):
        """A pipe with a name may get its writer after it has been opened."""
        path = os.path.join(self.folder(), 'pipe')
        os.mkfifo(path)
        process = self.start(lab.Process, [sys.executable, environment.SCRIPT, '--config', path, '--save_config'])

        def opened():
            try:
                return any(os.readlink('/proc/%d/fd/%s' % (process.pid, number)) == path
                           for number in os.listdir('/proc/%d/fd' % process.pid))
            except FileNotFoundError:
                return False                          # one was closed just now: look again
        lab.wait_for(opened, what='the pipe is opened')
        with open(path, 'w') as file:
            file.write('[DEFAULT]\npoll_interval = 17\n')
        self.assertEqual(process.wait(), 0, process.err)
        self.assertIn('poll_interval = 17', process.out)

    def test_endless(self):
        pipe = os.path.join(self.folder(), 'pipe')
        os.mkfifo(pipe)
        large = self.write('[DEFAULT]\n' + '#' * dispyadmin.MAX_FILE)
        for option, prefix in (('--config', ''), ('--http_token', ''), ('--secret', '@')):
            self.check_refused([option, prefix + '/dev/zero'], option, 'longer than')
            self.check_refused([option, prefix + pipe], option, pipe, 'no program')
        self.check_refused(['--config', large], large, 'longer than')

    def test_certificates(self):
        """OpenSSL would read what is no regular file for ever."""
        pipe = os.path.join(self.folder(), 'pipe')
        os.mkfifo(pipe)
        for name in (pipe, '/dev/zero', '/dev/null', os.path.dirname(pipe)):
            for options in (['--certfile', name], ['--list', '--certfile', name]):
                self.check_refused(options, '--certfile', name, 'no regular file', status=1, env=UNWATCHED)
        certificate = lab.certificate(self.folder())
        self.check_refused(['--certfile', certificate, '--keyfile', pipe], '--keyfile', pipe, 'no regular file', status=1,
                           env=UNWATCHED)

    def test_credentials(self):
        """As everywhere: bounded, and text."""
        folder = self.folder()
        for name in ('secret', 'token'):
            path = os.path.join(folder, name)
            with open(path, 'wb') as file:
                file.write(b'caf\xe9')
            self.check_refused([], path, 'UTF-8', env={'CREDENTIALS_DIRECTORY': folder})
            os.unlink(path)
            os.symlink('/dev/zero', path)
            self.check_refused([], path, 'longer than', env={'CREDENTIALS_DIRECTORY': folder})
            os.unlink(path)

    def test_state(self):
        """What is no regular file is left as it is."""
        pipe = os.path.join(self.folder(), 'pipe')
        os.mkfifo(pipe)
        for name in (pipe, os.path.dirname(pipe)):
            self.check_refused(['--http_port', 0, '--state', name], name, 'directory, a pipe', status=1, env=UNWATCHED)
        self.assertEqual(os.listdir(os.path.dirname(pipe)), ['pipe'])


class Values(BareTest):
    def test_dashes(self):
        """The value "--" was lost by Python before 3.13."""
        for python in PYTHONS:
            for option in ('--http_host', '--host', '--node', '--poll_interval', '--http_port', '--config', '--diagnose',
                           '--group', '--event', '--http_name', '--http_token'):
                self.check_refused([option + '=--'], option, python=python)
            status, out, err = self.run_script('--secret=--', '--save_config', python=python)
            self.assertEqual((status, out.splitlines()[:2], err), (0, ['[DEFAULT]', 'secret = --'], ''))

    def test_bytes(self):
        """Bytes that are no text; and what has line ends is one line still."""
        word = os.fsdecode(b'caf\xe9')
        for option in ('--secret', '--host', '--node', '--http_host', '--http_port', '--http_token', '--http_name',
                       '--group', '--state', '--on_event', '--event', '--poll_interval', '--certfile', '--config',
                       '--diagnose'):
            for python in PYTHONS:
                self.check_refused([option, word] if option != '--group' else [option, 'a=' + word], option, python=python)
        self.check_refused([word])
        self.check_refused(['a\nb'])
        self.check_refused([], '--secret', env={'DISPYADMIN_SECRET': word})
        self.check_refused(['--secret', '@no\nsuch\nfile'], '--secret')
        self.check_refused(['--config', self.write('[DEFAULT]\nstate = a\0b\n')], 'state', 'zero byte')


class Sentences(BareTest):
    """What the operating system says, with what to do."""

    def test_table(self):
        for number, words in ((errno.EHOSTUNREACH, 'No route'), (errno.ENETUNREACH, 'No route'),
                              (errno.EHOSTDOWN, 'No route'), (errno.EACCES, 'firewall'), (errno.EPERM, 'firewall'),
                              (errno.EMFILE, 'ulimit -n'),
                              (errno.ENFILE, 'LimitNOFILE'), (errno.ENOSPC, 'No space'), (errno.EROFS, 'read-only'),
                              (errno.EADDRNOTAVAIL, 'No interface'), (errno.EAFNOSUPPORT, 'no IPv6')):
            error = OSError(number, os.strerror(number))
            for sentence in (dispyadmin.system_error(error), str(dispyadmin.connection_error(error))):
                self.assertIn(words, sentence)
                self.assertRegex(sentence, r'^[A-Z].*[.]$')
                self.assertNotIn(os.strerror(number), sentence)
        self.assertIn('user who runs', dispyadmin.system_error(OSError(errno.EACCES, 'x', 'file')))

    def test_numbers_of_their_own(self):
        """Errors of names and of TLS have numbers that mean something else in a system."""
        for error in (socket.gaierror(errno.ENOENT, 'said'), ssl.SSLError(errno.EPERM, 'said')):
            self.assertEqual(dispyadmin.system_error(error), 'said.')
        self.assertEqual(dispyadmin.system_error(OSError(errno.EIO, 'said')), 'said.')
        self.assertEqual(dispyadmin.system_error(ValueError('said')), 'said.')
        self.assertEqual(dispyadmin.system_error(dispyadmin.NodeError('Said by us.')), 'Said by us.')
        self.assertEqual(str(dispyadmin.connection_error(OSError(errno.EIO, 'said'))), 'It cannot be reached: said.')

    def test_page_at_a_name(self):
        """A name that stands for a link-local address, for one that is not here, for a port that root alone may use."""
        for found, port, words in ((['fe80::1'], 0, 'link-local address: add its interface'),
                                   (['192.0.2.1'], 0, 'No interface'), (['fe80::1', '127.0.0.1'], 0, None),
                                   (['127.0.0.1', 'fe80::1'], 0, None)):
            with self.subTest(found), unittest.mock.patch('dispyadmin.resolve', return_value=found):
                if words is None:
                    sockets = dispyadmin.WebServer._open('node7', port)
                    self.assertEqual([sock.getsockname()[0] for sock in sockets], ['127.0.0.1'])
                    sockets[0].close()
                else:
                    with self.assertRaisesRegex(dispyadmin.StartError, '^--http_host node7, --http_port 0: .*' + words):
                        dispyadmin.WebServer._open('node7', port)

    def test_key_that_may_not_be_read(self):
        """The ssl module names no file: it is not taken for a connection that a firewall refuses."""
        name = self.write('', 'cert.pem')
        with unittest.mock.patch('builtins.open', side_effect=PermissionError(errno.EACCES, 'x', name)):
            with self.assertRaises(dispyadmin.StartError) as caught:
                dispyadmin.tls_contexts(name, name)
        self.assertIn('user who runs', str(caught.exception))
        self.assertNotIn('firewall', str(caught.exception))

    def test_names(self):
        """An unknown name is told from a resolver that does not answer."""
        for error, words in ((socket.gaierror(socket.EAI_NONAME, 'x'), 'is unknown'),
                             (socket.gaierror(socket.EAI_NODATA, 'x'), 'is unknown'),
                             (socket.gaierror(socket.EAI_AGAIN, 'x'), 'No name server answers'),
                             (socket.gaierror(socket.EAI_FAIL, 'x'), 'No name server answers'),
                             (UnicodeError('x'), 'is unknown')):
            with unittest.mock.patch('socket.getaddrinfo', side_effect=error):
                with self.assertRaisesRegex(dispyadmin.NodeError, words + '.*node-7.*IP address|node-7 ' + words):
                    dispyadmin.resolve('node-7')

    def test_names_of_the_system(self):
        lab.need_namespaces()
        for name, nsswitch, words in (('files', 'hosts: files\n', 'is unknown'), ('dns', 'hosts: dns\n', 'No name server')):
            space = self.space(name, **dict(NO_NAMES, **{'nsswitch.conf': nsswitch}))
            self.check_refused(['--http_host', 'node-7'], '--http_host', 'node-7', words, 'IP address', status=1,
                               namespace=space)
            admin = self.start(lab.Admin, namespace=space)
            result, = admin.post('/api/nodes', {'host': 'node-7'})['results']
            self.assertIn(words, result['message'])
            lab.finish(admin)

    def test_link_local_address(self):
        lab.need_namespaces()
        segment = self.start(lab.Segment, 1)
        space, said = segment.hosts[0], 'fe80::1 is a link-local address: add its interface, as in fe80::1%eth0'
        for options in (['--node', 'fe80::1'], ['--node', '[fe80::1]:9701'], ['-i', 'fe80::1'], ['--http_host', 'fe80::1'],
                        ['--diagnose', 'fe80::1']):
            self.check_refused(options, options[0].replace('-i', '--host'), said, namespace=space)
        admin = self.start(lab.Admin, '--http_name', 'fe80::1', namespace=space)
        for path in ('/api/nodes', '/api/diagnose'):
            answer = admin.request('POST', path, {'host': 'fe80::1'})
            self.assertEqual((answer.status, answer.json['error']), (400, 'host: ' + said))
        result, = admin.post('/api/nodes', {'host': 'fe80::1%nosuch'})['results']
        self.assertEqual(result['message'], 'This machine has no interface nosuch; it has lo, eth0.')
        self.assertFalse(result['ok'])
        result, = admin.post('/api/nodes', {'host': 'fe80::1%eth0'})['results']
        self.assertEqual((result['id'], result['ok']), ('[fe80::1%eth0]:9701', False))
        diagnosis = admin.post('/api/diagnose', {'host': 'fe80::1%nosuch'})
        self.assertIn('no interface nosuch', diagnosis['steps'][0]['message'])
        self.assertIn('interface', diagnosis['cure'])
        self.check_refused(['--http_host', 'fe80::1%nosuch'], 'no interface nosuch', status=1, namespace=space)

    def test_link_local_address_of_a_name(self):
        """A name server tells no interface."""
        with self.assertRaisesRegex(dispyadmin.NodeError, 'fe80::1 is a link-local address'):
            dispyadmin.socket_address('fe80::1', 9701)
        self.assertEqual(dispyadmin.socket_address('fe80::1%lo', 9701)[:2], ('fe80::1', 9701))
        self.assertEqual(dispyadmin.lacks_interface('fe8::1') + dispyadmin.lacks_interface('fec0::1'), '')

    def test_link_local_address_of_an_announcement(self):
        """A flood of them does not make us ask the system for its interfaces each time."""
        def named(address):
            return dispyadmin.named_id(unittest.mock.Mock(ip_addr=address, port=9701), '10.0.0.1')
        with unittest.mock.patch('dispyadmin.list_interfaces', side_effect=AssertionError('asked')):
            self.assertIsNone(named('fe80::1'))
            self.assertEqual(named('fe80::1%eth0'), '[fe80::1%eth0]:9701')
            self.assertEqual(named('10.0.0.1'), '10.0.0.1:9701')

    def test_routes(self):
        """What a firewall or a route refuses."""
        lab.need_namespaces()
        space = self.space('routes')
        space.ip('route', 'add', 'prohibit', '10.9.9.1')
        space.ip('route', 'add', 'unreachable', '10.9.9.2')
        admin = self.start(lab.Admin, namespace=space)
        for host, words in (('10.9.9.1', 'firewall'), ('10.9.9.2', 'No route'), ('10.9.9.3', 'No route')):
            result, = admin.post('/api/nodes', {'host': host})['results']
            self.assertFalse(result['ok'])
            self.assertIn(words, result['message'])

    def test_state_file(self):
        lab.need_namespaces()
        folder = self.folder()
        for mount, words in (('-o size=4k,nr_inodes=2', 'No space is left'), ('-o ro', 'read-only')):
            before = ['unshare', '--mount', 'sh', '-c',
                      'mount -t tmpfs %s none %s; touch %s/other; exec "$@"' % (mount, folder, folder), 'sh']
            code, _, err = self.run_script('--http_port', 0, '--state', os.path.join(folder, 'state'), before=before,
                                           env=UNWATCHED)
            self.assertEqual(code, 1)
            said = [line for line in err.splitlines() if line.startswith('dispyadmin:')]
            self.assertEqual(len(said), 1, err)
            self.assertIn(words, said[0])
            self.assertIn('--state', said[0])
            self.assertNotIn('Traceback', err)
        missing = os.path.join(folder, 'missing', 'state')
        self.check_refused(['--http_port', 0, '--state', missing], '--state', missing, 'no such file or folder', status=1,
                           env=UNWATCHED)
