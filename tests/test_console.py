"""The console on a terminal: real pseudo-terminals."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading

from . import environment, lab, wire


class Terminal:
    """dispyadmin with a terminal for its standard streams."""

    def __init__(self, *options, env=None):
        self.master, slave = pty.openpty()
        self.popen = subprocess.Popen([sys.executable, environment.SCRIPT, '--http_port', '0']
                                      + [str(option) for option in options],
                                      stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                      preexec_fn=self.take_terminal,
                                      env=dict(os.environ, TERM='dumb', **(env or {})))
        os.close(slave)
        self.text, self.closing = '', False
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    @staticmethod
    def take_terminal():
        import fcntl
        import termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)        # so that Ctrl-C and getpass work

    def read(self):
        while not self.closing:
            try:
                if select.select([self.master], [], [], 0.1)[0]:
                    self.text += os.read(self.master, 65536).decode('utf-8', 'replace')
            except OSError:
                return

    def type(self, text):
        os.write(self.master, text.encode('utf-8'))

    def expect(self, pattern, timeout=15, since=0):
        return lab.wait_for(lambda: re.search(pattern, self.text[since:]), timeout,
                            lambda: '%r on the terminal: %r' % (pattern, self.text))

    def say(self, command, pattern):
        """Type a command; what it prints fits the pattern."""
        since = len(self.text)
        self.type(command + '\n')
        self.expect(pattern, since=since)
        return self.text[since:]

    def wait(self, timeout=5):
        return self.popen.wait(timeout)

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.closing = True
        self.reader.join(5)
        os.close(self.master)


class Console(lab.LabTest):
    def terminal(self, *options):
        terminal = self.start(Terminal, '-i', self.admin_address, '--info_port', self.info_port, '--node_port',
                              self.info_port + 1,
                              '--poll_interval', 1, *options)
        terminal.expect(r'dispyadmin \S+: http://')
        return terminal

    def test_quit(self):
        for word in ('quit', 'exit', '  QUIT  '):
            terminal = self.terminal()
            terminal.type(word + '\n')
            self.assertEqual(terminal.wait(), 0)
            self.assertNotIn('Traceback', terminal.text)

    def test_interrupt(self):
        terminal = self.terminal()
        terminal.type('\x03')
        self.assertEqual(terminal.wait(), 0)
        self.assertNotIn('Traceback', terminal.text)

    def test_signal(self):
        terminal = self.terminal()
        terminal.popen.send_signal(signal.SIGTERM)
        self.assertEqual(terminal.wait(), 0)
        self.assertNotIn('Traceback', terminal.text)

    def test_end_of_input(self):
        """Ctrl-D leaves no traceback and no loop of prompts."""
        terminal = self.terminal()
        before = len(terminal.text)
        terminal.type('\x04')
        terminal.type('\x04')
        try:
            self.assertEqual(terminal.wait(1), 0)
        except subprocess.TimeoutExpired:
            pass                                    # it may go on without a console
        self.assertNotIn('Traceback', terminal.text)
        self.assertLess(len(terminal.text) - before, 500)

    def test_help(self):
        terminal = self.terminal()
        terminal.type('help\n')
        for word in ('quit', 'exit', 'secret', 'scan', 'nodes', 'help'):
            terminal.expect(r'(?s)help.*\b%s\b' % word)
        self.assertNotIn('Traceback', terminal.text)

    def test_unknown(self):
        """It is named, and where to find help; an empty line is nothing."""
        terminal = self.terminal()
        terminal.say('frobnicate', r'(?is)frobnicate.*\n.*help')
        terminal.say('', '')
        terminal.say('nodes', r'\n')
        self.assertIsNone(terminal.popen.poll())

    def test_nodes_and_secret(self):
        """A locked node opens with the secret that is typed, which does not appear."""
        node = self.fake(' s3cret-typed', name='worker')     # its own spaces stay
        terminal = self.terminal('--node', node.id)
        lab.wait_for(lambda: node.connections, what='the node is asked')
        lab.wait_for(lambda: 'locked' in terminal.say('nodes', re.escape(node.id)), what='a locked node')
        since = len(terminal.text)
        terminal.type('secret\n')
        terminal.expect(r'(?i)secret.*: *$', since=since + len('secret'))
        terminal.type(' s3cret-typed\n')
        lab.wait_for(lambda: re.search('ready', terminal.say('nodes', re.escape(node.id) + r'.*\n')),
                     what=lambda: 'ready: %r' % terminal.text)
        self.assertIn('worker', terminal.text)
        self.assertNotIn('s3cret-typed', terminal.text)

    def test_scan(self):
        ear = self.start(wire.socket.socket, wire.socket.AF_INET, wire.socket.SOCK_DGRAM)
        ear.bind(('', self.info_port + 1))
        ear.settimeout(10)
        terminal = self.terminal('--ping_interval', 600)
        ear.settimeout(0.7)
        try:
            while True:
                ear.recv(2000)                      # those of the start
        except wire.socket.timeout:
            pass
        ear.settimeout(10)
        terminal.type('scan\n')
        self.assertTrue(ear.recv(2000).startswith(b'NODE_INFO:'))

    def test_names_cannot_write_on_the_terminal(self):
        node = self.fake('open', name='\x1b]0;evil\x07\x1b[2J\r\nfake-line')
        terminal = self.terminal('--secret', 'open', '--node', node.id)
        lab.wait_for(lambda: 'ready' in terminal.say('nodes', re.escape(node.id)), what='a ready node')
        for control in ('\x1b]', '\x1b[2J', '\x07'):
            self.assertNotIn(control, terminal.text)
        self.assertNotRegex(terminal.text, r'(?m)^fake-line')

    def test_secret_option_asks(self):
        node = self.fake('asked-for-it')
        terminal = self.start(Terminal, '-i', self.admin_address, '--info_port', self.info_port, '--node', node.id,
                              '--secret', '-')
        terminal.expect(r'(?i)secret.*: *$')
        terminal.type('asked-for-it\n')
        terminal.expect(r'dispyadmin \S+: http://')
        lab.wait_for(lambda: 'ready' in terminal.say('nodes', re.escape(node.id)), what='a ready node')
        self.assertNotIn('asked-for-it', terminal.text)

    def test_secret_option_interrupted(self):
        for key in ('\x03', '\x04'):
            terminal = self.start(Terminal, '--secret', '-')
            terminal.expect(r'(?i)secret.*: *$')
            terminal.type(key)
            terminal.wait()
            self.assertNotIn('Traceback', terminal.text)
