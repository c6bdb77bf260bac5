"""What distributions make of the tree: a wheel, a Debian package, an RPM, and a service that systemd runs."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import unittest

from . import environment, lab

TIMEOUT = 240                    # seconds for one build
WORST_EXPOSURE = 1.5             # of systemd-analyze security
SHIPPED = ('dispyadmin.py', 'setup.cfg', 'LICENSE', 'README.rst', 'data', 'tests')
PLACES = {'/usr/bin/dispyadmin': 0o755, '/etc/dispyadmin/dispyadmin.conf': 0o644,
          '/usr/share/bash-completion/completions/dispyadmin': 0o644, '/usr/lib/sysusers.d/dispyadmin.conf': 0o644}


def need(program):
    if not shutil.which(program):
        raise unittest.SkipTest('no ' + program)


class Build(lab.LabTest):
    def call(self, command, **kwargs):
        """Run to its end; what it prints on standard output."""
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=TIMEOUT, **kwargs)
        said = done.stdout.decode('utf-8', 'replace'), done.stderr.decode('utf-8', 'replace')
        self.assertEqual(done.returncode, 0, said)
        self.complaints = said[1].strip()
        return said[0]

    def committed(self, folder):
        """The tree as it is committed, as the folder of a release."""
        release = os.path.join(folder, 'dispyadmin-' + environment_version())
        os.mkdir(release)
        archive = os.path.join(folder, 'archive.tar')
        self.call(['git', '-C', environment.ROOT, 'archive', '-o', archive, 'HEAD'])
        with tarfile.open(archive) as tar:
            tar.extractall(release, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        return release


def environment_version():
    with open(environment.SCRIPT, encoding='utf-8') as file:
        return re.search(r"^__version__ = '(.*)'$", file.read(), re.MULTILINE).group(1)


class Wheel(Build):
    def check(self, packages):
        path = environment.require(packages)
        folder = self.folder()
        for name in SHIPPED:
            source = os.path.join(environment.ROOT, name)
            (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, os.path.join(folder, name))
        self.call([packages.python, '-c', 'import setuptools; setuptools.setup()', '--quiet', 'bdist_wheel'], cwd=folder,
                  env=dict(os.environ, PYTHONPATH=path))
        wheel, = glob.glob(os.path.join(folder, 'dist', '*.whl'))
        self.assertEqual(os.path.basename(wheel), 'dispyadmin-%s-py3-none-any.whl' % environment_version())
        self.call([packages.python, '-m', 'venv', os.path.join(folder, 'fresh')])
        self.call([os.path.join(folder, 'fresh', 'bin', 'python'), '-m', 'pip', 'install', '--quiet', '--no-index', wheel])
        command = os.path.join(folder, 'fresh', 'bin', 'dispyadmin')
        self.assertEqual(self.call([command, '--version'], cwd=self.folder()).strip(), 'dispyadmin ' + environment_version())
        found = self.call([os.path.join(folder, 'fresh', 'bin', 'python'), '-c', 'import sys; print(sys.prefix)']).strip()
        installed = [name for _, _, names in os.walk(found) for name in names if name.endswith(('.1', '.service', '.conf'))]
        self.assertEqual(installed, [])              # those are for distributions to place

    def test_old_setuptools(self):
        if environment.OLDEST > (3, 9):
            raise unittest.SkipTest('setuptools 40.6 runs on Python 3.9 and older, and there is none')
        self.check(environment.OLD_SETUPTOOLS)

    def test_new_setuptools(self):
        self.check(environment.NEW_SETUPTOOLS)


class Unit(Build):
    UNIT = os.path.join(environment.ROOT, 'data', 'dispyadmin.service')

    def test_verify(self):
        """In a root of its own, where the program is at its place."""
        need('systemd-analyze')
        root = self.folder()
        os.makedirs(os.path.join(root, 'usr', 'bin'))
        shutil.copy(environment.SCRIPT, os.path.join(root, 'usr', 'bin', 'dispyadmin'))
        with open(self.UNIT) as file:
            text = file.read()
        path = os.path.join(root, 'dispyadmin.service')
        with open(path, 'w') as file:
            file.write(text.replace('/usr/bin/dispyadmin', os.path.join(root, 'usr', 'bin', 'dispyadmin')))
        os.chmod(root, 0o755)
        said = self.call(['systemd-analyze', 'verify', '--man=no', path])
        self.assertEqual((said, self.complaints), ('', ''))

    def test_exposure(self):
        need('systemd-analyze')
        said = self.call(['systemd-analyze', 'security', '--offline=true', '--no-pager', self.UNIT])
        exposure = float(re.search(r'Overall exposure level for dispyadmin.service: ([0-9.]+)', said).group(1))
        self.assertLessEqual(exposure, WORST_EXPOSURE, said)

    def test_no_secret(self):
        """Neither the environment nor the command line of the unit has one."""
        with open(self.UNIT) as file:
            keys = [line for line in file.read().splitlines() if line and not line.startswith('#')]
        for line in keys:
            self.assertNotRegex(line, r'^(Pass)?Environment|--secret|DISPYADMIN_SECRET')
        self.assertIn('LoadCredential=secret:/etc/dispyadmin/secret', keys)

    def test_closed_proc(self):
        """With what ProcSubset=pid leaves of /proc, whose a connection is can still be told: root needs no token."""
        lab.need_namespaces()
        admin = self.admin(before=['unshare', '--mount', 'sh', '-c',
                                   'mount -t proc -o subset=pid proc /proc && test ! -e /proc/net && exec "$@"', 'sh'])
        self.assertIsNone(admin.token)
        self.assertEqual(admin.request('GET', '/api/nodes').status, 200)


# Boots this machine's systemd with the unit and nothing else, in namespaces and a copy-on-write view of the file system that
# go with it, and has PROBE run in it. $1 is the repository, $2 a folder for what the probe writes.
BOOT = r"""
set -e
mount --make-rprivate /
mkdir "$2/over" "$2/root"
mount -t tmpfs tmpfs "$2/over"
mkdir "$2/over/up" "$2/over/work"
root=$2/root
mount -t overlay overlay -o lowerdir=/,upperdir="$2/over/up",workdir="$2/over/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mkdir "$root/probe" "$root/before"
mount --bind "$2" "$root/probe"
install -m 755 "$1/dispyadmin.py" "$root/usr/bin/dispyadmin"
sed -i '1s|.*|#!/usr/bin/python3|' "$root/usr/bin/dispyadmin"
install -D -m 644 "$1/data/dispyadmin.conf" "$root/etc/dispyadmin/dispyadmin.conf"
(umask 077; echo an-admin-secret >"$root/etc/dispyadmin/secret")
systemd-sysusers --root="$root" --replace=/usr/lib/sysusers.d/dispyadmin.conf - <"$1/data/dispyadmin.sysusers" &>/dev/null
cp "$1/data/dispyadmin.service" "$root/etc/systemd/system/"
# only the service is started here, not what it waits for on a real machine
mkdir "$root/etc/systemd/system/dispyadmin.service.d"
printf '[Unit]\nDefaultDependencies=no\n' >"$root/etc/systemd/system/dispyadmin.service.d/alone.conf"
ln -s /dev/null "$root/etc/systemd/system/network-online.target"
printf '[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants=probe.service\n' \
  >"$root/etc/systemd/system/probe.target"
printf '[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/sh /probe/probe.sh\n' \
  >"$root/etc/systemd/system/probe.service"
cd "$root"
pivot_root . before
umount -l /before
mount --make-rshared /
exec env -i container=other PATH="$PATH" /lib/systemd/systemd --system --unit=probe.target --log-target=null \
  --show-status=no
"""

PROBE = r"""
exec >/probe/out 2>&1
ip link set lo up
ask() { python3 -c 'import urllib.request as r; print(r.urlopen("http://localhost:8181/api/about").read().decode())'; }
up() { n=0; until ask >/probe/about 2>/dev/null || [ $((n += 1)) -gt 60 ]; do sleep .2; done; }
echo "start: $(systemctl start dispyadmin && systemctl is-active dispyadmin)"
up
echo "about: $(cat /probe/about)"
pid=$(systemctl show -p MainPID --value dispyadmin)
echo "user: $(stat -c %U /proc/$pid)"
echo "rights: $(grep CapBnd /proc/$pid/status)"
echo "secret in sight: $(cat /proc/$pid/environ /proc/$pid/cmdline | tr '\0' '\n' | grep -c an-admin-secret)"
echo "state: $(stat -c '%U %a' /var/lib/dispyadmin)"
echo "stop: $(systemctl stop dispyadmin; systemctl show -p Result -p ExecMainStatus dispyadmin | tr '\n' ' ')"
rm /etc/dispyadmin/secret
systemctl start dispyadmin
up
echo "without a secret: $(cat /probe/about)"
systemctl stop dispyadmin
systemctl exit 0
"""


class Service(Build):
    def test_under_systemd(self):
        """The unit, with all that it forbids, starts and stops; the program has its secret, and knows root."""
        lab.need_namespaces()
        with open('/proc/self/mounts') as file:
            groups = [line.split()[1] for line in file if line.split()[2] == 'cgroup2']
        if not groups or not os.path.exists('/lib/systemd/systemd'):
            raise unittest.SkipTest('no systemd, or no cgroups of version 2')
        folder = self.folder()
        with open(os.path.join(folder, 'probe.sh'), 'w') as file:
            file.write(PROBE)
        group = os.path.join(groups[0], 'dispyadmin-test-%d' % os.getpid())
        os.mkdir(group)
        self.addCleanup(self.remove_group, group)
        command = ('echo $$ >"$3/cgroup.procs" && exec unshare --mount --pid --fork --uts --ipc --cgroup --net --kill-child '
                   'bash -c "$4" bash "$1" "$2"')
        process = self.start(lab.Process, ['bash', '-c', command, 'bash', environment.ROOT, folder, group, BOOT])
        process.wait(60)
        with open(os.path.join(folder, 'out')) as file:
            said = dict(line.split(': ', 1) for line in file.read().splitlines() if ': ' in line)
        self.assertEqual(said.get('start'), 'active', (said, process.output()))
        self.assertEqual(json.loads(said['about'])['secrets'], 1)         # and root needed no token to ask
        self.assertEqual(said['user'], 'dispyadmin')
        self.assertRegex(said['rights'], r'CapBnd:\s+0{16}$')
        self.assertEqual(said['secret in sight'], '0')
        self.assertEqual(said['state'], 'dispyadmin 700')
        self.assertEqual(said['stop'].split(), ['Result=success', 'ExecMainStatus=0'])
        self.assertEqual(json.loads(said['without a secret'])['secrets'], 0)

    @staticmethod
    def remove_group(group):
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)


class Debian(Build):
    def test_package(self):
        """Built from what is committed, without a word of lintian; what is in it runs."""
        for program in ('dpkg-buildpackage', 'dh', 'lintian'):
            need(program)
        folder = self.folder()
        said = self.call([os.path.join(environment.ROOT, '.ci', 'debian-package'), folder])
        name = 'dispyadmin_%s_all.deb' % environment_version()
        self.assertEqual((said.strip(), os.listdir(folder)), (os.path.join(folder, name), [name]), self.complaints)
        root = os.path.join(folder, 'root')
        self.call(['dpkg-deb', '-x', os.path.join(folder, name), root])
        for place, mode in dict(PLACES, **{'/lib/systemd/system/dispyadmin.service': 0o644,
                                           '/usr/share/man/man1/dispyadmin.1.gz': 0o644}).items():
            self.assertEqual(oct(os.stat(root + place).st_mode & 0o777), oct(mode), place)
        self.call(['dpkg-deb', '-e', os.path.join(folder, name), os.path.join(folder, 'control')])
        with open(os.path.join(folder, 'control', 'conffiles')) as file:
            self.assertEqual(file.read(), '/etc/dispyadmin/dispyadmin.conf\n')
        said = self.call([sys.executable, root + '/usr/bin/dispyadmin', '--version'], cwd=self.folder())
        self.assertEqual(said.strip(), 'dispyadmin ' + environment_version())
        admin = self.admin('--config', root + '/etc/dispyadmin/dispyadmin.conf', script=root + '/usr/bin/dispyadmin',
                           cwd=self.folder())
        self.assertEqual(admin.get('/api/about')['version'], environment_version())


class Rpm(Build):
    def test_spec_of_the_readme(self):
        """The spec file in README.rst builds what is committed."""
        need('rpmbuild')
        with open(os.path.join(environment.ROOT, 'README.rst'), encoding='utf-8') as file:
            found = re.search(r'``rpmbuild -bb dispyadmin.spec``\)::\n\n((?:    .*\n|\n)+)', file.read())
        spec = textwrap.dedent(found.group(1))
        self.assertIn('Version:        %s\n' % environment_version(), spec)
        folder = self.folder()
        release = self.committed(folder)
        os.mkdir(os.path.join(folder, 'SOURCES'))
        with tarfile.open(os.path.join(folder, 'SOURCES', os.path.basename(release) + '.tar.gz'), 'w:gz') as tar:
            tar.add(release, os.path.basename(release))
        with open(os.path.join(folder, 'dispyadmin.spec'), 'w') as file:
            file.write(spec)
        self.call(['rpmbuild', '-bb', '--define', '_topdir ' + folder, os.path.join(folder, 'dispyadmin.spec')])
        package, = glob.glob(os.path.join(folder, 'RPMS', 'noarch', '*.rpm'))
        modes = dict(line.split(' ', 1)[::-1] for line in self.call(
            ['rpm', '-qp', '--qf', r'[%{FILEMODES:octal} %{FILENAMES}\n]', package]).splitlines())
        for place, mode in dict(PLACES, **{'/usr/lib/systemd/system/dispyadmin.service': 0o644,
                                           '/usr/share/man/man1/dispyadmin.1': 0o644}).items():
            self.assertEqual(int(modes[place], 8) & 0o777, mode, place)
