"""The page in a real Chromium: what an administrator sees and does, and that it happens at the node."""

import os
import time

from . import lab

REFRESH = 15                     # seconds until the page has asked again, and drawn


class PageTest(lab.LabTest):
    """One browser for all tests of a class; dispyadmin is new in each."""

    @classmethod
    def setUpClass(cls):
        cls.browser = lab.Browser()
        cls.addClassCleanup(cls.browser.close) if hasattr(cls, 'addClassCleanup') else None
        cls.driver = cls.browser.driver

    @classmethod
    def tearDownClass(cls):
        if not hasattr(cls, 'addClassCleanup'):      # Python 3.6 and 3.7
            cls.browser.close()

    def open(self, admin, path=''):
        self.server = admin
        self.driver.get(admin.url + path)
        self.wait("document.querySelector('#freshness').textContent !== ''", 'a first answer')

    def tearDown(self):
        errors = [error for error in self.browser.errors() if 'net::ERR_CONNECTION' not in error]
        self.driver.get('about:blank')
        self.assertEqual(errors, [])                 # a blocked style or script shows here

    def actions(self):
        from selenium.webdriver import ActionChains
        return ActionChains(self.driver)

    def js(self, expression, *args):
        return self.driver.execute_script('return ' + expression, *args)

    def wait(self, expression, what, timeout=REFRESH):
        return lab.wait_for(lambda: self.js(expression), timeout, lambda: '%s; the page: %s' % (
            what, self.js('document.body.innerText')[:1500]))

    def element(self, key):
        return self.driver.find_element('css selector', key if key[0] in '#.[' else '#' + key)

    def click(self, key):
        element = self.element(key)
        self.js('arguments[0].scrollIntoView({block: "center"})', element)
        element.click()

    def type(self, key, text):
        element = self.element(key)
        element.clear()
        element.send_keys(text)

    def text(self, key):
        return self.element(key).text

    def cell(self, node, column):
        selector = '#rows tr[data-id="%s"] [data-col="%s"]' % (node.id, column)
        return self.js('(document.querySelector(arguments[0]) || {}).textContent', selector)

    def wait_cell(self, node, column, text):
        lab.wait_for(lambda: self.cell(node, column) == text, REFRESH,
                     lambda: '%s %s of %s; is %s' % (column, text, node.id, self.cell(node, column)))

    def row_text(self, node):
        return self.js('(document.querySelector(`#rows tr[data-id="${arguments[0]}"]`) || {}).innerText', node.id) or ''

    def select(self, node):
        box = self.element('[data-id="%s"] input' % node.id)
        self.js('arguments[0].scrollIntoView({block: "center"})', box)
        box.click()

    def order(self):
        return self.js('Array.from(document.querySelectorAll("#rows tr")).map(tr => tr.dataset.id)')

    def outcome(self, *words):
        """The outcome of an action, once it says all these words."""
        def said():
            text = self.js('document.querySelector("#outcome").innerText')
            return text if all(word in text for word in words) and '\u2026' not in text.split('\n')[0] else None
        return lab.wait_for(said, 30, lambda: 'an outcome with %s: %s'
                            % (words, self.js('document.querySelector("#outcome").innerText')))

    def cluster(self, count=3, *options, **kwargs):
        """dispyadmin with open fake nodes, in the cluster view."""
        nodes = [self.fake('open', name='node-%d' % number, cpus=number + 1, **kwargs) for number in range(count)]
        admin = self.admin('--secret', 'open', *options)
        for node in nodes:
            self.assertTrue(admin.add(node)['ok'])
        self.open(admin)
        self.wait('document.querySelectorAll("#rows tr").length >= %d' % min(count, 20), 'all rows')
        return admin, nodes


class Cluster(PageTest):
    def test_shown(self):
        admin, nodes = self.cluster()
        locked = self.fake('other')
        admin.add(locked)
        nodes[0].info.update(busy=1, cpus=0, jobs_done=1234, cpu_time=3725.0)
        self.wait_cell(nodes[0], 'jobs', '1,234')
        self.assertEqual(self.cell(nodes[0], 'cpus'), '1')
        self.assertEqual(self.cell(nodes[0], 'busy'), '1')
        self.assertEqual(self.cell(nodes[0], 'name'), 'node-0')
        self.assertEqual(self.cell(nodes[0], 'cpu'), '50 %')
        self.assertEqual(self.cell(nodes[0], 'memory'), '1.0 GiB')
        self.assertEqual(self.cell(nodes[0], 'time'), '1 h 2 m')
        self.assertRegex(self.cell(nodes[0], 'updated'), r'^\d+ s ago$')
        lab.wait_for(lambda: 'locked' in self.row_text(locked), REFRESH, 'the locked row')
        self.assertIn('secret', self.row_text(locked).lower())      # why
        self.assertEqual(self.text('total-nodes').split()[0], '4')
        self.assertEqual(self.text('total-locked').split()[0], '1')
        self.assertEqual((self.text('total-cpus'), self.text('total-busy'), self.text('total-jobs')),
                         ('6', '1', '1,234'))
        nodes[1].close()
        lab.wait_for(lambda: 'unreachable' in self.row_text(nodes[1]), REFRESH, 'the unreachable row')

    def test_no_nodes(self):
        """What it listens on, and how to start a node that it will find."""
        self.open(self.admin())
        self.wait('!document.querySelector("#empty").hidden && document.querySelector("#empty-ways").innerText',
                  'the empty page')
        self.assertIn('dispynode.py', self.text('empty'))
        self.assertIn(str(self.info_port), self.text('empty'))

    def test_names_are_text(self):
        """Nothing that a node says becomes markup."""
        name = '<img src=x onerror="document.title=1"><b>bold</b>'
        node = self.fake('open', name=name)
        admin = self.admin('--secret', 'open')
        admin.add(node)
        self.open(admin)
        self.wait_cell(node, 'name', name)
        self.assertEqual(self.js('document.querySelectorAll("#rows img, #rows b").length'), 0)

    def test_sorting_and_filter(self):
        admin, nodes = self.cluster(4)
        self.click('[data-sort="cpus"] button')
        self.assertEqual(self.order(), [node.id for node in reversed(nodes)])
        self.assertEqual(self.element('[data-sort="cpus"]').get_attribute('aria-sort'), 'descending')
        self.click('[data-sort="cpus"] button')
        self.assertEqual(self.order(), [node.id for node in nodes])
        self.type('filter', 'node-2')
        self.assertEqual(self.order(), [nodes[2].id])
        self.click('select-all')                     # of what the filter shows
        self.assertIn('1 selected node', self.text('target-title'))
        self.type('filter', 'no such')
        self.assertIn('No node matches', self.text('no-match'))

    def test_state_survives_refresh(self):
        admin, nodes = self.cluster(60)
        self.select(nodes[3])
        self.js('(document.querySelector("#viewport").scrollTop = 300)')
        self.js('document.querySelector("#add-host").focus()')
        self.element('add-host').send_keys('half-typed')
        nodes[5].info['jobs_done'] = 99
        before = self.js('[document.querySelector("#viewport").scrollTop, window.scrollY]')
        self.wait_cell(nodes[5], 'jobs', '99')
        self.assertTrue(self.js('document.querySelector(`[data-id="${arguments[0]}"] input`).checked', nodes[3].id))
        self.assertEqual(self.js('document.activeElement.id'), 'add-host')
        self.assertEqual(self.element('add-host').get_attribute('value'), 'half-typed')
        self.assertEqual(self.js('[document.querySelector("#viewport").scrollTop, window.scrollY]'), before)

    def test_server_lost_and_back(self):
        port = self.free_ports()
        admin, nodes = self.cluster(2, '--http_port', port)
        admin.close()
        self.wait('!document.querySelector("#banner").hidden', 'that dispyadmin does not answer', 30)
        again = self.admin('--secret', 'open', '--http_port', port)
        again.add(nodes[0])
        self.wait('document.querySelector("#banner").hidden && document.querySelectorAll("#rows tr").length === 1',
                  'the new table', 30)

    def test_sizes(self):
        """No sideways scrolling of the page at any width; every control is reachable."""
        self.cluster(5)
        for width in (360, 768, 1600):
            self.browser.size(width, 900)
            self.assertLessEqual(self.js('document.documentElement.scrollWidth'), width)
            for key in ('filter', 'poll-now', 'add-node', 'secret-set'):
                self.assertTrue(self.element(key).is_displayed(), (key, width))
        self.browser.size(1400, 1000)

    def test_every_input_has_a_label(self):
        self.cluster(1)
        unlabelled = self.js('''Array.from(document.querySelectorAll('input, select, button'))
            .filter(e => e.offsetParent
            && !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim())
            .map(e => e.id)''')
        self.assertEqual(unlabelled, [])

    def test_keyboard(self):
        """Tab reaches the controls, Space selects, Enter sends."""
        admin, nodes = self.cluster(1)
        box = self.element('[data-id="%s"] input' % nodes[0].id)
        self.js('arguments[0].focus()', box)
        box.send_keys(' ')
        self.element('cpus').send_keys('0\n')
        self.outcome(nodes[0].id)
        self.assertEqual(nodes[0].asked('SET_CPUS'), [{'cpus': 0}])


class Controls(PageTest):
    """On a real node: each control is seen at its side."""

    def shown(self):
        self.target = self.node('open')
        admin = self.admin('--secret', 'open')
        admin.wait_node(self.target, state='ready')
        self.open(admin)
        self.wait('document.querySelectorAll("#rows tr").length === 1', 'the row')
        self.select(self.target)
        return admin

    def test_cpus(self):
        self.shown()
        self.type('cpus', '1')
        self.click('cpus-set')
        self.outcome(self.target.id)
        self.assertEqual(self.target.managed(), 1)
        self.wait_cell(self.target, 'cpus', '1')
        self.click('cpus-all')
        self.outcome('Set all CPUs', self.target.id)
        self.assertEqual(self.target.managed(), self.target.info()['max_cpus'])
        self.type('cpus', '99')
        self.click('cpus-set')
        self.outcome('99', self.target.id, 'refused')

    def test_service_times(self):
        self.shown()
        self.click('service-now')                    # of Start, the first choice
        self.outcome('Set Start to now', self.target.id)
        # dispynode moves it to tomorrow as soon as it has come
        away = (self.target.info()['service_start'] - time.time() + 120) % 86400
        self.assertLess(away, 240)
        self.click('service-clear')
        self.outcome('Clear Start', self.target.id)
        self.assertIsNone(self.target.info()['service_start'])
        self.type('service-time', '25:00')
        self.click('service-set')
        self.assertIn('HH:MM', self.text('service-error'))
        self.assertIsNone(self.target.info()['service_start'])
        self.type('service-time', '00:00')
        self.click('service-set')
        self.outcome('Set Start to 00:00', self.target.id)
        self.assertEqual(time.strftime('%H:%M', time.localtime(self.target.info()['service_start'])), '00:00')

    def test_end_asks_first(self):
        self.shown()
        self.js('(document.querySelector("#service-control").value = "end")')
        self.click('service-now')
        self.wait('document.querySelector("#ask").open', 'a question')
        self.click('ask-no')
        self.wait('!document.querySelector("#ask").open', 'no question')
        self.assertIsNone(self.target.info()['service_end'])
        self.click('service-now')
        self.wait('document.querySelector("#ask").open', 'a question')
        self.click('ask-yes')
        self.outcome('Set End to now', self.target.id)
        lab.wait_for(lambda: not self.target.running(), 30, 'dispynode ends, as it does at its End')

    def test_node_view(self):
        admin = self.shown()
        self.click('[data-id="%s"] a' % self.target.id)
        self.wait('!document.querySelector("#node").hidden', 'the node view')
        self.assertIn('admin_node.html?host=', self.driver.current_url)
        self.assertEqual(self.text('node-title'), self.target.id)
        self.assertIn(self.target.name, self.text('node'))
        self.type('clients', '7')
        self.click('clients-set')
        self.outcome(self.target.id)
        self.assertEqual(self.target.info()['serve'], 7)
        self.wait('document.querySelector(`[data-field="serve"]`).textContent.startsWith("7 ")', 'the number shown')
        self.type('cpus', '1')
        self.click('cpus-set')
        self.outcome('CPU', self.target.id)
        self.assertEqual(self.target.managed(), 1)
        self.driver.back()
        self.wait('!document.querySelector("#cluster").hidden', 'the cluster view')
        self.driver.get(admin.url + 'admin_node.html?host=' + self.target.id)       # straight there
        self.wait('!document.querySelector("#node").hidden', 'the node view')

    def test_secret(self):
        node = self.node('typed-in-the-page')
        admin = self.admin()
        admin.wait_node(node, state='locked')
        self.open(admin)
        self.type('secret', 'typed-in-the-page')
        self.check_secret(masked=True)
        self.click('secret-show')
        self.check_secret(masked=False)
        self.click('secret-set')
        self.outcome(node.id)
        self.assertEqual(admin.node(node)['state'], 'ready')
        self.assertEqual(self.element('secret').get_attribute('value'), '')
        stored = self.js('JSON.stringify([localStorage, sessionStorage]) + document.cookie + document.body.outerHTML')
        self.assertNotIn('typed-in-the-page', stored)

    def check_secret(self, masked, kind='text'):
        """Whether the secret is readable; and that no password manager keeps it."""
        field = self.element('secret')
        shown_as = field.get_attribute('type')
        is_masked = shown_as == 'password' or field.value_of_css_property('-webkit-text-security') == 'disc'
        self.assertEqual((is_masked, shown_as), (masked, kind))
        for name, value in (('autocomplete', 'off'), ('autocapitalize', 'none'), ('spellcheck', 'false'),
                            ('data-1p-ignore', ''), ('data-lpignore', 'true'), ('data-bwignore', ''),
                            ('data-form-type', 'other')):
            self.assertEqual(self.js('arguments[0].getAttribute(arguments[1])', field, name), value, name)

    def test_secret_in_old_browsers(self):
        """Those that cannot mask a text have a field for passwords."""
        command = 'Page.%sScriptToEvaluateOnNewDocument'
        script = self.driver.execute_cdp_cmd(command % 'add', {'source': 'CSS.supports = () => false'})
        self.addCleanup(self.driver.execute_cdp_cmd, command % 'remove', script)
        self.open(self.admin())
        self.check_secret(masked=True, kind='password')
        self.click('secret-show')
        self.check_secret(masked=False)
        self.click('secret-show')
        self.check_secret(masked=True, kind='password')

    def test_add(self):
        node = self.fake('open')
        self.open(self.admin('--secret', 'open'))
        self.type('add-host', node.address)
        self.click('add-node')
        self.outcome(node.id)
        self.wait_cell(node, 'name', 'fake')
        self.type('add-host', 'no-such-host.invalid')
        self.click('add-node')
        self.outcome('no-such-host.invalid')
        self.type('add-host', node.address)
        self.type('add-port', '99999')
        self.click('add-node')
        self.assertIn('65535', self.text('add-error'))

    def test_poll(self):
        node = self.fake('open')
        admin = self.admin('--secret', 'open', '--poll_interval', 600)
        admin.add(node)
        self.open(admin)
        node.info['jobs_done'] = 4711
        self.click('poll-now')
        self.wait_cell(node, 'jobs', '4,711')
        self.assertEqual(admin.get('/api/nodes')['poll_interval'], 600)
        self.type('poll-interval', '3')
        self.click('poll-set')
        self.assertIn('5', self.text('poll-error'))
        self.type('poll-interval', '7')
        self.click('poll-set')
        lab.wait_for(lambda: admin.get('/api/nodes')['poll_interval'] == 7, what='the interval')

    def test_forget(self):
        admin = self.shown()
        self.target.kill()
        admin.wait_node(self.target, state='unreachable')
        self.click('forget')
        self.wait('document.querySelectorAll("#rows tr").length === 0', 'no row')
        self.assertEqual(admin.nodes(), {})


class Token(PageTest):
    def test_link(self):
        """The link of the start opens the page; without it, the page says what is missing."""
        if os.geteuid():
            self.skipTest('listening beyond loopback is tested as root, in a namespace')
        admin = self.admin('--http_host', '0.0.0.0')
        admin.host = '127.0.0.1'
        self.driver.get(admin.url + '?token=' + admin.token)
        self.wait('document.querySelector("#freshness").textContent !== ""', 'an answer')
        self.assertNotIn(admin.token, self.driver.current_url)
        self.driver.delete_all_cookies()
        self.browser.errors()                        # the refused requests are meant
        self.driver.refresh()
        lab.wait_for(lambda: 'token' in self.js('document.body.innerText'), REFRESH, 'that a token is needed')
        self.driver.get('about:blank')               # else it may still ask for an icon, which is refused too
        self.browser.errors()
