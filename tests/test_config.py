"""Configuration files: written, read back, those of upstream's program, and one clear line for what is wrong in
them."""

import configparser
import os
import stat
import threading

import dispyadmin

from . import environment, lab

LIMITED = ['sh', '-c', 'ulimit -f 0 && exec "$@"', 'sh']          # no byte can be written to a file


def parse(text):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return dict(parser.defaults()) or dict(parser.items(parser.sections()[0]))


class Saved(lab.LabTest):
    def test_standard_output(self):
        status, out, err = self.run_script('--save_config', '--poll_interval', 30, '--http_port', 8282)
        self.assertEqual((status, err), (0, ''))
        values = parse(out)
        self.assertEqual((values['poll_interval'], values['http_port']), ('30', '8282'))

    def test_file_is_for_its_owner_alone(self):
        for existing in (False, True):
            path = os.path.join(self.folder(), 'saved.cfg')
            if existing:
                with open(path, 'w') as file:
                    file.write('[DEFAULT]\n')
                os.chmod(path, 0o644)
            status, out, err = self.run_script('--save_config', path, '--secret', 'one')
            self.assertEqual((status, out, err), (0, '', ''))
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_round_trip(self):
        """What was saved is what runs: the same values, awkward ones too."""
        secret = '50%% of %(all)s; # = "things" ü'
        node = self.fake(secret)
        path = os.path.join(self.folder(), 'saved.cfg')
        options = ['-i', self.admin_address, '--info_port', self.info_port, '--node_port', node.port, '--poll_interval',
                   3,
                   '--ping_interval', 44, '--secret', secret, '--node', node.address, '--http_name', 'admin.example',
                   '--http_host', '127.0.0.1']
        self.assertEqual(self.run_script('--save_config', path, *options)[0], 0)
        admin = self.start(lab.Admin, '--config', path)
        admin.wait_node(node, state='ready')
        about = admin.get('/api/about')
        self.assertEqual(about['ping_interval'], 44)
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 3)
        self.assertEqual(admin.host, '127.0.0.1')
        self.assertEqual(admin.request('GET', '/api/nodes', headers={'Host': 'admin.example'}).status, 200)
        again = os.path.join(self.folder(), 'again.cfg')
        self.assertEqual(self.run_script('--config', path, '--save_config', again)[0], 0)
        with open(path) as first, open(again) as second:
            self.assertEqual(parse(first.read()), parse(second.read()))

    def test_what_was_there_stays_until_it_is_written(self):
        """A file system that is full loses nothing, and leaves no pieces."""
        path = self.write('[DEFAULT]\nsecret = old\n', 'saved.cfg')
        status, out, err = self.run_script('--save_config', path, '--secret', 'new', before=LIMITED)
        self.assertEqual((status, out, len(err.splitlines())), (2, '', 1), err)
        self.assertIn('--save_config ' + path, err)
        self.assertEqual(os.listdir(os.path.dirname(path)), ['saved.cfg'])
        with open(path) as file:
            self.assertEqual(file.read(), '[DEFAULT]\nsecret = old\n')

    def test_symbolic_link(self):
        """Its target is written; it stays a link."""
        path, link = self.write('old', 'target.cfg'), os.path.join(self.folder(), 'link.cfg')
        os.symlink(path, link)
        self.assertEqual(self.run_script('--save_config', link, '--poll_interval', 9), (0, '', ''))
        self.assertTrue(os.path.islink(link))
        with open(path) as file:
            self.assertEqual(parse(file.read())['poll_interval'], '9')

    def test_devices_and_pipes(self):
        """They get what is written, and stay as they are."""
        folder = self.folder()
        pipe, null, full = [os.path.join(folder, name) for name in ('pipe', 'null', 'full')]
        os.mkfifo(pipe)
        read = []

        def read_pipe():
            with open(pipe) as file:
                read.append(file.read())
        reader = threading.Thread(target=read_pipe)
        reader.start()
        os.chmod(pipe, 0o666)
        self.assertEqual(self.run_script('--save_config', pipe, '--poll_interval', 9), (0, '', ''))
        reader.join()
        self.assertEqual(parse(read[0])['poll_interval'], '9')
        self.assertEqual(stat.S_IMODE(os.stat(pipe).st_mode), 0o666)
        try:
            for name, minor in ((null, 3), (full, 7)):
                os.mknod(name, 0o600 | stat.S_IFCHR, os.makedev(1, minor))
                os.chmod(name, 0o666)
                open(name, 'w').close()
        except PermissionError:
            self.skipTest('no devices can be made here')
        self.assertEqual(self.run_script('--save_config', null, '--secret', 'one'), (0, '', ''))
        status, out, err = self.run_script('--save_config', full, '--secret', 'one')
        self.assertEqual((status, out, len(err.splitlines())), (2, '', 1), err)
        self.assertIn('No space', err)
        for name in (null, full):
            self.assertEqual(stat.S_IMODE(os.stat(name).st_mode), 0o666)
            self.assertTrue(stat.S_ISCHR(os.stat(name).st_mode))

    def check_read_back(self, *options):
        """What is saved means the same when it is read; or it is refused, with the option's name. Whether it was saved."""
        with self.subTest(options=options):
            path = os.path.join(self.folder(), 'saved.cfg')
            before = dispyadmin.read_settings(list(options) + ['--save_config', path], {})
            try:
                dispyadmin.save_config(before)
            except dispyadmin.UsageError as error:
                self.assertIn(options[0].partition('=')[0], str(error))
                self.assertFalse(os.path.exists(path))
                return False
            after = dispyadmin.read_settings(['--config', path], {})
            for option in dispyadmin.OPTIONS:
                if option.key != 'groups':
                    self.assertEqual(getattr(after, option.key), getattr(before, option.key))
            self.assertEqual([vars(group) for group in after.groups], [vars(group) for group in before.groups])
            return True

    def test_values_are_read_back_as_they_were(self):
        for secret in ('None', '# no comment', '; none', '[DEFAULT]', '%(x)s', '=', ':', "['a']", '--', '\u00fc', '"a"'):
            self.assertTrue(self.check_read_back('--secret=' + secret))
        for secret in (' a', 'a ', '\u00a0a', 'a\nb', 'a\rb', 'a\n[b]', 'a\nb = c', 'a\n\n b', 'a\n# b', '\ta', ' ', '\n'):
            self.assertFalse(self.check_read_back('--secret=' + secret))
        for options in (['--on_event', 'None'], ['--on_event', 'None', '--event', 'lost', '--event', 'found'], ['--debug'],
                        ['--keep', '--ipv4_udp_multicast'], ['--certfile', '/None', '--keyfile', '/True'],
                        ['--node', '[fe80::1%lo]:9701', '--node', 'fe80::1%lo', '--node', 'h:1'],
                        ['-i', '::1', '-i', 'None'], ['--group', 'a=None', '--group', 'b= *,?, 10.0.0.0/8'],
                        ['--http_host', 'None'], ['--info_port', '0'], ['--state', '/a b', '--http_token', '/[x]'],
                        ['--certfile=', '--state=']):
            self.assertTrue(self.check_read_back(*options))
        self.assertFalse(self.check_read_back('--state', '/a\nb'))

    def test_what_upstream_has_too(self):
        """A file of ours with all options of upstream's, and no others, is none of upstream's."""
        options = ['--secret', '@/secret', '--http_host', '::1', '--http_port', '1', '--info_port', '9700',
                   '--node_port', '9701', '--poll_interval', '1', '--ping_interval', '1', '--certfile', '/a',
                   '--keyfile', '/b', '--ipv4_udp_multicast']
        self.assertTrue(self.check_read_back(*options))
        self.assertTrue(self.check_read_back(*options + ['-i', '::1']))

    def test_secret_of_upstream_that_means_something_else(self):
        """It is not saved as what it does not mean."""
        for secret, is_saved in (('open', True), ('@open', False), ('-', False)):
            path = self.write(Upstream.TEXT.format(secret=secret, info=9700, node=9701, hosts='[]'))
            status, out, err = self.run_script('--config', path, '--save_config')
            self.assertEqual(status, 0 if is_saved else 2)
            self.assertIn('secret = open' if is_saved else '--secret', out + err)

    def test_command_line_beats_configuration(self):
        path = self.write('[DEFAULT]\npoll_interval = 30\nping_interval = 40\nhttp_host = ::1\n')
        admin = self.admin('--config', path, '--poll_interval', 2, '--http_host', '127.0.0.1')
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 2)
        self.assertEqual(admin.host, '127.0.0.1')
        admin = self.start(lab.Admin, '--config', path, '--info_port', 0, '-i', self.admin_address, '--poll_interval',
                           60, '--http_host',
                           'localhost')
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 60)      # given, though it is the default
        self.assertEqual(admin.get('/api/about')['ping_interval'], 40)      # not given: the configuration's


class Upstream(lab.LabTest):
    """Files that upstream's program saved."""

    TEXT = ('[DEFAULT]\nsecret = {secret}\nhttp_host = localhost\nhttp_port = 0\ninfo_port = {info}\n'
            'node_port = {node}\n'
            'poll_interval = 7\nping_interval = 600\ncertfile = \nkeyfile = \n'
            'ipv4_udp_multicast = False\nhosts = {hosts}\n\n')

    def check(self, path):
        node = self.fake('open')
        admin = self.start(lab.Admin, '--config', path, '--http_port', 0)
        node.ping(self.info_target())
        admin.wait_node(node, state='ready')
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 7)
        self.assertEqual(admin.get('/api/about')['ping_interval'], 600)
        self.assertIn(self.admin_address, str(admin.get('/api/about')['hosts']))

    def test_as_written(self):
        for hosts in ("['%s']", "[u'%s']", '["%s"]', "[ '%s', ]"):
            self.check(self.write(self.TEXT.format(secret='open', info=self.info_port, node=self.info_port + 1,
                                                   hosts=hosts % self.admin_address)))
            self.doCleanups()

    def test_written_by_upstream_itself(self):
        packages = environment.node_packages('4.15.2')
        library = environment.require(packages)
        path = os.path.join(self.folder(), 'upstream.cfg')
        process = self.start(lab.Process, [packages.python, '-W', 'ignore',
                                           os.path.join(library, 'dispy', 'dispyadmin.py'), '--save_config', path,
                                           '--secret', 'open', '-i', self.admin_address, '--info_port',
                                           str(self.info_port), '--node_port',
                                           str(self.info_port + 1), '--poll_interval', '7'],
                             env=dict(os.environ, PYTHONPATH=library))
        process.wait()
        if not os.path.exists(path):        # its program does not run on Python 3.13
            self.skipTest('upstream wrote no configuration: ' + process.output())
        self.check(path)

    def test_ports_of_dispy_were_not_asked_for(self):
        """Upstream saves the ports of its release, given or not: they are shared with clients, as by default."""
        for info, node in ((9700, 9701), (61590, 61591)):
            path = self.write(self.TEXT.format(secret='', info=info, node=node, hosts="['%s']" % self.admin_address))
            admin = self.start(lab.Admin, '--config', path, '--http_port', 0)
            about = admin.get('/api/about')
            self.assertEqual([port['port'] for port in about['info_ports']], [9700, 61590])
            self.assertEqual(about['node_ports'], [9701, 61591])
            admin.close()

    def test_older_name_of_hosts(self):
        text = self.TEXT.replace('hosts =', 'ip_addrs =').format(
            secret='', info=self.info_port, node=self.info_port + 1, hosts="['%s']" % self.admin_address)
        admin = self.start(lab.Admin, '--config', self.write(text), '--http_port', 0)
        self.assertIn(self.admin_address, str(admin.get('/api/about')['hosts']))

    def test_secret_stands_for_itself(self):
        """Upstream knows no @FILE."""
        node = self.fake('@open')
        path = self.write(self.TEXT.format(secret='@open', info=self.info_port, node=node.port,
                                           hosts="['%s']" % self.admin_address))
        admin = self.start(lab.Admin, '--config', path, '--http_port', 0)
        admin.add(node)
        admin.wait_node(node, state='ready')

    def test_no_hosts(self):
        path = self.write(self.TEXT.format(secret='', info=self.info_port, node=self.info_port + 1, hosts='[]'))
        self.start(lab.Admin, '--config', path, '--http_port', 0)

    def test_hosts_is_not_evaluated(self):
        trace = os.path.join(self.folder(), 'trace')
        for hosts in ("__import__('os').system('touch %s')" % trace, "[__import__('os').system('touch %s')]" % trace):
            path = self.write(self.TEXT.format(secret='', info=self.info_port, node=self.info_port + 1, hosts=hosts))
            status, _, err = self.run_script('--config', path)
            self.assertEqual(status, 2, err)
            self.assertIn('hosts', err)
            self.assertFalse(os.path.exists(trace))


class Secret(lab.LabTest):
    """A file with a secret in it may be wrong; the secret is not shown for that."""

    def test_lines_are_not_shown(self):
        for text in ('topsecret\n', '[DEFAULT]\nsecret topsecret\n', '[DEFAULT]\n  topsecret\n',
                     '[DEFAULT]\nsecret = topsecret\nsecret = topsecret\n'):
            with self.subTest(text):
                status, out, err = self.run_script('--config', self.write(text))
                self.assertEqual((status, out), (2, ''))
                self.assertNotIn('topsecret', err)
                self.assertEqual(len(err.splitlines()), 1, err)

    def test_own_ports_are_held_when_they_were_asked_for(self):
        path = os.path.join(self.folder(), 'saved.cfg')
        self.run_script('--info_port', 9700, '--node_port', 9701, '--save_config', path)
        admin = self.start(lab.Admin, '--config', path, '--http_port', 0, '-i', self.admin_address)
        self.assertEqual(admin.get('/api/about')['info_ports'], [{'port': 9700, 'state': 'held'}])
        self.assertEqual(admin.get('/api/about')['node_ports'], [9701])

    def test_environment_is_neither_interpreted_nor_saved(self):
        status, out, err = self.run_script('--save_config', '--poll_interval', 9, env={'DISPYADMIN_SECRET': '@hunter2'})
        self.assertEqual((status, err), (0, ''))
        self.assertNotIn('hunter2', out)


class Wrong(lab.LabTest):
    def check(self, text, *words):
        with self.subTest(text=text):
            path = self.write(text, 'wrong.cfg')
            status, out, err = self.run_script('--config', path)
            self.assertIn(status, (1, 2) if '/no/such/file' in text else (2,), err)
            self.assertEqual(out, '')
            self.assertNotIn('Traceback', err)
            self.assertEqual(len(err.strip().splitlines()), 1, err)
            for word in words or ('wrong.cfg',):
                self.assertIn(word, err)

    def test_keys(self):
        self.check('[DEFAULT]\nno_such_key = 1\n', 'no_such_key')
        self.check('[DEFAULT]\npol_interval = 1\n', 'pol_interval')

    def test_values(self):
        for key, values in (('http_port', ('x', '-1', '70000')), ('info_port', ('x', '70000')),
                            ('node_port', ('x', '0', '70000')),
                            ('poll_interval', ('0', 'x', 'nan', 'inf', '-1')), ('ping_interval', ('0', 'x', 'nan')),
                            ('ipv4_udp_multicast', ('maybe',)), ('hosts', ('[', '[1]', '{}', '[[]]', "['a', None]")),
                            ('certfile', ('/no/such/file',)), ('http_token', ('/no/such/file',)),
                            ('nodes', ("['host:x']", '[', '[1]'))):
            for value in values:
                self.check('[DEFAULT]\n%s = %s\n' % (key, value), key)

    def test_no_configuration(self):
        self.check('poll_interval = 5\n')
        self.check('[DEFAULT]\nno equals sign\n')
        self.check('[DEFAULT\npoll_interval = 5\n')
        self.check('[DEFAULT]\npoll_interval = 5\npoll_interval = 6\n', 'poll_interval')
        self.check('\0\1\2')

    def test_no_text(self):
        path = os.path.join(self.folder(), 'binary.cfg')
        with open(path, 'wb') as file:
            file.write(b'[DEFAULT]\nsecret = \xff\xfe\n')
        for unreadable in (path, self.folder()):
            status, _, err = self.run_script('--config', unreadable)
            self.assertEqual(status, 2)
            self.assertEqual(len(err.strip().splitlines()), 1, err)
            self.assertIn(unreadable, err)

    def test_percent_sign_is_plain(self):
        """Interpolation would make a secret with % unreadable."""
        node = self.fake('100%')
        path = self.write('[DEFAULT]\nsecret = 100%\n')
        self.assertTrue(self.admin('--config', path).add(node)['ok'])
