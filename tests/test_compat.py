"""The one file, copied alone to an empty folder, on every CPython from 3.6 on that this machine has."""

import os
import shutil
import signal

from . import environment, lab


class Compatibility(lab.LabTest):
    def test_every_python(self):
        """Compiles without a warning, starts, finds a real node and sets its CPUs, hears another, ends."""
        node = self.node('open')
        machine = node.info()['max_cpus']
        for number, (version, python) in enumerate(sorted(environment.PYTHONS.items())):
            if version >= (3, 6):
                with self.subTest(python=version):
                    self.check(python, node, 1 + number % machine)

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
