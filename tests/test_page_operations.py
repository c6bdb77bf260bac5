"""Preview, outcome, progress and undo on the page, in a real Chromium, with real nodes."""

from . import lab
from .test_page import PageTest


class Several(PageTest):
    def shown(self, count=2):
        nodes = self.together(*[lambda: self.node('open')] * count)
        admin = self.admin('--secret', 'open')
        for node in nodes:
            admin.wait_node(node, state='ready')
        self.open(admin)
        self.wait('document.querySelectorAll("#rows tr").length === %d' % count, 'the rows')
        return admin, nodes

    def asked(self, *words):
        """The text of the question, once it has all these words."""
        def said():
            text = self.js('document.querySelector("#ask").open && document.querySelector("#ask").innerText')
            return text if text and all(word in text for word in words) else None
        return lab.wait_for(said, 20, lambda: 'a question with %s: %s' % (
            words, self.js('document.querySelector("#ask").innerText')))

    def test_preview_then_apply_then_undo(self):
        admin, (first, second) = self.shown()
        machine = first.info()['max_cpus']
        admin.control('cpus', [second], cpus=1)
        locked = self.fake('other')
        admin.add(locked)
        self.wait('document.querySelectorAll("#rows tr").length === 3', 'the rows')
        self.wait_cell(second, 'cpus', '1')
        self.click('select-all')
        self.type('cpus', '1')
        self.click('cpus-set')
        text = self.asked('1 of 3 nodes will change', 'from %d CPUs to 1 CPU' % machine, 'as it is: 1 CPU',
                          'skipped: Locked: none of the known')
        self.assertIn(first.id, text)
        self.assertEqual(first.managed(), machine)                   # nothing has been sent
        self.click('ask-no')
        self.click('cpus-set')
        self.asked('will change')
        self.click('ask-yes')
        self.outcome('Set CPUs to 1', '1 done', first.id)
        self.assertEqual((first.managed(), second.managed()), (1, 1))
        self.click('outcome-undo')
        self.outcome('Undo: Set CPUs to 1', '1 done')
        self.assertEqual((first.managed(), second.managed()), (machine, 1))

    def test_nothing_to_change(self):
        admin, nodes = self.shown()
        self.click('select-all')
        self.click('cpus-all')
        self.asked('Nothing will change')
        self.assertFalse(self.element('ask-yes').is_displayed())

    def test_one_node_is_not_asked_about(self):
        _, nodes = self.shown(1)
        self.select(nodes[0])
        self.type('cpus', '1')
        self.click('cpus-set')
        self.outcome('Set CPUs to 1', '1 done')
        self.assertEqual(nodes[0].managed(), 1)

    def test_failed_ones_are_tried_again(self):
        admin, nodes = self.shown(2)
        fake = self.fake('open')
        admin.add(fake)
        self.wait('document.querySelectorAll("#rows tr").length === 3', 'the rows')
        self.click('select-all')
        self.type('cpus', '1')
        self.click('cpus-set')
        self.asked('3 of 3 nodes will change')
        fake.mode = 'silent'
        self.click('ask-yes')
        # while it waits for the silent one
        self.wait('/ 2 of 3/.test(document.querySelector("#outcome-summary").textContent) && '
                  '!document.querySelector("#outcome-progress").hidden', 'progress')
        self.outcome('2 done, 1 unreachable')
        group = self.element('[data-kind="unreachable"]')
        self.assertIn(fake.id, group.text)                           # a small group is unfolded
        self.click('outcome-select')
        self.wait('document.querySelectorAll("#rows tr.selected").length === 1', 'it is selected')
        fake.mode = 'normal'
        self.click('outcome-retry')
        self.outcome('Set CPUs to 1 on ' + fake.id, '1 done')
        self.assertEqual([node.managed() for node in nodes], [1, 1])

    def test_end_warns_and_shows_what_will_end(self):
        admin, nodes = self.shown()
        self.click('select-all')
        self.js('(document.querySelector("#service-control").value = "end")')
        self.click('service-now')
        self.asked('End running jobs now?', '2 nodes', 'from not set to now')
        self.click('ask-no')
        self.assertEqual([node.info()['service_end'] for node in nodes], [None, None])
