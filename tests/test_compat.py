"""What dispyadmin runs on, and which nodes it works with.

The one file, copied alone to an empty folder, on every CPython from 3.6 on that this machine has; and nodes of five
releases of dispy on four Pythons, as the README's table tells. `python3 -m tests.test_compat --write` writes that table.
"""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import sys
import unittest

from . import environment, lab

README = os.path.join(environment.ROOT, 'README.rst')
PARTS = re.compile(r'(\.\. what test_compat saw\n\n)(.*?)(\n\.\. end of what test_compat saw\n)', re.DOTALL)
DATA = os.path.join(environment.FOLDER, 'compatibility.json')     # what was seen of each node, at the last run
VARIANTS = ('plain', 'without psutil', 'TLS', 'TLS without psutil')
STEPS = ('found', 'shown', 'load', 'cpus', 'service_time', 'clients', 'shown_after')
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
            mount --bind "$2" "$1" && mount -t tmpfs -o mode=755 none "/$3" && mkdir -p "$2" &&
                mount --bind "$1" "$2" || exit
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
        """Each node that runs is found, shown, and set; the README says what was seen, and so does DATA."""
        certfile = lab.certificate(self.folder())
        rows = self.measure(('plain', 'without psutil'))
        rows += self.measure(('TLS', 'TLS without psutil'), certfile)
        with open(DATA, 'w') as file:
            json.dump({'rows': rows, 'missing': [python_name(version) for version in environment.TABLE_PYTHONS
                                                 if version not in environment.PYTHONS]}, file, indent=1)
        for row in rows:                 # what runs has to work, whatever the README says
            if row['runs']:
                with self.subTest(release=row['release'], python=row['python'], variant=row['variant']):
                    self.assertEqual([step for step in STEPS if not row[step]], [], row)
        told = {(row['release'], row['python']) for row in rows}
        self.assertTrue(told)
        if self.writes:
            self.assertEqual(len(told), len(environment.TABLE_RELEASES) * len(environment.TABLE_PYTHONS),
                             'a Python is missing, so the table is not written')
            write_readme(table_of(rows))
            return
        table = {python_name(version) for version in environment.TABLE_PYTHONS}
        expected, seen = cells_in(PARTS.search(read_readme()).group(2)), cells_in(table_of(rows))
        self.assertEqual({key: expected.get(key) for key in seen if key[1] in table},
                         {key: seen[key] for key in seen if key[1] in table},
                         'the README tells something else: python3 -m tests.test_compat --write')

    def measure(self, variants, certfile=None):
        """What was seen of the nodes of some variants, all at one dispyadmin: a list of dicts."""
        admin = self.admin('--secret', 'open', *(['--certfile', certfile] if certfile else []), certfile=certfile)
        places = [(variant, packages, self.address()) for variant in variants
                  for packages in environment.table_packages().values()]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            nodes = list(pool.map(lambda place: self.try_node(place, certfile), places))
        admin.post('/api/scan', {})      # who announced itself while the port was busy is asked
        rows = []
        for (variant, packages, _), (node, why) in zip(places, nodes):
            row = {'release': packages.required[0].partition('==')[2], 'python': python_name(packages.version),
                   'variant': variant, 'runs': node is not None, 'error': why}
            if node is not None:
                row.update({step: False for step in STEPS})
                try:
                    self.look(admin, node, row)
                except (AssertionError, OSError, KeyError, TypeError, ValueError) as error:
                    row['error'] = str(error) or type(error).__name__
            rows.append(row)
        admin.close()
        for node, _ in nodes:
            if node is not None:
                node.close()
        return rows

    def try_node(self, place, certfile):
        """(node, None), or (None, why there is none)."""
        variant, packages, address = place
        try:
            return self.node('open', address=address, packages=packages, psutil='without psutil' not in variant,
                             certfile=certfile), None
        except AssertionError as error:
            return None, reason_in(str(error))

    @staticmethod
    def look(admin, node, row):
        """Note each step of STEPS: what dispyadmin shows and sets, and what the node says of itself then."""
        shown = admin.wait_node(node, timeout=30, state=lambda state: state != 'unreachable')
        row['found'] = True
        shown = admin.wait_node(node, timeout=30, state='ready')
        row['shown'] = (shown['version'], shown['name'], shown['controllable']) == (row['release'], node.name, True)
        load = shown['avail_info']
        row['load'] = load is None if 'without psutil' in row['variant'] else (
            load['memory'] > 2 ** 20 and load['disk'] > 2 ** 20 and 0 <= load['cpu'] <= 100 and 0 <= load['swap'] <= 100)
        result = admin.control('cpus', [node], cpus=1)[node.id]
        row['cpus'] = result['ok'] and node.managed() == result['cpus'] == 1
        result = admin.control('service_time', [node], control='stop', time='23:59')[node.id]
        told = node.info()
        row['service_time'] = bool(result['ok'] and told['service_stop'] and told['service_stop'] == result['service_stop'])
        result = admin.control('clients', [node], clients=7)[node.id]
        told = node.info()
        row['clients'] = bool(result['ok'] and told['serve'] == result['serve'] == 7)
        row['node_said'] = {key: told[key] for key in ('name', 'cpus', 'max_cpus', 'serve', 'service_stop')}
        shown = admin.node(node)
        row['shown_after'] = [shown[key] for key in ('cpus', 'serve', 'service_stop')] == [1, 7, told['service_stop']]


def reason_in(output):
    """The line of a failed start that says why: that of the exception."""
    found = re.findall(r'^.*?\b(\w*(?:Error|Exception): .*)$', output, re.MULTILINE)
    return found[0].strip() if found else 'it does not answer'


def python_name(version):
    return '%d.%d' % version


def table_of(rows):
    """The table, and its notes, as reStructuredText."""
    notes, cells = [], {}
    for row in rows:
        failed = [step for step in STEPS if not row[step]] if row['runs'] else ['runs']
        why = (row['error'] if failed == ['runs'] else 'not ' + ', '.join(failed)) if failed else None
        cells.setdefault((row['release'], row['python']), {})[row['variant']] = why
    pythons = sorted({key[1] for key in cells}, key=lambda name: [int(number) for number in name.split('.')])
    table = [['dispy'] + ['Python ' + name for name in pythons]]
    table += [[release] + [cell_of(cells[release, name], notes) for name in pythons]
              for release in environment.TABLE_RELEASES]
    widths = [max(len(row[number]) for row in table) for number in range(len(table[0]))]
    rule = '  '.join('=' * width for width in widths)
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    text = '\n'.join([rule, lines[0], rule] + lines[1:] + [rule]) + '\n'
    return text + ''.join('\n(%d) ``%s``\n' % (number, note) for number, note in enumerate(notes, 1))


def cell_of(reasons, notes):
    """What the table says of one release on one Python: of all variants, or of those that fail."""
    failed = {variant: why for variant, why in reasons.items() if why}
    if not failed:
        return 'yes'
    if len(failed) == len(reasons) and len(set(failed.values())) == 1:
        return 'no ' + note_for(next(iter(failed.values())), notes)
    return ', '.join('%s: no %s' % (variant, note_for(failed[variant], notes)) for variant in failed)


def note_for(reason, notes):
    if reason not in notes:
        notes.append(reason)
    return '(%d)' % (notes.index(reason) + 1)


def cells_in(text):
    """{(release, Python): what a table says, with the notes in their places}: a machine may lack a Python, and then counts
    notes otherwise."""
    notes = dict(re.findall(r'^\((\d+)\) ``(.*)``$', text, re.MULTILINE))
    rows = [re.split(r' {2,}', line.strip()) for line in text.splitlines() if re.match(r'(dispy|\d+\.\d+\.\d+) ', line)]
    return {(row[0], title.partition(' ')[2]): re.sub(r'\((\d+)\)', lambda match: '(%s)' % notes[match.group(1)], cell)
            for row in rows[1:] for title, cell in zip(rows[0][1:], row[1:])}


class Table(unittest.TestCase):
    """The table itself, with nodes that do not run or do not work."""

    def rows(self, pythons):
        rows = [dict({step: True for step in STEPS}, release=release, python=python, variant=variant, runs=True, error=None)
                for release in environment.TABLE_RELEASES for python in pythons for variant in VARIANTS]
        for row in rows:
            if (row['release'], row['python']) == ('4.11.0', '3.13'):
                row.update(runs=False, error='SyntaxError: invalid syntax')
            elif (row['release'], row['python'], row['variant']) == ('4.15.2', '3.6', 'TLS'):
                row.update(load=False)
        return rows

    def test_notes(self):
        text = table_of(self.rows(('2.7', '3.6', '3.13')))
        self.assertIn('(1) ``SyntaxError: invalid syntax``\n', text)
        cells = cells_in(text)
        self.assertEqual(len(cells), 3 * len(environment.TABLE_RELEASES))
        self.assertEqual(cells.pop(('4.11.0', '3.13')), 'no (SyntaxError: invalid syntax)')
        self.assertEqual(cells.pop(('4.15.2', '3.6')), 'TLS: no (not load)')
        self.assertEqual(set(cells.values()), {'yes'})

    def test_a_python_is_missing(self):
        """What the others say is the same, though its notes have other numbers."""
        whole, part = (cells_in(table_of(self.rows(pythons))) for pythons in (('3.6', '3.13'), ('3.6',)))
        self.assertEqual(part, {key: whole[key] for key in whole if key[1] == '3.6'})


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
