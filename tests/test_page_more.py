"""The page beyond its table: groups, drains, drift, events, addresses that keep the view, keys, and the file for
spreadsheets."""

import csv
import getpass
import glob
import io
import os
import time
import urllib.parse

from . import lab
from .test_page import PageTest


class MoreTest(PageTest):
    def all_text(self, key):
        """What an element says, in view or scrolled away; nothing while it is hidden."""
        return self.js('(e => e && e.getClientRects().length ? e.innerText : "")(document.querySelector(arguments[0]))', key)

    def wait_text(self, key, *words):
        lab.wait_for(lambda: all(word in self.all_text(key) for word in words), 20,
                     lambda: '%s in %s: %s' % (words, key, self.all_text(key)))

    def shown(self, key):
        return self.js('Boolean(document.querySelector(arguments[0]).getClientRects().length)', key)

    def wait_order(self, *nodes):
        lab.wait_for(lambda: self.order() == [node.id for node in nodes], 20, lambda: 'these rows; are %s' % self.order())

    def choose(self, key, value):
        self.js('(e => { e.value = arguments[1]; e.dispatchEvent(new Event("change", {bubbles: true})); })'
                '(document.querySelector(arguments[0]))', key, value)

    def press(self, *keys):
        """Keys for whatever has the focus."""
        for key in keys:
            self.actions().send_keys(key).perform()

    def focused(self):
        return self.js('(e => e.id || (e.closest("tr") || {dataset: {}}).dataset.id || e.tagName)(document.activeElement)')

    def wait_focus(self, where):
        lab.wait_for(lambda: self.focused() == where, what=lambda: 'the focus in %s; is in %s' % (where, self.focused()))

    def open_node(self, node):
        self.click('[data-id="%s"] a' % node.id)
        self.wait('!document.querySelector("#node").hidden', 'the node view')

    def query(self):
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.driver.current_url).query))

    def wait_query(self, **wanted):
        lab.wait_for(lambda: self.query() == wanted, what=lambda: '%s in the address; is %s' % (wanted, self.query()))


class Groups(MoreTest):
    def test_table_totals_and_selection(self):
        addresses = [self.address() for _ in range(3)]
        nodes = [self.fake('open', address, name='node-%d' % number, cpus=number + 1)
                 for number, address in enumerate(addresses)]
        admin = self.admin('--secret', 'open', '--group', 'rack=%s,%s' % tuple(addresses[:2]), '--group', 'gpu=node-2')
        for node in nodes:
            admin.add(node)
        self.open(admin)
        self.wait_order(*nodes)
        self.wait_text('#group-choice', 'All nodes (3)', 'rack (2)', 'gpu (1)')
        self.choose('#group', 'rack')
        self.wait_order(*nodes[:2])
        self.assertEqual((self.text('total-nodes').split()[0], self.text('total-cpus')), ('2', '3'))
        self.click('select-all')
        self.assertIn('2 selected nodes', self.text('target-title'))
        self.choose('#group', 'gpu')
        self.wait_order(nodes[2])
        self.assertEqual(self.text('total-cpus'), '3')
        self.open_node(nodes[2])
        self.assertEqual(self.text('[data-field="groups"]'), 'gpu')
        self.driver.get(admin.url + 'admin.html?group=gone')     # a link from before
        self.wait_order(*nodes)

    def test_nothing_of_it_without_groups(self):
        _, nodes = self.cluster(1)
        self.assertFalse(self.shown('#group-choice'))
        self.open_node(nodes[0])
        self.assertFalse(self.shown('[data-field="groups"]'))


class Drains(MoreTest):
    def real(self):
        node = self.node('open')
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        self.open(admin)
        self.wait_order(node)
        return admin, node

    def test_stay_and_cancel(self):
        admin, node = self.real()
        machine = node.info()['max_cpus']
        self.select(node)
        self.assertFalse(self.shown('#drain-cancel'))
        self.choose('#drain-then', 'stay')
        self.click('drain')
        self.outcome('Drain', node.id)
        self.assertEqual(node.managed(), 0)
        lab.wait_for(lambda: 'Drained' in self.row_text(node), 20, lambda: self.row_text(node))
        self.wait('!document.querySelector("#cancel-form").hidden', 'that it can be cancelled')
        self.open_node(node)
        self.wait_text('#node-drain', 'Drained', 'until you cancel', getpass.getuser())
        self.click('drain-cancel')
        self.outcome('Cancel drain', node.id)
        self.assertEqual(node.managed(), machine)
        self.wait('document.querySelector("#cancel-form").hidden && document.querySelector("#node-drain").hidden',
                  'no drain')

    def test_end_asks_first(self):
        admin, node = self.real()
        self.open_node(node)
        self.choose('#drain-then', 'end')
        self.click('drain')
        self.wait('document.querySelector("#ask").open', 'a question')
        self.assertIn('start it again', self.text('ask-text'))
        self.click('ask-no')
        self.wait('!document.querySelector("#ask").open', 'no question')
        self.assertIsNone(admin.node(node)['drain'])
        self.click('drain')
        self.wait('document.querySelector("#ask").open', 'a question')
        self.click('ask-yes')
        self.outcome('Drain', node.id)
        lab.wait_for(lambda: not node.running(), 40, 'dispynode ends')

    def test_progress(self):
        admin, nodes = self.cluster(3)
        nodes[2].info.update(busy=2, cpus=1)
        self.wait_cell(nodes[2], 'busy', '2')
        self.click('select-all')
        self.choose('#drain-then', 'end')
        admin.control('drain', [nodes[2]], then='end')
        lab.wait_for(lambda: '2 jobs still run; then dispynode ends there' in self.row_text(nodes[2]), 20,
                     lambda: self.row_text(nodes[2]))
        self.assertRegex(self.row_text(nodes[2]), r'Draining for \d+ s:')
        self.wait_text('#cancel-form', '1 of them is being drained')
        nodes[2].info['busy'], nodes[2].info['cpus'] = 1, -1
        lab.wait_for(lambda: '1 job still runs' in self.row_text(nodes[2]), 20, lambda: self.row_text(nodes[2]))
        self.click('drain-cancel')
        self.outcome('Cancel drain', nodes[2].id)
        self.assertEqual(nodes[2].asked('SET_CPUS')[-1], {'cpus': 3})
        self.assertEqual([nodes[0].asked('SET_CPUS'), nodes[1].asked('SET_CPUS')], [[], []])
        lab.wait_for(lambda: 'Draining' not in self.row_text(nodes[2]), 20, 'no drain')


class Drift(MoreTest):
    def test_restarted_node(self):
        """It is marked where it stands, and set again where it runs."""
        node = self.node('open')
        other = self.fake('open')
        admin = self.admin('--secret', 'open')
        admin.wait_node(node, state='ready')
        admin.add(other)
        self.open(admin)
        self.wait_order(*sorted((node, other), key=lambda n: [int(part) for part in n.address.split('.')]))
        self.assertFalse(self.shown('#total-drifted'))
        admin.control('cpus', [node], cpus=1)
        node.kill()
        node = self.node('open', address=node.address)
        machine = node.info()['max_cpus']
        lab.wait_for(lambda: 'drifted' in self.row_text(node), 30, lambda: self.row_text(node))
        self.assertIn('CPUs: %d, should be 1.' % machine, self.row_text(node))
        self.assertEqual(self.text('total-drifted').split(), ['1', 'drifted'])
        self.click('total-drifted')
        self.wait_order(node)
        self.assertIn('1 node is not as set here', self.text('drifted-text'))
        self.open_node(node)
        self.assertIn('CPUs: %d, should be 1.' % machine, self.text('drift-list'))
        self.click('reapply')
        self.outcome('Reapply', node.id)
        self.assertEqual(node.managed(), 1)
        self.wait('document.querySelector("#drift-form").hidden', 'no drift')
        self.driver.get(admin.url)
        self.wait('document.querySelectorAll("#rows tr").length === 2', 'the rows')
        self.assertFalse(self.shown('#total-drifted'))

    def drift(self, count=3):
        """Nodes of which all but the first are changed behind dispyadmin's back."""
        admin, nodes = self.cluster(count)
        admin.control('cpus', nodes, cpus=1)
        for node in nodes[1:]:
            node.info['cpus'] = 0
        self.wait_text('#total-drifted', str(count - 1))
        self.click('total-drifted')
        self.wait_order(*nodes[1:])
        return admin, nodes

    def test_reapply_all(self):
        admin, nodes = self.drift()
        self.click('reapply-all')
        self.wait('document.querySelector("#ask").open', 'a question')
        self.assertIn('2 nodes', self.text('ask-title'))
        self.assertIn('CPUs: 0, should be 1.', self.text('ask'))
        self.click('ask-yes')
        self.outcome('Reapply', '2 done')
        self.assertEqual([len(node.asked('SET_CPUS')) for node in nodes], [1, 2, 2])
        self.assertEqual([node.info['cpus'] for node in nodes], [1, 1, 1])
        self.wait('document.querySelectorAll("#rows tr").length === 0', 'none')
        self.assertFalse(self.shown('#drifted-form'))
        self.click('total-drifted')                  # the filter can still be left
        self.wait_order(*nodes)
        self.assertFalse(self.shown('#total-drifted'))

    def test_accept(self):
        admin, nodes = self.drift()
        self.open_node(nodes[1])
        self.click('accept')
        self.outcome('Accept', nodes[1].id)
        self.wait('document.querySelector("#drift-form").hidden', 'no drift')
        self.assertIsNone(admin.node(nodes[1])['wanted'])
        self.driver.back()
        self.wait_order(nodes[2])
        self.click('accept-all')
        self.outcome('Accept')
        self.wait_text('#no-match', 'No node matches')
        self.assertEqual([len(node.asked('SET_CPUS')) for node in nodes], [1, 1, 1])

    def test_an_end_time_is_asked_for(self):
        """To set it again may end dispynode at once."""
        admin, nodes = self.cluster(1)
        admin.control('service_time', nodes, control='end', time='23:59')
        admin.control('cpus', nodes, cpus=0)
        nodes[0].info['cpus'] = 1
        self.wait_text('#total-drifted', '1')
        self.open_node(nodes[0])
        before = len(nodes[0].requests)
        self.click('reapply')
        self.wait('document.querySelector("#ask").open', 'a question')
        self.assertIn('End time', self.text('ask-text'))
        self.click('ask-no')
        self.assertEqual([r for r in nodes[0].requests[before:] if r[0] != 'NODE_INFO'], [])

    def test_row_heights(self):
        """Rows are as high as the page reckons them, at every width: else a long table jumps when it is scrolled."""
        admin, nodes = self.cluster(70)
        admin.control('cpus', nodes[:30], cpus=1)
        for node in nodes[1:6] + nodes[20:25]:
            node.info['cpus'] = 0
        admin.control('drain', nodes[7:9], then='stay')
        self.wait_text('#total-drifted', '10')
        lab.wait_for(lambda: 'Drained' in self.row_text(nodes[8]), 20, 'the drain is shown')
        for width in (1400, 900, 360):
            with self.subTest(width):
                self.browser.size(width, 1000)
                wrong = lab.wait_for(lambda: self.js('''(() => {
                    const style = getComputedStyle(document.querySelector('#nodes'));
                    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
                    const size = name => parseFloat(style.getPropertyValue(name)) * rem;
                    return {rows: Array.from(document.querySelectorAll('#rows tr'), tr => [tr.innerText,
                        tr.getBoundingClientRect().height - size('--row') - (tr.matches('.has-why') ? size('--why') : 0),
                        Boolean(tr.querySelector('.why').getClientRects().length) === tr.matches('.has-why')])
                        .filter(([text, off, said]) => Math.abs(off) > .5 || !said)}; })()'''))
                self.assertEqual(wrong['rows'], [])
                self.assertLessEqual(self.js('document.documentElement.scrollWidth'), width)
        self.browser.size(1400, 1000)


class Events(MoreTest):
    def number_of_requests(self, path):
        return self.js('performance.getEntriesByType("resource").filter(e => e.name.includes(arguments[0])).length', path)

    def lines(self):
        return self.js('Array.from(document.querySelectorAll("#events-list > li"), e => e.innerText)')

    def test_who_did_what_and_undo(self):
        admin, nodes = self.cluster(3)
        admin.control('cpus', nodes[1:], cpus=1)
        self.assertEqual(self.number_of_requests('api/events'), 0)
        self.click('events-button')
        lab.wait_for(lambda: self.lines(), what='events')
        first = self.lines()[0]
        for word in ('Set CPUs to 1', '%s@127.0.0.1' % getpass.getuser(), '2 done'):
            self.assertIn(word, first)
        self.assertIn('found', self.lines()[-1])
        self.click('#events-list summary')
        lab.wait_for(lambda: '2 \u2192 1' in self.lines()[0] and '3 \u2192 1' in self.lines()[0],
                     what=lambda: self.lines()[0])
        admin.post('/api/scan', {})
        lab.wait_for(lambda: 'Search' in self.lines()[0], 20, 'what is new comes by itself')
        self.assertIn('2 \u2192 1', self.lines()[1])             # and what was unfolded stays so
        self.click('#events-list .undo')
        self.wait('!document.querySelector("#events").open', 'the events are out of the way')
        self.outcome('Undo: Set CPUs to 1', '2 done')
        self.assertEqual([node.info['cpus'] for node in nodes], [1, 2, 3])
        self.click('events-button')
        lab.wait_for(lambda: 'Undo' in self.lines()[0], what=lambda: self.lines())
        self.assertEqual(self.js('document.querySelectorAll("#events-list .undo").length'), 1)     # of the undo
        self.click('events-close')
        asked = self.number_of_requests('api/events')
        nodes_asked = self.number_of_requests('api/nodes')
        lab.wait_for(lambda: self.number_of_requests('api/nodes') > nodes_asked + 1, 30, 'two refreshes')
        self.assertEqual(self.number_of_requests('api/events'), asked)

    def test_many(self):
        admin = self.admin()
        for _ in range(55):
            admin.post('/api/scan', {})
        self.open(admin)
        self.click('events-button')
        lab.wait_for(lambda: len(self.lines()) == 50, what='fifty')
        self.click('events-more')
        lab.wait_for(lambda: len(self.lines()) == 55, what='all')
        self.assertFalse(self.shown('#events-more'))

    def test_names_are_text(self):
        node = self.fake('open', name='<img src=x>')
        admin = self.admin('--secret', 'open')
        admin.add(node)
        self.open(admin)
        node.close()
        admin.wait_node(node, state='unreachable')
        self.click('events-button')
        lab.wait_for(lambda: any('lost' in line for line in self.lines()), what='that it is lost')
        self.assertEqual(self.js('document.querySelectorAll("#events img").length'), 0)

    def test_limits_of_the_request(self):
        admin, nodes = self.cluster(1)
        admin.control('cpus', nodes, cpus=0)
        self.assertEqual(len(admin.get('/api/events?limit=1')['events']), 1)
        self.assertEqual(admin.get('/api/events?limit=1&changes=0')['events'][0]['changes'], [])
        self.assertEqual(len(admin.get('/api/events')['events'][0]['changes']), 1)
        answer = admin.request('GET', '/api/events?limit=-1')
        self.assertEqual((answer.status, answer.json['error'][:5]), (400, 'limit'))


class Address(MoreTest):
    def test_kept(self):
        admin, nodes = self.cluster(3, '--group', 'some=node-*')
        self.assertEqual(self.query(), {})
        self.type('filter', 'node-1')
        self.wait_query(filter='node-1')
        self.type('filter', 'node')
        self.click('total-ready')
        self.click('[data-sort="cpus"] button')
        self.choose('#group', 'some')
        self.wait_query(filter='node', state='ready', sort='cpus', direction='descending', group='some')
        self.driver.refresh()
        self.wait_order(*reversed(nodes))
        self.assertEqual(self.element('filter').get_attribute('value'), 'node')
        self.assertEqual(self.element('total-ready').get_attribute('aria-pressed'), 'true')
        self.assertEqual(self.element('sort-by').get_attribute('value'), 'cpus')
        self.assertEqual(self.element('group').get_attribute('value'), 'some')
        self.type('filter', 'node-2')                # and at once away: nothing of it is lost
        self.open_node(nodes[2])
        self.driver.back()
        self.wait_order(nodes[2])
        self.wait_query(filter='node-2', state='ready', sort='cpus', direction='descending', group='some')
        self.open_node(nodes[2])
        self.click('#node .back a')
        self.wait_order(nodes[2])
        self.assertEqual(self.query()['filter'], 'node-2')

    def test_nonsense(self):
        admin, nodes = self.cluster(2)
        self.driver.get(admin.url + 'admin.html?sort=constructor&state=x&direction=x&group=__proto__')
        self.wait_order(*nodes)
        self.wait_query()

    def test_title(self):
        admin, nodes = self.cluster(2)
        self.assertEqual(self.driver.title, 'Admin Cluster(s) \u00b7 dispyadmin')
        nodes[0].close()
        lab.wait_for(lambda: self.driver.title == '(1 lost) Admin Cluster(s) \u00b7 dispyadmin', 30,
                     lambda: self.driver.title)
        self.click('nav-node')
        self.assertEqual(self.driver.title, '(1 lost) Admin Node \u00b7 dispyadmin')


class Keys(MoreTest):
    ESCAPE, ENTER, DOWN, UP, CONTROL = '\ue00c', '\ue007', '\ue015', '\ue013', '\ue009'

    def test_table(self):
        admin, nodes = self.cluster(3, '--group', 'some=node-1')
        self.press('j')
        self.wait_focus(nodes[0].id)
        self.press('j', self.DOWN)
        self.wait_focus(nodes[2].id)
        self.press('j', 'k')
        self.wait_focus(nodes[1].id)
        self.press('x')
        self.assertIn('1 selected node', self.text('target-title'))
        self.press(self.UP, 'a')
        self.assertIn('3 selected nodes', self.text('target-title'))
        self.press(self.ESCAPE)
        self.assertEqual(self.text('target-title'), 'Selected nodes')
        self.press('g')
        self.wait_focus('group')
        self.press('some')
        self.wait_order(nodes[1])
        self.js('document.activeElement.blur()')
        self.press(self.ESCAPE)
        self.wait_order(*nodes)
        self.press('j', self.ENTER)
        self.wait('!document.querySelector("#node").hidden', 'the node view')

    def test_filter(self):
        admin, nodes = self.cluster(3)
        self.press('/')
        self.wait_focus('filter')
        self.press('n', 'o', 'd', 'e', '-', '2')     # letters are letters there
        self.wait_order(nodes[2])
        self.assertEqual(self.element('filter').get_attribute('value'), 'node-2')
        self.press(self.ENTER)
        self.wait_focus(nodes[2].id)
        self.press(self.ESCAPE)
        self.wait_order(*nodes)
        self.assertEqual(self.element('filter').get_attribute('value'), '')

    def test_long_table(self):
        """To rows that are not drawn yet."""
        admin, nodes = self.cluster(80)
        self.press('j', *['j'] * 30)
        self.wait_focus(nodes[30].id)
        self.js('(document.querySelector("#viewport").scrollTop = 0)')
        self.press('j')
        self.wait_focus(nodes[31].id)
        seen = self.js('''(e => { const row = e.getBoundingClientRect();
            const port = document.querySelector('#viewport').getBoundingClientRect();
            return row.top >= port.top && row.bottom <= port.bottom; })(document.activeElement.closest('tr'))''')
        self.assertTrue(seen)

    def test_panels(self):
        admin, nodes = self.cluster(1)
        polls = len(nodes[0].requests)
        self.press('n')
        self.outcome('Poll now', nodes[0].id)
        self.assertGreater(len(nodes[0].requests), polls)
        self.press(self.ESCAPE)
        self.assertFalse(self.shown('#outcome'))
        self.press('e')
        self.wait('document.querySelector("#events").open', 'events')
        self.press(self.ESCAPE)
        self.wait('!document.querySelector("#events").open', 'no events')
        self.press('?')
        self.wait('document.querySelector("#help").open', 'help')
        for word in ('Filter', 'Next row', 'Select all', 'Poll now', 'Events', 'Esc'):
            self.assertIn(word, self.text('help'))
        self.assertNotIn('Choose a group', self.text('help'))    # there are none
        self.click('help-close')
        self.actions().key_down(self.CONTROL).send_keys('a').key_up(self.CONTROL).perform()      # that is the browser's
        self.assertEqual(self.text('target-title'), 'Selected nodes')

    def test_switched_off(self):
        """Whoever speaks to the computer, or types by accident, can do without."""
        admin, nodes = self.cluster(1)
        self.click('help-button')
        self.click('keys-on')
        self.click('help-close')
        self.press('a', 'j', '?')
        self.assertEqual(self.text('target-title'), 'Selected nodes')
        self.assertFalse(self.js('document.querySelector("#help").open'))
        self.driver.refresh()
        self.wait_order(*nodes)
        self.press('a')
        self.assertEqual(self.text('target-title'), 'Selected nodes')
        self.click('help-button')
        self.click('keys-on')
        self.click('help-close')
        self.press('a')
        self.assertIn('1 selected node', self.text('target-title'))


class Spreadsheet(MoreTest):
    NAMES = ('=HYPERLINK("http://evil","x")', '+1', '-2', '@cmd', 'a,"b"', 'plain', '\u00e9t\u00e9')

    def save(self):
        folder = self.folder()
        self.driver.execute_cdp_cmd('Browser.setDownloadBehavior', {'behavior': 'allow', 'downloadPath': folder})
        self.click('csv')
        name = lab.wait_for(lambda: [path for path in glob.glob(os.path.join(folder, '*.csv')) if os.path.getsize(path)],
                            what=lambda: os.listdir(folder))[0]
        with open(name, encoding='utf-8-sig', newline='') as file:
            text = file.read()
        return text, list(csv.DictReader(io.StringIO(text)))

    def test_what_is_shown_in_its_order(self):
        nodes = [self.fake('open', name=name, cpus=number + 1) for number, name in enumerate(self.NAMES)]
        admin = self.admin('--secret', 'open', '--group', 'evil=*evil*')
        for node in nodes:
            admin.add(node)
        other = self.fake('other')
        admin.add(other)
        nodes[0].info.update(jobs_done=7, cpu_time=1.5)
        self.open(admin)
        self.wait('document.querySelectorAll("#rows tr").length === 8', 'the rows')
        self.wait_cell(nodes[0], 'jobs', '7')
        self.click('[data-sort="cpus"] button')
        self.click('total-ready')
        self.wait_order(*reversed(nodes))
        text, rows = self.save()
        self.assertEqual([row['id'] for row in rows], [node.id for node in reversed(nodes)])
        self.assertEqual([row['name'] for row in reversed(rows)],
                         ["'" + name if name[0] in '=+-@' else name for name in self.NAMES])
        self.assertIn('"a,""b"""', text)
        last = rows[-1]
        self.assertEqual((last['state'], last['cpus'], last['machine_cpus'], last['jobs_done'], last['cpu_time_seconds'],
                          last['available_memory_bytes'], last['clients_to_serve'], last['groups'], last['service_start']),
                         ('ready', '1', '1', '7', '1.5', str(2 ** 30), '-1', 'evil', ''))
        seen = time.mktime(time.strptime(last['last_update'], '%Y-%m-%dT%H:%M:%SZ')) - time.timezone
        self.assertLess(abs(time.time() - seen), 60)
        self.click('total-locked')
        self.wait_order(other)
        _, rows = self.save()
        self.assertEqual([(row['id'], row['cpus']) for row in rows], [(other.id, '')])
        self.assertIn('none of the known admin secrets', rows[0]['says'])

    def test_no_rows(self):
        admin, _ = self.cluster(1)
        self.type('filter', 'no such')
        self.assertFalse(self.shown('#csv'))


class Looks(MoreTest):
    """At every width, and for those who hear the page."""

    def test_sizes_and_labels(self):
        admin, nodes = self.cluster(4, '--group', 'some=node-1', '--group', 'a-name-of-a-group-that-is-quite-long-xx=*')
        admin.control('cpus', nodes, cpus=1)
        nodes[1].info['cpus'] = 0
        admin.control('drain', nodes[2:3], then='stay')
        self.wait_text('#total-drifted', '1')
        self.click('select-all')
        unlabelled = '''Array.from(document.querySelectorAll('input, select, button')).filter(e => e.getClientRects().length
            && !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.id)'''
        for width in (360, 768, 1400):
            self.browser.size(width, 900)
            for dialog in (None, 'events', 'help'):
                if dialog:
                    self.click(dialog + '-button')
                    self.wait('document.querySelector("#%s").open' % dialog, dialog)
                with self.subTest(width=width, dialog=dialog):
                    self.assertLessEqual(self.js('document.documentElement.scrollWidth'), width)
                    self.assertEqual(self.js(unlabelled), [])
                if dialog:
                    self.assertLessEqual(self.js('document.querySelector("#%s").scrollWidth' % dialog), width)
                    self.click(dialog + '-close')
        self.browser.size(1400, 1000)
