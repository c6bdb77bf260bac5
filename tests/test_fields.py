"""The table of fields: what it says of a field is what JSON, --list, CSV, metrics and /api/about show of it."""

import csv
import io
import re
import subprocess
import sys

import dispyadmin

from . import environment, lab

# What a programmer adds for what a later release of dispynode might tell.
MADE_UP = '''    Field('gpus', 'GPUs', 'GPU', functools.partial(_integer, high=64), 5.5,
          Metric('gpus', 'GPUs in the machine.')),
'''
BEHIND = r"    Field\('busy', .*\n"

# Scripts of users count on these, in this order.
CSV_NAMES = ('id,ip_addr,port,name,version,state,controllable,reason,cpus,max_cpus,busy,cpu_available,memory_available,'
             'disk_available,swap_available,clients_done,jobs_done,cpu_time,serve,scheduler_ip,service_start,service_stop,'
             'service_end,first_seen,update_time')


class MadeUp(lab.LabTest):
    """One more field, in one line of the script."""

    def setUp(self):
        super().setUp()
        with open(environment.SCRIPT, encoding='utf-8') as file:
            text, count = re.subn(BEHIND, lambda found: found.group() + MADE_UP, file.read())
        self.assertEqual(count, 1)
        self.script = self.write(text, 'dispyadmin.py')
        self.has, self.lies, self.lacks = self.fake('open', name='has'), self.fake('open', name='lies'), self.fake('open')
        self.has.info['gpus'], self.lies.info['gpus'] = 3, 65
        self.running = self.admin('--secret', 'open', script=self.script)
        for node in (self.has, self.lies, self.lacks):
            self.assertTrue(self.running.add(node)['ok'])

    def list(self, *options):
        """The lines of --list."""
        done = subprocess.run([sys.executable, self.script, '--list', '--http_port', str(self.running.port)] + list(options),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.decode('utf-8').splitlines()

    def test_seen_everywhere(self):
        nodes = self.running.nodes()
        self.assertEqual([nodes[node.id]['gpus'] for node in (self.has, self.lies, self.lacks)], [3, None, None])
        self.assertEqual({node['state'] for node in nodes.values()}, {'ready'})
        self.assertIn({'key': 'gpus', 'title': 'GPUs', 'unit': 'GPU'}, self.running.get('/api/about')['fields'])
        lines = self.list()
        self.assertEqual(re.split(' {2,}', lines[0])[4:7], ['BUSY', 'GPUS', 'FREE CPU'])
        at = lines[0].index('GPUS')
        self.assertEqual([line[at:at + 4] for line in lines[1:]], ['   3', '    ', '    '])
        rows = {row['name']: row for row in csv.DictReader(io.StringIO('\n'.join(self.list('--csv'))))}
        self.assertEqual([rows[name]['gpus'] for name in ('has', 'lies')], ['3', ''])
        samples = [line for line in self.running.request('GET', '/metrics').text.splitlines() if 'gpus' in line]
        self.assertEqual(samples, ['# HELP dispy_node_gpus GPUs in the machine.', '# TYPE dispy_node_gpus gauge',
                                   'dispy_node_gpus{node="%s"} 3' % self.has.id])


class Table(lab.LabTest):
    def test_about(self):
        """Each field of a node has a title; what is within another is named by both."""
        admin = self.admin('--secret', 'open')
        admin.add(self.fake('open'))
        node, = admin.nodes().values()
        fields = admin.get('/api/about')['fields']
        keys = [field['key'] for field in fields]
        self.assertEqual(len(keys), len(set(keys)))
        self.assertEqual(list(dict.fromkeys(key.partition('.')[0] for key in keys)), list(node))
        self.assertEqual({key.partition('.')[2] for key in keys} - {''}, set(node['avail_info']))
        self.assertTrue(all(field['title'] for field in fields))
        self.assertIn({'key': 'avail_info.memory', 'title': 'Free memory', 'unit': 'B'}, fields)
        self.assertIn({'key': 'service_end', 'title': 'End', 'unit': 'time'}, fields)

    def test_names_in_csv(self):
        self.assertEqual(dispyadmin.csv_of_nodes([]), CSV_NAMES + '\n')

    def test_times_are_those_of_a_calendar(self):
        """From 1970 to the year 9999; 0 is none."""
        for seconds, shown in ((0, None), (-1, None), (1, 1), (1767218400.5, 1767218400.5), (253402214400, 253402214400),
                               (253402214401, None), (float('nan'), None), (True, None), ('12:00', None)):
            told = dispyadmin.read_info(dispyadmin.write_message(b'', {'cpus': 1, 'busy': 0, 'service_end': seconds}))
            self.assertEqual((told.service_end, type(told.service_end)), (shown, type(shown)), seconds)
