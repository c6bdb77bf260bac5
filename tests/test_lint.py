"""What linters and validators say of the script, its page, the tests, the manual and everything else that is read by a
program: nothing."""

import os
import re
import shutil
import subprocess
import sys
import unittest

from . import environment, lab
from .test_page import PageTest

TIMEOUT = 120                    # seconds for one tool
# The table has roles because it is no table any more in narrow windows, where its parts are blocks: browsers then take their
# meaning away. That is known to be needed, and is not what the standard has in mind. Headings are filled by the page.
KNOWN_HTML = ('.*(“role” attribute must not be used on a “t[hrd]” element|role is unnecessary for element “t'
              '|Empty heading|“aria-hidden” is unnecessary for elements that have attribute “hidden”).*')


def page():
    """The three constants of the page, {name: text}."""
    with open(environment.SCRIPT, encoding='utf-8') as file:
        return dict(re.findall(r"^(PAGE_\w+) = r'''(.*?)'''", file.read(), re.MULTILINE | re.DOTALL))


class Tool(unittest.TestCase):
    maxDiff = None

    def silent(self, command, **kwargs):
        """Run a tool of this machine; it must have nothing to say."""
        if not shutil.which(command[0]):
            raise unittest.SkipTest('no ' + command[0])
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=environment.ROOT,
                              timeout=TIMEOUT, **kwargs)
        said = done.stdout.decode('utf-8', 'replace').strip()
        self.assertEqual((done.returncode, said), (0, ''), said)

    def write(self, text, name):
        folder = lab.tempfile.mkdtemp(prefix='dispyadmin-test-')
        self.addCleanup(shutil.rmtree, folder)
        with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
            file.write(text)
        return os.path.join(folder, name)


class Python(Tool):
    def python(self, module, *options, **kwargs):
        path = environment.require(environment.LINT)
        self.silent([sys.executable, '-m', module] + list(options), env=dict(os.environ, PYTHONPATH=path), **kwargs)

    def test_flake8(self):
        self.python('flake8')

    def test_script_without_its_page(self):
        """The page has lines as it needs them; the rest of the script keeps to the limit."""
        with open(environment.SCRIPT, encoding='utf-8') as file:
            text = file.read()
        for constant in page().values():
            text = text.replace(constant, '')
        self.assertLess(len(text), os.path.getsize(environment.SCRIPT) - 100000)
        self.python('flake8', '--disable-noqa', '--stdin-display-name', 'without_page.py', '-', input=text.encode('utf-8'))

    def test_readme(self):
        """Whatever docutils warns of is an error."""
        self.python('docutils', '--report=2', '--halt=2', '--writer=null', 'README.rst')


class Shell(Tool):
    def test_shellcheck(self):
        self.silent(['shellcheck', '-s', 'bash', 'data/dispyadmin.bash-completion', '.ci/run', '.ci/debian-package'])

    def test_modes(self):
        """What is run can be run, the rest cannot."""
        for folder, mode in (('data', 0o644), ('.ci', 0o755)):
            for name in os.listdir(os.path.join(environment.ROOT, folder)):
                path = os.path.join(environment.ROOT, folder, name)
                if os.path.isfile(path) and not name.endswith('.cjs'):
                    self.assertEqual(oct(os.stat(path).st_mode & 0o111), oct(mode & 0o111), path)


class Manual(Tool):
    def test_mandoc(self):
        self.silent(['mandoc', '-Tlint', 'data/dispyadmin.1'])

    def test_man(self):
        self.silent(['sh', '-c', 'command -v man >/dev/null || exit 1; '
                     'man --warnings -E UTF-8 -l -Tutf8 -Z data/dispyadmin.1 2>&1 >/dev/null'],
                    env=dict(os.environ, LC_ALL='C.UTF-8', MANROFFSEQ='', MANWIDTH='80'))


class Script(Tool):
    def test_syntax(self):
        self.silent(['node', '--check', self.write(page()['PAGE_JS'], 'page.js')])

    def test_eslint(self):
        modules = environment.require_npm()
        path = self.write(page()['PAGE_JS'], 'page.js')
        self.silent(['sh', '-c', 'cd "$1" && exec node "$2" --config "$3" --max-warnings 0 page.js', 'sh',
                     os.path.dirname(path), os.path.join(modules, 'eslint/bin/eslint.js'),
                     os.path.join(environment.ROOT, '.ci/eslint.config.cjs')], env=dict(os.environ, NODE_PATH=modules))


class Drawn(PageTest):
    """The page as it is served, and as its script has drawn it."""

    def lively(self):
        """A cluster with a node in each state, and something to undo."""
        lost = '%s:%d' % (self.address(), self.info_port + 1)
        admin, nodes = self.cluster(3, '--node', lost)
        admin.add(self.fake('other', name='locked'))
        admin.control('cpus', nodes[1:], cpus=2)
        admin.wait_node(lost, state='unreachable')
        nodes[1].info['cpus'] = 1
        admin.wait_node(nodes[1], drift=bool)
        self.wait('document.querySelectorAll("#rows tr").length === 5', 'all rows')
        lab.wait_for(lambda: 'drifted' in self.row_text(nodes[1]), 15, 'what has drifted')
        return admin, nodes

    def open_node(self, admin, node):
        self.open(admin, 'admin_node.html?host=' + node.id)
        self.wait('!document.querySelector("#node").hidden', 'the node view')
        self.wait('document.querySelector("#node-facts").textContent !== ""', 'its facts')


class Html(Drawn):
    def validate(self, pages):
        jar = os.path.join(environment.require_npm(), 'vnu-jar/build/dist/vnu.jar')
        if not shutil.which('java'):
            raise unittest.SkipTest('no java')
        paths = [self.write(text, name + '.html', 0o644) for name, text in pages.items()]
        done = subprocess.run(['java', '-jar', jar, '--Werror', '--filterpattern', KNOWN_HTML] + paths,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
        said = done.stdout.decode('utf-8', 'replace').strip()
        self.assertEqual((done.returncode, said), (0, ''), said)

    def drawn(self):
        return '<!DOCTYPE html>\n' + self.js('document.documentElement.outerHTML')

    def test_both_views(self):
        admin, nodes = self.lively()
        pages = {'served': admin.request('GET', '/').text, 'cluster': self.drawn()}
        self.assertIn('node-1', pages['cluster'])
        self.click('events-button')
        self.wait('document.querySelectorAll("#events-list li").length', 'events')
        pages['events'] = self.drawn()
        self.open_node(admin, nodes[1])
        pages['node'] = self.drawn()
        self.assertIn('node-1', pages['node'])
        self.open(admin, 'admin_node.html')
        self.wait('!document.querySelector("#chooser").hidden', 'the chooser')
        pages['chooser'] = self.drawn()
        self.validate(pages)


class Accessible(Drawn):
    """axe-core in the browser: no finding that is serious or critical, in light and dark, wide and narrow."""

    def check(self, what):
        for scheme in ('light', 'dark'):
            self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [
                {'name': 'prefers-color-scheme', 'value': scheme}, {'name': 'prefers-reduced-motion', 'value': 'reduce'}]})
            self.wait('document.getAnimations().every(one => one.playState !== "running")', 'colours')
            with self.subTest(what, scheme=scheme):
                self.assertEqual(self.findings(), [])

    def findings(self):
        with open(os.path.join(environment.require_npm(), 'axe-core/axe.min.js'), encoding='utf-8') as file:
            self.driver.execute_script(file.read())
        found = self.driver.execute_async_script('const done = arguments[0]; axe.run().then(done, e => done(String(e)))')
        self.assertIsInstance(found, dict, found)
        self.assertGreater(len(found['passes']), 10)
        return ['%s, %s: %s: %s' % (rule['impact'], rule['id'], rule['help'],
                                    [node['html'][:200] + node['failureSummary'][:200] for node in rule['nodes']][:5])
                for rule in found['violations'] if rule['impact'] in ('serious', 'critical')]

    def test_cluster_view(self):
        admin, nodes = self.lively()
        self.check('cluster')
        self.select(nodes[2])
        self.select(nodes[1])
        self.check('two are selected')
        self.type('cpus', '1')
        self.click('cpus-set')
        self.wait('document.querySelector("#ask").open && document.querySelector("#ask").innerText.includes("will change")',
                  'the question')
        self.wait('!document.querySelector("#ask-yes").hidden', 'its button')
        self.check('question')
        self.click('ask-yes')
        self.outcome('done')
        self.check('outcome')
        self.click('events-button')
        self.wait('document.querySelectorAll("#events-list li").length', 'events')
        self.check('events')
        self.click('events-close')
        self.click('help-button')
        self.wait('document.querySelector("#help").open', 'help')
        self.check('help')
        self.click('help-close')
        self.js('document.querySelector("#past").open = true')
        self.wait('document.querySelector("#past-charts").childElementCount > 0', 'charts')
        self.check('last hours')
        self.browser.size(360, 800)
        self.addCleanup(self.driver.execute_cdp_cmd, 'Emulation.clearDeviceMetricsOverride', {})
        self.check('narrow')

    def test_node_view(self):
        admin, nodes = self.lively()
        for number in (2, 1):                         # as it was set, and drifted
            self.open_node(admin, nodes[number])
            self.check('node %d' % number)
        self.browser.size(360, 800)
        self.addCleanup(self.driver.execute_cdp_cmd, 'Emulation.clearDeviceMetricsOverride', {})
        self.check('narrow')
        self.open(admin, 'admin_node.html')
        self.wait('!document.querySelector("#chooser").hidden', 'the chooser')
        self.check('chooser')

    def test_empty(self):
        self.open(self.admin())
        self.wait('!document.querySelector("#empty").hidden', 'what to do without nodes')
        self.check('empty')


del PageTest                     # its tests are those of test_page
