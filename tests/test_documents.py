"""Options are the same everywhere: in --help, the manual, the completion, the example configuration and README.rst."""

import os
import re
import shutil
import subprocess
import tempfile
import unittest

import dispyadmin

from . import environment

FLAGS = re.compile(r'(?<![\w-])--?[a-z][a-z0-9_]*')


def read(*names):
    with open(os.path.join(environment.ROOT, *names), encoding='utf-8') as file:
        return file.read()


def plain(text):
    """Text of a manual page, without its requests and escapes."""
    text = re.sub(r'\\f.', '', text).replace('\\-', '-').replace('\\(dq', '"')
    return text.replace('\\ ', ' ')


class Documents(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        """{every flag of an option: its metavar or None}, as the program itself has them."""
        cls.actions = dispyadmin.build_parser()._actions
        cls.options = {flag: action.metavar for action in cls.actions for flag in action.option_strings}
        cls.keys = {dispyadmin.name_of(option) for option in dispyadmin.OPTIONS}

    def test_manual(self):
        """One paragraph for each option, with its flags and metavar."""
        section = plain(read('data', 'dispyadmin.1')).partition('.SH OPTIONS')[2].partition('.SH SIGNALS')[0]
        tags = re.findall(r'^\.TP\n\.\w+ (.*)$', section, re.MULTILINE)
        wanted = []
        for action in self.actions:
            metavar = '[%s]' % action.metavar if action.nargs == '?' else action.metavar
            wanted.append(', '.join(flag + (' ' + metavar if metavar else '') for flag in action.option_strings))
        self.assertEqual(*[sorted(re.sub(r'[", ]+', ' ', tag).strip() for tag in found) for found in (tags, wanted)])

    def test_manual_defaults(self):
        """A default that is a value is told for its option."""
        section = plain(read('data', 'dispyadmin.1')).partition('.SH OPTIONS')[2].partition('.SH SIGNALS')[0]
        paragraphs = re.split(r'^\.TP\n', section, flags=re.MULTILINE)
        for option in dispyadmin.OPTIONS:
            if option.default in ('', None, False) or option.default == []:
                continue
            flag = '--' + dispyadmin.name_of(option)
            paragraph, = [text for text in paragraphs if flag in FLAGS.findall(text.split('\n')[0])]
            self.assertRegex(paragraph, r'The default is(\n\.BR?)? %s\b' % option.default, option.key)
        for number in [port for pair in dispyadmin.PORT_PAIRS for port in pair] + list(dispyadmin.EVENT_KINDS):
            self.assertIn(str(number), section)

    def test_manual_release(self):
        self.assertIn('"dispyadmin %s"' % dispyadmin.__version__, read('data', 'dispyadmin.1').split('\n.SH')[0])

    def test_completion(self):
        text = read('data', 'dispyadmin.bash-completion')
        offered = re.search(r"options='([^']*)'", text).group(1).split()
        self.assertEqual(sorted(offered), sorted(self.options))
        cases = re.search(r'case \$prev in\n(.*?)\n    esac', text, re.DOTALL).group(1)
        handled = re.findall(r'^        (-[-\w|]+)\)$', cases, re.MULTILINE)
        self.assertEqual(sorted('|'.join(handled).split('|')),
                         sorted(flag for flag, metavar in self.options.items() if metavar))

    def complete(self, *words):
        """What bash would offer for the last word."""
        script = ('source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }; _dispyadmin; '
                  'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(['bash', '-c', script, 'data/dispyadmin.bash-completion', 'dispyadmin'] + list(words),
                              cwd=environment.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
        return done.stdout.decode().split()

    def test_completion_in_bash(self):
        self.assertEqual(self.complete('--http_h'), ['--http_host'])
        self.assertNotIn('--json', self.complete('--'))
        self.assertIn('--json', self.complete('--list', '--'))
        self.assertEqual(self.complete('--event', ''), list(dispyadmin.EVENT_KINDS))
        self.assertEqual(self.complete('--certfile', 'dispyadmin.p'), ['dispyadmin.py'])
        self.assertEqual(self.complete('--certfile', '=', 'dispyadmin.p'), ['dispyadmin.py'])
        self.assertEqual(self.complete('--secret', '@dispyadmin.p'), ['@dispyadmin.py'])
        self.assertIn(str(dispyadmin.HTTP_PORT), self.complete('--http_port', ''))

    def test_example_configuration(self):
        """Every option is there once, commented out; so it is read without effect, and each line can be read."""
        text = read('data', 'dispyadmin.conf')
        path = os.path.join(environment.ROOT, 'data', 'dispyadmin.conf')
        self.assertEqual(dispyadmin.read_settings(['--config', path], {}).given, {})
        lines = re.findall(r'^# ([a-z][a-z0-9_]*) = (.*)$', text, re.MULTILINE)
        self.assertEqual(sorted(key for key, _ in lines), sorted(self.keys))
        self.assertNotRegex(text, r'secret = (?!@)')
        for key, value in lines:
            option = dispyadmin.KEYS[key]
            texts = dispyadmin.parse_config('[DEFAULT]\n%s = %s' % (key, value), 'file')[key]
            parsed = [option.parse(text) for text in (texts if isinstance(texts, list) else [texts])]
            if option.default not in ('', None) and option.default != []:
                self.assertEqual(parsed, [option.default], key)
        for kind in dispyadmin.EVENT_KINDS:
            self.assertIn(kind, text)

    def test_example_configuration_as_a_whole(self):
        """With every line in force it means what it says, and is not taken for a file of upstream's."""
        folder = tempfile.mkdtemp(prefix='dispyadmin-test-')
        self.addCleanup(shutil.rmtree, folder)
        with open(os.path.join(folder, 'all.conf'), 'w') as file:
            file.write(re.sub(r'^# ([a-z][a-z0-9_]* = .*)$', r'\1', read('data', 'dispyadmin.conf'), flags=re.MULTILINE))
        settings = dispyadmin.read_settings(['--config', file.name], {})
        self.assertEqual(sorted(settings.given), sorted(option.key for option in dispyadmin.OPTIONS))
        self.assertNotIsInstance(settings.secret, dispyadmin.Literal)
        self.assertEqual((settings.info_port, settings.node_port), dispyadmin.PORT_PAIRS[0])

    def test_readme(self):
        """Every option of the program is in the README, and the README has no others in commands that run it."""
        text = read('README.rst')
        told = set(FLAGS.findall(text))
        self.assertEqual({flag for flag in self.options if flag.startswith('--')} - told - {'--debug', '--version'}, set())
        for command in re.findall(r'dispyadmin(?:\.py)? (-[^`\n]*)', text):
            command = re.sub("'.*?'", "''", command)  # what --on_event runs has options of its own
            with self.subTest(command):
                self.assertEqual({flag for flag in FLAGS.findall(command)} - set(self.options), set(), command)
