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

    # Everything is read-only for what follows, in a mount namespace of its own.
    SEALED = ['unshare', '--mount', 'sh', '-c', 'mount --make-rprivate / && mount -o remount,bind,ro / && exec "$@"', 'sh']
    CALLS = ('execve,open,openat,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,'
             'truncate')
    WRITES = re.compile(r'O_WRONLY|O_RDWR|O_CREAT|^[0-9]+ +(creat|mk|rename|link|symlink|truncate)')

    def begin(self, python, space):
        """(dispyadmin in its sealed place, the name of the file with its system calls)."""
        log, folder = os.path.join(self.folder(), 'calls'), self.folder()
        shutil.copy(environment.SCRIPT, folder)
        strace = ['strace', '-f', '-qq', '-o', log, '-e', 'trace=' + self.CALLS]
        env = {'HOME': '/nonexistent', 'XDG_CONFIG_HOME': '', 'XDG_CACHE_HOME': '', 'PYTHONDONTWRITEBYTECODE': '',
               'PYTHONPATH': ''}
        return self.start(lab.Admin, '--secret', 'open', '--node', '10.1.2.3', python=python, namespace=space, cwd=folder,
                          script='dispyadmin.py', before=strace + self.SEALED, env=env), log

    def end(self, admin):
        """End the program, which is a child of strace."""
        with open('/proc/%d/task/%d/children' % (admin.popen.pid, admin.popen.pid)) as file:
            os.kill(int(file.read().split()[0]), signal.SIGTERM)
        self.assertEqual(admin.wait(), 0)

    def written(self, log):
        """What dispyadmin opened for writing or made, or tried to."""
        with open(log, errors='replace') as file:
            lines = file.readlines()
        begun = max(number for number, line in enumerate(lines) if 'execve(' in line and '"dispyadmin.py"' in line)
        self.assertTrue(any('dispyadmin.py", O_RDONLY' in line for line in lines[begun:]))
        return [line for line in lines[begun:] if self.WRITES.search(line) and '"/dev/' not in line]

    def setUp(self):
        lab.need_namespaces()
        if not shutil.which('strace'):
            raise unittest.SkipTest('no strace')
        super().setUp()

    def test_nothing_is_there_and_nothing_is_written(self):
        pythons = sorted(item for item in environment.PYTHONS.items() if item[0] >= (3, 6))
        for version, python in (pythons[0], pythons[-1]):
            with self.subTest(python=version):
                space = self.start(lab.Namespace, 'da%d-%d%d' % ((os.getpid(),) + version))
                admin, log = self.begin(python, space)
                self.assertIn('page.js', admin.request('GET', '/').text)
                admin.post('/api/scan', {})
                shown = admin.wait_node('10.1.2.3:9701', timeout=20, state='unreachable')
                self.assertIn('No route', shown['reason'])
                self.end(admin)
                self.assertEqual(self.written(log), [])
                self.assertEqual([line for line in admin.err if 'Traceback' in line], [])
                space.close()

    def test_not_even_loopback(self):
        space = self.start(lab.Namespace, 'da%d-none' % os.getpid())
        space.ip('link', 'set', 'lo', 'down')
        admin, log = self.begin(environment.PYTHONS[environment.MAIN], space)
        self.end(admin)
        self.assertEqual(self.written(log), [])


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
