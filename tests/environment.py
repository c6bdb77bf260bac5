"""What the tests need from outside the standard library: Pythons of this machine, and packages from PyPI.

Packages are installed once with `pip install --target` into a folder of `.testenv/` whose name says what is in it, so
that one mechanism serves
Python 2.7 as well as the newest one. Only the main program installs (`prepare`); the tests just look whether the
folder is there.
"""

import collections
import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, '.testenv')
SCRIPT = os.path.join(ROOT, 'dispyadmin.py')
STRICT = ['-X', 'dev', '-W', 'error']   # the tests run with these, and so does dispyadmin: a warning is a failure
PIP_TIMEOUT = 240                # seconds for one installation
NEWEST_FOR_DISPY = (3, 13)       # the newest Python on which dispy 4.15.2 was seen to run

Packages = collections.namedtuple('Packages', 'python version required optional')


def python_version(path):
    """(major, minor) of the CPython at path; None when it is none or does not start."""
    code = 'import platform, sys; print(platform.python_implementation(), "%d.%d" % sys.version_info[:2])'
    try:
        out = subprocess.run([path, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"CPython\W+(\d+)\.(\d+)", out.decode('ascii', 'replace'))
    return (int(found.group(1)), int(found.group(2))) if found else None


def find_pythons():
    """{(major, minor): path} of every CPython that pyenv or PATH has; the running one for its own version."""
    candidates = sorted(glob.glob(os.path.expanduser('~/.pyenv/versions/*/bin/python')))
    for folder in os.environ.get('PATH', '').split(os.pathsep):
        candidates += [path for path in sorted(glob.glob(os.path.join(folder, 'python[23].*')))
                       if re.search(r'/python\d\.\d+$', path)]
    found = {}
    for path in candidates:
        found.setdefault(python_version(path), path)
    found.pop(None, None)
    found[sys.version_info[:2]] = sys.executable
    return found


PYTHONS = find_pythons()
MAIN = max(version for version in PYTHONS if version <= NEWEST_FOR_DISPY)
if sys.version_info[:2] <= NEWEST_FOR_DISPY:
    MAIN = sys.version_info[:2]


def node_packages(release, version=MAIN, psutil=True):
    return Packages(PYTHONS.get(version), version, ('dispy==' + release,), ('psutil',) if psutil else ())


def node_matrix():
    """The dispy releases and Pythons that a mixed cluster is made of, as far as this machine has the Pythons."""
    wanted = [node_packages('4.15.2'), node_packages('4.15.2', psutil=False), node_packages('4.14.0', psutil=False),
              node_packages('4.12.4', psutil=False), node_packages('4.11.0', (2, 7)),
              node_packages('4.15.2', (3, 6)), node_packages('4.15.2', (3, 13))]
    unique = collections.OrderedDict((folder_of(packages), packages) for packages in wanted if packages.python)
    return list(unique.values())


# What the table "Compatibility" of the README is about.
TABLE_RELEASES = ('4.11.0', '4.12.0', '4.14.0', '4.15.0', '4.15.2')
TABLE_PYTHONS = ((2, 7), (3, 6), (3, 11), (3, 13))


def table_packages():
    """{(release, Python): Packages} of that table, as far as this machine has the Pythons."""
    versions = [version for version in TABLE_PYTHONS if version in PYTHONS] or [MAIN]     # nodes are tried in any case
    return collections.OrderedDict(((release, version), node_packages(release, version)) for release in TABLE_RELEASES
                                   for version in versions)


SELENIUM = Packages(sys.executable, sys.version_info[:2], ('selenium',), ())
PROMETHEUS = Packages(sys.executable, sys.version_info[:2], ('prometheus_client',), ())
ATHERIS = Packages(sys.executable, sys.version_info[:2], ('atheris',), ())     # not for every Python: see test_fuzz
LINT = Packages(sys.executable, sys.version_info[:2], ('flake8', 'docutils'), ())
# What builds a wheel: setuptools of 2018, on the oldest Python here, and today's, on the newest.
OLDEST, NEWEST = min(version for version in PYTHONS if version >= (3, 6)), max(PYTHONS)
OLD_SETUPTOOLS = Packages(PYTHONS[OLDEST], OLDEST, ('setuptools==40.6.3', 'wheel==0.32.3'), ())
NEW_SETUPTOOLS = Packages(PYTHONS[NEWEST], NEWEST, ('setuptools', 'wheel'), ())
# From npm, for the page: a linter, a library of accessibility rules, a validator of HTML. eslint 9 runs on Debian's Node.js.
NPM = ('eslint@9', 'globals@16', 'axe-core@4', 'vnu-jar@26')
NPM_FOLDER = os.path.join(FOLDER, 'npm-' + '+'.join(NPM).replace('@', '-'))


def folder_of(packages):
    names = '+'.join(packages.required + packages.optional).replace('==', '-')
    return os.path.join(FOLDER, '%s-py%d.%d' % ((names,) + packages.version))


def require(packages):
    """The folder with these packages; skips the test when the set-up could not make it."""
    folder = folder_of(packages)
    if not os.path.isdir(folder):
        raise unittest.SkipTest('%s for Python %d.%d is not installed (no network at the first run?)'
                                % ((' '.join(packages.required),) + packages.version))
    return folder


class SetupError(Exception):
    """One line that says which part of the set-up failed."""


def run(command, what, timeout=PIP_TIMEOUT):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=timeout)
    except subprocess.TimeoutExpired:
        raise SetupError('%s: no end after %d s' % (what, timeout))
    except OSError as error:
        raise SetupError('%s: %s' % (what, error))
    if done.returncode:
        lines = done.stdout.decode('utf-8', 'replace').strip().splitlines() or ['exit status %d' % done.returncode]
        errors = [line for line in lines if 'error' in line.lower()] or lines
        raise SetupError('%s: %s' % (what, errors[-1].strip()))


def pip_of(packages):
    """A command that runs pip on this Python: its own, or that of a virtual environment (Debian's python3 has none)."""
    own = [packages.python, '-m', 'pip']
    try:
        run(own + ['--version'], 'pip', 60)
        return own
    except SetupError:
        folder = os.path.join(FOLDER, 'venv-py%d.%d' % packages.version)
        command = [os.path.join(folder, 'bin', 'python'), '-m', 'pip']
        try:
            run(command + ['--version'], 'pip', 60)
        except SetupError:                   # not there yet, or left incomplete
            run([packages.python, '-m', 'venv', '--clear', folder], 'virtual environment')
        return command


def install(packages):
    """Install into a folder beside the final one and rename: what is there is complete, and two runs at once do not
    meet."""
    folder = folder_of(packages)
    if os.path.isdir(folder):
        return
    partial = '%s.%d' % (folder, os.getpid())
    # The pip of Python 3.6 cannot build in isolation from a second index; Python 2.7 and 3.6 have setuptools of their
    # own.
    old = ['--no-build-isolation'] if (3, 0) < packages.version < (3, 7) else []
    command = pip_of(packages) + ['install', '--quiet', '--disable-pip-version-check', '--timeout', '20', '--retries',
                                  '1',
                                  '--target', partial] + old
    try:
        run(command + list(packages.required), ' '.join(packages.required) + ' for Python %d.%d' % packages.version)
        for name in packages.optional:
            try:
                run(command + [name], name)
            except SetupError as error:      # a node without psutil is a node still
                print('set-up: %s' % error, flush=True)
        try:
            os.rename(partial, folder)
        except OSError:
            if not os.path.isdir(folder):    # else another run was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_npm():
    """The folder with the packages from npm; skips the test when the set-up could not make it."""
    if not os.path.isdir(NPM_FOLDER):
        raise unittest.SkipTest('%s are not installed (no npm, or no network at the first run?)' % ' '.join(NPM))
    return os.path.join(NPM_FOLDER, 'node_modules')


def install_npm():
    """As install(), for the packages from npm. No script of a package is run."""
    partial = '%s.%d' % (NPM_FOLDER, os.getpid())
    try:
        os.makedirs(partial)
        run(['npm', 'install', '--prefix', partial, '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel', 'error']
            + list(NPM), ' '.join(NPM))
        try:
            os.rename(partial, NPM_FOLDER)
        except OSError:
            if not os.path.isdir(NPM_FOLDER):  # else another run was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def missing():
    """What is to be installed: (function, arguments) of each."""
    wanted = (node_matrix() + list(table_packages().values())
              + [SELENIUM, ATHERIS, PROMETHEUS, LINT, OLD_SETUPTOOLS, NEW_SETUPTOOLS])
    packages = [each for each in collections.OrderedDict.fromkeys(wanted) if not os.path.isdir(folder_of(each))]
    return [(install, each) for each in packages] + ([] if os.path.isdir(NPM_FOLDER) else [(install_npm,)])


def prepare():
    """Install what is missing; print the one-line reasons of what could not be."""
    jobs = missing()
    if not jobs:
        return
    os.makedirs(FOLDER, exist_ok=True)
    print('set-up: %d installations from PyPI and npm into %s' % (len(jobs), os.path.relpath(FOLDER)), flush=True)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(*job) for job in jobs]:
            try:
                future.result()
            except (SetupError, OSError) as error:
                print('set-up: %s' % error, flush=True)


def discard(pid):
    """Remove what a set-up of this id has left incomplete."""
    for path in glob.glob(os.path.join(FOLDER, '*.%d' % pid)):
        shutil.rmtree(path, ignore_errors=True)


if __name__ == '__main__':
    prepare()
