"""What dispyadmin runs on, and which nodes it works with.

The one file, copied alone to an empty folder, on every CPython from 3.6 on that this machine has; and nodes of five
releases of dispy on four Pythons, as the README's table tells. `python3 -m tests.test_compat --write` writes that table.
"""

import concurrent.futures
import os
import re
import shutil
import signal
import sys
import unittest

from . import environment, lab

README = os.path.join(environment.ROOT, 'README.rst')
PARTS = re.compile(r'(\.\. what test_compat saw\n\n)(.*?)(\n\.\. end of what test_compat saw\n)', re.DOTALL)
VARIANTS = ('plain', 'TLS', 'without psutil')
AT_ONCE = 6                      # dispynodes that are started at one time


class Script(lab.LabTest):
    def test_every_python(self):
        """Compiles without a warning, starts, finds a real node and sets its CPUs, hears another, ends."""
        node = self.node('open')
        machine = node.info()['max_cpus']
        seen = []
        for number, (version, python) in enumerate(sorted(environment.PYTHONS.items())):
            if version >= (3, 6):
                with self.subTest(python=version):
                    self.check(python, node, 1 + number % machine)
                    seen.append('%d.%d' % version)
        told = re.search(r'runs on CPython ([0-9., and]+), each', read_readme()).group(1)
        self.assertEqual([version for version in seen if version not in re.split(r', | and ', told)], [],
                         'not in the README')

    def check(self, python, node, cpus):
        folder = self.folder()
        script = shutil.copy(environment.SCRIPT, folder)
        code = 'compile(open("dispyadmin.py", encoding="utf-8").read(), "dispyadmin.py", "exec")'
        compiled = self.start(lab.Process, [python, '-W', 'error', '-c', code], cwd=folder)
        self.assertEqual(compiled.wait(), 0, compiled.output())
        admin = self.admin('--secret', 'open', '--ping_interval', 600, python=python, script=script, cwd=folder,
                           env={'PYTHONDONTWRITEBYTECODE': '1', 'PYTHONNOUSERSITE': '1', 'PYTHONWARNINGS': 'error'})
        try:
            admin.wait_node(node, timeout=10, state='ready')
            self.assertTrue(admin.control('cpus', [node], cpus=cpus)[node.id]['ok'])
            self.assertEqual(node.managed(), cpus)
            heard = self.fake('open', port=0)
            heard.ping(self.info_target())
            admin.wait_node(heard, timeout=10, state='ready')
            self.assertIn('page.js', admin.request('GET', '/').text)
            admin.signal(signal.SIGTERM)
            self.assertEqual(admin.wait(), 0)
        finally:
            admin.close()
        self.assertEqual([line for line in admin.err if 'Warning' in line or 'Traceback' in line], [])
        self.assertEqual(os.listdir(folder), ['dispyadmin.py'])


class Alone(lab.LabTest):
    """On a machine without network, packages, or anything that can be written to."""

    NOBODY = 65534
    # Everything is read-only for what follows, in a mount namespace of its own, and an unprivileged user runs it. A Python
    # in a folder that others may not enter (pyenv's of root) is put where it was, below one that they may.
    SEALED = ['unshare', '--mount', 'sh', '-c', """
        mount --make-rprivate /
        if [ -n "$2" ]; then
            mount --bind "$2" "$1" && mount -t tmpfs -o mode=755 none "/$3" && mkdir -p "$2" && mount --bind "$1" "$2" || exit
        fi
        mount -o remount,bind,ro / && shift 3 && cd . && exec "$@"
        """, 'sh']
    HARMLESS = re.compile(r'execve|l?stat(64)?|f?statfs(64)?|f?newfstatat|fstatat64|statx|f?access(at2?)?|readlink(at)?|'
                          r'getcwd|chdir|l?getxattr')
    CALL = re.compile(r'^[0-9]+ +([a-z]\w*)\((.*)')

    def setUp(self):
        lab.need_namespaces()
        for name in ('strace', 'setpriv'):
            if not shutil.which(name):
                raise unittest.SkipTest('no ' + name)
        super().setUp()

    @staticmethod
    def pythons():
        """The oldest and the newest."""
        found = sorted(item for item in environment.PYTHONS.items() if item[0] >= (3, 6))
        return (found[0], found[-1]) if len(found) > 1 else found

    @staticmethod
    def hidden(python):
        """The installation of a Python that other users do not reach, or ''."""
        parts = os.path.realpath(python).split(os.sep)[:-2]
        folders = [os.sep.join(parts[:number]) or os.sep for number in range(1, len(parts) + 1)]
        return '' if all(os.stat(folder).st_mode & 1 for folder in folders) else folders[-1]

    def sealed(self, python, script):
        """(what goes before a command, the file with its system calls, its folder, its environment)."""
        folder, log, hidden = self.folder(), os.path.join(self.folder(), 'calls'), self.hidden(python)
        shutil.copyfile(script, os.path.join(folder, 'dispyadmin.py'))
        os.chmod(folder, 0o755)
        before = ['strace', '-f', '-qq', '-o', log, '-e', 'trace=%file'] + self.SEALED
        before += [self.folder(), hidden, hidden.split(os.sep)[1] if hidden else '', 'setpriv', '--reuid=%d' % self.NOBODY,
                   '--regid=%d' % self.NOBODY, '--clear-groups', '--no-new-privs']
        return before, log, folder, {'HOME': '/nonexistent', 'XDG_CONFIG_HOME': '', 'XDG_CACHE_HOME': '',
                                     'PYTHONDONTWRITEBYTECODE': '', 'PYTHONPATH': ''}

    def begin(self, python, space, *options):
        """(dispyadmin in its sealed place, the name of the file with its system calls)."""
        before, log, folder, env = self.sealed(python, environment.SCRIPT)
        admin = self.start(lab.Admin, *options, python=os.path.realpath(python), namespace=space, cwd=folder,
                           script='dispyadmin.py', before=before, env=env)
        with open('/proc/%d/status' % self.child(admin)) as file:
            status = file.read()
        self.assertEqual(re.search(r'^Uid:\s+(.*)', status, re.MULTILINE).group(1).split(), [str(self.NOBODY)] * 4)
        self.assertEqual(int(re.search(r'^CapEff:\s+(\w+)', status, re.MULTILINE).group(1), 16), 0)
        return admin, log

    @staticmethod
    def child(process):
        """The id of the program, which is a child of strace."""
        with open('/proc/%d/task/%d/children' % (process.pid, process.pid)) as file:
            return int(file.read().split()[0])

    def end(self, admin):
        os.kill(self.child(admin), signal.SIGTERM)
        self.assertEqual(admin.wait(), 0)
        self.assertNotIn('Traceback', admin.output())

    def written(self, log):
        """The calls that open for writing, make or change something, or try to; all but those that are known to read."""
        with open(log, errors='replace') as file:
            lines = file.readlines()
        begun = max(number for number, line in enumerate(lines) if 'execve(' in line and '"dispyadmin.py"' in line)
        found = []
        for line in lines[begun:]:
            call = self.CALL.match(line)
            if not call or self.HARMLESS.fullmatch(call.group(1)):
                continue
            reads = (call.group(1) in ('open', 'openat', 'openat2') and 'O_RDONLY' in line and
                     not re.search(r'O_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)', line))
            if not reads and '"/dev/null"' not in line and '"/dev/tty"' not in line:
                found.append(line)
        self.assertTrue(any('dispyadmin.py", O_RDONLY' in line for line in lines[begun:]), lines[begun:])
        return found

    def test_nothing_is_there_and_nothing_is_written(self):
        """Loopback only: the page and the interface are served."""
        for version, python in self.pythons():
            with self.subTest(python=version):
                space = self.start(lab.Namespace, 'da%d-%d%d' % ((os.getpid(),) + version))
                admin, log = self.begin(python, space, '--secret', 'open', '--node', '10.1.2.3')
                self.assertIn('page.js', admin.request('GET', '/').text)
                for path in ('/page.js', '/page.css', '/metrics', '/api/history', '/api/events', '/api/about'):
                    self.assertEqual(admin.request('GET', path).status, 200, path)
                admin.post('/api/scan', {})
                shown = admin.wait_node('10.1.2.3:9701', timeout=20, state='unreachable')
                self.assertIn('No route', shown['reason'])
                self.end(admin)
                self.assertEqual(self.written(log), [])
                space.close()

    def test_no_options(self):
        for version, python in self.pythons():
            with self.subTest(python=version):
                space = self.start(lab.Namespace, 'da%d-n%d%d' % ((os.getpid(),) + version))
                admin, log = self.begin(python, space)
                self.assertEqual(admin.nodes(), {})
                self.end(admin)
                self.assertEqual(self.written(log), [])
                space.close()

    def test_not_even_loopback(self):
        """It starts, serves as soon as loopback is there, and writes nothing."""
        for version, python in self.pythons():
            with self.subTest(python=version):
                space = self.start(lab.Namespace, 'da%d-d%d%d' % ((os.getpid(),) + version))
                space.ip('link', 'set', 'lo', 'down')
                admin, log = self.begin(python, space)
                with self.assertRaises(OSError):
                    admin.connection(timeout=1)  # nobody even refuses it
                space.ip('link', 'set', 'lo', 'up')
                self.assertEqual(admin.nodes(), {})
                self.end(admin)
                self.assertEqual(self.written(log), [])
                space.close()

    def test_a_write_is_seen(self):
        """What these tests look at shows files that are written, removed or changed, and attempts at it."""
        python = environment.PYTHONS[environment.MAIN]
        for text, name in (('open("x", "w")', 'openat'), ('import os; os.mkdir("x")', 'mkdir'),
                           ('import os; os.unlink("dispyadmin.py")', 'unlink'), ('import os; os.utime(".")', 'utimensat'),
                           ('open("/dev/shm/dispyadmin-test-%d", "w")' % os.getpid(), 'openat')):
            before, log, folder, env = self.sealed(python, self.write(text))
            if 'shm' in text:
                self.addCleanup(lambda: os.path.exists('/dev/shm/dispyadmin-test-%d' % os.getpid()) and
                                os.unlink('/dev/shm/dispyadmin-test-%d' % os.getpid()))
            process = self.start(lab.Process, before + [os.path.realpath(python), 'dispyadmin.py'], cwd=folder,
                                 env=dict(os.environ, **env))
            status = process.wait()
            self.assertEqual([self.CALL.match(line).group(1) for line in self.written(log)], [name], process.output())
            if 'shm' not in text:
                self.assertEqual(status, 1)              # it is sealed


class Nodes(lab.LabTest):
    writes = False               # the table into the README, instead of comparing it

    def test_table(self):
        """Each node that runs is found, shown, and set; those that do not run are what the README says."""
        seen = {}                # (release, Python) -> {variant: why it does not run, or None}
        certfile = lab.certificate(self.folder())
        self.check_all(self.admin('--secret', 'open'), ('plain', 'without psutil'), None, seen)
        secure = self.admin('--secret', 'open', '--certfile', certfile, certfile=certfile)
        self.check_all(secure, ('TLS',), certfile, seen)
        text = table_of(seen)
        if self.writes:
            write_readme(text)
        else:
            self.assertEqual(cells_in(PARTS.search(read_readme()).group(2), seen), cells_in(text, seen))

    def check_all(self, admin, variants, certfile, seen):
        """Start the nodes, all at this dispyadmin, which ends then."""
        places = [(variant, key, packages, self.address()) for variant in variants
                  for key, packages in environment.table_packages().items()]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            nodes = list(pool.map(lambda place: self.try_node(place, certfile), places))
        for (variant, key, _, _), (node, why) in zip(places, nodes):
            seen.setdefault(key, {})[variant] = why
        admin.post('/api/scan', {})      # who announced itself while the port was busy is asked
        for (variant, key, _, _), (node, _) in zip(places, nodes):
            if node is not None:
                with self.subTest(release=key[0], python=key[1], variant=variant):
                    self.check(admin, node, key[0], variant)
        admin.close()
        for node, _ in nodes:
            if node is not None:
                node.close()

    def try_node(self, place, certfile):
        """(node, None), or (None, why there is none)."""
        variant, _, packages, address = place
        try:
            return self.node('open', address=address, packages=packages, psutil=variant != 'without psutil',
                             certfile=certfile), None
        except AssertionError as error:
            return None, reason_in(str(error))

    def check(self, admin, node, release, variant):
        shown = admin.wait_node(node, timeout=30, state='ready')
        self.assertEqual((shown['version'], shown['name'], shown['controllable']), (release, node.name, True))
        self.assertEqual(shown['avail_info'] is None, variant == 'without psutil')
        if variant != 'without psutil':
            self.assertGreater(shown['avail_info']['memory'], 2 ** 20)
        self.assertTrue(admin.control('cpus', [node], cpus=1)[node.id]['ok'])
        self.assertEqual(node.managed(), 1)
        self.assertTrue(admin.control('service_time', [node], control='stop', time='23:59')[node.id]['ok'])
        self.assertTrue(node.info()['service_stop'])
        self.assertTrue(admin.control('clients', [node], clients=7)[node.id]['ok'])
        self.assertEqual(node.info()['serve'], 7)
        self.assertEqual([admin.node(node)[key] for key in ('cpus', 'serve')], [1, 7])


def reason_in(output):
    """The line of a failed start that says why: that of the exception."""
    found = re.findall(r'^.*?\b(\w*(?:Error|Exception): .*)$', output, re.MULTILINE)
    return found[0].strip() if found else 'it does not answer'


def python_name(version):
    return '%d.%d' % version


def cell_of(reasons, notes):
    """What the table says of one release on one Python."""
    if not any(reasons.values()):
        return 'yes'
    common = set(reasons.values())
    if len(common) == 1:
        return 'no ' + note_for(common.pop(), notes)
    return ', '.join('%s: no %s' % (variant, note_for(reasons[variant], notes)) for variant in VARIANTS if reasons[variant])


def note_for(reason, notes):
    if reason not in notes:
        notes.append(reason)
    return '(%s)' % 'abcdefghij'[notes.index(reason)]


def table_of(seen):
    """The table, and its notes, as reStructuredText."""
    notes = []
    pythons = [version for version in environment.TABLE_PYTHONS if any(key[1] == version for key in seen)]
    rows = [['dispy'] + ['Python ' + python_name(version) for version in pythons]]
    rows += [[release] + [cell_of(seen[release, version], notes) for version in pythons]
             for release in environment.TABLE_RELEASES]
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    rule = '  '.join('=' * width for width in widths)
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    text = '\n'.join([rule, lines[0], rule] + lines[1:] + [rule]) + '\n'
    return text + ''.join('\n(%s) ``%s``\n' % ('abcdefghij'[number], note) for number, note in enumerate(notes))


def cells_in(text, seen):
    """The lines of a table, each with only those columns whose Pythons were seen: a machine may lack one."""
    rows = [re.split(r' {2,}', line.strip()) for line in text.splitlines() if line and not line.startswith('=')]
    kept = [0] + [number for number, title in enumerate(rows[0]) if title[7:] in {python_name(key[1]) for key in seen}]
    return [[row[number] for number in kept] if len(row) == len(rows[0]) else row for row in rows]


def read_readme():
    with open(README, encoding='utf-8') as file:
        return file.read()


def write_readme(text):
    old = read_readme()
    with open(README, 'w', encoding='utf-8') as file:
        file.write(PARTS.sub(lambda match: match.group(1) + text + match.group(3), old))


if __name__ == '__main__':
    Nodes.writes = '--write' in sys.argv
    environment.prepare()
    unittest.main(argv=[sys.argv[0], 'Nodes'], verbosity=2)
